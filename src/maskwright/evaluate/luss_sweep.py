"""The sweep of the attention threshold on labels, as PASS's authors choose it (TPAMI 2022, arXiv 2106.03149).

For every threshold t the predicted id becomes 0 ("other") where the attention is below t, ids are matched to classes
by images, and the mIoU is taken. It reads labels: what it finds is an oracle's choice, not that of a label-free method.
One pass over the images serves all thresholds, because counts by the highest threshold that a pixel passes add up.

Legend: T thresholds, K predicted ids without 0, C classes without 0, (H, W) image size.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from maskwright.errors import MaskwrightError
from maskwright.evaluate.luss import _check_shapes, _valid_and_ids
from maskwright.ops.matching import one_to_one

SWEPT = tuple(t / 100 for t in range(81))
"""The released sweep."""


class ThresholdSweep:
    """Collects predictions with their attention and judges every threshold.

    Args:
        classes: C.
        predicted: K.
        thresholds: ascending.
        ignore: true ids to drop; as in `evaluate.luss.LussMatcher`.
    """

    def __init__(
        self,
        classes: int,
        predicted: int,
        thresholds: Sequence[float] = SWEPT,
        ignore: int | Sequence[int] | None = None,
    ) -> None:
        self.classes, self.predicted, self.ignore = classes, predicted, ignore
        self.thresholds = np.asarray(thresholds, dtype=np.float64)
        if self.thresholds.ndim != 1 or not self.thresholds.size or (np.diff(self.thresholds) <= 0).any():
            raise MaskwrightError(f"thresholds {list(thresholds)}", "ascending numbers")
        steps = len(self.thresholds) + 1
        # Entry b: pixels, and images by their best pixel, that pass exactly the first b thresholds.
        self._counts = np.zeros((steps, predicted + 1, classes + 1), dtype=np.int64)
        self._together = np.zeros((steps, predicted, classes), dtype=np.int64)
        self.images = 0

    def update(self, pred: Any, attention: Any, true: Any) -> None:
        """Adds one image.

        Args:
            pred: ids 1..K before any becomes 0, (H, W); 0 is allowed.
            attention: (H, W).
            true: ids 0..C, (H, W).
        """
        pred, true, attention = np.asarray(pred), np.asarray(true), np.asarray(attention)
        _check_shapes(pred, true)
        _check_shapes(attention, true)
        ids, valid = _valid_and_ids(true, self.classes, self.ignore)
        passed = np.searchsorted(self.thresholds, attention[valid], side="right")
        p, t = pred[valid].astype(np.int64), ids[valid].astype(np.int64)
        if p.size and (p.max() > self.predicted or p.min() < 0):
            raise MaskwrightError(f"predicted id {int(p.max())}", f"0 to {self.predicted}", "check the number of ids")
        cell = (passed * (self.predicted + 1) + p) * (self.classes + 1) + t
        self._counts += np.bincount(cell, minlength=self._counts.size).reshape(self._counts.shape)
        best = np.zeros(self.predicted + 1, dtype=np.int64)
        np.maximum.at(best, p, passed)
        there = np.unique(t)
        for k in np.unique(p[p > 0]):
            self._together[best[k], k - 1, there[there > 0] - 1] += 1
        self.images += 1

    def scores(self) -> np.ndarray:
        """MIoU of each threshold over all C + 1 ids, absent ones as 0, float64 (T,)."""
        if not self.images:
            raise MaskwrightError("no image to choose the threshold on", "at least one with its mask")
        truth = self._counts.sum((0, 1))
        kept = self._counts[::-1].cumsum(0)[::-1][1:]  # (T, K + 1, C + 1)
        together = self._together[::-1].cumsum(0)[::-1][1:]
        found = []
        for counts, images in zip(kept, together):
            mapping = np.concatenate([[0], one_to_one(images) + 1])
            matched = np.zeros((self.classes + 1, self.classes + 1), dtype=np.int64)
            np.add.at(matched, mapping, counts)
            matched[0] += truth - counts.sum(0)  # what the threshold made "other"
            tp = np.diag(matched)
            found.append((tp / (matched.sum(1) + truth - tp + 1e-10)).mean())
        return np.asarray(found)

    def best(self) -> tuple[float, float]:
        """The threshold with the highest mIoU, the smallest of equal ones, and that mIoU."""
        scores = self.scores()
        i = int(scores.argmax())
        return float(self.thresholds[i]), float(scores[i])
