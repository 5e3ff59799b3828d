"""Random walks against dense matrix powers, and local affinities against loops over pairs."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.sparse as sp
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from maskwright.ops.graphs.walk import (
    affinity_from_edges,
    local_feature_affinity,
    pair_offsets,
    random_walk,
    straight_path,
    transition_matrix,
)


def test_number_of_offsets():
    assert len(pair_offsets(5)) == 34
    offsets = {tuple(o) for o in pair_offsets(6).tolist()}
    assert not offsets & {(-dy, -dx) for dy, dx in offsets}
    inside = {(y, x) for y in range(-5, 6) for x in range(-5, 6) if 0 < y * y + x * x < 36}
    assert offsets | {(-dy, -dx) for dy, dx in offsets} == inside
    with pytest.raises(ValueError, match="at least 2"):
        pair_offsets(1)


def test_straight_paths():
    assert straight_path(0, 3).tolist() == [[0, 0], [0, 1], [0, 2], [0, 3]]
    assert straight_path(1, 1).tolist() == [[0, 0], [0, 1], [1, 0], [1, 1]]
    assert [0, 0] in straight_path(3, -2).tolist()
    assert [3, -2] in straight_path(3, -2).tolist()


def test_edge_affinity_equals_a_loop_over_pairs():
    edge = np.random.default_rng(0).random((6, 7)).astype(np.float32)
    expected = np.eye(42, dtype=np.float32)
    for i in range(42):
        for j in range(42):
            (yi, xi), (yj, xj) = divmod(i, 7), divmod(j, 7)
            if 0 < (yj - yi) ** 2 + (xj - xi) ** 2 < 16:
                # From the upper of the two, as the path of a pair does not depend on its order.
                path = straight_path(yj - yi, xj - xi)
                expected[i, j] = 1 - max(edge[yi + y, xi + x] for y, x in path)
    np.testing.assert_array_equal(affinity_from_edges(edge, 4).toarray(), expected)


def test_feature_affinity_equals_a_loop_over_pairs():
    f = np.random.default_rng(1).normal(size=(3, 5, 4)).astype(np.float32)
    flat = f.reshape(3, -1)
    expected = np.eye(20)
    for i in range(20):
        for j in range(20):
            if 0 < (i // 4 - j // 4) ** 2 + (i % 4 - j % 4) ** 2 < 9:
                expected[i, j] = np.exp(-np.abs(flat[:, i] - flat[:, j]).mean())
    np.testing.assert_allclose(local_feature_affinity(torch.from_numpy(f), 3).toarray(), expected, rtol=1e-5)


def test_without_edges_all_affinities_are_one_and_the_walk_smooths():
    a = affinity_from_edges(np.zeros((8, 9)), 3)
    assert (a.data == 1).all()
    x = np.random.default_rng(0).random((2, 72)).astype(np.float32)
    assert random_walk(x, a, 8, 16).std() < 0.2 * x.std()


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 1000), st.floats(0.5, 12), st.integers(0, 20))
def test_walk_equals_the_dense_power(seed: int, beta: float, steps: int):
    rng = np.random.default_rng(seed)
    a = affinity_from_edges(rng.random((5, 6)), 3)
    x = rng.random((3, 30)).astype(np.float32)
    power = a.toarray().astype(np.float64) ** beta * (a.toarray() > 0)
    t = power / power.sum(0)
    expected = x @ np.linalg.matrix_power(t, steps)
    np.testing.assert_allclose(random_walk(x, a, beta, steps), expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("beta", [8, 20])
def test_long_walk_is_exact(beta: int):
    """The published 256 steps against float64: a column that float32 summed is off by 2e-6, and the walk by 5e-4."""
    rng = np.random.default_rng(0)
    a = affinity_from_edges(rng.random((30, 40)) ** 2, 5)
    x = rng.random((2, 1200)).astype(np.float32)
    dense = a.toarray().astype(np.float64)
    power = np.where(dense > 0, dense, 0) ** beta
    expected = x @ np.linalg.matrix_power(power / power.sum(0), 256)
    np.testing.assert_allclose(random_walk(x, a, beta, 256), expected, rtol=2e-6, atol=1e-7)


def test_columns_sum_to_one_and_are_nonnegative():
    t = transition_matrix(affinity_from_edges(np.random.default_rng(3).random((30, 40)) ** 2, 5), 10)
    np.testing.assert_allclose(np.bincount(t.indices, t.data, 1200), 1, atol=1e-12)
    assert t.data.min() >= 0
    empty = transition_matrix(sp.csr_matrix((3, 3)), 2)
    np.testing.assert_array_equal(empty.toarray(), np.eye(3))


@pytest.mark.parametrize("wall", ["straight", "diagonal"])
def test_a_wall_blocks_exactly(wall: str):
    h, w = 12, 12
    edge = np.zeros((h, w), np.float32)
    yy, xx = np.mgrid[:h, :w]
    on = xx == 6 if wall == "straight" else xx == yy
    left = xx < 6 if wall == "straight" else xx < yy
    edge[on] = 1
    x = np.zeros((1, h, w), np.float32)
    x[0][left] = 1
    out = random_walk(x, affinity_from_edges(edge, 5), 10, 256)
    assert out.shape == (1, h, w)
    assert (out[0][~left] == 0).all()
    np.testing.assert_allclose(out[0][left], 1, atol=1e-4)


def test_large_beta_is_the_identity():
    edge = np.random.default_rng(0).uniform(0.3, 0.9, (6, 6))
    x = np.random.default_rng(1).random((2, 36)).astype(np.float32)
    np.testing.assert_allclose(random_walk(x, affinity_from_edges(edge), 400, 8), x, atol=1e-6)


def test_affinities_are_symmetric():
    for a in (
        affinity_from_edges(np.random.default_rng(0).random((7, 8))),
        local_feature_affinity(np.random.default_rng(0).random((4, 7, 8))),
    ):
        assert abs(a - a.T).nnz == 0
        assert (a.diagonal() == 1).all()
        assert a.data.max() <= 1


def test_background_row_comes_first():
    x = torch.rand(3, 30, generator=torch.Generator().manual_seed(0))
    a = affinity_from_edges(torch.rand(5, 6, generator=torch.Generator().manual_seed(1)), 3)
    out = random_walk(x, a, 8, 0, alpha=4.0)
    assert isinstance(out, torch.Tensor)
    torch.testing.assert_close(out, torch.cat([(1 - x.amax(0, keepdim=True)) ** 4, x]))
    walked = random_walk(x, a, 8, 5, alpha=4.0)
    torch.testing.assert_close(walked, random_walk(out, a, 8, 5))


def test_image_smaller_than_the_radius():
    assert affinity_from_edges(np.zeros((1, 3)), 5).toarray().tolist() == np.ones((3, 3)).tolist()
    assert affinity_from_edges(np.zeros((3, 1)), 5).nnz == 9


def test_refuses():
    a = affinity_from_edges(np.zeros((3, 3)))
    with pytest.raises(ValueError, match="probabilities"):
        affinity_from_edges(np.full((3, 3), 2.0))
    with pytest.raises(ValueError, match="one row a pixel"):
        random_walk(np.zeros((1, 8)), a)
    with pytest.raises(ValueError, match="background row"):
        random_walk(np.full((1, 9), 2.0), a, alpha=1.0)
    with pytest.raises(ValueError, match="negative"):
        transition_matrix(sp.csr_matrix(-np.eye(3)), 1)
    with pytest.raises(ValueError, match="steps"):
        random_walk(np.zeros((1, 9)), a, steps=-1)
