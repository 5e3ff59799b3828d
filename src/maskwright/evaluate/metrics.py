"""Figures from counts, and the boundary of a label map.

All functions from counts take a matrix with predicted ids as rows and true classes as columns, where row c
means class c. Rows beyond the classes (clusters that were matched to nothing) count as wrong pixels: they
take part in a class's truth but in no class's prediction. Figures are fractions in [0, 1]; a class for which
a figure has no denominator is NaN.

Legend: K predicted ids, C classes, (H, W) image size.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numba import njit

from maskwright.errors import unknown


@dataclass(frozen=True)
class Areas:
    """Pixels of each class: right ones, predicted ones and true ones, int64 (C,) each."""

    right: np.ndarray
    predicted: np.ndarray
    true: np.ndarray

    @property
    def union(self) -> np.ndarray:
        """Pixels that are predicted or true, (C,)."""
        return self.predicted + self.true - self.right


def areas(counts: Any) -> Areas:
    """Areas of each class from counts (K, C).

    Raises:
        ValueError: `counts` is not a matrix.
    """
    counts = np.asarray(counts)
    if counts.ndim != 2:
        raise ValueError(f"counts of shape {counts.shape}, expected (K, C)")
    k, c = counts.shape
    own = np.zeros((c, c), dtype=counts.dtype)
    own[: min(k, c)] = counts[:c]
    return Areas(np.diagonal(own).copy(), own.sum(1), counts.sum(0))


def _ratio(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    a, b = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    return np.divide(a, b, out=np.full(a.shape, np.nan), where=b > 0)


def _mean(x: np.ndarray) -> float:
    x = x[~np.isnan(x)]
    return float(x.mean()) if x.size else math.nan


def iou(counts: Any) -> np.ndarray:
    """Intersection over union of each class, float64 (C,); NaN where neither truth nor prediction has the
    class."""
    a = areas(counts)
    return _ratio(a.right, a.union)


def miou(counts: Any, over: str = "present") -> float:
    """Mean intersection over union.

    Args:
        counts: (K, C).
        over: "present" leaves out classes that neither truth nor prediction has; "all" counts them as 0.
    """
    if over == "present":
        return _mean(iou(counts))
    if over == "all":
        return float(np.nan_to_num(iou(counts)).mean())
    raise unknown("averaging", over, ("present", "all"))


def pixel_accuracy(counts: Any) -> float:
    """Share of the pixels whose class is right."""
    a = areas(counts)
    return float(_ratio(a.right.sum(), a.true.sum()))


def recall(counts: Any) -> np.ndarray:
    """Share of each class's true pixels that are found, (C,)."""
    a = areas(counts)
    return _ratio(a.right, a.true)


def precision(counts: Any) -> np.ndarray:
    """Share of each class's predicted pixels that are right, (C,)."""
    a = areas(counts)
    return _ratio(a.right, a.predicted)


def mean_accuracy(counts: Any) -> float:
    """Mean over the classes of the truth of the share that is found."""
    return _mean(recall(counts))


def frequency_weighted_iou(counts: Any) -> float:
    """IoU weighted by each class's share of the true pixels."""
    a = areas(counts)
    return float(np.nansum(_ratio(a.right, a.union) * _ratio(a.true, np.full_like(a.true, a.true.sum()))))


def dice(counts: Any) -> np.ndarray:
    """Dice coefficient of each class, 2 |P and T| / (|P| + |T|), (C,)."""
    a = areas(counts)
    return _ratio(2 * a.right, a.predicted + a.true)


@dataclass(frozen=True)
class FalseRates:
    """Over- and under-activation of class maps.

    Attributes:
        false_negative, false_positive: per class, (C,); inf where the paper's ratio divides by no right
            pixel.
        mfn, mfp: means over the foreground classes with a finite value.
        left_out: foreground classes of the truth or the prediction without one right pixel, left out of the
            means.
    """

    false_negative: np.ndarray
    false_positive: np.ndarray
    mfn: float
    mfp: float
    left_out: int


