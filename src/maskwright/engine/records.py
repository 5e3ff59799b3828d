"""A run is a folder: `run.json`, `metrics.jsonl`, one folder a stage, `model.safetensors`, `report.html`."""

from __future__ import annotations

import json
import math
import platform
import shlex
import sys
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import filelock
from safetensors.torch import save
from torch import Tensor

from maskwright.data.files import write_bytes, write_json, write_text
from maskwright.engine.distributed import broadcast_object
from maskwright.errors import MaskwrightError

if TYPE_CHECKING:
    from maskwright.data.folder import Dataset

RECORD = "run.json"
METRICS = "metrics.jsonl"
LEDGER = "ledger.json"
MODEL = "model.safetensors"
LOCK = ".lock"
IDENTITY = (
    "method",
    "config",
    "seed",
    "steps",
    "classes_asked",
    "split",
    "labeled",
    "labeled_hash",
    "source",
    "weights_key",
)
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
        # One lock a path and process: the same process may open its run again.
        self._lock = filelock.FileLock(self.path / LOCK, timeout=0, is_singleton=True)

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
                holds a run with other settings, or is in use by another process.
        """
        run = cls(path, writes)
        failure: MaskwrightError | None = None
        if writes:
            try:
                run._open(record, resume)
            except MaskwrightError as error:
                failure = error
        else:
            run.record = dict(record)
        # The first process speaks for all: another would take the record that it has just written for an earlier run.
        failure, run.record = broadcast_object((failure, run.record))
        if failure is not None:
            raise failure
        return run

    @staticmethod
    def check(path: Path, *, resume: bool) -> None:
        """Says early whether a run may go to a folder.

        Raises:
            MaskwrightError: when it is a file, holds a run and `resume` is False, or holds other files.
        """
        if path.exists() and not path.is_dir():
            raise MaskwrightError(f"{path} is a file", "a folder for the run", "choose another --out")
        if resume or not path.is_dir():
            return
        if (path / RECORD).exists():
            raise MaskwrightError(
                f"{path} already holds a run", "a new folder", "add --resume to continue it, or choose another --out"
            )
        if any(p.name != LOCK for p in path.iterdir()):
            raise MaskwrightError(
                f"{path} is not empty and holds no run", "a new or empty folder", "choose another --out"
            )

    def _open(self, record: Mapping[str, Any], resume: bool) -> None:
        self.check(self.path, resume=resume)
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise MaskwrightError(
                f"cannot make {self.path}: {error.strerror}", "a folder that can be written"
            ) from error
        self._hold()
        try:
            if (self.path / RECORD).exists():
                self.record = self._read(self.path / RECORD)
                self._must_match(record)
                self.record.update({k: v for k, v in record.items() if k not in ("started", "command")})
                self.record.setdefault("resumed", []).append(now())
            else:
                self.record = dict(record)
            self.save()
        except BaseException:
            self._lock.release()
            raise

    def _hold(self) -> None:
        """Keeps other processes out until `release`; the system lets go when this one ends, however it ends."""
        try:
            self._lock.acquire()
        except filelock.Timeout as error:
            raise MaskwrightError(
                f"{self.path} is in use by another process", "one process a run", "wait for it, or choose another --out"
            ) from error
        except (OSError, NotImplementedError):
            pass  # a file system without locks: better no guard than no run

    def release(self) -> None:
        """Lets other processes go on with the run."""
        self._lock.release(force=True)

    @staticmethod
    def _read(path: Path) -> dict[str, Any]:
        try:
            record = json.loads(path.read_text())
        except (OSError, ValueError) as error:
            raise MaskwrightError(
                f"{path} cannot be read: {error}", "the record of a run", "choose another --out"
            ) from error
        if not isinstance(record, dict):
            raise MaskwrightError(f"{path} holds no record", "the record of a run", "choose another --out")
        return record

    def _must_match(self, record: Mapping[str, Any]) -> None:
        asked = json.loads(json.dumps(dict(record), default=str))
        pairs = {k: (self.record.get(k), asked.get(k)) for k in IDENTITY}
        pairs["data"] = (
            self.record.get("data", {}).get("fingerprint"),
            asked.get("data", {}).get("fingerprint"),
        )
        for key, (was, now_) in pairs.items():
            if key == "labeled_hash" and was is None:
                continue  # recorded before every run that reads masks had one
            if was != now_ and key == "labeled_hash":
                raise MaskwrightError(
                    f"{self.path} was made with masks of other images (sha256 of their names {str(was)[:12]}, "
                    f"not {str(now_)[:12]})",
                    "the same masks to resume it",
                    "put masks/ or the list of --labeled back as it was, or choose another --out",
                )
            if was != now_:
                raise MaskwrightError(
                    f"{self.path} was made with {_difference(key, was, now_)}",
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
        """Adds one line to `metrics.jsonl`; what is not a finite number is written as null."""
        if self.writes:
            numbers = {k: v if math.isfinite(v) else None for k, v in values.items()}
            line = json.dumps({"stage": stage, "step": step, **numbers})
            with (self.path / METRICS).open("a") as out:
                out.write(line + "\n")

    def metrics(self) -> list[dict[str, Any]]:
        """The lines of `metrics.jsonl`; a line cut off by a kill is left out."""
        path = self.path / METRICS
        lines = []
        for text in path.read_text(errors="replace").split("\n") if path.exists() else []:
            try:
                line = json.loads(text)
            except json.JSONDecodeError:
                continue
            if isinstance(line, dict) and "stage" in line and "step" in line:
                lines.append(line)
        return lines

    def forget_metrics(self, stage: str, from_step: int) -> None:
        """Drops a stage's lines from a step on: a resumed stage writes them again."""
        if not self.writes or not (self.path / METRICS).exists():
            return
        kept = [m for m in self.metrics() if m["stage"] != stage or m["step"] < from_step]
        write_text(self.path / METRICS, "".join(json.dumps(m) + "\n" for m in kept))


