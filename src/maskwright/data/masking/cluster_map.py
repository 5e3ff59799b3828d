"""`map.csv`: the clusters of a run, one a row, with a column that a person fills in: what each of them is.

    cluster,share,row,column,colour,name,agreement,model
    0,0.1837,0.21,0.5,#d6655c,,,kmeans-1f2e3d4c

`share` is of the area of the photographs, `row` and `column` the mean place in the frame (0 is top and left, 1 bottom
and right). `agreement` is filled where masks proposed the name; the photographs of these masks are then listed in
`map.masks.txt` beside it, so that whoever takes the names knows which labels they came from. `model` is what the
clusters belong to. Only `cluster` and `name` are needed.
"""

from __future__ import annotations

import csv
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from maskwright.data.folders.names import meant, written
from maskwright.data.folders.tables import csv_text, read_lines, read_names
from maskwright.data.masking.classes import ClassTable
from maskwright.data.trust.files import write_text
from maskwright.errors import MaskwrightError

MAP = "map.csv"
COLUMNS = ("cluster", "share", "row", "column", "colour", "name", "agreement", "model")
HEADER = "a header line with cluster and name"
FROM_MASKS = "maskwright name RUN --from-masks SPLIT proposes names anew"


@dataclass(frozen=True)
class ClusterRow:
    """One cluster.

    Attributes:
        cluster: its number.
        share: of the area of the photographs looked at.
        place: mean (row, column) in the frame, in [0, 1]; None where it occurs in none.
        color: red, green, blue.
        name: what it is; "" where nobody said.
        agreement: share of its labelled pixels that have this name in masks; None where no mask was asked.
    """

    cluster: int
    share: float
    place: tuple[float, float] | None
    color: tuple[int, int, int]
    name: str = ""
    agreement: float | None = None


@dataclass(frozen=True)
class FilledMap:
    """What a map says.

    Attributes:
        names: of each cluster, "" where none was filled in.
        model: what it belongs to; "" where it does not say.
        masks: names of the photographs whose masks proposed the names.
    """

    names: tuple[str, ...]
    model: str = ""
    masks: tuple[str, ...] = ()


def map_text(rows: Sequence[ClusterRow], model: str) -> str:
    """The table as text; what is not known, or is to be filled in, is an empty cell."""
    lines = []
    for r in rows:
        place = ("", "") if r.place is None else (f"{v:.2f}" for v in r.place)
        colour = "#" + "".join(f"{v:02x}" for v in r.color)
        agreement = "" if r.agreement is None else f"{r.agreement:.2f}"
        lines.append((r.cluster, f"{r.share:.4f}", *place, colour, r.name, agreement, model))
    return csv_text(COLUMNS, ([Blank() if cell == "" else cell for cell in line] for line in lines))


class Blank:
    """An empty cell; empty text would be written as a JSON string."""

    def __str__(self) -> str:
        return ""


def masks_beside(path: str | os.PathLike[str]) -> Path:
    """The list of photographs whose masks proposed the names of a map."""
    return Path(path).with_suffix(".masks.txt")


def write_map(path: Path, rows: Sequence[ClusterRow], model: str, masks: Sequence[str] = ()) -> None:
    """Writes the map, and the list of `masks` before it where there are any. Names that somebody filled in stay.

    Raises:
        MaskwrightError: a file with other names lies there, or the place cannot be written.
    """
    if path.exists() and _names(path) != [row.name for row in rows]:
        check_replaceable(path)
    if masks:
        write_text(masks_beside(path), "".join(f"{written(name)}\n" for name in masks))
    write_text(path, map_text(rows, model))


def check_replaceable(path: Path) -> None:
    """Refuses to write over a map in which somebody filled in names.

    Raises:
        MaskwrightError: tells another file.
    """
    if path.exists() and has_names(path):
        raise MaskwrightError(
            f"{path} has names already", "a map without names, which can be replaced",
            f"name another file: --map {path.with_name(path.stem + '-new' + path.suffix)}",
        )  # fmt: skip


def has_names(path: Path) -> bool:
    """Whether somebody filled in any name; of a table that cannot be read it is taken that they did."""
    names = _names(path)
    return names is None or any(names)


def _names(path: Path) -> list[str] | None:
    """The names as they stand there; None of a table that cannot be read."""
    try:
        return [row["name"] for row in _rows(path)]
    except MaskwrightError:
        return None


