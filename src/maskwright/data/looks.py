"""One look at an image and its mask: all that the doctor's findings are drawn from."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from maskwright.data.classes import default_palette
from maskwright.data.folder import Dataset, Item
from maskwright.data.headers import open_pillow
from maskwright.data.images import DECODER_ERRORS, AlphaKind, glance
from maskwright.data.masks import ColourMaskError
from maskwright.data.phash import Print, perceptual_hash
from maskwright.errors import MaskwrightError


@dataclass
class Look:
    """What one look at an image and its mask showed."""

    name: str
    size: tuple[int, int] | None = None
    stored: tuple[int, int] | None = None
    turned: bool = False
    digest: str | None = None
    print: Print | None = None
    image_problem: MaskwrightError | None = None
    mask_problem: MaskwrightError | None = None
    mask_shape: tuple[int, int] | None = None
    counts: dict[int, int] = field(default_factory=dict)
    wide: bool = False
    palette_colours: bool = False
    alpha: AlphaKind = "none"


def look_at(dataset: Dataset, i: int) -> Look:
    item = dataset.items[i]
    look = Look(item.name)
    try:
        look.digest = dataset.content_hash(i)
        look.size = dataset.size(i)
        if dataset.readers.image is None:
            seen = glance(item.image, range=dataset.value_range)
            look.stored, look.turned = seen.header.stored, seen.header.orientation >= 5
            look.alpha, small = seen.alpha, seen.small
        else:
            small = dataset.readers.image(item.image)
        look.print = perceptual_hash(small)
    except MaskwrightError as error:
        look.image_problem = error
    if item.mask is not None:
        _look_at_mask(dataset, item, look)
    return look


def _look_at_mask(dataset: Dataset, item: Item, look: Look) -> None:
    assert item.mask is not None
    try:
        ids = dataset.readers.mask(item.mask)
    except MaskwrightError as error:
        look.mask_problem = error
        look.palette_colours = isinstance(error, ColourMaskError) and _has_palette_colours(item.mask)
        return
    look.mask_shape = (ids.shape[0], ids.shape[1])
    look.wide = ids.dtype != np.uint8
    # A look-up by value: 65536 counters at most, no sort.
    counts = np.bincount(ids.ravel())
    present = np.flatnonzero(counts)
    look.counts = dict(zip(present.tolist(), counts[present].tolist()))


def _has_palette_colours(path: Path) -> bool:
    """Whether all colours of a colour mask are of the VOC palette, so that its ids can be had back."""
    try:
        with open(path, "rb") as file:
            rgb = np.asarray(open_pillow(file).convert("RGB")).reshape(-1, 3).astype(np.int64)
    except DECODER_ERRORS:
        return False
    palette = default_palette(256).astype(np.int64)
    weights = np.array([65536, 256, 1])
    allowed = np.append(palette @ weights, int(np.array([224, 224, 192]) @ weights))  # VOC draws "ignore" so
    return bool(np.isin(np.unique(rgb @ weights), allowed).all())
