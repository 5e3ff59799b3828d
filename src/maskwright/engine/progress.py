"""How long work shows itself: a bar with rate, time left and loss in a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import TypeVar

from maskwright.errors import shown

T = TypeVar("T")
LONG = 60.0
"""Seconds of work from which on its length is told once it can be."""
SEEN = 5.0
"""Seconds after which it can be."""


def duration(seconds: float) -> str:
    """A length of time as people say it: 45 s, 17 min, 1 h 40 min."""
    if seconds < 120:
        return f"{max(1, round(seconds))} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"


class Task:
    """One piece of work under way; made by `Progress.task`."""

    def advance_to(self, done: int, loss: float | None = None) -> None:
        """Says how much is done."""


class Progress:
    """Shows work in a terminal as a rich bar, elsewhere as a plain line every few seconds.

    Args:
        quiet: show nothing (all processes but the first, tests).
        every: seconds between plain lines.

    Attributes:
        shorter: what makes the work that is under way shorter, as a sentence.
    """

    def __init__(self, quiet: bool = False, every: float = 10.0) -> None:
        self.quiet, self.every, self.shorter = quiet, every, ""
        self.terminal = not quiet and sys.stderr.isatty()

    def say(self, text: str) -> None:
        """Prints one line; control characters of file names are shown and not obeyed."""
        if not self.quiet:
            print(shown(text, lines=True), file=sys.stderr, flush=True)

    @contextmanager
    def task(self, name: str, total: int, done: int = 0, foretells: bool = True) -> Iterator[Task]:
        """Shows one piece of work.

        Args:
            name: of the work.
            total: its units.
            done: those that were done before.
            foretells: whether a line says early how long all of it takes, where that is more than `LONG` seconds.
        """
        if self.quiet or total <= 0:
            yield Task()
            return
        told = _Foretold(self, name, total, done) if foretells else None
        if self.terminal:
            with _bar() as bar:
                yield _BarTask(bar, name, total, done, told)
        else:
            task = _LineTask(self, name, total, done, told)
            yield task
            task.finish()

    @contextmanager
    def counter(self, name: str) -> Iterator[Callable[[int, int], None]]:
        """A function (done, total) that shows work whose total is known only once it is under way."""
        with ExitStack() as stack:
            tasks: list[Task] = []

            def count(done: int, total: int) -> None:
                if not tasks:
                    tasks.append(stack.enter_context(self.task(name, total)))
                tasks[0].advance_to(done)

            yield count

    def track(self, items: Iterable[T], name: str, total: int) -> Iterator[T]:
        """Passes items on and shows how far it is."""
        with self.task(name, total) as task:
            for done, item in enumerate(items, 1):
                yield item
                task.advance_to(done)


class _Foretold:
    """Says once how long a piece of work takes, after some of it."""

    def __init__(self, progress: Progress, name: str, total: int, done: int) -> None:
        self.progress, self.name, self.total, self.first = progress, name, total, done
        self.start = time.perf_counter()
        self.said = False

    def look(self, done: int) -> None:
        seconds, made = time.perf_counter() - self.start, done - self.first
        if self.said or made < 1 or seconds < SEEN:
            return
        self.said = True
        left = seconds / made * (self.total - done)
        if left >= LONG:
            rate = _rate(made / seconds)
            line = f"{self.name}: about {duration(left)} more for {self.total - done} of {self.total}, at {rate}."
            self.progress.say(f"{line} {self.progress.shorter}".rstrip())


def _rate(each_second: float) -> str:
    return f"{each_second:.1f}/s" if each_second >= 0.95 else f"{1 / each_second:.1f} s each"


class _LineTask(Task):
    def __init__(self, progress: Progress, name: str, total: int, done: int, told: _Foretold | None = None) -> None:
        self.progress, self.name, self.total, self.first, self.done = progress, name, total, done, done
        self.told = told
        self.start = self.last = time.perf_counter()
        self.loss: float | None = None

    def advance_to(self, done: int, loss: float | None = None) -> None:
        self.done, self.loss = done, self.loss if loss is None else loss
        if self.told is not None:
            self.told.look(done)
        if time.perf_counter() - self.last >= self.progress.every and done < self.total:
            self.last = time.perf_counter()
            self.progress.say(self._line())

    def finish(self) -> None:
        self.progress.say(self._line())

    def _line(self) -> str:
        seconds = time.perf_counter() - self.start
        rate = (self.done - self.first) / seconds if seconds > 0 else 0.0
        loss = "" if self.loss is None else f", loss {self.loss:.4f}"
        if self.done >= self.total:
            return f"{self.name}: {self.total} in {seconds:.1f} s ({rate:.1f}/s){loss}"
        left = (self.total - self.done) / rate if rate > 0 else float("inf")
        return f"{self.name}: {self.done}/{self.total}, {rate:.1f}/s, {left:.0f} s left{loss}"


def _bar():
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )
    from rich.progress import Progress as RichProgress

    return RichProgress(
        TextColumn("{task.description:>12}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[loss]}"),
        console=Console(stderr=True),
    )


class _BarTask(Task):
    def __init__(self, bar, name: str, total: int, done: int, told: _Foretold | None = None) -> None:
        self.bar, self.first, self.start, self.told = bar, done, time.perf_counter(), told
        self.shown = ""
        self.id = bar.add_task(name, total=total, completed=done, rate="", loss="")

    def advance_to(self, done: int, loss: float | None = None) -> None:
        seconds = time.perf_counter() - self.start
        rate = (done - self.first) / seconds if seconds > 0 else 0.0
        self.shown = self.shown if loss is None else f"loss {loss:.4f}"
        self.bar.update(self.id, completed=done, rate=f"{rate:.1f}/s", loss=self.shown)
        if self.told is not None:
            self.told.look(done)
