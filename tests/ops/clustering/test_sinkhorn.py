"""Sinkhorn against SwAV's loop over whole matrices, in float64."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.ops.clustering.test_kmeans import together
from torch import Tensor

from maskwright.ops.clustering import sinkhorn as module
from maskwright.ops.clustering.sinkhorn import sinkhorn


def plain(
    scores: Tensor, eps: float, iterations: int, rows: Tensor | None = None, columns: Tensor | None = None
) -> Tensor:
    """Normalises the whole matrix again and again: columns to their shares, rows to their weights."""
    b, k = scores.shape
    rows = torch.ones(b).double() if rows is None else rows.double()
    columns = torch.ones(k).double() if columns is None else columns.double()
    rows, columns = rows / rows.sum(), columns / columns.sum()
    q = ((scores.double() - scores.max()) / eps).exp() * rows[:, None]
    for _ in range(iterations):
        q = q / q.sum(0, keepdim=True) * columns
        q = q / q.sum(1, keepdim=True) * rows[:, None]
    return q / q.sum(1, keepdim=True)


def cosines(b: int, k: int, seed: int = 0) -> Tensor:
    g = torch.Generator().manual_seed(seed)
    x, c = torch.randn(b, 8, generator=g), torch.randn(k, 8, generator=g)
    return torch.nn.functional.normalize(x, dim=1) @ torch.nn.functional.normalize(c, dim=1).T


@pytest.mark.parametrize("eps", [1.0, 0.05, 0.02, 0.004])
@pytest.mark.parametrize("iterations", [0, 1, 3, 20])
@pytest.mark.parametrize("weighted", [False, True])
def test_equals_normalising_the_matrix(eps: float, iterations: int, weighted: bool):
    s = cosines(300, 17)
    g = torch.Generator().manual_seed(1)
    marginals = (torch.rand(300, generator=g) + 0.01, torch.rand(17, generator=g) + 0.1) if weighted else (None, None)
    q = sinkhorn(s, eps, iterations, row_marginal=marginals[0], column_marginal=marginals[1])
    expected = plain(s, eps, iterations, *marginals)
    assert q.dtype == torch.float32
    torch.testing.assert_close(q.double(), expected, atol=3e-4 if eps < 0.01 else 2e-5, rtol=2e-3)


@pytest.mark.parametrize("weighted", [False, True])
def test_both_ways_agree(weighted: bool, monkeypatch: pytest.MonkeyPatch):
    s = cosines(500, 30)
    rows = torch.rand(500) if weighted else None
    fast = sinkhorn(s, row_marginal=rows)
    monkeypatch.setattr(module, "SAFE_RANGE", 0.0)
    torch.testing.assert_close(sinkhorn(s, row_marginal=rows), fast, atol=1e-5, rtol=1e-4)
    with pytest.raises(ValueError, match="log_domain=True"):
        sinkhorn(s, log_domain=False)


def test_rows_sum_to_one_and_columns_to_their_share():
    s = cosines(400, 20)
    q = sinkhorn(s, iterations=300)
    torch.testing.assert_close(q.sum(1), torch.ones(400), atol=1e-6, rtol=0)
    torch.testing.assert_close(q.sum(0), torch.full((20,), 20.0), atol=1e-2, rtol=0)
    shares = torch.arange(1.0, 21)
    q = sinkhorn(s, iterations=300, column_marginal=shares)
    torch.testing.assert_close(q.sum(0), 400 * shares / shares.sum(), atol=1e-2, rtol=1e-3)


def test_constant_scores_give_equal_parts():
    for value in (0.0, 1e6, -1e6):
        torch.testing.assert_close(sinkhorn(torch.full((7, 5), value)), torch.full((7, 5), 0.2))


@settings(max_examples=30, deadline=None)
@given(
    b=st.integers(1, 12), k=st.integers(1, 9), power=st.integers(-3, 30), seed=st.integers(0, 99),
    iterations=st.integers(0, 5), forbid=st.booleans(),
)  # fmt: skip
def test_always_finite(b: int, k: int, power: int, seed: int, iterations: int, forbid: bool):
    g = torch.Generator().manual_seed(seed)
    s = torch.randn(b, k, generator=g) * 10.0**power
    if forbid:
        s[torch.rand(b, k, generator=g) < 0.5] = -torch.inf
    q = sinkhorn(s, iterations=iterations)
    assert torch.isfinite(q).all() and (q >= 0).all()
    torch.testing.assert_close(q.sum(1), torch.ones(b), atol=1e-5, rtol=0)
    allowed_rows = (s > -torch.inf).any(1)
    assert (q[allowed_rows][s[allowed_rows] == -torch.inf] == 0).all() or not forbid


def test_forbidden_pairs_rows_and_columns():
    s = cosines(20, 4)
    s[:, 2] = -torch.inf
    s[5] = -torch.inf
    q = sinkhorn(s, iterations=50)
    assert (q[torch.arange(20) != 5, 2] == 0).all()
    torch.testing.assert_close(q[5], torch.full((4,), 0.25))


def test_unaffected_by_a_constant_and_by_order():
    s = cosines(100, 9)
    q = sinkhorn(s)
    torch.testing.assert_close(sinkhorn(s + 5), q, atol=1e-4, rtol=1e-3)
    order = torch.randperm(100, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(sinkhorn(s[order]), q[order], atol=1e-6, rtol=1e-4)


def test_rows_without_weight_do_not_count():
    s = cosines(100, 9)
    weight = (torch.arange(100) < 60).float()
    torch.testing.assert_close(sinkhorn(s, row_marginal=weight)[:60], sinkhorn(s[:60]), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("factor", [1.0, 50.0])
@pytest.mark.parametrize("cuts", [(40,), (0, 70)])
def test_shares_equal_one_process(factor: float, cuts: tuple[int, ...]):
    s = cosines(100, 9) * factor
    s[:40] += 0.3
    parts = together(list(s.tensor_split(list(cuts))), lambda p, at, reduce: sinkhorn(p, all_reduce=reduce))
    torch.testing.assert_close(torch.cat(parts), sinkhorn(s), atol=2e-4, rtol=1e-3)


def test_no_gradient_and_half_precision():
    s = cosines(10, 4).requires_grad_()
    assert not sinkhorn(s).requires_grad
    assert sinkhorn(s.detach().bfloat16()).dtype == torch.float32
    assert sinkhorn(s.detach().double()).dtype == torch.float64
    assert sinkhorn(torch.zeros(0, 4)).shape == (0, 4)


@pytest.mark.parametrize(
    "scores, arguments, message",
    [
        (torch.full((3, 2), torch.nan), {}, "NaN"),
        (torch.full((3, 2), torch.inf), {}, "inf"),
        (torch.zeros(3), {}, "expected floating"),
        (torch.zeros(3, 2), {"eps": 0.0}, "eps"),
        (torch.zeros(3, 2), {"iterations": -1}, "iterations"),
        (torch.zeros(3, 2), {"row_marginal": torch.ones(2)}, "row_marginal"),
        (torch.zeros(3, 2), {"column_marginal": torch.zeros(2)}, "column_marginal"),
    ],
)
def test_bad_arguments(scores: Tensor, arguments: dict, message: str):
    with pytest.raises(ValueError, match=message):
        sinkhorn(scores, **arguments)
