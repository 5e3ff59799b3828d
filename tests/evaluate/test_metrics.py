"""Figures against closed forms and scikit-learn; boundaries against repeated erosion."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage
from sklearn.metrics import f1_score, jaccard_score, precision_score, recall_score

from maskwright.errors import MaskwrightError
from maskwright.evaluate import metrics
from maskwright.evaluate.confusion import ConfusionMatrix


def counted(pred: np.ndarray, true: np.ndarray, c: int) -> np.ndarray:
    matrix = ConfusionMatrix(c, c)
    matrix.update(pred, true)
    return matrix.counts


def test_against_sklearn() -> None:
    rng = np.random.default_rng(0)
    true = rng.integers(0, 6, 5000)
    pred = np.where(rng.random(5000) < 0.6, true, rng.integers(0, 6, 5000))
    counts = counted(pred, true, 6)
    assert np.allclose(metrics.iou(counts), jaccard_score(true, pred, average=None))
    assert np.allclose(metrics.precision(counts), precision_score(true, pred, average=None))
    assert np.allclose(metrics.recall(counts), recall_score(true, pred, average=None))
    assert np.allclose(metrics.dice(counts), f1_score(true, pred, average=None))
    assert np.isclose(metrics.frequency_weighted_iou(counts), jaccard_score(true, pred, average="weighted"))
    assert np.isclose(metrics.pixel_accuracy(counts), (true == pred).mean())


def test_absent_classes_and_extra_rows() -> None:
    counts = np.array([[4, 0, 0], [0, 0, 0], [0, 0, 0], [2, 0, 0]])  # three classes and a row of misses
    assert metrics.iou(counts)[0] == pytest.approx(4 / 6)
    assert np.isnan(metrics.iou(counts)[1:]).all()
    assert metrics.miou(counts) == pytest.approx(4 / 6)
    assert metrics.miou(counts, over="all") == pytest.approx(4 / 18)
    assert metrics.mean_accuracy(counts) == pytest.approx(4 / 6)
    assert metrics.precision(counts)[0] == 1
    few_rows = np.array([[3, 1]])
    assert metrics.iou(few_rows).tolist() == [0.75, 0.0]
    with pytest.raises(MaskwrightError, match="present"):
        metrics.miou(counts, over="presnt")
    with pytest.raises(ValueError):
        metrics.iou([1, 2])
    assert np.isnan(metrics.miou(np.zeros((2, 2))))


def test_false_rates() -> None:
    counts = np.array([[10, 2, 0], [4, 6, 3], [0, 0, 0]])
    paper = metrics.false_rates(counts)
    assert paper.false_negative[1] == pytest.approx(2 / 6) and paper.false_positive[1] == pytest.approx(7 / 6)
    assert np.isinf(paper.false_negative[2]) and paper.left_out == 1
    assert paper.mfn == pytest.approx(2 / 6) and paper.mfp == pytest.approx(7 / 6)
    code = metrics.false_rates(counts, "code")
    assert code.false_negative[1] == pytest.approx(2 / 15) and code.false_positive[1] == pytest.approx(7 / 15)
    assert code.mfn == pytest.approx((2 / 15 + 1) / 2)
    assert np.allclose(code.false_negative + code.false_positive + metrics.iou(counts), 1)


def test_apply_mapping() -> None:
    counts = np.array([[1, 2], [3, 4], [5, 6]])
    assert metrics.apply_mapping(counts, [1, -1, 1]).tolist() == [[0, 0], [6, 8], [3, 4]]
    with pytest.raises(ValueError):
        metrics.apply_mapping(counts, [0, 1, 2])


def eroded_boundary(labels: np.ndarray, d: int) -> np.ndarray:
    """By definition: each label's mask minus its d erosions (3x3) after a zero padding of one pixel."""
    out = np.zeros(labels.shape, bool)
    for v in np.unique(labels):
        mask = np.pad(labels == v, 1)
        inner = ndimage.binary_erosion(mask, np.ones((3, 3)), iterations=d, border_value=1)
        out |= (mask & ~inner)[1:-1, 1:-1]
    return out


@given(st.integers(1, 40), st.integers(1, 40), st.integers(1, 6), st.integers(1, 12), st.integers(0, 999))
@settings(max_examples=60, deadline=None)
def test_boundary_is_repeated_erosion(h: int, w: int, d: int, block: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 3, (h // block + 1, w // block + 1)).astype(np.uint16)
    labels = np.kron(coarse, np.ones((block, block), np.uint16))[:h, :w]
    assert np.array_equal(metrics.boundary_map(labels, d), eroded_boundary(labels, d))


def test_boundary_distance() -> None:
    assert metrics.boundary_distance(3, 4, 0.03) == 1
    assert metrics.boundary_distance(300, 400, 0.03) == 15
    assert metrics.boundary_distance(300, 400) == 10
