"""Batches, drawn in worker threads while the step runs.

A batch is a function of the indices and of a generator of its own, so it does not matter when or in which thread it is
drawn. Three things make a run that reads ahead equal to one that does not, also after a kill:

- a checkpoint holds the sampler's state behind the last batch that was used, not behind the last that was drawn;
- labels read for a batch are noted in the ledger when the batch is used; a batch that never is leaves no trace;
- a batch is drawn with one torch thread, wherever it is drawn: some sums depend on the number of threads.

Threads rather than processes: what a batch costs (decoding, resizing, colours) releases the interpreter's lock, nothing
has to be copied between processes, and there is one ledger and one cache.
"""

from __future__ import annotations

import contextlib
import copy
import os
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from maskwright.data.trust.ledger import Notes, note_all, set_aside
from maskwright.engine.distributed import rank
from maskwright.engine.seeding import generator
from maskwright.errors import MaskwrightError

if TYPE_CHECKING:
    from maskwright.engine.loop import Indices, Training

WORKERS = "MASKWRIGHT_READ_AHEAD"
"""Environment variable: threads that draw batches; 0 draws them in between the steps."""
DEFAULT_WORKERS = 1
MOST_WORKERS = 64


def read_ahead(workers: int | None = None) -> int:
    """How many threads draw batches: as said, else as the environment says, else one.

    Args:
        workers: what was said; None: nothing.

    Raises:
        MaskwrightError: it is no whole number from 0 to 64.
    """
    where, said = ("workers", str(workers)) if workers is not None else (WORKERS, os.environ.get(WORKERS, "").strip())
    if not said:
        return DEFAULT_WORKERS
    if not (said.isascii() and said.isdigit() and int(said) <= MOST_WORKERS):
        raise MaskwrightError(
            f"{where}={said[:40]}", f"0 to {MOST_WORKERS} threads that read ahead", "0 reads nothing ahead"
        )
    return int(said)


class _Drawn(NamedTuple):
    """A batch that is drawn or being drawn: the batch and the labels read for it, and the sampler's state behind it."""

    batch: Future[tuple[Any, Notes]]
    state: dict[str, Any]


class Batches:
    """The batches of a stage in the order of its steps; a context manager, whose threads end with it.

    Args:
        training: draws them. One that does not read ahead (`Training.reads_ahead`) is asked in this thread.
        steps: the steps that are left.
        random: the generator of a step's batch.
        workers: threads. At most one batch more than threads is drawn and not yet used.
    """

    def __init__(
        self, training: Training, steps: range, random: Callable[[int], torch.Generator], workers: int
    ) -> None:
        self._training, self._random = training, random
        self._workers = min(workers, len(steps)) if training.reads_ahead else 0
        self._left: Iterator[int] = iter(steps)
        self._waiting: deque[_Drawn] = deque()
        self._used: dict[str, Any] | None = None
        self._pool: ThreadPoolExecutor | None = None

    @classmethod
    def of(cls, training: Training, steps: range, stage: str, seed: int, workers: int | None = None) -> Batches:
        """Those of a stage of a run: what is random in one is a function of the run's seed, stage, step and process.

        Args:
            training: draws them.
            steps: that are left.
            stage: its name.
            seed: of the run.
            workers: threads; None: as `read_ahead` says.
        """
        return cls(training, steps, lambda step: generator(seed, stage, "batch", step, rank()), read_ahead(workers))

    def __enter__(self) -> Batches:
        if self._workers:
            self._threads = torch.get_num_threads()
            self._used = copy.deepcopy(self._training.sampler.state_dict())
            self._pool = ThreadPoolExecutor(
                self._workers, "maskwright-batches", initializer=torch.set_num_threads, initargs=(1,)
            )
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._pool is None:
            return
        self._pool.shutdown(wait=True, cancel_futures=True)
        torch.set_num_threads(self._threads)  # what threads that others start later take over from the last caller
        if self._waiting and self._used is not None:
            self._waiting.clear()
            self._training.sampler.load_state_dict(self._used)

    def next(self) -> Any:
        """The next step's batch, on the device. It counts as used from here on.

        Raises:
            BaseException: what drawing it raised, in whichever thread, when its step has come.
        """
        if self._pool is None:
            indices = self._training.sampler.next()
            with _one_thread():
                batch = self._training.batch(indices, self._random(next(self._left)))
            return self._training.on_device(batch)
        self._draw_on()
        drawn = self._waiting.popleft()
        batch, notes = drawn.batch.result()
        self._used = drawn.state
        note_all(notes)
        self._draw_on()
        return self._training.on_device(batch)

    def sampler_state(self) -> dict[str, Any]:
        """The state of the sampler behind the last batch that was used."""
        return self._training.sampler.state_dict() if self._used is None else self._used

    def _draw_on(self) -> None:
        """Has batches drawn until there are as many as may wait."""
        assert self._pool is not None
        while len(self._waiting) <= self._workers and (step := next(self._left, None)) is not None:
            indices = self._training.sampler.next()
            state = copy.deepcopy(self._training.sampler.state_dict())
            batch = self._pool.submit(_draw, self._training, indices, self._random(step))
            self._waiting.append(_Drawn(batch, state))


def _draw(training: Training, indices: Indices, random: torch.Generator) -> tuple[Any, Notes]:
    """What a worker does: a batch and the labels that were read for it."""
    with set_aside() as notes:
        return training.batch(indices, random), notes


@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
    """Torch computes in one thread inside the block."""
    threads = torch.get_num_threads()
    if threads == 1:
        yield
        return
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
