"""How many steps a run has: chosen to fit into minutes, made more in a resumed run, or left at what was reached."""

from __future__ import annotations

import shlex
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from maskwright.engine.checkpoint import CHECKPOINT
from maskwright.engine.config_file import CONFIG, amend_config
from maskwright.engine.distributed import barrier, broadcast_object, world_size
from maskwright.engine.forecast import FEWEST, RESERVE, Fitted, Pace, fitted, not_timed, steps_for_each
from maskwright.engine.timing import Timed
from maskwright.errors import MaskwrightError

if TYPE_CHECKING:
    from maskwright.engine.context import Context
    from maskwright.engine.contract import Method, Stage

AS_IT_STANDS = "As it stands"
"""How the note of a run begins whose model was made before its last step."""


@dataclass(frozen=True)
class Length:
    """What decides how many steps a resumed run has.

    Attributes:
        own: steps where `--steps` does not say.
        fixed: why the method cannot be given more; empty where it can.
    """

    own: int
    fixed: str = ""

    def settle(self, path: Path, record: Mapping[str, Any], asked: int | None) -> int | None:
        """The steps that the run has from here on.

        Args:
            path: the run's folder.
            record: what `run.json` says.
            asked: what is asked for now; None: as many as before.

        Returns:
            The number; None where the method's own holds.

        Raises:
            MaskwrightError: fewer than before, or more where that cannot be.
        """
        was = record.get("steps")
        if asked is None or asked == (was or self.own):
            return was
        before = was or self.own
        if asked < before:
            raise MaskwrightError(
                f"{path} was made with steps = {before}, not {asked}",
                "as many, or more, which lengthens it",
                f"maskwright finish {path} makes its model as it stands; a shorter run needs another --out",
            )
        if self.fixed:
            raise MaskwrightError(
                f"{path} has steps = {before} and cannot be lengthened to {asked}: {self.fixed}",
                "the same number to resume it",
                f"maskwright train --config {path / CONFIG} --steps {asked} --out NEW trains anew; "
                f"--weights {path} starts from its model",
            )
        return asked


def reopen(context: Context, stages: Sequence[Stage], done: dict[str, dict[str, Any] | None]) -> None:
    """A training that made fewer steps than it has now is not done, and what stands on it is made anew.

    It was lengthened, or finished as it stood; where it is finished so again, it is left as it is.

    Args:
        context: of the run.
        stages: of the method.
        done: what each stage recorded, None where it is not done; changed.
    """
    lengthened = context.run.record.get("lengthened")
    begun = any((context.run.path / s.name / CHECKPOINT).exists() for s in stages if s.kind == "train")
    for one in lengthened if lengthened and begun else ():  # from the start it is a run of so many steps
        context.note(
            f"Lengthened from {one['from']} to {one['to']} steps: from where it went on, what follows the share of the "
            f"run that is done, the learning rate first, is as in a run of {one['to']}; the weights are not those of "
            "such a run from its start."
        )
    if context.timing.as_it_stands:
        return
    for place, stage in enumerate(stages):
        record = done[stage.name]
        if record is None:
            continue
        # Records of before do not tell: they are of the steps that the run was begun with.
        wanted = stage.steps or record.get("of", 0)
        if record.get("steps", lengthened[0]["from"] if lengthened else wanted) >= wanted:
            continue
        barrier()
        for later in stages[place + 1 :]:
            done[later.name] = None
            if context.run.writes:
                shutil.rmtree(context.run.path / later.name, ignore_errors=True)
        done[stage.name] = None
        barrier()
        return


def must_be_there(context: Context, stages: Sequence[Stage], done: Mapping[str, object]) -> None:
    """Looks whether a run that is to be finished as it stands has a checkpoint of each training that is not done.

    Raises:
        MaskwrightError: one has not begun; the command that goes on is named.
    """
    for stage in stages if context.timing.as_it_stands else ():
        begun = done[stage.name] is not None or (context.run.path / stage.name / CHECKPOINT).exists()
        if stage.kind == "train" and not begun:
            raise _not_begun(context, stage.name)


def _not_begun(context: Context, stage: str) -> MaskwrightError:
    return MaskwrightError(
        f"{context.run.path} was stopped before stage {stage} saved anything, and its model stands on that",
        "a checkpoint of it",
        f"go on with: {going_on(context.run.path)}",
    )


def must_have_begun(context: Context, stage: str, made: int, steps: int) -> None:
    """Says at which step a training ended that was finished as it stood.

    Raises:
        MaskwrightError: it had not saved anything.
    """
    if made < 1:
        raise _not_begun(context, stage)
    if made < steps:
        context.run.save(as_it_stands={"stage": stage, "step": made, "of": steps})
        context.note(f"{AS_IT_STANDS}: stage {stage} ended at step {made} of {steps}.")


def going_on(path: Path) -> str:
    """The command that goes on with a run that was begun by `train`."""
    return shlex.join(["maskwright", "train", "--config", str(path / CONFIG), "--out", str(path), "--resume"])


def fit_steps(method: Method, stage: Stage, left: Sequence[str]) -> None:
    """Times the first steps of a training, and chooses how many fit into the run's minutes.

    The timed steps are thrown away: the run is that of as many steps that were asked for by number.

    Args:
        method: of the run.
        stage: the training that is timed.
        left: names of the stages that are not done.
    """
    context, timing = method.context, method.context.timing
    minutes = timing.minutes
    assert minutes is not None
    read = {name: ledger.state_dict() for name, ledger in context.ledgers.ledgers.items()}
    timing.pace = pace = Pace(timing.clock, 60 * minutes * RESERVE, None if world_size() == 1 else 1 + FEWEST // 2)
    try:
        stage.run(context.run.path / stage.name)
    except Timed:
        pass
    finally:
        timing.pace = None
        for name, ledger in context.ledgers.ledgers.items():
            ledger.load_state_dict(read[name])
    behind = method.seconds_behind()
    spent = timing.clock() - timing.began
    found: Fitted = broadcast_object(
        fitted(
            minutes, spent, pace, steps_for_each(method, left), timing.most_steps, timing.tail, behind,
            not_timed(method, stage, left),
        )
    )  # fmt: skip
    context.steps, timing.minutes = found.steps, None
    context.run.save(steps=found.steps, minutes={"asked": minutes, **found.record()})
    if context.run.writes:
        amend_config(context.run.path / CONFIG, steps=found.steps, minutes=None)
    context.note(found.says)
