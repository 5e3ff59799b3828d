"""Counts against scikit-learn and plain numpy, over types, sizes, ignores and failures."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import confusion_matrix

from maskwright.errors import MaskwrightError
from maskwright.evaluate.confusion import ConfusionMatrix


def blocky(rng: np.random.Generator, size: tuple[int, int], ids: int, block: int = 7) -> np.ndarray:
    """Piecewise constant ids with some noise, so that both paths of the kernel run."""
    h, w = size
    coarse = rng.integers(0, ids, (h // block + 1, w // block + 1))
    out = np.kron(coarse, np.ones((block, block), int))[:h, :w]
    noisy = rng.random(size) < 0.05
    return np.where(noisy, rng.integers(0, ids, size), out)


@pytest.mark.parametrize(
    ("k", "c", "dtype"), [(5, 3, np.uint8), (21, 21, np.uint8), (500, 21, np.uint16), (920, 920, np.uint16)]
)
def test_equals_sklearn(k: int, c: int, dtype: type) -> None:
    rng = np.random.default_rng(k)
    pred, true = blocky(rng, (123, 157), k).astype(dtype), blocky(rng, (123, 157), c, 11).astype(dtype)
    matrix = ConfusionMatrix(k, c)
    matrix.update(pred, true)
    labels = np.arange(max(k, c))
    expected = confusion_matrix(true.ravel(), pred.ravel(), labels=labels).T[:k, :c]
    assert matrix.counts.dtype == np.int64
    assert np.array_equal(matrix.counts, expected)


@given(
    st.integers(0, 200),
    st.integers(1, 300),
    st.integers(1, 300),
    st.sampled_from(["u1", "u2", "i4", "i8"]),
    st.integers(0, 99),
)
@settings(max_examples=40, deadline=None)
def test_equals_bincount(n: int, k: int, c: int, kind: str, seed: int) -> None:
    rng = np.random.default_rng(seed)
    if kind == "u1":
        k, c = min(k, 256), min(c, 255)
    pred, true = rng.integers(0, k, n).astype(kind), rng.integers(0, c, n).astype(kind)
    pred, true = np.repeat(pred, rng.integers(1, 20)), np.repeat(true, 1)
    pred = pred[:n]
    matrix = ConfusionMatrix(k, c, ignore=70_000)
    matrix.update(pred, true)
    expected = np.bincount(pred.astype(int) * c + true, minlength=k * c).reshape(k, c)
    assert np.array_equal(matrix.counts, expected)


def test_ignore_by_type_and_explicit() -> None:
    for dtype, ignored in ((np.uint8, 255), (np.uint16, 65535)):
        matrix = ConfusionMatrix(2, 2)
        matrix.update(np.array([0, 1, 1, 0], dtype), np.array([0, ignored, 1, ignored], dtype))
        assert matrix.counts.tolist() == [[1, 0], [0, 1]]
        assert matrix.ignored == 2
    matrix = ConfusionMatrix(300, 300, ignore=1000)
    matrix.update(np.array([255, 299], np.uint16), np.array([255, 1000], np.uint16))
    assert matrix.counts[255, 255] == 1 and matrix.counts.sum() == 1
    matrix = ConfusionMatrix(2, 2, ignore=-1)
    matrix.update(np.array([0, 1]), np.array([-1, 1]))
    assert matrix.counts.tolist() == [[0, 0], [0, 1]]
    matrix = ConfusionMatrix(2, 2, ignore=(254, 255))
    matrix.update(np.array([0, 1, 1], np.uint8), np.array([254, 255, 0], np.uint8))
    assert matrix.counts.tolist() == [[0, 0], [1, 0]]


def test_mixed_types_keep_the_ignore_of_the_truth() -> None:
    matrix = ConfusionMatrix(400, 3)
    matrix.update(np.array([399, 1, 2], np.uint16), np.array([0, 255, 2], np.uint8))
    assert matrix.counts[399, 0] == 1 and matrix.counts[2, 2] == 1 and matrix.counts.sum() == 2


def test_out_of_range_raises_and_leaves_the_counts() -> None:
    rng = np.random.default_rng(0)
    matrix = ConfusionMatrix(3, 3)
    good = rng.integers(0, 3, (40, 40)).astype(np.uint8)
    matrix.update(good, good)
    before = matrix.counts
    bad = good.copy()
    bad[7, 9] = 5
    with pytest.raises(MaskwrightError, match="predicted id 5"):
        matrix.update(bad, good)
    with pytest.raises(MaskwrightError, match="true id 5"):
        matrix.update(good, bad)
    with pytest.raises(MaskwrightError, match="shape"):
        matrix.update(good[:5], good)
    with pytest.raises(MaskwrightError):
        matrix.update(good.astype(np.int64) - 1, good)
    with pytest.raises(TypeError):
        matrix.update(good.astype(np.float32), good)
    assert np.array_equal(matrix.counts, before)
    true = good.copy()
    true[7, 9] = 255  # an ignored pixel's prediction does not matter
    matrix.update(bad, true)
    assert matrix.counts.sum() == before.sum() + good.size - 1


def test_extra_row_collects() -> None:
    matrix = ConfusionMatrix(2, 2, extra=True)
    matrix.update(np.array([0, 1, 9, 255], np.uint8), np.array([0, 1, 1, 0], np.uint8))
    assert matrix.counts.tolist() == [[1, 0], [0, 1], [1, 1]]
    grown = matrix.grown(4)
    assert grown.counts.tolist() == [[1, 0], [0, 1], [0, 0], [0, 0], [1, 1]]


def test_merge_dict_and_views() -> None:
    rng = np.random.default_rng(1)
    parts = [ConfusionMatrix(9, 4) for _ in range(2)]
    whole = ConfusionMatrix(9, 4)
    for part in parts:
        pred, true = rng.integers(0, 9, (31, 50)), rng.integers(0, 4, (31, 50))
        pred, true = pred.astype(np.uint8)[:, ::2], true.astype(np.uint8)[:, ::2]  # not contiguous
        true[0] = 255
        part.update(pred, true)
        whole.update(pred, true)
    total = parts[0] + parts[1]
    assert np.array_equal(total.counts, whole.counts) and total.ignored == whole.ignored == 50
    again = ConfusionMatrix.from_dict(whole.to_dict())
    assert np.array_equal(again.counts, whole.counts) and again.ignored == 50
    offset = np.zeros(65, np.uint8)[1:]  # starts off the word boundary
    whole.update(offset, offset)
    assert whole.counts.sum() == total.counts.sum() + 64
    with pytest.raises(ValueError, match="add"):
        total += ConfusionMatrix(3, 4)
    bools = ConfusionMatrix(2, 2)
    bools.update(np.array([True, False]), np.array([True, True]))
    assert bools.counts.tolist() == [[0, 1], [0, 1]]


def test_a_table_that_no_memory_holds() -> None:
    with pytest.raises(MaskwrightError, match=r"60000 predicted ids by 60000 classes needs 26 GiB"):
        ConfusionMatrix(60_000, 60_000)
