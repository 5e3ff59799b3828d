"""The ImageNet-S benchmark: image-level matching and its table of figures.

Large-scale Unsupervised Semantic Segmentation, Gao et al., TPAMI 2022, arXiv 2106.03149. Ids are 0 ("other":
the background and objects of other categories) and 1 to C. What the released evaluators do and this follows:

- pixels whose truth is ignored (1000) are dropped first, except that boundaries are drawn before, so that the
  border of an ignored region is a border;
- IoU is TP / (T + P - TP + 1e-10) over the whole set and mIoU the mean over all C + 1 ids: an id that occurs
  nowhere counts as 0;
- boundary IoU has a band of 3 % of the diagonal, and the image border is a boundary;
- sizes are ceil(100 area / valid pixels) of a class in an image: S up to 5, MS up to 25, ML up to 50, L
  above. A group's pixels are those of its classes and, in images that have such a class, those of the truth's
  background. The mean of a group is over the ids that its truth has;
- an image's accuracy asks whether the largest predicted id above 0 occurs in the truth; ties go to the
  smaller id;
- F (beta squared 0.3) is of "id above 0" against "truth above 0", averaged over images.

The semi-supervised and free protocols are the same table without matching.

Legend: K predicted ids without 0, C classes without 0, (H, W) image size.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numba import njit

from maskwright.data.masking.label_rules import ignore_of
from maskwright.data.trust.artefacts import parse_json, unreadable
from maskwright.data.trust.files import write_json
from maskwright.errors import MaskwrightError, unknown
from maskwright.evaluate.confusion import _unsigned
from maskwright.evaluate.distance import EmbeddingBank, distance_matching, predict_by_distance
from maskwright.evaluate.metrics import boundary_distance, boundary_map
from maskwright.evaluate.saliency import f_from_counts
from maskwright.ops.matching import one_to_one, tied

__all__ = [
    "EmbeddingBank",
    "LussEvaluator",
    "LussMatcher",
    "LussMatching",
    "LussScores",
    "distance_matching",
    "predict_by_distance",
]

IGNORE_LUSS = 1000
BOUNDARY_RATIO = 0.03
SIZES = ("S", "MS", "ML", "L")
_EPS = 1e-10


def _valid_and_ids(true: np.ndarray, classes: int, ignore: int | Sequence[int] | None) -> tuple[np.ndarray, np.ndarray]:
    """Truth as uint16 and which of its pixels count; None ignores 1000 and the largest id of the type."""
    if ignore is None:
        largest = ignore_of(true)
        ignored = {largest, IGNORE_LUSS} if classes < IGNORE_LUSS else {largest}
        if classes >= largest:
            ignored.discard(largest)
    else:
        ignored = {int(i) for i in np.atleast_1d(np.asarray(ignore))}
    ids = _unsigned(true, "truth", tuple(ignored)).astype(np.uint16)
    allowed = np.zeros(65536, dtype=np.uint8)
    allowed[: classes + 1] = 1
    for i in ignored:
        allowed[i if i >= 0 else 65535] = 2
    kind = allowed[ids]
    if not kind.all():
        raise MaskwrightError(
            f"true id {int(ids[kind == 0].max())} in a mask of classes 0 to {classes}",
            f"0 to {classes}, or one of {sorted(ignored)} for pixels to ignore",
            "check the number of classes",
        )
    return ids, kind == 1


def _check_shapes(pred: np.ndarray, true: np.ndarray) -> None:
    if pred.shape != true.shape or true.ndim != 2:
        raise MaskwrightError(
            f"a prediction of shape {pred.shape} for a truth of shape {true.shape}",
            "the same (H, W)",
            "resize the ids to the image's size with nearest neighbour",
        )


@dataclass(frozen=True)
class LussMatching:
    """Which class each predicted id means.

    Attributes:
        mapping: id of each predicted id, int64 (K + 1,); 0 means 0, and so does a cluster left without a
            class.
        classes: C.
        images: number of images it was computed on, for the record.
        cost: variant of the cost.
        tied: how many of the predicted ids that occur have another class in an equally good matching.
    """

    mapping: np.ndarray
    classes: int
    images: int = 0
    cost: str = "imagenet_s"
    tied: int = 0

    def __post_init__(self) -> None:
        m = np.asarray(self.mapping, dtype=np.int64)
        if m.ndim != 1 or m.size == 0 or m[0] != 0 or m.min() < 0 or m.max() > self.classes:
            raise MaskwrightError(
                f"a matching of {m.size} ids with values up to {m.max(initial=-1)}",
                f"0 for 0 and ids 0 to {self.classes}",
            )
        object.__setattr__(self, "mapping", m)

    @classmethod
    def identity(cls, classes: int) -> LussMatching:
        """Predicted ids are the classes: the semi-supervised, distance-matching and free protocols."""
        return cls(np.arange(classes + 1), classes, 0, "none")

    def apply(self, pred: Any) -> np.ndarray:
        """Predicted ids (H, W) as class ids uint16 (H, W).

        Raises:
            MaskwrightError: the prediction has an id that was never seen when the matching was computed.
        """
        ids = _unsigned(np.asarray(pred), "prediction")
        highest = int(ids.max()) if ids.size else 0
        if highest >= len(self.mapping):
            raise MaskwrightError(
                f"predicted id {highest}",
                f"0 to {len(self.mapping) - 1}, the ids of the matching",
                "compute it with K ids",
            )
        return self.mapping.astype(np.uint16)[ids]

    def to_json(self) -> dict[str, Any]:
        """The matching as JSON values; `from_json` reads them."""
        mapping = {str(k): int(v) for k, v in enumerate(self.mapping)}
        return {
            "cost": self.cost, "classes": self.classes, "images": self.images, "tied": self.tied, "mapping": mapping
        }  # fmt: skip

    @classmethod
    def from_json(cls, record: Mapping[str, Any] | str | bytes) -> LussMatching:
        """The matching of which `to_json` gave this record (or its text)."""
        try:
            state = parse_json(record) if isinstance(record, str | bytes) else record
            pairs = {int(k): int(v) for k, v in state["mapping"].items()}
            mapping = np.array([pairs[k] for k in range(len(pairs))], dtype=np.int64)
            tied_ids = int(state.get("tied", 0))
            return cls(mapping, int(state["classes"]), int(state["images"]), str(state["cost"]), tied_ids)
        except (ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:
            raise MaskwrightError(
                f"a matching that cannot be read ({error})",
                "JSON with mapping, classes, images, cost",
                "save it again",
            ) from error

    def save(self, path: str | Path) -> None:
        """Writes the JSON beside `path` and renames it into place."""
        write_json(path, self.to_json())

    @classmethod
    def load(cls, path: str | Path) -> LussMatching:
        """Reads what `save` wrote."""
        path = Path(path)
        if not path.is_file():
            raise MaskwrightError(f"no file {path}", "a matching that `LussMatching.save` wrote")
        try:
            return cls.from_json(path.read_bytes())
        except OSError as error:
            raise unreadable(path, error, "a matching that `LussMatching.save` wrote", "save it again") from error


class LussMatcher:
    """Collects in how many images each predicted id and each class occur together.

    Args:
        classes: C.
        predicted: K; None lets it grow with the ids that appear, and at least C.
        ignore: true ids to drop; None means 1000 and 255 in 8-bit, 65535 in 16-bit masks.
    """

    def __init__(self, classes: int, predicted: int | None = None, ignore: int | Sequence[int] | None = None) -> None:
        self.classes, self.predicted, self.ignore = classes, predicted, ignore
        self.together = np.zeros((predicted if predicted is not None else classes, classes), dtype=np.int64)
        self.images = 0

    def update(self, pred: Any, true: Any) -> None:
        """Adds one image: ids (H, W) each."""
        pred, true = np.asarray(pred), np.asarray(true)
        _check_shapes(pred, true)
        true, valid = _valid_and_ids(true, self.classes, self.ignore)
        pred = _unsigned(pred, "prediction")
        here = np.flatnonzero(np.bincount(pred[valid]))
        there = np.flatnonzero(np.bincount(true[valid]))
        here, there = here[here > 0] - 1, there[there > 0] - 1
        if here.size and here[-1] >= len(self.together):
            if self.predicted is not None:
                raise MaskwrightError(
                    f"predicted id {here[-1] + 1}", f"0 to {self.predicted}", "check the number of ids"
                )
            grown = np.zeros((int(here[-1]) + 1, self.classes), dtype=np.int64)
            grown[: len(self.together)] = self.together
            self.together = grown
        self.together[np.ix_(here, there)] += 1
        self.images += 1

    def matching(self, cost: str = "imagenet_s") -> LussMatching:
        """The one-to-one matching with the least cost.

        Args:
            cost: "imagenet_s" is 1 - M / N for M images together of N, "pass" is -M. Both are least where the
                sum of M is largest, so it is solved in whole numbers, and equal optima are told apart by the
                rule of `ops.matching`, not by rounding: the released tools may choose another of them. On few
                images figures hang on it: `tied` counts the ids whose class it decides.
        """
        if cost not in ("imagenet_s", "pass"):
            raise unknown("cost", cost, ("imagenet_s", "pass"))
        mapping = np.zeros(len(self.together) + 1, dtype=np.int64)
        mapping[1:] = one_to_one(self.together) + 1
        ties = int((tied(self.together) & self.together.any(1)).sum())
        return LussMatching(mapping, self.classes, self.images, cost, ties)


@njit(cache=True, nogil=True)
def _tally(pred, true, valid, pred_edge, true_edge, local, salient):
    """Adds areas to `local (5 sizes, 2 kinds, 3 of TP T P, ids)`; size 0 is background; returns the valid
    pixels.

    `salient` (3,) counts the valid pixels above 0 in both, in the prediction, in the truth.
    """
    ids = local.shape[3]
    area = np.zeros(ids, dtype=np.int64)
    pixels = 0
    for i in range(true.shape[0]):
        if valid[i]:
            area[true[i]] += 1
            pixels += 1
    slot = np.zeros(ids, dtype=np.int64)
    for c in range(1, ids):
        if area[c] > 0:
            size = (100 * area[c] + pixels - 1) // pixels
            slot[c] = 1 if size <= 5 else 2 if size <= 25 else 3 if size <= 50 else 4
    i, n = 0, true.shape[0]
    while i < n:
        t, p, v, te, pe = true[i], pred[i], valid[i], true_edge[i], pred_edge[i]
        j = i + 1
        while j < n and true[j] == t and pred[j] == p and valid[j] == v and true_edge[j] == te and pred_edge[j] == pe:
            j += 1
        if v:
            run = j - i
            s = slot[t]
            local[s, 0, 2, t] += run
            if te:
                local[s, 1, 2, t] += run
            if p < ids:
                local[s, 0, 1, p] += run
                if pe:
                    local[s, 1, 1, p] += run
                if p == t:
                    local[s, 0, 0, t] += run
                    if te and pe:
                        local[s, 1, 0, t] += run
            if t > 0:
                salient[2] += run
            if p > 0:
                salient[1] += run
                if t > 0:
                    salient[0] += run
        i = j
    return pixels


@dataclass(frozen=True)
class LussScores:
    """The benchmark's table, fractions in [0, 1]; NaN for a size group without a class.

    Attributes:
        miou, boundary_miou: means over all C + 1 ids.
        iou, boundary_iou: float64 (C + 1,).
        sizes, boundary_sizes: by "S", "MS", "ML", "L".
        image_accuracy, f_measure, pixel_accuracy, mean_accuracy: `mean_accuracy` over the ids of the truth.
        images: number of images.
    """

    miou: float
    boundary_miou: float
    iou: np.ndarray
    boundary_iou: np.ndarray
    sizes: dict[str, float]
    boundary_sizes: dict[str, float]
    image_accuracy: float
    f_measure: float
    pixel_accuracy: float
    mean_accuracy: float
    images: int

    def summary(self) -> dict[str, float]:
        """The columns of the benchmark's table by their names there."""
        columns = {
            "Acc": self.image_accuracy,
            "mIoU": self.miou,
            "mBIoU": self.boundary_miou,
            "FMeasure": self.f_measure,
        }
        return columns | self.sizes | {f"B{k}": v for k, v in self.boundary_sizes.items()}


