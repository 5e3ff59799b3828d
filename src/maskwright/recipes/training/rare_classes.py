"""Crops that show rare classes: which photograph comes next, and where in it the crop lies.

Rare class sampling: DAFormer, Hoyer et al., CVPR 2022, https://arxiv.org/abs/2111.14887. A class is drawn with
P(c) = softmax((1 - f_c) / T), f_c its share of all labelled pixels, then one of the photographs that show it, then a
crop until it shows the class too. Class and photograph are drawn here in the other order, to the same joint chances:
photographs by sum_c P(c) [i shows c] / n_c, n_c the number of photographs that show c, and in each the class by its
share of that sum. So the order stays a function of seed and position, whatever was drawn in crops.

Mining: CBST, Zou et al., ECCV 2018, https://arxiv.org/abs/1810.07911. Crops around a pixel of a rare class.

Legend: C classes, N photographs, (H, W) image size, S crop side.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from maskwright.data.training.labels import LabelMap
from maskwright.data.training.sources import Labels
from maskwright.data.training.streams import CropRecipe
from maskwright.data.training.views import View
from maskwright.engine.config import option
from maskwright.errors import MaskwrightError

TRIES = 10
"""How often a crop that does not show its class is drawn anew."""


@dataclass(kw_only=True)
class RareOptions:
    """Rare class sampling of the source."""

    temperature: float = option(
        0.0, "T: how strongly source crops show rare classes, less is more; DAFormer 0.01; 0: no such choice", low=0,
        main=True,
    )  # fmt: skip
    pixels: float = option(
        3000 / 512**2,
        "a photograph counts for a class from so many pixels of it on, a crop from half of them, as a share of the "
        "crop's; DAFormer: 3,000 of 512 x 512",
        low=0,
        high=1,
    )


def rare_class_chances(counts: Sequence[float] | np.ndarray, temperature: float) -> np.ndarray:
    """P(c) = softmax((1 - f_c) / T) over the classes that occur; 0 for the others.

    Args:
        counts: labelled pixels of each class (C,).
        temperature: T, above 0.

    Returns:
        float64 (C,).

    Raises:
        ValueError: T is not above 0, or no class occurs.
    """
    counted = np.asarray(counts, np.float64)
    if not temperature > 0 or not counted.sum() > 0:
        raise ValueError(f"T is {temperature} and {counted.sum():g} pixels have a label, expected both above 0")
    rarity = np.where(counted > 0, (1 - counted / counted.sum()) / temperature, -np.inf)
    odds = np.exp(rarity - rarity.max())
    return odds / odds.sum()


class RareClasses:
    """Rare class sampling: `chances` of the photographs, and, called, a crop of one of them.

    Args:
        labels: all of them are read.
        classes: C.
        options: T and the least pixels.
        crops: how photographs are cropped.

    Attributes:
        probabilities: P(c), float64 (C,).
        shown: bool (N, C), which photographs count for which class.
        chances: of each photograph (N,), in the order of `labels.indices`.

    Raises:
        MaskwrightError: no pixel has a label.
    """

    def __init__(self, labels: Labels, classes: int, options: RareOptions, crops: CropRecipe) -> None:
        counts = np.zeros((len(labels.indices), classes))
        for n, i in enumerate(labels.indices):
            y = labels.read(i)
            shrunk = min(1.0, crops.long_side / max(y.size)) ** 2  # as crops see it at scale 1
            counts[n] = shrunk * torch.bincount(y.ids[y.valid].flatten(), minlength=classes).numpy()
        if not counts.sum() > 0:
            raise MaskwrightError("no valid pixel in any label", "at least one", "check the ignore value of the masks")
        self.least = options.pixels * crops.side**2
        self.probabilities = rare_class_chances(counts.sum(0), options.temperature)
        self.shown = counts > self.least
        # A class of which no photograph shows enough is looked for where most of it is.
        small = ~self.shown.any(0) & (counts.sum(0) > 0)
        self.shown[:, small] = counts[:, small] == counts[:, small].max(0)
        self._odds = self.shown * (self.probabilities / self.shown.sum(0).clip(min=1))  # (N, C), the joint chances
        self.chances = self._odds.sum(1)
        self._places = {i: n for n, i in enumerate(labels.indices)}

    def __call__(self, i: int, y: LabelMap, crops: CropRecipe, random: torch.Generator) -> View:
        """The first crop with more than half of the least pixels of the class that image `i` was drawn for; the last of
        `TRIES` + 1 where none has."""
        odds = torch.from_numpy(self._odds[self._places[i]])
        c = int(torch.multinomial(odds, 1, generator=random))
        view = crops.view(y.size, random)
        for _ in range(TRIES):
            seen = y.through(view)
            if int(((seen.ids == c) & seen.valid).sum()) > self.least / 2:
                break
            view = crops.view(y.size, random)
        return view


class Mining:
    """Crops around a random pixel of a random one of the mined classes that a photograph shows.

    Args:
        classes: ids that are mined.
        chance: of a crop to be so chosen, where its photograph shows one of them.
    """

    def __init__(self, classes: Sequence[int], chance: float) -> None:
        self.classes, self.chance = torch.tensor(list(classes), dtype=torch.int64), chance

    def __call__(self, i: int, y: LabelMap, crops: CropRecipe, random: torch.Generator) -> View:
        """A crop of image `i`."""
        if float(torch.rand((), generator=random)) >= self.chance:
            return crops.view(y.size, random)
        mined = torch.isin(y.ids, self.classes) & y.valid
        present = y.ids[mined].unique()
        if not len(present):
            return crops.view(y.size, random)
        c = present[_one_of(len(present), random)]
        places = (mined & (y.ids == c)).nonzero()
        row, column = places[_one_of(len(places), random)].tolist()
        return crops.view(y.size, random, centre=(row, column))


def _one_of(n: int, random: torch.Generator) -> int:
    return int(torch.randint(n, (), generator=random))


def mined_classes(counts: Tensor, share: float) -> list[int]:
    """The classes that are less than a share of all pixels, those of no pixel too.

    Args:
        counts: pixels predicted as each class (C,).
        share: in [0, 1].
    """
    return [c for c, n in enumerate(counts.tolist()) if n < share * float(counts.sum())]
