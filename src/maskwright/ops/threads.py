"""A handful of threads for kernels that release the GIL."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from types import TracebackType

from numba import config


class Threads:
    """Runs pieces of work that release the GIL side by side; a context manager.

    Plain threads rather than numba's `parallel=True`: they survive a fork, may run inside other threads, and cost no
    compile time.
    """

    def __init__(self, count: int | None = None) -> None:
        """Args: count: how many at a time; None takes what numba would (`NUMBA_NUM_THREADS`, or the cores)."""
        if count is not None and count < 1:
            raise ValueError(f"threads {count}: expected at least 1")
        self.count = int(count or config.NUMBA_NUM_THREADS)  # type: ignore[attr-defined]
        self._pool = ThreadPoolExecutor(self.count - 1) if self.count > 1 else None

    def __enter__(self) -> Threads:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._pool is not None:
            self._pool.shutdown()

    def run(self, tasks: Sequence[Callable[[], object]]) -> None:
        """Runs all tasks and waits; every thread, this one among them, takes the next that is left."""
        left = deque(tasks)

        def drain() -> None:
            while left:
                try:
                    task = left.popleft()
                except IndexError:  # another thread was faster
                    return
                task()

        helpers = min(self.count, len(left)) - 1
        waiting = [self._pool.submit(drain) for _ in range(helpers)] if self._pool is not None else []
        try:
            drain()
        finally:
            for future in waiting:
                future.result()

    def split(self, size: int, least: int = 4096) -> list[tuple[int, int]]:
        """Cuts `range(size)` into (low, high) of at least `least`: one for one thread, else three a thread.

        More parts than threads, so that a thread that the machine holds up does not hold up the others.
        """
        parts = 1 if self.count == 1 else max(1, min(3 * self.count, size // least))
        cuts = [size * k // parts for k in range(parts + 1)]
        return list(pairwise(cuts))
