"""How a run was judged: what must be equal for figures to share a table, and the commands that judge a run."""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from maskwright.app.comparing.runs import SCORES, Run
from maskwright.app.html import inner, rows
from maskwright.data.examining.reading import Reading
from maskwright.data.layouts import open_data
from maskwright.errors import MaskwrightError
from maskwright.evaluate.scores import Scores, hash_names

if TYPE_CHECKING:
    from maskwright.data.folders.folder import Dataset

PREDICTIONS = "predictions"
"""Where in a run the commands put the masks that they judge."""
HELD_OUT = ("test", "val", "valid", "validation", "eval", "evaluation", "dev", "held_out", "heldout")
"""Names of splits that are judged by, the first of them that there is."""


@dataclass(frozen=True)
class Judgement:
    """One way of judging; figures of two do not compare.

    Attributes:
        protocol, matching: as in `Scores`.
        images: how many were judged.
        names_hash: of the names of these images; empty where they have none.
        split: name of the split, where no hash says which images; else None.
        labels_hash: of the masks' contents; empty in judgements of earlier versions.
        resolution: at what size pixels were compared.
        classes: their names.
        ids: number of clusters, under a protocol whose figures rise with it; None under others.
    """

    protocol: str
    matching: str
    images: int
    names_hash: str
    split: str | None
    labels_hash: str
    resolution: str
    classes: tuple[str, ...]
    ids: int | None

    def told(self) -> dict[str, str]:
        """Each part in words."""
        return {
            "protocol": self.protocol,
            "matching": self.matching,
            "images": f"{self.images}"
            + (f" (sha256 of their names {self.names_hash[:12]})" if self.names_hash else "")
            + (f" of split {self.split}" if self.split else ""),
            "labels": self.labels_hash[:12] or "no hash of them",
            "resolution": self.resolution,
            "classes": f"{len(self.classes)}: {', '.join(self.classes)}",
            "number of clusters": "any" if self.ids is None else str(self.ids),
        }

    def to_json(self) -> dict[str, Any]:
        """As JSON values."""
        return asdict(self) | {"classes": list(self.classes)}


def judgement_of(run: Run, scores: Scores) -> Judgement:
    """The way in which a run was judged."""
    clusters = len(rows(run.record.get("classes"))) or run.record.get("classes_asked") or scores.predicted
    return Judgement(
        scores.protocol, scores.matching, scores.images, scores.names_hash,
        None if scores.names_hash else scores.split, scores.labels_hash, scores.resolution,
        tuple(str(row["name"]) for row in scores.per_class),
        int(clusters) if scores.matching.startswith("many-to-one") else None,
    )  # fmt: skip


@lru_cache(maxsize=64)
def _opened(place: str) -> Dataset | None:
    """A data set by its names alone; None where it is not at its place."""
    try:
        return open_data(place, Reading())
    except (MaskwrightError, OSError):
        return None


def forget_data() -> None:
    """Data sets are opened anew from here on: they may have changed."""
    _opened.cache_clear()


def names_judged(run: Run, scores: Scores) -> set[str] | None:
    """Names of the images that were judged, where they are those of the run's own data (or of a split of it) that have
    a mask; None where that cannot be told. No label is read."""
    data = _opened(run.data)
    if data is None or not scores.names_hash:
        return None
    splits = [scores.split] if scores.split else [None, *data.split_names]
    for split in splits:
        try:
            part = data.split(split) if split else data
        except MaskwrightError:
            continue
        names = {name for i, name in enumerate(part.names) if part.has_mask(i)}
        if hash_names(names) == scores.names_hash:
            return names
    return None


def commands_for(run: Run, likes: Sequence[Scores]) -> list[str]:
    """The commands that judge a run which was not, or a sentence on why there is none.

    Args:
        run: the run.
        likes: how others were judged: the first that fits the run's data is followed, and whether its ids are clusters.
    """
    if not run.finished:
        made = str(run.record.get("command") or "")
        again = f"{made} --resume" if made.startswith("maskwright train") and "--resume" not in made else made
        return [again] if again.startswith("maskwright train") else [f"{run.path}: finish it with resume=True first"]
    data = _opened(run.data)
    if data is None:
        return [f"its data {run.data} is not at its place"]
    split, protocol, left = _as_others(run, data, likes)
    if not _masks(data, split):
        return [f"{run.data} has no mask to judge it by"]
    masks, part = run.path / PREDICTIONS, ["--split", split] if split else []
    said = Reading.from_json(run.record.get("reading")).arguments()
    values = [word for name in ("labels", "void") if name in said for word in (f"--{name}", said[name])]
    range_ = ["--range", said["range"]] if "range" in said else []
    judge = ["maskwright", "evaluate", str(masks), run.data, *part, "--protocol", protocol, *values, *left]
    return [
        shlex.join(["maskwright", "predict", str(run.path), run.data, *part, *range_, "--out", str(masks)]),
        shlex.join([*judge, "--json", str(run.path / SCORES)]),
    ]


def _clusters(run: Run) -> bool:
    """Whether its ids are clusters without names, as far as its record tells."""
    if run.table is None:
        return inner(run.record, "method", "family") == "unsupervised"
    return all(re.fullmatch(r"cluster \d+", name) for name in run.table.names)


def _as_others(run: Run, data: Dataset, likes: Sequence[Scores]) -> tuple[str | None, str, list[str]]:
    """Split, protocol and classes left out (as options) of the first judgement that this run can have too; of its split
    alone where that is all that fits, and the usual ones where nothing does."""
    clusters = _clusters(run)
    usual = "hungarian" if clusters else "direct"
    fitting = [
        scores
        for scores in likes
        if scores.split in (None, *data.split_names) and scores.names_hash == hash_names(_masks(data, scores.split))
    ]
    for scores in fitting:
        if (scores.protocol == "direct") != clusters:
            return scores.split, scores.protocol, [word for name in scores.without for word in ("--without", name)]
    if fitting:
        return fitting[0].split, usual, []
    return next((name for name in HELD_OUT if name in data.split_names and _masks(data, name)), None), usual, []


def _masks(data: Dataset, split: str | None) -> list[str]:
    part = data.split(split) if split else data
    return [name for i, name in enumerate(part.names) if part.has_mask(i)]
