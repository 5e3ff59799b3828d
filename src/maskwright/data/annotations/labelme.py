"""LabelMe's annotations (https://github.com/wkentaro/labelme): a JSON file beside each photograph.

    {"version", "flags", "shapes": [{"label", "points", "shape_type", ...}], "imagePath", "imageData", "imageHeight",
     "imageWidth"}

Polygons, rectangles (two corners), circles (the centre and a point on it) and masks (a PNG in a box) are read; lines
and points are no masks. Shapes are drawn in the order of the file. The photograph is the file that imagePath names, or
the file of the same name; where neither is there, the one that imageData holds.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import io
import json
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from maskwright.data.annotations.checks import MOST_SHAPES, Source
from maskwright.data.annotations.images import Images
from maskwright.data.annotations.presenting import Annotations, check_once
from maskwright.data.annotations.shapes import NO_CLASS, Note, Piece, Runs, Shape, runs_of
from maskwright.data.masking.classes import ClassTable
from maskwright.data.pictures.images import DECODER_ERRORS
from maskwright.data.trust.files import file_for, write_bytes, write_text
from maskwright.data.trust.remembered import cache_root

KIND = "a LabelMe file: shapes, imagePath and the image's size"
_VERSION = "5.5.0"
_FINEST = 0.05
"""Pixels by which the polygon of a circle may leave it."""
_SUFFIXES = {"JPEG": ".jpg", "PNG": ".png", "TIFF": ".tif", "BMP": ".bmp", "WEBP": ".webp", "GIF": ".gif"}


def looks(head: str) -> bool:
    """Whether the beginning of a file is that of a LabelMe file."""
    start = head.lstrip("\ufeff \t\r\n")
    words = ('"shapes"', '"imagePath"', '"imageData"', '"flags"', '"imageHeight"')
    return start.startswith("{") and sum(word in head for word in words) >= 2 and '"annotations"' not in head


def read_labelme(files: Sequence[Path], images: Images, root: Path) -> Annotations:
    """Reads LabelMe files. Photographs that lie inside of them are kept beside the drawings.

    Raises:
        MaskwrightError: a file is not as the format has it.
    """
    found = Annotations(files=list(files))
    for path in files:
        source = Source(path, KIND)
        value = source.json()
        name = _image(source, value, images, root)
        if name is None:
            continue
        check_once(found.notes, name, str(path))
        rows = source.listed(value.get("shapes"), "shapes")
        if len(rows) > MOST_SHAPES:
            raise source.error(f"{len(rows)} shapes", f"at most {MOST_SHAPES}")
        size = source.size(value.get("imageHeight"), value.get("imageWidth"), "the image")
        shapes = [_shape(source, row, size, f"shape {k}", found) for k, row in enumerate(rows)]
        found.notes[name] = Note(size, tuple(shape for shape in shapes if shape is not None))
    return found


def _image(source: Source, value: dict[str, Any], images: Images, root: Path) -> str | None:
    """The photograph that a file is of."""
    called = value.get("imagePath")
    data = value.get("imageData")
    for file in ([called] if isinstance(called, str) and called.strip() else []) + [source.path.stem]:
        before = len(images.missing)
        name = images.find(file, source, strict=False)
        if name is not None:
            return name
        del images.missing[before:]
    if not isinstance(data, str) or not data:
        images.missing.append(called if isinstance(called, str) and called else source.path.stem)
        return None
    try:
        raw = base64.b64decode(data, validate=False)
        with Image.open(io.BytesIO(raw)) as picture:
            suffix = _SUFFIXES.get(picture.format or "")
    except (binascii.Error, *DECODER_ERRORS) as error:
        raise source.error(f"imageData that holds no picture ({str(error)[:60]})", "a JPEG or PNG in base64") from None
    if suffix is None:
        raise source.error("imageData of an unknown kind", "a JPEG or PNG in base64")
    name = source.path.relative_to(root).with_suffix("").as_posix() if root in source.path.parents else source.path.stem
    folder = (
        cache_root() / "drawings" / hashlib.blake2b(os.fsencode(os.path.realpath(root)), digest_size=12).hexdigest()
    )
    path = file_for(folder / "pictures", name, suffix)
    if not path.exists() or path.read_bytes() != raw:
        write_bytes(path, raw, durable=False)
    images.add(name, path)
    return name


def _shape(source: Source, row: dict[str, Any], size: tuple[int, int], where: str, found: Annotations) -> Shape | None:
    label = source.text(row.get("label"), f"the label of {where}")
    kind = row.get("shape_type") or "polygon"
    points = source.points(row.get("points"), where)
    if kind == "mask":
        return _mask(source, row.get("mask"), points, size, label, where)
    if kind == "rectangle" and len(points) == 2:
        (x0, y0), (x1, y1) = points
        points = np.array([(x0, y0), (x1, y0), (x1, y1), (x0, y1)])
    elif kind == "circle" and len(points) == 2:
        points = ellipse(points[0], *[float(np.hypot(*(points[1] - points[0])))] * 2)
    elif kind not in ("polygon", "rectangle", "oriented_rectangle"):
        found.left_out[f"shapes of the kind {kind!r}"] += 1
        return None
    if len(points) < 3:
        found.left_out["polygons of fewer than three points"] += 1
        return None
    return Shape(label, (points,))


def ellipse(centre: np.ndarray, rx: float, ry: float, degrees: float = 0.0) -> np.ndarray:
    """An ellipse as a polygon that leaves it by a twentieth of a pixel at most, float64 (n, 2).

    Args:
        centre: (x, y).
        rx: its half axis along x before it is turned, pixels.
        ry: that along y.
        degrees: how far it is turned clockwise on the screen.
    """
    radius = max(rx, ry, _FINEST * 2)
    n = max(16, math.ceil(math.pi / math.acos(1 - _FINEST / radius)))
    angles = np.arange(n) * (2 * math.pi / n)
    x, y, turn = rx * np.cos(angles), ry * np.sin(angles), math.radians(degrees)
    return centre + np.stack([x * math.cos(turn) - y * math.sin(turn), x * math.sin(turn) + y * math.cos(turn)], axis=1)


def _mask(source: Source, value: Any, points: np.ndarray, size: tuple[int, int], label: str, where: str) -> Shape:
    if len(points) != 2 or not isinstance(value, str):
        raise source.error(f"{where} is a mask without its two corners or its PNG")
    try:
        with Image.open(io.BytesIO(base64.b64decode(value))) as picture:
            if picture.width * picture.height > size[0] * size[1]:
                raise source.error(f"{where} is a mask of {picture.height}x{picture.width}", "one inside of its image")
            pixels = np.asarray(picture.convert("L")) > 0
    except (binascii.Error, *DECODER_ERRORS) as error:
        raise source.error(f"{where} is a mask that cannot be read ({str(error)[:60]})", "a PNG in base64") from None
    left, top = (int(v) for v in points.min(0))
    height, width = pixels.shape
    if top < 0 or left < 0 or top + height > size[0] or left + width > size[1]:
        raise source.error(f"{where} is a mask that leaves its image", "one inside of it")
    return Shape(label, runs=Runs(np.array(runs_of(pixels), np.int64), (top, left, height, width)))


class LabelmeWriter:
    """Writes NAME.json beside each photograph, and labels.txt, which `labelme --labels` reads."""

    ordered = True
    stated = True

    def __init__(self, out: Path, table: ClassTable, uncovered: int) -> None:
        self.out, self.table = out, table
        self.written: list[Path] = []

    def add(self, name: str, file: str, size: tuple[int, int], pieces: Sequence[Piece]) -> None:
        """One photograph, `file` below the folder, with its regions."""
        shapes = [
            {
                "label": piece.label, "points": np.round(piece.outer, 3).tolist(), "group_id": None, "description": "",
                "shape_type": "polygon", "flags": {}, "mask": None,
            }
            for piece in pieces
        ]  # fmt: skip
        value: dict[str, Any] = {
            "version": _VERSION, "flags": {}, "shapes": shapes, "imagePath": file.rpartition("/")[2],
            "imageData": None, "imageHeight": size[0], "imageWidth": size[1],
        }  # fmt: skip
        path = (self.out / file).with_suffix(".json")
        write_bytes(path, (json.dumps(value, indent=1, allow_nan=False) + "\n").encode(), durable=False)
        self.written.append(path)

    def close(self) -> list[Path]:
        """Writes the list of labels."""
        write_text(self.out / "labels.txt", "".join(f"{name}\n" for name in (NO_CLASS, *self.table.names)))
        return self.written
