"""CVAT's annotations, "CVAT for images 1.1" (https://docs.cvat.ai/docs/other/xml_format/): one XML file.

    <annotations><version>1.1</version><meta>... <labels><label><name/><color/></label></labels></meta>
      <image id name width height><polygon label points z_order/> <box/> <ellipse/>
        <mask label rle left top width height/></image>
    </annotations>

Polygons, boxes, ellipses and masks (runs along the rows of their box, the first outside) are read, lines, points and
tags are no masks. Shapes are drawn by z_order, and in the order of the file where that is equal. Videos (tracks) are
exported "for images".
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any
from xml.sax.saxutils import quoteattr

import numpy as np

from maskwright.data.annotations.checks import MOST_POINTS, MOST_SHAPES, Source
from maskwright.data.annotations.images import Images
from maskwright.data.annotations.labelme import ellipse
from maskwright.data.annotations.presenting import Annotations, check_once
from maskwright.data.annotations.shapes import NO_CLASS, Note, Piece, Runs, Shape
from maskwright.data.masking.classes import ClassTable
from maskwright.data.trust.files import write_json, write_text

KIND = "an XML file of CVAT for images 1.1"
_SHAPES = ("polygon", "box", "ellipse", "mask")
_OTHERS = ("polyline", "points", "cuboid", "skeleton")


def looks(head: str) -> bool:
    """Whether the beginning of a file is that of CVAT's XML."""
    return "<annotations" in head and ("<image" in head or "<meta" in head or "<version>" in head)


def read_cvat(files: Sequence[Path], images: Images) -> Annotations:
    """Reads CVAT's XML files.

    Raises:
        MaskwrightError: a file is not as the format has it, or is of a video.
    """
    found = Annotations(files=list(files))
    labels: dict[str, None] = {}
    for path in files:
        source = Source(path, KIND)
        inner: list[tuple[int, Shape]] = []
        name: str | None = None
        size = (1, 1)
        root = ""
        seen: set[str] = set()
        for event, element, depth in source.elements():
            if event == "start":
                root = root or element.tag
                if root != "annotations":
                    raise source.error(f"an element {root!r} at the top", "annotations")
                if element.tag == "track":
                    raise source.error("tracks of a video", KIND, "export the task as CVAT for images 1.1")
                if element.tag == "image" and depth == 2:
                    name, size = _image(source, element, images, seen)
                    inner = []
                continue
            if element.tag == "label" and element.find("name") is not None:
                _label(source, element, labels, found)
            elif depth == 3 and name is not None and element.tag in _SHAPES:
                shape = _shape(source, element, size, f"{element.tag} {len(inner)} of {name}", found)
                if shape is not None:
                    order = source.whole(element.get("z_order", "0"), "z_order", -(2**31))
                    inner.append((order, shape))
                if len(inner) > MOST_SHAPES:
                    raise source.error(f"more than {MOST_SHAPES} shapes of {name}")
            elif depth == 3 and name is not None and element.tag in _OTHERS:
                found.left_out[f"shapes of the kind {element.tag!r}"] += 1
            elif depth == 2 and element.tag == "image":
                if name is not None:
                    check_once(found.notes, name, str(path))
                    shapes = tuple(shape for _, shape in sorted(inner, key=lambda pair: pair[0]))
                    found.notes[name] = Note(size, shapes, stated=False)
                name = None
            if depth <= 3:
                element.clear()
    found.listed, found.whole = tuple(labels), NO_CLASS in labels
    return found


def _image(source: Source, element: Any, images: Images, seen: set[str]) -> tuple[str | None, tuple[int, int]]:
    file = source.text(element.get("name"), "the name of an image")
    if file in seen:
        raise source.error(f"lists the image {file!r} twice", "each image once")
    seen.add(file)
    return images.find(file, source), source.size(element.get("height"), element.get("width"), file)


def _label(source: Source, element: Any, labels: dict[str, None], found: Annotations) -> None:
    name = source.text(element.findtext("name"), "the name of a label")
    labels[name] = None
    colour = (element.findtext("color") or "").strip()
    if len(colour) == 7 and colour[0] == "#":
        try:
            red, green, blue = bytes.fromhex(colour[1:])
        except ValueError:
            return
        found.colours[name] = (red, green, blue)


