"""The one loop.

Every gradient-trained stage of every method goes through `fit`. It knows a stage only as a `Training`: modules and
optimisers with state, a sampler, a batch, losses. What is special to a method (an EMA teacher, banks, two optimisers
with their own order) lives in its `Training`, in `losses`, `update` and `after_step`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from maskwright.engine.ahead import Batches
from maskwright.engine.checkpoint import CHECKPOINT
from maskwright.engine.distributed import rank
from maskwright.engine.resuming import HasState, Rhythm, must_be_finite, restore, save
from maskwright.engine.schedules import Rates, Schedule
from maskwright.engine.seeding import seed_step
from maskwright.engine.setup import Sampler, Setup
from maskwright.engine.updating import take_step
from maskwright.errors import between_steps, stop_if_asked

if TYPE_CHECKING:
    from lightning_fabric import Fabric

    from maskwright.engine.context import Context

Indices = Sequence[int] | np.ndarray
"""Indices of images."""


class Training:
    """What the loop needs of a stage. Subclasses write `losses`; attributes and batches are those of a setup, or they
    set the attributes and write `batch` themselves.

    Attributes:
        setup: what a recipe has set up; here a part that has nothing.
        modules: all modules, by name; trained, EMA or frozen buffers alike. Their state is saved.
        optimizers: by name.
        sampler: draws the indices.
        extra: other things with state (banks, schedules that adapt), by name.
        schedule: factor on every optimiser's initial learning rate at a step, a pure function of the step; or such a
            function for each optimiser by its name, those without one kept at their rates.
        clip: greatest norm of each optimiser's gradient; None: gradients are as they are. An `update` of a method's own
            hands it to `engine.updating.take_step`.
        must_fall: name of the loss term that falls while the stage learns; of players against each other, the total
            need not.
        reads_ahead: whether batches may be drawn in other threads while a step runs. False where the sampler or
            `batch` depends on what a step changes (weights, banks, scores), or draws from torch's global generator.
    """

    reads_ahead: ClassVar[bool] = True
    must_fall: ClassVar[str] = "loss"

    setup: Setup = Setup()
    modules: dict[str, nn.Module]
    optimizers: dict[str, torch.optim.Optimizer]
    sampler: Sampler
    extra: Mapping[str, HasState] = {}
    schedule: Schedule | Mapping[str, Schedule] | None = None
    clip: float | None = None

    def __init__(self, setup: Setup) -> None:
        self.setup = setup
        self.modules, self.optimizers, self.sampler = setup.modules, setup.optimizers, setup.sampler
        self.extra, self.schedule = setup.extra, setup.schedule

    def before_step(self, step: int) -> None:
        """Called before each step, by the thread that trains, with the step's random state: rounds. Where batches are
        read ahead the step's own may be drawn already."""

    def batch(self, indices: Indices, random: torch.Generator) -> Any:
        """Loads and augments the batch, on the CPU; all randomness comes from `random`.

        It may run in another thread while a step runs, so it changes nothing: it reads data, and calls no network
        that learns. It computes with one torch thread.
        """
        return self.setup.batch(indices, random)

    def on_device(self, batch: Any) -> Any:
        """The batch where the step takes it: copied to the device, normalised. Called by the thread that trains.

        Tensors go there by `ops.transfer.to_device`, which does not wait for the copy.
        """
        return self.setup.on_device(batch)

    def losses(self, batch: Any, step: int) -> dict[str, Tensor]:
        """Loss terms by name; the one named `loss` is minimised, the others are recorded."""
        raise NotImplementedError

    def update(self, fabric: Fabric, batch: Any, step: int) -> dict[str, Tensor]:
        """One step of all optimisers. Methods with an update of their own (adversarial, EM) override it."""
        terms = self.losses(batch, step)
        take_step(self.optimizers.values(), fabric, terms["loss"], self.clip)
        return terms

    def after_step(self, step: int) -> None:
        """Called after each update: EMA, banks; here a setup looks at held-out images."""
        self.setup.after_step(step)


def fit(
    training: Training,
    context: Context,
    name: str,
    folder: Path,
    steps: int,
    *,
    checkpoint_every: int | None = None,
    log_every: int | None = None,
    after: Callable[[int], object] = lambda done: None,
) -> None:
    """Trains a stage from where it stands to its last step.

    After a kill at any moment, calling it again continues from the last checkpoint: batches and random draws are
    functions of the step. On a CPU the weights are then bit-identical to those of a run that was left alone. On a GPU
    they are as equal as two uninterrupted runs are: some of its sums have no fixed order.

    Args:
        training: the stage.
        context: of the run: its seed, record, device and processes, and how progress shows itself.
        name: the stage's name, for records.
        folder: where the checkpoint lies.
        steps: number of optimiser steps in all.
        checkpoint_every, log_every: steps between checkpoints, and between records; None: as `Rhythm` says.
        after: called after each step with the number of steps that are done.

    Raises:
        MaskwrightError: when the loss is not a finite number, or a checkpoint is damaged or of another stage.
    """
    run, progress = context.run, context.progress
    path, rhythm, rates = folder / CHECKPOINT, Rhythm(steps, checkpoint_every, log_every), Rates(training)
    start = restore(training, path, progress)
    run.kept = (name, start, steps)
    if 0 < start < steps:
        progress.say(f"{name}: going on from step {start} of {steps}")
    run.forget_metrics(name, start)
    shown = progress.task(name, steps, done=start, foretells=False)
    draws = Batches.of(training, range(start, steps), name, context.seed, context.workers)
    with shown as task, draws as batches, between_steps(rhythm.alone):
        for step in range(start, steps):
            run.at = (name, step, steps)
            stop_if_asked()
            terms = make_step(training, context, name, step, batches, rates)
            logs, saves = rhythm.logs(step), rhythm.saves(step)
            loss = must_be_finite(terms["loss"], name, step) if logs or saves else None
            if logs:
                run.log(name, step, {k: float(v.detach()) for k, v in terms.items()})
            task.advance_to(step + 1, loss=loss if logs else None)
            if saves:
                save(training, batches.sampler_state(), path, step + 1, run.writes)
                rhythm.saved()
                run.kept = (name, step + 1, steps)
            after(step + 1)


def make_step(
    training: Training, context: Context, name: str, step: int, batches: Batches, rates: Rates
) -> dict[str, Tensor]:
    """One step of a stage: its random state, its rates, its batch, its update. Gives the loss terms."""
    seed_step(context.seed, step, rank(), name)
    rates.set(step)
    training.before_step(step)
    terms = training.update(context.fabric, batches.next(), step)
    training.after_step(step)
    return terms
