"""The one loop.

Every gradient-trained stage of every method goes through `fit`. It knows a stage only as a `Training`: modules and
optimisers with state, a sampler, a batch, losses. What is special to a method (an EMA teacher, banks, two optimisers
with their own order) lives in its `Training`, in `losses`, `update` and `after_step`.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from maskwright.engine.ahead import Batches, read_ahead
from maskwright.engine.checkpoint import DamagedCheckpoint, load_checkpoint, save_checkpoint
from maskwright.engine.distributed import average_gradients, gather_objects, rank, world_size
from maskwright.engine.seeding import generator, seed_step
from maskwright.errors import MaskwrightError, asked_to_stop, between_steps, stop_if_asked

if TYPE_CHECKING:
    from lightning_fabric import Fabric

    from maskwright.engine.progress import Progress
    from maskwright.engine.records import RunFolder

CHECKPOINT = "checkpoint.pt"
CHECKPOINT_SECONDS = 60.0
"""No kill of a single process costs more than about this."""


Indices = Sequence[int] | np.ndarray
"""Indices of images."""
Schedule = Callable[[int], float]
"""Factor on a learning rate at a step."""


class HasState(Protocol):
    """Anything whose state can be saved and restored: a module, an optimiser, a sampler, a bank, a teacher."""

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: dict[str, Any]) -> Any: ...


class Sampler(Protocol):
    """Draws the indices of this process's share of the next batch; of several streams, those of each by its name."""

    def next(self) -> Any: ...

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: dict[str, Any]) -> Any: ...


