"""Co-occurrence, the map equation, and its search."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from maskwright.ops.graphs.communities import (
    OFFSETS,
    co_occurrence,
    codelength,
    join_modules,
    map_equation_modules,
    mutual_graph,
)


def graph_of(n: int, seed: int, links: float = 0.5) -> np.ndarray:
    random = np.random.default_rng(seed)
    w = np.triu(random.random((n, n)) * (random.random((n, n)) < links), 1)
    return w + w.T


def bits_by_loops(w: np.ndarray, modules: list[int], t: float) -> float:
    """Entropies of the codebooks, each weighed by its use."""
    total = w.sum()
    p = w.sum(1) / total
    exits = {}
    for m in set(modules):
        inside = [i for i, x in enumerate(modules) if x == m]
        exits[m] = t * sum(w[i, j] for i in inside for j in range(len(w)) if modules[j] != m) / total
    q = sum(exits.values())
    bits = q * sum(-x / q * math.log2(x / q) for x in exits.values() if x > 0) if q > 0 else 0.0
    for m, leaves in exits.items():
        rates = [leaves, *(p[i] for i, x in enumerate(modules) if x == m)]
        use = sum(rates)
        bits += use * sum(-x / use * math.log2(x / use) for x in rates if x > 0)
    return bits


def partitions(n: int):
    """All partitions of n nodes, as growth strings."""
    for code in itertools.product(range(n), repeat=n):
        if all(x <= max(code[:k], default=-1) + 1 for k, x in enumerate(code)):
            yield np.array(code)


@pytest.mark.parametrize("t", [0.4, 1.0, 2.0])
def test_the_map_equation_by_entropies(t):
    w = graph_of(7, 1)
    for modules in ([0] * 7, list(range(7)), [0, 1, 0, 2, 1, 2, 0]):
        assert codelength(w, np.array(modules), t) == pytest.approx(bits_by_loops(w, modules, t), rel=1e-12)


@pytest.mark.parametrize("seed", range(6))
def test_the_search_finds_the_best_of_all_partitions(seed):
    w = graph_of(6, seed, 0.6)
    linked = w.sum(1) > 0
    ours = map_equation_modules(w, 0.8)
    best = min(codelength(w[np.ix_(linked, linked)], m, 0.8) for m in partitions(int(linked.sum())))
    assert codelength(w[np.ix_(linked, linked)], ours[linked], 0.8) == pytest.approx(best, abs=1e-9)
    assert (ours[~linked] == -1).all()


def test_as_many_modules_as_are_wanted():
    w = graph_of(30, 4, 0.2)
    linked = w.sum(1) > 0
    for wanted in (1, 3, 9, int(linked.sum()), 100):
        found = map_equation_modules(w, 1.0, wanted)
        assert found[linked].max() + 1 == min(wanted, linked.sum()) == len(np.unique(found[linked]))
    assert np.array_equal(map_equation_modules(w, 1.0, 3, seed=1), map_equation_modules(w, 1.0, 3, seed=1))
    assert (map_equation_modules(np.zeros((3, 3))) == -1).all()
    assert np.array_equal(join_modules(w, np.zeros(30, int), 1), np.zeros(30))


def maps_that_touch() -> list[np.ndarray]:
    """a and b always touch, c and d always touch; 4 is nowhere."""
    random = np.random.default_rng(0)
    maps = []
    for k in range(12):
        a, b = ((0, 1), (2, 3))[k % 2]
        ids = np.full((8, 10), a)
        ids[:, int(random.integers(3, 7)) :] = b
        maps.append(ids)
    return maps


def test_what_always_touches_is_one_community():
    p = co_occurrence(maps_that_touch(), 5)
    assert p[0, 1] == p[1, 0] == p[2, 3] == 1 and p[0, 2] == 0 and np.isnan(p[4]).all()
    assert map_equation_modules(mutual_graph(p, 0.09), 2.0).tolist() == [0, 0, 1, 1, -1]


def test_co_occurrence_by_loops():
    random = np.random.default_rng(1)
    maps = [random.integers(0, 4, size) for size in ((5, 6), (3, 3), (1, 1), (1, 7))]
    total, seen = np.zeros((5, 5)), np.zeros(5)
    for ids in maps:
        counts = np.zeros((5, 5))
        for (i, j), a in np.ndenumerate(ids):
            for dy, dx in OFFSETS:
                if 0 <= i + dy < ids.shape[0] and 0 <= j + dx < ids.shape[1] and ids[i + dy, j + dx] != a:
                    counts[a, ids[i + dy, j + dx]] += 1
        for a in np.flatnonzero(counts.sum(1)):
            total[a] += counts[a] / counts[a].sum()
            seen[a] += 1
    np.testing.assert_allclose(co_occurrence(maps, 5)[seen > 0], total[seen > 0] / seen[seen > 0, None])


def test_links_are_mutual():
    p = np.array([[0, 0.5, 0.2], [0.05, 0, 0.9], [0.3, 0.4, 0]])
    assert mutual_graph(p, 0.1).tolist() == [[0, 0, 0.2], [0, 0, 0.4], [0.2, 0.4, 0]]
