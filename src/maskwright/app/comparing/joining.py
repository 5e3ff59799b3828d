"""What joins runs and what keeps them apart.

Seeds of equal settings are joined to means and sample standard deviations, within one judgement alone: the same
protocol on the same images against the same labels. What differs between settings names them.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from io import StringIO
from typing import Any

import numpy as np

from maskwright.app.comparing.judged import Judgement, commands_for, forget_data, judgement_of, names_judged
from maskwright.app.comparing.runs import OPTION, Run, Setting
from maskwright.app.html import count
from maskwright.evaluate.scores import Scores

LABELS = "labels"
"""The setting that is the hash of the labels' contents."""


@dataclass(frozen=True)
class Figure:
    """One figure over seeds, a fraction in [0, 1] where the protocol's is.

    Attributes:
        each: of each run, None where it has none.
    """

    each: tuple[float | None, ...]

    @property
    def known(self) -> list[float]:
        """The values there are."""
        return [v for v in self.each if v is not None]

    @property
    def n(self) -> int:
        """How many they are."""
        return len(self.known)

    @property
    def mean(self) -> float:
        """Their mean, NaN of none."""
        return float(np.mean(self.known)) if self.known else math.nan

    @property
    def spread(self) -> float:
        """Their sample standard deviation (n - 1), NaN of fewer than two."""
        return float(np.std(self.known, ddof=1)) if self.n > 1 else math.nan

    def to_json(self) -> dict[str, Any]:
        """As JSON values; None for what there is not."""
        plain = {"mean": self.mean, "spread": self.spread}
        return {k: v if math.isfinite(v) else None for k, v in plain.items()} | {"n": self.n, "each": list(self.each)}


@dataclass
class Group:
    """Runs that differ in nothing but their seed.

    Attributes:
        number: its place, which is its colour.
        settings: of all of its runs, by name.
        runs: by seed; of one seed that stands twice, both.
        name: what tells it from the others.
        cells: the settings that differ between groups, in words, by name.
    """

    number: int
    settings: dict[str, Setting]
    runs: list[Run]
    name: str = ""
    cells: dict[str, str] = field(default_factory=dict)

    @property
    def letter(self) -> str:
        """Its number as A, B, ..., Z, AA, ..."""
        letters, number = "", self.number + 1
        while number:
            number, rest = divmod(number - 1, 26)
            letters = chr(ord("A") + rest) + letters
        return letters

    @property
    def short(self) -> str:
        """A heading of few characters: its letter and its method."""
        return f"{self.letter} {self.settings['method'].shown}"


@dataclass
class Row:
    """One group under one judgement.

    Attributes:
        group: which.
        runs: those of its runs that count here, one a seed.
        scores: of each.
        figures: by name.
        per_class: IoU by the class's name.
    """

    group: Group
    runs: list[Run]
    scores: list[Scores]
    figures: dict[str, Figure]
    per_class: dict[str, Figure]

    @property
    def seeds(self) -> str:
        """The seeds that count, and how many they are."""
        return f"{', '.join('?' if r.seed is None else str(r.seed) for r in self.runs)} (n={len(self.runs)})"


@dataclass
class Table:
    """All groups that were judged in one way.

    Attributes:
        judgement: which.
        rows: highest mean IoU first where `ranked`, else as the runs were named.
        ranked: whether none of the judged labels was used for training or selection, as far as that can be told.
    """

    judgement: Judgement
    rows: list[Row]
    ranked: bool = True


@dataclass(repr=False)
class Comparison:
    """Runs side by side.

    Attributes:
        runs: all that were read.
        groups: seeds joined by equal settings.
        columns: names of the settings that differ between groups and name them.
        tables: one a judgement.
        unjudged: the runs without a judgement, and the commands that give each one, or why there is none.
        notices: what a reader must know, in sentences.
    """

    runs: list[Run]
    groups: list[Group]
    columns: list[str]
    tables: list[Table]
    unjudged: list[tuple[Run, list[str]]]
    notices: list[str]

    def to_json(self) -> dict[str, Any]:
        """As JSON values."""
        return {
            "runs": [
                {
                    "path": str(run.path), "seed": run.seed, "group": group.number, "status": run.record.get("status"),
                    "seconds": run.seconds, "labels_read": run.record.get("labels_read"),
                    "judgements": {name: scores.to_json() for name, scores in run.judgements.items()},
                }
                for group in self.groups for run in group.runs
            ],
            "groups": [
                {
                    "number": g.number, "letter": g.letter, "name": g.name, "differs": g.cells,
                    "settings": {name: setting.value for name, setting in g.settings.items()},
                }
                for g in self.groups
            ],
            "judgements": [
                {
                    **table.judgement.to_json(), "ranked": table.ranked,
                    "rows": [
                        {
                            "group": row.group.number, "name": row.group.name, "seeds": [r.seed for r in row.runs],
                            "runs": [str(r.path) for r in row.runs], "n": len(row.runs),
                            "figures": {k: f.to_json() for k, f in row.figures.items()},
                            "per_class": {k: f.to_json() for k, f in row.per_class.items()},
                        }
                        for row in table.rows
                    ],
                }
                for table in self.tables
            ],
            "unjudged": [{"path": str(run.path), "commands": commands} for run, commands in self.unjudged],
            "notices": self.notices,
        }  # fmt: skip

    def __repr__(self) -> str:
        return f"Comparison({count(len(self.runs), 'run')}, {count(len(self.groups), 'setting')})"

    def __str__(self) -> str:
        """The tables as the command line prints them."""
        from maskwright.app.comparing.tables import print_comparison

        text = StringIO()
        print_comparison(self, text)
        return text.getvalue()

    def _repr_html_(self) -> str:
        from maskwright.app.comparing.page import tables_html

        return tables_html(self)


