"""Matching against all permutations."""

from __future__ import annotations

from itertools import permutations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.optimize import linear_sum_assignment

from maskwright.ops.matching import (
    hungarian,
    hungarian_iou,
    iou_matrix,
    majority,
    majority_iou,
    one_to_one,
    precision,
    tied,
)

tables = st.tuples(st.integers(1, 5), st.integers(1, 5), st.integers(0, 9)).flatmap(
    lambda t: arrays(np.int64, t[:2], elements=st.integers(0, t[2]))
)


def brute_force(scores: np.ndarray) -> np.ndarray:
    """Of the matchings with the largest sum the first, clusters in order, unmatched last."""
    k, c = scores.shape
    size = max(k, c)
    padded = np.zeros((size, size), scores.dtype)
    padded[:k, :c] = scores
    found = {}
    for columns in permutations(range(size)):
        key = tuple(min(j, c) for j in columns[:k])
        found[key] = int(padded[np.arange(size), columns].sum())
    most = max(found.values())
    best = min(key for key, value in found.items() if value == most)
    return np.array([j if j < c else -1 for j in best])


@settings(max_examples=150, deadline=None)
@given(counts=tables)
def test_hungarian_equals_all_permutations(counts: np.ndarray):
    assert np.array_equal(hungarian(counts), brute_force(counts))


@settings(max_examples=150, deadline=None)
@given(counts=tables)
def test_tied_ids_equal_all_permutations(counts: np.ndarray):
    """An id is tied where two matchings of the largest sum give it different classes, no class being one of them."""
    k, c = counts.shape
    size = max(k, c)
    padded = np.zeros((size, size), counts.dtype)
    padded[:k, :c] = counts
    found = {}
    for columns in permutations(range(size)):
        found[tuple(min(j, c) for j in columns[:k])] = int(padded[np.arange(size), columns].sum())
    best = [key for key, value in found.items() if value == max(found.values())]
    assert tied(counts).tolist() == [len({key[i] for key in best}) > 1 for i in range(k)]


@settings(max_examples=60, deadline=None)
@given(counts=tables)
def test_hungarian_iou_equals_all_permutations(counts: np.ndarray):
    units = np.rint(iou_matrix(counts) * 2**40).astype(np.int64)
    assert np.array_equal(hungarian_iou(counts), brute_force(units))


@settings(max_examples=60, deadline=None)
@given(counts=tables)
def test_ratios_by_definition(counts: np.ndarray):
    iou = iou_matrix(counts)
    for k, c in np.ndindex(counts.shape):
        union = counts[k].sum() + counts[:, c].sum() - counts[k, c]
        assert iou[k, c] == pytest.approx(counts[k, c] / union if union else 0)


@settings(max_examples=60, deadline=None)
@given(counts=tables)
def test_many_to_one_takes_the_best_class(counts: np.ndarray):
    parts = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    for found, values in ((majority(counts), counts), (precision(counts), parts),
                          (majority_iou(counts), iou_matrix(counts))):  # fmt: skip
        for k, c in enumerate(found):
            if counts[k].sum() == 0:
                assert c == -1
            else:
                assert c == np.flatnonzero(values[k] == values[k].max())[0]


def test_counts_and_iou_differ():
    counts = np.array([[60, 50], [50, 10]])
    assert hungarian(counts).tolist() == [1, 0]
    counts = np.array([[100, 40], [62, 0]])
    assert hungarian(counts).tolist() == [1, 0] and hungarian_iou(np.array([[100, 40], [22, 0]])).tolist() == [0, 1]
    # the large class draws the large cluster by counts, not by IoU
    assert majority(np.array([[50, 40], [900, 0]])).tolist() == [0, 0]
    assert majority_iou(np.array([[50, 40], [900, 0]])).tolist() == [1, 0]


def test_a_permuted_identity_is_undone():
    order = np.random.default_rng(0).permutation(27)
    counts = np.zeros((27, 27), np.int64)
    counts[np.arange(27), order] = np.arange(1, 28)
    for match in (hungarian, hungarian_iou, majority, majority_iou, precision):
        assert np.array_equal(match(counts), order)


def test_more_clusters_than_classes_and_fewer():
    counts = np.array([[5, 0], [0, 4], [3, 3]])
    assert hungarian(counts).tolist() == [0, 1, -1]
    assert hungarian(counts, background=0).tolist() == [0, 1, 0]
    assert hungarian(counts.T).tolist() == [0, 1]
    assert majority(np.array([[0, 0], [0, 1]]), background=1).tolist() == [1, 1]


def test_one_cluster_a_pixel_is_perfect_many_to_one():
    true = np.random.default_rng(0).integers(0, 5, 60)
    counts = np.zeros((60, 5), np.int64)
    counts[np.arange(60), true] = 1
    assert np.array_equal(precision(counts), true) and np.array_equal(majority(counts), true)


@pytest.mark.parametrize("size", [(27, 27), (300, 300), (150, 40), (40, 150)])
def test_large_tables_reach_the_optimum(size: tuple[int, int]):
    rng = np.random.default_rng(1)
    counts = rng.integers(0, 10**9, size)
    for table in (counts, counts // 10**8, np.where(rng.random(size) < 0.02, counts, 0)):
        found = hungarian(table)
        kept = np.flatnonzero(found >= 0)
        assert len(np.unique(found[kept])) == len(kept) == min(size)
        rows, columns = linear_sum_assignment(table, maximize=True)
        assert table[kept, found[kept]].sum() == table[rows, columns].sum()


def test_ties_do_not_depend_on_the_order_of_classes_without_pixels():
    counts = np.zeros((919, 919), np.int64)
    assert np.array_equal(hungarian(counts), np.arange(919))
    counts[0, 918] = 1
    expected = np.concatenate([[918], np.arange(918)])
    assert np.array_equal(hungarian(counts), expected)
    assert np.array_equal(one_to_one(np.ones((4, 6), np.int64)), np.arange(4))


@pytest.mark.parametrize(
    "counts",
    [np.zeros(3, int), np.zeros((0, 3), int), -np.ones((2, 2), int), np.full((2, 2), 0.5), np.full((2, 2), np.nan)],
)
def test_bad_counts(counts: np.ndarray):
    for match in (hungarian, hungarian_iou, majority, majority_iou, precision):
        with pytest.raises(ValueError, match="counts"):
            match(counts)


def test_bad_background():
    for match in (hungarian, majority):
        with pytest.raises(ValueError, match="background"):
            match(np.eye(3, dtype=int), background=3)
