"""A run is a folder: `run.json`, `metrics.jsonl`, one folder a stage, `model.safetensors`, `report.html`."""

from __future__ import annotations

import json
import logging
import math
import platform
import shlex
import sys
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import filelock
from torch import Tensor

from maskwright.data.trust.artefacts import Damage, misfit, parse_json, parse_record, read_record, write_record
from maskwright.data.trust.files import sweep, write_text
from maskwright.data.trust.identity import LabelIdentity
from maskwright.engine.distributed import broadcast_object
from maskwright.errors import MaskwrightError
from maskwright.models.tensors import load_tensors

if TYPE_CHECKING:
    from maskwright.data.folders.folder import Dataset
    from maskwright.engine.event_log import EventLog
    from maskwright.engine.length import Length

LOG = logging.getLogger("maskwright.metrics")

RECORD = "run.json"
METRICS = "metrics.jsonl"
LEDGER = "ledger.json"
LABELS = "labels.json"
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
    "reading",
    "weights_key",
)
"""What must be the same for a run to be resumed: with another value it would be another run."""
LATER = ("labeled_hash", "reading")
"""What runs of earlier versions did not record; where it is missing, it is not compared."""
KEPT = ("started", "command", "minutes")
"""What a resumed run keeps of its first record."""
RUNNING, FINISHED, INTERRUPTED, FAILED = "running", "finished", "interrupted", "failed"
"""Where a run stands. One that says `running` and that no process holds was killed."""
WORDS = {
    RUNNING: "was killed: its process ended without a word",
    FINISHED: "is finished",
    INTERRUPTED: "was interrupted",
    FAILED: "failed",
}
SHAPE: dict[str, Any] = {
    "status?": str,
    "command?": str,
    "method?": {"name?": str},
    "config?": dict,
    "options?": dict,
    "data?": {"fingerprint?": (str, None), "labels?": (dict, None)},
    "sources?": {str: {"fingerprint?": str, "reading?": (dict, None)}},
    "inputs?": {str: {"kind": str, "place": str, "hash": str}},
    "labels_read?": {str: {str: int}},
    "labels_read_by_stream?": {str: {str: {str: int}}},
    "backbone?": (dict, None),
    "provenance?": (dict, None),
    "notes?": [str],
    "resumed?": [str],
    "named?": {"run": str, "map": [{"cluster": int, "name": str}]},
    "steps?": (int, None),
    "minutes?": (dict, None),
    "lengthened?": [{"from": int, "to": int, "when": str}],
    "as_it_stands?": (dict, None),
    "model_key?": str,
    "stages?": [dict],
}
"""What a run's record holds, as `data.trust.artefacts.misfit` reads it."""


