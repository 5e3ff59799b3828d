"""SlotCon: Self-Supervised Visual Representation Learning with Semantic Grouping.

Wen, Zhao, Zheng, Zhang, Qi, NeurIPS 2022, https://arxiv.org/abs/2205.15288.

K prototypes, shared by all photographs, say which group each place of a photograph belongs to. The groups of what two
views share must agree with those of a teacher, an average of the network and its prototypes, whose scores are centred;
and each group's mean feature, its slot, must tell the same group of the other view from all other slots.

Deviates: on any backbone; `preset=small` starts from trained weights, `preset=paper` from nothing. What is predicted
is the prototype of the greatest score at each place (the authors' segmentation, by PiCIE's unreleased evaluation), or
k-means of the features (`readout.by=clusters`) where there are more prototypes than classes. Pairs that share nothing
do not enter the grouping loss; steps with fewer than two anchors have no slot loss. Batch norm has the statistics of
each process. Crops are resized bilinearly, the authors' bicubically. RoIAlign's samples are in double precision.

What the original gets wrong: without an overlap the aligned scores are zeros, and the loss a constant; without an
anchor it is not a number, and one anchor stops the predictor's batch norm; the default optimiser is not the published
one.

Legend: B photographs, K prototypes, d width of projections, S crop side, (h, w) map; q the student's, k the teacher's.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from maskwright.data.training.augment import PRESETS as RECIPES
from maskwright.data.training.augment import photometric
from maskwright.data.training.two_crops import TwoCropStream
from maskwright.engine.config import fill_from_preset, option, part
from maskwright.engine.context import Context
from maskwright.engine.contract import Stage
from maskwright.errors import MaskwrightError
from maskwright.methods.unsupervised.slotcon.losses import (
    Center,
    Contrast,
    Grouped,
    group,
    grouping_loss,
    inverse_augment,
    slot_loss,
    teacher_momentum,
    warm_cosine,
    winners,
)
from maskwright.models.networks.build import Network
from maskwright.models.networks.vit_heads import LastMap
from maskwright.models.parts.heads import CosineClassifier, Sequential
from maskwright.models.parts.projector import Projector
from maskwright.models.segmenter import Segmenter
from maskwright.models.tensors import save_tensors
from maskwright.recipes.clustering import ClusterOptions, cluster_rows
from maskwright.recipes.clustering_health import ClusteringHealth
from maskwright.recipes.ema import EMATeacher
from maskwright.recipes.self_training.rounds import as_it_stands, live_rows
from maskwright.recipes.training.method import CropMethod
from maskwright.recipes.training.network import make_network, make_preprocess, make_segmenter, retake, trained_network
from maskwright.recipes.training.optimizers import OPTIMIZERS
from maskwright.recipes.training.options import CropConfig, CropOptions, NetworkOptions, OptimizerOptions
from maskwright.recipes.training.training import CropTraining

PAPER: dict[str, Any] = {
    "network": "lateral_fpn", "crop": 224, "batch": 512, "long_side": 480, "optimizer": "lars", "lr": 2.0,
    "encoder_lr": 1.0, "weight_decay": 1e-5, "schedule": "cosine", "warm": 5.0, "hidden": 4096, "momentum": 0.99,
    "count": 0, "by": "prototypes", "steps": 184_800,
}  # fmt: skip
PRESETS: dict[str, dict[str, Any]] = {
    "small": PAPER | {
        "network": "auto", "crop": 160, "batch": 8, "optimizer": "adamw", "lr": 0.0, "encoder_lr": None,
        "weight_decay": None, "schedule": "poly", "warm": 0.0, "hidden": 512, "momentum": 0.97, "steps": 300,
    },
    "paper": PAPER,
    "paper_features": PAPER | {"count": 256, "by": "clusters"},
}  # fmt: skip
"""By flat names. `small` finishes on two cores; `paper` is 800 passes over COCO's 118,287 training photographs on
ResNet-50, with as many prototypes as clusters are asked for; `paper_features` the 256 prototypes of the authors'
pretraining, whose features are then clustered."""
CENTERS = "centers.safetensors"


@dataclass(kw_only=True)
class ViewOptions:
    """How the two views differ."""

    recipe1: str = option("slotcon_1", "photometric recipe of the first view: always blurred", choices=tuple(RECIPES))
    recipe2: str = option(
        "slotcon_2", "of the second: seldom blurred, sometimes solarised", choices=tuple(RECIPES)
    )  # fmt: skip
    flip: float = option(0.5, "chance that a view is mirrored, for each on its own", low=0, high=1)
    overlap: float = option(0.01, "share of the second view that should lie in the first", low=0, high=1)


@dataclass(kw_only=True)
class GroupOptions:
    """Projections and prototypes."""

    count: int = option(None, "K; 0: as many as clusters are asked for (preset)", low=0, high=65_536, main=True)
    level: int = option(-1, "which of the encoder's maps is projected, from the end", low=-8, high=-1)
    hidden: int = option(None, "width inside the projector and the predictor (preset)", low=2)
    width: int = option(256, "d, width of projections and prototypes", low=2)


@dataclass(kw_only=True)
class LossOptions:
    """The two losses."""

    slots: bool = option(True, "contrast slots; off: the grouping loss alone, at full weight (ablation)", main=True)
    centring: bool = option(True, "the teacher's scores less their running mean (ablation)", main=True)
    share: float = option(0.5, "lambda, weight of the grouping loss; the slots have the rest", low=0, high=1, main=True)
    tau_s: float = option(0.1, "temperature of the student's groups", low=1e-3)
    tau_t: float = option(0.07, "temperature of the teacher's, and of the assignments behind slots", low=1e-3)
    tau_slot: float = option(0.2, "temperature of the contrast of slots", low=1e-3)
    center: float = option(0.9, "share of the centre that stays in a step", low=0, high=1)


@dataclass(kw_only=True)
class TeacherOptions:
    """The averaged network and prototypes."""

    momentum: float = option(None, "of the average at the start; it grows to 1 (preset)", low=0, high=1)
    keep: str = option("teacher", "which network is kept", choices=("teacher", "student"))


@dataclass(kw_only=True)
class SlotOptimizerOptions(OptimizerOptions):
    """How weights move."""

    name: str = option(
        None, "adamw, sgd, or lars, which needs an lr (preset)", choices=(*OPTIMIZERS, "lars"), old="optimizer"
    )  # fmt: skip


@dataclass(kw_only=True)
class ReadoutOptions:
    """From the trained network to predictions."""

    by: str = option(
        None, "prototypes, which must then be as many as clusters, or k-means of the features (preset)",
        choices=("prototypes", "clusters"),
    )  # fmt: skip
    rows: int = option(256, "places of a photograph that k-means sees", low=1)


@dataclass(kw_only=True)
class SlotConConfig(CropConfig):
    """Options of `slotcon`; those without a value of their own take the preset's, those that are given win."""

    preset: str = option("small", "sets the other options' defaults", choices=tuple(PRESETS), main=True)
    network: NetworkOptions = part(
        NetworkOptions, name=None, says={"name": "whose encoder is used; a projector takes its head's place (preset)"}
    )
    crops: CropOptions = part(
        CropOptions, without=("sample",), size=None, batch=None, long_side=None, scale_min=0.08, scale_max=1.0,
        says={"batch": "photographs in a step", "scale_min": "least share of the photograph's area in a view",
              "scale_max": "greatest share, at most 1",
              "long_side": "larger images are first scaled to this longer side where clusters are predicted, pixels"},
    )  # fmt: skip
    views: ViewOptions = part(ViewOptions)
    groups: GroupOptions = part(GroupOptions)
    loss: LossOptions = part(LossOptions)
    teacher: TeacherOptions = part(TeacherOptions)
    optimizer: SlotOptimizerOptions = part(SlotOptimizerOptions, lr=None)
    schedule: str = option(None, "of the learning rate (preset)", choices=("poly", "cosine"))
    warm: float = option(None, "passes over the photographs in which cosine grows to its rate (preset)", low=0)
    clusters: ClusterOptions = part(ClusterOptions)
    readout: ReadoutOptions = part(ReadoutOptions)
    steps: int = option(None, "optimiser steps where --steps does not say (preset)", low=1, main=True)

    def __post_init__(self) -> None:
        fill_from_preset(self, PRESETS.get(self.preset, {}))

    def check(self) -> None:
        """Raises `MaskwrightError` on options that contradict each other."""
        if self.crops.scale_max > 1:
            raise MaskwrightError(f"crops.scale_max={self.crops.scale_max}", "at most 1: the whole photograph")
        if self.optimizer.name == "lars" and not self.optimizer.lr:
            raise MaskwrightError("optimizer.name=lars with lr=0", "a rate: the paper's is 1 for each 256 photographs")


