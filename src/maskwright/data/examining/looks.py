"""One look at an image and its mask: all that the doctor's findings are drawn from."""

from __future__ import annotations

from dataclasses import dataclass

from maskwright.data.examining.phash import Print, perceptual_hash
from maskwright.data.folders.folder import Dataset
from maskwright.data.masking.survey import Survey, Surveyor
from maskwright.data.pictures.images import AlphaKind, glance
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
