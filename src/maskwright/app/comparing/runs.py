"""The runs that are compared: where they lie, what was asked of each, and how each was judged.

A judgement is a file that `maskwright evaluate --json` left in the run's folder: `scores.json`, or another name beside
it where a run was judged in several ways. What a method writes of itself while it selects is no judgement.
"""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from maskwright.app.html import class_table, dotted, inner, number, rows
from maskwright.data.masking.classes import ClassTable
from maskwright.data.trust.artefacts import Damage, parse_json, parse_record, read_record
from maskwright.engine.config_file import CONFIG, said_in
from maskwright.engine.records import LEDGER, MODEL, RECORD, SHAPE, RunFolder, went_on_from
from maskwright.errors import MaskwrightError
from maskwright.evaluate.scores import Scores

SCORES = "scores.json"
"""Where a run's judgement lies."""
OURS = frozenset({RECORD, LEDGER, "labels.json"})
DEEPEST = 4
"""Folders below a named one in which runs are looked for."""
DEFAULT = "default"


@dataclass(frozen=True)
class Setting:
    """One thing that was asked of a run.

    Attributes:
        value: what is compared, JSON values.
        shown: it in a few words.
    """

    value: Any
    shown: str


@dataclass
class Run:
    """One run as it lies in its folder.

    Attributes:
        path: the folder.
        record: its `run.json`.
        standing: where it stands, as "is finished".
        judgements: by the name of their file.
        damaged: what could not be read of it, or is of an earlier model, a sentence each.
    """

    path: Path
    record: Mapping[str, Any]
    standing: str = ""
    judgements: dict[str, Scores] = field(default_factory=dict)
    damaged: list[str] = field(default_factory=list)

    @property
    def seed(self) -> int | None:
        """Its seed, where its record tells."""
        seed = self.record.get("seed")
        return seed if isinstance(seed, int) else None

    @property
    def finished(self) -> bool:
        """Whether it has come to its end."""
        return self.record.get("status") == "finished" and (self.path / MODEL).exists()

    @property
    def method(self) -> str:
        """Name of its method."""
        return str(inner(self.record, "method", "name") or "unknown")

    @property
    def seconds(self) -> float:
        """Time that its stages took, and what came behind them: the model's statistics, pictures, the report."""
        stages = sum(number(stage.get("seconds")) or 0.0 for stage in rows(self.record.get("stages")))
        return stages + (number(self.record.get("seconds_after_stages")) or 0.0)

    @property
    def labels(self) -> str:
        """Labels that were read for training and selection, as "12 masks, 3 masks for selection"."""
        told = []
        for purpose, says in (("train", ""), ("select", " for selection")):
            counts = inner(self.record, "labels_read", purpose) or {}
            told += [f"{n} {kind}{says}" for kind, n in counts.items() if n]
        return ", ".join(told) or "none"

    @property
    def table(self) -> ClassTable | None:
        """Its classes or clusters, where a report was made."""
        return class_table(self.record)

    @cached_property
    def settings(self) -> dict[str, Setting]:
        """All that was asked of it but its seed, by name; runs with equal values are one setting."""
        record = self.record
        data, reading = record.get("data") or {}, record.get("reading")
        backbone = inner(record, "backbone", "architecture")
        # Weights that are drawn are drawn from the seed.
        drawn = inner(record, "backbone", "source") == "random"
        found = {
            "method": Setting(self.method, self.method),
            "data": Setting(data.get("fingerprint"), Path(str(data.get("root") or "unknown")).name),
            "split": Setting(record.get("split"), str(record.get("split") or "all")),
            "labelled": Setting(record.get("labeled_hash"), _labelled(record)),
            "labels": Setting(data.get("labels") or None, "as they are" if data.get("labels") else "none compared"),
            "reading": Setting(_said(reading), _flat_text(_said(reading)) or "auto"),
            "classes": Setting(record.get("classes_asked"), str(record.get("classes_asked"))),
            "names": Setting(record.get("names"), ", ".join(map(str, record.get("names") or [])) or "of the data"),
            "backbone": Setting(
                f"random {backbone}" if drawn else record.get("weights_key"),
                f"{backbone or 'unknown'}{', random weights' if drawn else ''}",
            ),
            "steps": Setting(record.get("steps"), str(record.get("steps") or DEFAULT)),
        }
        for name, source in (record.get("sources") or {}).items():
            contents = {k: source.get(k) for k in ("fingerprint", "split", "reading", "labels")}
            where = Path(str(source.get("root") or "unknown")).name
            found[f"source {name}"] = Setting(contents, where + (f"@{source['split']}" if source.get("split") else ""))
        for name, given in (record.get("inputs") or {}).items():
            place = str(given.get("place") or "unknown")
            value = place if place.endswith("@random") else given.get("hash")
            found[f"input {name}"] = Setting(value, Path(place).name)
        options = record.get("options")
        asked = options if isinstance(options, Mapping) and options else record.get("config")
        for name, chosen in dotted(asked):
            found[f"{OPTION}{name}"] = Setting(chosen, _flat_text(chosen))
        return found

    def noted(self, purposes: Iterable[str] = ("train", "select")) -> set[str] | None:
        """Names of the images of its own data whose masks it read for a purpose; None where nothing tells."""
        try:
            state = parse_record((self.path / LEDGER).read_bytes())
        except (OSError, Damage):
            return None
        names: set[str] = set()
        for purpose in purposes:
            found = inner(state, purpose, "masks")  # other streams stand below a key of their own
            names |= {n for n in found if isinstance(n, str)} if isinstance(found, list) else set()
        return names

    @property
    def data(self) -> str:
        """Its data as a command takes it."""
        return str(said_in(self.path / CONFIG, "data") or inner(self.record, "data", "root") or "DATA")


