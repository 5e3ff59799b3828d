"""Communities of clusters that touch, by the package infomap where it is installed or by our search (Leopart, CVPR
2022).

Infomap (https://www.mapequation.org) is under the GPL, so it is no dependency: who wants it installs it.

Legend: K nodes, M modules.
"""

from __future__ import annotations

import importlib
import importlib.util
from dataclasses import dataclass
from typing import Any

import numpy as np

from maskwright.errors import MaskwrightError
from maskwright.ops.graphs.communities import join_modules, map_equation_modules, mutual_graph

INFOMAP = "infomap"
RESTARTS = 10
LEAST = 1e-4
"""Weight of a link below which none is looked for."""


@dataclass(frozen=True)
class Communities:
    """Modules of clusters.

    Attributes:
        modules: int64 (K,), 0 to M - 1, or -1 for clusters without links.
        by: `infomap` or `own`.
        weight: least weight of a link that was used.
    """

    modules: np.ndarray
    by: str
    weight: float


def searcher(by: str) -> str:
    """Who searches: `infomap` or `own`.

    Raises:
        MaskwrightError: infomap is asked for and not installed.
    """
    there = importlib.util.find_spec(INFOMAP) is not None
    if by == INFOMAP and not there:
        raise MaskwrightError(
            "communities.by=infomap, and the package is not installed", "infomap (GPL)",
            "pip install infomap, or leave communities.by at auto",
        )  # fmt: skip
    return (INFOMAP if there else "own") if by == "auto" else by


def find_communities(
    p: np.ndarray, weight: float, markov_time: float, wanted: int, by: str, seed: int, least: int
) -> Communities:
    """The communities of a graph of clusters.

    Args:
        p: P(j|i) (K, K), NaN in rows of clusters without neighbours.
        weight: least P(j|i) and P(i|j) of linked clusters; halved until enough clusters are linked.
        markov_time: of the map equation.
        wanted: how many modules there should be, and at most are.
        by: `infomap` or `own`.
        seed: of the search.
        least: how many clusters must be linked, as far as there are so many.
    """
    graph = mutual_graph(p, weight)
    while int((graph.sum(1) > 0).sum()) < min(least, len(p)) and weight > LEAST:
        weight /= 2
        graph = mutual_graph(p, weight)
    if by != INFOMAP:
        return Communities(map_equation_modules(graph, markov_time, wanted, RESTARTS, seed), by, weight)
    modules = by_infomap(graph, markov_time, wanted, seed)
    linked = modules >= 0
    if int(modules.max()) >= wanted:
        modules[linked] = join_modules(graph[np.ix_(linked, linked)], modules[linked], wanted, markov_time)
    return Communities(modules, by, weight)


def by_infomap(graph: np.ndarray, markov_time: float, wanted: int, seed: int) -> np.ndarray:
    """Two-level modules by Infomap, -1 for clusters without links; it prefers, and does not promise, the wanted
    number."""
    found = np.full(len(graph), -1, np.int64)
    linked = np.argwhere(np.triu(graph) > 0)
    if not len(linked):
        return found
    package: Any = importlib.import_module(INFOMAP)
    search = package.Infomap(
        silent=True, two_level=True, num_trials=RESTARTS, markov_time=markov_time, preferred_number_of_modules=wanted,
        seed=1 + seed % 2**31,
    )  # fmt: skip
    for i, j in linked.tolist():
        search.add_link(i, j, float(graph[i, j]))
    search.run()
    nodes = dict(search.get_modules())
    numbers = {module: k for k, module in enumerate(sorted(set(nodes.values())))}
    for node, module in nodes.items():
        found[node] = numbers[module]
    return found