def slotcon_network(context: Context, config: SlotConConfig) -> Network:
    """The configured network's encoder with a projector and prototypes behind it.

    Raises:
        MaskwrightError: prototypes that are to be clusters and are not as many; a map that the encoder has not.
    """
    c, k = config.groups, config.groups.count or context.classes
    if config.readout.by == "prototypes" and k != context.classes:
        raise MaskwrightError(
            f"{k} prototypes for {context.classes} clusters", "as many, where prototypes are what is predicted",
            "leave groups.count out, or set readout.by=clusters",
        )  # fmt: skip
    network = make_network(context, config)
    side = network.multiple_of * max(1, -(-64 // network.multiple_of))
    with torch.no_grad():
        widths = [f.shape[1] for f in network.eval().features(torch.zeros(1, 3, side, side))]
    if -c.level > len(widths):
        raise MaskwrightError(f"groups.level={c.level}", f"-{len(widths)} to -1: the encoder has {len(widths)} maps")
    width = widths[c.level]
    network.decoder = Sequential(LastMap(width, c.level), Projector(width, c.hidden, c.width))
    network.classifier = CosineClassifier(torch.randn(k, c.width), config.loss.tau_t)
    network.classes, network.width = k, c.width
    return network.train()


class SlotConTraining(CropTraining):
    """Two views of each photograph through the network and its average."""

    must_fall: ClassVar[str] = "slot_excess"
    network: Network

    def __init__(self, context: Any, config: SlotConConfig, steps: int) -> None:
        context.initialise("train")
        super().__init__(context, config, steps, network=slotcon_network(context, config))
        c, images = self.config, len(context.data)
        recipes = (photometric(c.views.recipe1), photometric(c.views.recipe2))
        photographs = self.stream(range(images), self.order(images, c.crops.batch))
        self.streams["u"] = TwoCropStream(photographs, recipes, c.views.overlap, c.views.flip)
        self.teacher = EMATeacher(self.network, c.teacher.momentum, buffers="own", mode="train", warm=False)
        self.center = Center(self.network.classes, c.loss.center).to(self.device)
        self.modules |= {"teacher": self.teacher, "center": self.center}
        self.predictor = self.learn_too("predictor", Projector(c.groups.width, c.groups.hidden, c.groups.width))
        if not c.loss.slots:
            self.predictor.requires_grad_(False)
        if c.schedule == "cosine":
            warm = int(c.warm * max(1, images // c.crops.batch))
            self.schedule = warm_cosine(steps, warm, 1e-6 / c.optimizer.lr)
        self.health = ClusteringHealth(self.network.classes, steps, context.note)

    def before_step(self, step: int) -> None:
        """The average follows before it is asked, as the authors' does."""
        self.teacher.update(self.network, teacher_momentum(step, self.steps, self.config.teacher.momentum))

    def grouped(self, network: Any, x: Tensor) -> Grouped:
        """Slots and scores of crops (B, 3, S, S)."""
        with self.student.autocast():
            z = network.decode(network.features(x))
        return group(z.float(), network.classifier.centers, self.config.loss.tau_t)

    def predicted(self, slots: Tensor) -> Tensor:
        """Slots (N, d) behind the predictor."""
        with self.student.autocast():
            y: Tensor = self.predictor(slots)
        return y.float()

    def losses(self, batch: Any, step: int) -> dict[str, Tensor]:
        """L = lambda (L_group12 + L_group21) + (1 - lambda) (L_slot12 + L_slot21)."""
        c, u = self.config.loss, batch["u"]
        q1, q2 = (self.grouped(self.network, x) for x in (u.u1, u.u2))
        with torch.no_grad():
            k1, k2 = (self.grouped(self.teacher.module, x) for x in (u.u1, u.u2))

        def grouping(q: Tensor, q_at: Any, k: Tensor, k_at: Any) -> Tensor:
            aligned = inverse_augment(q, *q_at), inverse_augment(k, *k_at)
            return grouping_loss(*aligned, self.center.value, c.tau_s, c.tau_t, u.shared)

        at1, at2 = (u.boxes1, u.flips1), (u.boxes2, u.flips2)
        l_group = grouping(q1.scores, at1, k2.scores, at2) + grouping(q2.scores, at2, k1.scores, at1)
        if c.centring:
            self.center.update(torch.cat((k1.scores, k2.scores)))
        figures = {"group": l_group, "shared": u.shared.float().mean()}
        loss = l_group
        if c.slots:
            slot12, slot21 = self.contrast(q1, k2), self.contrast(q2, k1)
            l_slot, guess = slot12.loss + slot21.loss, slot12.guess + slot21.guess
            figures |= {"slot": l_slot, "slot_excess": l_slot - guess, "anchors": slot12.anchors + slot21.anchors}
            loss = c.share * l_group + (1 - c.share) * l_slot
        return {"loss": loss, **figures, **self.health(torch.cat((k1.scores, k2.scores)))}

    def contrast(self, q: Grouped, k: Grouped) -> Contrast:
        """The slot loss of one direction."""
        theirs = winners(k.scores)
        ours = winners(q.scores) & theirs
        return slot_loss(q.slots, k.slots, ours, theirs, self.predicted, self.config.loss.tau_slot)

    def after_step(self, step: int) -> None:
        """Watches for collapse."""
        self.health.after_step(step)


class SlotCon(CropMethod):
    """A network whose groups of places agree between views, and whose groups tell each other apart."""

    name: ClassVar[str] = "slotcon"
    title: ClassVar[str] = "Self-Supervised Visual Representation Learning with Semantic Grouping"
    venue: ClassVar[str] = "Wen et al., NeurIPS 2022"
    link: ClassVar[str] = "https://arxiv.org/abs/2205.15288"
    summary: ClassVar[str] = "Prototypes that agree between two views."
    Config: ClassVar[type] = SlotConConfig
    trainer: ClassVar[type[CropTraining]] = SlotConTraining
    says: ClassVar[str] = "prototypes that group two views alike, and slots that tell their group"
    config: SlotConConfig

    @property
    def result(self) -> str:
        """The average, or the network that learned."""
        return "teacher" if self.config.teacher.keep == "teacher" else "network"

    def stages(self) -> list[Stage]:
        """Train, and cluster where prototypes are not what is predicted."""
        cluster = Stage("cluster", "fit", self.cluster, "k-means of the trained network's features")
        return [*super().stages(), *([cluster] if self.config.readout.by == "clusters" else [])]

    def network(self) -> Network:
        """The trained network, from the artefact."""
        context, folder = self.context, self.context.run.path / "train"
        untrained = slotcon_network(context, self.config)
        return trained_network(context, self.config, folder, self.result, network=untrained)

    @torch.no_grad()
    def cluster(self, folder: Path) -> None:
        """Centres (K, d) of features of whole photographs, under the batch-norm statistics that will be kept."""
        c, context = self.config, self.context
        network = self.network().to(context.device)
        preprocess = make_preprocess(c, network)
        retake(context, c, network, preprocess, range(len(context.data)))

        def features(x: Tensor) -> Tensor:
            return network.decode(network.features(x)).float()

        with as_it_stands(network):
            rows = live_rows(context, features, preprocess, 0, c.readout.rows)
        centers = cluster_rows(context, rows, c.clusters).centers
        if context.run.writes:
            save_tensors(folder / CENTERS, {"centers": centers.float().cpu()})

    def segmenter(self) -> Segmenter:
        """The network with its prototypes, or with the clusters of its features."""
        network = self.network()
        if self.config.readout.by == "clusters":
            centers = self.context.run.tensors("cluster", CENTERS, {"centers": "KD"})["centers"]
            network.classifier = CosineClassifier(centers, self.config.loss.tau_t)
        return make_segmenter(self.context, self.config, network, self.name, range(len(self.context.data)))
