"""The shapes of one photograph, and the label map that they draw.

A shape has a label and is a polygon of one or several parts, or runs of pixels. Shapes are drawn one after the other;
where two overlap, the later lies above. Coordinates are continuous: pixel (row i, column j) covers [j, j + 1] x
[i, i + 1]; a pixel belongs to a polygon where its centre lies inside (`ops.polygons`).

A drawing is kept as a small file of its own for each photograph, so that whatever goes by mask files (looks that are
remembered, the hashes by which a run knows its labels) holds for formats that keep all photographs in one file.
"""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from maskwright.data.masking.classes import IGNORE8, IGNORE16
from maskwright.data.masking.label_rules import VOID
from maskwright.data.trust.files import write_bytes
from maskwright.errors import MaskwrightError
from maskwright.ops.polygons import fill, ring_area

NO_CLASS = "__ignore__"
"""The label of shapes whose pixels have no class, as labelme calls it; written and read in every format."""
_VERSION = 1


@dataclass(frozen=True, eq=False)
class Runs:
    """Pixels as lengths of runs, outside and inside in turn, the first outside.

    Attributes:
        counts: int64 (n,), their sum is that of the box's pixels.
        box: (top, left, height, width) in the image.
        columns: whether runs go down the columns, as COCO's do; else along the rows, as CVAT's.
    """

    counts: np.ndarray
    box: tuple[int, int, int, int]
    columns: bool = False

    def mask(self) -> np.ndarray:
        """bool (height, width)."""
        _, _, height, width = self.box
        inside = np.zeros(len(self.counts), bool)
        inside[1::2] = True
        flat = np.repeat(inside, self.counts)
        return flat.reshape(width, height).T if self.columns else flat.reshape(height, width)


def runs_of(mask: np.ndarray, *, columns: bool = False) -> list[int]:
    """Lengths of the runs of a mask, bool (h, w), outside and inside in turn, the first outside (it may be 0)."""
    flat = (mask.T if columns else mask).ravel()
    changes = np.flatnonzero(flat[1:] != flat[:-1]) + 1
    lengths = np.diff(np.concatenate([[0], changes, [flat.size]])).tolist()
    return [0, *lengths] if flat.size and flat[0] else lengths


@dataclass(frozen=True, eq=False)
class Shape:
    """One object, or part of one.

    Attributes:
        label: its class's name.
        parts: float64 (n, 2) each, points (x, y); their union is the shape.
        runs: the pixels instead, where the format holds pixels.
    """

    label: str
    parts: tuple[np.ndarray, ...] = ()
    runs: Runs | None = None

    @property
    def area(self) -> float:
        """Its area in pixels; of parts that overlap the sum."""
        if self.runs is not None:
            return float(self.runs.counts[1::2].sum())
        return sum(abs(ring_area(part)) for part in self.parts)


def by_area(shapes: Sequence[Shape]) -> list[Shape]:
    """Shapes of a format that knows no order: the larger first, so that the smaller is seen; of equals the earlier."""
    return sorted(shapes, key=lambda shape: -shape.area)


@dataclass(frozen=True, eq=False)
class Note:
    """What a format says of one photograph.

    Attributes:
        size: (H, W) that the shapes are drawn on.
        shapes: in the order in which they are drawn.
        stated: whether this photograph has a statement of its own (a file, though without shapes), so that no shape
            means that nothing is there; in a list of many it says nothing.
    """

    size: tuple[int, int]
    shapes: tuple[Shape, ...]
    stated: bool = True


@dataclass(frozen=True, eq=False)
class Piece:
    """A region as a format writes it.

    Attributes:
        label: its class's name, or NO_CLASS.
        outer: float64 (n, 2), points (x, y).
        holes: float64 (n, 2) each; none where the format draws one shape over another.
    """

    label: str
    outer: np.ndarray
    holes: tuple[np.ndarray, ...] = ()

    def mask(self, size: tuple[int, int]) -> np.ndarray:
        """Its pixels, bool (H, W)."""
        inside, top, left = fill([self.outer, *self.holes], size)
        whole = np.zeros(size, bool)
        whole[top : top + inside.shape[0], left : left + inside.shape[1]] = inside
        return whole


def drawing_text(note: Note, ids: Mapping[str, int], outside: int, classes: int) -> bytes:
    """A drawing as its file holds it.

    Args:
        note: the shapes.
        ids: the class id of each label, VOID for no class.
        outside: id of what no shape covers, VOID for no class.
        classes: how many there are; above 255 the mask has 16 bits.
    """
    shapes: list[Any] = []
    for shape in note.shapes:
        if shape.runs is not None:
            runs = shape.runs
            shapes.append([ids[shape.label], runs.counts.tolist(), list(runs.box), runs.columns])
        else:
            shapes.append([ids[shape.label], [part.ravel().tolist() for part in shape.parts]])
    value = {"version": _VERSION, "size": note.size, "outside": outside, "classes": classes, "shapes": shapes}
    text = json.dumps(value, separators=(",", ":"), allow_nan=False).encode()
    return b"%08x\n" % zlib.crc32(text) + text


def keep_drawing(path: Path, text: bytes) -> None:
    """Writes a drawing where it is not there already, so that its time tells when it changed."""
    try:
        if path.stat().st_size == len(text) and path.read_bytes() == text:
            return
    except OSError:
        pass
    write_bytes(path, text, durable=False)


def read_drawing(path: str | os.PathLike[str]) -> np.ndarray:
    """The label map of a drawing that `keep_drawing` wrote.

    Returns:
        uint8 (H, W), 255 for no class; uint16 with 65535 where there are more than 255 classes.

    Raises:
        MaskwrightError: missing or damaged.
    """
    path = Path(path)
    repair = "open the folder again: it is made anew from the annotations"
    try:
        data = path.read_bytes()
    except OSError as error:
        raise MaskwrightError(f"cannot read {path}: {error.strerror}", "a drawing", repair) from error
    if data[:9] != b"%08x\n" % zlib.crc32(data[9:]):
        raise MaskwrightError(f"{path} is damaged", "a drawing", repair)
    value = json.loads(data[9:])
    wide = value["classes"] > IGNORE8
    none = IGNORE16 if wide else IGNORE8
    size = (value["size"][0], value["size"][1])
    ids = np.full(size, none if value["outside"] == VOID else value["outside"], np.uint16 if wide else np.uint8)
    for number, *what in value["shapes"]:
        colour = none if number == VOID else number
        if len(what) > 1:
            counts, box, columns = what
            top, left, height, width = box
            mask = Runs(np.array(counts, np.int64), (top, left, height, width), columns).mask()
            ids[top : top + height, left : left + width][mask] = colour
            continue
        for part in what[0]:
            mask, top, left = fill([np.array(part, np.float64).reshape(-1, 2)], size)
            ids[top : top + mask.shape[0], left : left + mask.shape[1]][mask] = colour
    return ids
