"""From a label map to the shapes that a format writes: regions with outlines, what needs no shape left out."""

from __future__ import annotations

import numpy as np

from maskwright.data.annotations.presenting import BACKGROUNDS
from maskwright.data.annotations.shapes import NO_CLASS, Piece
from maskwright.data.masking.classes import ClassTable
from maskwright.data.masking.label_rules import VOID, ignore_of
from maskwright.ops.outlines import outline
from maskwright.ops.polygons import fill, ring_area

TOLERANCE = 1.0
"""Pixels by which an outline may leave the edges of the pixels where nothing else is said."""


def uncovered_of(table: ClassTable) -> int:
    """The class that needs no shape, because formats take what no shape covers for it; VOID where there is none."""
    return next((k for k, name in enumerate(table.names) if name in BACKGROUNDS), VOID)


def pieces_of(ids: np.ndarray, table: ClassTable, *, tolerance: float, ordered: bool) -> list[Piece]:
    """The shapes of a label map.

    Args:
        ids: uint8 or uint16 (H, W), 255 or 65535 for no class.
        table: the classes.
        tolerance: pixels, as for `ops.outlines.outline`.
        ordered: whether the format draws its shapes in an order. Then none has holes: what lies in a hole is drawn
            after it, the background too. Otherwise the shapes have holes and do not overlap.

    Returns:
        The pieces, the larger first where they are ordered. A label map of background alone is one piece of it.
    """
    none = ignore_of(ids)
    uncovered = none if uncovered_of(table) == VOID else uncovered_of(table)

    def label(number: int) -> str:
        return NO_CLASS if number == none else table.names[number]

    regions = outline(ids, tolerance)
    if len(regions) == 1 and regions[0].label == uncovered != none:
        return [Piece(label(uncovered), regions[0].outer)]
    if not ordered:
        return [Piece(label(r.label), r.outer, r.holes) for r in regions if r.label != uncovered]
    regions.sort(key=lambda r: -ring_area(r.outer))
    canvas = np.full(ids.shape, uncovered, np.int64)
    pieces = []
    for region in regions:
        inside, top, left = fill([region.outer], ids.shape)
        part = canvas[top : top + inside.shape[0], left : left + inside.shape[1]]
        # What needs no shape gets one where a larger shape was drawn over its place.
        if region.label == uncovered and 2 * int((part[inside] != uncovered).sum()) <= region.pixels:
            continue
        part[inside] = region.label
        pieces.append(Piece(label(region.label), region.outer))
    return pieces


def changed_pixels(ids: np.ndarray, table: ClassTable, pieces: list[Piece]) -> int:
    """How many pixels of a label map the shapes fill with another class, or with none."""
    none = ignore_of(ids)
    uncovered = uncovered_of(table)
    numbers = {name: k for k, name in enumerate(table.names)} | {NO_CLASS: none}
    drawn = np.full(ids.shape, none if uncovered == VOID else uncovered, ids.dtype)
    for piece in pieces:
        inside, top, left = fill([piece.outer, *piece.holes], ids.shape)
        drawn[top : top + inside.shape[0], left : left + inside.shape[1]][inside] = numbers[piece.label]
    return int((drawn != ids).sum())