def join(runs: Sequence[Run]) -> Comparison:
    """Runs joined by equal settings and by equal judgement.

    Args:
        runs: at least one.
    """
    forget_data()
    notices = [sentence for run in runs for sentence in run.damaged]
    groups = _groups(runs)
    columns = _name(groups)
    for group in groups:
        notices += _odd_seeds(group)
    tables = _tables(groups, notices)
    notices += _kept_apart(tables)
    seen = {id(run) for table in tables for row in table.rows for run in row.runs}
    # A second run of a seed is told above; it has its judgement.
    unjudged = [run for run in runs if id(run) not in seen and not run.judgements]
    likes = [(row.group, scores) for table in tables for row in table.rows for scores in row.scores]
    group_of = {id(run): group for group in groups for run in group.runs}
    commands = [(run, commands_for(run, _as_own(group_of[id(run)], likes))) for run in unjudged]
    return Comparison(list(runs), groups, columns, tables, commands, notices)


def _as_own(group: Group, likes: Sequence[tuple[Group, Scores]]) -> list[Scores]:
    """How others were judged, those of the same settings first."""
    return [scores for _, scores in sorted(likes, key=lambda like: like[0] is not group)]


def _groups(runs: Sequence[Run]) -> list[Group]:
    found: dict[str, Group] = {}
    for run in runs:
        values = {name: setting.value for name, setting in run.settings.items()}
        key = json.dumps(values, sort_keys=True, default=str)
        group = found.setdefault(key, Group(len(found), run.settings, []))
        group.runs.append(run)
    for group in found.values():
        group.runs.sort(key=lambda run: math.inf if run.seed is None else run.seed)
    return list(found.values())


def _name(groups: Sequence[Group]) -> list[str]:
    """Names the groups by what differs between them; gives the names of these settings.

    An option is only told of where two groups of one method differ in it: methods have options of their own.
    """
    differing: dict[str, None] = {}
    for name in dict.fromkeys(name for group in groups for name in group.settings):
        option = name.startswith(OPTION)
        for method in {group.settings["method"].value for group in groups} if option else (None,):
            alike = [g for g in groups if method is None or g.settings["method"].value == method]
            values = {json.dumps(_value(g, name), sort_keys=True, default=str) for g in alike}
            if len(values) > 1:
                differing[name] = None
    if LABELS in differing and len({_others(g, differing) for g in groups}) == len(groups):
        del differing[LABELS]  # a hash tells a reader nothing that the other settings do not
    for name in differing:
        words = [g.settings[name].shown if name in g.settings else "–" for g in groups]
        sums = [_digest(json.dumps(_value(g, name), sort_keys=True, default=str)) for g in groups]
        for group, word, own in zip(groups, words, sums):
            # Two things of one name: the sum of their contents tells them apart.
            twin = any(w == word and s != own for w, s in zip(words, sums))
            group.cells[name] = f"{word} [{own}]" if twin else word
    for group in groups:
        said = [text if name == "method" else f"{_plain(name)} {text}" for name, text in group.cells.items()]
        group.name = ", ".join(said) or group.settings["method"].shown
    return list(differing)


def _others(group: Group, names: Iterable[str]) -> str:
    """All that differs but the labels' contents, as one text."""
    return json.dumps([_value(group, name) for name in names if name != LABELS], sort_keys=True, default=str)


def _plain(name: str) -> str:
    return name.removeprefix(OPTION)


def _value(group: Group, name: str) -> Any:
    return group.settings[name].value if name in group.settings else None


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:6]


