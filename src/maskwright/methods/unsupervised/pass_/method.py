"""PASS: Large-scale Unsupervised Semantic Segmentation.

Gao, Li, Yang, Cheng, Han, Torr, TPAMI 2022, https://arxiv.org/abs/2106.03149.

An existing self-supervised loss between crops of a photograph teaches a network what it shows, and two additions teach
it where. Pixel-to-pixel: places that two crops share get the same embedding. Deep-to-shallow: what the deepest stage
assigns a crop to supervises a shallower stage's pixels, so that these carry meaning before they are averaged. Then a
gate learns, on the frozen network, which pixels and channels speak for the photograph; k-means of the gated means gives
as many centroids as there are classes; every pixel is named by its nearest centroid, or "other" where its gate is low;
and a segmentation network is trained on these names.

Deviates: the attention threshold is Otsu's on the training photographs' mean gates, and reads no label; the authors
sweep it on validation labels (`oracle_threshold`, off). Where the class table names every class and none is "other",
no pixel is. Any backbone of ours is pretrained, from the weights it is
given (`--weights random` starts from nothing, as the paper does). Where these are trained already (preset `small`), the
backbone learns at a twentieth of the heads' rate and keeps its batch-norm statistics: at the whole rate 100 steps lose
more than they teach (docs/pass.md). For losses without clusters (`instance=simsiam`,
`moco`) deep-to-shallow takes their own targets, and the gate's clustering loss starts from fresh prototypes. All
preprocessing uses one set of means and deviations. Batch statistics are over all GPUs; several processes on CPUs take
each its own share's. LARC's step of an all-zero bias has a bounded gradient. A global crop has at least two cells of
the deepest stage. Where the class table has no class for "other", it comes beside, as id 0 (`other`).

What the original gets wrong: its threshold peeks at labels; its training normalises by deviations with a typing error;
its gate stage leaves the network in training mode, so running statistics that the later stages use go on moving (kept:
it is what the released numbers come from); points on the edge of an overlap read half of the zero padding (kept).

Legend: B photographs, V crops, F width of the deepest stage, d embedding width, K clusters, A the gate.
"""

from __future__ import annotations

import copy
from dataclasses import asdict, dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from maskwright.data.masking.classes import ClassTable
from maskwright.data.training.augment import photometric
from maskwright.data.training.labels import LabelStore
from maskwright.data.training.sampler import Sampler
from maskwright.data.training.sources import StoredLabels
from maskwright.data.trust.artefacts import write_record
from maskwright.engine.checkpoint import load_part, stage_parts
from maskwright.engine.config import option
from maskwright.engine.contract import Method, Stage
from maskwright.engine.distributed import rank, share, world_size
from maskwright.engine.loop import CHECKPOINT, Indices, Training, cosine
from maskwright.engine.seeding import seed_step
from maskwright.errors import MaskwrightError
from maskwright.evaluate.judging import is_other
from maskwright.methods.unsupervised.pass_.attention import (
    AttentionTraining,
    PixelNames,
    Threshold,
    choose_threshold,
    oracle_threshold,
)
from maskwright.methods.unsupervised.pass_.network import Embedded, PassNetwork
from maskwright.models.bundle import save_bundle
from maskwright.models.parts.attended_clusters import AttendedClusters, PixelAttention
from maskwright.models.parts.encoder import BackboneEncoder
from maskwright.models.parts.heads import LinearClassifier
from maskwright.models.preprocess import MAX_SIDE, Preprocess
from maskwright.models.segmenter import Segmenter
from maskwright.models.tensors import save_tensors
from maskwright.ops.losses.pixel_alignment import p2p_loss
from maskwright.recipes.frozen.features import cluster_rows
from maskwright.recipes.pretraining.finetuning import Finetuning
from maskwright.recipes.pretraining.instance import InstanceLoss, MoCo, SimSiam, SwAV, synchronised
from maskwright.recipes.pretraining.larc import LARC, two_rates
from maskwright.recipes.pretraining.multicrop import Crops, MultiCrops
from maskwright.recipes.training.forward import precision_of

