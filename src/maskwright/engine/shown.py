"""What a stage shows of itself in the run's report: sentences, figures, a table, curves and pictures.

A stage writes `shown.json` and the folder `shown/` beside its artefacts; the report reads them and knows no method.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from maskwright.data.pictures.inline import jpeg
from maskwright.data.trust.artefacts import write_record
from maskwright.data.trust.files import write_bytes

SHOWN = "shown.json"
PICTURES = "shown"
SHAPE = {
    "title": str, "sentences": [str], "facts": [[str]], "head": [str], "table": [[str]],
    "curves": [{"label": str, "over": str, "x": [float], "y": [float], "mark": (float, None)}],
    "rows": [{"name": str, "says": [[str]], "pictures": [[str]]}],
}  # fmt: skip
"""What `shown.json` holds; pictures are [caption, file in `shown/`], words [text, colour as RRGGBB or ""]."""


@dataclass(frozen=True)
class Curve:
    """A curve over something that is no step.

    Attributes:
        label: what it shows.
        over: what x is.
        x: rising.
        y: values; those that are not finite are left out.
        mark: an x to be marked, None for none.
    """

    label: str
    over: str
    x: Sequence[float]
    y: Sequence[float]
    mark: float | None = None


@dataclass(frozen=True)
class Strip:
    """Pictures of one image, side by side.

    Attributes:
        name: of the image.
        says: words beside the name, each with the colour that it has in the pictures, uint8 (3,), or None.
        pictures: (caption, uint8 (h, w, 3)) each.
    """

    name: str
    says: Sequence[tuple[str, Sequence[int] | np.ndarray | None]]
    pictures: Sequence[tuple[str, np.ndarray]]


@dataclass(kw_only=True)
class Shown:
    """What a stage shows.

    Attributes:
        title: heading.
        sentences: what is to be said.
        facts: (name, value) pairs that stand out.
        head: of the table; its first column is text, the others are figures.
        table: rows of cells.
        curves: curves.
        strips: pictures.
    """

    title: str
    sentences: list[str] = field(default_factory=list)
    facts: list[tuple[str, str]] = field(default_factory=list)
    head: list[str] = field(default_factory=list)
    table: list[list[str]] = field(default_factory=list)
    curves: list[Curve] = field(default_factory=list)
    strips: list[Strip] = field(default_factory=list)

    def write(self, folder: Path) -> None:
        """Writes it into a stage's folder; the record comes last."""
        rows: list[dict[str, Any]] = []
        for k, strip in enumerate(self.strips):
            files = []
            for n, (caption, pixels) in enumerate(strip.pictures):
                file = f"{k}-{n}.jpg"
                write_bytes(folder / PICTURES / file, jpeg(pixels, 85), durable=False)
                files.append([caption, file])
            says = [[word, "" if color is None else bytes(int(v) for v in color).hex()] for word, color in strip.says]
            rows.append({"name": strip.name, "says": says, "pictures": files})
        record = asdict(self) | {"rows": rows, "curves": [_finite(c) for c in self.curves]}
        del record["strips"]
        write_record(folder / SHOWN, record)


def _finite(curve: Curve) -> dict[str, Any]:
    """A curve as JSON values, without what is not finite."""
    kept = [(float(x), float(y)) for x, y in zip(curve.x, curve.y) if math.isfinite(x) and math.isfinite(y)]
    mark = None if curve.mark is None else float(curve.mark)
    return {
        "label": curve.label, "over": curve.over, "x": [x for x, _ in kept], "y": [y for _, y in kept], "mark": mark,
    }  # fmt: skip
