"""Class tables: the names of the classes, in the order of their ids, and the colours they are drawn in."""

from __future__ import annotations

import colorsys
import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from maskwright.data.folders.scan import is_regular
from maskwright.data.folders.tables import read_lines
from maskwright.errors import MaskwrightError

IGNORE8 = 255
"""The id of pixels without a class in 8-bit masks."""
IGNORE16 = 65535
"""The id of pixels without a class in 16-bit masks."""
BACKGROUND_NAMES = ("background", "other", "void", "ground")
"""What classes are called that are no thing."""


def default_palette(n: int) -> np.ndarray:
    """Colours of `n` classes: the PASCAL VOC colour map, extended beyond 256.

    The bits of the class id are dealt to red, green and blue from the highest bit down (VOC development kit,
    `VOClabelcolormap`), so neighbouring ids get distant colours, id 0 is black and the first 256 are exactly
    VOC's. With 8 bits a channel the colours of all ids below 2**24 differ.

    Args:
        n: number of classes.

    Returns:
        uint8 (n, 3).
    """
    ids = np.arange(n, dtype=np.int64)
    colors = np.zeros((n, 3), dtype=np.uint8)
    for bit in range(8):
        for channel in range(3):
            colors[:, channel] |= (((ids >> (3 * bit + channel)) & 1) << (7 - bit)).astype(np.uint8)
    return colors


def cluster_palette(n: int) -> np.ndarray:
    """Colours of `n` clusters, none of which is a background: hues a golden angle apart, in three lightnesses.

    Args:
        n: number of clusters.

    Returns:
        uint8 (n, 3).
    """
    colors = np.zeros((n, 3), dtype=np.uint8)
    for i in range(n):
        hue = (0.02 + 0.618033988749895 * i) % 1.0
        lightness = (0.56, 0.42, 0.70)[i % 3]
        colors[i] = np.round(255 * np.array(colorsys.hls_to_rgb(hue, lightness, 0.72)))
    return colors


@dataclass(frozen=True, eq=False)
class ClassTable:
    """The classes of a dataset: position = id.

    Attributes:
        names: one name a class.
        colors: uint8 (C, 3), red, green, blue of each class; the default palette if none are given.
    """

    names: tuple[str, ...]
    colors: np.ndarray = field(default_factory=lambda: np.zeros((0, 3), np.uint8))

    def __post_init__(self) -> None:
        names = tuple(str(name) for name in self.names)
        object.__setattr__(self, "names", names)
        colors = np.asarray(self.colors, dtype=np.uint8)
        if colors.size == 0:
            colors = default_palette(len(names))
        if colors.shape != (len(names), 3):
            raise ValueError(f"colors have shape {colors.shape}, expected ({len(names)}, 3)")
        colors = colors.copy()
        colors.setflags(write=False)
        object.__setattr__(self, "colors", colors)

    @classmethod
    def numbered(cls, n: int, prefix: str = "cluster") -> ClassTable:
        """A table of `n` nameless classes: "cluster 0", "cluster 1", ..."""
        return cls(tuple(f"{prefix} {i}" for i in range(n)), cluster_palette(n))

    def __len__(self) -> int:
        return len(self.names)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, ClassTable):
            return NotImplemented
        return self.names == other.names and np.array_equal(self.colors, other.colors)

    def __hash__(self) -> int:
        return hash((self.names, self.colors.tobytes()))

    def index(self, name: str) -> int:
        """Id of the class `name`. Raises `KeyError` if there is none."""
        try:
            return self.names.index(name)
        except ValueError:
            raise KeyError(name) from None

    @property
    def ignore(self) -> int:
        """The ignore id of masks of this table: 255 up to 255 classes, 65535 above."""
        return IGNORE8 if len(self.names) <= IGNORE8 else IGNORE16

    def colorize(self, ids: np.ndarray) -> np.ndarray:
        """Draws a mask.

        Args:
            ids: integers (H, W); ids outside the table are drawn white, the ignore ids among them.

        Returns:
            uint8 (H, W, 3).
        """
        lookup = np.concatenate([self.colors, np.full((1, 3), 255, np.uint8)])
        clipped = np.minimum(np.asarray(ids).astype(np.int64), len(self.names))
        return lookup[np.where(clipped < 0, len(self.names), clipped)]

    def to_json(self) -> dict[str, Any]:
        """Names and colours as JSON values; `from_json` reads them back."""
        return {"names": list(self.names), "colors": self.colors.tolist()}

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> ClassTable:
        """The table that `to_json` wrote."""
        return cls(tuple(value["names"]), np.array(value.get("colors", []), np.uint8).reshape(-1, 3))


