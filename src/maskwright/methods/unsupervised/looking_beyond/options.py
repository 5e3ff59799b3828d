"""Options of `looking_beyond`, a group for each part, and its presets."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from maskwright.data.training.augment import PRESETS as RECIPES
from maskwright.engine.config import Idle, fill_from_preset, option, part
from maskwright.recipes.clustering import ClusterOptions
from maskwright.recipes.frozen.options import LearnedFeatureOptions, ReadoutOptions, ReductionOptions
from maskwright.recipes.training.options import CropConfig, CropOptions, OptimizerOptions

PAPER: dict[str, Any] = {
    "crop": 512, "batch": 16, "optimizer": "sgd", "count": 256, "dim": 128, "max_rows": 1_000_000, "restarts": 5,
    "superpixels": 500, "short_side": 448, "labels_a_step": 16, "width": 128, "rows": 256, "steps": 30_000,
}  # fmt: skip
PRESETS: dict[str, dict[str, Any]] = {
    "small": PAPER | {
        "crop": 160, "batch": 8, "optimizer": "adamw", "count": 64, "dim": 64, "max_rows": 60_000, "restarts": 3,
        "superpixels": 300, "short_side": 320, "rows": 128, "steps": 300,
    },
    "paper": PAPER,
}  # fmt: skip
"""By flat names. `small` finishes on two cores. The numbers of `paper` are guesses: the abstract, which is all that
could be had, has none."""

OF_DICTIONARY = ("features.short_side", "features.layers", "features.kind", "features.margin", "reduction")
"""What tells how the clusters are found that the labels are; `features.crop` is of the last clustering too."""


@dataclass(kw_only=True)
class LabelOptions:
    """Auxiliary labels."""

    by: str = option(
        "clusters", "clusters of all photographs' features, or each photograph's superpixels, which link nothing "
        "(ablation: contrast within single photographs)", choices=("clusters", "superpixels"), main=True,
    )  # fmt: skip
    count: int = option(None, "K, clusters of the data set (preset)", low=2, main=True)
    superpixels: int = option(
        None, "superpixels of a photograph that vote on its labels; 0: no vote (preset)", low=0, high=65535, main=True
    )
    compactness: float = option(10.0, "of superpixels: place against colour", low=0.1)
    side: int = option(320, "longer side at which photographs are labelled, pixels", low=16, high=2048)
    judge: bool = option(False, "also write how well the labels tell the classes of the masks that may be read")


@dataclass(kw_only=True)
class ContrastOptions:
    """The contrastive loss and what it is given."""

    width: int = option(None, "width of the projected features (preset)", low=2)
    hidden: int = option(256, "width inside the projection", low=2)
    temperature: float = option(0.1, "tau", low=0.01, high=1)
    labels_a_step: int = option(None, "labels drawn in a step (preset)", low=1)
    anchors: int = option(32, "pixels drawn of each, balanced over photographs", low=2)
    drop: float = option(0.2, "share of the pixels, those of least margin, that are not drawn", low=0, high=0.95)
    across: bool = option(False, "positives lie in other photographs only", main=True)
    recipe: str = option("simclr", "photometric recipe of the crops", choices=tuple(RECIPES))


@dataclass(kw_only=True)
class LookingBeyondConfig(CropConfig):
    """Options of `looking_beyond`; those without a value of their own take the preset's, those that are given win."""

    preset: str = option("small", "sets the other options' defaults", choices=tuple(PRESETS), main=True)
    features: LearnedFeatureOptions = part(
        LearnedFeatureOptions, short_side=None, crop=1.0,
        says={"crop": "share of each side of random crops that both clusterings are learned from in place of whole "
                      "photographs; 1: no crops",
              "margin": "share of each side along which positions are not learned from before the training"},
    )  # fmt: skip
    reduction: ReductionOptions = part(ReductionOptions, dim=None, whiten=False, max_rows=None)
    clusters: ClusterOptions = part(ClusterOptions, restarts=None)
    labels: LabelOptions = part(LabelOptions)
    crops: CropOptions = part(
        CropOptions, without=("sample",), size=None, batch=None,
        says={"batch": "photographs in a step", "scale_min": "least random scale of a crop"},
    )  # fmt: skip
    optimizer: OptimizerOptions = part(OptimizerOptions, name=None)
    contrast: ContrastOptions = part(ContrastOptions)
    readout: ReadoutOptions = part(ReadoutOptions)
    rows: int = option(None, "cells of a photograph that the last clustering is fitted on (preset)", low=1)
    steps: int = option(None, "optimiser steps where --steps does not say (preset)", low=1, main=True)

    def __post_init__(self) -> None:
        fill_from_preset(self, PRESETS.get(self.preset, {}))

    def idle(self) -> Idle:
        """Options of clusters, and positives of other photographs, where no label links them; of superpixels that do
        not vote."""
        yield from super().idle()
        if self.labels.by == "superpixels":
            yield ("contrast.across", *OF_DICTIONARY, "labels.count"), "labels.by=superpixels"
        elif not self.labels.superpixels:
            yield ("labels.compactness",), "labels.superpixels=0"
