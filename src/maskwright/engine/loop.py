"""The one loop.

Every gradient-trained stage of every method goes through `fit`. It knows a stage only as a `Training`: modules and
optimisers with state, a sampler, a batch, losses. What is special to a method (an EMA teacher, banks, two optimisers
with their own order) lives in its `Training`, in `losses`, `update` and `after_step`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from maskwright.engine.ahead import Batches
from maskwright.engine.checkpoint import CHECKPOINT
from maskwright.engine.distributed import average_gradients, rank
from maskwright.engine.resuming import HasState, Rhythm, restore, save
from maskwright.engine.schedules import Rates, Schedule
from maskwright.engine.seeding import seed_step
from maskwright.engine.setup import Setup
from maskwright.errors import MaskwrightError, between_steps, stop_if_asked

if TYPE_CHECKING:
    from lightning_fabric import Fabric

    from maskwright.engine.progress import Progress
    from maskwright.engine.records import RunFolder

Indices = Sequence[int] | np.ndarray
"""Indices of images."""


class Sampler(HasState, Protocol):
    """Draws the indices of this process's share of the next batch; of several streams, those of each by its name."""

    def next(self) -> Any: ...


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
            hands it to `recipes.adversarial.adversary.take_step`.
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
        for optimizer in self.optimizers.values():
            optimizer.zero_grad(set_to_none=True)
        fabric.backward(terms["loss"])
        average_gradients(p for o in self.optimizers.values() for p in parameters_of(o))
        for optimizer in self.optimizers.values():
            if self.clip is not None:
                nn.utils.clip_grad_norm_(parameters_of(optimizer), self.clip)
            optimizer.step()
        return terms

    def after_step(self, step: int) -> None:
        """Called after each update: EMA, banks; here a setup looks at held-out images."""
        self.setup.after_step(step)


def parameters_of(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    """What an optimiser trains."""
    return [p for group in optimizer.param_groups for p in group["params"]]


def fit(
    training: Training,
    *,
    name: str,
    steps: int,
    seed: int,
    fabric: Fabric,
    run: RunFolder,
    folder: Path,
    progress: Progress,
    checkpoint_every: int | None = None,
    log_every: int | None = None,
    workers: int | None = None,
    after: Callable[[int], object] = lambda done: None,
) -> None:
    """Trains a stage from where it stands to its last step.

    After a kill at any moment, calling it again continues from the last checkpoint: batches and random draws are
    functions of the step. On a CPU the weights are then bit-identical to those of a run that was left alone. On a GPU
    they are as equal as two uninterrupted runs are: some of its sums have no fixed order.

    Args:
        training: the stage.
        name: the stage's name, for records.
        steps: number of optimiser steps in all.
        seed: the run's seed.
        fabric: device, precision and processes.
        run: the run's record.
        folder: where the checkpoint lies.
        progress: shows rate, time left and the loss.
        checkpoint_every, log_every: steps between checkpoints, and between records; None: as `Rhythm` says.
        workers: threads that draw the next batches while a step runs; None: as `engine.ahead.read_ahead` says.
        after: called after each step with the number of steps that are done.

    Raises:
        MaskwrightError: when the loss is not a finite number, or a checkpoint is damaged or of another stage.
    """
    path, rhythm, rates = folder / CHECKPOINT, Rhythm(steps, checkpoint_every, log_every), Rates(training)
    start = restore(training, path, progress)
    run.kept = (name, start, steps)
    if 0 < start < steps:
        progress.say(f"{name}: going on from step {start} of {steps}")
    run.forget_metrics(name, start)
    shown = progress.task(name, steps, done=start, foretells=False)
    draws = Batches.of(training, range(start, steps), name, seed, workers)
    with shown as task, draws as batches, between_steps(rhythm.alone):
        for step in range(start, steps):
            run.at = (name, step, steps)
            stop_if_asked()
            terms = make_step(training, fabric, batches, rates, name, step, seed)
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
    training: Training, fabric: Fabric, batches: Batches, rates: Rates, name: str, step: int, seed: int
) -> dict[str, Tensor]:
    """One step of a stage: its random state, its rates, its batch, its update. Gives the loss terms."""
    seed_step(seed, step, rank(), name)
    rates.set(step)
    training.before_step(step)
    terms = training.update(fabric, batches.next(), step)
    training.after_step(step)
    return terms


def must_be_finite(loss: Tensor, name: str, step: int) -> float:
    """The loss as a number; asked before a checkpoint too, else a resumed run would start from weights that are none.

    Raises:
        MaskwrightError: it is infinite or not a number.
    """
    found = float(loss.detach())
    if not math.isfinite(found):
        raise MaskwrightError(
            f"the loss of stage {name} is {found} at step {step}", "a finite number", "lower its learning rate"
        )
    return found
