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
from maskwright.predict.tiles import WHOLE_PIXELS

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


def narrow(ids: np.ndarray, width: int) -> np.ndarray:
    """Pixels that lie in no square of `width` pixels a side of one id: lines, rims of speckles, sharp corners.

    Args:
        ids: (H, W).
        width: pixels.

    Returns:
        bool (H, W).
    """
    height, length = ids.shape
    if min(height, length) < width:
        return np.zeros(ids.shape, bool)
    down, right = (np.ones((height - width + 1, length), bool), np.ones((height - width + 1, length - width + 1), bool))
    for k in range(1, width):
        down &= ids[k - 1 : height - width + k] == ids[k : height - width + 1 + k]
    for k in range(width):
        right &= down[:, k : length - width + 1 + k]
        if k:
            first = ids[: height - width + 1]
            right &= first[:, k - 1 : length - width + k] == first[:, k : length - width + 1 + k]
    wide = np.zeros((height, length - width + 1), bool)  # `right` marks the first pixel of each such square
    for k in range(width):
        wide[k : height - width + 1 + k] |= right
    covered = np.zeros(ids.shape, bool)
    for k in range(width):
        covered[:, k : length - width + 1 + k] |= wide
    return ~covered


THIN = 5
"""Pixels of a square that what counts as thin in an overlay does not hold."""
THIN_STRENGTH = 0.9
"""Share of the colour where a class is thin: half of it would be lost among the photograph's own colours."""


def overlay(
    image: np.ndarray, ids: np.ndarray, table: ClassTable, strength: float = 0.5, side: int = OVERLAY_SIDE
) -> np.ndarray:
    """The photograph tinted with the classes' colours, with thin light lines between segments.

    Vessels, cables and the like, which the lines would cover, have no lines and nearly all of their colour.

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
    line = max(1, round(max(ids.shape) / 900))
    thin = narrow(ids, THIN + 2 * (line - 1))
    weight = (known * np.where(thin, max(strength, strength and THIN_STRENGTH), strength).astype(np.float32))[..., None]
    mixed = image.astype(np.float32)
    mixed += (table.colorize(ids) - mixed) * weight
    edge = boundaries(ids, line)
    for _ in range(line):  # nor beside what is thin
        edge &= ~thin
        thin[:-1] |= thin[1:]
        thin[:, :-1] |= thin[:, 1:]
    edge &= ~thin
    mixed[edge] += (255 - mixed[edge]) * 0.7
    return np.rint(mixed).astype(np.uint8)


def shrink(image: np.ndarray, ids: np.ndarray, side: int) -> tuple[np.ndarray, np.ndarray]:
    """A photograph and its mask brought to a longer side of at most `side` pixels.

    A pixel of the small mask is the class that has most of its area, but where a class narrower than such a pixel runs
    through it, that one: a vessel stays a line. Of pictures above `WHOLE_PIXELS` the nearest pixels are taken.
    """
    height, width = ids.shape
    if max(height, width) <= side:
        return image, ids
    h, w = (max(1, round(n * side / max(height, width))) for n in (height, width))
    step = min(height, width) // (2 * side)
    if step > 1:
        image = image[::step, ::step]  # antialiasing a gigapixel picture for a thumbnail would cost more than the mask
    small = resize(np.ascontiguousarray(image), (h, w))
    return small, _nearest(ids, h, w) if height * width > WHOLE_PIXELS else _shrunk(ids, h, w)


def _nearest(ids: np.ndarray, h: int, w: int) -> np.ndarray:
    rows = ((np.arange(h) + 0.5) * ids.shape[0] / h).astype(int)
    cols = ((np.arange(w) + 0.5) * ids.shape[1] / w).astype(int)
    return ids[rows[:, None], cols]


def _shrunk(ids: np.ndarray, h: int, w: int) -> np.ndarray:
    """Ids (h, w): by area, and by what is narrower than a pixel of the result."""
    k = min(8, -(-max(ids.shape) // max(h, w)))
    fine = _nearest(ids, h * k, w * k)  # k x k samples a pixel
    classes, counts = np.unique(fine, return_counts=True)
    thin = narrow(fine, k + 1)
    best, most = np.full((h, w), classes[0], ids.dtype), np.zeros((h, w), np.int64)
    rare, found = np.zeros((h, w), ids.dtype), np.zeros((h, w), bool)
    for c in classes[np.argsort(-counts, kind="stable")]:  # of two thin ones the rarer is seen
        of = fine == c
        area = of.reshape(h, k, w, k).sum((1, 3))
        best = np.where(area > most, c, best)
        most = np.maximum(area, most)
        through = (of & thin).reshape(h, k, w, k).sum((1, 3)) * 2 > k
        rare, found = np.where(through, c, rare), found | through
    return np.where(found, rare, best).astype(ids.dtype)


def write_overlay(
    path: str | os.PathLike[str], image: np.ndarray, ids: np.ndarray, table: ClassTable, **options: Any
) -> None:
    """Writes `overlay(image, ids, table, **options)` as a JPEG."""
    write_bytes(path, jpeg(overlay(image, ids, table, **options), 90), durable=False)
