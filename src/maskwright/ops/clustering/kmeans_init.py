"""Where k-means starts, and where clusters go that have lost all their rows.

Sources: k-means++: Arthur & Vassilvitskii, SODA 2007, in its greedy form (several candidates a step). Start on a large
batch: Cho et al., PiCIE, CVPR 2021. Every choice is a function of the seed and of the order of all processes' rows, not
of how many processes hold them.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from maskwright.ops.clustering.kmeans_rows import SAME_DIRECTION, Rows

INITS = ("kmeans++", "large_batch", "random")


def too_few(found: int, k: int, metric: str) -> ValueError:
    """The error for more clusters than there are different rows."""
    kind = "directions among the rows" if metric == "cosine" else "distinct rows"
    return ValueError(f"{k} clusters asked of {found} {kind}; ask for at most {found}")


def initial_centers(
    rows: Rows, k: int, init: str, generator: torch.Generator, fit: Callable[[Tensor, Tensor, int], Tensor]
) -> Tensor:
    """(K, D) points to start from, the same on every process.

    Args:
        rows: this process's rows.
        k: clusters.
        init: one of `INITS`.
        generator: on the CPU, in the same state on every process.
        fit: (points, weights, seed) -> centers, k-means on a sample that every process holds, for "large_batch".

    Raises:
        ValueError: when there are fewer distinct rows than clusters.
    """
    if init == "random":
        start = _random(rows, k, generator)
        centers = start if len(start) == k else plus_plus(rows, k, generator, start)
    elif init == "large_batch":
        size = min(rows.share.total, max(16 * k, min(max(256 * k, 2**13), 2**16)))
        z, weight = rows.fetch(_positions(rows.share.total, size, generator))
        seed = int(torch.randint(2**31, (), generator=generator))
        kept = z[weight > 0]
        if len(_distinct(kept, rows.metric)) >= k:
            centers = fit(kept, weight[weight > 0], seed).to(rows.wide)
        else:
            centers = plus_plus(rows, k, generator)
    else:
        centers = plus_plus(rows, k, generator)
    return rows.share.first(centers)


def _positions(total: int, count: int, generator: torch.Generator) -> Tensor:
    """`count` different places out of `total`, in random order, without a permutation of all where they are many."""
    if 3 * count >= total:
        return torch.randperm(total, generator=generator)[:count]
    drawn = torch.randint(total, (count + count // 2 + 64,), generator=generator).numpy()
    _, where = np.unique(drawn, return_index=True)
    return torch.from_numpy(drawn[np.sort(where)][:count])


def _distinct(z: Tensor, metric: str) -> Tensor:
    """Indices of the rows that differ from all before them."""
    values = z.cpu().numpy()
    if metric == "cosine":
        values = np.round(values, 6)
    # +0.0 makes -0.0 and 0.0, which are equal, the same bytes.
    _, where = np.unique(values + 0.0, axis=0, return_index=True)
    return torch.from_numpy(np.sort(where)).to(z.device)


def _random(rows: Rows, k: int, generator: torch.Generator) -> Tensor:
    """Up to k distinct rows with weight, drawn without replacement."""
    z, weight = rows.fetch(_positions(rows.share.total, min(rows.share.total, 2 * k + 64), generator))
    z = z[weight > 0]
    return z[_distinct(z, rows.metric)[:k]]


def _squared_distances(rows: Rows, candidates: Tensor) -> Tensor:
    """(N, L) squared distances of every z to candidates (L, D); exactly 0 where they are the same point."""
    c = candidates.to(rows.dtype)
    squares = c.square().sum(1)
    out = torch.empty(rows.n, len(c), dtype=rows.dtype, device=rows.device)
    rounding = 64 * torch.finfo(rows.dtype).eps
    for s, e in rows.spans():
        block, scale = rows.block(s, e), rows.scale[s:e, None]
        d = rows.square[s:e, None] + squares - 2 * scale * (block @ c.T)  # (n, L)
        near = (d <= rounding * (rows.square[s:e, None] + squares)).nonzero()
        if len(near):  # all digits of the difference are lost here
            i, j = near.T
            exact = (block[i] * scale[i] - c[j]).square().sum(1)
            if rows.metric == "cosine":
                exact = torch.where(exact <= SAME_DIRECTION, 0, exact)
            d[i, j] = exact
        out[s:e] = d.clamp_(min=0)
    return out


def plus_plus(rows: Rows, k: int, generator: torch.Generator, start: Tensor | None = None) -> Tensor:
    """k-means++: each next center is a row drawn by its squared distance to the nearest center so far.

    Of 2 + log K rows drawn at each step, the one that lowers the sum of squared distances most is kept.

    Args:
        rows: this process's rows.
        k: centers in all.
        generator: on the CPU, in the same state on every process.
        start: (S, D) centers to begin with, S < k.

    Raises:
        ValueError: when the rows have fewer than k distinct points.
    """
    trials = 2 + int(math.log(k))
    weight = rows.weight
    if start is None or not len(start):
        chosen = [_draw(rows, weight, 1, generator)[0]]
    else:
        chosen = list(start)
    closest = torch.full_like(rows.square, math.inf)
    for s in range(0, len(chosen), 16):
        some = _squared_distances(rows, torch.stack(chosen[s : s + 16]))
        closest = torch.minimum(closest, some.amin(1))
    while len(chosen) < k:
        potential = closest * weight
        if not rows.share.sum(potential.sum(dtype=rows.wide)[None]).item() > 0:
            raise too_few(len(chosen), k, rows.metric)
        candidates = _draw(rows, potential, trials, generator)  # (L, D)
        d = torch.minimum(_squared_distances(rows, candidates), closest[:, None])
        sums = rows.share.sum(torch.stack([(d[:, j] * weight).sum(dtype=rows.wide) for j in range(trials)]))
        best = int(rows.share.first(sums).argmin())
        chosen.append(candidates[best])
        closest = d[:, best].contiguous()
    return torch.stack(chosen)


def _draw(rows: Rows, potential: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """(count, D) rows of all processes drawn by potential (N,), with replacement."""
    uniform = torch.rand(count, generator=generator, dtype=torch.float64).to(rows.device, rows.wide)
    running = potential.to(rows.wide).cumsum(0)
    mine = running[-1:] if rows.n else running.new_zeros(1)
    totals = rows.share.gather(mine).flatten()  # (W,)
    before = torch.cat([totals.new_zeros(1), totals.cumsum(0)])
    at = uniform * before[-1]
    owner = torch.searchsorted(before[1:].contiguous(), at, right=True)
    # Rounding can put a draw behind the last row that has potential.
    owner = torch.minimum(owner, (totals > 0).nonzero().max())
    z = torch.zeros(count, rows.d, dtype=rows.wide, device=rows.device)
    here = (owner == rows.share.rank).nonzero().flatten()
    if len(here):
        index = torch.searchsorted(running, at[here] - before[rows.share.rank], right=True)
        last = (potential > 0).nonzero().max()
        z[here] = rows.points(torch.minimum(index, last))
    return rows.share.sum(z)


def repair_empty(rows: Rows, centers: Tensor, used: Tensor, empty: Tensor, labels: Tensor) -> Tensor:
    """Moves empty clusters to the rows that are served worst.

    Args:
        rows: this process's rows.
        centers: (K, D) new centers; those of empty clusters are replaced.
        used: (K, D) centers that `labels` were assigned by.
        empty: (E,) ids of the empty clusters.
        labels: (N,) labels of this process's rows.

    Returns:
        The centers (K, D): the lowest empty id takes the row farthest from its center, the next the farthest of the
        rows that differ from it, and so on; ties to the earlier row. Where rows with a distance run out, the rest of
        the empty clusters stay for a later round.

    Raises:
        ValueError: when every row lies on its center, so that there are fewer distinct rows than clusters.
    """
    distance = rows.own_distances(labels, used)
    floor = SAME_DIRECTION if rows.metric == "cosine" else 0.0
    distance = torch.where((rows.weight > 0) & (distance > floor), distance, -1)
    count = 4 * len(empty) + 16
    packed = torch.full((count, rows.d + 1), -1.0, dtype=rows.wide, device=rows.device)
    if rows.n:
        least = distance.topk(min(count, rows.n)).values[-1]
        pool = (distance >= least).nonzero().flatten()
        best = pool[distance[pool].argsort(descending=True, stable=True)[:count]]
        packed[: len(best), 0] = distance[best].to(rows.wide)
        packed[: len(best), 1:] = rows.points(best)
    packed = rows.share.gather(packed).flatten(0, 1)
    packed = packed[packed[:, 0] > 0]
    if not len(packed):
        raise too_few(len(used) - len(empty), len(used), rows.metric)
    packed = packed[packed[:, 0].argsort(descending=True, stable=True)]
    points = packed[_distinct(packed[:, 1:], rows.metric), 1:][: len(empty)]
    centers = centers.clone()
    centers[empty[: len(points)]] = points
    return centers
