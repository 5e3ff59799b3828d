"""A run is a folder: `run.json`, `metrics.jsonl`, one folder a stage, `model.safetensors`, `report.html`."""

from __future__ import annotations

import json
import os
import platform
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor

from maskwright.data.files import atomic_write, write_json
from maskwright.errors import MaskwrightError

RECORD = "run.json"
METRICS = "metrics.jsonl"
LEDGER = "ledger.json"
MODEL = "model.safetensors"
IDENTITY = ("method", "config", "seed", "steps", "classes_asked", "split", "labeled")
"""What must be the same for a run to be resumed: with another value it would be another run."""


class RunFolder:
    """The record of one run.

    Args:
        path: the run's folder.
        writes: False in all but the first of several processes; then nothing is written.
    """

    def __init__(self, path: Path, writes: bool = True) -> None:
        self.path = Path(path)
        self.writes = writes
        self.record: dict[str, Any] = {}

    @classmethod
    def start(cls, path: Path, record: Mapping[str, Any], *, resume: bool, writes: bool = True) -> RunFolder:
        """Makes the folder of a new run, or opens an earlier one to resume it.

        Args:
            path: the run's folder.
            record: what `run.json` says from the start.
            resume: continue the run that lies there; a folder without one starts anew.
            writes: whether this process writes.

        Raises:
            MaskwrightError: when the folder holds a run and `resume` is False, holds other files, cannot be written,
                or holds a run with other settings.
        """
        run = cls(path, writes)
        if run.path.exists() and not run.path.is_dir():
            raise MaskwrightError(f"{run.path} is a file", "a folder for the run", "choose another --out")
        earlier = run.path / RECORD
        if earlier.exists():
            if not resume:
                raise MaskwrightError(
                    f"{run.path} already holds a run",
                    "a new folder",
                    "add --resume to continue it, or choose another --out",
                )
            run.record = run._read(earlier)
            run._must_match(record)
            run.record.update({k: v for k, v in record.items() if k not in ("started", "command")})
            run.record.setdefault("resumed", []).append(now())
        else:
            if run.path.is_dir() and any(run.path.iterdir()) and not resume:
                raise MaskwrightError(
                    f"{run.path} is not empty and holds no run",
                    "a new or empty folder",
                    "choose another --out",
                )
            run.record = dict(record)
        if writes:
            try:
                run.path.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise MaskwrightError(
                    f"cannot make {run.path}: {error.strerror}", "a folder that can be written"
                ) from error
        run.save()
        return run

    @staticmethod
    def _read(path: Path) -> dict[str, Any]:
        try:
            return json.loads(path.read_text())
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            raise MaskwrightError(
                f"{path} cannot be read: {error}", "the record of a run", "choose another --out"
            ) from error

    def _must_match(self, record: Mapping[str, Any]) -> None:
        asked = json.loads(json.dumps(dict(record), default=str))
        pairs = {k: (self.record.get(k), asked.get(k)) for k in IDENTITY}
        pairs["data"] = (
            self.record.get("data", {}).get("fingerprint"),
            asked.get("data", {}).get("fingerprint"),
        )
        for key, (was, now_) in pairs.items():
            if was != now_:
                raise MaskwrightError(
                    f"{self.path} was made with {key} = {_short(was)}, not {_short(now_)}",
                    "the same settings to resume it",
                    "repeat the command of its run.json, or choose another --out",
                )

    def save(self, **changes: Any) -> None:
        """Writes `run.json`, with changes."""
        self.record.update(changes)
        if self.writes:
            write_json(self.path / RECORD, self.record)

    def stage_folder(self, name: str) -> Path:
        """The folder of a stage, made if missing."""
        folder = self.path / name
        if self.writes:
            folder.mkdir(parents=True, exist_ok=True)
        return folder

    def log(self, stage: str, step: int, values: Mapping[str, float]) -> None:
        """Adds one line to `metrics.jsonl`."""
        if self.writes:
            line = json.dumps({"stage": stage, "step": step, **values})
            with (self.path / METRICS).open("a") as out:
                out.write(line + "\n")

    def metrics(self) -> list[dict[str, Any]]:
        """The lines of `metrics.jsonl`; a line cut off by a kill is left out."""
        path = self.path / METRICS
        lines = []
        for text in path.read_text().splitlines() if path.exists() else []:
            try:
                lines.append(json.loads(text))
            except json.JSONDecodeError:
                continue
        return lines

    def forget_metrics(self, stage: str, from_step: int) -> None:
        """Drops a stage's lines from a step on: a resumed stage writes them again."""
        if not self.writes or not (self.path / METRICS).exists():
            return
        kept = [m for m in self.metrics() if m["stage"] != stage or m["step"] < from_step]
        scratch = self.path / (METRICS + f".{os.getpid()}.tmp")
        scratch.write_text("".join(json.dumps(m) + "\n" for m in kept))
        os.replace(scratch, self.path / METRICS)


def save_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> None:
    """Writes a stage's artefact as safetensors, beside and renamed."""
    with atomic_write(path) as beside:
        save_file({k: v.detach().cpu().contiguous() for k, v in tensors.items()}, beside, dict(metadata or {}))


def now() -> str:
    """The present time in UTC, to the second, as ISO 8601."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def versions() -> dict[str, str]:
    """Versions of what a result depends on."""
    out = {"python": platform.python_version()}
    for name in (
        "maskwright",
        "torch",
        "torchvision",
        "timm",
        "segmentation-models-pytorch",
        "numpy",
        "scipy",
        "numba",
    ):
        try:
            out[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return out


class Stopwatch:
    """Seconds since it was made, over the parts of a resumed run."""

    def __init__(self, before: float = 0.0) -> None:
        self._start = time.perf_counter() - before

    @property
    def seconds(self) -> float:
        """Seconds so far."""
        return time.perf_counter() - self._start


def _short(value: Any) -> str:
    text = json.dumps(value, default=str)
    return text if len(text) < 120 else text[:117] + "..."
