"""Writing photographs with their masks in the formats that other programs read.

Formats of outlines get the regions of each mask (`tracing`), the others its pixels. Photographs without a mask are
written too, and have none there either.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from typing import Protocol

import numpy as np
from PIL import Image

from maskwright.data.annotations.coco import CocoWriter
from maskwright.data.annotations.colours import labelmap_text
from maskwright.data.annotations.cvat import CvatWriter
from maskwright.data.annotations.labelme import LabelmeWriter
from maskwright.data.annotations.shapes import NO_CLASS, Piece
from maskwright.data.annotations.yolo import YoloWriter
from maskwright.data.examining.mending import copy_file
from maskwright.data.folders.names import written
from maskwright.data.folders.tables import csv_text
from maskwright.data.masking.classes import IGNORE8, ClassTable, default_palette
from maskwright.data.masking.label_rules import VOC_VOID, VOID, ignore_of
from maskwright.data.masking.masks import codes_of, colour_of, write_mask
from maskwright.data.trust.files import atomic_write, file_for, write_text
from maskwright.errors import MaskwrightError, unknown

TARGETS = {
    "masks": "images/ and masks/ as every verb reads them: index PNG, classes.txt, splits/",
    "beside": "NAME_mask.png beside each photograph",
    "npy": "masks/NAME.npy, arrays of ids that numpy reads",
    "binary": "masks/NAME.png of 0 and 255, for two classes",
    "colours": "masks/NAME.png in the classes' colours, and colors.csv (name,r,g,b)",
    "voc": "JPEGImages/, SegmentationClass/ in VOC's palette, ImageSets/Segmentation/",
    "cvat-masks": "SegmentationClass/ in colours, labelmap.txt: CVAT's Segmentation mask 1.1",
    "coco": "annotations.json: polygons, and runs where a region has holes",
    "labelme": "NAME.json beside each photograph: polygons",
    "cvat": "annotations.xml: polygons, CVAT for images 1.1",
    "yolo": "labels/NAME.txt: polygons, and data.yaml",
}
"""What can be written."""
OUTLINES = ("coco", "labelme", "cvat", "yolo")
"""The formats of outlines among them."""
_FOLDERS = {"labelme": "", "beside": "", "voc": "JPEGImages"}


class _Outlines(Protocol):
    """What writes a format of outlines. `ordered`: it draws its shapes in an order; `stated`: it has a file for each
    photograph, which says that there is nothing where it has no shape."""

    ordered: bool
    stated: bool

    def __init__(self, out: Path, table: ClassTable, uncovered: int) -> None: ...

    def add(self, name: str, file: str, size: tuple[int, int], pieces: Sequence[Piece]) -> None: ...

    def close(self) -> list[Path]: ...


_WRITERS: dict[str, type[_Outlines]] = {
    "coco": CocoWriter, "labelme": LabelmeWriter, "cvat": CvatWriter, "yolo": YoloWriter,
}  # fmt: skip


class Writer:
    """Writes photographs and masks into a folder, one after the other.

    Args:
        out: the folder.
        to: a name of `TARGETS`.
        table: the classes.
        tolerance: pixels by which outlines may leave the edges of pixels.
        photographs: whether the photographs are copied too.

    Attributes:
        changed: pixels of outlines that fill to another class than the mask's.
        pixels: of all masks.
        masks: how many were written.

    Raises:
        MaskwrightError: an unknown format, or one that cannot hold so many classes.
    """

    def __init__(
        self, out: Path, to: str, table: ClassTable, *, tolerance: float = 1.0, photographs: bool = True
    ) -> None:
        if to not in TARGETS:
            raise unknown("format", to, TARGETS)
        if not 0 <= tolerance <= 100:
            raise MaskwrightError(f"--tolerance {tolerance:g}", "pixels from 0 to 100", "--tolerance 1")
        if to == "binary" and len(table) != 2:
            raise MaskwrightError(f"{len(table)} classes in masks of 0 and 255", "two", "--to masks")
        if to in ("voc", "colours", "cvat-masks") and len(table) > IGNORE8:
            raise MaskwrightError(f"{len(table)} classes in masks of 8 bits", f"at most {IGNORE8}", "--to masks")
        self.out, self.to, self.table = out, to, table
        self.tolerance, self.photographs = tolerance, photographs
        self.changed = self.pixels = self.masks = 0
        self._names: list[str] = []
        self._files: dict[str, str] = {}
        self._void: int | None = None
        self._outlines: _Outlines | None = None
        self._ground: str | None = None
        if to in _WRITERS:
            from maskwright.data.annotations.tracing import uncovered_of

            uncovered = uncovered_of(table)
            self._outlines = _WRITERS[to](out, table, uncovered)
            self._ground = table.names[uncovered] if uncovered != VOID else None
        elif to in ("colours", "cvat-masks"):
            taken = set(codes_of(table.colors).tolist())
            self._void = next(c for c in chain((VOC_VOID, 0xFFFFFF), range(0x010101, 0xFFFFFF)) if c not in taken)

    def add(self, name: str, image: Path, ids: np.ndarray | None, size: tuple[int, int]) -> None:
        """One photograph.

        Args:
            name: of the photograph, with "/" between folders.
            image: its file.
            ids: uint8 or uint16 (H, W), 255 or 65535 for no class; None: it has no mask.
            size: (H, W) of the photograph.

        Raises:
            MaskwrightError: the place cannot be written, or the format cannot hold the mask.
        """
        base = self.out / _FOLDERS.get(self.to, "images")
        target = file_for(base, name, image.suffix)
        file = target.relative_to(base).as_posix()
        stem = file.removesuffix(image.suffix)
        if stem in self._files:
            raise MaskwrightError(
                f"the images {name!r} and {self._files[stem]!r} would have one file", "names of their own", "rename one"
            )
        self._files[stem] = name
        if self.photographs:
            copy_file(image, target)
        if ids is not None:
            self._names.append(stem)
            self.masks += 1
            self.pixels += ids.size
        if self._outlines is not None:
            self._trace(stem, file, ids, size)
        elif ids is not None:
            self._mask(stem, ids)

    def _trace(self, stem: str, file: str, ids: np.ndarray | None, size: tuple[int, int]) -> None:
        from maskwright.data.annotations.tracing import changed_pixels, pieces_of

        assert self._outlines is not None
        if ids is None:
            if self.to in ("coco", "cvat"):  # their lists name every photograph
                self._outlines.add(stem, file, size, ())
            return
        pieces = pieces_of(ids, self.table, tolerance=self.tolerance, ordered=self._outlines.ordered)
        if self.tolerance:
            self.changed += changed_pixels(ids, self.table, pieces)
        if self._outlines.stated and [piece.label for piece in pieces] == [self._ground]:
            pieces = []  # a file without a shape says that there is nothing
        self._outlines.add(stem, file, size, pieces)

    def _mask(self, stem: str, ids: np.ndarray) -> None:
        none = ignore_of(ids)
        if self.to == "npy":
            with atomic_write(self.out / "masks" / f"{stem}.npy", durable=False) as beside, open(beside, "wb") as file:
                np.save(file, ids, allow_pickle=False)
        elif self.to == "voc":
            void = colour_of(VOC_VOID)
            colours = ClassTable(self.table.names, default_palette(len(self.table)))
            narrow = np.where(ids == none, IGNORE8, ids).astype(np.uint8)
            write_mask(self.out / "SegmentationClass" / f"{stem}.png", narrow, colours, none=void)
        elif self.to == "binary":
            if (ids == none).any():
                raise MaskwrightError(
                    f"{int((ids == none).sum())} pixels of {stem} have no class", "two classes alone", "--to masks"
                )
            self._save(self.out / "masks" / f"{stem}.png", ids.astype(np.uint8) * np.uint8(255))
        elif self.to in ("colours", "cvat-masks"):
            assert self._void is not None
            colours_of = np.concatenate([self.table.colors, np.array([colour_of(self._void)], np.uint8)])
            drawn = colours_of[np.where(ids == none, len(self.table), ids)]
            folder = "masks" if self.to == "colours" else "SegmentationClass"
            self._save(self.out / folder / f"{stem}.png", drawn)
        elif self.to == "beside":
            write_mask(self.out / f"{stem}_mask.png", ids, self.table)
        else:
            write_mask(self.out / "masks" / f"{stem}.png", ids, self.table)

    @staticmethod
    def _save(path: Path, pixels: np.ndarray) -> None:
        with atomic_write(path, durable=False) as beside, open(beside, "wb") as file:
            Image.fromarray(pixels).save(file, format="PNG", compress_level=1)

    def close(self, list_name: str | None = "labeled") -> None:
        """Writes what belongs to all: tables, the file of formats that have one, and a list of the photographs with a
        mask by that name; None: no list."""
        listed = "".join(f"{written(name)}\n" for name in self._names)
        if self._outlines is not None:
            self._outlines.close()
        if self.to == "colours":
            rows = [(n, *colour) for n, colour in zip(self.table.names, self.table.colors.tolist())]
            rows += [(NO_CLASS, *colour_of(self._void or 0))]
            write_text(self.out / "colors.csv", csv_text(("name", "r", "g", "b"), rows))
        if self.to == "cvat-masks":
            write_text(self.out / "labelmap.txt", labelmap_text(self.table, self._void))
            write_text(self.out / "ImageSets" / "Segmentation" / "default.txt", listed)
        write_text(self.out / "classes.txt", "".join(f"{name}\n" for name in self.table.names))
        if list_name is not None:
            write_text(self.out / "splits" / f"{list_name}.txt", listed)
            if self.to == "voc":
                write_text(self.out / "ImageSets" / "Segmentation" / f"{list_name}.txt", listed)