def false_rates(counts: Any, variant: str = "paper", background: int | None = 0) -> FalseRates:
    """mFN and mFP of SEAM (Wang et al., CVPR 2020).

    Args:
        counts: (K, C).
        variant: "paper" is FN/TP and FP/TP; "code", as the released evaluation has it, divides by the union.
        background: the class left out of the means; None leaves out none.
    """
    a = areas(counts)
    missed, added = a.true - a.right, a.predicted - a.right
    if variant == "code":
        fn, fp = _ratio(missed, a.union), _ratio(added, a.union)
    elif variant == "paper":
        fn, fp = _ratio(missed, a.right), _ratio(added, a.right)
        without = (a.right == 0) & (a.union > 0)
        fn[without] = fp[without] = np.inf
    else:
        raise unknown("variant", variant, ("paper", "code"))
    foreground = np.arange(len(fn)) != (-1 if background is None else background)
    kept = foreground & np.isfinite(fn)
    left_out = int((foreground & np.isinf(fn)).sum())
    return FalseRates(fn, fp, _mean(fn[kept]), _mean(fp[kept]), left_out)


def apply_mapping(counts: Any, mapping: Any) -> np.ndarray:
    """Counts by class instead of by cluster.

    Args:
        counts: (K, C).
        mapping: class of each cluster, int (K,); -1 for a cluster that is matched to nothing.

    Returns:
        int64 (C + 1, C); row C collects the clusters that are matched to nothing.
    """
    counts, mapping = np.asarray(counts), np.asarray(mapping, dtype=np.int64)
    k, c = counts.shape
    if mapping.shape != (k,) or (mapping >= c).any() or (mapping < -1).any():
        raise ValueError(f"a mapping {mapping.shape} with values up to {mapping.max(initial=-1)} for counts {k, c}")
    mapped = np.zeros((c + 1, c), dtype=np.int64)
    np.add.at(mapped, np.where(mapping < 0, c, mapping), counts)
    return mapped


def boundary_distance(height: int, width: int, ratio: float = 0.02) -> int:
    """Width d of the boundary band in pixels: `ratio` of the image diagonal, rounded, at least 1.

    Boundary IoU (Cheng et al., CVPR 2021) uses 0.02, the ImageNet-S benchmark 0.03.
    """
    return max(1, round(ratio * math.sqrt(height * height + width * width)))


@njit(cache=True, nogil=True)
def _boundary(labels, d, out):
    """out = 1 where the (2d + 1)^2 window leaves the image or holds another label."""
    height, width = labels.shape
    inner = np.zeros((2, width), dtype=np.uint8)  # of the present and the last row: constant along the row
    depth = np.zeros(width, dtype=np.int64)
    out[:] = 1
    for y in range(height):
        now, last = inner[y & 1], inner[1 - (y & 1)]
        now[:] = 0
        start = 0
        for x in range(1, width + 1):
            if x == width or labels[y, x] != labels[y, start]:
                for i in range(start + d, x - d):
                    now[i] = 1
                start = x
        for x in range(width):
            if now[x] == 0:
                depth[x] = 0
            elif y > 0 and last[x] == 1 and labels[y, x] == labels[y - 1, x]:
                depth[x] += 1
            else:
                depth[x] = 1
            if depth[x] > 2 * d:
                out[y - d, x] = 0


def boundary_map(labels: Any, distance: int) -> np.ndarray:
    """Pixels within `distance` of their own region's border, for all labels at once.

    Equals, for every label, its mask minus the mask eroded `distance` times with a 3x3 square after a padding
    of zeros, so that the image border counts as a border: d such erosions are one with a square of 2d + 1.
        One pass
    over the rows with run lengths, whatever the distance and the number of labels.

    Args:
        labels: ids (H, W), an integer type.
        distance: d >= 1, in pixels.

    Returns:
        bool (H, W).
    """
    labels = np.ascontiguousarray(labels)
    if labels.ndim != 2 or distance < 1:
        raise ValueError(f"labels of shape {labels.shape} and distance {distance}, expected (H, W) and at least 1")
    out = np.empty(labels.shape, dtype=np.uint8)
    _boundary(labels, int(distance), out)
    return out.view(np.bool_)
