"""STEGO's options, a group for each part."""

from __future__ import annotations

from dataclasses import dataclass

from maskwright.engine.config import Idle, option, part
from maskwright.recipes.clustering import FineClusterOptions
from maskwright.recipes.frozen.method import FrozenConfig
from maskwright.recipes.frozen.options import ReadoutOptions, ReductionOptions


@dataclass(kw_only=True)
class HeadOptions:
    """The head, and how it learns."""

    code: int = option(70, "channels E of the codes", low=2, main=True)
    dropout: float = option(0.1, "probability of a channel to be dropped, in the head and in f", low=0.0, high=0.9)
    lr: float = option(5e-4, "Adam's learning rate of the head", low=0.0, main=True)
    probe_lr: float = option(5e-3, "Adam's learning rate of the cluster probe", low=0.0)
    precision: str = option(
        "auto", "of the head's forward pass: bf16 on a GPU, fp32 on a CPU; or as said", choices=("auto", "bf16", "fp32")
    )


@dataclass(kw_only=True)
class PairOptions:
    """Which positions of which photographs are compared."""

    batch: int = option(16, "photographs a step", low=2, main=True)
    points: int = option(11, "positions are sampled on a points x points draw a photograph", low=1)
    sampling: str = option(
        "corners", "where -1 and 1 lie: on the outer cells' centres, as the authors have it, or on their outer edges "
        "(cells), where what is within half a cell of the rim reads the rim", choices=("corners", "cells"),
    )  # fmt: skip
    neighbors: int = option(7, "nearest photographs to draw the neighbour from", low=1, main=True)
    negatives: int = option(5, "random pairings a step", low=1)


@dataclass(kw_only=True)
class ShiftOptions:
    """Shifts b and weights w of the three pairings."""

    auto: bool = option(True, "shifts b and weights w from the data's own correlations", old="auto_shift")
    share_self: float = option(0.25, "share of centred correlations with itself that exceed b_self", low=0.0, high=1.0)
    share_knn: float = option(0.20, "the same for neighbours", low=0.0, high=1.0)
    share_rand: float = option(0.10, "the same for random pairs", low=0.0, high=1.0)
    b_self: float = option(0.18, "shift where auto_shift is off")
    b_knn: float = option(0.12, "shift where auto_shift is off")
    b_rand: float = option(0.46, "shift where auto_shift is off")
    w_self: float = option(0.67, "weight of the pairing with itself")
    w_knn: float = option(0.25, "weight of the pairing with a neighbour")
    w_rand: float = option(0.63, "weight of the random pairings")


@dataclass(kw_only=True)
class IterateOptions:
    """Which iterate of the head is kept."""

    keep: str = option(
        "agreeing", "the one whose clusters agree most with the features, which without a head are the first of them; "
        "or the last", choices=("agreeing", "last"), main=True,
    )  # fmt: skip
    rows: int = option(20_000, "positions on which agreement is judged", low=1)


@dataclass(kw_only=True)
class CodeReadoutOptions(ReadoutOptions):
    """From codes to clusters and predictions."""

    by: str = option("kmeans", "how codes become clusters", choices=("kmeans", "probe"), old="readout")


@dataclass(kw_only=True)
class StegoConfig(FrozenConfig):
    """Options of `stego`."""

    reduction: ReductionOptions = part(
        ReductionOptions, without=("whiten",), old={"dim": "reduce"}, dim=64, whiten=False,
        says={"dim": "channels of f kept by PCA before the head; 0 keeps all"},
    )  # fmt: skip
    head: HeadOptions = part(HeadOptions)
    pairs: PairOptions = part(PairOptions)
    shifts: ShiftOptions = part(ShiftOptions)
    steps: int = option(2000, "optimiser steps at most; --steps overrides it", low=1, main=True)
    passes: int = option(
        64, "times that a photograph is an anchor at most, after 100 steps, unless --steps is given; 0: no limit", low=0
    )
    iterate: IterateOptions = part(IterateOptions)
    clusters: FineClusterOptions = part(
        FineClusterOptions, without=("iterations",), says={"restarts": "starts of the final k-means"}
    )
    readout: CodeReadoutOptions = part(
        CodeReadoutOptions, crf=True, temperature=0.5,
        says={"crf": "the dense CRF after prediction, as in the paper, unless --refine says otherwise",
              "temperature": "cosines are divided by it to give logits; the paper's alpha = 2 is 0.5"},
    )  # fmt: skip

    def idle(self) -> Idle:
        """The shifts of the other choice, and options of the other way to cluster codes."""
        if self.shifts.auto:
            yield ("shifts.b_self", "shifts.b_knn", "shifts.b_rand"), "shifts.auto=true"
        else:
            yield ("shifts.share_self", "shifts.share_knn", "shifts.share_rand"), "shifts.auto=false"
        if self.readout.by == "probe":
            yield ("clusters", "iterate"), "readout.by=probe"
        else:  # no gradient of the probe reaches the codes
            if self.iterate.keep == "last":
                yield ("iterate.rows",), "iterate.keep=last"
            yield ("head.probe_lr",), "readout.by=kmeans"