def save_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> None:
    """Writes a stage's artefact as safetensors, beside and renamed."""
    write_bytes(path, save({k: v.detach().cpu().contiguous() for k, v in tensors.items()}, dict(metadata or {})))


def now() -> str:
    """The present time in UTC, to the second, as ISO 8601."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def command() -> str:
    """The command line that made the run, or the function that did."""
    program = Path(sys.argv[0])
    ours = program.name == "maskwright" or program.parts[-2:] == ("maskwright", "cli.py")
    return shlex.join(["maskwright", *sys.argv[1:]]) if ours else "maskwright.train"


def labels_note(images: Dataset, labeled: str | Path | None, digest: str) -> str:
    """How many masks may be read, and which these are.

    Args:
        images: of the run, masks beyond `labeled` hidden.
        labeled: name of a split, or a file, which may name images of other splits; None where `masks/` decides.
        digest: hash of the names of the images whose mask may be read.
    """
    read = sum(i.mask is not None for i in images.items)
    which = f"(sha256 of their names {digest[:12]})"
    if labeled is None:
        return f"Labelled: {read} of {len(images)} images have a mask {which}."
    named = len(set(images.list_names(labeled)[0]))
    few = "" if read == named else f" of the {named} that it names; the others are not of this split or have no mask"
    return f"Labelled: {read} images by {labeled}{few} {which}."


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


def _difference(key: str, was: Any, now_: Any) -> str:
    """What differs, by the names of the settings that do where both are tables of settings."""
    if not (isinstance(was, dict) and isinstance(now_, dict)):
        return f"{key} = {_short(was)}, not {_short(now_)}"
    names = sorted(k for k in was.keys() | now_.keys() if k not in was or k not in now_ or was[k] != now_[k])
    sides = [{k: _short(d[k]) if k in d else "unknown" for k in names} for d in (was, now_)]
    parts = [f"{k} = {sides[0][k]}, not {sides[1][k]}" for k in names]
    return f"{key}: {'; '.join(parts)}"


def _short(value: Any) -> str:
    text = json.dumps(value, default=str)
    return text if len(text) < 120 else text[:117] + "..."
