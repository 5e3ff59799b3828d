"""How a run ends before its end: what its record says then, and which commands go on with it."""

from __future__ import annotations

import contextlib
import shlex
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from maskwright.engine.config_file import CONFIG
from maskwright.engine.length import going_on
from maskwright.engine.records import FAILED, INTERRUPTED, RunFolder
from maskwright.errors import MaskwrightError

if TYPE_CHECKING:
    from maskwright.engine.context import Context
    from maskwright.engine.contract import Stage


@contextlib.contextmanager
def recorded(run: RunFolder) -> Iterator[None]:
    """However the block ends before its end, the run's record says so, and the run is released."""
    try:
        yield
    except BaseException as error:
        with contextlib.suppress(MaskwrightError):  # on a full disk the first error is the one to tell
            run.save(status=INTERRUPTED if isinstance(error, KeyboardInterrupt) else FAILED)
        run.release()
        raise


@contextlib.contextmanager
def told(context: Context) -> Iterator[None]:
    """As `recorded`; where somebody interrupts the block, what the run keeps is said too."""
    with recorded(context.run):
        try:
            yield
        except KeyboardInterrupt:
            for line in stopped(context.run, context.timing.later, "features" in context.progress.begun):
                context.progress.say(line)
            raise


def stopped(run: RunFolder, later: Sequence[Stage] = (), features: bool = False) -> list[str]:
    """What a run that is interrupted keeps, and the commands that go on with it or finish it, as lines.

    Args:
        run: its folder.
        later: the stages behind the one that was interrupted.
        features: whether the run computed some, which stay in the cache.
    """
    at, kept = run.at, run.kept
    where = f" in stage {at[0]} at step {at[1]} of {at[2]}" if at else ""
    done = [str(stage.get("name")) for stage in run.record.get("stages", [])]
    parts = [f"step {kept[1]} of {kept[2]} in stage {kept[0]}"] if kept and kept[1] and kept[0] not in done else []
    parts += [f"stage{'s' * (len(done) > 1)} {', '.join(done)}"] if done else []
    parts += ["the features computed so far"] if features and not parts else []
    lines = [f"interrupted{where}; kept: {' and '.join(parts) or 'nothing yet, the run starts over'}"]
    if (run.path / CONFIG).exists():
        lines.append(f"go on: {going_on(run.path)}")
        if kept and kept[1] and not any(stage.kind == "train" for stage in later):
            lines.append(f"its model as it stands: {shlex.join(['maskwright', 'finish', str(run.path)])}")
    return lines
