"""What a recipe sets up for a training: what has state, where batches come from, what is looked at behind a step."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import torch
from torch import nn

from maskwright.engine.resuming import HasState
from maskwright.engine.schedules import Schedule


class Sampler(HasState, Protocol):
    """Draws the indices of this process's share of the next batch; of several streams, those of each by its name."""

    def next(self) -> Any: ...


class Setup:
    """A part that a `Training` holds, and takes from what the loop asks of it and the training does not say itself.

    Attributes:
        modules, optimizers, sampler, extra, schedule: as of `Training`, which adds its own.
    """

    modules: dict[str, nn.Module]
    optimizers: dict[str, torch.optim.Optimizer]
    sampler: Sampler
    extra: Mapping[str, HasState] = {}
    schedule: Schedule | Mapping[str, Schedule] | None = None

    def batch(self, indices: Any, random: torch.Generator) -> Any:
        """As `Training.batch`."""
        raise NotImplementedError

    def on_device(self, batch: Any) -> Any:
        """As `Training.on_device`; the batch as it is."""
        return batch

    def after_step(self, step: int) -> None:
        """As `Training.after_step`; nothing."""