def read_rows(path: Path, table: ClassTable, model: str) -> list[ClusterRow] | None:
    """Shares and places as a map of this model has them; None where there is no such map, or it was changed there."""
    try:
        rows = _rows(path)
        found = [
            ClusterRow(
                k, float(row["share"]), (float(row["row"]), float(row["column"])) if row["row"] else None,
                (int(color[0]), int(color[1]), int(color[2])),
            )
            for k, (row, color) in enumerate(zip(rows, table.colors, strict=True))
        ]  # fmt: skip
    except (MaskwrightError, KeyError, ValueError):
        return None
    fits = all(row["cluster"] == str(k) and row.get("model") == model for k, row in enumerate(rows))
    return found if fits else None


def read_map(path: str | os.PathLike[str], clusters: int, model: str = "") -> FilledMap:
    """Reads a map that a person filled in.

    Args:
        path: the table, with commas, semicolons or tabulators between its columns.
        clusters: how many the model has.
        model: which it is; a map of another is refused.

    Raises:
        MaskwrightError: it is missing or no such table, belongs to another model, has an unknown cluster, a cluster
            twice or none, or names from masks without the list of these.
    """
    path = Path(path)
    names: dict[int, str] = {}
    asked, models = False, set()
    for line, row in enumerate(_rows(path), 2):
        text = row["cluster"]
        if not text.isascii() or not text.isdigit() or int(text) >= clusters:
            raise MaskwrightError(
                f"line {line} of {path} is of cluster {text[:40] or 'nothing'}", f"a number from 0 to {clusters - 1}",
                "delete the line, or correct its number",
            )  # fmt: skip
        if int(text) in names:
            raise MaskwrightError(
                f"{path} has two rows for cluster {text}, the second in line {line}", "one row a cluster",
                f"delete line {line}",
            )  # fmt: skip
        names[int(text)] = row["name"]
        asked = asked or bool(row.get("agreement"))
        models.add(row.get("model", ""))
    models.discard("")
    if model and (other := sorted(models - {model})):
        raise MaskwrightError(
            f"{path} is the map of another run's clusters ({other[0][:60]})", f"one of {model}",
            f"give the {MAP} of this run, or maskwright name RUN --map NEW.csv writes one",
        )  # fmt: skip
    if gone := [k for k in range(clusters) if k not in names]:
        raise MaskwrightError(
            f"{path} has no row for cluster {gone[0]}" + (f" and {len(gone) - 1} more" if len(gone) > 1 else ""),
            f"a row for each of the {clusters} clusters", f"add the line {gone[0]},void to it, in the columns' order",
        )  # fmt: skip
    return FilledMap(tuple(names[k] for k in range(clusters)), next(iter(models), ""), _masks(path) if asked else ())


def _masks(path: Path) -> tuple[str, ...]:
    listed = masks_beside(path)
    if not listed.exists():
        raise MaskwrightError(
            f"{path} has names that masks proposed, and {listed.name}, which lists these masks, is not beside it",
            "both files", f"copy it there too, or {FROM_MASKS}",
        )  # fmt: skip
    return tuple(read_names(listed))


def _rows(path: Path) -> list[dict[str, str]]:
    """Rows of the table that hold anything, by column; `cluster` and `name` are among them."""
    if not path.exists():
        raise MaskwrightError(
            f"there is no {path}", "a filled-in map", f"maskwright name RUN writes {MAP} into the run; give its path"
        )
    lines = read_lines(path)
    head = lines[0].casefold()
    mark = max(",;\t", key=head.count)
    try:
        rows = [row for row in csv.reader(lines, delimiter=mark) if any(cell.strip() for cell in row)]
    except csv.Error as error:
        raise MaskwrightError(f"{path} is not a table: {error}", HEADER, "save it again as CSV") from error
    columns = [cell.strip().casefold() for cell in rows[0]] if rows else []
    if "cluster" not in columns or "name" not in columns:
        raise MaskwrightError(
            f"{path} begins with {lines[0][:60]!r}", HEADER, "put the header cluster,name above its rows"
        )
    found = []
    for row in rows[1:]:
        cells = [*(meant(cell.strip()) for cell in row), *[""] * len(columns)]
        found.append(dict(zip(columns, cells)))
    return found
