"""Batches of several random crops of each photograph, with the geometry that relates them.

Legend: B photographs in this process's share, V crops, G points a side of the shared grid.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from maskwright.data.folders.folder import Dataset
from maskwright.data.training.augment import Photometric
from maskwright.data.training.crops import multi_crop
from maskwright.data.training.views import Size, View, shared_grid
from maskwright.engine.loop import Indices
from maskwright.models.preprocess import Preprocess

CropGroup = tuple[int, Size, tuple[float, float]]
"""Number of crops, their (h, w), and the range of their share of the photograph's area."""


class Crops(NamedTuple):
    """Crops of B photographs, those of one size together, in the order crop-major: all first crops, all second, ...

    Attributes:
        global_: (2 B, 3, S, S); uint8 as drawn, the network's input once they are on the device.
        local: ((V - 2) B, 3, s, s) likewise, or None.
        grids: places that both global crops show, in each one's coordinates, (B, G, G, 2) twice.
        views: the recorded geometry of the V crops of each photograph.
    """

    global_: Tensor
    local: Tensor | None
    grids: tuple[Tensor, Tensor]
    views: tuple[tuple[View, ...], ...] = ()


class MultiCrops:
    """Draws crops; every photograph has a generator of its own, so that threads do not change what is drawn.

    Args:
        data: the photographs.
        crops: groups of crops; the first has two, the global ones, and there are one or two groups.
        photometric: applied to each crop on its own.
        preprocess: normalisation.
        grid: G.
        threads: photographs prepared at a time; 0 for as many as torch computes with, at most 16.
        overlaps: share of the photograph's area that the global crops share at least, and that any other crop shares
            with each of them.
        tries: draws of a crop for that; the last stays as it is.
        flip: chance that a crop is mirrored.
    """

    def __init__(
        self,
        data: Dataset,
        crops: Sequence[CropGroup],
        photometric: Photometric,
        preprocess: Preprocess,
        grid: int = 7,
        threads: int = 0,
        overlaps: tuple[float, float] = (0.0, 0.0),
        tries: int = 10,
        flip: float = 0.5,
    ) -> None:
        self.crops = [g for g in crops if g[0] > 0]
        if not 1 <= len(self.crops) <= 2 or self.crops[0][0] != 2:
            raise ValueError(f"groups of {[g[0] for g in self.crops]} crops, expected two global ones, then local ones")
        self.data, self.photometric, self.preprocess, self.grid = data, photometric, preprocess, grid
        self.overlaps, self.tries, self.flip = overlaps, tries, flip
        count = threads or min(16, torch.get_num_threads())
        # The threads' own operations are small: more threads inside them would only fight for the cores.
        self._pool = ThreadPoolExecutor(count, initializer=torch.set_num_threads, initargs=(1,)) if count > 1 else None

    @property
    def count(self) -> int:
        """V, crops of each photograph."""
        return sum(g[0] for g in self.crops)

    def one(self, i: int, seed: int) -> tuple[list[Tensor], list[View]]:
        """The crops of a photograph, uint8 (3, h, w) each, and their views."""
        random = torch.Generator().manual_seed(seed)
        image = torch.from_numpy(np.require(self.data.image(i), requirements="W")).permute(2, 0, 1)
        size = (int(image.shape[1]), int(image.shape[2]))
        views = multi_crop(
            size, self.crops, min_overlap=self.overlaps[0], min_overlap_others=self.overlaps[1], tries=self.tries,
            flip=self.flip, generator=random,
        )  # fmt: skip
        return [self.photometric(torch.as_tensor(v.render(image)), random) for v in views], views

    def draw(self, indices: Indices, random: torch.Generator) -> Crops:
        """The crops of several photographs, on the CPU; all randomness comes from `random`."""
        seeds = torch.randint(2**62, (len(indices),), generator=random).tolist()
        images = [int(i) for i in indices]
        drawn = list(self._pool.map(self.one, images, seeds) if self._pool else map(self.one, images, seeds))
        pixels, views = [d[0] for d in drawn], [d[1] for d in drawn]
        groups, first = [], 0
        for count, _, _ in self.crops:
            groups.append(torch.stack([p[v] for v in range(first, first + count) for p in pixels]))
            first += count
        pairs = [shared_grid(v[0], v[1], self.grid) for v in views]
        one, two = (torch.stack(side) for side in zip(*pairs))
        local = groups[1] if len(groups) > 1 else None
        return Crops(groups[0], local, (one, two), tuple(map(tuple, views)))

    def prepared(self, crops: Crops, device: torch.device) -> Crops:
        """Drawn crops as the network's input, on its device."""
        one, two = (grid.to(device) for grid in crops.grids)
        local = None if crops.local is None else self.preprocess.network_input(crops.local, device)
        return Crops(self.preprocess.network_input(crops.global_, device), local, (one, two), crops.views)
