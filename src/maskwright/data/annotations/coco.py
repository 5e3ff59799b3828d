"""COCO's annotations (Lin et al., ECCV 2014, https://cocodataset.org/#format-data): one JSON file for many photographs.

    {"images": [{"id", "file_name", "width", "height"}], "categories": [{"id", "name"}],
     "annotations": [{"image_id", "category_id", "segmentation", "iscrowd", ...}]}

A segmentation is a list of polygons [x, y, x, y, ...] or runs {"size": [h, w], "counts": numbers or text}, down the
columns. Polygons of one annotation are its parts; the format has no holes in polygons, so that regions with holes are
written as runs. It has no order either: crowds are drawn first, then the larger objects before the smaller. A box
without a segmentation is no mask and is left out.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from maskwright.data.annotations.checks import MOST_SHAPES, Source
from maskwright.data.annotations.images import Images
from maskwright.data.annotations.presenting import Annotations, check_once
from maskwright.data.annotations.shapes import NO_CLASS, Note, Piece, Runs, Shape, by_area, runs_of
from maskwright.data.masking.classes import ClassTable
from maskwright.data.trust.files import write_bytes
from maskwright.ops.polygons import ring_area

KIND = "a COCO file: images, annotations and categories"
_MOST_RUNS = 1 << 26


def looks(head: str) -> bool:
    """Whether the beginning and the end of a file are those of a COCO file; captions alone are none."""
    start = head.lstrip("\ufeff \t\r\n")
    words = ('"annotations"', '"categories"', '"category_id"', '"file_name"', '"images"')
    if '"shapes"' in head or ('"caption"' in head and '"categories"' not in head):
        return False
    return start.startswith("{") and sum(word in head for word in words) >= 2


def read_coco(files: Sequence[Path], images: Images) -> Annotations:
    """Reads COCO files; several (one for each split) are joined by the names of their categories.

    Raises:
        MaskwrightError: a file is not as the format has it.
    """
    found = Annotations(files=list(files))
    names: dict[str, None] = {}
    for path in files:
        source = Source(path, KIND)
        value = source.json()
        categories = _categories(source, value)
        names.update(dict.fromkeys(categories.values()))
        sizes: dict[int | str, tuple[str, tuple[int, int]]] = {}
        listed: set[int | str] = set()
        calls: set[str] = set()
        for k, row in enumerate(source.listed(value.get("images"), "images")):
            key = _key(source, row.get("id"), f"the id of image {k}")
            file = source.text(row.get("file_name"), f"the file_name of image {k}")
            if key in listed or file in calls:
                raise source.error(f"lists the image {file!r} (id {key}) twice", "each image once")
            listed.add(key)
            calls.add(file)
            name = images.find(file, source)
            if name is not None:
                check_once(found.notes, name, str(path))
                size = source.size(row.get("height"), row.get("width"), file)
                found.notes[name] = Note(size, (), stated=False)
                sizes[key] = name, size
        shapes: dict[str, list[tuple[bool, Shape]]] = {}
        for k, row in enumerate(source.listed(value.get("annotations", []), "annotations")):
            key = _key(source, row.get("image_id"), f"the image_id of annotation {k}")
            if key not in listed:
                raise source.error(f"annotation {k} is of image {key}, which is not listed", "an id among the images")
            category = source.whole(row.get("category_id"), f"the category_id of annotation {k}")
            if category not in categories:
                raise source.error(
                    f"annotation {k} has the category {category}", f"an id among the {len(categories)} categories"
                )
            if key not in sizes:  # its photograph is not there
                continue
            name, size = sizes[key]
            shape = _shape(source, row.get("segmentation"), categories[category], size, f"annotation {k}", found)
            if shape is not None:
                shapes.setdefault(name, []).append((bool(row.get("iscrowd")), shape))
                if len(shapes[name]) > MOST_SHAPES:
                    raise source.error(f"more than {MOST_SHAPES} annotations of {name}")
        for name, members in shapes.items():
            crowds = by_area([s for crowd, s in members if crowd])
            found.notes[name] = Note(
                found.notes[name].size, (*crowds, *by_area([s for crowd, s in members if not crowd])), stated=False
            )
    found.listed, found.whole = tuple(names), NO_CLASS in names
    return found


def _key(source: Source, value: Any, where: str) -> int | str:
    """An id of an image: a whole number of 64 bits, or a text."""
    return value if isinstance(value, str) and value else source.whole(value, where, -(2**63), 2**63 - 1)


def _categories(source: Source, value: dict[str, Any]) -> dict[int, str]:
    found: dict[int, str] = {}
    for k, row in enumerate(source.listed(value.get("categories"), "categories")):
        number = source.whole(row.get("id"), f"the id of category {k}")
        name = source.text(row.get("name"), f"the name of category {k}")
        if number in found or name in found.values():
            raise source.error(f"names the category {name!r} (id {number}) twice", "each name and id once")
        found[number] = name
    return dict(sorted(found.items()))


def _shape(
    source: Source, value: Any, label: str, size: tuple[int, int], where: str, found: Annotations
) -> Shape | None:
    if not value:
        found.left_out["boxes without a segmentation"] += 1
        return None
    if isinstance(value, dict):
        if value.get("size") != list(size):
            raise source.error(f"{where} has runs of size {str(value.get('size'))[:40]}", f"{list(size)}, its image's")
        counts = value.get("counts")
        if isinstance(counts, str):
            counts = decode_counts(counts, source, where)
        runs = Runs(source.lengths(counts, size[0] * size[1], where), (0, 0, *size), columns=True)
        return Shape(label, runs=runs)
    parts = []
    if not isinstance(value, list):
        raise source.error(f"{where} has a segmentation that is neither polygons nor runs")
    for polygon in value:
        numbers = source.numbers(polygon, where)
        if len(numbers) % 2:
            raise source.error(f"{where} has a polygon of {len(numbers)} numbers", "pairs of x and y")
        if len(numbers) < 6:
            found.left_out["polygons of fewer than three points"] += 1
            continue
        parts.append(numbers.reshape(-1, 2))
    return Shape(label, tuple(parts)) if parts else None


def decode_counts(text: str, source: Source, where: str) -> list[int]:
    """Lengths of runs from COCO's compressed text: groups of five bits, the lowest first, each the difference from the
    length two before.

    Raises:
        MaskwrightError: characters that are none of it, or lengths that never end.
    """
    counts: list[int] = []
    if len(text) > _MOST_RUNS:
        raise source.error(f"{where} has runs of {len(text)} characters", f"at most {_MOST_RUNS}")
    value, shift = 0, 0
    for character in text:
        bits = ord(character) - 48
        if not 0 <= bits < 64 or shift > 40:
            raise source.error(f"{where} has runs with {character!r}", "COCO's compressed counts")
        value |= (bits & 31) << shift
        shift += 5
        if not bits & 32:
            if bits & 16:
                value -= 1 << shift
            counts.append(value + (counts[-2] if len(counts) > 2 else 0))
            value, shift = 0, 0
    if shift:
        raise source.error(f"{where} has runs that break off", "COCO's compressed counts")
    return counts


def encode_counts(counts: Sequence[int]) -> str:
    """The text that `decode_counts` reads."""
    out = []
    for k, count in enumerate(counts):
        value = count - (counts[k - 2] if k > 2 else 0)
        more = True
        while more:
            bits = value & 31
            value >>= 5
            more = value != (-1 if bits & 16 else 0)
            out.append(chr((bits | 32 if more else bits) + 48))
    return "".join(out)


class CocoWriter:
    """Writes `annotations.json` into a folder whose photographs lie in images/.

    Args:
        out: the folder.
        table: the classes. Where class 0 needs no shape the ids of categories are those of the classes, else one more:
            programs that read the format keep 0 for the background.
        uncovered: id of what needs no shape, or VOID.
    """

    ordered = False
    stated = False

    def __init__(self, out: Path, table: ClassTable, uncovered: int) -> None:
        self.path = out / "annotations.json"
        self.first = 0 if uncovered == 0 else 1
        self.images: list[dict[str, Any]] = []
        self.annotations: list[dict[str, Any]] = []
        self.names = list(table.names)

    def add(self, name: str, file: str, size: tuple[int, int], pieces: Sequence[Piece]) -> None:
        """One photograph with its regions."""
        number = len(self.images) + 1
        self.images.append({"id": number, "file_name": file, "width": size[1], "height": size[0]})
        for piece in pieces:
            if piece.label not in self.names:
                self.names.append(piece.label)
            segmentation: Any = [np.round(piece.outer, 3).ravel().tolist()]
            if piece.holes:
                counts = runs_of(piece.mask(size), columns=True)
                segmentation = {"size": list(size), "counts": encode_counts(counts)}
            low, high = piece.outer.min(0), piece.outer.max(0)
            self.annotations.append(
                {
                    "id": len(self.annotations) + 1, "image_id": number,
                    "category_id": self.names.index(piece.label) + self.first, "segmentation": segmentation,
                    "area": abs(ring_area(piece.outer)) - sum(abs(ring_area(hole)) for hole in piece.holes),
                    "bbox": [*low.tolist(), *(high - low).tolist()], "iscrowd": 0,
                }
            )  # fmt: skip

    def close(self) -> list[Path]:
        """Writes the file."""
        categories = [{"id": k + self.first, "name": n, "supercategory": ""} for k, n in enumerate(self.names)]
        value = {
            "info": {"description": "written by maskwright convert"}, "licenses": [], "images": self.images,
            "annotations": self.annotations, "categories": categories,
        }  # fmt: skip
        write_bytes(self.path, json.dumps(value, separators=(",", ":"), allow_nan=False).encode())
        return [self.path]
