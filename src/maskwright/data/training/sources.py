"""Where a segmentation network's training labels come from: people's masks, a store of pseudo-labels, or either.

All give label maps at the size of the photograph, and the images that have any.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from maskwright.data.folders.folder import Dataset
from maskwright.data.masking.label_rules import ignore_of
from maskwright.data.training.labels import LabelMap
from maskwright.data.training.views import View
from maskwright.errors import MaskwrightError


class Labels(Protocol):
    """Labels of some images of a dataset.

    Attributes:
        data: the dataset.
        indices: the images that have labels, ascending.
    """

    data: Dataset
    indices: list[int]

    def read(self, i: int) -> LabelMap:
        """Labels (H, W) of image `i`, at the image's size."""
        ...


class MaskLabels:
    """The masks of a dataset that may be read; each reading is noted in its ledger.

    Args:
        data: the images.
        classes: C; ids beyond it are refused.

    Raises:
        MaskwrightError: no image has a mask.
    """

    def __init__(self, data: Dataset, classes: int) -> None:
        self.data, self.classes = data, classes
        self.indices = [i for i in range(len(data)) if data.has_mask(i)]
        if not self.indices:
            raise MaskwrightError(
                f"{data.root} has no mask that may be read", "at least one", "add masks, or check --labeled and --split"
            )

    def read(self, i: int) -> LabelMap:
        """Labels (H, W) of image `i`; not valid where the mask says ignore.

        Raises:
            MaskwrightError: the mask is damaged, of another size than its image, or holds an unknown class.
        """
        ids = self.data.mask(i)
        ignore = ignore_of(ids)
        known = ids[ids != ignore]
        if known.size and int(known.max()) >= self.classes:
            raise MaskwrightError(
                f"the mask of {self.data.items[i].name} has class {int(known.max())}",
                f"0 to {self.classes - 1}, or {ignore} for ignore",
                f"add --classes {int(known.max()) + 1}, or --void {int(known.max())},{ignore} if it means no class",
            )
        return LabelMap.from_mask(ids, ignore)


class Store(Protocol):
    """Labels by image name on disk: a `LabelStore`, or `Proposals`.

    Attributes:
        folder: where they lie.
    """

    folder: Path

    def __contains__(self, name: str) -> bool: ...

    def read(self, name: str) -> LabelMap: ...


class StoredLabels:
    """Pseudo-labels or proposals of a dataset's images, from a store; the ledger does not count them.

    Args:
        data: the images.
        store: ids and confidence by image name.
        names: only these images; all that the store has if None.

    Raises:
        MaskwrightError: the store has labels of none of the images.
    """

    def __init__(self, data: Dataset, store: Store, names: set[str] | None = None) -> None:
        self.data, self.store = data, store
        wanted = [(i, item.name) for i, item in enumerate(data.items) if names is None or item.name in names]
        self.indices = [i for i, name in wanted if name in store]
        if not self.indices:
            raise MaskwrightError(f"{store.folder} has labels of none of the images", "at least one")

    def read(self, i: int) -> LabelMap:
        """Labels (H, W) of image `i`.

        Raises:
            MaskwrightError: they are missing, damaged, or of another size than the image.
        """
        name, (height, width) = self.data.items[i].name, self.data.size(i)
        found = self.store.read(name)
        if found.size != (height, width):
            raise MaskwrightError(
                f"the labels of {name} in {self.store.folder} are {found.size[0]}x{found.size[1]}",
                f"{height}x{width} as its photograph", "make them again at that size",
            )  # fmt: skip
        return found


class BothLabels:
    """People's masks where there are any, pseudo-labels elsewhere.

    Args:
        first: asked first.
        second: asked for the other images.
    """

    def __init__(self, first: Labels, second: Labels) -> None:
        self.first, self.second, self.data = first, second, first.data
        self._of_first = set(first.indices)
        self.indices = sorted(self._of_first | set(second.indices))

    def read(self, i: int) -> LabelMap:
        """Labels (H, W) of image `i`."""
        return (self.first if i in self._of_first else self.second).read(i)


def read_view(data: Dataset, i: int, view: View) -> np.ndarray:
    """What a view shows of image `i`, uint8 (h, w, 3); no more is decoded than it needs where the file allows it."""
    if data.readers.image is None:
        return view.read(data.items[i].image, range=data.value_range)
    rendered = view.render(data.image(i))
    assert isinstance(rendered, np.ndarray)
    return rendered


def fill_outside(x: Tensor, view: View, mean: Sequence[float]) -> Tensor:
    """What a view shows, with the mean colour where it lies outside the photograph.

    Args:
        x: uint8 (3, h, w), the view's pixels.
        view: with the recorded geometry.
        mean: RGB in [0, 1].
    """
    inside = view.valid()
    if bool(inside.all()):
        return x
    colour = torch.tensor(mean).mul(255).round().to(torch.uint8)
    return torch.where(inside, x, colour[:, None, None])