CENTROIDS = "centroids.safetensors"
THRESHOLD = "threshold.json"
CLUSTERS = "clusters.safetensors"
WEIGHTS = "backbone.safetensors"

CUSTOM: dict[str, Any] = {
    "crop": 224, "local_crop": 96, "local_crops": 6, "scale_min": 0.14, "hidden": 512, "prototypes": 500, "batch": 256,
    "epochs": 200, "lr": 0.6, "queue": 2048, "queue_epoch": 15, "frozen": 1001, "attention_epochs": 20,
    "attention_lr": 6.0, "attention_final": 1e-4, "attention_local_crops": 0, "attention_scale_min": 0.08,
    "attention_queue": 3840, "finetune_epochs": 20, "finetune_lr": 0.6, "finetune_scale_min": 0.08, "short_side": 256,
    "finetune_share": 1.0, "restarts": 30, "backbone_share": 1.0, "freeze_norm": False,
}  # fmt: skip
S300 = CUSTOM | {
    "local_crops": 0, "scale_min": 0.08, "hidden": 2048, "prototypes": 3000, "epochs": 100, "queue": 3840,
    "frozen": 5005, "attention_lr": 0.6, "attention_final": 1e-3,
}  # fmt: skip
PRESETS: dict[str, dict[str, Any]] = {
    "small": CUSTOM | {
        "crop": 128, "local_crop": 64, "local_crops": 2, "hidden": 256, "prototypes": 128, "batch": 32, "epochs": 24,
        "lr": 2.0, "queue": 256, "queue_epoch": 4, "frozen": 25, "attention_epochs": 8, "attention_lr": 6.0,
        "attention_final": 1e-3, "attention_local_crops": 2, "attention_scale_min": 0.14, "finetune_scale_min": 0.14,
        "attention_queue": 256, "finetune_epochs": 12, "finetune_lr": 2.0, "finetune_share": 0.05, "short_side": 192,
        "restarts": 10, "backbone_share": 0.05, "freeze_norm": True,
    },
    "imagenet_s50": CUSTOM, "imagenet_s300": S300, "imagenet_s919": S300, "custom": CUSTOM,
}  # fmt: skip
"""`small` finishes on two cores; those of ImageNet-S are the released schedules, `custom` begins as that of 50."""
PAPER_BACKBONES = {"imagenet_s50": "resnet18", "imagenet_s300": "resnet50", "imagenet_s919": "resnet50"}