OPTION = "--set "
"""Before the name of a setting that is an option of the method."""


def _said(reading: object) -> dict[str, Any]:
    """What was said of the values of files; what was not is left out."""
    if not isinstance(reading, Mapping):
        return {}
    return {k: v for k, v in reading.items() if v is not None and v != "auto"}


def _labelled(record: Mapping[str, Any]) -> str:
    if not record.get("labeled_hash"):
        return "no mask"
    count = inner(record, "data", "labels_present", "masks")
    by = record.get("labeled")
    told = f"{count} masks" if isinstance(count, int) else "masks"
    return told + (f" ({Path(str(by)).name})" if by else "")


def _flat_text(value: object) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{k} {_flat_text(v)}" for k, v in value.items())
    if isinstance(value, list):
        return ",".join(map(_flat_text, value))
    return f"{value:g}" if isinstance(value, float) else "none" if value is None else str(value)


def find_runs(places: Iterable[str | os.PathLike[str]]) -> tuple[list[Path], list[str]]:
    """Folders of runs: those named, those below a folder that holds none itself, those that a pattern matches.

    Args:
        places: folders, or patterns with `*`, `?` or `[...]`, which a shell may have left as they are.

    Returns:
        Each folder once, in the order in which they were named, below one folder by name; and a sentence on each place
        that holds no run, of which a pattern that a shell has written out may name some.

    Raises:
        MaskwrightError: there is no such place, or no run in any.
    """
    found: dict[Path, Path] = {}
    empty: list[str] = []
    for place in places:
        text = os.fspath(place)
        named = [text] if os.path.exists(text) else sorted(glob.glob(text, recursive=True), key=natural)
        if not named:
            raise MaskwrightError(f"nothing at {text}", "a run's folder, a folder of runs, or a pattern")
        below = [run for one in named for run in _runs_below(Path(one), DEEPEST)]
        if not below:
            empty.append(text)
        for run in below:
            found.setdefault(run.resolve(), run)
    if not found:
        raise MaskwrightError(
            f"no run in {', '.join(empty[:3])}{' or others' if len(empty) > 3 else ''}",
            f"a folder with {RECORD}, or one of such folders",
            "maskwright train DATA --out RUN",
        )
    return list(found.values()), [f"No run in {text}." for text in empty]


def natural(text: str) -> list[tuple[int, int, str]]:
    """A key by which seed-2 stands before seed-10."""
    return [(0, int(p), "") if p.isdigit() else (1, 0, p) for p in re.split(r"([0-9]+)", str(text))]


def _runs_below(folder: Path, deep: int) -> list[Path]:
    if (folder / RECORD).is_file():
        return [folder]
    if deep == 0 or not folder.is_dir():
        return []
    try:
        inside = sorted((p for p in folder.iterdir() if p.is_dir() and p.name[0] != "."), key=lambda p: natural(p.name))
    except OSError:
        return []
    return [run for one in inside for run in _runs_below(one, deep - 1)]


def read_run(folder: Path) -> Run:
    """A run as it lies in its folder.

    Raises:
        MaskwrightError: its record is damaged.
    """
    repair = 'leave it out; where run.json was changed by hand on purpose, delete its line "checksum"'
    record = read_record(folder / RECORD, SHAPE, what="the record of a run", repair=repair)
    run = Run(folder, record, RunFolder.standing(folder))
    files = sorted((p for p in folder.glob("*.json") if p.name not in OURS), key=lambda p: (p.name != SCORES, p.name))
    for file in files:
        try:
            found = parse_json(file.read_bytes())
            if isinstance(found, Mapping) and {"protocol", "matching", "per_class", "miou"} <= found.keys():
                scores = Scores.from_json(found)
                if went_on_from(record, scores.models):
                    run.damaged.append(
                        f"{file} judges an earlier model of the run, which went on since: it is left out; judge the "
                        "run again."
                    )
                    continue
                run.judgements[file.name] = scores
            elif file.name == SCORES:
                run.damaged.append(f"{file} holds no judgement that `maskwright evaluate` wrote")
        except (OSError, Damage, MaskwrightError) as error:
            if file.name == SCORES:
                run.damaged.append(f"{file} cannot be read ({error})")
    return run
