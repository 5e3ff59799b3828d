"""YOLO's segmentation labels (https://docs.ultralytics.com/datasets/segment/): a text file for each photograph.

    data.yaml                      names: [cat, dog] or {0: cat, 1: dog}; train, val: folders
    images/train/NAME.jpg          and labels/train/NAME.txt, a line "class x y x y ..." an object

Coordinates are shares of the image's size. Names come from data.yaml, or from a list with one name a line (classes.txt,
obj.names). The format has neither holes nor an order: a region with holes is written as one outline with cuts of no
width, and the larger objects are drawn before the smaller. A line of five numbers is a box and no mask. A photograph
without a text file is unlabelled; one with an empty file holds no object.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from maskwright.data.annotations.checks import MOST_NESTED, MOST_POINTS, MOST_SHAPES, Source
from maskwright.data.annotations.images import Images
from maskwright.data.annotations.presenting import Annotations
from maskwright.data.annotations.shapes import Note, Piece, Shape, by_area
from maskwright.data.folders.scan import is_regular
from maskwright.data.folders.tables import read_lines
from maskwright.data.masking.classes import ClassTable
from maskwright.data.pictures.images import image_size
from maskwright.data.trust.files import write_text
from maskwright.errors import MaskwrightError
from maskwright.ops.polygons import keyhole

KIND = "YOLO segmentation labels: a line 'class x y x y x y ...' an object"
TABLES = ("data.yaml", "data.yml", "dataset.yaml", "classes.txt", "obj.names", "_darknet.labels")
_FARTHEST = 0.1
"""Share of the image by which a point may lie outside."""


def label_of(image: Path) -> list[Path]:
    """Where the text file of a photograph may lie."""
    parts = list(image.parts)
    found = [image.with_suffix(".txt")]
    for k in range(len(parts) - 2, -1, -1):
        if parts[k].lower() == "images":
            found.insert(0, Path(*parts[:k], "labels", *parts[k + 1 :]).with_suffix(".txt"))
            break
    return found


def looks(head: str) -> bool:
    """Whether the beginning of a text file is that of polygons: a whole number, then at least three pairs."""
    words = head.partition("\n")[0].split()
    try:
        numbers = [float(word) for word in words]
    except ValueError:
        return False
    shares = all(-_FARTHEST <= v <= 1 + _FARTHEST for v in numbers[1:])
    return len(numbers) >= 7 and len(numbers) % 2 == 1 and words[0].isdigit() and shares


def read_yolo(files: Sequence[Path], images: Images, root: Path) -> Annotations:
    """Reads YOLO's labels.

    Args:
        files: the table of names, or none: then it is looked for in the folder.
        images: the photographs.
        root: the folder.

    Raises:
        MaskwrightError: a file is not as the format has it, or no table of names is there.
    """
    table = next(iter(files), None) or next((root / n for n in TABLES if is_regular(root / n)), None)
    if table is None:
        raise MaskwrightError(
            f"{root} has no table of the names of its classes",
            "data.yaml with a line names:, or classes.txt with one a line",
            "put it there",
        )
    names = _names(Source(table, "a table of class names"))
    found = Annotations(files=[table], listed=tuple(names.values()))
    for name, image in images.found.items():
        path = next((p for p in label_of(image) if is_regular(p)), None)
        if path is None:
            continue
        source = Source(path, KIND)
        try:
            size = image_size(image)
        except MaskwrightError:  # an image that cannot be read is told elsewhere
            continue
        found.notes[name] = Note(size, tuple(by_area(_shapes(source, names, size, found))))
    if not found.notes:
        raise MaskwrightError(
            f"{root} has no text file for any of its {len(images.found)} photographs", KIND, "put them into labels/"
        )
    return found


def _names(source: Source) -> dict[int, str]:
    """The names of the classes by number."""
    if source.path.suffix.lower() not in (".yaml", ".yml"):
        listed = [line.strip() for line in read_lines(source.path)]
        while listed and not listed[-1]:
            listed.pop()
        rows: Any = listed
    else:
        import yaml

        text = source.read_bytes(1 << 24)
        if _depth(text) > MOST_NESTED:  # the parser takes a time that grows with its square
            raise source.error("no YAML that is nested so deeply", f"at most {MOST_NESTED} levels")
        try:
            value = yaml.safe_load(text)
        except (yaml.YAMLError, RecursionError, ValueError) as error:
            raise source.error(f"no YAML ({str(error)[:80]})") from None
        rows = value.get("names") if isinstance(value, dict) else None
    if isinstance(rows, list):
        rows = dict(enumerate(rows))
    if not isinstance(rows, dict) or not rows or len(rows) > 65_535:
        raise source.error("names no classes", "names: [cat, dog], or {0: cat, 1: dog}")
    found = {}
    for number, name in rows.items():
        name = name if isinstance(name, str) else str(name)  # YAML takes yes, no and 1 for more than words
        found[source.whole(number, "the number of a class")] = source.text(name, f"the name of class {number}")
    if len(set(found.values())) < len(found):
        raise source.error("names a class twice", "each name once")
    return dict(sorted(found.items()))


def _depth(text: bytes) -> int:
    """Brackets of a YAML text that are open at once, at most."""
    signs = np.frombuffer(text, np.uint8)
    opened, closed = np.isin(signs, list(b"[{")), np.isin(signs, list(b"]}"))
    return int(np.cumsum(opened.astype(np.int64) - closed).max(initial=0))


def _shapes(source: Source, names: Mapping[int, str], size: tuple[int, int], found: Annotations) -> list[Shape]:
    text = source.read_bytes().decode("utf-8", "replace")
    shapes = []
    for k, line in enumerate(text.splitlines(), 1):
        if not line.strip():
            continue
        if line.count(" ") > 2 * MOST_POINTS + 8:
            raise source.error(f"line {k} has {line.count(' ') // 2} points", f"at most {MOST_POINTS}", "simplify it")
        words = line.split()
        number = source.whole(words[0], f"the class in line {k}")
        if number not in names:
            raise source.error(f"line {k} has the class {number}", f"0 to {max(names)}, the classes of the table")
        if len(words) == 5:
            found.left_out["boxes"] += 1
            continue
        if len(words) % 2 == 0:
            raise source.error(f"line {k} has {len(words)} numbers", "the class and pairs of x and y")
        if len(words) < 7:
            found.left_out["polygons of fewer than three points"] += 1
            continue
        points = np.array([source.decimal(word, f"line {k}") for word in words[1:]]).reshape(-1, 2)
        if points.min() < -_FARTHEST or points.max() > 1 + _FARTHEST:
            raise source.error(
                f"line {k} has the coordinate {points.flat[np.abs(points).argmax()]:g}",
                "shares of the image's width and height, from 0 to 1",
                "divide x by the width and y by the height",
            )
        shapes.append(Shape(names[number], (points * (size[1], size[0]),)))
        if len(shapes) > MOST_SHAPES:
            raise source.error(f"more than {MOST_SHAPES} lines")
    return shapes


class YoloWriter:
    """Writes labels/NAME.txt for photographs in images/, and data.yaml."""

    ordered = False
    stated = True

    def __init__(self, out: Path, table: ClassTable, uncovered: int) -> None:
        self.out = out
        self.names = [name for k, name in enumerate(table.names) if k != uncovered]
        self.written: list[Path] = []

    def add(self, name: str, file: str, size: tuple[int, int], pieces: Sequence[Piece]) -> None:
        """One photograph, `file` below images/, with its regions."""
        lines = []
        for piece in pieces:
            if piece.label not in self.names:
                self.names.append(piece.label)
            shares = keyhole(piece.outer, piece.holes) / (size[1], size[0])
            lines.append(f"{self.names.index(piece.label)} " + " ".join(f"{v:.9g}" for v in shares.ravel().tolist()))
        path = (self.out / "labels" / file).with_suffix(".txt")
        write_text(path, "".join(f"{line}\n" for line in lines), durable=False)
        self.written.append(path)

    def close(self) -> list[Path]:
        """Writes the table of names."""
        import yaml

        value = {"path": ".", "train": "images", "val": "images", "names": dict(enumerate(self.names))}
        write_text(self.out / "data.yaml", yaml.safe_dump(value, sort_keys=False, allow_unicode=True))
        return self.written