@dataclass(kw_only=True)
class PassConfig:
    """Options of `Pass`; those without a value of their own take the preset's, those that are given win."""

    preset: str = option("small", "sets the other options' defaults", choices=tuple(PRESETS))
    instance: str = option("swav", "L_e, the loss between crops", choices=("swav", "simsiam", "moco"))
    p2p: bool = option(True, "pixel-to-pixel alignment of what two crops share")
    d2s: tuple[int, ...] = option(
        (3,), "stages that the deepest (4) supervises, deep to shallow; empty for none", low=1, high=3
    )
    d2s_weight: float = option(1.0, "w_s of each such stage beside w_0 = 1 of L_e; all are divided by their sum", low=0)
    attention: bool = option(True, "learn the gate; without it nothing is other")
    other: str = option(
        "auto", "id 0, other: within --classes, beside them, or auto: beside where classes.txt has no class for it",
        choices=("auto", "within", "beside"),
    )  # fmt: skip
    crop: int = option(None, "side of the two global crops, pixels (preset)", low=16)
    local_crop: int = option(None, "side of the local crops, pixels (preset)", low=16)
    local_crops: int = option(None, "local crops of a photograph; swav alone uses them (preset)", low=0, high=32)
    scale_min: float = option(
        None, "least share of the area of a global crop, greatest of a local one (preset)", low=0.051, high=1
    )
    dim: int = option(128, "d, width of embeddings", low=2)
    hidden: int = option(None, "width inside the heads (preset)", low=2)
    prototypes: int = option(None, "prototypes of swav (preset)", low=2)
    temperature: float = option(0.1, "tau of swav's predictions", low=0.01, high=1)
    eps: float = option(0.05, "of swav's balanced assignment", low=0.005, high=1)
    grid: int = option(7, "G, points a side of the shared grid", low=1, high=64)
    queue: int = option(
        None, "earlier embeddings that assignments are balanced with, or moco's negatives (preset)", low=0
    )
    queue_epoch: int = option(None, "epoch from which swav's queue is filled (preset)", low=0)
    frozen: int = option(None, "first steps in which the prototypes stay (preset)", low=0)
    batch: int = option(None, "photographs in a step, over all processes (preset)", low=2)
    epochs: int = option(None, "passes over the photographs of pretraining, unless --steps says (preset)", low=1)
    lr: float = option(None, "LARC's factor, cosine to a thousandth of it (preset)", low=0)
    backbone_share: float = option(None, "share of lr for the backbone in pretraining (preset)", low=0)
    freeze_norm: bool = option(None, "keep the backbone's batch-norm statistics, in all stages (preset)")
    weight_decay: float = option(1e-6, "on every tensor", low=0)
    attention_epochs: int = option(None, "passes of the gate's stage; --steps scales it (preset)", low=1)
    attention_lr: float = option(None, "LARC's factor there (preset)", low=0)
    attention_final: float = option(None, "what is left of it at the stage's end, as a share (preset)", low=0, high=1)
    attention_local_crops: int = option(None, "local crops of a photograph there (preset)", low=0, high=32)
    attention_scale_min: float = option(
        None, "least share of the area of a global crop there, greatest of a local one (preset)", low=0.051, high=1
    )
    attention_queue: int = option(None, "queue there, from its first step (preset)", low=0)
    finetune_epochs: int = option(None, "passes over the pseudo-labels; 0: the clusters are the result (preset)", low=0)
    finetune_lr: float = option(None, "LARC's factor there (preset)", low=0)
    finetune_scale_min: float = option(None, "least share of a crop's area there (preset)", low=0.01, high=1)
    finetune_share: float = option(None, "share of it for the backbone (preset)", low=0)
    short_side: int = option(
        None, "shorter side for clustering, labelling and prediction, pixels (preset)", low=32, high=MAX_SIDE
    )
    restarts: int = option(None, "k-means starts; the best inertia is kept (preset)", low=1)
    threshold: float | None = option(None, "least mean gate of what is not other; none: Otsu's, or 0", low=0, high=1)
    oracle_threshold: bool = option(False, "choose it by the mIoU of the run's own masks, as the authors do")
    precision: str = option("auto", "bf16 where the processor has it, or fp32", choices=("auto", "bf16", "fp32"))
    threads: int = option(0, "photographs prepared at a time; 0: as many as torch computes with, at most 16", low=0)

    def __post_init__(self) -> None:
        for f in fields(self):
            if getattr(self, f.name) is None and f.name in PRESETS.get(self.preset, {}):
                setattr(self, f.name, PRESETS[self.preset][f.name])

    def check(self) -> None:
        """Raises `MaskwrightError` on options that contradict each other."""
        if list(self.d2s) != sorted(set(self.d2s), reverse=True):
            raise MaskwrightError(f"d2s={self.d2s}", "stages from deep to shallow, each once, as 3,2")
        if self.oracle_threshold and (self.threshold is not None or not self.attention):
            raise MaskwrightError("oracle_threshold without a threshold to choose", "attention, and no threshold given")


