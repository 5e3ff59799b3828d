"""Where a stage stands: when a training is saved, what of it, how it goes on from there, and that a stage is done.

A kill at any moment costs no more than the steps since the last checkpoint. Checkpoints are written whole or not at all
(`engine.checkpoint`); the random state of a step is a function of its number and needs no place in them.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from torch import Tensor
from torch.utils._pytree import tree_map_only

from maskwright.data.trust.artefacts import Damage, parse_record, write_record
from maskwright.engine.checkpoint import DamagedCheckpoint, load_checkpoint, save_checkpoint
from maskwright.engine.distributed import gather_objects, rank, world_size
from maskwright.errors import MaskwrightError, asked_to_stop

if TYPE_CHECKING:
    from maskwright.engine.loop import Training
    from maskwright.engine.progress import Progress

CHECKPOINT_SECONDS = 60.0
"""No kill of a single process costs more than about this."""
DONE = "stage.json"
"""The record that a stage leaves in its folder when it is done, written last."""
SHAPE = {"name": str, "kind": str, "says": str, "seconds": float, "steps?": int, "of?": int}


class HasState(Protocol):
    """Anything whose state can be saved and restored: a module, an optimiser, a sampler, a bank, a teacher."""

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: dict[str, Any]) -> Any: ...


def every(steps: int) -> int:
    """Steps between the checkpoints of a stage of so many: a tenth, at least 50 and at most 1000."""
    return min(1000, max(50, steps // 10))


class Rhythm:
    """At which steps a stage is recorded, and at which it is saved.

    Args:
        steps: of the stage; the last one is recorded and saved.
        save_every: steps between checkpoints; None: as `every` says. A single process saves every minute too, and where
            it is asked to end; several only agree on steps.
        log_every: steps between records; None: 200 records in all.
    """

    def __init__(self, steps: int, save_every: int | None = None, log_every: int | None = None) -> None:
        self.steps = steps
        self.save_every = save_every or every(steps)
        self.log_every = log_every or max(1, steps // 200)
        self.alone = world_size() == 1
        self._saved_at = time.monotonic()

    def logs(self, step: int) -> bool:
        """Whether a step is recorded."""
        return step + 1 == self.steps or step % self.log_every == 0

    def saves(self, step: int) -> bool:
        """Whether the stage is saved behind a step."""
        late = self.alone and (time.monotonic() - self._saved_at >= CHECKPOINT_SECONDS or asked_to_stop())
        return step + 1 == self.steps or late or (step + 1) % self.save_every == 0

    def saved(self) -> None:
        """The stage was saved: the next minute begins."""
        self._saved_at = time.monotonic()


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


def save(training: Training, sampler: dict[str, Any], path: Path, step: int, writes: bool) -> None:
    """Writes a stage's checkpoint.

    Args:
        training: the stage.
        sampler: state of its sampler behind the last batch that was used.
        path: the file.
        step: how many steps are done.
        writes: whether this process writes; all of them call this.

    Raises:
        MaskwrightError: as `save_checkpoint`.
    """
    own = gather_objects(_own(training)) if world_size() > 1 else []
    if writes:
        parts = {k: v.state_dict() for k, v in _parts(training).items()} | {"sampler": sampler}
        save_checkpoint(path, {"step": step, "parts": parts, "own": own})


def restore(training: Training, path: Path, progress: Progress) -> int:
    """Puts a stage where its checkpoint is.

    Args:
        training: the stage, as it was made.
        path: the file; there may be none.
        progress: hears of a damaged file, of which nothing is trusted: the same steps lead to the same weights.

    Returns:
        How many steps are done.

    Raises:
        MaskwrightError: the checkpoint is of another stage.
    """
    # On the CPU whatever the device: each part copies to where it lives, and Adam's step counts belong there.
    try:
        state = load_checkpoint(path)
    except DamagedCheckpoint as error:
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


def write_done(folder: Path, record: dict[str, Any]) -> None:
    """Marks a stage as done."""
    write_record(folder / DONE, record)


def read_done(folder: Path, say: Callable[[str], None]) -> dict[str, Any] | None:
    """What a stage recorded when it was done; None where it is not.

    A damaged record counts as none, which is said: the stage's artefacts are found again, or made again, which gives
    the same.
    """
    path = folder / DONE
    try:
        return parse_record(path.read_bytes(), SHAPE)
    except FileNotFoundError:
        return None
    except (OSError, Damage) as error:
        say(f"{path} cannot be read ({error}); its stage runs again")
        return None
