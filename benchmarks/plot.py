"""Curves as a picture, with what the project has installed anyway."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from maskwright.data.trust.files import atomic_write

Curve = Mapping[float, Sequence[float]]
"""x -> the values there, one a seed."""
COLORS = (
    (120, 120, 120),
    (214, 39, 40),
    (31, 119, 180),
    (44, 160, 44),
    (255, 127, 14),
    (148, 103, 189),
    (23, 190, 207),
)
FEW = 12
"""Points that are marked one by one, and named on the axis."""


def draw(curves: Mapping[str, Curve], title: str, below: str) -> Image.Image:
    """Means joined by lines, whiskers of one standard deviation where there are several values; the first is thicker.

    Args:
        curves: by name, in the order of the legend and of `COLORS`.
        title: above.
        below: what x is.
    """
    width, height, left, bottom, top = 760, 440, 60, 60, 40
    picture = Image.new("RGB", (width, height), (255, 255, 255))
    pen, font = ImageDraw.Draw(picture), ImageFont.load_default(13)
    points = [(x, float(np.mean(v)), deviation(v)) for c in curves.values() for x, v in c.items()]
    places = sorted({p[0] for p in points})
    low_x, high_x = places[0], places[-1]
    low_y, high_y = min(p[1] - p[2] for p in points), max(p[1] + p[2] for p in points)
    pad = max(0.04, 0.08 * (high_y - low_y))
    low_y, high_y, right = low_y - pad, high_y + pad, width - 150

    def at(x: float, y: float) -> tuple[float, float]:
        across = left + (right - left) * (x - low_x) / ((high_x - low_x) or 1)
        return across, height - bottom - (height - bottom - top) * (y - low_y) / (high_y - low_y)

    for y in ticks(low_y, high_y):
        pen.line((*at(low_x, y), *at(high_x, y)), fill=(228, 228, 228))
        pen.text((8, at(low_x, y)[1] - 8), f"{y:g}", (80, 80, 80), font)
    for x in places if len(places) <= FEW else ticks(low_x, high_x):
        pen.text((at(x, low_y)[0] - 6, height - bottom + 6), f"{x:g}", (80, 80, 80), font)
    pen.text((left, 10), title, (20, 20, 20), font)
    pen.text((left, height - 28), below, (80, 80, 80), font)
    for k, (name, curve) in enumerate(curves.items()):
        color = COLORS[k % len(COLORS)]
        line = [at(x, float(np.mean(v))) for x, v in curve.items()]
        pen.line([c for p in line for c in p], fill=color, width=3 if k == 0 else 2)
        for (x, y), (place, v) in zip(line, curve.items()):
            if len(places) <= FEW:
                pen.ellipse((x - 3, y - 3, x + 3, y + 3), fill=color)
            if d := deviation(v):
                pen.line((x, at(place, float(np.mean(v)) - d)[1], x, at(place, float(np.mean(v)) + d)[1]), fill=color)
        pen.line((right + 20, top + 22 * k + 8, right + 44, top + 22 * k + 8), fill=color, width=3)
        pen.text((right + 50, top + 22 * k), name, (20, 20, 20), font)
    return picture


def save(picture: Image.Image, path: Path) -> None:
    """Writes a picture beside and renames it: PNG, or JPEG for any other name."""
    with atomic_write(path) as beside:
        picture.save(beside, format="PNG" if path.suffix == ".png" else "JPEG", quality=88)


def deviation(values: Sequence[float]) -> float:
    """Sample standard deviation; 0 of a single value."""
    return float(np.std(values, ddof=1)) if len(values) > 1 else 0.0


def ticks(low: float, high: float) -> list[float]:
    """At most nine round numbers between the two."""
    steps = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100, 200, 500)
    step = next(s for s in steps if (high - low) / s <= 8)
    first = int(np.ceil(low / step))
    return [round(step * k, 6) for k in range(first, int(np.floor(high / step)) + 1)]
