"""Filling polygons, and joining a polygon's holes to its outline.

Coordinates are continuous: pixel (row i, column j) covers [j, j + 1] x [i, i + 1], points are (x, y). A pixel belongs
to a polygon where its centre (j + 0.5, i + 0.5) lies inside, counted by even and odd crossings; a centre on an edge
belongs to what lies to the right of it or below.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

_MOST_CROSSINGS = 1 << 22


def ring_area(ring: np.ndarray) -> float:
    """Signed area of a ring (n, 2); positive where it runs clockwise as seen on the screen, y downwards."""
    x, y = ring[:, 0], ring[:, 1]
    return float(np.dot(x, np.roll(y, -1)) - np.dot(np.roll(x, -1), y)) / 2


def fill(rings: Sequence[np.ndarray], size: tuple[int, int]) -> tuple[np.ndarray, int, int]:
    """The pixels inside a polygon of one or several rings, holes among them.

    Args:
        rings: float (n, 2) each, points (x, y), closed without their first point again; finite.
        size: (H, W) of the image; what lies outside is cut off.

    Returns:
        bool (h, w), its first row, and its first column, in the image; (0, 0) pixels where none is inside.
    """
    height, width = size
    starts = np.concatenate([ring for ring in rings if len(ring) > 2] or [np.zeros((0, 2))])
    ends = np.concatenate([np.roll(ring, -1, axis=0) for ring in rings if len(ring) > 2] or [np.zeros((0, 2))])
    # Each edge runs downwards, so that neighbours which share one round its crossings alike.
    down = (starts[:, 1] < ends[:, 1])[:, None]
    upper, lower = np.where(down, starts, ends), np.where(down, ends, starts)
    first = np.clip(np.ceil(upper[:, 1] - 0.5), 0, height).astype(np.int64)
    last = np.clip(np.ceil(lower[:, 1] - 0.5), 0, height).astype(np.int64)
    crossing = last > first
    upper, lower, first, last = upper[crossing], lower[crossing], first[crossing], last[crossing]
    if not len(first):
        return np.zeros((0, 0), bool), 0, 0
    top, bottom = int(first.min()), int(last.max())
    left = int(np.clip(np.floor(starts[:, 0].min()), 0, width))
    right = int(np.clip(np.ceil(starts[:, 0].max()), 0, width))
    if right <= left:
        return np.zeros((0, 0), bool), 0, 0
    columns = right - left + 1
    toggles = np.zeros((bottom - top) * columns, np.int64)
    slope = (lower[:, 0] - upper[:, 0]) / (lower[:, 1] - upper[:, 1])
    edges = np.cumsum(last - first)
    begin = 0
    while begin < len(first):
        before = int(edges[begin - 1]) if begin else 0
        end = max(begin + 1, int(np.searchsorted(edges, before + _MOST_CROSSINGS)))
        counts = last[begin:end] - first[begin:end]
        edge = np.repeat(np.arange(begin, end), counts)
        rows = np.arange(int(counts.sum())) - np.repeat(np.cumsum(counts) - counts, counts) + first[edge]
        x = upper[edge, 0] + (rows + 0.5 - upper[edge, 1]) * slope[edge]
        column = np.clip(np.ceil(x - 0.5), left, right).astype(np.int64) - left
        toggles += np.bincount((rows - top) * columns + column, minlength=len(toggles))
        begin = end
    inside = (np.cumsum(toggles.reshape(bottom - top, columns), axis=1)[:, :-1] & 1).astype(bool)
    return inside, top, left


def keyhole(outer: np.ndarray, holes: Sequence[np.ndarray]) -> np.ndarray:
    """One ring for a polygon with holes: each hole is joined by a cut of no width, walked there and back.

    Args:
        outer: (n, 2).
        holes: (m, 2) each.

    Returns:
        (k, 2) whose even-odd filling is that of the outline and its holes.
    """
    ring = outer
    for hole in sorted(holes, key=lambda h: tuple(h[np.lexsort((h[:, 1], h[:, 0]))[0]])):
        at = int(np.lexsort((hole[:, 1], hole[:, 0]))[0])
        near = int(((ring - hole[at]) ** 2).sum(1).argmin())
        turned = np.roll(hole, -at, axis=0)
        ring = np.concatenate([ring[: near + 1], turned, turned[:1], ring[near:]])
    return ring
