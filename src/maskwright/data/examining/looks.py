"""One look at an image and its mask: all that the doctor's findings are drawn from."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from maskwright.data.examining.phash import DETAIL, Print, detail_of, perceptual_hash
from maskwright.data.folders.folder import Dataset
from maskwright.data.masking.survey import Survey, Surveyor
from maskwright.data.pictures.images import AlphaKind, glance, read_small
from maskwright.errors import MaskwrightError


@dataclass
class Look:
    """What one look at an image and its mask showed."""

    name: str
    size: tuple[int, int] | None = None
    digest: str | None = None
    print: Print | None = None
    image_problem: MaskwrightError | None = None
    mask: Survey | None = None
    alpha: AlphaKind = "none"


def look_at(dataset: Dataset, i: int, surveyor: Surveyor) -> Look:
    """Reads image `i` at the least cost, and its mask where one may be read."""
    item = dataset.items[i]
    look = Look(item.name)
    try:
        look.digest = dataset.content_hash(i)
        look.size = dataset.size(i)
        if dataset.readers.image is None:
            seen = glance(item.image, range=dataset.value_range)
            look.alpha, small = seen.alpha, seen.small
        else:
            small = dataset.readers.image(item.image)
        look.print = perceptual_hash(small)
    except MaskwrightError as error:
        look.image_problem = error
    if item.mask is not None:
        look.mask = surveyor.look(i)
    return look


def look_closer(dataset: Dataset, i: int) -> np.ndarray | None:
    """The detail of image `i` (`phash.detail_of`), for those that look alike at first; None where it cannot be read."""
    path = dataset.items[i].image
    try:
        if dataset.readers.image is not None:
            return detail_of(dataset.readers.image(path))
        return detail_of(read_small(path, DETAIL, range=dataset.value_range))
    except MaskwrightError:
        return None
