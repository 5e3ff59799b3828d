"""What judges seeds, the class maps that pseudo masks are made from: every threshold at once, and maps across scales.

Legend: C classes, N bins of the threshold, (H, W) image size, (h, w) map size, S scales.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from maskwright.evaluate.metrics import false_rates, miou, pixel_accuracy


@dataclass(frozen=True)
class ThresholdPoint:
    """Seeds at one threshold, over a data set.

    Attributes:
        threshold: in [0, 1]; a pixel is foreground where its largest map reaches it.
        miou: mean over the classes that occur.
        accuracy: share of right pixels.
        mfn, mfp: false negatives and false positives over true positives, mean over the foreground classes (SEAM's
            paper, Wang et al., CVPR 2020).
        mfn_code, mfp_code: over the union, as its released evaluation computes them.
        labeled: share of the judged pixels with a label; 1 where there is a background class.
    """

    threshold: float
    miou: float
    accuracy: float
    mfn: float
    mfp: float
    mfn_code: float
    mfp_code: float
    labeled: float


class ThresholdSweep:
    """Confusion counts of seeds for all thresholds k / N in one pass over the pixels.

    Args:
        classes: C.
        background: its class id, or None: pixels below the threshold have no label then and count as missed.
        bins: N.
    """

    def __init__(self, classes: int, background: int | None, bins: int = 100) -> None:
        self.classes, self.background, self.bins = classes, background, bins
        # Bin 0 holds pixels without any evidence, which no threshold makes foreground.
        self.joint = np.zeros((bins + 1, classes, classes), np.int64)

    def update(self, value: Any, top: Any, true: Any, ignore: int = 255) -> None:
        """Adds an image.

        Args:
            value: (H, W) in [0, 1], the largest map.
            top: (H, W) class id of it.
            true: (H, W) true ids.
            ignore: the true id that is not judged.

        Raises:
            ValueError: shapes differ, or ids lie outside the classes.
        """
        value, top, true = np.asarray(value), np.asarray(top).astype(np.int64), np.asarray(true).astype(np.int64)
        if value.shape != top.shape or value.shape != true.shape:
            raise ValueError(f"shapes {value.shape}, {top.shape} and {true.shape}, expected one (H, W)")
        kept = true != ignore
        v, p, t = value[kept], top[kept], true[kept]
        for name, ids in (("top", p), ("true", t)):
            if ids.size and (ids.min() < 0 or ids.max() >= self.classes):
                raise ValueError(f"{name} ids from {ids.min()} to {ids.max()}, expected 0 to {self.classes - 1}")
        # The nearest bin edge below, up to rounding: a value that equals a threshold reaches it.
        level = np.floor(v.astype(np.float64) * self.bins + 1e-6).clip(0, self.bins - 1).astype(np.int64) + 1
        level[v <= 0] = 0
        flat = (level * self.classes + p) * self.classes + t
        self.joint += np.bincount(flat, minlength=self.joint.size).reshape(self.joint.shape)

    def counts(self, k: int) -> np.ndarray:
        """Counts (C + 1, C) by predicted id and true class at the threshold k / N; row C is what has no label."""
        out = np.zeros((self.classes + 1, self.classes), np.int64)
        out[: self.classes] = self.joint[k + 1 :].sum(0)
        out[self.classes if self.background is None else self.background] += self.joint[: k + 1].sum((0, 1))
        return out

    def curve(self) -> list[ThresholdPoint]:
        """All thresholds, ascending."""
        points = []
        for k in range(self.bins):
            counts = self.counts(k)
            paper = false_rates(counts, "paper", self.background)
            code = false_rates(counts, "code", self.background)
            total = counts.sum()
            points.append(
                ThresholdPoint(
                    k / self.bins, miou(counts), pixel_accuracy(counts), paper.mfn, paper.mfp, code.mfn, code.mfp,
                    1 - float(counts[self.classes].sum() / total) if total else math.nan,
                )
            )  # fmt: skip
        return points

    def records(self) -> list[dict[str, float | None]]:
        """The curve as it is written to JSON: None for what is not finite."""
        return [{k: v if math.isfinite(v) else None for k, v in asdict(p).items()} for p in self.curve()]

    def nearest(self, threshold: float) -> int:
        """Place in the curve of the point nearest to a threshold in [0, 1]."""
        return min(self.bins - 1, round(threshold * self.bins))

    def best(self) -> ThresholdPoint:
        """The threshold of the highest mIoU, the lowest of equals. It was chosen with masks: say so with any number."""
        return max(self.curve(), key=lambda p: (-math.inf if math.isnan(p.miou) else p.miou, -p.threshold))


def scale_consistency(maps: Sequence[Any]) -> np.ndarray:
    """How far class maps of one image differ between scales: mean absolute difference of each pair.

    The figure of SEAM's equivariant regularisation: zero for maps that follow the image through any rescaling.

    Args:
        maps: S maps (K, h, w) of one size, each in [0, 1].

    Returns:
        float64 (S, S), symmetric with a zero diagonal; NaN off it where there is no tag.

    Raises:
        ValueError: no maps, or sizes differ.
    """
    if not maps or len({tuple(np.shape(m)) for m in maps}) > 1:
        raise ValueError("maps of different sizes or none, expected one (K, h, w) a scale; resize them first")
    x = np.stack([np.asarray(m, np.float64) for m in maps]).reshape(len(maps), -1)
    out = np.full((len(maps), len(maps)), np.nan)
    np.fill_diagonal(out, 0)
    if x.shape[1]:
        for a in range(len(maps)):
            out[a] = np.abs(x - x[a]).mean(1)
    return out