class Training:
    """What the loop needs of a stage. Subclasses set the attributes and write `batch` and `losses`.

    Attributes:
        modules: all modules, by name; trained, EMA or frozen buffers alike. Their state is saved.
        optimizers: by name.
        sampler: draws the indices.
        extra: other things with state (banks, schedules that adapt), by name.
        schedule: factor on every optimiser's initial learning rate at a step, a pure function of the step; or such a
            function for each optimiser by its name, those without one kept at their rates.
        clip: greatest norm of each optimiser's gradient; None: gradients are as they are. An `update` of a method's own
            hands it to `recipes.adversarial.take_step`.
        must_fall: name of the loss term that falls while the stage learns; of players against each other, the total
            need not.
        reads_ahead: whether batches may be drawn in other threads while a step runs. False where the sampler or
            `batch` depends on what a step changes (weights, banks, scores), or draws from torch's global generator.
    """

    reads_ahead: ClassVar[bool] = True
    must_fall: ClassVar[str] = "loss"

    modules: dict[str, nn.Module]
    optimizers: dict[str, torch.optim.Optimizer]
    sampler: Sampler
    extra: Mapping[str, HasState] = {}
    schedule: Schedule | Mapping[str, Schedule] | None = None
    clip: float | None = None

    def before_step(self, step: int) -> None:
        """Called before each step, by the thread that trains, with the step's random state: rounds. Where batches are
        read ahead the step's own may be drawn already."""

    def batch(self, indices: Indices, random: torch.Generator) -> Any:
        """Loads and augments the batch, on the CPU; all randomness comes from `random`.

        It may run in another thread while a step runs, so it changes nothing: it reads data, and calls no network
        that learns. It computes with one torch thread.
        """
        raise NotImplementedError

    def on_device(self, batch: Any) -> Any:
        """The batch where the step takes it: copied to the device, normalised. Called by the thread that trains.

        Tensors go there by `ops.transfer.to_device`, which does not wait for the copy.
        """
        return batch

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
        """Called after each update: EMA, banks."""


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
    as_it_stands: bool = False,
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
        checkpoint_every: steps between checkpoints; by default a tenth of the stage, at least 50 and at most 1000. A
            single process saves every minute too, and where it is asked to end; several only agree on steps.
        log_every: steps between records; by default 200 records in all.
        workers: threads that draw the next batches while a step runs; None: as `engine.ahead.read_ahead` says.
        as_it_stands: make no step; the stage ends where its checkpoint is.
        after: called after each step with the number of steps that are done.

    Raises:
        MaskwrightError: when the loss is not a finite number, or a checkpoint is damaged or of another stage.
    """
    checkpoint_every = checkpoint_every or every(steps)
    log_every = log_every or max(1, steps // 200)
    path = folder / CHECKPOINT
    base_rates = {n: [g["lr"] for g in o.param_groups] for n, o in training.optimizers.items()}

    start = _restore(training, path, progress)
    run.kept = (name, start, steps)
    if as_it_stands:
        return
    if 0 < start < steps:
        progress.say(f"{name}: going on from step {start} of {steps}")
    run.forget_metrics(name, start)
    saved_at = time.monotonic()
    left = range(start, steps)
    draws = Batches(training, left, lambda step: generator(seed, name, "batch", step, rank()), read_ahead(workers))
    alone = world_size() == 1
    with progress.task(name, steps, done=start, foretells=False) as task, draws as batches, between_steps(alone):
        for step in left:
            run.at = (name, step, steps)
            stop_if_asked()
            terms = _make_step(training, fabric, batches, base_rates, name, step, seed)

            last = step + 1 == steps
            logs = last or step % log_every == 0
            late = alone and (time.monotonic() - saved_at >= CHECKPOINT_SECONDS or asked_to_stop())
            saves = last or late or (step + 1) % checkpoint_every == 0
            if logs or saves:
                # before a checkpoint too, else a resumed run would start from weights that are not numbers
                _must_be_finite(float(terms["loss"].detach()), name, step)
            if logs:
                values = {k: float(v.detach()) for k, v in terms.items()}
                run.log(name, step, values)
            task.advance_to(step + 1, loss=values["loss"] if logs else None)
            if saves:
                _save(training, batches.sampler_state(), path, step + 1, run.writes)
                saved_at = time.monotonic()
                run.kept = (name, step + 1, steps)
            after(step + 1)


def _make_step(
    training: Training,
    fabric: Fabric,
    batches: Batches,
    base_rates: Mapping[str, Sequence[float]],
    name: str,
    step: int,
    seed: int,
) -> dict[str, Tensor]:
    seed_step(seed, step, rank(), name)
    _set_rates(training, base_rates, step)
    training.before_step(step)
    terms = training.update(fabric, batches.next(), step)
    training.after_step(step)
    return terms


def time_steps(
    training: Training,
    *,
    name: str,
    seed: int,
    fabric: Fabric,
    enough: Callable[[int], bool],
    workers: int | None = None,
) -> None:
    """Makes the first steps of a training that is thrown away, to see how long they take; nothing is saved.

    Args:
        training: new; it is of no use afterwards.
        name: the stage's name.
        seed: the run's seed.
        fabric: device, precision and processes.
        enough: asked after each step with the number of steps that were made.
        workers: as of `fit`.
    """
    base_rates = {n: [g["lr"] for g in o.param_groups] for n, o in training.optimizers.items()}
    steps = range(1_000_000)
    draws = Batches(training, steps, lambda step: generator(seed, name, "batch", step, rank()), read_ahead(workers))
    with draws as batches:
        for step in steps:
            stop_if_asked()
            terms = _make_step(training, fabric, batches, base_rates, name, step, seed)
            float(terms["loss"].detach())  # a GPU has then done what it was asked
            if enough(step + 1):
                return


def every(steps: int) -> int:
    """Steps between the checkpoints of a stage of so many: a tenth, at least 50 and at most 1000."""
    return min(1000, max(50, steps // 10))


def _must_be_finite(loss: float, name: str, step: int) -> None:
    if not math.isfinite(loss):
        raise MaskwrightError(
            f"the loss of stage {name} is {loss} at step {step}", "a finite number", "lower its learning rate"
        )


def _set_rates(training: Training, base: Mapping[str, Sequence[float]], step: int) -> None:
    schedule = training.schedule
    for name, optimizer in training.optimizers.items():
        own = schedule.get(name) if isinstance(schedule, Mapping) else schedule
        if own is not None:
            factor = own(step)
            for group, rate in zip(optimizer.param_groups, base[name]):
                group["lr"] = rate * factor


def parameters_of(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    """What an optimiser trains."""
    return [p for group in optimizer.param_groups for p in group["params"]]


def _parts(training: Training) -> dict[str, HasState]:
    parts: dict[str, HasState] = {"sampler": training.sampler}
    parts |= {f"module.{k}": v for k, v in training.modules.items()}
    parts |= {f"optimizer.{k}": v for k, v in training.optimizers.items()}
    parts |= {f"extra.{k}": v for k, v in training.extra.items()}
    return parts


def _own(training: Training) -> dict[str, Any]:
    """What processes do not share: buffers (batch-norm statistics, banks) and extras, on the CPU."""
    own: dict[str, Any] = {}
    for name, module in training.modules.items():
        buffers = {k for k, _ in module.named_buffers()}
        own[f"module.{name}"] = {k: v.cpu() for k, v in module.state_dict().items() if k in buffers}
    for name, extra in training.extra.items():
        own[f"extra.{name}"] = tree_map_only(Tensor, Tensor.cpu, extra.state_dict())
    return own


def _save(training: Training, sampler: dict[str, Any], path: Path, step: int, writes: bool) -> None:
    own = gather_objects(_own(training)) if world_size() > 1 else []
    if writes:
        parts = {k: v.state_dict() for k, v in _parts(training).items()} | {"sampler": sampler}
        save_checkpoint(path, {"step": step, "parts": parts, "own": own})


def _restore(training: Training, path: Path, progress: Progress) -> int:
    # On the CPU whatever the device: each part copies to where it lives, and Adam's step counts belong there.
    try:
        state = load_checkpoint(path)
    except DamagedCheckpoint as error:
        # Nothing of it is trusted; the same steps from the start lead to the same weights.
        progress.say(f"{error.found}; the stage starts over")
        state = None
    if state is None:
        return 0
    try:
        for name, part in _parts(training).items():
            part.load_state_dict(state["parts"][name])
        if world_size() > 1 and len(state["own"]) == world_size():
            own = state["own"][rank()]
            for name, module in training.modules.items():
                module.load_state_dict(own[f"module.{name}"], strict=False)
            for name, extra in training.extra.items():
                extra.load_state_dict(own[f"extra.{name}"])
        return int(state["step"])
    except (KeyError, IndexError, AttributeError, TypeError, ValueError, RuntimeError) as error:
        raise MaskwrightError(
            f"{path} does not fit its stage: {str(error)[:200]}",
            "a checkpoint of this stage",
            f"delete its folder {path.parent} and repeat the command with --resume; that stage then starts over",
        ) from error


def cosine(steps: int, final: float = 0.0, warmup: int = 0) -> Callable[[int], float]:
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


def poly(steps: int, power: float = 0.9) -> Callable[[int], float]:
    """Polynomial decay (1 - t/T)^power of the segmentation literature."""
    return lambda step: (1 - min(step, steps - 1) / steps) ** power
