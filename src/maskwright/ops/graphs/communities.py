"""Which clusters touch in photographs, and communities of them: co-occurrence, the map equation, and its minimum.

Sources: Haralick et al., Textural features for image classification, 1973 (co-occurrence); Rosvall, Axelsson &
Bergstrom, The map equation, 2009 (https://arxiv.org/abs/0906.1405); Schaub et al. for the Markov time; Blondel et
al., Fast unfolding of communities, 2008, for the search. What Leopart (CVPR 2022, https://arxiv.org/abs/2204.13101)
makes of them stands in its method.

    L(M) = f(q) - 2 sum_m f(q_m) + sum_m f(q_m + p_m) - sum_i f(p_i),  f(x) = x log2 x

p_i is the share of the links' weight at node i, p_m the sum over module m, q_m the share of links that leave m, times
the Markov time, q their sum: the bits a step that a walk on the graph takes to describe.

Legend: K clusters or nodes, M modules, P(j|i) how likely a neighbour of i is j.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

OFFSETS = (
    (0, 1), (-1, 1), (-1, 0), (-1, -1), (0, -1), (1, -1), (1, 0), (1, 1),
    (0, 2), (1, 1), (2, 0), (1, -1), (0, -2), (-2, -1), (-2, 0), (-1, 1),
)  # fmt: skip
"""(row, column) of what counts as a neighbour: Leopart's, in which the diagonals at distance 2 are rounded to those at
distance 1, and one of them to (-2, -1)."""
EPSILON = 1e-10
"""Bits that a move must save: less is rounding."""


def co_occurrence(maps: Iterable[np.ndarray], count: int) -> np.ndarray:
    """P(j|i) of clusters, the mean over the photographs in which i has a neighbour.

    Args:
        maps: of each photograph ids (h, w), 0 to K - 1.
        count: K.

    Returns:
        float64 (K, K), rows i; NaN in the row of a cluster that has no neighbour anywhere. The diagonal is 0.
    """
    total, seen = np.zeros((count, count)), np.zeros(count)
    for ids in maps:
        counts = np.zeros(count * count)
        ids = np.asarray(ids, np.int64)
        for dy, dx in OFFSETS:
            here, there = _shifted(ids, dy, dx)
            counts += np.bincount((here * count + there).ravel(), minlength=count * count)
        table = counts.reshape(count, count)
        np.fill_diagonal(table, 0)
        sums = table.sum(1)
        has = sums > 0
        total[has] += table[has] / sums[has, None]
        seen += has
    with np.errstate(invalid="ignore"):
        return total / seen[:, None]


def _shifted(ids: np.ndarray, dy: int, dx: int) -> tuple[np.ndarray, np.ndarray]:
    """Ids at a place and at the place (dy, dx) away, where both are inside."""
    h, w = ids.shape
    y, x = slice(max(0, -dy), max(0, h - max(0, dy))), slice(max(0, -dx), max(0, w - max(0, dx)))
    here = ids[y, x]
    return here, ids[y.start + dy : y.start + dy + here.shape[0], x.start + dx : x.start + dx + here.shape[1]]


def mutual_graph(p: np.ndarray, threshold: float) -> np.ndarray:
    """Links w_ij = min(P(j|i), P(i|j)) where both reach the threshold, else 0; symmetric (K, K) without a diagonal."""
    both = np.minimum(p, p.T)
    weights = np.where(both >= threshold, both, 0.0)  # NaN compares as False
    np.fill_diagonal(weights, 0)
    return weights


def codelength(weights: np.ndarray, modules: np.ndarray, markov_time: float = 1.0) -> float:
    """L(M) in bits.

    Args:
        weights: symmetric (K, K), at least 0; nodes without links do not count.
        modules: int (K,), any numbers.
        markov_time: above 0; more gives fewer, larger modules.
    """
    flow = weights / weights.sum()
    _, index = np.unique(modules, return_inverse=True)
    p, q = _sums(flow, index, int(index.max()) + 1, markov_time)
    return _bits(p, q) - float(_f(flow.sum(1)).sum())


def _f(x: np.ndarray) -> np.ndarray:
    return x * np.log2(np.where(x > 0, x, 1))


def _sums(flow: np.ndarray, modules: np.ndarray, count: int, markov_time: float) -> tuple[np.ndarray, np.ndarray]:
    """p_m and q_m, (M,) each."""
    member = np.zeros((len(flow), count))
    member[np.arange(len(flow)), modules] = 1
    between = member.T @ flow @ member
    p = between.sum(1)
    return p, markov_time * (p - np.diag(between))


def _bits(p: np.ndarray, q: np.ndarray) -> float:
    """L without its part that no partition changes."""
    return float(_f(q.sum()) - 2 * _f(q).sum() + _f(q + p).sum())


def map_equation_modules(
    weights: np.ndarray, markov_time: float = 1.0, wanted: int | None = None, restarts: int = 10, seed: int = 0
) -> np.ndarray:
    """Modules of a graph with a small L(M): moves of single nodes and of modules found so far, from several starts.

    Args:
        weights: symmetric (K, K), at least 0, without a diagonal.
        markov_time: above 0.
        wanted: how many modules there must be, where so many nodes have links: modules are joined, or taken apart,
            where it costs the fewest bits. None: as many as the least L(M) has.
        restarts: orders in which nodes are tried; the least L(M) is kept.
        seed: of the orders.

    Returns:
        int64 (K,), 0 to M - 1 in the order of their first nodes; -1 for nodes without links.
    """
    linked = np.flatnonzero(weights.sum(1) > 0)
    found = np.full(len(weights), -1, np.int64)
    if not len(linked):
        return found
    flow = weights[np.ix_(linked, linked)]
    flow = flow / flow.sum()
    random = np.random.default_rng(seed)
    starts = [_search(flow, markov_time, random) for _ in range(max(1, restarts))]
    best = min(starts, key=lambda m: codelength(flow, m, markov_time))
    count = int(best.max()) + 1
    if wanted is not None and count != wanted:
        goal = min(wanted, len(linked))
        best = join_modules(flow, best if count > goal else np.arange(len(linked)), goal, markov_time)
        best = _moved(flow, best, markov_time, random, keep=True)
    _, first, index = np.unique(best, return_index=True, return_inverse=True)
    found[linked] = np.argsort(np.argsort(first))[index]
    return found


def _search(flow: np.ndarray, markov_time: float, random: np.random.Generator) -> np.ndarray:
    """Nodes are moved, then the modules found are nodes themselves, until nothing is saved."""
    modules = np.arange(len(flow))
    level = flow
    while True:
        found = _moved(level, np.arange(len(level)), markov_time, random)
        count = int(found.max()) + 1
        modules = found[modules]
        if count == len(level):
            return _moved(flow, modules, markov_time, random)
        member = np.eye(count)[found]
        level = member.T @ level @ member


def _moved(
    flow: np.ndarray, modules: np.ndarray, markov_time: float, random: np.random.Generator, keep: bool = False
) -> np.ndarray:
    """Moves single nodes to the neighbouring module that saves the most bits, until none does.

    Args:
        flow: links (K, K) of sum 1; of nodes that are modules with their own on the diagonal.
        modules: (K,) from 0 on.
        keep: whether no module may be left empty.
    """
    modules = modules.copy()
    strength, own = flow.sum(1), np.diag(flow)
    count = int(modules.max()) + 1
    p, q = _sums(flow, modules, count, markov_time)
    size = np.bincount(modules, minlength=count)
    moving = True
    while moving:
        moving = False
        for i in random.permutation(len(flow)):
            a = modules[i]
            if keep and size[a] == 1:
                continue
            links = np.bincount(modules, flow[i], count)
            links[a] -= own[i]
            out = strength[i] - own[i]
            # What leaves a module when i leaves it, and what leaves each when i joins it.
            q_a, q_b = q[a] - markov_time * (out - 2 * links[a]), q + markov_time * (out - 2 * links)
            p_a, p_b = p[a] - strength[i], p + strength[i]
            total = q.sum() + (q_a - q[a]) + (q_b - q)
            change = _f(np.maximum(total, 0)) - _f(q.sum())
            change += -2 * (_f(np.maximum(q_a, 0)) - _f(q[a])) + _f(np.maximum(q_a + p_a, 0)) - _f(q[a] + p[a])
            change += -2 * (_f(np.maximum(q_b, 0)) - _f(q)) + _f(np.maximum(q_b + p_b, 0)) - _f(q + p)
            change[(links <= 0) | (np.arange(count) == a)] = 0
            b = int(change.argmin())
            if change[b] < -EPSILON:
                modules[i] = b
                size[a], size[b] = size[a] - 1, size[b] + 1
                p, q = _sums(flow, modules, count, markov_time)
                moving = True
    return np.unique(modules, return_inverse=True)[1].reshape(-1)


def join_modules(flow: np.ndarray, modules: np.ndarray, wanted: int, markov_time: float = 1.0) -> np.ndarray:
    """Joins the two modules that cost the fewest bits, again and again, until there are as many as wanted.

    Args:
        flow: links (K, K), symmetric.
        modules: int (K,).
        wanted: M.
        markov_time: above 0.

    Returns:
        int64 (K,), 0 to M - 1.
    """
    flow = flow / flow.sum()
    modules = np.unique(modules, return_inverse=True)[1].reshape(-1)
    while (count := int(modules.max()) + 1) > wanted:
        member = np.eye(count)[modules]
        between = member.T @ flow @ member
        p = between.sum(1)
        q = markov_time * (p - np.diag(between))
        q_pair = np.maximum(q[:, None] + q - 2 * markov_time * between, 0)
        p_pair = p[:, None] + p
        total = np.maximum(q.sum() - q[:, None] - q + q_pair, 0)
        single = -2 * _f(q) + _f(q + p)
        cost = _f(total) - 2 * _f(q_pair) + _f(q_pair + p_pair) - single[:, None] - single
        cost[np.tril_indices(count)] = np.inf
        a, b = divmod(int(cost.argmin()), count)
        modules = np.where(modules == b, a, modules)
        modules = np.unique(modules, return_inverse=True)[1].reshape(-1)
    return modules
