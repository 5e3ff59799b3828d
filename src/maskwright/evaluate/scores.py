"""What an evaluation says: the figures, and with each of them how it was made."""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from maskwright.data.trust.artefacts import parse_json
from maskwright.data.trust.files import write_json
from maskwright.errors import MaskwrightError
from maskwright.evaluate import metrics

PRESENT = "mean over the classes that truth or prediction has"
EXPLAINED = {
    "miou_all": "mean IoU over all classes; one that neither truth nor prediction has counts 0",
    "frequency_weighted_iou": "IoU weighted by each class's share of the truth's pixels",
    "mean_dice": "mean over the same classes as mIoU of 2 IoU / (1 + IoU)",
}
"""What the figures that every judgement has are, as `table` says it."""


@dataclass(frozen=True)
class Scores:
    """The figures of one evaluation, fractions in [0, 1]; NaN where a figure has no denominator.

    Attributes:
        protocol: name in the table of protocols.
        matching: how predicted ids were matched to classes.
        miou: mean IoU, averaged as `averaging` says.
        pixel_accuracy: share of the pixels whose class is right.
        mean_accuracy: mean over the classes of the truth of the share found.
        per_class: a {"name", "iou"} for each class.
        mapping: class of each predicted id, -1 for none; None where ids are classes.
        images: number of images judged.
        predicted: K, the number of different ids that the predictions have.
        classes: C.
        resolution: at what size pixels were compared.
        averaging: what `miou` is a mean over.
        extra: further figures by name.
        notes: what else a reader must know.
        split: name of the split that was judged; None where none was asked for.
        names_hash: `hash_names` of the images judged; empty where they have no names.
        labels_hash: of the contents of their masks and how their values were read; empty where they are no files.
        models: keys of the models that made the masks (`predict.kept`); empty where no record tells.
        without: names of the truth's classes that were left out, with their pixels, of all figures.
    """

    protocol: str
    matching: str
    miou: float
    pixel_accuracy: float
    mean_accuracy: float
    per_class: list[dict[str, Any]]
    mapping: dict[int, int] | None
    images: int
    predicted: int
    classes: int
    resolution: str = "size of each truth mask"
    averaging: str = PRESENT
    extra: dict[str, float] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    split: str | None = None
    names_hash: str = ""
    labels_hash: str = ""
    models: list[str] = field(default_factory=list)
    without: list[str] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """The scores as JSON values; NaN becomes None, keys of the mapping become text."""
        return _plain(asdict(self))

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes the scores as JSON: into a run's folder as `scores.json`, they are what `compare` shows of it."""
        write_json(path, self.to_json())

    @classmethod
    def from_json(cls, record: Mapping[str, Any] | str) -> Scores:
        """The scores of which `to_json` gave this record (or its text)."""
        try:
            state = dict(parse_json(record) if isinstance(record, str) else record)
            for name in ("miou", "pixel_accuracy", "mean_accuracy"):
                state[name] = math.nan if state[name] is None else state[name]
            state["per_class"] = [
                row | {"iou": math.nan if row["iou"] is None else row["iou"]} for row in state["per_class"]
            ]
            state["extra"] = {k: math.nan if v is None else v for k, v in state["extra"].items()}
            if state["mapping"] is not None:
                state["mapping"] = {int(k): int(v) for k, v in state["mapping"].items()}
            state |= {key: [str(k) for k in state.get(key) or []] for key in ("models", "without")}
            return cls(**state)
        except (ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:
            raise MaskwrightError(f"scores that cannot be read ({error})", "what `Scores.to_json` wrote") from error

    def figures(self) -> dict[str, float]:
        """All figures by name, the three main ones first."""
        main = {"mIoU": self.miou, "pixel accuracy": self.pixel_accuracy, "mean accuracy": self.mean_accuracy}
        return main | self.extra

    def table(self, per_class: bool = True) -> str:
        """A plain text table in percent, the protocol beside every figure.

        Args:
            per_class: adds a line for each class.
        """
        width = max(len(name) for name in self.figures())
        which = f" of split {self.split}" if self.split else ""
        which += f" (sha256 of their names {self.names_hash[:12]})" if self.names_hash else ""
        lines = [
            f"protocol   {self.protocol}",
            f"matching   {self.matching}",
            f"ids        {self.predicted} predicted, {self.classes} classes",
            f"images     {self.images}{which}, compared at the {self.resolution}",
            f"mIoU       {self.averaging}",
            *(f"note       {note}" for note in self.notes),
            "",
        ]
        says = {name: f"  {text}" for name, text in EXPLAINED.items()}
        lines += [
            f"{name:<{width}}  {_percent(x)}  [{self.protocol}]{says.get(name, '')}"
            for name, x in self.figures().items()
        ]
        if per_class and self.per_class:
            width = max(len("class"), *(len(str(row["name"])) for row in self.per_class))
            lines += ["", f"{'class':<{width}}     IoU  [{self.protocol}]"]
            lines += [f"{row['name']!s:<{width}}  {_percent(row['iou'])}" for row in self.per_class]
        return "\n".join(lines)


def _percent(x: float | None) -> str:
    return "     -" if x is None or math.isnan(x) else f"{100 * x:6.2f}"


def _plain(x: Any) -> Any:
    if isinstance(x, dict):
        return {str(k): _plain(v) for k, v in x.items()}
    if isinstance(x, list | tuple):
        return [_plain(v) for v in x]
    if isinstance(x, np.generic):
        x = x.item()
    return None if isinstance(x, float) and not math.isfinite(x) else x


def hash_names(names: Iterable[str]) -> str:
    """sha256 of names of images, in any order: of one list it is the same wherever and however it was written."""
    return hashlib.sha256("\n".join(sorted(names)).encode("utf-8", "surrogateescape")).hexdigest()


def class_names(classes: int | Sequence[str]) -> list[str]:
    """Names of the classes, `class 3` for those without."""
    return [f"class {i}" for i in range(classes)] if isinstance(classes, int) else [str(c) for c in classes]


def scores_from_counts(
    counts: Any,
    names: int | Sequence[str],
    *,
    protocol: str,
    matching: str,
    images: int,
    predicted: int | None = None,
    mapping: dict[int, int] | None = None,
    resolution: str = "size of each truth mask",
    extra: dict[str, float] | None = None,
    notes: Sequence[str] = (),
    without: Sequence[int] = (),
) -> Scores:
    """The scores of counts whose rows are classes already.

    Args:
        counts: (K, C) with row c for class c; further rows are wrong pixels.
        names: the C class names, or C.
        protocol, matching, images, mapping, resolution, notes: as in `Scores`.
        predicted: number of predicted ids; None counts the rows that are not empty.
        extra: further figures, put behind the usual ones.
        without: classes that no figure is of: their true pixels do not count, and as a prediction they are wrong.
    """
    counts = np.asarray(counts)
    names = class_names(names)
    if counts.ndim != 2 or counts.shape[1] != len(names):
        raise ValueError(f"counts of shape {counts.shape} for {len(names)} classes")
    predicted = int((counts.sum(1) > 0).sum()) if predicted is None else predicted
    left = [names[k] for k in without]
    if left:
        kept = [k for k in range(len(names)) if k not in without]
        wrong = [k for k in range(len(counts)) if k not in kept]
        counts, names = counts[[*kept, *wrong]][:, kept], [names[k] for k in kept]
    per_class = metrics.iou(counts)
    usual = {
        "miou_all": metrics.miou(counts, over="all"),
        "frequency_weighted_iou": metrics.frequency_weighted_iou(counts),
        "mean_dice": metrics._mean(metrics.dice(counts)),
    }
    absent = int(np.isnan(per_class).sum())
    averaging = PRESENT + (f" ({absent} of {len(names)} left out)" if absent else f" (all {len(names)})")
    if left:
        averaging += f", without {', '.join(left)}: pixels of {'these' if len(left) > 1 else 'it'} do not count"
    return Scores(
        protocol=protocol,
        matching=matching,
        miou=metrics.miou(counts),
        pixel_accuracy=metrics.pixel_accuracy(counts),
        mean_accuracy=metrics.mean_accuracy(counts),
        per_class=[{"name": n, "iou": float(x)} for n, x in zip(names, per_class)],
        mapping=mapping,
        images=images,
        predicted=predicted,
        classes=len(names),
        resolution=resolution,
        averaging=averaging,
        extra=usual | (extra or {}),
        notes=list(notes),
        without=left,
    )


def seeds_summary(scores: Sequence[Scores]) -> dict[str, tuple[float, float]]:
    """Mean and sample standard deviation of each figure over runs that differ by their seed.

    Args:
        scores: of one protocol and the same classes and images.

    Returns:
        {figure: (mean, standard deviation)}; the deviation of one run is NaN.

    Raises:
        MaskwrightError: no scores, or scores that may not share a row.
    """
    if not scores:
        raise MaskwrightError("no scores", "those of at least one seed")
    kinds = {(s.protocol, s.matching, s.classes, *s.without, s.images, s.resolution) for s in scores}
    lists = {s.names_hash for s in scores if s.names_hash}
    if len(kinds) > 1 or len(lists) > 1:
        raise MaskwrightError(
            f"scores of {max(len(kinds), len(lists))} kinds (protocol, matching, classes, images, resolution)",
            "one kind",
            "evaluate all seeds with the same protocol on the same images",
        )
    summary = {}
    for name in scores[0].figures():
        values = np.array([s.figures().get(name, math.nan) for s in scores], dtype=np.float64)
        spread = float(values.std(ddof=1)) if len(values) > 1 else math.nan
        summary[name] = (float(values.mean()), spread)
    return summary


def seeds_table(scores: Sequence[Scores]) -> str:
    """`seeds_summary` as a plain text table in percent, with the protocol and each seed's own figure."""
    summary = seeds_summary(scores)
    first = scores[0]
    width = max(len(name) for name in summary)
    lines = [
        f"protocol {first.protocol}, matching {first.matching}, {first.images} images, {len(scores)} seeds; "
        "mean and sample standard deviation",
        f"mIoU: {first.averaging}",
        f"{'':<{width}}    mean  spread  each",
    ]
    for name, (mean, spread) in summary.items():
        each = " ".join(_percent(s.figures().get(name)) for s in scores)
        lines.append(f"{name:<{width}}  {_percent(mean)}  {_percent(spread)}  {each}  [{first.protocol}]")
    return "\n".join(lines)
