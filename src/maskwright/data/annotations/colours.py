"""Masks drawn in the colours of a table: CVAT's mask archives with labelmap.txt, VOC's folders, tables of one's own.

    labelmap.txt                   name:R,G,B:parts:actions        (CVAT, "Segmentation mask 1.1")
    class_dict.csv, colors.csv     name,r,g,b                      with or without a header; commas, semicolons, blanks
    label_colors.txt               R G B name

The order of the lines is that of the ids. A name such as void or ignored, or the label that means no class elsewhere,
means none here, and this is said.
"""

from __future__ import annotations

import csv
import os
import re
from functools import partial
from pathlib import Path

import numpy as np

from maskwright.data.annotations.shapes import NO_CLASS
from maskwright.data.examining.findings import some
from maskwright.data.folders.readers import Readers
from maskwright.data.folders.scan import Folder, is_regular, names_below
from maskwright.data.folders.tables import read_lines
from maskwright.data.masking.classes import IGNORE_NAMES, ClassTable
from maskwright.data.masking.label_rules import VOID, LabelRule, colour_pairs, rgb
from maskwright.data.masking.masks import MASK_SUFFIXES, codes_of
from maskwright.errors import MaskwrightError

TABLES = ("labelmap.txt", "class_dict.csv", "class_dict_seg.csv", "colors.csv", "colours.csv", "label_colors.txt")
"""What tables of names and colours are called."""
FOLDERS = ("SegmentationClass", "masks", "Masks", "labels", "annotations")
_LABELMAP = re.compile(r"(.+?):\s*(\d{1,4})\s*,\s*(\d{1,4})\s*,\s*(\d{1,4})\s*(?::.*)?")


def _row(line: str) -> tuple[str, list[str]] | None:
    """The name and the three numbers of a line; None where it has none."""
    if found := _LABELMAP.fullmatch(line):
        return found[1].strip(), [*found.groups()[1:]]
    sign = next((sign for sign in "\t;," if sign in line), None)
    cells = [c.strip() for c in (next(csv.reader([line], delimiter=sign)) if sign else line.split())]
    places = [(1, 4), (0, 3)] if sign else [(len(cells) - 3, len(cells)), (0, 3)]
    for start, end in places:
        colour = cells[max(0, start) : end]
        if len(cells) > 3 and all(c.isascii() and c.isdigit() and len(c) < 5 for c in colour):
            return " ".join(cells[:start] or cells[end:]), colour
    return None


class ColourTable:
    """Names and colours of classes, and the colours that mean no class.

    Args:
        path: the table.

    Attributes:
        classes: names and colours in the order of the ids.
        pairs: what `LabelRule.colours` holds.
        said: sentences on what was settled.

    Raises:
        MaskwrightError: no text, a line that is none, a colour or a name twice, or no class.
    """

    def __init__(self, path: Path) -> None:
        rows: list[tuple[str, tuple[int, int, int]]] = []
        void: list[str] = []
        codes: list[int] = []
        seen: dict[object, int] = {}
        for number, line in enumerate(read_lines(path), 1):
            text = line.strip()
            if not text or text.startswith("#"):
                continue
            found = _row(text)
            if found is None:
                if not rows and not void and not any(c.isdigit() for c in text):  # a header
                    continue
                raise MaskwrightError(
                    f"line {number} of {path} is {text[:40]!r}", "a name and its colour: name,r,g,b", "correct the line"
                )
            name, (red, green, blue) = found[0], map(int, found[1])
            colour = (red, green, blue)
            if not name or max(colour) > 255:
                what = "no name" if not name else f"the colour {colour}"
                raise MaskwrightError(f"line {number} of {path} has {what}", "name,r,g,b, 0 to 255 each", "correct it")
            for key in (name, colour):
                if key in seen:
                    raise MaskwrightError(
                        f"lines {seen[key]} and {number} of {path} have the same {'name' if key == name else 'colour'}",
                        "one of its own for each class",
                        "correct one of them",
                    )
                seen[key] = number
            if name == NO_CLASS or "".join(c for c in name.casefold() if c.isalnum()) in IGNORE_NAMES:
                void.append(name)
                codes.append(int(codes_of(np.array(colour, np.uint8))))
            else:
                rows.append((name, colour))
        if not rows:
            raise MaskwrightError(f"{path} names no class", "a line name,r,g,b for each", "fill it in")
        self.path = path
        self.classes = ClassTable(tuple(name for name, _ in rows), np.array([colour for _, colour in rows], np.uint8))
        self.pairs = colour_pairs(self.classes.colors, tuple(codes))
        self.said = [f"masks are read by the {len(rows)} colours of {path.name}"]
        if void:
            self.said.append(f"what is drawn as {some(void)} has no class")

    def readers(self) -> Readers:
        """How masks of this table are read."""
        return Readers(mask=partial(read_drawn, colours=self.pairs, table=os.fspath(self.path)))


def read_drawn(path: str | os.PathLike[str], colours: tuple[tuple[int, int], ...], table: str) -> np.ndarray:
    """The ids of a mask that is drawn in colours, uint8 (H, W), 255 for no class.

    Raises:
        MaskwrightError: as `masks.read_stored`, or a colour that is not in the table.
    """
    try:
        return LabelRule("colours", colours=colours).read(path)
    except MaskwrightError as error:
        if "which is of no class" not in error.found:
            raise
        raise MaskwrightError(
            error.found, f"the {sum(i != VOID for _, i in colours)} colours of {table}", f"add a line for it to {table}"
        ) from error


def table_of(root: Path) -> Path | None:
    """The table of colours that lies in a folder, if any."""
    return next((root / name for name in TABLES if is_regular(root / name)), None)


def masks_of(root: Path) -> dict[str, Path]:
    """{name: file} of the masks of a folder without photographs."""
    top = Folder(root)
    for name in FOLDERS:
        folder = top.find(name)
        found = names_below(folder, frozenset(MASK_SUFFIXES), MASK_SUFFIXES).found if folder is not None else {}
        if found:
            return found
    return names_below(top, frozenset(MASK_SUFFIXES), MASK_SUFFIXES).found


def labelmap_text(classes: ClassTable, void: int | None) -> str:
    """CVAT's labelmap.txt of a table; `void` is the colour code of no class."""
    lines = ["# label:color_rgb:parts:actions"]
    lines += [f"{name}:{','.join(map(str, c))}::" for name, c in zip(classes.names, classes.colors.tolist())]
    if void is not None:
        lines.append(f"{NO_CLASS}:{rgb(void, ',')}::")
    return "".join(f"{line}\n" for line in lines)