class Pretraining(Training):
    """L = (L_e + sum_s w_s L_d2s^s) / (1 + sum_s w_s) + L_p2p.

    Batch norm: all layers in training mode, statistics of all global crops together and of all local crops together;
    with `freeze_norm` the backbone's stay in evaluation mode.
    """

    def __init__(self, network: PassNetwork, instance: InstanceLoss, crops: MultiCrops, config: PassConfig) -> None:
        self.config, self.crops = config, crops
        self.network, self.instance = synchronised(network).train(), synchronised(instance).train()
        if config.freeze_norm:
            self.network.backbone.eval()  # type: ignore[operator]
        self.modules: dict[str, nn.Module] = {"network": self.network, "instance": self.instance}
        trained = [p for m in self.modules.values() for p in m.parameters() if p.requires_grad]
        groups = two_rates(trained, network.backbone.parameters(), config.lr, config.backbone_share)
        self.optimizers = {"larc": LARC(groups, config.lr, weight_decay=config.weight_decay)}

    def batch(self, indices: Indices, random: torch.Generator) -> Crops:
        """Crops with the geometry that relates the two global ones."""
        return self.crops.draw(indices, random)

    def losses(self, batch: Crops, step: int) -> dict[str, Tensor]:
        """L_e, L_d2s and L_p2p."""
        c, net = self.config, self.network
        self.instance.before_step(step)
        out: Embedded = net(batch.global_, batch.local)
        l_e = self.instance(out.z, batch.global_.chunk(2), step)
        terms = {"instance": l_e}
        total, weight = l_e, 1.0
        for s, z in zip(c.d2s, out.shallow):
            terms[f"d2s_{s}"] = l_d2s = self.instance.supervise(z.chunk(2))
            total, weight = total + c.d2s_weight * l_d2s, weight + c.d2s_weight
        loss = total / weight
        if c.p2p:
            u1, u2 = net.pixel_head(out.deep).chunk(2)  # type: ignore[operator]
            terms["p2p"] = l_p2p = p2p_loss(u1, u2, *batch.grids, net.predictor)  # type: ignore[arg-type]
            loss = loss + l_p2p
        return {"loss": loss, **terms}

    def after_step(self, step: int) -> None:
        """Queues and momentum encoders."""
        self.instance.after_step(step, self.network)


