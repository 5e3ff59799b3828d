"""One confusion matrix under every protocol: integer counts of (predicted id, true class) over a whole data
set.

Masks are piecewise constant, so the kernel compares eight bytes at a time with the last uniform word and only
counts a run's length; pixels of mixed words go to several interleaved tables, because consecutive increments
of one counter wait for each other (store forwarding).

Legend: K predicted ids, C classes, (H, W) image size.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numba import njit

from maskwright.errors import MaskwrightError

IGNORE_BY_ITEMSIZE = {1: 255, 2: 65535}
_INTERLEAVED = 4
# Above this many cells the interleaved tables would leave the second-level cache, which costs more than they
# save.
_LARGEST_INTERLEAVED = 1 << 16
_MOST_CELLS = 1 << 29


@njit(cache=True, nogil=True)
def _count(pred, true, pred_words, true_words, ones, row_of, column_of, tables, sign):
    """Adds `sign` for each pixel to `tables (T, cells)`; `pred` and `true` are flat and of one unsigned
    type."""
    lanes = 8 // pred.itemsize
    bits = np.uint64(8 * pred.itemsize)
    low = (np.uint64(1) << bits) - np.uint64(1)
    turn = tables.shape[0] - 1
    t0, t1, t2, t3 = tables[0], tables[1 & turn], tables[2 & turn], tables[3 & turn]
    uniform = False
    last_pred, last_true = np.uint64(0), np.uint64(0)
    run, cell = 0, np.uint64(0)
    for w in range(pred_words.shape[0]):
        pw, tw = pred_words[w], true_words[w]
        if uniform and pw == last_pred and tw == last_true:
            run += lanes
            continue
        if run:
            t0[cell] += sign * run
            run = 0
        uniform = pw == (pw & low) * ones and tw == (tw & low) * ones
        if uniform:
            last_pred, last_true = pw, tw
            cell = row_of[pw & low] + column_of[tw & low]
            run = lanes
        else:
            # Ids are shifted out of the words: a load less for each. The order within a word does not matter.
            for _ in range(0, lanes, 4):
                t0[row_of[pw & low] + column_of[tw & low]] += sign
                pw, tw = pw >> bits, tw >> bits
                t1[row_of[pw & low] + column_of[tw & low]] += sign
                pw, tw = pw >> bits, tw >> bits
                t2[row_of[pw & low] + column_of[tw & low]] += sign
                pw, tw = pw >> bits, tw >> bits
                t3[row_of[pw & low] + column_of[tw & low]] += sign
                pw, tw = pw >> bits, tw >> bits
    if run:
        t0[cell] += sign * run
    for i in range(pred_words.shape[0] * lanes, pred.shape[0]):
        t0[row_of[pred[i]] + column_of[true[i]]] += sign


class ConfusionMatrix:
    """Counts of pixels by predicted id (rows) and true class (columns), summed over images.

    Pixels whose true id is ignored are dropped, whatever their prediction. A true id outside the classes is
    an error, and so is a predicted id outside 0..K-1 unless `extra` asks for a row that collects them. An
    update that fails leaves the counts as they were. The counting holds no GIL; give each thread its own
    matrix and add them.

    Args:
        predicted: K, the number of ids a prediction may have.
        classes: C, the number of classes of the truth.
        ignore: true ids that are not counted; None means 255 in 8-bit and 65535 in 16-bit masks (in wider
            types the one that is not a class).
        extra: adds row K for predictions outside 0..K-1 instead of raising.

    Raises:
        ValueError: `predicted` or `classes` is not in 1..65535.
        MaskwrightError: the table would take more than 4 GiB.
    """

    def __init__(
        self, predicted: int, classes: int, ignore: int | Sequence[int] | None = None, extra: bool = False
    ) -> None:
        for name, n in (("predicted", predicted), ("classes", classes)):
            if not 1 <= int(n) <= 65535:
                raise ValueError(f"{name} is {n}, expected 1 to 65535")
        self.predicted, self.classes, self.extra = int(predicted), int(classes), bool(extra)
        self.ignore: tuple[int, ...] | None = None
        if ignore is not None:
            self.ignore = tuple(int(i) for i in np.atleast_1d(np.asarray(ignore, dtype=np.int64)))
        self._width = self.classes + 2  # one column for ignored and one for out-of-range truth
        cells = (self.predicted + 1) * self._width
        if cells > _MOST_CELLS:
            raise MaskwrightError(
                f"a table of {self.predicted} predicted ids by {self.classes} classes needs {cells >> 27} GiB",
                "at most 4 GiB, some 23,000 ids by as many classes",
                "leave classes that no mask holds out of the end of classes.txt",
            )
        self._tables = np.zeros((_INTERLEAVED if cells <= _LARGEST_INTERLEAVED else 1, cells), dtype=np.int64)
        self._lookups: dict[tuple[int, int], tuple[np.ndarray, np.ndarray]] = {}

    @property
    def counts(self) -> np.ndarray:
        """Pixels by predicted id and true class, int64 (K, C), or (K + 1, C) with `extra`."""
        rows = self.predicted + (1 if self.extra else 0)
        return self._tables.sum(0).reshape(self.predicted + 1, self._width)[:rows, : self.classes].copy()

    @property
    def ignored(self) -> int:
        """Number of pixels dropped because their true id is ignored."""
        return int(self._tables.sum(0).reshape(self.predicted + 1, self._width)[:, self.classes].sum())

    def update(self, pred: Any, true: Any) -> None:
        """Adds the pixels of one image or batch.

        Args:
            pred: predicted ids, any shape; bool, uint8 and uint16 are counted as they are, wider integers are
                checked and narrowed first.
            true: true ids of the same shape.

        Raises:
            MaskwrightError: the shapes differ, or an id is out of range.
            TypeError: an array does not hold integers.
        """
        pred, true = np.asarray(pred), np.asarray(true)
        if pred.shape != true.shape:
            raise MaskwrightError(
                f"a prediction of shape {pred.shape} for a truth of shape {true.shape}",
                "the same shape",
                "predict at the truth's size, or resize ids with nearest neighbour",
            )
        itemsize_of_truth = true.dtype.itemsize
        pred = _unsigned(pred, "prediction")
        true = _unsigned(true, "truth", () if self.ignore is None else self.ignore)
        itemsize = max(pred.dtype.itemsize, true.dtype.itemsize)
        kind = np.uint8 if itemsize == 1 else np.uint16
        flat_pred = np.ascontiguousarray(pred.reshape(-1), dtype=kind)
        flat_true = np.ascontiguousarray(true.reshape(-1), dtype=kind)
        lanes = 8 // itemsize
        whole = flat_pred.size // lanes * lanes
        arguments = (
            _aligned(flat_pred),
            _aligned(flat_true),
            _aligned(flat_pred)[:whole].view(np.uint64),
            _aligned(flat_true)[:whole].view(np.uint64),
            np.uint64(0x0101010101010101 if itemsize == 1 else 0x0001000100010001),
            *self._lookup(itemsize, itemsize_of_truth),
            self._tables,
        )
        _count(*arguments, 1)
        if self._out_of_range():
            _count(*arguments, -1)
            self._complain(flat_pred, flat_true, itemsize, itemsize_of_truth)

    def _ignored_ids(self, itemsize: int) -> tuple[int, ...]:
        if self.ignore is not None:
            return self.ignore
        if itemsize in IGNORE_BY_ITEMSIZE:
            return (IGNORE_BY_ITEMSIZE[itemsize],)
        return (255, 65535) if self.classes <= 255 else (65535,)

    def _lookup(self, itemsize: int, itemsize_of_truth: int) -> tuple[np.ndarray, np.ndarray]:
        """First cell of each predicted id's row, and column of each true id."""
        key = (itemsize, itemsize_of_truth)
        if key not in self._lookups:
            ids = 1 << (8 * itemsize)
            row_of = np.minimum(np.arange(ids), self.predicted) * self._width
            column_of = np.minimum(np.arange(ids), self.classes + 1)
            column_of[self.classes :] = self.classes + 1
            for i in self._ignored_ids(itemsize_of_truth):
                # A negative ignore (-1) was mapped to the largest 16-bit id when the array was narrowed.
                if i < ids:
                    column_of[i if i >= 0 else ids - 1] = self.classes
            self._lookups[key] = row_of.astype(np.uint64), column_of.astype(np.uint64)
        return self._lookups[key]

    def _out_of_range(self) -> bool:
        table = self._tables.reshape(-1, self.predicted + 1, self._width)
        return bool(
            table[:, :, self.classes + 1].any() or (not self.extra and table[:, self.predicted, : self.classes].any())
        )

    def _complain(self, pred: np.ndarray, true: np.ndarray, itemsize: int, itemsize_of_truth: int) -> None:
        column_of = self._lookup(itemsize, itemsize_of_truth)[1][true]
        wrong = true[column_of == self.classes + 1]
        if wrong.size:
            raise MaskwrightError(
                f"true id {int(wrong.max())} in a mask of {self.classes} classes",
                f"0 to {self.classes - 1}, or {self._ignored_ids(itemsize_of_truth)} for pixels to ignore",
                "mend the masks (`maskwright doctor`) or name all classes in classes.txt",
            )
        worst = int(pred[(column_of < self.classes) & (pred >= self.predicted)].max())
        raise MaskwrightError(
            f"predicted id {worst} where {self.predicted} ids are possible",
            f"0 to {self.predicted - 1}",
            "check the prediction's classes, or choose a protocol that matches clusters to classes",
        )

    def __iadd__(self, other: ConfusionMatrix) -> ConfusionMatrix:
        if (self.predicted, self.classes, self.extra) != (other.predicted, other.classes, other.extra):
            raise ValueError(
                f"cannot add a {other.predicted} x {other.classes} matrix (extra {other.extra}) "
                f"to a {self.predicted} x {self.classes} one (extra {self.extra})"
            )
        self._tables[0] += other._tables.sum(0)
        return self

    def __add__(self, other: ConfusionMatrix) -> ConfusionMatrix:
        total = ConfusionMatrix(self.predicted, self.classes, self.ignore, self.extra)
        total += self
        total += other
        return total

    def grown(self, predicted: int) -> ConfusionMatrix:
        """The same counts with room for more predicted ids.

        Args:
            predicted: the new K, at least the present one. What the row of `extra` has collected stays there.
        """
        if predicted < self.predicted:
            raise ValueError(f"cannot shrink {self.predicted} predicted ids to {predicted}")
        larger = ConfusionMatrix(predicted, self.classes, self.ignore, self.extra)
        cells = self.predicted * self._width
        larger._tables[0, :cells] = self._tables.sum(0)[:cells]
        larger._tables[0, predicted * self._width :] = self._tables.sum(0)[cells:]
        return larger

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain JSON values; `from_dict` reads it."""
        return {
            "predicted": self.predicted,
            "classes": self.classes,
            "ignore": None if self.ignore is None else list(self.ignore),
            "extra": self.extra,
            "counts": self.counts.tolist(),
            "ignored": self.ignored,
        }

    @classmethod
    def from_dict(cls, state: dict[str, Any]) -> ConfusionMatrix:
        """The matrix that `to_dict` wrote.

        Raises:
            ValueError: the counts do not fit the sizes.
        """
        matrix = cls(state["predicted"], state["classes"], state["ignore"], state["extra"])
        counts = np.asarray(state["counts"], dtype=np.int64)
        if counts.shape != matrix.counts.shape:
            raise ValueError(f"counts of shape {counts.shape}, expected {matrix.counts.shape}")
        table = matrix._tables[0].reshape(matrix.predicted + 1, matrix._width)
        table[: counts.shape[0], : matrix.classes] = counts
        table[0, matrix.classes] = state.get("ignored", 0)
        return matrix


def _aligned(x: np.ndarray) -> np.ndarray:
    return x if x.ctypes.data % 8 == 0 else x.copy()


def _unsigned(x: np.ndarray, what: str, ignore: Sequence[int] = ()) -> np.ndarray:
    """Ids as uint8 or uint16; negative ignored ids become 65535."""
    if x.dtype == np.bool_:
        return np.ascontiguousarray(x).view(np.uint8)
    if x.dtype in (np.uint8, np.uint16):
        return x
    if x.dtype.kind not in "iu":
        raise TypeError(f"the {what} holds {x.dtype}, expected integer ids")
    if x.size == 0:
        return x.astype(np.uint16)
    for i in ignore:
        if i < 0:
            x = np.where(x == i, 65535, x.astype(np.int64))
    if int(x.min()) < 0 or int(x.max()) > 65535:
        raise MaskwrightError(
            f"a {what} with ids from {int(x.min())} to {int(x.max())}",
            "ids from 0 to 65535",
            "renumber the ids",
        )
    return x.astype(np.uint16)
