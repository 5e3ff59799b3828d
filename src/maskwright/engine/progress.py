"""How long work shows itself: a bar with rate, time left and loss in a terminal, one line that changes in a notebook,
plain lines elsewhere.

What is said goes to Python's `logging` too, to the logger `maskwright`; it has no handler of ours but one that drops.
"""

from __future__ import annotations

import logging
import os
import sys
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from html import escape
from typing import Any, TypeVar

from maskwright.errors import shown

T = TypeVar("T")
LOG = logging.getLogger("maskwright")
LINES = 20
"""Plain lines that a task may take for each factor e of its time: one comes after a twentieth of the time so far."""
FRAME = 0.5
"""Seconds between two states of a notebook's line."""
LONG = 60.0
"""Seconds of work from which on its length is told once it can be."""
SEEN = 5.0
"""Seconds after which it can be."""
RECENT = 60.0
"""Seconds of work, the last ones, that its rate is of; of work of more than ten times as long the last tenth."""


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
    """Shows work in a terminal as a rich bar, in a notebook as one line that changes, elsewhere as plain lines, ever
    rarer the longer a task takes.

    Args:
        quiet: show nothing (all processes but the first, tests).
        every: seconds between plain lines at least.
        heard: say sentences to Python's `logging`.

    Attributes:
        shorter: what makes the work that is under way shorter, as a sentence.
        begun: the names of all work so far.
    """

    def __init__(self, quiet: bool = False, every: float = 10.0, heard: bool = True) -> None:
        self.quiet, self.every, self.heard, self.shorter = quiet, every, heard, ""
        self.terminal = not quiet and sys.stderr.isatty()
        self.begun: set[str] = set()

    @classmethod
    def of_this_process(cls) -> Progress:
        """Shown and heard in the first of several processes alone."""
        first = int(os.environ.get("RANK", "0")) == 0
        return cls(quiet=not first, heard=first)

    def say(self, text: str) -> None:
        """Prints one line; control characters of file names are shown and not obeyed."""
        text = shown(text, lines=True)
        if not self.quiet:
            print(text, file=sys.stderr, flush=True)
        if self.heard:
            LOG.info("%s", text)

    @contextmanager
    def task(self, name: str, total: int, done: int = 0, foretells: bool = True) -> Iterator[Task]:
        """Shows one piece of work.

        Args:
            name: of the work.
            total: its units.
            done: those that were done before.
            foretells: whether a line says early how long all of it takes, where that is more than `LONG` seconds.
        """
        self.begun.add(name)
        if self.quiet or total <= 0:
            yield Task()
            return
        told = _Foretold(self, name, total, done) if foretells else None
        if self.terminal:
            with _bar() as bar:
                yield _BarTask(bar, name, total, done, told)
        else:
            display = notebook_display()
            task: _LineTask | _NotebookTask = (
                _LineTask(self, name, total, done, told) if display is None
                else _NotebookTask(display, name, total, done, told)
            )  # fmt: skip
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
    """Says once how long a piece of work takes, after some of it.

    The first item meets cold caches and compiles kernels. It counts only where nothing came behind it for a minute. The
    rest of its batch comes at once and tells nothing.
    """

    def __init__(self, progress: Progress, name: str, total: int, done: int) -> None:
        self.progress, self.name, self.total, self.first = progress, name, total, done
        self.start = self.warm = time.perf_counter()
        self.warmed = 0
        self.said = False

    def look(self, done: int) -> None:
        now, made = time.perf_counter(), done - self.first
        if self.said or made < 1:
            return
        if self.warmed:
            seconds, made = now - self.warm, made - self.warmed
        else:
            seconds, self.warm, self.warmed = now - self.start, now, made
            if seconds < LONG:
                return
        if made < 1 or now - self.start < SEEN or seconds < SEEN / 2:
            return
        self.said = True
        left = seconds / made * (self.total - done)
        if left >= LONG:
            rate = _rate(made / seconds)
            line = f"{self.name}: about {duration(left)} more for {self.total - done} of {self.total}, at {rate}."
            self.progress.say(f"{line} {self.progress.shorter}".rstrip())


def _rate(each_second: float) -> str:
    return f"{each_second:.1f}/s" if each_second >= 0.95 else f"{1 / each_second:.1f} s each"


