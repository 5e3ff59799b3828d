"""Learning rates over the steps of a stage: schedules, and how the loop sets them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from maskwright.engine.loop import Training

Schedule = Callable[[int], float]
"""Factor on a learning rate at a step."""


def cosine(steps: int, final: float = 0.0, warmup: int = 0) -> Schedule:
    """Cosine decay from 1 to `final` over `steps`, after a linear warm-up."""

    def factor(step: int) -> float:
        if step < warmup:
            return (step + 1) / warmup
        t = (step - warmup) / max(1, steps - warmup)
        return final + (1 - final) * 0.5 * (1 + math.cos(math.pi * min(1.0, t)))

    return factor


def cosine_value(first: float, last: float, step: int, steps: int) -> float:
    """From first to last along half a cosine, never quite there: the value of step 0 to steps - 1."""
    return last + (first - last) * cosine(steps)(step)


def poly(steps: int, power: float = 0.9) -> Schedule:
    """Polynomial decay (1 - t/T)^power of the segmentation literature."""
    return lambda step: (1 - min(step, steps - 1) / steps) ** power


class Rates:
    """The learning rates of a training's optimisers, set at each step to their initial ones times its schedule.

    Args:
        training: as it was made; a checkpoint that is restored later does not change what is initial.
    """

    def __init__(self, training: Training) -> None:
        self._training = training
        self._initial = {n: [g["lr"] for g in o.param_groups] for n, o in training.optimizers.items()}

    def set(self, step: int) -> None:
        """Those of a step; an optimiser without a schedule keeps its own."""
        schedule = self._training.schedule
        for name, optimizer in self._training.optimizers.items():
            own = schedule.get(name) if isinstance(schedule, Mapping) else schedule
            if own is not None:
                factor = own(step)
                for group, rate in zip(optimizer.param_groups, self._initial[name]):
                    group["lr"] = rate * factor
