"""The picture sheet of suggestions: photograph with regions, what the model sees, and where it is unsure.

Legend: (H, W) size of a photograph, (h, w) grid of its scores.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from maskwright.data.masking.classes import ClassTable
from maskwright.data.pictures.images import resize
from maskwright.data.trust.files import atomic_write
from maskwright.predict.writers import overlay, shrink

CELL_WIDTH, CELL_HEIGHT = 300, 225
"""Room of one picture, pixels; its aspect is kept."""
CAPTION, GAP, LEGEND = 24, 8, 46
PAPER, INK, FAINT = (248, 248, 246), (32, 32, 32), (110, 110, 110)
BOX = (0, 230, 255)
Font = ImageFont.FreeTypeFont | ImageFont.ImageFont
HEAT = np.array([(8, 8, 30), (70, 15, 110), (170, 40, 100), (240, 110, 40), (255, 215, 70), (255, 255, 220)], float)
"""Colours from 0 to 1, dark to light, so that the order survives in grey and for most colour-blind eyes."""


@dataclass(frozen=True)
class Shown:
    """One suggestion as the sheet shows it, already small.

    Attributes:
        title: rank and name.
        score: as text.
        photo: uint8 (a, b, 3).
        ids: (a, b) classes.
        heat: float (h, w), not negative.
        boxes: (top, left, height, width) in pixels of the small photograph.
    """

    title: str
    score: str
    photo: np.ndarray
    ids: np.ndarray
    heat: np.ndarray
    boxes: list[tuple[float, float, float, float]]

    @staticmethod
    def of(
        title: str, score: str, pixels: np.ndarray, ids: np.ndarray, heat: np.ndarray,
        boxes: Sequence[tuple[int, int, int, int]],
    ) -> Shown:  # fmt: skip
        """Brings an image to the sheet's size.

        Args:
            title, score: text.
            pixels: uint8 (H, W, 3).
            ids: (h, w) classes.
            heat: (h, w).
            boxes: in pixels of the image.
        """
        height, width = pixels.shape[:2]
        scale = min(CELL_HEIGHT / height, CELL_WIDTH / width)
        size = (max(1, round(height * scale)), max(1, round(width * scale)))
        rows = ((np.arange(size[0]) + 0.5) * ids.shape[0] / size[0]).astype(int)
        cols = ((np.arange(size[1]) + 0.5) * ids.shape[1] / size[1]).astype(int)
        side = max(size)
        photo = shrink(pixels, np.zeros((height, width), np.uint8), side)[0] if max(height, width) > side else pixels
        photo = photo if photo.shape[:2] == size else resize(np.ascontiguousarray(photo), size)
        y, x = size[0] / height, size[1] / width
        small = [(t * y, l * x, h * y, w * x) for t, l, h, w in boxes]
        return Shown(title, score, photo, ids[rows[:, None], cols], heat, small)


def heat_colors(values: np.ndarray) -> np.ndarray:
    """uint8 (..., 3) of values in [0, 1], `HEAT` in between linearly; what lies outside is cut, NaN is 0."""
    place = np.clip(np.nan_to_num(values), 0, 1) * (len(HEAT) - 1)
    low = np.minimum(place.astype(int), len(HEAT) - 2)
    part = (place - low)[..., None]
    return np.rint(HEAT[low] * (1 - part) + HEAT[low + 1] * part).astype(np.uint8)


def draw_sheet(shown: Sequence[Shown], table: ClassTable, unit: str) -> Image.Image:
    """The sheet: two suggestions a row, each as photograph, overlay and heat map; one scale of heat for all.

    Args:
        shown: at least one.
        table: the classes.
        unit: what the heat means.
    """
    columns = 1 if len(shown) == 1 else 2
    rows = -(-len(shown) // columns)
    entry = (CELL_HEIGHT + CAPTION + GAP, 3 * (CELL_WIDTH + GAP) + 2 * GAP)
    sheet = Image.new("RGB", (columns * entry[1] + GAP, rows * entry[0] + GAP + LEGEND), PAPER)
    draw = ImageDraw.Draw(sheet)
    font, small = ImageFont.load_default(15), ImageFont.load_default(12)
    low, high = (float(v) for v in np.quantile(np.concatenate([s.heat.ravel() for s in shown]), (0.005, 0.995)))
    span = max(high - low, 1e-6)
    for k, one in enumerate(shown):
        y, x = GAP + (k // columns) * entry[0], GAP + (k % columns) * entry[1]
        _caption(draw, one, (x, y), entry[1] - 3 * GAP, font)
        heat = Image.fromarray(heat_colors((one.heat - low) / span))
        photo = Image.fromarray(one.photo)
        pictures = [
            _boxed(photo.copy(), one.boxes),
            Image.fromarray(overlay(one.photo, one.ids, table)),
            _boxed(heat.resize(photo.size, Image.Resampling.BILINEAR), one.boxes),
        ]
        for n, picture in enumerate(pictures):
            left = x + n * (CELL_WIDTH + GAP) + (CELL_WIDTH - picture.width) // 2
            sheet.paste(picture, (left, y + CAPTION + (CELL_HEIGHT - picture.height) // 2))
    _legend(sheet, draw, (GAP, rows * entry[0] + GAP), (low, low + span), unit, small)
    _class_legend(draw, shown, table, (GAP, rows * entry[0] + GAP + LEGEND // 2), sheet.width, small)
    return sheet


def write_sheet(path: str | os.PathLike[str], shown: Sequence[Shown], table: ClassTable, unit: str) -> None:
    """Writes `draw_sheet` as a PNG. Raises `MaskwrightError` if the place cannot be written."""
    sheet = draw_sheet(shown, table, unit)
    with atomic_write(path, durable=False) as beside:
        sheet.save(beside, format="PNG")


def _caption(draw: ImageDraw.ImageDraw, one: Shown, corner: tuple[int, int], width: int, font: Font) -> None:
    score_width = draw.textlength(one.score, font)
    title = one.title
    while len(title) > 4 and draw.textlength(title, font) > width - score_width - 3 * GAP:
        title = title[:-2] + "…"
    draw.text(corner, title, INK, font)
    draw.text((corner[0] + width - score_width, corner[1]), one.score, FAINT, font)


def _boxed(picture: Image.Image, boxes: Sequence[tuple[float, float, float, float]]) -> Image.Image:
    """A picture with rectangles, light on dark so that they show on any ground, numbered by their rank."""
    draw, font = ImageDraw.Draw(picture), ImageFont.load_default(12)
    for k, (top, left, height, width) in enumerate(boxes, 1):
        corners = (round(left), round(top), round(left + width) - 1, round(top + height) - 1)
        corners = (*corners[:2], max(corners[0], corners[2]), max(corners[1], corners[3]))
        draw.rectangle(corners, outline=(0, 0, 0), width=3)
        draw.rectangle(corners, outline=BOX, width=1)
        if len(boxes) > 1:
            draw.text((corners[0] + 4, corners[1] + 2), str(k), BOX, font, stroke_width=1, stroke_fill=(0, 0, 0))
    return picture


def _legend(
    sheet: Image.Image, draw: ImageDraw.ImageDraw, corner: tuple[int, int], ends: tuple[float, float], unit: str,
    font: Font,
) -> None:  # fmt: skip
    """The scale of heat, in one line with what it means."""
    x, y = corner
    low, high = (f"{v:.2g}" for v in ends)
    draw.text((x, y), low, FAINT, font)
    x += round(draw.textlength(low, font)) + GAP
    sheet.paste(Image.fromarray(heat_colors(np.linspace(0, 1, 200)[None].repeat(12, 0))), (x, y + 2))
    draw.text((x + 200 + GAP, y), high, FAINT, font)
    x += 200 + 3 * GAP + round(draw.textlength(high, font))
    said = f"{unit}. Left to right: photograph, prediction, what the model is unsure of; above at the right its score."
    draw.text((x, y), said, INK, font)


def _class_legend(
    draw: ImageDraw.ImageDraw,
    shown: Sequence[Shown],
    table: ClassTable,
    corner: tuple[int, int],
    width: int,
    font: Font,
) -> None:
    """The colours of the classes that the predictions hold, the most frequent first, as many as fit."""
    counts = sum(np.bincount(s.ids.ravel(), minlength=len(table))[: len(table)] for s in shown)
    x, y = corner
    for c in np.argsort(-np.asarray(counts), kind="stable"):
        text = table.names[int(c)]
        needed = 18 + round(draw.textlength(text, font)) + 2 * GAP
        if not np.asarray(counts)[c] or x + needed > width:
            break
        draw.rectangle((x, y + 2, x + 12, y + 13), fill=tuple(int(v) for v in table.colors[int(c)]), outline=FAINT)
        draw.text((x + 18, y), text, INK, font)
        x += needed
