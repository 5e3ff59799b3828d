"""Whether a mask was drawn on the picture as its EXIF tag turns it, or as the file stores it.

Where both have the same shape (a square, a half turn, a mirror) sizes cannot tell. Edges can: the outlines of a mask
lie where the picture changes.
"""

from __future__ import annotations

import os

import numpy as np

from maskwright.data.masking.masks import StoredMask
from maskwright.data.pictures.images import orient_view, read_small
from maskwright.errors import MaskwrightError

SIDE = 192
"""Pixels of the small picture's shorter side at least, where the file has as many."""


def turn_scores(image: str | os.PathLike[str], mask: StoredMask, orientation: int) -> tuple[float, float] | None:
    """How well a mask's outlines follow the picture's edges, as it is turned and as it is stored.

    Args:
        image: the photograph.
        mask: its mask, of the size of the turned photograph.
        orientation: the photograph's EXIF orientation, 2 to 8.

    Returns:
        (turned, stored): mean gradient below the outlines as a multiple of the picture's mean; None where the mask
        fits one way only, has no outlines or looks the same both ways, or the picture cannot be read.
    """
    values = mask.codes() if mask.kind == "colour" else mask.values
    drawn = orient_view(values, orientation)  # what a mask on the stored picture should have become
    if drawn.shape != values.shape or bool((drawn == values).all()):
        return None
    try:
        small = read_small(image, at_least=SIDE)
    except MaskwrightError:
        return None
    height, width = small.shape[:2]
    step = max(1, min(height, width) // (2 * SIDE))
    edges = _gradient(small[::step, ::step].mean(axis=2, dtype=np.float32))
    mean = float(edges.mean())
    scores = []
    for candidate in (values, drawn):
        outline = _outline(_nearest(candidate, edges.shape))
        if mean <= 0 or outline.sum() < 8:
            return None
        scores.append(float(edges[outline].mean()) / mean)
    return scores[0], scores[1]


def unturned(scores: list[tuple[float, float]]) -> list[bool]:
    """Which masks of a set were drawn on the stored pictures.

    Args:
        scores: what `turn_scores` gave of each.

    Returns:
        One answer each. One mask may lie well on either picture by chance, many do not: where the set as a whole is
        clear, only masks that say the contrary are left out; else only masks that are clear alone are named. On 160
        real photographs and masks no turned mask was named.
    """
    if not scores:
        return []
    ratio = np.array([max(stored, 1e-6) / max(turned, 1e-6) for turned, stored in scores])
    clear = float(np.exp(np.log(ratio).mean())) >= 1.25 and float((ratio > 1).mean()) >= 0.8 and len(ratio) > 3
    return (ratio > (0.8 if clear else 1.6)).tolist()


def _gradient(grey: np.ndarray) -> np.ndarray:
    """Largest difference to the four neighbours, float32 (h, w)."""
    edges = np.zeros_like(grey)
    down, along = np.abs(np.diff(grey, axis=0)), np.abs(np.diff(grey, axis=1))
    for part, step in ((edges[:-1], down), (edges[1:], down), (edges[:, :-1], along), (edges[:, 1:], along)):
        np.maximum(part, step, out=part)
    return edges


def _nearest(values: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    rows = ((np.arange(shape[0]) + 0.5) * values.shape[0] / shape[0]).astype(int)
    columns = ((np.arange(shape[1]) + 0.5) * values.shape[1] / shape[1]).astype(int)
    return values[rows[:, None], columns]


def _outline(values: np.ndarray) -> np.ndarray:
    """Pixels beside which another value begins, bool (h, w)."""
    line = np.zeros(values.shape, bool)
    down, along = values[1:] != values[:-1], values[:, 1:] != values[:, :-1]
    for part, step in ((line[:-1], down), (line[1:], down), (line[:, :-1], along), (line[:, 1:], along)):
        part |= step
    return line
