"""How long a run takes, told before the time is spent: a forecast after a few steps, and steps that fit into minutes.

A stage that trains is foretold from the pace of its first steps, and with it the later trainings of the run, which are
taken to be as fast; what fits or labels without gradients is foretold when it runs, by `engine.progress`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

from maskwright.data.examining.findings import some
from maskwright.engine.progress import LONG, duration
from maskwright.engine.sizes import sizes

if TYPE_CHECKING:
    from maskwright.engine.contract import Method, Stage

Clock = Callable[[], float]
RESERVE = 0.1
"""Share of `--minutes` that is left for what comes after the steps: statistics, pictures, the report."""
FEWEST = 10
"""Steps that are made however short the time is."""
WARM = 1
"""Steps whose pace says nothing yet: the first one meets cold caches and chooses kernels."""
SHOWN = 48
"""Photographs that a report shows, at most."""
SHOWN_OF_CLUSTERS = 96
"""Photographs that are looked at to show what each cluster is, at most."""
WRONG = 1.5
"""A forecast by the first step alone is said again when the steps behind it are so many times quicker, or slower; any
forecast when later steps are so many times slower."""
WATCHED, OVER = 60.0, 10
"""Later steps are compared with what was foretold over so many seconds, and so many steps; two such times in turn."""


@dataclass
class Forecast:
    """Says, after some steps of a training stage, how long it and the trainings behind it take; again where later steps
    turn out to be slower.

    Args:
        stage: its name.
        steps: its steps in all.
        say: where it is said.
        later: the stages behind it.
        config: options of the method, some of which make it shorter.
        clock: seconds.
        tail: what comes behind the last training, in its steps.
        untimed: what later steps do that the first do not (`Terms.untimed`).
    """

    stage: str
    steps: int
    say: Callable[[str], None]
    later: Sequence[Stage] = ()
    config: Any = None
    clock: Clock = time.monotonic
    tail: float = 0.0
    untimed: str = ""
    said: bool = False
    start: int | None = None
    first: float | None = None

    def __post_init__(self) -> None:
        self.began = self.warm = self.clock()
        self.slow = False

    def after(self, done: int) -> None:
        """Called with the number of steps that are done."""
        now = self.clock()
        if self.said:
            self._watch(done, now)
            return
        if self.start is None:
            self.start = done - 1
        made = done - self.start
        if made <= WARM:
            self.warm = now
        seconds = now - self.warm
        timed = made - WARM
        # A very slow step is told at once: three of them would be a minute without a word.
        alone = timed < 1 and now - self.began >= 10.0
        if alone:
            timed, seconds = made, now - self.began
        elif not (timed >= 3 and seconds >= 3.0) and not (timed >= 1 and seconds >= 10.0):
            return
        pace = seconds / timed
        self.said, told = not alone, self.first
        self.pace, self.mark = pace, (done, now)
        if told is not None and 1 / WRONG < pace / told < WRONG:
            return
        trainings = [s for s in self.later if s.kind == "train" and s.steps]
        rest = pace * (self.steps - done)
        whole = rest + pace * (self.tail + sum(s.steps for s in trainings))
        if whole >= LONG:
            self.first = pace
            line = self._line(done, pace, rest, whole, trainings)
            self.say(line if told is None else f"Corrected, the first step was no measure: {line}")
        elif told is not None:
            self.say(f"Corrected, the first step was no measure: {self.stage}: about {duration(rest)} are left.")

    def _watch(self, done: int, now: float) -> None:
        """Says that later steps are slower than was foretold: they do more, or something else needs the machine."""
        first, since = self.mark
        if now - since < WATCHED or done - first < OVER:
            return
        pace, self.mark = (now - since) / (done - first), (done, now)
        before, self.slow = self.slow, pace >= WRONG * self.pace
        rest = pace * (self.steps - done)
        if not (before and self.slow) or rest < LONG:  # the first slow minute may have quick steps in it
            return
        self.pace, self.slow = pace, False
        self.say(
            f"{self.stage}: steps are slower than foretold, {_pace(pace)}: about {duration(rest)} for the "
            f"{self.steps - done} that are left, until {datetime.now() + timedelta(seconds=rest):%H:%M}."
        )

    def _line(self, done: int, pace: float, rest: float, whole: float, trainings: Sequence[Stage]) -> str:
        until = datetime.now() + timedelta(seconds=whole)
        at = _pace(pace)
        told = f"{self.stage}: about {duration(rest)} for the {self.steps - done} steps that are left, at {at}"
        if trainings:
            names = ", ".join(f"{s.name} {s.steps}" for s in trainings)
            told += f"; with the later trainings ({names}), if they are as fast, {duration(whole)}"
        elif whole >= rest + 10:
            told += f"; with statistics and pictures of whole photographs after it {duration(whole)}"
        others = [s.name for s in self.later if s not in trainings]
        told += f"; not counted: {', '.join(others)}" if others else ""
        told += f"; not timed: {self.untimed}" if self.untimed else ""
        told += f"; done about {until:%H:%M}."
        less = sizes(self.config)
        shorter = f" Shorter: --minutes {max(1, round(whole / 240))} or --steps in a new run"
        return told + shorter + (f", or smaller values by --set (now {less})." if less else ".")


@dataclass(frozen=True)
class Fitted:
    """How many steps fit into the time that was given.

    Attributes:
        steps: of the run's main training.
        pace: seconds a step, as it was measured.
        timed: steps that were measured.
        spent: seconds of the given time that were gone before.
        says: a sentence for the report.
    """

    steps: int
    pace: float
    timed: int
    spent: float
    says: str

    def record(self) -> dict[str, Any]:
        """What a run's record tells of it."""
        return {"steps": self.steps, "seconds_a_step": self.pace, "timed": self.timed, "spent": round(self.spent, 1)}


