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
from dataclasses import asdict, replace
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor, nn

from maskwright.data.masking.classes import ClassTable
from maskwright.data.training.augment import photometric
from maskwright.data.training.labels import LabelStore
from maskwright.data.training.sources import StoredLabels
from maskwright.data.trust.artefacts import write_record
from maskwright.engine import seeding
from maskwright.engine.checkpoint import CHECKPOINT, stage_parts, trained
from maskwright.engine.context import Context
from maskwright.engine.contract import Method, Stage
from maskwright.engine.distributed import sampler, share
from maskwright.engine.loop import Training
from maskwright.engine.needs import Terms
from maskwright.engine.result import assembled
from maskwright.engine.schedules import cosine
from maskwright.errors import MaskwrightError
from maskwright.evaluate.judging import is_other
from maskwright.methods.unsupervised.pass_.labelling import PixelNames, Threshold, choose_threshold, oracle_threshold
from maskwright.methods.unsupervised.pass_.network import PassNetwork
from maskwright.methods.unsupervised.pass_.options import PAPER_BACKBONES, PassConfig
from maskwright.methods.unsupervised.pass_.training import AttentionTraining, Finetuning, Pretraining
from maskwright.models.bundle import save_bundle
from maskwright.models.parts.attended_clusters import AttendedClusters, PixelAttention
from maskwright.models.parts.encoder import BackboneEncoder
from maskwright.models.parts.heads import LinearClassifier
from maskwright.models.preprocess import Preprocess
from maskwright.models.segmenter import Segmenter
from maskwright.models.tensors import save_tensors
from maskwright.recipes.clustering import ClusterOptions, cluster_rows
from maskwright.recipes.pretraining.instance import InstanceLoss, MoCo, SimSiam, SwAV
from maskwright.recipes.pretraining.multicrop import MultiCrops
from maskwright.recipes.training.forward import precision_of

CENTROIDS = "centroids.safetensors"
THRESHOLD = "threshold.json"
CLUSTERS = "clusters.safetensors"
WEIGHTS = "backbone.safetensors"