class RunFolder:
    """The record of one run.

    Args:
        path: the run's folder.
        writes: False in all but the first of several processes; then nothing is written.

    Attributes:
        record: what `run.json` says.
        events: gets what `metrics.jsonl` gets; None where nobody asked for it.
        earlier: a sentence on how an earlier process of this run ended, where it ended without a word.
        at: the training stage that is under way, the step that it makes, and how many it has; None before the first.
        kept: the same of its last checkpoint.
    """

    def __init__(self, path: Path, writes: bool = True) -> None:
        self.path = Path(path)
        self.writes = writes
        self.record: dict[str, Any] = {}
        self.earlier = ""
        self.events: EventLog | None = None
        self.at: tuple[str, int, int] | None = None
        self.kept: tuple[str, int, int] | None = None
        # One lock a path and process: the same process may open its run again.
        self._lock = filelock.FileLock(self.path / LOCK, timeout=0, is_singleton=True)

    @classmethod
    def start(
        cls,
        path: Path,
        record: Mapping[str, Any],
        *,
        resume: bool,
        writes: bool = True,
        labels: LabelIdentity | None = None,
        defaults: Mapping[str, Any] | None = None,
        length: Length | None = None,
    ) -> RunFolder:
        """Makes the folder of a new run, or opens an earlier one to resume it.

        Args:
            path: the run's folder.
            record: what `run.json` says from the start.
            resume: continue the run that lies there; a folder without one starts anew.
            writes: whether this process writes.
            labels: the contents of what the run reads; kept in `labels.json`, compared when resumed.
            defaults: what `config` holds where nothing is set; a run of before options had parts is compared with it
                in options that it did not know.
            length: what decides whether an earlier run may be given more steps; None: it may not.

        Raises:
            MaskwrightError: when the folder holds a run and `resume` is False, holds other files, cannot be written,
                holds a run with other settings or labels, or is in use by another process.
        """
        run = cls(path, writes)
        failure: MaskwrightError | None = None
        if writes:
            try:
                run._open(record, resume, labels, defaults or {}, length)
            except MaskwrightError as error:
                failure = error
        else:
            run.record = dict(record)
        # The first process speaks for all: another would take the record that it has just written for an earlier run.
        failure, run.record, run.earlier = broadcast_object((failure, run.record, run.earlier))
        if failure is not None:
            raise failure
        return run

    @classmethod
    def check(cls, path: Path, *, resume: bool) -> None:
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
                f"{path} already holds a run{cls._standing(path)}",
                "a new folder",
                "add --resume to continue it, or choose another --out",
            )
        if any(p.name != LOCK for p in path.iterdir()):
            raise MaskwrightError(
                f"{path} is not empty and holds no run", "a new or empty folder", "choose another --out"
            )

    @classmethod
    def _standing(cls, path: Path) -> str:
        """ " that was interrupted", as far as its record can be read; empty where not."""
        word = cls.standing(path)
        return f" that {word}" if word else ""

    @classmethod
    def standing(cls, path: Path) -> str:
        """Where the run in a folder stands, as "was interrupted"; empty where the folder tells of none.

        A run whose record says `running` is under way where a process holds it, else it was killed.
        """
        try:
            status = parse_record((path / RECORD).read_bytes()).get("status")
        except (OSError, Damage):
            return ""
        if status == RUNNING and cls(path)._is_held():
            return "is under way in another process"
        return WORDS.get(status, "") if isinstance(status, str) else ""

    def _is_held(self) -> bool:
        """Whether another process holds the run."""
        if self._lock.is_locked:  # this process itself
            return True
        try:
            self._lock.acquire()
        except filelock.Timeout:
            return True
        except (OSError, NotImplementedError):
            return False
        self._lock.release()
        return False

    def _open(
        self,
        record: Mapping[str, Any],
        resume: bool,
        labels: LabelIdentity | None,
        defaults: Mapping[str, Any],
        length: Length | None,
    ) -> None:
        self.check(self.path, resume=resume)
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise MaskwrightError(
                f"cannot make {self.path}: {error.strerror}", "a folder that can be written"
            ) from error
        self._hold()
        try:
            sweep([self.path], deep=True)  # nobody else writes here while the run is held
            if (self.path / RECORD).exists():
                self.record = self._read(self.path / RECORD)
                if self.record.get("status") == RUNNING:
                    self.earlier = "the earlier process of this run ended without a word; going on from what it saved"
                self._must_have_labels(labels)
                steps = record.get("steps")
                if length is not None:
                    steps = length.settle(self.path, self.record, steps)
                    record = {**record, "steps": self.record.get("steps")}
                self._must_match(record, defaults)
                self._must_have_inputs(record.get("inputs") or {})
                if length is not None and steps != record["steps"]:
                    was = record["steps"] or length.own
                    self.record.setdefault("lengthened", []).append({"from": was, "to": steps, "when": now()})
                    record = {**record, "steps": steps}
                self.record.update({k: v for k, v in record.items() if k not in KEPT})
                self.record.setdefault("resumed", []).append(now())
            else:
                self.record = dict(record)
            if labels is not None:
                write_record(self.path / LABELS, labels.to_json())
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
        """Lets other processes go on with the run, and ends its events."""
        if self.events is not None:
            self.events.close()
            self.events = None
        self._lock.release(force=True)

    @staticmethod
    def _read(path: Path) -> dict[str, Any]:
        repair = 'choose another --out; where it was changed by hand on purpose, delete its line "checksum"'
        return read_record(path, SHAPE, what="the record of a run", repair=repair)

    def _must_have_labels(self, labels: LabelIdentity | None) -> None:
        """Compares the contents of labels with those that the run was made with; runs without a list pass.

        Raises:
            MaskwrightError: something changed, or the list is damaged.
        """
        path, summary = self.path / LABELS, (self.record.get("data") or {}).get("labels")
        if labels is None or not summary:
            return
        if path.exists():
            repair = f"delete {path} and repeat the command; {RECORD} tells whether anything changed, but not what"
            read = read_record(path, dict, what="the labels that the run was begun with", repair=repair)
            changed = labels.changes_since(LabelIdentity.from_json(read))
        else:
            today = labels.summary()
            changed = [f"the {kind} changed" for kind, was in summary.items() if today.get(kind, was) != was]
        if changed:
            raise MaskwrightError(
                f"since {self.path} was begun, {'; '.join(changed)}",
                "the labels that it was begun with",
                "put them back as they were to continue it, or choose another --out to train on those of today",
            )

    def _must_match(self, record: Mapping[str, Any], defaults: Mapping[str, Any]) -> None:
        asked, defaults = (json.loads(json.dumps(dict(d), default=str)) for d in (record, defaults))
        pairs = {k: (self.record.get(k), asked.get(k)) for k in IDENTITY}
        if "options" in asked and "options" not in self.record:
            # Before options had parts, records held those without a use in the method too, which now may be gone, and
            # lacked those that a part brings to methods that did without: these did as their default says.
            was = self.record.get("config") or {}
            known = {k: was.get(k, defaults.get(k)) for k in asked["config"] if k in was or k in defaults}
            pairs["config"] = (known, asked["config"])
        pairs["data"] = (
            (self.record.get("data") or {}).get("fingerprint"),
            (asked.get("data") or {}).get("fingerprint"),
        )
        pairs["sources"] = (_source_identity(self.record), _source_identity(asked))
        for key, (was, now_) in pairs.items():
            if key in LATER and was is None:
                continue
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

    def _must_have_inputs(self, today: Mapping[str, Any]) -> None:
        """Compares second networks and proposals with those that the run was begun with, by their contents.

        Raises:
            MaskwrightError: one is another, is missing, or is new.
        """
        before = self.record.get("inputs") or {}
        for name in sorted(before.keys() | today.keys()):
            sides = [
                f"{one[name]['place']}, {one[name]['hash'][:12]}" if name in one else "none" for one in (before, today)
            ]
            if name not in before or name not in today or before[name]["hash"] != today[name]["hash"]:
                raise MaskwrightError(
                    f"{self.path} was made with another input {name} ({sides[0]}; now {sides[1]})",
                    "the same contents to resume it",
                    "give it as it was, or choose another --out",
                )

    def save(self, **changes: Any) -> None:
        """Writes `run.json`, with changes."""
        self.record.update(changes)
        if self.writes:
            write_record(self.path / RECORD, self.record)

    def tensors(self, stage: str, name: str | Path, expected: Mapping[str, str | tuple[str, str]]) -> dict[str, Tensor]:
        """The tensors that a stage left in its file `name`, as `models.tensors.load_tensors` gives them.

        Raises:
            MaskwrightError: they are missing or damaged; tells how to make them again.
        """
        return load_tensors(self.path / stage / name, expected, self._again(stage))

    def artefact(self, stage: str, name: str | Path, shape: Any) -> dict[str, Any]:
        """The record that a stage left in its file `name`; `shape` as for `data.trust.artefacts.misfit`.

        Raises:
            MaskwrightError: it is missing or damaged; tells how to make it again.
        """
        what = f"what the {stage} stage wrote"
        return read_record(self.path / stage / name, shape, what=what, repair=self._again(stage))

    def _again(self, stage: str) -> str:
        return f"delete {self.path / stage} and repeat the command with --resume; that stage then starts over"

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
            LOG.info("%s", line)
            if self.events is not None:
                self.events.add(stage, step, numbers)

    def log_events(self, events: EventLog) -> None:
        """From here on events get what `metrics.jsonl` gets; what it holds already comes first."""
        self.events = events
        found = self.metrics()
        for stage in dict.fromkeys(line["stage"] for line in found):
            events.begin(stage, [line for line in found if line["stage"] == stage])

    def metrics(self) -> list[dict[str, Any]]:
        """The lines of `metrics.jsonl`; a line cut off by a kill is left out."""
        path = self.path / METRICS
        lines = []
        for text in path.read_text(errors="replace").split("\n") if path.exists() else []:
            try:
                line = parse_json(text, lenient=True)
            except Damage:
                continue
            if not misfit(line, {"stage": str, "step": int}):
                lines.append(line)
        return lines

    def forget_metrics(self, stage: str, from_step: int) -> None:
        """Drops a stage's lines from a step on: a resumed stage writes them again."""
        if not self.writes or not (self.path / METRICS).exists():
            return
        kept = [m for m in self.metrics() if m["stage"] != stage or m["step"] < from_step]
        write_text(self.path / METRICS, "".join(json.dumps(m) + "\n" for m in kept))
        if self.events is not None:
            self.events.begin(stage, [m for m in kept if m["stage"] == stage])


def went_on_from(record: Mapping[str, Any], models: Sequence[str]) -> bool:
    """Whether a run went on since its model was one of these (`predict.kept.model_key`), and has another by now."""
    own = record.get("model_key")
    return bool(record.get("resumed") and own and models and own not in models)


def now() -> str:
    """The present time in UTC, to the second, as ISO 8601."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def command(function: str = "maskwright.train") -> str:
    """The command line that made the run, or the function that did."""
    program = Path(sys.argv[0])
    modules = (("maskwright", "__main__.py"), ("cli", "__main__.py"))  # python -m maskwright, python -m maskwright.cli
    ours = program.name == "maskwright" or program.parts[-2:] in modules
    return shlex.join(["maskwright", *sys.argv[1:]]) if ours else function


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


def _source_identity(record: Mapping[str, Any]) -> dict[str, Any]:
    """What must be the same of the data sets beside a run's own, by name."""
    kept = ("fingerprint", "split", "reading")
    return {name: {k: data.get(k) for k in kept} for name, data in (record.get("sources") or {}).items()}


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
