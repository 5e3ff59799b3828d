"""Leopart's options, a group for each part, and the presets that decide most of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from maskwright.data.training.augment import PRESETS as RECIPES
from maskwright.engine.config import Idle, fill_from_preset, option, part
from maskwright.errors import MaskwrightError
from maskwright.recipes.clustering import ClusterOptions
from maskwright.recipes.frozen.options import FeatureOptions, ReadoutOptions, ReductionOptions

PAPER: dict[str, Any] = {
    "size": 224, "local_size": 96, "local": 4, "batch": 64, "hidden": 2048, "width": 256, "prototypes": 300,
    "queue": 8192, "lr": 1e-4, "backbone_share": 0.1, "drop_path": 0.1, "momentum": 0.9995, "steps": 98_976,
    "short_side": 448, "restarts": 5, "cbfe.count": 200, "communities.count": 149, "markov_time": 2.0, "weight": 0.09,
    "max_rows": 4_000_000,
}  # fmt: skip
PRESETS: dict[str, dict[str, Any]] = {
    "small": PAPER | {
        "size": 160, "local": 2, "batch": 8, "hidden": 256, "width": 128, "prototypes": 100, "queue": 1024, "lr": 5e-4,
        "backbone_share": 0.05, "drop_path": 0.0, "momentum": 0.99, "steps": 300, "short_side": 320, "restarts": 2,
        "cbfe.count": 100, "communities.count": 99, "weight": 0.05, "max_rows": 60_000,
    },
    "paper": PAPER,
    "paper_b8": PAPER | {
        "batch": 32, "lr": 5e-5, "steps": 372_150, "communities.count": 109, "markov_time": 0.4, "weight": 0.07,
    },
}  # fmt: skip
"""By flat names. `small` finishes on two cores; `paper` is ViT-S/16 on ImageNet-100 (50 passes), `paper_b8` ViT-B/8 (94
of 100), both from DINO's weights."""


@dataclass(kw_only=True)
class CropOptions:
    """The crops of training."""

    size: int = option(None, "side of the two global crops, pixels (preset)", low=16, main=True)
    local_size: int = option(None, "side of the local crops, pixels (preset)", low=16)
    local: int = option(None, "local crops of a photograph (preset)", low=0, high=32)
    scale_min: float = option(
        0.25, "least share of the area of a global crop, greatest of a local one", low=0.051, high=1
    )
    batch: int = option(None, "photographs in a step, over all processes (preset)", low=1, main=True)
    recipe: str = option("simclr", "photometric recipe of each crop", choices=tuple(RECIPES))
    threads: int = option(0, "photographs prepared at a time; 0: as many as torch computes with, at most 16", low=0)


@dataclass(kw_only=True)
class HeadOptions:
    """Projection, prototypes and their balanced assignment."""

    hidden: int = option(None, "width inside the projection (preset)", low=2)
    width: int = option(None, "d, width of embeddings (preset)", low=2)
    prototypes: int = option(None, "K, prototypes (preset)", low=2)
    temperature: float = option(0.1, "T of the student's predictions", low=0.01, high=1)
    eps: float = option(0.05, "of the teacher's assignment by Sinkhorn", low=0.005, high=1)
    iterations: int = option(3, "of it", low=0, high=100)
    queue: int = option(
        None, "earlier tokens, over all processes, that each global crop's assignment is balanced with; 0: none "
        "(preset)", low=0,
    )  # fmt: skip
    queued: int = option(10, "tokens of a photograph and crop that enter the queue in a step", low=1)


@dataclass(kw_only=True)
class OptimizerOptions:
    """AdamW, cosine to 0, and the teacher."""

    lr: float = option(None, "rate of projection and prototypes (preset)", low=0, main=True)
    backbone_share: float = option(None, "the backbone's share of it (preset)", low=0, high=10)
    decay: float = option(0.04, "weight decay at the first step, of all but norms and biases", low=0)
    last_decay: float = option(0.5, "at the last, cosine between", low=0)
    drop_path: float = option(None, "stochastic depth of the student's last block (preset)", low=0, high=0.9)
    momentum: float = option(None, "of the teacher at the first step, 1 at the last (preset)", low=0, high=1)
    freeze_norm: bool = option(True, "keep a convolutional backbone's batch-norm statistics")


