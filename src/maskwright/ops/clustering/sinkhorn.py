"""Balanced assignment of rows to clusters by entropic optimal transport.

Legend: B rows, K clusters.

Sources: Cuturi, Sinkhorn distances, NeurIPS 2013; its use for cluster assignment: Caron et al., SwAV, NeurIPS 2020
(https://arxiv.org/abs/2006.09882), whose order of steps this follows: columns first, rows last. The matrix is never
normalised; two scaling vectors u (B,) and v (K,) are, so that q = diag(u) exp(scores / eps) diag(v), and each iteration
reads the matrix once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

# In units of eps. exp of this, summed over any number of rows, and what Sinkhorn divides by it stay within float32.
SAFE_RANGE = 60.0

Reduce = Callable[[Tensor], Tensor]


@torch.no_grad()
def sinkhorn(
    scores: Tensor,
    eps: float = 0.05,
    iterations: int = 3,
    log_domain: bool = True,
    row_marginal: Tensor | None = None,
    column_marginal: Tensor | None = None,
    all_reduce: Reduce | None = None,
) -> Tensor:
    """Soft assignments whose clusters get equal (or given) shares of the rows.

    Args:
        scores: (B, K), higher is likelier, usually cosines; -inf forbids a pair.
        eps: temperature, above 0; lower is harder.
        iterations: rounds of columns then rows, at least 0; 0 gives the softmax of scores / eps.
        log_domain: work with logarithms where scores / eps spread too far for float32. Scores of narrow spread, as
            cosines at 0.05, take the faster way in either case, with the same result.
        row_marginal: (B,) weight of each row in the clusters' shares, at least 0; equal by default.
        column_marginal: (K,) share of each cluster, at least 0, of any sum above 0; equal by default.
        all_reduce: sums a tensor over processes that each hold some of the rows; the shares are then of all rows.

    Returns:
        q (B, K), float32 (float64 for such scores), finite; each row sums to 1. A row whose every pair is forbidden
        gets the clusters' shares.

    Raises:
        ValueError: for NaN or +inf, arguments out of range, or scores too far apart with `log_domain` False.
    """
    if scores.ndim != 2 or scores.shape[1] < 1 or not scores.is_floating_point():
        raise ValueError(f"scores are {tuple(scores.shape)} {scores.dtype}, expected floating (B, K)")
    if not eps > 0:
        raise ValueError(f"eps is {eps}, expected above 0")
    if iterations < 0:
        raise ValueError(f"iterations is {iterations}, expected at least 0")
    dtype = torch.float64 if scores.dtype == torch.float64 else torch.float32
    s = scores.detach().to(dtype)
    rows, shares = _marginals(s, row_marginal, column_marginal)
    low, high = _range(s)
    # [bad scores, processes with rows, sum of their greatest scores]: all processes must choose the same way.
    facts = s.new_tensor([float(high != high or high == float("inf")), float(len(s) > 0), high if len(s) else 0.0])
    facts = _over_all(torch.nan_to_num(facts, posinf=0.0, neginf=0.0).double(), all_reduce)
    if facts[0] > 0:
        raise ValueError("scores hold NaN or +inf")
    middle = (facts[2] / facts[1].clamp(min=1)).item()
    far = max(abs(low - middle), abs(high - middle)) / eps if len(s) else 0.0
    wide = _over_all(torch.tensor([float(not far <= SAFE_RANGE)], dtype=torch.float64, device=s.device), all_reduce)
    if wide.item() == 0:
        q = _by_scaling(s, middle, eps, iterations, rows, shares, all_reduce)
    elif log_domain:
        q = _by_logarithms(s, eps, iterations, rows, shares, all_reduce)
    else:
        raise ValueError(
            f"scores / eps reach {far:.3g} from their middle, more than {SAFE_RANGE:g}; use log_domain=True"
        )
    return q


def _over_all(x: Tensor, all_reduce: Reduce | None) -> Tensor:
    out = None if all_reduce is None else all_reduce(x)
    return x if out is None else out


def _range(s: Tensor) -> tuple[float, float]:
    """Least and greatest score; NaN where there is one."""
    if not len(s):
        return 0.0, 0.0
    low, high = torch.aminmax(s)
    return low.item(), high.item()


def _marginals(s: Tensor, rows: Tensor | None, columns: Tensor | None) -> tuple[Tensor | None, Tensor]:
    """Row weights (B,) or None, and cluster shares (K,) of sum 1."""
    if columns is None:
        shares = s.new_full(s.shape[1:], 1 / s.shape[1])
    else:
        shares = columns.detach().to(s)
        if shares.shape != s.shape[1:]:
            raise ValueError(f"column_marginal is {tuple(shares.shape)}, expected ({s.shape[1]},)")
        if not (shares >= 0).all() or not torch.isfinite(shares).all() or shares.sum() <= 0:
            raise ValueError("column_marginal is negative, all zero or not finite")
        shares = shares / shares.sum()
    if rows is None:
        return None, shares
    weights = rows.detach().to(s)
    if weights.shape != s.shape[:1]:
        raise ValueError(f"row_marginal is {tuple(weights.shape)}, expected ({len(s)},)")
    if not (weights >= 0).all() or not torch.isfinite(weights).all():
        raise ValueError("row_marginal is negative or not finite")
    return weights, shares


def _blocks(s: Tensor) -> Iterator[slice]:
    """Row ranges that stay in a CPU's cache from their first use to their last; one range elsewhere."""
    size = max(1, 2**18 // s.shape[1]) if s.device.type == "cpu" else max(1, len(s))
    return (slice(i, min(i + size, len(s))) for i in range(0, len(s), size))


def _by_scaling(
    s: Tensor,
    middle: float,
    eps: float,
    iterations: int,
    rows: Tensor | None,
    shares: Tensor,
    all_reduce: Reduce | None,
) -> Tensor:
    """q with scaling vectors, where exp((s - middle) / eps) does not leave float32."""
    p = torch.empty_like(s, memory_format=torch.contiguous_format)
    column, shift = s.new_zeros(s.shape[1]), s.new_tensor(-middle / eps)
    mass = float(len(s)) if rows is None else rows.sum(dtype=torch.float64).item()
    for at in _blocks(s):
        torch.add(shift, s[at], alpha=1 / eps, out=p[at]).exp_()
        column += p[at].sum(0) if rows is None else rows[at] @ p[at]
    mass = _over_all(torch.tensor([mass], dtype=torch.float64, device=s.device), all_reduce).item()
    v = torch.ones_like(shares)
    for step in range(iterations):
        column = _over_all(column, all_reduce)
        v = torch.where(column > 0, shares * mass / column, 0)
        if mass == 0:
            v = torch.ones_like(shares)
        column = torch.zeros_like(column)
        if step + 1 < iterations:
            for at in _blocks(s):
                u = _inverse(p[at] @ v)
                column += (u if rows is None else u * rows[at]) @ p[at]
    for at in _blocks(s):
        p[at] *= v
        _normalise_rows(p[at], shares)
    return p


def _inverse(x: Tensor) -> Tensor:
    return torch.where(x > 0, 1 / x, 0)


def _normalise_rows(q: Tensor, shares: Tensor) -> None:
    """Makes rows sum to 1 in place; rows of zeros become the shares."""
    total = q.sum(1, keepdim=True)
    q /= torch.where(total > 0, total, 1)
    lost = (total[:, 0] <= 0).nonzero().flatten()
    if len(lost):
        q[lost] = shares


def _by_logarithms(
    s: Tensor, eps: float, iterations: int, rows: Tensor | None, shares: Tensor, all_reduce: Reduce | None
) -> Tensor:
    """q with logarithms of the scaling vectors, for scores of any spread."""
    q = s / eps
    log_rows = None if rows is None else rows.log()
    mass = torch.tensor([float(len(s))], dtype=torch.float64, device=s.device)
    mass = _over_all(mass if rows is None else rows.sum(dtype=torch.float64)[None], all_reduce)
    target = shares.log() + mass.clamp(min=1e-300).log().to(s.dtype)
    log_v = torch.zeros_like(shares)
    log_u = s.new_zeros(len(s))
    for _ in range(iterations):
        weighted = log_u if log_rows is None else log_u + log_rows
        column = torch.logsumexp(q + weighted[:, None], 0)
        column = _log_sum_over_all(column, all_reduce)
        # A cluster that every row forbids has no scaling that would fill it.
        log_v = torch.where(column > -torch.inf, target - column, -torch.inf)
        total = torch.logsumexp(q + log_v, 1)
        log_u = torch.where(total > -torch.inf, -total, -torch.inf)
    q = q + log_v
    top = q.amax(1, keepdim=True) if len(q) else q
    q = (q - torch.where(top > -torch.inf, top, 0)).exp_()
    _normalise_rows(q, shares)
    return q


def _log_sum_over_all(x: Tensor, all_reduce: Reduce | None) -> Tensor:
    """log of the sum over processes of exp(x), from sums alone.

    A reference at or above the greatest x is the mean plus all excess over it.
    """
    if all_reduce is None:
        return x
    wide = x.double()
    there = wide > -torch.inf
    known = torch.where(there, wide, 0)
    count, sums = _over_all(torch.stack([there.double(), known]), all_reduce)
    mean = sums / count.clamp(min=1)
    excess = torch.where(there, (known - mean).clamp(min=0), 0)
    reference = mean + _over_all(excess, all_reduce)
    total = _over_all(torch.where(there, (known - reference).exp(), 0), all_reduce)
    return (total.log() + reference).to(x.dtype)
