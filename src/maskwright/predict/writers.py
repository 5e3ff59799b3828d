"""What predictions become on disk: index masks, confidence maps, overlays. All files are written beside
their place and renamed into it."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
from PIL import Image

from maskwright.data.masking.classes import ClassTable
from maskwright.data.pictures.images import resize
from maskwright.data.pictures.inline import jpeg
from maskwright.data.trust.files import atomic_write, write_bytes

OVERLAY_SIDE = 4096
"""Pixels of an overlay's longer side at most: larger ones no viewer opens with pleasure."""
PNG_LEVEL = 1
"""Three times as fast as Pillow's default, and masks are mostly runs."""


def write_confidence(path: str | os.PathLike[str], confidence: np.ndarray) -> None:
    """Writes a confidence map as an 8-bit grey PNG, 255 = certain.

    Args:
        path: the file, `.png`.
        confidence: (H, W), float in [0, 1] or uint8.
    """
    if confidence.dtype == np.uint8:
        levels = confidence
    else:
        levels = np.empty(confidence.shape, np.uint8)
        for row in range(0, len(levels), 1024):  # by bands, so that a large float map is not copied
            band = np.nan_to_num(confidence[row : row + 1024].astype(np.float32))
            levels[row : row + 1024] = np.rint(band.clip(0, 1) * 255)
    with atomic_write(path, durable=False) as beside, open(beside, "wb") as file:
        Image.fromarray(levels).save(file, format="PNG", compress_level=PNG_LEVEL)


def boundaries(ids: np.ndarray, thickness: int = 1) -> np.ndarray:
    """Pixels next to which another id begins.

    Args:
        ids: (H, W).
        thickness: pixels of the line; 1 marks the upper or left one of two neighbours.

    Returns:
        bool (H, W).
    """
    edge = np.zeros(ids.shape, bool)
    edge[:-1] |= ids[:-1] != ids[1:]
    edge[:, :-1] |= ids[:, :-1] != ids[:, 1:]
    for _ in range(1, thickness):
        wider = edge.copy()
        wider[1:] |= edge[:-1]
        wider[:, 1:] |= edge[:, :-1]
        edge = wider
    return edge


def overlay(
    image: np.ndarray, ids: np.ndarray, table: ClassTable, strength: float = 0.5, side: int = OVERLAY_SIDE
) -> np.ndarray:
    """The photograph tinted with the classes' colours, with thin light lines between segments.

    Args:
        image: uint8 (H, W, 3).
        ids: (H, W); ids outside the table (ignore) leave the photograph as it is.
        table: the classes.
        strength: share of the colour, in [0, 1].
        side: pixels of the longer side at most.

    Returns:
        uint8 (h, w, 3), the photograph's size or less.
    """
    image, ids = shrink(image, ids, side)
    known = ids < len(table)
    weight = (known * np.float32(strength))[..., None]
    mixed = image.astype(np.float32)
    mixed += (table.colorize(ids) - mixed) * weight
    edge = boundaries(ids, max(1, round(max(ids.shape) / 900)))
    mixed[edge] += (255 - mixed[edge]) * 0.7
    return np.rint(mixed).astype(np.uint8)


def shrink(image: np.ndarray, ids: np.ndarray, side: int) -> tuple[np.ndarray, np.ndarray]:
    """A photograph and its mask brought to a longer side of at most `side` pixels, the mask by its nearest pixels."""
    height, width = ids.shape
    if max(height, width) <= side:
        return image, ids
    h, w = (max(1, round(n * side / max(height, width))) for n in (height, width))
    step = min(height, width) // (2 * side)
    if step > 1:
        image = image[::step, ::step]  # antialiasing a gigapixel picture for a thumbnail would cost more than the mask
    rows = ((np.arange(h) + 0.5) * height / h).astype(int)
    cols = ((np.arange(w) + 0.5) * width / w).astype(int)
    return resize(np.ascontiguousarray(image), (h, w)), ids[rows[:, None], cols]


def write_overlay(
    path: str | os.PathLike[str], image: np.ndarray, ids: np.ndarray, table: ClassTable, **options: Any
) -> None:
    """Writes `overlay(image, ids, table, **options)` as a JPEG."""
    write_bytes(path, jpeg(overlay(image, ids, table, **options), 90), durable=False)