def _odd_seeds(group: Group) -> list[str]:
    """What is odd of the seeds of one group: one that stands twice, other machines or versions."""
    told = []
    for seed, n in Counter(run.seed for run in group.runs).items():
        if n > 1:
            where = ", ".join(str(run.path) for run in group.runs if run.seed == seed)
            told.append(f"Seed {seed} of {group.name} stands {n} times ({where}): it counts once.")
    for what, of in (("device", lambda r: r.get("device")), ("versions", lambda r: r.get("versions"))):
        values = {json.dumps(of(run.record), sort_keys=True, default=str) for run in group.runs}
        if len(values) > 1:
            told.append(f"The seeds of {group.name} were not all made with the same {what}.")
    return told


def _tables(groups: Sequence[Group], notices: list[str]) -> list[Table]:
    """The groups under each judgement; those most were judged by come first."""
    found: dict[Judgement, dict[int, dict[int | None, tuple[Run, Scores]]]] = {}
    for group in groups:
        for run in group.runs:
            for scores in run.judgements.values():
                of_seed = found.setdefault(judgement_of(run, scores), {}).setdefault(group.number, {})
                # Runs without a recorded seed are not the same seed.
                of_seed.setdefault(run.seed if run.seed is not None else -1 - len(of_seed), (run, scores))
    tables = []
    for judgement, by_group in found.items():
        rows = [_row(groups[number], list(by_seed.values())) for number, by_seed in by_group.items()]
        table = Table(judgement, rows)
        notices += _used(table)
        if len({s.averaging for row in rows for s in row.scores}) > 1:
            notices.append(
                f"Under {judgement.protocol} mIoU is not a mean over the same classes in each run: a class counts "
                "where truth or prediction has it."
            )
        if table.ranked:
            rows.sort(key=lambda row: -_or_lowest(row.figures["mIoU"].mean))
        tables.append(table)
    return sorted(tables, key=lambda table: -sum(len(row.runs) for row in table.rows))


def _or_lowest(x: float) -> float:
    return -math.inf if math.isnan(x) else x


def _row(group: Group, judged: list[tuple[Run, Scores]]) -> Row:
    runs, scores = [run for run, _ in judged], [s for _, s in judged]
    names = dict.fromkeys(name for s in scores for name in s.figures())
    figures = {name: Figure(tuple(_finite(s.figures().get(name)) for s in scores)) for name in names}
    classes = dict.fromkeys(str(row["name"]) for s in scores for row in s.per_class)
    by_name = [{str(row["name"]): row["iou"] for row in s.per_class} for s in scores]
    per_class = {name: Figure(tuple(_finite(each.get(name)) for each in by_name)) for name in classes}
    return Row(group, runs, scores, figures, per_class)


def _finite(x: float | None) -> float | None:
    return float(x) if x is not None and math.isfinite(x) else None


def _used(table: Table) -> list[str]:
    """Says which runs had read the labels that they are judged by; then the table ranks nothing."""
    told, unknown = [], []
    for row in table.rows:
        for run, scores in zip(row.runs, row.scores):
            judged = names_judged(run, scores)
            read = {purpose: run.noted([purpose]) for purpose in ("train", "select")}
            if any(names is None for names in read.values()):
                unknown.append(run)
                continue
            if judged is None:
                if any(read.values()):
                    unknown.append(run)
                continue
            for purpose, what in (("train", "training"), ("select", "selection")):
                if both := judged & (read[purpose] or set()):
                    told.append(
                        f"{run.path} read the masks of {len(both)} of the {len(judged)} judged images for {what}: "
                        "its figures do not tell of unseen photographs."
                    )
    table.ranked = not told
    if told:
        told.append(f"Judged by labels that runs had used, the table of {table.judgement.protocol} is not ranked.")
    if unknown:
        told.append(
            f"Whether {_some(unknown)} had read the masks that they are judged by cannot be told: "
            "they are not of the run's own data, or data or ledger are not at their place."
        )
    return told


def _some(runs: Sequence[Run]) -> str:
    first = ", ".join(str(run.path) for run in runs[:3])
    return first if len(runs) <= 3 else f"{first} and {count(len(runs) - 3, 'other')}"


def _kept_apart(tables: Sequence[Table]) -> list[str]:
    """Says in what the judgements differ, where there is more than one."""
    if len(tables) < 2:
        return []
    fields = [table.judgement.told() for table in tables]
    differing = [name for name in fields[0] if len({f[name] for f in fields}) > 1]
    told = [
        f"The runs were judged in {len(tables)} ways, which are neither joined nor ranked together; they differ in "
        f"{' and '.join(differing)}."
    ]
    if any(not t.judgement.labels_hash for t in tables) and any(t.judgement.labels_hash for t in tables):
        told.append(
            "Some judgements hold no hash of their labels, being of an earlier version: judge those runs again to join "
            "them with the others."
        )
    return told