class _Recent:
    """How fast work goes of late: later steps may cost other than the first ones did."""

    def __init__(self, done: int) -> None:
        self.start = time.perf_counter()
        self.seen = deque([(self.start, done)])

    def rate(self, done: int) -> float:
        """Units a second, of which so many are done now."""
        now = time.perf_counter()
        span = max(RECENT, (now - self.start) / 10)
        if now - self.seen[-1][0] >= span / 20:
            self.seen.append((now, done))
        while len(self.seen) > 1 and now - self.seen[1][0] >= span:
            self.seen.popleft()
        since, before = self.seen[0]
        return (done - before) / (now - since) if now > since else 0.0


class _Clocked(Task):
    """What a task that is told in words knows of itself."""

    def __init__(self, name: str, total: int, done: int, told: _Foretold | None) -> None:
        self.name, self.total, self.first, self.done, self.told = name, total, done, done, told
        self.start = self.last = time.perf_counter()
        self.recent, self.rate = _Recent(done), 0.0
        self.loss: float | None = None

    def due(self, done: int, loss: float | None, pause: float) -> bool:
        """Takes note of what is done; whether the pause since the last word is over."""
        self.done, self.loss = done, self.loss if loss is None else loss
        self.rate = self.recent.rate(done)
        if self.told is not None:
            self.told.look(done)
        now = time.perf_counter()
        if now - self.last < pause or done >= self.total:
            return False
        self.last = now
        return True

    def line(self) -> str:
        rate, loss = self.rate, "" if self.loss is None else f", loss {self.loss:.4f}"
        if self.done >= self.total:
            seconds = time.perf_counter() - self.start
            rate = (self.done - self.first) / seconds if seconds > 0 else 0.0
            return f"{self.name}: {self.total} in {seconds:.1f} s ({rate:.1f}/s){loss}"
        if rate <= 0:
            return f"{self.name}: {self.done}/{self.total}{loss}"
        return (
            f"{self.name}: {self.done}/{self.total}, {rate:.1f}/s, {(self.total - self.done) / rate:.0f} s left{loss}"
        )


class _LineTask(_Clocked):
    def __init__(self, progress: Progress, name: str, total: int, done: int, told: _Foretold | None = None) -> None:
        super().__init__(name, total, done, told)
        self.progress = progress

    def advance_to(self, done: int, loss: float | None = None) -> None:
        # A run of a day is told in about 140 lines, not in nine thousand.
        if self.due(done, loss, max(self.progress.every, (time.perf_counter() - self.start) / LINES)):
            self.progress.say(self.line())

    def finish(self) -> None:
        self.progress.say(self.line())


class _NotebookTask(_Clocked):
    """One line of a notebook's output, changed in place; it needs no widgets."""

    def __init__(
        self, display: Callable[..., Any], name: str, total: int, done: int, told: _Foretold | None = None
    ) -> None:
        super().__init__(name, total, done, told)
        self.handle = display(self._shown(), display_id=True)

    def advance_to(self, done: int, loss: float | None = None) -> None:
        if self.due(done, loss, FRAME):
            self._update()

    def finish(self) -> None:
        self._update()
        LOG.info("%s", shown(self.line()))

    def _update(self) -> None:
        if self.handle is not None:
            self.handle.update(self._shown())

    def _shown(self) -> _Line:
        return _Line(shown(self.line()), self.done, self.total)


class _Line:
    """A state of a notebook's line, as HTML and as text."""

    def __init__(self, text: str, done: int, total: int) -> None:
        self.text, self.done, self.total = text, done, total

    def __repr__(self) -> str:
        return self.text

    def _repr_html_(self) -> str:
        return (
            f'<progress value="{self.done}" max="{self.total}" style="vertical-align:middle"></progress> '
            f"<code>{escape(self.text)}</code>"
        )


def notebook_display() -> Callable[..., Any] | None:
    """What shows things in the notebook that this process computes for; None elsewhere.

    Whoever has a notebook has imported IPython already. In a terminal IPython is a terminal.
    """
    if "IPython" not in sys.modules:
        return None
    from IPython import get_ipython
    from IPython.display import display

    return display if getattr(get_ipython(), "kernel", None) is not None else None


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
        self.bar, self.recent, self.told = bar, _Recent(done), told
        self.shown = ""
        self.id = bar.add_task(name, total=total, completed=done, rate="", loss="")

    def advance_to(self, done: int, loss: float | None = None) -> None:
        self.shown = self.shown if loss is None else f"loss {loss:.4f}"
        self.bar.update(self.id, completed=done, rate=f"{self.recent.rate(done):.1f}/s", loss=self.shown)
        if self.told is not None:
            self.told.look(done)
