"""What `metrics.jsonl` gets, as TensorBoard's events in RUN/logs: the same records, a folder a stage, a tag a value.

`metrics.jsonl` is what counts. The events of a stage are written anew from it whenever the stage begins or goes on, so
that no step stands there twice, and a run that gets its events only when it is resumed has them from its first step.
"""

from __future__ import annotations

import importlib.util
import re
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from maskwright.errors import MaskwrightError, unknown

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

    from maskwright.engine.records import RunFolder

LOGS = "logs"
KINDS = ("tensorboard",)
"""What `--log` takes."""
FLUSH = 10
"""Seconds after which events are on disk at the latest."""


def check_log(kind: str | None) -> None:
    """Says before a run begins whether its events can be written.

    Raises:
        MaskwrightError: there is no such log, or its package is missing.
    """
    if kind is None:
        return
    if kind not in KINDS:
        raise unknown("log", kind, KINDS)
    if importlib.util.find_spec("tensorboard") is None:
        raise MaskwrightError(
            f"--log {kind} without its package", "the package tensorboard", "pip install 'maskwright[log]'"
        )


class EventLog:
    """The events of one run.

    Args:
        run_folder: the run.
    """

    def __init__(self, run_folder: Path) -> None:
        self.folder = run_folder / LOGS
        self._writers: dict[str, SummaryWriter] = {}

    def begin(self, stage: str, records: Iterable[Mapping[str, Any]]) -> None:
        """Writes a stage's events anew.

        Args:
            stage: its name.
            records: those that `metrics.jsonl` holds of it.

        Raises:
            MaskwrightError: earlier events cannot be replaced.
        """
        if writer := self._writers.pop(stage, None):
            writer.close()
        try:
            shutil.rmtree(self._place(stage), ignore_errors=False)
        except FileNotFoundError:
            pass
        except OSError as error:
            raise MaskwrightError(f"cannot replace {error.filename}: {error.strerror}", "a folder of events") from error
        for record in records:
            values = {k: v for k, v in record.items() if k not in ("stage", "step")}
            self.add(stage, int(record["step"]), values)

    def add(self, stage: str, step: int, values: Mapping[str, Any]) -> None:
        """Adds one record; what is no number, as a loss that was not finite, is left out."""
        if stage not in self._writers:
            from torch.utils.tensorboard import SummaryWriter

            self._writers[stage] = SummaryWriter(str(self._place(stage)), flush_secs=FLUSH)
        for name, value in values.items():
            if isinstance(value, int | float) and not isinstance(value, bool):
                self._writers[stage].add_scalar(name, value, step)

    def close(self) -> None:
        """Brings all to disk."""
        for writer in self._writers.values():
            writer.close()
        self._writers.clear()

    def _place(self, stage: str) -> Path:
        # `metrics.jsonl` may be another's: no name in it leads out of the folder that is emptied.
        return self.folder / (re.sub(r"[^\w.-]+", "_", stage).strip(".") or "stage")


def log_events(run: RunFolder, kind: str | None) -> None:
    """From here on a run's records go to its `logs` as events too, where that was asked for, until it is released."""
    if kind is not None and run.writes:
        run.log_events(EventLog(run.path))
