"""Pair affinities against loops over pairs and against the graph of the walk, their gradients against finite
differences, losses against slow versions."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from maskwright.ops.graphs.pair_affinity import (
    PairLabels,
    affinity_loss,
    boundary_affinity,
    feature_affinity,
    pair_labels,
)
from maskwright.ops.graphs.walk import affinity_from_edges, local_feature_affinity, pair_offsets, straight_path


def pairs_of(h: int, w: int, radius: int):
    """(p, first pixel, second pixel) of all pairs inside the grid."""
    for p, (dy, dx) in enumerate(pair_offsets(radius).tolist()):
        for i in range(h):
            for j in range(w):
                if 0 <= i + dy < h and 0 <= j + dx < w:
                    yield p, (i, j), (i + dy, j + dx)


def edges(seed: int, b: int, h: int, w: int) -> torch.Tensor:
    """Boundaries without ties."""
    values = torch.randperm(b * h * w, generator=torch.Generator().manual_seed(seed)).double()
    return ((values + 1) / (b * h * w + 1)).reshape(b, h, w)


@settings(max_examples=8)
@given(st.integers(0, 99), st.integers(1, 7), st.integers(1, 7), st.integers(2, 5))
def test_values_are_those_of_the_walk_s_graph(seed, h, w, radius):
    f = torch.randn(2, 3, h, w, generator=torch.Generator().manual_seed(seed))
    edge = edges(seed, 2, h, w).float()
    by_features, by_edges = feature_affinity(f, radius), boundary_affinity(edge, radius)
    for b in range(2):
        graph, walls = local_feature_affinity(f[b], radius), affinity_from_edges(edge[b], radius).toarray()
        for p, (i, j), (k, m) in pairs_of(h, w, radius):
            one, two = i * w + j, k * w + m
            assert float(by_features[b, p, i, j]) == pytest.approx(float(graph[one, two]), rel=1e-5)
            assert float(by_edges[b, p, i, j]) == pytest.approx(float(walls[one, two]), abs=1e-6)


def test_gradients_are_those_of_the_plain_graph():
    f = torch.randn(2, 3, 5, 6, dtype=torch.float32, requires_grad=True)
    weight = torch.randn(2, 34, 5, 6)
    inside = torch.zeros(34, 5, 6)
    plain = f.new_zeros(())
    for p, (i, j), (k, m) in pairs_of(5, 6, 5):
        inside[p, i, j] = 1
        a = torch.exp(-(f[:, :, i, j] - f[:, :, k, m]).abs().mean(1))
        plain = plain + (weight[:, p, i, j] * a).sum()
    ours = (feature_affinity(f, 5) * weight * inside).sum()
    torch.testing.assert_close(ours, plain, rtol=1e-4, atol=1e-4)
    expected = torch.autograd.grad(plain, f)[0]
    torch.testing.assert_close(torch.autograd.grad(ours, f)[0], expected, rtol=1e-4, atol=1e-5)


def test_boundary_gradient_goes_to_the_strongest_cell_of_the_path():
    edge = edges(3, 2, 6, 5).float().requires_grad_(True)
    weight = torch.randn(2, len(pair_offsets(4)), 6, 5)
    plain = edge.new_zeros(())
    inside = torch.zeros(weight.shape[1:])
    for p, (i, j), (k, m) in pairs_of(6, 5, 4):
        inside[p, i, j] = 1
        path = [edge[:, i + y, j + x] for y, x in straight_path(k - i, m - j).tolist()]
        plain = plain + (weight[:, p, i, j] * (1 - torch.stack(path).amax(0))).sum()
    ours = (boundary_affinity(edge, 4) * weight * inside).sum()
    torch.testing.assert_close(ours, plain, rtol=1e-4, atol=1e-4)
    expected = torch.autograd.grad(plain, edge)[0]
    torch.testing.assert_close(torch.autograd.grad(ours, edge)[0], expected, rtol=1e-4, atol=1e-5)


def test_gradients_of_large_grids_do_not_hold_a_graph_of_offsets():
    edge = torch.rand(1, 40, 40, requires_grad=True)
    a = boundary_affinity(edge, 10)
    held = a.grad_fn.next_functions[0][0].saved_tensors  # type: ignore[union-attr]
    assert [t.dtype for t in held] == [torch.uint8], "one byte a pair, whatever the length of the path"


def test_pair_labels_against_a_loop():
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(0, 3, (2, 5, 6), generator=generator)
    valid = torch.rand(2, 5, 6, generator=generator) < 0.7
    got = pair_labels(ids, valid, 0, 4)
    expected = [torch.zeros_like(got.same) for _ in range(3)]
    for b in range(2):
        for p, one, two in pairs_of(5, 6, 4):
            if valid[(b, *one)] and valid[(b, *two)]:
                x, y = int(ids[(b, *one)]), int(ids[(b, *two)])
                expected[2 if x != y else (0 if x == 0 else 1)][(b, p, *one)] = True
    for mine, slow in zip(got, expected):
        assert torch.equal(mine, slow)
    assert not pair_labels(ids, torch.zeros_like(valid), 0, 4).different.any()
    none = pair_labels(ids, valid, None, 4)
    assert not none.background.any() and torch.equal(none.same, got.same | got.background)


def test_affinity_loss_against_a_slow_version():
    generator = torch.Generator().manual_seed(1)
    a = torch.rand(2, 34, 5, 6, generator=generator)
    pairs = pair_labels(torch.randint(0, 3, (2, 5, 6), generator=generator), torch.ones(2, 5, 6).bool(), 0, 5)
    means = []
    for chosen, sign in ((pairs.background, 1), (pairs.same, 1), (pairs.different, -1)):
        values = [-math.log((v if sign > 0 else 1 - v) + 1e-5) for v in a[chosen].double().tolist()]
        means.append(sum(values) / len(values))
    expected = means[0] / 4 + means[1] / 4 + means[2] / 2
    assert float(affinity_loss(a, pairs)) == pytest.approx(expected, rel=1e-4)


def test_affinity_loss_without_pairs_is_zero_and_has_a_gradient():
    a = torch.full((1, 34, 4, 4), 0.5, requires_grad=True)
    nothing = torch.zeros(1, 34, 4, 4, dtype=torch.bool)
    loss = affinity_loss(a, PairLabels(nothing, nothing, nothing))
    loss.backward()
    assert float(loss.detach()) == 0 and not a.grad.any()


def test_perfect_affinities_cost_nothing():
    ids = torch.tensor([[[0, 0, 1, 1]] * 4])
    pairs = pair_labels(ids, torch.ones_like(ids).bool(), 0, 3)
    perfect = 1 - pairs.different.float()
    assert abs(float(affinity_loss(perfect, pairs))) < 1e-4 < float(affinity_loss(1 - perfect, pairs))


def test_refuses():
    with pytest.raises(ValueError, match="features"):
        feature_affinity(torch.zeros(3, 4, 5))
    with pytest.raises(ValueError, match="boundaries"):
        boundary_affinity(torch.zeros(1, 1, 4, 5))
    with pytest.raises(ValueError, match="at least 2"):
        feature_affinity(torch.zeros(1, 3, 4, 5), 1)
    with pytest.raises(ValueError, match="ids"):
        pair_labels(torch.zeros(1, 3, 4), torch.zeros(1, 3, 5), 0, 3)
