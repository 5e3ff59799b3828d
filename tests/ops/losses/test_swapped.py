"""Swapped prediction against loops."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from maskwright.ops.clustering.sinkhorn import sinkhorn
from maskwright.ops.losses.swapped import soft_cross_entropy, supervise, swapped_loss


def slow(scores, q, tau):
    total = 0.0
    for i, target in enumerate(q):
        over_views = 0.0
        for v, s in enumerate(scores):
            if v == i:
                continue
            rows = 0.0
            for b in range(len(s)):
                z = [math.exp(float(x) / tau) for x in s[b]]
                rows -= sum(float(target[b, k]) * math.log(z[k] / sum(z)) for k in range(s.shape[1]))
            over_views += rows / len(s)
        total += over_views / (len(scores) - 1)
    return total / len(q)


@settings(max_examples=8)
@given(st.integers(0, 10_000), st.integers(2, 5))
def test_swapped_loss_is_the_loop(seed, views):
    g = torch.Generator().manual_seed(seed)
    scores = [torch.rand(3, 4, generator=g, dtype=torch.float64) * 2 - 1 for _ in range(views)]
    q = [torch.rand(3, 4, generator=g, dtype=torch.float64).softmax(1) for _ in range(2)]
    assert float(swapped_loss(scores, q, 0.2)) == pytest.approx(slow(scores, q, 0.2), rel=1e-5)
    assert float(supervise(scores[:2], q, 0.2)) == pytest.approx(slow(scores[:2], q, 0.2), rel=1e-5)


def test_assignments_get_no_gradient_and_rows_sum_to_one():
    scores = torch.randn(6, 5, requires_grad=True)
    q = sinkhorn(scores, 0.05, 3)
    assert not q.requires_grad
    torch.testing.assert_close(q.sum(1), torch.ones(6))
    target = torch.rand(6, 5, requires_grad=True)
    soft_cross_entropy(scores, target).backward()
    assert target.grad is None and scores.grad is not None


def test_constant_scores_are_assigned_evenly_and_cost_log_k():
    q = sinkhorn(torch.zeros(8, 5), 0.05, 3)
    torch.testing.assert_close(q, torch.full((8, 5), 0.2))
    assert float(soft_cross_entropy(torch.zeros(8, 5), q)) == pytest.approx(math.log(5), rel=1e-6)


def test_arguments_that_do_not_fit_are_refused():
    s, q = torch.zeros(2, 3), torch.full((2, 3), 1 / 3)
    with pytest.raises(ValueError, match="views"):
        swapped_loss([s], [q])
    with pytest.raises(ValueError, match="two of each"):
        supervise([s, s, s], [q, q])
    with pytest.raises(ValueError, match="temperature"):
        swapped_loss([s, s], [q], 0)
    with pytest.raises(ValueError, match="same"):
        soft_cross_entropy(s, q[:, :2])