IGNORE_NAMES = frozenset({"ignore", "void", "unlabeled", "unlabelled", "dontcare", "ignored"})
"""What people call pixels without a class, in lower case, without signs."""


def read_classes(
    path: str | os.PathLike[str], notices: list[str] | None = None, void: Iterable[int] = ()
) -> ClassTable:
    """Reads `classes.txt`: one class name a line, line number (from 0) = id.

    Blank lines at the end are ignored; a blank line between names is an error because it would shift the ids. In the
    lists of labelme `__ignore__` stands first for pixels without a class, id -1: that line is dropped, so that the next
    is class 0. Its `_background_` is called background here.

    Args:
        path: the text file, UTF-8 with or without a byte order mark.
        notices: receives sentences on what was dropped, renamed, or is a class of a doubtful name.
        void: ids of which it was said that they mean no class.

    Raises:
        MaskwrightError: the file is missing, empty, not text, or has a blank line or a name twice.
    """
    path = Path(path)
    said = notices if notices is not None else []
    lines = [line.strip() for line in read_lines(path)]
    while lines and not lines[-1]:
        lines.pop()
    first = 0
    if len(lines) > 1 and lines[0] == "__ignore__":
        said.append(
            f"{path.name} begins with __ignore__, as lists of labelme do: class 0 is {lines[1]!r}, its next line"
        )
        first, lines = 1, lines[1:]
    if not lines:
        raise MaskwrightError(f"{path} names no class", "one class name a line", "fill it in or delete it")
    place: dict[str, int] = {}
    for number, name in enumerate(lines):
        if not name:
            raise MaskwrightError(
                f"line {number + first + 1} of {path} is blank",
                f"the name of class {number}",
                "fill it in or delete it",
            )
        if name in place:
            raise MaskwrightError(
                f"{path} names class {name!r} twice, as ids {place[name]} and {number}",
                "a different name on each line",
                "rename one of them",
            )
        place[name] = number
    if "_background_" in place and "background" not in place:
        lines[place["_background_"]] = "background"
        said.append(f"class {place['_background_']} is called _background_ in {path.name} and background here")
    known = set(void)
    doubtful = [(n, name) for name, n in place.items() if _bare(name) in IGNORE_NAMES and n not in known]
    for number, name in doubtful[:3]:
        said.append(
            f"class {number} of {path.name} is called {name!r} and counts as a class; if its pixels have none, add "
            f"--void {','.join(map(str, (*sorted(known), number)))}"
        )
    return ClassTable(tuple(lines), default_palette(len(lines)))


def given_names(names: str | os.PathLike[str] | Iterable[str]) -> tuple[str, ...]:
    """Class names as `--names` takes them.

    Args:
        names: names with commas (or semicolons) between; a file with one name a line, as `classes.txt`; or the names
            themselves.

    Raises:
        MaskwrightError: no name, an empty one, one twice, or a file that is not there or not such a list.
    """
    if isinstance(names, str | os.PathLike):
        text = os.fspath(names)
        if is_regular(text):
            return read_classes(text).names
        if not isinstance(names, str) or ("," not in text and (os.sep in text or text.endswith(".txt"))):
            raise MaskwrightError(
                f"--names {text}, and there is no such file", "names with commas between, or a file with one a line"
            )
        names = text.split(";" if ";" in text else ",")
    found = [name.strip() for name in names]
    expected = "at least one name, each of them once"
    if not found or not all(found):
        raise MaskwrightError(f"--names with {'an empty name' if found else 'no name'}", expected, "--names road,sky")
    if twice := next((name for k, name in enumerate(found) if name in found[:k]), None):
        raise MaskwrightError(f"--names with {twice!r} twice", expected, "rename one of them")
    return tuple(found)


def _bare(name: str) -> str:
    return "".join(c for c in name.casefold() if c.isalnum())
