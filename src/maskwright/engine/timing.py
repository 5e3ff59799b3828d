"""A run's time: how long it may take, what is told of it, and trainings whose steps are only timed.

Methods ask for none of this. `engine.length` chooses steps by it, `engine.forecast` holds the arithmetic.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from maskwright.engine.ahead import Batches
from maskwright.engine.forecast import Clock, Forecast, Pace
from maskwright.engine.loop import Training, make_step
from maskwright.engine.schedules import Rates
from maskwright.errors import stop_if_asked

if TYPE_CHECKING:
    from maskwright.engine.context import Context
    from maskwright.engine.contract import Method, Stage


class Timed(Exception):
    """A stage's first steps are timed; it is not trained."""


@dataclass
class Timing:
    """How long a run may take, and where it stands in that.

    Attributes:
        minutes: the time that the run may take, where its steps are still to be fitted into it.
        most_steps: more are of no use in that time; None: as many as fit.
        as_it_stands: no step is made any more; the model is made of what the last checkpoint holds.
        clock: seconds, for forecasts.
        began: when the run was opened, on that clock.
        later: the stages behind the one that runs.
        tail: what comes behind the last training, in steps of it.
        config: options of the method, for what makes a run shorter.
        untimed: what later steps of its training do that the first do not.
        reached: steps that training stages have made, and their steps in all, by name.
        pace: where steps are only timed, what times them.
    """

    minutes: float | None = None
    most_steps: int | None = None
    as_it_stands: bool = False
    clock: Clock = time.monotonic
    began: float = 0.0
    later: Sequence[Stage] = ()
    tail: float = 0.0
    config: Any = None
    untimed: str = ""
    reached: dict[str, tuple[int, int]] = field(default_factory=dict)
    pace: Pace | None = None

    def enter(self, later: Sequence[Stage], method: Method) -> None:
        """A stage begins, with these behind it."""
        self.later, self.tail, self.untimed = later, method.tail(), method.terms(method.config).untimed

    def chooses_steps(self, stage: Stage, steps: int | None) -> bool:
        """Whether a stage is to be timed, because the minutes still say how many `steps` the run has."""
        return stage.kind == "train" and stage.steps > 0 and steps is None and self.minutes is not None

    def forecast(self, stage: str, steps: int, say: Callable[[str], None]) -> Forecast:
        """What tells how long a training takes, and the trainings behind it."""
        return Forecast(stage, steps, say, self.later, self.config, self.clock, self.tail, self.untimed)

    def arrived(self, stage: str, kept: tuple[str, int, int] | None) -> None:
        """A training ended with its checkpoint at `kept`: stage, step, steps in all."""
        if kept is not None and kept[0] == stage:
            self.reached[stage] = kept[1:]


def time_steps(training: Training, context: Context, name: str, enough: Callable[[int], bool]) -> None:
    """Makes the first steps of a training that is thrown away, to see how long they take; nothing is saved.

    Args:
        training: new; it is of no use afterwards.
        context: of the run.
        name: the stage's name.
        enough: asked after each step with the number of steps that were made.
    """
    steps, rates = range(1_000_000), Rates(training)
    with Batches.of(training, steps, name, context.seed, context.workers) as batches:
        for step in steps:
            stop_if_asked()
            terms = make_step(training, context, name, step, batches, rates)
            float(terms["loss"].detach())  # a GPU has then done what it was asked
            if enough(step + 1):
                return
