"""SlotCon's options, a group for each part, and the presets that decide most of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from maskwright.data.training.augment import PRESETS as RECIPES
from maskwright.engine.config import Idle, fill_from_preset, option, part
from maskwright.errors import MaskwrightError
from maskwright.recipes.clustering import ClusterOptions
from maskwright.recipes.training.optimizers import OPTIMIZERS
from maskwright.recipes.training.options import CropConfig, CropOptions, NetworkOptions, NormOptions, OptimizerOptions
from maskwright.recipes.training.rates import OF_FEW_CROPS

PAPER: dict[str, Any] = {
    "network": "lateral_fpn", "crop": 224, "batch": 512, "long_side": 480, "optimizer": "lars", "lr": 2.0,
    "encoder_lr": 1.0, "weight_decay": 1e-5, "schedule": "cosine", "warm": 5.0, "hidden": 4096, "momentum": 0.99,
    "count": 0, "start": "random", "by": "prototypes", "freeze_norm": False, "steps": 184_800,
}  # fmt: skip
PRESETS: dict[str, dict[str, Any]] = {
    "small": PAPER | {
        "network": "auto", "crop": 160, "batch": 8, "optimizer": "adamw", "lr": 0.0, "encoder_lr": None,
        "weight_decay": None, "schedule": "poly", "warm": 0.0, "hidden": 512, "momentum": 0.97, "start": "kmeans",
        "freeze_norm": None, "steps": 300,
    },
    "paper": PAPER,
    "paper_features": PAPER | {"count": 256, "by": "clusters"},
}  # fmt: skip
"""By flat names. `small` finishes on two cores, and its few crops are no statistics for a trained encoder's batch
norm: of EfficientNet-Lite0's features on msrc_v2 k-means makes 32 mIoU with those of the weights, 28 with those of all
photographs, 9 with those of 8 and 20 of 40 (`benchmarks.norm_batches`). `paper` is 800 passes over COCO's 118,287
training photographs on ResNet-50, with as many prototypes as clusters are asked for; `paper_features` the 256
prototypes of the authors' pretraining, whose features are then clustered."""


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
    start: str = option(
        None, "first prototypes: random, or k-means of the start weights' features behind the new projector (preset)",
        choices=("random", "kmeans"), main=True,
    )  # fmt: skip
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
    norms: NormOptions = part(NormOptions, **OF_FEW_CROPS)
    schedule: str = option(None, "of the learning rate (preset)", choices=("poly", "cosine"))
    warm: float = option(None, "passes over the photographs in which cosine grows to its rate (preset)", low=0)
    clusters: ClusterOptions = part(ClusterOptions)
    readout: ReadoutOptions = part(ReadoutOptions)
    steps: int = option(None, "optimiser steps where --steps does not say (preset)", low=1, main=True)

    def __post_init__(self) -> None:
        fill_from_preset(self, PRESETS.get(self.preset, {}))

    def idle(self) -> Idle:
        """Options of a loss, of centring, of the first passes and of a clustering where there is none."""
        yield from super().idle()
        c = self.loss
        if not c.slots:
            yield ("loss.share", "loss.tau_slot"), "loss.slots=false"
        elif c.share == 1:
            yield ("loss.tau_slot",), "loss.share=1"
        elif c.share == 0:
            yield ("loss.tau_s", "loss.centring", "loss.center"), "loss.share=0"
        if not c.centring:
            yield ("loss.center",), "loss.centring=false"
        if self.schedule != "cosine":
            yield ("warm",), f"schedule={self.schedule}"
        if self.readout.by == "prototypes":
            yield ("readout.rows",), "readout.by=prototypes"
            if self.groups.start == "random":
                yield ("clusters",), "readout.by=prototypes and groups.start=random"

    def check(self) -> None:
        """Raises `MaskwrightError` on options that contradict each other."""
        if self.crops.scale_max > 1:
            raise MaskwrightError(f"crops.scale_max={self.crops.scale_max}", "at most 1: the whole photograph")
        if self.optimizer.name == "lars" and not self.optimizer.lr:
            raise MaskwrightError("optimizer.name=lars with lr=0", "a rate: the paper's is 1 for each 256 photographs")