class Pass(Method):
    """Pretraining with shape, pixel attention, clusters, pseudo-labels, and a network trained on them."""

    name: ClassVar[str] = "pass"
    title: ClassVar[str] = "Large-scale Unsupervised Semantic Segmentation"
    venue: ClassVar[str] = "Gao et al., TPAMI 2022"
    link: ClassVar[str] = "https://arxiv.org/abs/2106.03149"
    family: ClassVar[str] = "unsupervised"
    Config: ClassVar[type] = PassConfig
    config: PassConfig

    def __init__(self, config: PassConfig, context: Any) -> None:
        super().__init__(config, context)
        known = context.data.classes
        self.other_in_truth = known is not None and is_other(known.names[0])
        self.all_named = config.other == "auto" and known is not None and not self.other_in_truth
        beside = config.other == "beside" or self.all_named
        self.clusters = context.classes if beside else context.classes - 1
        if self.clusters < 1:
            raise MaskwrightError(
                f"--classes {context.classes}, other among them", "at least 2", "add --set other=beside"
            )
        numbered = ClassTable.numbered(self.clusters + 1)
        colors = np.concatenate([np.zeros((1, 3), np.uint8), numbered.colors[:-1]])
        context.table = ClassTable(("other", *numbered.names[1:]), colors)

    def stages(self) -> list[Stage]:
        """Pretrain, attention, cluster, label, finetune; those that are switched off are left out."""
        c = self.config
        says = f"{c.instance} between crops{', pixel to pixel' * c.p2p}{', deep to shallow' * bool(c.d2s)}"
        stages = [
            Stage("pretrain", "train", self.pretrain, says),
            Stage("attention", "train", self.attend, "which pixels and channels speak for the photograph"),
            Stage("cluster", "fit", self.cluster, f"k-means of the photographs into {self.clusters}"),
            Stage("label", "label", self.label, "each pixel its nearest centroid, or other"),
            Stage("finetune", "train", self.finetune, "a segmentation network on these labels"),
        ]
        off = {"attention"} if not c.attention else set()
        return [s for s in stages if s.name not in off | ({"finetune"} if not c.finetune_epochs else set())]

    # ------------------------------------------------------------------ what stages share

    @property
    def precision(self) -> str | None:
        """Of forward passes through the backbone."""
        return precision_of(self.config.precision, self.context.device)

    def steps(self, epochs: int) -> int:
        """Optimiser steps of so many epochs; `--steps` is pretraining's number, and the others keep their share."""
        c = self.config
        whole = self.context.steps or max(1, round(c.epochs * len(self.context.data) / c.batch))
        return max(1, round(whole * epochs / c.epochs))

    @property
    def sides(self) -> tuple[int, int]:
        """Sides of global and local crops: whole patches of a transformer; of a global crop two cells of the deepest
        stage at least, because in one there is nothing to align."""
        b = self.context.backbone
        m, cell = b.multiple_of if b.is_vit else 1, b.strides[b.stage_layers[-1]]
        side = max(self.config.crop, 2 * cell)
        return -(-side // m) * m, -(-self.config.local_crop // m) * m

    def crops(self, local: int, least: float) -> MultiCrops:
        """Two global crops of at least so much of the area, and local ones of at most that.

        Args:
            local: local crops of a photograph; swav alone uses them.
            least: share of the area.
        """
        c, context, (side, small) = self.config, self.context, self.sides
        groups = [(2, (side, side), (least, 1.0)), (local, (small, small), (0.05, least))]
        return MultiCrops(
            context.data, groups[: 1 + (c.instance == "swav")], photometric("simclr"),
            Preprocess.for_backbone(context.backbone.provenance), context.device, grid=c.grid, threads=c.threads,
        )  # fmt: skip

    def network(self) -> PassNetwork:
        """The run's backbone, its weights copied, with new heads.

        Running statistics move by at least a tenth a step, as in torchvision's ResNets: the hundredth that some
        networks bring is not there yet when a short run ends.
        """
        backbone = copy.deepcopy(self.context.backbone).requires_grad_(True)
        for m in backbone.modules():
            if isinstance(m, nn.modules.batchnorm._BatchNorm) and m.momentum is not None:
                m.momentum = max(m.momentum, 0.1)
        c = self.config
        try:
            return PassNetwork(backbone, c.d2s, c.hidden, c.dim, c.p2p, self.precision)
        except ValueError as error:
            raise MaskwrightError(f"d2s={c.d2s}: {error}", "stages of the backbone", "give --set d2s=3") from error

    def swav(self, queue: int, queue_from: int, frozen: int) -> SwAV:
        """L_swav with the configured constants."""
        c = self.config
        return SwAV(
            c.dim, c.prototypes, temperature=c.temperature, eps=c.eps, frozen=frozen, queue=queue, queue_from=queue_from
        )

    def checkpoint(self, stage: str) -> Path:
        """Where a training stage left its last checkpoint."""
        return self.context.run.path / stage / CHECKPOINT

    def artefact(self, stage: str) -> dict[str, Any]:
        """The parts of a training stage's last checkpoint."""
        return stage_parts(self.checkpoint(stage))

    def fit(self, training: Training, stage: str, folder: Path, steps: int, images: int, final: float = 1e-3) -> None:
        """A training stage through the one loop: cosine to a thousandth or `final`, images in random order."""
        context = self.context
        training.sampler = Sampler(images, self.config.batch, seed=context.seed, world=world_size(), rank=rank())
        training.schedule = cosine(steps, final=final)
        context.fit(training, stage, folder, steps)

    # ------------------------------------------------------------------ the stages

    def pretrain(self, folder: Path) -> None:
        """Trains backbone and heads; artefacts: the checkpoint, and the backbone's weights for `--weights`."""
        c, context, device = self.config, self.context, self.context.device
        seed_step(context.seed, -1, stage="pretrain")  # initial weights of the heads
        network = self.network().to(device)
        steps = self.steps(c.epochs)
        instance: InstanceLoss
        if c.instance == "swav":
            instance = self.swav(c.queue, round(c.queue_epoch * steps / c.epochs), c.frozen)
        elif c.instance == "simsiam":
            instance = SimSiam(c.dim)
        else:
            instance = MoCo(network, PassNetwork.embed, c.dim, queue=max(1, c.queue))
        expected = PAPER_BACKBONES.get(c.preset, context.backbone.architecture)
        if expected != context.backbone.architecture:
            context.note(
                f"Preset {c.preset} is the paper's with {expected}; this run has {context.backbone.architecture}."
            )
        context.note(f"Pretraining starts from weights of {context.backbone.provenance.source}; "
                     f"labels they saw: {context.backbone.provenance.labels_seen}.")  # fmt: skip
        training = Pretraining(network, instance.to(device), self.crops(c.local_crops, c.scale_min), c)
        self.fit(training, "pretrain", folder, steps, len(context.data))
        if context.run.writes:
            save_tensors(folder / WEIGHTS, network.backbone.model.state_dict())

    def pretrained(self, stage: str = "pretrain") -> PassNetwork:
        """The network as a stage left it."""
        network = self.network()
        load_part(network, self.artefact(stage), "module.network", self.checkpoint(stage))
        return network.eval()

    def attend(self, folder: Path) -> None:
        """Trains the gate and the prototypes."""
        c, context, device = self.config, self.context, self.context.device
        seed_step(context.seed, -1, stage="attention")  # initial weights of the gate
        network = self.pretrained().to(device)
        attention, swav = PixelAttention(network.width), self.swav(c.attention_queue, 0, 0)  # type: ignore[arg-type]
        if c.instance == "swav":
            learned = self.artefact("pretrain")["module.instance"]["prototypes.weight"]
            swav.prototypes.load_state_dict({"weight": learned})
        training = AttentionTraining(
            network, attention.to(device), swav.to(device),
            self.crops(c.attention_local_crops, c.attention_scale_min), lr=c.attention_lr,
            weight_decay=c.weight_decay, freeze_norm=c.freeze_norm,
        )  # fmt: skip
        steps = self.steps(c.attention_epochs)
        self.fit(training, "attention", folder, steps, len(context.data), c.attention_final)

    @cached_property
    def attended(self) -> tuple[BackboneEncoder, PixelAttention | None]:
        """The encoder that clusters and labels, statistics moved by the gate's stage and all, and its gate."""
        gate, stage = None, "pretrain"
        if self.config.attention:
            gate, stage = (
                PixelAttention(self.context.backbone.widths[self.context.backbone.stage_layers[-1]]),
                "attention",
            )
            load_part(gate, self.artefact(stage), "module.attention", self.checkpoint(stage))
        return self.encoder(self.pretrained(stage).backbone), gate

    def encoder(self, backbone: Any) -> BackboneEncoder:
        """The deepest stage of a backbone."""
        return BackboneEncoder(backbone, layers=backbone.stage_layers[-1])

    def preprocess(self) -> Preprocess:
        """Whole photographs at `short_side`."""
        encoder = self.encoder(self.context.backbone)
        provenance, side = self.context.backbone.provenance, self.config.short_side
        return Preprocess.for_backbone(provenance, short_side=side, multiple_of=encoder.multiple_of)

    def rule(self, centroids: Tensor, threshold: float = 0.0) -> AttendedClusters:
        """Nearest centroid, or other where the mean gate is below the threshold."""
        return AttendedClusters(centroids, threshold, self.attended[1])

    def cluster(self, folder: Path) -> None:
        """Centroids (K, F) of the photographs' unit embeddings; batch norm in evaluation mode."""
        c, context, m = self.config, self.context, self.preprocess().multiple_of
        side = max(m, round(c.short_side * 7 / 8 / m) * m)  # 224 of 256
        rows = self.named(torch.zeros(1, self.attended[0].width)).embeddings(share(range(len(context.data))), side)
        found = cluster_rows(context, rows, restarts=c.restarts, iterations=100, clusters=self.clusters)
        if context.run.writes:
            save_tensors(folder / CENTROIDS, {"centroids": found.centers})

    def label(self, folder: Path) -> None:
        """Writes the masks as a dataset, and the rule as a model; batch norm in evaluation mode."""
        context, names = self.context, self.named(self.centroids())
        t = self.threshold(names)
        if context.run.writes:
            write_record(folder / THRESHOLD, asdict(t))
            save_bundle(folder / CLUSTERS, self.assembled(self.attended[0], self.rule(self.centroids(), t.value)), {})
        names.write(LabelStore(folder / "labels", context.table), t.value)

    def named(self, centroids: Tensor) -> PixelNames:
        """What the attended encoder makes of whole photographs."""
        context = self.context
        return PixelNames(self.attended[0], self.rule(centroids), self.preprocess(), context.data, context.device)

    def threshold(self, names: PixelNames) -> Threshold:
        """t of the mean gate, the same if resumed: given, an oracle's, 0 where nothing can be other, or Otsu's."""
        c, context = self.config, self.context
        if not c.attention or c.threshold is not None:
            return Threshold(c.threshold or 0.0, "given")
        if c.oracle_threshold:
            table = context.data.classes
            classes = self.clusters if table is None else len(table.names) - self.other_in_truth
            t = oracle_threshold(names, self.clusters, classes, other_in_truth=self.other_in_truth)
            context.note(f"Attention threshold {t.value:.2f}, chosen on masks (oracle_threshold): not label-free.")
            return t
        if self.all_named:
            context.note(
                "No class of classes.txt is other, so no pixel is; --set other=beside asks for it all the same."
            )
            return Threshold(0.0, "named")
        t = choose_threshold(names, context.generator("threshold"))
        context.note(
            f"Attention threshold {t.value:.3f} (Otsu, no label read): {100 * (t.other or 0):.0f} % of the pixels are "
            f"other, separability {t.separability:.2f}" + (", no two clear groups." if t.doubtful else ".")
        )
        return t

    def centroids(self) -> Tensor:
        """The artefact of `cluster`, (K, F)."""
        return self.context.run.tensors("cluster", CENTROIDS, {"centroids": "KF"})["centroids"]

    def assembled(self, encoder: BackboneEncoder, classifier: Any) -> Segmenter:
        """A segmenter with the deepest stage as its features."""
        context = self.context
        return Segmenter(
            encoder, None, classifier, context.table, self.preprocess(), context.backbone.provenance, self.name
        )

    def unfinished(self) -> Segmenter:
        """The pretrained backbone (the gate's stage does not touch it) with an untrained linear layer."""
        encoder = self.encoder(self.pretrained().backbone.requires_grad_(True))
        return self.assembled(encoder, LinearClassifier(encoder.width, len(self.context.table)))

    def finetune(self, folder: Path) -> None:
        """Trains on the pseudo-labels."""
        c, context = self.config, self.context
        seed_step(context.seed, -1, stage="finetune")  # initial weights of the linear layer
        labels = StoredLabels(context.data, LabelStore(context.run.path / "label" / "labels", context.table))
        training = Finetuning(
            self.unfinished().to(context.device), labels, crop=self.sides[0], scale=(c.finetune_scale_min, 1.0),
            lr=c.finetune_lr, encoder_share=c.finetune_share, freeze_norm=c.freeze_norm, weight_decay=c.weight_decay,
            precision=self.precision,
        )  # fmt: skip
        self.fit(training, "finetune", folder, self.steps(c.finetune_epochs), len(labels.indices))

    def segmenter(self) -> Segmenter:
        """The fine-tuned network, or the labelling rule itself where there is no fine-tuning."""
        if self.config.finetune_epochs:
            segmenter = self.unfinished()
            load_part(segmenter, self.artefact("finetune"), "module.network", self.checkpoint("finetune"))
            return segmenter.eval()
        t = self.context.run.artefact("label", THRESHOLD, {"value": float})["value"]
        return self.assembled(self.attended[0], self.rule(self.centroids(), t)).eval()
