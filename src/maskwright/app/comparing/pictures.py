"""The same photographs under each run, from the previews that the runs keep."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from maskwright.app.comparing.runs import Run, natural
from maskwright.app.html import count
from maskwright.app.pictures import PREVIEWS
from maskwright.data.masking.classes import ClassTable, default_palette
from maskwright.data.masking.label_rules import ignore_of
from maskwright.data.masking.masks import read_mask
from maskwright.data.pictures.images import read_image
from maskwright.data.pictures.inline import data_uri, jpeg, swatch
from maskwright.errors import MaskwrightError
from maskwright.evaluate.scores import Scores
from maskwright.predict.writers import overlay, shrink

if TYPE_CHECKING:
    from maskwright.app.comparing.joining import Comparison, Group

TILES = 120
"""Pictures of a page at most: about 20 KB each."""
RUNS = 12
"""Runs whose pictures are shown; of more, the first seed of each setting."""
SIDE = 320
"""Pixels of a picture's longer side."""
ALIKE = 6.0
"""Mean difference of two decoded previews of one photograph at most, of 255."""


def strips(comparison: Comparison) -> str:
    """Rows of pictures: a photograph, and it tinted with the mask of each run.

    Clusters that a judgement matched to classes are shown in the colours of these classes.

    Returns:
        HTML; empty where fewer than one run keeps previews, a sentence where no photograph is shared.
    """
    shown, told = _chosen(comparison)
    held = [(group, run, _names(run)) for group, run in shown]
    held = [one for one in held if one[2]]
    if not held:
        return ""
    names = _shared([found for *_, found in held], max(3, min(12, TILES // (len(held) + 1))))
    if not names:
        return "<p>The runs keep pictures of different photographs: none is shared.</p>"
    classes = _class_colors([run for _, run, _ in held])
    body = "".join(_strip(name, held, classes) for name in names)
    if any(_matched(run) for _, run, _ in held):
        told.append(
            "Clusters have the colours of the classes that their judgement matched them to; others are not tinted."
        )
    note = f'<p class="soft">{escape(" ".join(told))}</p>' if told else ""
    key = "".join(
        f"<li>{swatch(color)}{escape(name)}</li>" for name, color in list(classes.items())[:40]
    )  # fmt: skip
    return note + (f'<ul class="keys">{key}</ul>' if key else "") + f'<div class="strips">{body}</div>'


def _chosen(comparison: Comparison) -> tuple[list[tuple[Group, Run]], list[str]]:
    every = [(group, run) for group in comparison.groups for run in group.runs]
    if len(every) <= RUNS:
        return every, []
    first = [(group, group.runs[0]) for group in comparison.groups][:RUNS]
    return first, [f"Of {count(len(every), 'run')} the first seed of each setting is shown, {len(first)} in all."]


def _names(run: Run) -> dict[str, Path]:
    """Photographs of a run's previews that have their mask beside them, by name."""
    folder = run.path / PREVIEWS
    found = {}
    for path in folder.rglob("*.jpg") if folder.is_dir() else ():
        if path.with_name(f"{path.name[:-4]}.png").is_file():
            found[path.relative_to(folder).as_posix()[:-4]] = path
    return found


def _shared(held: list[dict[str, Path]], most: int) -> list[str]:
    """Names that most runs have, spread evenly, at least two of the runs where there are two."""
    counts = Counter(name for names in held for name in names)
    top = max(counts.values())
    if top < min(2, len(held)):
        return []
    names = sorted((name for name, n in counts.items() if n == top), key=natural)
    return [names[i] for i in sorted({int(i) for i in np.linspace(0, len(names) - 1, min(most, len(names))).round()})]


def _matched(run: Run) -> Scores | None:
    """A run's first judgement that says which class each of its clusters is."""
    return next((s for s in run.judgements.values() if s.mapping and s.protocol != "luss"), None)


def _class_colors(runs: list[Run]) -> dict[str, tuple[int, int, int]]:
    """Colours of the classes that runs are judged by or name: one a name, whatever the run."""
    colors: dict[str, tuple[int, int, int]] = {}
    # Runs that name classes have their colours; of a judgement only the names are known.
    for run in sorted(runs, key=lambda run: _matched(run) is not None):
        table = run.table or ClassTable(())
        if scores := _matched(run):
            names = [str(row["name"]) for row in scores.per_class]
            table = ClassTable(tuple(names), default_palette(len(names)))
        for name, color in zip(table.names, table.colors):
            r, g, b = (int(v) for v in color)
            colors.setdefault(name, (r, g, b))
    return colors


def _as_classes(
    run: Run, ids: np.ndarray, classes: Mapping[str, tuple[int, int, int]]
) -> tuple[np.ndarray, ClassTable]:
    """A run's ids (H, W) as they are drawn, and their colours: clusters as the classes that they were matched to."""
    table = run.table or ClassTable.numbered(int(ids[ids < ignore_of(ids)].max(initial=0)) + 1)
    if scores := _matched(run):
        names = tuple(str(row["name"]) for row in scores.per_class)
        table = ClassTable(names, default_palette(len(names)))
        lookup = np.full(int(ids.max(initial=0)) + 1, len(names), np.int64)  # beyond the table: not tinted
        for cluster, matched in (scores.mapping or {}).items():
            if 0 <= cluster < len(lookup) and 0 <= matched < len(names):
                lookup[cluster] = matched
        ids = lookup[ids]
    colors = [classes.get(n, tuple(c)) for n, c in zip(table.names, table.colors.tolist())]
    return ids, ClassTable(table.names, np.array(colors, np.uint8).reshape(-1, 3))


def _strip(
    name: str, held: list[tuple[Group, Run, dict[str, Path]]], classes: Mapping[str, tuple[int, int, int]]
) -> str:
    """One photograph, and it under each run."""
    first: np.ndarray | None = None
    tiles = []
    for group, run, names in held:
        told = f"{group.short}, seed {run.seed}" if run.seed is not None else group.short
        try:
            photo, ids = read_image(names[name]), read_mask(names[name].with_name(f"{names[name].name[:-4]}.png"))
        except (KeyError, MaskwrightError):
            tiles.append(f"<div><span>{escape(told)}: no picture of it</span></div>")
            continue
        if first is None:
            first = photo
            tiles.insert(0, _tile(shrink(photo, ids, SIDE)[0], f"Photograph {name}", "photograph"))
        if photo.shape != first.shape or np.abs(photo.astype(int) - first).mean() > ALIKE:
            tiles.append(f"<div><span>{escape(told)}: another photograph of this name</span></div>")
            continue
        if ids.shape != photo.shape[:2]:
            tiles.append(f"<div><span>{escape(told)}: its mask does not fit</span></div>")
            continue
        small, ids = shrink(photo, ids, SIDE)
        tiles.append(_tile(overlay(small, *_as_classes(run, ids, classes)), f"{name} by {told}", told))
    return f'<figure class="strip"><div>{"".join(tiles)}</div><figcaption><b>{escape(name)}</b></figcaption></figure>'


def _tile(image: np.ndarray, alt: str, caption: str) -> str:
    height, width = image.shape[:2]
    return (
        f'<div><img loading="lazy" decoding="async" width="{width}" height="{height}" alt="{escape(alt)}" '
        f'src="{data_uri(jpeg(image, 80, tinted=True), "jpeg")}"><span>{escape(caption)}</span></div>'
    )