@dataclass(kw_only=True)
class ForegroundOptions:
    """Which cells show something."""

    use: bool = option(True, "learn on foreground cells alone; false: on all (ablation)", main=True)
    by: str = option(
        "auto", "attention of the class token, the input saliency, or the object of a spectral cut; auto: the input "
        "where it is given, attention where the network has it, else the cut",
        choices=("auto", "attention", "saliency", "spectral"),
    )  # fmt: skip
    mass: float = option(0.6, "share of the attention that is kept", low=0.01, high=1)
    smallest: int = option(3, "cells of the smallest part of an attention mask", low=1)


@dataclass(kw_only=True)
class CbfeOptions:
    """Cluster-based foreground extraction."""

    use: bool = option(True, "background is found by clusters; false: everything is clustered (ablation)", main=True)
    count: int = option(None, "clusters that are foreground or not (preset)", low=2)
    threshold: float | None = option(
        None, "least share of a cluster in the foreground masks; none: the largest gap", low=0, high=1
    )
    cut_min: float = option(0.55, "least share of the clusters that are background", low=0, high=1)
    cut_max: float = option(0.75, "greatest", low=0, high=1)
    oracle_threshold: bool = option(False, "choose it by the IoU with the run's own masks, as the authors do")

    def check(self) -> None:
        """Raises `MaskwrightError` on options that contradict each other."""
        if self.cut_min > self.cut_max:
            raise MaskwrightError(f"cbfe.cut_min={self.cut_min}", f"at most cut_max={self.cut_max}")
        if self.oracle_threshold and self.threshold is not None:
            raise MaskwrightError("oracle_threshold and a threshold", "one of the two", "leave one out")


@dataclass(kw_only=True)
class CommunityOptions:
    """Fine clusters joined by who touches whom."""

    use: bool = option(True, "join fine clusters; false: as many clusters as are asked for (ablation)", main=True)
    by: str = option(
        "auto", "who searches: the package infomap, or the search of this program; auto: infomap where it is installed",
        choices=("auto", "infomap", "own"),
    )  # fmt: skip
    count: int = option(None, "fine clusters (preset)", low=2)
    grid: int = option(
        100, "cells a side on which neighbours are counted, maps enlarged to them; 0: as they are", low=0
    )
    markov_time: float = option(None, "more gives fewer communities by themselves (preset)", low=0.01, high=100)
    weight: float = option(None, "least P(j|i) and P(i|j) of two clusters that are linked (preset)", low=0, high=1)


@dataclass(kw_only=True)
class LeopartConfig:
    """Options of `leopart`; those without a value of their own take the preset's, those that are given win."""

    preset: str = option("small", "sets the other options' defaults", choices=tuple(PRESETS), main=True)
    crops: CropOptions = part(CropOptions)
    head: HeadOptions = part(HeadOptions)
    optimizer: OptimizerOptions = part(OptimizerOptions)
    foreground: ForegroundOptions = part(ForegroundOptions)
    features: FeatureOptions = part(FeatureOptions, without=("kind",), short_side=None)
    reduction: ReductionOptions = part(ReductionOptions, dim=50, whiten=False, max_rows=None)
    clusters: ClusterOptions = part(ClusterOptions, restarts=None)
    cbfe: CbfeOptions = part(CbfeOptions)
    communities: CommunityOptions = part(CommunityOptions)
    readout: ReadoutOptions = part(ReadoutOptions)
    steps: int = option(None, "optimiser steps where --steps does not say (preset)", low=1, main=True)
    precision: str = option("auto", "bf16 where the processor has it, or fp32", choices=("auto", "bf16", "fp32"))

    def __post_init__(self) -> None:
        fill_from_preset(self, PRESETS.get(self.preset, {}))

    def idle(self) -> Idle:
        """Options of crops, of a queue, of foreground, of CBFE and of communities where there is none."""
        f, b, k = self.foreground, self.cbfe, self.communities
        if not self.crops.local:
            yield ("crops.local_size",), "crops.local=0"
        if not self.head.queue:
            yield ("head.queued",), "head.queue=0"
        if not f.use and not b.use:
            yield ("foreground.by", "foreground.mass", "foreground.smallest"), "foreground.use=false and cbfe.use=false"
        elif f.by in ("saliency", "spectral"):
            yield ("foreground.mass", "foreground.smallest"), f"foreground.by={f.by}"
        if not b.use:
            rest = ("count", "threshold", "cut_min", "cut_max", "oracle_threshold")
            yield [f"cbfe.{name}" for name in rest], "cbfe.use=false"
        elif b.threshold is not None:
            yield ("cbfe.cut_min", "cbfe.cut_max"), f"cbfe.threshold={b.threshold}"
        if not k.use:
            rest = ("by", "count", "grid", "markov_time", "weight")
            yield [f"communities.{name}" for name in rest], "communities.use=false"
