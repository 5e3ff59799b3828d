"""Confusion matrices: ours beside `np.bincount` and torchmetrics, on masks like those of VOC and on noise.

Masks are piecewise constant with ragged borders, which is what real masks are; noise is the worst case, where
no word of eight pixels is uniform.
"""

from __future__ import annotations

import numpy as np
import torch
from torchmetrics.functional.classification import multiclass_confusion_matrix

from benchmarks.common import Row, side_by_side
from maskwright.evaluate.confusion import ConfusionMatrix
from maskwright.evaluate.luss import LussEvaluator, LussMatching

IMAGES, HEIGHT, WIDTH, CLASSES = 40, 375, 500, 21


def masks(count: int, ids: int, dtype: type, seed: int = 0) -> list[tuple[np.ndarray, np.ndarray]]:
    """(prediction, truth) with a few regions each, a void border in the truth, and a shifted prediction."""
    rng = np.random.default_rng(seed)
    yy, xx = np.mgrid[:HEIGHT, :WIDTH]
    pairs = []
    for _ in range(count):
        true = np.zeros((HEIGHT, WIDTH), dtype)
        void = np.zeros((HEIGHT, WIDTH), bool)
        for _ in range(3):
            cy, cx, ry, rx = (
                rng.integers(60, 300),
                rng.integers(60, 440),
                rng.integers(30, 120),
                rng.integers(30, 160),
            )
            wave = 1 + 0.1 * np.sin((xx + yy) / 7)
            radius = ((yy - cy) / ry) ** 2 + ((xx - cx) / rx) ** 2
            true[radius < wave] = rng.integers(1, ids)
            void |= np.abs(radius - wave) < 0.06
        pred = np.roll(true, rng.integers(-6, 7, 2), (0, 1))
        true[void] = np.iinfo(dtype).max
        pairs.append((pred, true))
    return pairs


def by_bincount(pairs: list[tuple[np.ndarray, np.ndarray]], classes: int) -> np.ndarray:
    """The usual numpy way."""
    counts = np.zeros((classes, classes), np.int64)
    for pred, true in pairs:
        keep = true < classes
        flat = pred[keep].astype(np.int64) * classes + true[keep]
        counts += np.bincount(flat, minlength=classes * classes).reshape(classes, classes)
    return counts


def by_torchmetrics(pairs: list[tuple[torch.Tensor, torch.Tensor]], classes: int) -> np.ndarray:
    """The usual library's way, tensors converted beforehand."""
    counts = torch.zeros(classes, classes, dtype=torch.int64)
    for pred, true in pairs:
        counts += multiclass_confusion_matrix(pred, true, classes, ignore_index=255)
    return counts.T.numpy()


def ours(pairs: list[tuple[np.ndarray, np.ndarray]], classes: int) -> np.ndarray:
    """Ours."""
    matrix = ConfusionMatrix(classes, classes)
    for pred, true in pairs:
        matrix.update(pred, true)
    return matrix.counts


def rows() -> list[Row]:
    """One thread each; the limit is the time to read both masks at the memory's speed, 32 GB/s."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return _rows()
    finally:
        torch.set_num_threads(threads)


def _rows() -> list[Row]:
    out = []
    pairs = masks(IMAGES, CLASSES, np.uint8)
    tensors = [(torch.from_numpy(p).long(), torch.from_numpy(t).long()) for p, t in pairs]
    limit = sum(p.nbytes + t.nbytes for p, t in pairs) / 32e9
    results = [ours(pairs, CLASSES), by_bincount(pairs, CLASSES), by_torchmetrics(tensors, CLASSES)]
    equal = "counts equal" if all(np.array_equal(results[0], r) for r in results) else "COUNTS DIFFER"
    mine, bincount, library = side_by_side(
        lambda: ours(pairs, CLASSES),
        lambda: by_bincount(pairs, CLASSES),
        lambda: by_torchmetrics(tensors, CLASSES),
        repeats=5,
    )
    path = f"confusion, {IMAGES} masks of {WIDTH}x{HEIGHT}, {CLASSES} classes"
    out.append(Row(path, mine, "torchmetrics", library, 20.0, limit, equal))
    out.append(Row(path, mine, "np.bincount", bincount, 4.0, limit, equal))

    rng = np.random.default_rng(1)
    noise = [tuple(rng.integers(0, CLASSES, (2, HEIGHT, WIDTH)).astype(np.uint8)) for _ in range(IMAGES)]
    same = "counts equal" if np.array_equal(ours(noise, CLASSES), by_bincount(noise, CLASSES)) else "COUNTS DIFFER"
    mine, bincount = side_by_side(lambda: ours(noise, CLASSES), lambda: by_bincount(noise, CLASSES))
    out.append(Row("confusion, the same size, pure noise", mine, "np.bincount", bincount, 2.0, limit, same))

    wide = masks(IMAGES, 920, np.uint16, seed=2)
    same = "counts equal" if np.array_equal(ours(wide, 920), by_bincount(wide, 920)) else "COUNTS DIFFER"
    mine, bincount = side_by_side(lambda: ours(wide, 920), lambda: by_bincount(wide, 920), repeats=3)
    out.append(
        Row(
            "confusion, the same size, 920 classes in 16 bit",
            mine,
            "np.bincount",
            bincount,
            4.0,
            2 * limit,
            same,
        )
    )

    few = wide[:4]

    def benchmark() -> None:
        evaluator = LussEvaluator(919, LussMatching.identity(919))
        for pred, true in few:
            evaluator.update(pred, true)

    mine, slow = side_by_side(benchmark, lambda: [_erode_each_label(x) for pair in few for x in pair], repeats=3)
    out.append(Row("ImageNet-S table, 4 images, 919 classes", mine, "scipy erosions alone", slow, 4.0))
    return out


def _erode_each_label(labels: np.ndarray) -> None:
    from scipy import ndimage

    for v in np.unique(labels):
        ndimage.binary_erosion(np.pad(labels == v, 1), np.ones((3, 3)), iterations=19, border_value=1)


if __name__ == "__main__":
    for r in rows():
        print(f"{r.path:50s} {r.ours_s * 1e3:8.2f} ms, {r.other} {r.ratio:6.1f}x (asked {r.asked}), {r.agrees}")