class LussEvaluator:
    """Accumulates the benchmark's figures over images.

    Args:
        classes: C, without 0.
        matching: which class each predicted id means; None takes predicted ids as classes.
        ignore: true ids to drop; None means 1000 and 255 in 8-bit, 65535 in 16-bit masks.
        ratio: width of the boundary band as a share of the diagonal.
    """

    def __init__(
        self,
        classes: int,
        matching: LussMatching | None = None,
        ignore: int | Sequence[int] | None = None,
        ratio: float = BOUNDARY_RATIO,
    ) -> None:
        if matching is not None and matching.classes != classes:
            raise MaskwrightError(f"a matching to {matching.classes} classes", f"{classes}", "compute it on this data")
        self.classes, self.matching, self.ignore, self.ratio = classes, matching, ignore, ratio
        # All pixels, then the four sizes; region and boundary; TP, predicted and true area.
        self._sums = np.zeros((5, 2, 3, classes + 1), dtype=np.int64)
        self._f = 0.0
        self._right = 0
        self._images = 0

    def update(self, pred: Any, true: Any) -> None:
        """Adds one image.

        Args:
            pred: predicted ids (H, W), before the matching.
            true: true ids (H, W).

        Raises:
            MaskwrightError: the shapes differ, or an id is out of range.
        """
        pred, true = np.asarray(pred), np.asarray(true)
        _check_shapes(pred, true)
        true, valid = _valid_and_ids(true, self.classes, self.ignore)
        pred = (self.matching or LussMatching.identity(self.classes)).apply(pred)
        d = boundary_distance(true.shape[0], true.shape[1], self.ratio)
        local = np.zeros(self._sums.shape, dtype=np.int64)
        salient = np.zeros(3, dtype=np.int64)
        pred_edge, true_edge = (boundary_map(x, d).view(np.uint8).reshape(-1) for x in (pred, true))
        counted = valid.view(np.uint8).reshape(-1)
        _tally(pred.reshape(-1), true.reshape(-1), counted, pred_edge, true_edge, local, salient)
        whole = local.sum(0)
        self._sums[0] += whole
        for size in range(1, 5):
            # A size that this image does not have takes none of its background either.
            if local[size, 0, 2].any():
                self._sums[size] += local[size] + local[0]
        self._f += f_from_counts(*salient)
        if self.classes:
            largest = int(np.argmax(whole[0, 1, 1:])) + 1
            self._right += int(whole[0, 1, largest] > 0 and whole[0, 2, largest] > 0)
        self._images += 1

    def __iadd__(self, other: LussEvaluator) -> LussEvaluator:
        if self.classes != other.classes:
            raise ValueError(f"cannot add {other.classes} classes to {self.classes}")
        self._sums += other._sums
        self._f += other._f
        self._right += other._right
        self._images += other._images
        return self

    def compute(self) -> LussScores:
        """The table of all images added."""
        right, predicted, true = (self._sums[:, :, i].astype(np.float64) for i in range(3))
        ious = right / (predicted + true - right + _EPS)  # (5, 2, C + 1)
        groups = [
            {
                name: float(ious[i, kind][true[i, kind] > 0].mean()) if (true[i, kind] > 0).any() else math.nan
                for i, name in enumerate(SIZES, start=1)
            }
            for kind in (0, 1)
        ]
        n = self._images
        there = true[0, 0] > 0
        pixels = true[0, 0].sum()
        return LussScores(
            miou=float(ious[0, 0].mean()) if n else math.nan,
            boundary_miou=float(ious[0, 1].mean()) if n else math.nan,
            iou=ious[0, 0],
            boundary_iou=ious[0, 1],
            sizes=groups[0],
            boundary_sizes=groups[1],
            image_accuracy=self._right / n if n else math.nan,
            f_measure=self._f / n if n else math.nan,
            pixel_accuracy=float(right[0, 0].sum() / pixels) if pixels else math.nan,
            mean_accuracy=float((right[0, 0][there] / true[0, 0][there]).mean()) if there.any() else math.nan,
            images=n,
        )
