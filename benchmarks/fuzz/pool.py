"""Workers that try mutations, and the parent that watches them: a worker may die, hang or swell without harm.

Workers are forked, so that the slow imports are made once; a new one takes a moment.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any, Protocol

from benchmarks.fuzz.trial import Report

SECONDS = 60.0
"""A mutation that takes longer is a hang."""
MEMORY = 4 << 30
"""Bytes of resident memory that one worker may take."""
GLANCE = 0.05
"""Seconds between two looks at the workers."""
_PAGE = os.sysconf("SC_PAGE_SIZE")


class Tries(Protocol):
    """What a worker does."""

    def run(self, kind: str, number: int) -> Report: ...


@dataclass
class Worker:
    """A forked process that tries mutations one after the other.

    Args:
        make: () -> what it does; called in the worker.
        log: file for what it writes to standard error, the place of a crash among it.
    """

    make: Callable[[], Tries]
    log: Path
    task: tuple[str, int] | None = None
    since: float = 0.0
    pipe: Connection = field(init=False)
    process: Any = field(init=False)

    def __post_init__(self) -> None:
        context = multiprocessing.get_context("fork")
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=_work, args=(self.make, theirs, self.log), daemon=True)
        self.process.start()
        theirs.close()

    def give(self, kind: str, number: int) -> None:
        """Hands it a mutation."""
        self.task, self.since = (kind, number), time.monotonic()
        self.pipe.send((kind, number))

    def memory(self) -> int:
        """Bytes of its resident memory, at the highest since the last look; 0 once it is gone."""
        try:
            pages = int(Path(f"/proc/{self.process.pid}/statm").read_text().split()[1])
        except (OSError, IndexError, ValueError):
            return 0
        return pages * _PAGE

    def end(self) -> None:
        """Kills it."""
        self.process.kill()
        self.process.join()
        self.pipe.close()


def _work(make: Callable[[], Tries], pipe: Connection, log: Path) -> None:
    import faulthandler

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with open(log, "wb", buffering=0) as out:
        os.dup2(out.fileno(), 1)
        os.dup2(out.fileno(), 2)
    sys.stdout, sys.stderr = (os.fdopen(k, "w", closefd=False) for k in (1, 2))
    faulthandler.enable(sys.stderr)
    tries = make()
    while True:
        try:
            task = pipe.recv()
        except EOFError:
            break
        try:
            _forget_peak()
            before = time.process_time()
            report = tries.run(*task)
            pipe.send((report, _peak(), time.process_time() - before))
        except BaseException as error:  # a fault of the bench itself, or of the file as it was
            import traceback

            pipe.send((Report(*task, "traceback", "the bench itself", place=f"bench: {type(error).__name__}",
                              detail=traceback.format_exc()[-1500:]), 0, 0.0))  # fmt: skip
    os._exit(0)


def _forget_peak() -> None:
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        pass


def _peak() -> int:
    """Bytes of the highest resident memory of this process since `_forget_peak`."""
    try:
        text = Path("/proc/self/status").read_text()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in text.splitlines() if line.startswith("VmHWM")), 0)


def run_all(
    make: Callable[[int], Tries],
    tasks: Iterable[tuple[str, int]],
    log: Path,
    *,
    jobs: int = 1,
    seconds: float = SECONDS,
    memory: int = MEMORY,
) -> Iterator[tuple[Report, float, float]]:
    """Tries mutations in workers.

    Args:
        make: (worker) -> what it does; called in the worker.
        tasks: (kind, number) of each.
        log: folder for the workers' error output.
        jobs: workers.
        seconds: longest time for one mutation.
        memory: bytes of resident memory that a worker may take.

    Yields:
        What came of each, in no certain order, the seconds that it took and those that it computed.
    """
    waiting = iter(tasks)

    def new(k: int) -> Worker:
        return Worker(lambda: make(k), log / f"worker-{k}.log")

    workers = [new(k) for k in range(jobs)]
    try:
        for worker in workers:
            if (task := next(waiting, None)) is not None:
                worker.give(*task)
        while any(w.task for w in workers):
            busy = {w.pipe: k for k, w in enumerate(workers) if w.task}
            for pipe in wait(list(busy), timeout=GLANCE):
                k = busy[pipe]  # type: ignore[index]
                worker = workers[k]
                assert worker.task is not None
                took = time.monotonic() - worker.since
                try:
                    report, peak, cpu = worker.pipe.recv()
                    if peak > memory and report.outcome not in ("hang", "crash"):
                        report = Report(*worker.task, "memory", report.case, report.change, report.verb,
                                        f"{report.case}", f"{peak / 2**30:.1f} GB")  # fmt: skip
                except (EOFError, ConnectionResetError):
                    report, cpu = _died(worker), took
                    worker.end()
                    workers[k] = worker = new(k)
                yield report, took, cpu
                worker.task = None
                if (task := next(waiting, None)) is not None:
                    worker.give(*task)
            for k, worker in enumerate(workers):
                if worker.task is None:
                    continue
                took, held = time.monotonic() - worker.since, worker.memory()
                if took <= seconds and held <= memory:
                    continue
                outcome, detail = ("hang", f"{took:.0f} s") if took > seconds else ("memory", f"{held / 2**30:.1f} GB")
                report = Report(*worker.task, outcome, place=f"{worker.task[0]}", detail=detail)
                worker.end()
                workers[k] = worker = new(k)
                yield report, took, took
                if (task := next(waiting, None)) is not None:
                    worker.give(*task)
    finally:
        for worker in workers:
            worker.end()


def _died(worker: Worker) -> Report:
    worker.process.join(5)
    code = worker.process.exitcode
    how = signal.Signals(-code).name if code is not None and code < 0 else f"exit code {code}"
    said = worker.log.read_text(errors="replace").splitlines() if worker.log.exists() else []
    frames = [line.strip() for line in said if line.strip().startswith("File ")]
    ours = [f for f in frames if "/maskwright/" in f]
    where = (ours or frames or [""])[0].rpartition("/maskwright/")[2] or (frames or ["nowhere known"])[0]
    assert worker.task is not None
    return Report(*worker.task, "crash", place=f"{how} at {where}", detail="; ".join(frames[:3]))
