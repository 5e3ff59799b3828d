"""Boxes: overlap, boxes of masks, and CorLoc, the measure of single-object localisation.

A box is (x0, y0, x1, y1) in pixels, x1 and y1 exclusive: a mask of one pixel at row i, column j has the box
(j, i, j + 1, i + 1). The figures of deep_spectral on salient objects (docs/results.md) are measured with it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import numpy as np

from maskwright.errors import MaskwrightError


def _as_boxes(boxes: Any) -> np.ndarray:
    b = np.asarray(boxes, dtype=np.float64)
    if b.size == 0:
        return np.zeros((0, 4))
    b = b[None] if b.ndim == 1 else b
    if b.ndim != 2 or b.shape[1] != 4 or not np.isfinite(b).all():
        raise MaskwrightError(f"boxes of shape {b.shape}", "finite (n, 4) boxes x0, y0, x1, y1")
    return b


def box_iou(a: Any, b: Any) -> np.ndarray:
    """Intersection over union of every pair.

    Args:
        a: (n, 4) or (4,).
        b: (m, 4) or (4,).

    Returns:
        float64 (n, m); 0 for boxes without area.
    """
    a, b = _as_boxes(a), _as_boxes(b)
    low = np.maximum(a[:, None, :2], b[None, :, :2])
    high = np.minimum(a[:, None, 2:], b[None, :, 2:])
    both = np.clip(high - low, 0, None).prod(-1)
    area_a = np.clip(a[:, 2:] - a[:, :2], 0, None).prod(-1)
    area_b = np.clip(b[:, 2:] - b[:, :2], 0, None).prod(-1)
    union = area_a[:, None] + area_b[None] - both
    return np.divide(both, union, out=np.zeros_like(both), where=union > 0)


def mask_box(mask: Any) -> tuple[int, int, int, int] | None:
    """The smallest box around the pixels of a bool mask (H, W), or None if it is empty."""
    m = np.asarray(mask, dtype=bool)
    rows, columns = np.flatnonzero(m.any(1)), np.flatnonzero(m.any(0))
    if rows.size == 0:
        return None
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


def boxes_from_masks(ids: Any, ignore: Iterable[int] = (0,)) -> dict[int, tuple[int, int, int, int]]:
    """The box of each id of a mask (H, W), without the ids of `ignore`."""
    ids = np.asarray(ids)
    left_out = set(ignore)
    found: dict[int, tuple[int, int, int, int]] = {}
    for i in np.unique(ids):
        box = None if int(i) in left_out else mask_box(ids == i)
        if box is not None:
            found[int(i)] = box
    return found


def corloc(predicted: Iterable[Any], true: Iterable[Any], threshold: float = 0.5) -> float:
    """Share of images whose one predicted box overlaps any true box with an IoU of at least `threshold`.

    Args:
        predicted: for each image one box (4,), or None (counted as wrong).
        true: for each image its boxes (n, 4); images without one are left out.
        threshold: 0.5 in the literature (Deselaers et al., ECCV 2010).

    Returns:
        CorLoc in [0, 1], NaN without images.

    Raises:
        MaskwrightError: the two differ in length, or an image has several predicted boxes.
    """
    predicted, true = list(predicted), list(true)
    if len(predicted) != len(true):
        raise MaskwrightError(f"{len(predicted)} predictions for {len(true)} images", "one for each image")
    hits = []
    for i, (p, t) in enumerate(zip(predicted, true)):
        boxes = _as_boxes(t)
        if len(boxes) == 0:
            continue
        box = _as_boxes([] if p is None else p)
        if len(box) > 1:
            raise MaskwrightError(
                f"{len(box)} predicted boxes for image {i}", "one", "keep the largest or most salient"
            )
        hits.append(len(box) == 1 and bool((box_iou(box, boxes) >= threshold).any()))
    return float(np.mean(hits)) if hits else math.nan