def _shape(source: Source, element: Any, size: tuple[int, int], where: str, found: Annotations) -> Shape | None:
    label = source.text(element.get("label"), f"the label of {where}")

    def decimal(name: str, default: str | None = None) -> float:
        return source.decimal(element.get(name, default), f"{name} of {where}")

    if element.tag == "mask":
        top, left, height, width = (
            source.whole(element.get(k), f"{k} of {where}") for k in ("top", "left", "height", "width")
        )
        if top + height > size[0] or left + width > size[1] or not height or not width:
            raise source.error(f"{where} leaves its image", "a box inside of it")
        text = element.get("rle", "")
        if text.count(",") > height * width:
            raise source.error(f"{where} has {text.count(',') + 1} runs", f"at most {height * width + 1}")
        counts = [source.whole(n, f"a run of {where}") for n in text.split(",") if n.strip()]
        return Shape(label, runs=Runs(source.lengths(counts, height * width, where), (top, left, height, width)))
    if element.tag == "polygon":
        points = _points(source, element.get("points", ""), where)
        if len(points) < 3:
            found.left_out["polygons of fewer than three points"] += 1
            return None
        return Shape(label, (points,))
    turn = decimal("rotation", "0")
    if element.tag == "ellipse":
        centre = np.array([decimal("cx"), decimal("cy")])
        return Shape(label, (ellipse(centre, decimal("rx"), decimal("ry"), turn),))
    x0, y0, x1, y1 = (decimal(k) for k in ("xtl", "ytl", "xbr", "ybr"))
    box = np.array([(x0, y0), (x1, y0), (x1, y1), (x0, y1)])
    if turn:
        centre, angle = box.mean(0), np.radians(turn)
        x, y = (box - centre).T
        box = centre + np.stack([x * np.cos(angle) - y * np.sin(angle), x * np.sin(angle) + y * np.cos(angle)], axis=1)
    return Shape(label, (box,))


def _points(source: Source, text: str, where: str) -> np.ndarray:
    if text.count(";") >= MOST_POINTS:
        raise source.error(f"{where} has {text.count(';') + 1} points", f"at most {MOST_POINTS}", "simplify it")
    pairs = [pair.split(",") for pair in text.split(";") if pair.strip()]
    if any(len(pair) != 2 for pair in pairs):
        raise source.error(f"{where} has points that are no pairs", "x,y;x,y;...")
    return np.array([[source.decimal(v, where) for v in pair] for pair in pairs], np.float64).reshape(-1, 2)


class CvatWriter:
    """Writes `annotations.xml` for photographs in images/, and labels.json, which a new task's "Raw" field takes."""

    ordered = True
    stated = False

    def __init__(self, out: Path, table: ClassTable, uncovered: int) -> None:
        self.out, self.table = out, table
        self.images: list[str] = []

    def add(self, name: str, file: str, size: tuple[int, int], pieces: Sequence[Piece]) -> None:
        """One photograph with its regions."""
        lines = [
            f"  <image id={quoteattr(str(len(self.images)))} name={quoteattr(file)} "
            f'width="{size[1]}" height="{size[0]}">'
        ]
        for k, piece in enumerate(pieces):
            points = ";".join(f"{x:.10g},{y:.10g}" for x, y in np.round(piece.outer, 3).tolist())
            lines.append(
                f'    <polygon label={quoteattr(piece.label)} source="auto" occluded="0" points="{points}" '
                f'z_order="{k}"></polygon>'
            )
        self.images.append("\n".join([*lines, "  </image>"]))

    def close(self) -> list[Path]:
        """Writes the two files."""
        colours = ["#" + bytes(colour).hex() for colour in self.table.colors.tolist()]
        labels = [
            {"name": name, "color": colour, "attributes": [], "type": "any"}
            for name, colour in zip((*self.table.names, NO_CLASS), (*colours, "#ffffff"))
        ]
        inner = "".join(
            f"<label><name>{_text(row['name'])}</name><color>{row['color']}</color><type>any</type><attributes>"
            "</attributes></label>"
            for row in labels
        )
        head = (
            '<?xml version="1.0" encoding="utf-8"?>\n<annotations>\n  <version>1.1</version>\n'
            f"  <meta><task><name>maskwright</name><size>{len(self.images)}</size><mode>annotation</mode>"
            f"<labels>{inner}</labels></task></meta>\n"
        )
        path = self.out / "annotations.xml"
        write_text(path, head + "\n".join([*self.images, "</annotations>"]) + "\n")
        write_json(self.out / "labels.json", labels)
        return [path]


def _text(value: object) -> str:
    return str(value).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