def photographs_shown(method: Method) -> int:
    """How many whole photographs the report's pictures need: previews, and what shows the clusters."""
    images = len(method.context.data)
    clusters = method.terms(method.config).classes_from == "clusters"
    return min(SHOWN, images) + (min(SHOWN_OF_CLUSTERS, images) if clusters else 0)


class Pace:
    """Times the first steps of a training: `enough` is asked after each.

    Args:
        clock: seconds.
        seconds: the steps that are timed take about so long at most; three times that, where the first one alone does.
        count: exactly so many, where several processes must agree; None: as time allows.
    """

    def __init__(self, clock: Clock, seconds: float, count: int | None = None) -> None:
        self.clock, self.seconds, self.count = clock, seconds, count
        self.began = self.warm = clock()
        self.made = 0

    def enough(self, done: int) -> bool:
        """Whether so many steps tell enough."""
        self.made, now = done, self.clock()
        if done <= WARM:
            self.warm = now
            return self.count is None and now - self.began >= 3 * self.seconds  # else its own pace would stand for all
        self.last = now
        if self.count is not None:
            return done >= self.count
        return (done >= WARM + 3 and now - self.warm >= min(4.0, self.seconds)) or now - self.began >= self.seconds

    @property
    def timed(self) -> int:
        """Steps that count."""
        return max(1, self.made - WARM)

    @property
    def each(self) -> float:
        """Seconds a step."""
        seconds = self.last - self.warm if self.made > WARM else self.warm - self.began
        return max(seconds / self.timed, 1e-6)


def fitted(
    minutes: float, spent: float, pace: Pace, share: float, most: int | None = None, tail: float = 0.0,
    behind: float = 0.0, untimed: str = "",
) -> Fitted:  # fmt: skip
    """The number of steps that fit.

    Args:
        minutes: that were given.
        spent: seconds of them that are gone.
        pace: of the first steps.
        share: steps of all trainings that are left, for each step of the main one.
        most: more are of no use; None: as many as fit.
        tail: what comes behind the last training, in its steps.
        behind: what else comes there, seconds.
        untimed: what of the run was neither timed nor counted, in words; empty where that is nothing.
    """
    follows = pace.each * tail + behind
    room = max(0.0, 60 * minutes * (1 - RESERVE) - spent - follows)
    holds = int(room / (pace.each * max(share, 1e-9)))
    steps = max(FEWEST, holds if most is None else min(most, holds))
    told = f"--minutes {minutes:g}: {steps} steps, at {_pace(pace.each)} over {pace.timed}"
    told += f"; {duration(spent)} were spent before" if spent >= 1 else ""
    told += f"; {duration(follows)} are needed for what follows" if follows >= 1 else ""
    if share > 1.001:
        told += f"; all trainings of the run have {share:.2g} steps for each of them"
    if steps > holds:
        whole = spent + steps * pace.each * max(share, 1e-9) + follows
        told += f"; the time holds {holds}, which is too few to learn anything: the run takes {duration(whole)} in all"
    elif steps < holds:
        told += f"; the time holds {holds}, but more are of no use here"
    told += f"; not timed, so that the run may take longer: {untimed}" if untimed else ""
    return Fitted(steps, pace.each, pace.timed, spent, told + ".")


def _pace(each: float) -> str:
    return f"{1 / each:.1f} steps/s" if each < 1 else f"{each:.1f} s a step"


def not_timed(method: Method, stage: Stage, left: Sequence[str]) -> str:
    """What of a run its timed steps do not tell, in words: later steps that do more, later trainings, which are taken
    to be as fast, and what lies between these.

    Args:
        method: of the run.
        stage: the training whose first steps are timed.
        left: names of the stages that are not done.
    """
    later = [s for s in method.stages() if s.name in left and s.name != stage.name]
    trainings = [k for k, s in enumerate(later) if s.kind == "train"]
    between = [s.name for s in later[: max(trainings, default=0)] if s.kind != "train"]
    as_fast = [later[k].name for k in trainings]
    told = [
        method.terms(method.config).untimed,
        f"{some(as_fast)} (taken to be as fast)" if as_fast else "",
        f"{some(between)} (not counted)" if between else "",
    ]
    return "; ".join(filter(None, told))


def steps_for_each(method: Method, left: Mapping[str, Any] | Sequence[str]) -> float:
    """Steps of the trainings that are left for each step of `--steps`.

    Args:
        method: whose stages are a function of the context's steps.
        left: names of the stages that are not done.
    """
    context, asked = method.context, method.context.steps
    try:
        context.steps = probe = 1000
        return sum(s.steps for s in method.stages() if s.name in left) / probe
    finally:
        context.steps = asked