class Pass(Method):
    """Pretraining with shape, pixel attention, clusters, pseudo-labels, and a network trained on them."""

    name: ClassVar[str] = "pass"
    title: ClassVar[str] = "Large-scale Unsupervised Semantic Segmentation"
    venue: ClassVar[str] = "Gao et al., TPAMI 2022"
    link: ClassVar[str] = "https://arxiv.org/abs/2106.03149"
    summary: ClassVar[str] = "Pretrains, then clusters, then fine-tunes."
    family: ClassVar[str] = "unsupervised"
    classes_from: ClassVar[Literal["labels", "clusters"]] = "clusters"
    Config: ClassVar[type] = PassConfig
    config: PassConfig

    @classmethod
    def terms(cls, config: Any, images: int = 1) -> Terms:
        """As many steps as pretraining's epochs have, on which clusters and labels stand; masks choose the threshold
        where that is asked for."""
        steps = max(1, round(config.pretrain.epochs * images / config.crops.batch))
        fixed = "its trainings follow one another, and the later ones learn what the earlier ones wrote"
        terms = super().terms(config, images)
        return replace(terms, steps=steps, fixed=fixed, peeks=config.labels.oracle_threshold)

    def __init__(self, config: PassConfig, context: Context) -> None:
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

    @cached_property
    def table(self) -> ClassTable:
        """ "Other", and the clusters from 1 on."""
        numbered = ClassTable.numbered(self.clusters + 1)
        colors = np.concatenate([np.zeros((1, 3), np.uint8), numbered.colors[:-1]])
        return ClassTable(("other", *numbered.names[1:]), colors)

    def stages(self) -> list[Stage]:
        """Pretrain, attention, cluster, label, finetune; those that are switched off are left out."""
        c = self.config
        where, steps = ", pixel to pixel" * c.shape.p2p + ", deep to shallow" * bool(c.shape.d2s), self.steps
        stages = [
            Stage(
                "pretrain", "train", self.pretrain, f"{c.instance.kind} between crops{where}", steps(c.pretrain.epochs)
            ),
            Stage(
                "attention",
                "train",
                self.attend,
                "which pixels and channels speak for the photograph",
                steps(c.attention.epochs),
            ),
            Stage("cluster", "fit", self.cluster, f"k-means of the photographs into {self.clusters}"),
            Stage("label", "label", self.label, "each pixel its nearest centroid, or other"),
            Stage(
                "finetune", "train", self.finetune, "a segmentation network on these labels", steps(c.finetune.epochs)
            ),
        ]
        off = {name for name, on in (("attention", c.attention.learn), ("finetune", c.finetune.epochs)) if not on}
        return [s for s in stages if s.name not in off]

    # ------------------------------------------------------------------ what stages share

    @property
    def precision(self) -> str | None:
        """Of forward passes through the backbone."""
        return precision_of(self.config.precision, self.context.device)

    def steps(self, epochs: int) -> int:
        """Optimiser steps of so many epochs; `--steps` is pretraining's number, and the others keep their share."""
        c = self.config
        passes = c.pretrain.epochs
        whole = self.context.steps or self.terms(c, len(self.context.data)).steps
        return max(1, round(whole * epochs / passes))

    @property
    def sides(self) -> tuple[int, int]:
        """Sides of global and local crops: whole patches of a transformer; of a global crop two cells of the deepest
        stage at least, because in one there is nothing to align."""
        b = self.context.backbone
        m, cell = b.multiple_of if b.is_vit else 1, b.strides[b.stage_layers[-1]]
        side = max(self.config.crops.size, 2 * cell)
        return -(-side // m) * m, -(-self.config.crops.local_size // m) * m

    def crops(self, local: int, least: float) -> MultiCrops:
        """Two global crops of at least so much of the area, and local ones of at most that.

        Args:
            local: local crops of a photograph; swav alone uses them.
            least: share of the area.
        """
        c, context, (side, small) = self.config, self.context, self.sides
        groups = [(2, (side, side), (least, 1.0)), (local, (small, small), (0.05, least))]
        return MultiCrops(
            context.data, groups[: 1 + (c.instance.kind == "swav")], photometric("simclr"),
            Preprocess.for_backbone(context.backbone.provenance), c.shape.grid, c.crops.threads,
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
            return PassNetwork(backbone, c.shape.d2s, c.instance.hidden, c.instance.dim, c.shape.p2p, self.precision)
        except ValueError as error:
            raise MaskwrightError(
                f"d2s={c.shape.d2s}: {error}", "stages of the backbone", "give --set d2s=3"
            ) from error

    def swav(self, queue: int, queue_from: int, frozen: int) -> SwAV:
        """L_swav with the configured constants."""
        c = self.config.instance
        return SwAV(
            c.dim, c.prototypes, temperature=c.temperature, eps=c.eps, frozen=frozen, queue=queue, queue_from=queue_from
        )

    def fit(self, training: Training, stage: str, folder: Path, steps: int, images: int, final: float = 1e-3) -> None:
        """A training stage through the one loop: cosine to a thousandth or `final`, images in random order."""
        context = self.context
        training.sampler = sampler(context.seed, images, self.config.crops.batch)
        training.schedule = cosine(steps, final=final)
        context.fit(training, stage, folder, steps)

    # ------------------------------------------------------------------ the stages

    def pretrain(self, folder: Path) -> None:
        """Trains backbone and heads; artefacts: the checkpoint, and the backbone's weights for `--weights`."""
        c, context, device = self.config, self.context, self.context.device
        seeding.initialise(context.seed, "pretrain")
        network = self.network().to(device)
        steps, i = self.steps(c.pretrain.epochs), c.instance
        instance: InstanceLoss
        if i.kind == "swav":
            instance = self.swav(i.queue, round(i.queue_epoch * steps / c.pretrain.epochs), i.frozen)
        elif i.kind == "simsiam":
            instance = SimSiam(i.dim)
        else:
            instance = MoCo(network, PassNetwork.embed, i.dim, queue=max(1, i.queue))
        expected = PAPER_BACKBONES.get(c.preset, context.backbone.architecture)
        if expected != context.backbone.architecture:
            context.note(
                f"Preset {c.preset} is the paper's with {expected}; this run has {context.backbone.architecture}."
            )
        context.note(f"Pretraining starts from weights of {context.backbone.provenance.source}; "
                     f"labels they saw: {context.backbone.provenance.labels_seen}.")  # fmt: skip
        training = Pretraining(network, instance.to(device), self.crops(c.crops.local, c.crops.scale_min), c)
        self.fit(training, "pretrain", folder, steps, len(context.data))
        if context.run.writes:
            save_tensors(folder / WEIGHTS, network.backbone.model.state_dict())

    def pretrained(self, stage: str = "pretrain") -> PassNetwork:
        """The network as a stage left it."""
        return trained(self.context.run.path / stage, "network", self.network())

    def attend(self, folder: Path) -> None:
        """Trains the gate and the prototypes."""
        c, context, device = self.config, self.context, self.context.device
        seeding.initialise(context.seed, "attention")
        network = self.pretrained().to(device)
        attention, swav = PixelAttention(network.width), self.swav(c.attention.queue, 0, 0)
        if c.instance.kind == "swav":
            learned = stage_parts(context.run.path / "pretrain" / CHECKPOINT)["module.instance"]["prototypes.weight"]
            swav.prototypes.load_state_dict({"weight": learned})
        crops = self.crops(c.attention.local_crops, c.attention.scale_min)
        training = AttentionTraining(network, attention.to(device), swav.to(device), crops, c)
        steps = self.steps(c.attention.epochs)
        self.fit(training, "attention", folder, steps, len(context.data), c.attention.final)

    @cached_property
    def attended(self) -> tuple[BackboneEncoder, PixelAttention | None]:
        """The encoder that clusters and labels, statistics moved by the gate's stage and all, and its gate."""
        if not self.config.attention.learn:
            return self.encoder(self.pretrained().backbone), None
        encoder = self.encoder(self.pretrained("attention").backbone)
        return encoder, trained(self.context.run.path / "attention", "attention", PixelAttention(encoder.width))

    def encoder(self, backbone: Any) -> BackboneEncoder:
        """The deepest stage of a backbone."""
        return BackboneEncoder(backbone, layers=backbone.stage_layers[-1])

    def preprocess(self) -> Preprocess:
        """Whole photographs at `short_side`."""
        encoder = self.encoder(self.context.backbone)
        provenance, side = self.context.backbone.provenance, self.config.labels.short_side
        return Preprocess.for_backbone(provenance, short_side=side, multiple_of=encoder.multiple_of)

    def rule(self, centroids: Tensor, threshold: float = 0.0) -> AttendedClusters:
        """Nearest centroid, or other where the mean gate is below the threshold."""
        return AttendedClusters(centroids, threshold, self.attended[1])

    def cluster(self, folder: Path) -> None:
        """Centroids (K, F) of the photographs' unit embeddings; batch norm in evaluation mode."""
        c, context, m = self.config, self.context, self.preprocess().multiple_of
        side = max(m, round(c.labels.short_side * 7 / 8 / m) * m)  # 224 of 256
        rows = self.named(torch.zeros(1, self.attended[0].width)).embeddings(share(range(len(context.data))), side)
        found = cluster_rows(context, rows, ClusterOptions(restarts=c.labels.restarts), self.clusters)
        if context.run.writes:
            save_tensors(folder / CENTROIDS, {"centroids": found.centers})

    def label(self, folder: Path) -> None:
        """Writes the masks as a dataset, and the rule as a model; batch norm in evaluation mode."""
        context, names = self.context, self.named(self.centroids())
        t = self.threshold(names)
        if context.run.writes:
            write_record(folder / THRESHOLD, asdict(t))
            save_bundle(folder / CLUSTERS, self.named_by(t.value), {})
        names.write(LabelStore(folder / "labels", self.table), t.value)

    def named(self, centroids: Tensor) -> PixelNames:
        """What the attended encoder makes of whole photographs."""
        return PixelNames(self.context, self.attended[0], self.rule(centroids), self.preprocess())

    def threshold(self, names: PixelNames) -> Threshold:
        """t of the mean gate, the same if resumed: given, an oracle's, 0 where nothing can be other, or Otsu's."""
        c, context = self.config.labels, self.context
        if not self.config.attention.learn or c.threshold is not None:
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
        t = choose_threshold(names, seeding.generator(context.seed, "threshold"))
        context.note(
            f"Attention threshold {t.value:.3f} (Otsu, no label read): {100 * (t.other or 0):.0f} % of the pixels are "
            f"other, separability {t.separability:.2f}" + (", no two clear groups." if t.doubtful else ".")
        )
        return t

    def centroids(self) -> Tensor:
        """The artefact of `cluster`, (K, F)."""
        return self.context.run.tensors("cluster", CENTROIDS, {"centroids": "KF"})["centroids"]

    def named_by(self, threshold: float) -> Segmenter:
        """The labelling rule as a segmenter."""
        return assembled(self, self.attended[0], None, self.rule(self.centroids(), threshold), self.preprocess())

    def unfinished(self) -> Segmenter:
        """The pretrained backbone (the gate's stage does not touch it) with an untrained linear layer."""
        encoder = self.encoder(self.pretrained().backbone.requires_grad_(True))
        return assembled(self, encoder, None, LinearClassifier(encoder.width, len(self.table)), self.preprocess())

    def finetune(self, folder: Path) -> None:
        """Trains on the pseudo-labels."""
        c, context = self.config, self.context
        seeding.initialise(context.seed, "finetune")
        labels = StoredLabels(context.data, LabelStore(context.run.path / "label" / "labels", self.table))
        training = Finetuning(self.unfinished().to(context.device), labels, self.sides[0], c, self.precision)
        self.fit(training, "finetune", folder, self.steps(c.finetune.epochs), len(labels.indices))

    def segmenter(self) -> Segmenter:
        """The fine-tuned network, or the labelling rule itself where there is no fine-tuning."""
        if self.config.finetune.epochs:
            return trained(self.context.run.path / "finetune", "network", self.unfinished())
        return self.named_by(self.context.run.artefact("label", THRESHOLD, {"value": float})["value"])
