"""What every benchmark shares: timing two ways of doing the same thing side by side in one run.

A benchmark file `bench_NAME.py` has `rows() -> list[Row]`. `python -m benchmarks` runs them all and prints one table.
Ratios are of interleaved repetitions in one process, so that a change of the machine's load hits both sides alike.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from threadpoolctl import threadpool_limits


@dataclass(frozen=True)
class Row:
    """One line of the table.

    Attributes:
        path: the hot path and its size ("k-means step, 1M x 64, k 27").
        ours_s: seconds of ours (median).
        other: name of the other way.
        other_s: seconds of the other way (median).
        asked: the ratio other/ours to reach.
        limit_s: seconds that the machine's own limit would take, or None.
        agrees: how the two results agree ("labels equal").
    """

    path: str
    ours_s: float
    other: str
    other_s: float
    asked: float
    limit_s: float | None = None
    agrees: str = ""

    @property
    def ratio(self) -> float:
        """How many times faster ours is."""
        return self.other_s / self.ours_s


@contextmanager
def one_thread() -> Iterator[None]:
    """Holds torch and the BLAS and OpenMP pools of numpy, scipy and scikit-learn to one thread."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with threadpool_limits(1):
            yield
    finally:
        torch.set_num_threads(before)


def side_by_side(*ways: Callable[[], object], repeats: int = 5, warmup: int = 1) -> list[float]:
    """Median seconds of each way, repetitions interleaved.

    Args:
        ways: functions without arguments.
        repeats: timed repetitions of each.
        warmup: untimed repetitions of each before (numba compiles, allocators grow).
    """
    for _ in range(warmup):
        for way in ways:
            way()
    times: list[list[float]] = [[] for _ in ways]
    for _ in range(repeats):
        for k, way in enumerate(ways):
            start = time.perf_counter()
            way()
            times[k].append(time.perf_counter() - start)
    return [sorted(t)[len(t) // 2] for t in times]
