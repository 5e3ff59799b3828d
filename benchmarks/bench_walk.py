"""The random walk of class maps beside the dense power of the originals, at a photograph's size."""

from __future__ import annotations

import time

import numpy as np

from benchmarks.common import Row, one_thread, side_by_side
from maskwright.ops.graphs.walk import affinity_from_edges, local_feature_affinity, random_walk, transition_matrix

SIDE = 94
CHECK = 24
CLASSES = 3


def _dense(scores: np.ndarray, affinity: object, beta: float, squarings: int) -> np.ndarray:
    """The transition as a matrix of all pairs, squared again and again, as published code does."""
    t = transition_matrix(affinity, beta).toarray().astype(np.float32)  # as published code has it
    for _ in range(squarings):
        t = t @ t
    return scores @ t


def rows() -> list[Row]:
    """Lines of the table."""
    rng = np.random.default_rng(0)
    found = []
    for name, beta, squarings in (("PSA", 8.0, 6), ("IRN", 10.0, 8)):

        def graph(side: int, name: str = name) -> object:
            if name == "PSA":
                return local_feature_affinity(rng.normal(size=(64, side, side)).astype(np.float32), 5)
            return affinity_from_edges(rng.random((side, side)).astype(np.float32) ** 4, 5)

        with one_thread():
            small, x = graph(CHECK), rng.random((CLASSES, CHECK * CHECK)).astype(np.float32)
            gap = np.abs(random_walk(x, small, beta, 2**squarings) - _dense(x, small, beta, squarings)).max()
            large, x = graph(SIDE), rng.random((CLASSES, SIDE * SIDE)).astype(np.float32)
            (seconds,) = side_by_side(lambda: random_walk(x, large, beta, 2**squarings), repeats=3)  # noqa: B023
            # All squarings cost the same, half a minute each: one is timed.
            t = transition_matrix(large, beta).toarray().astype(np.float32)
            start = time.perf_counter()
            np.matmul(t, t)
            other = (time.perf_counter() - start) * squarings
        found.append(
            Row(
                f"random walk {SIDE}x{SIDE}, {CLASSES} maps, {name}, {2**squarings} steps", seconds,
                f"dense power ({squarings} times one squaring)", other, 5.0,
                agrees=f"largest difference at {CHECK}x{CHECK} {gap:.1e}",
            )
        )  # fmt: skip
    return found
