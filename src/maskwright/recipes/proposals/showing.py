"""Objects of a few photographs, for the report of a stage that found them."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from maskwright.data.folders.folder import Dataset
from maskwright.data.masking.classes import ClassTable
from maskwright.engine.shown import Strip
from maskwright.predict.writers import overlay, shrink

OBJECT = ClassTable(("object",), np.array([(235, 120, 20)], np.uint8))
"""How the report draws an object; what is none stays as it is."""
SHOWN_SIDE = 320
"""Pixels of the longer side of the report's pictures of objects."""


def object_strips(
    data: Dataset, indices: Sequence[int], mask_of: Callable[[str], np.ndarray], count: int = 4
) -> list[Strip]:
    """Photographs, spread evenly, beside their objects.

    Args:
        data: that they are of.
        indices: of those with objects.
        mask_of: from a name to its mask (H, W), above 0 where the object is.
        count: photographs at most.
    """
    strips = []
    for k in sorted({round(k) for k in np.linspace(0, len(indices) - 1, min(count, len(indices)))}):
        name = data.names[indices[k]]
        photograph, mask = shrink(data.image(indices[k]), mask_of(name), SHOWN_SIDE)
        seen = overlay(photograph, np.where(mask > 0, 0, 1), OBJECT)
        strips.append(Strip(name, [], [("photograph", photograph), ("object", seen)]))
    return strips
