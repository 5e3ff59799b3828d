"""Where in a photograph each class tends to be, as the masks of another domain show it (CBST-SP).

Zou et al., ECCV 2018, https://arxiv.org/abs/1810.07911, count over whole masks of one size and smooth the counts. Here
places are relative to each mask's height and width, so that masks of any size add up.

Legend: C classes, G cells along each axis.
"""

from __future__ import annotations

import torch
from scipy.ndimage import gaussian_filter
from torch import Tensor

from maskwright.data.training.labels import LabelMap

CELLS = 64
"""G."""
SIGMA = 2.0
"""Deviation of the smoothing, cells: 64 pixels across a width of 2,048."""


class PlaceCounts:
    """How many labelled pixels of each class lie in each cell of a photograph.

    Args:
        classes: C.

    Attributes:
        counts: float64 (C, G, G).
    """

    def __init__(self, classes: int) -> None:
        self.counts = torch.zeros(classes, CELLS, CELLS, dtype=torch.float64)

    def add(self, y: LabelMap) -> None:
        """Counts the labels (H, W) of one photograph, which weighs as much as any other."""
        height, width = y.size
        rows, columns = (torch.arange(n) * CELLS // n for n in (height, width))
        cells = (rows[:, None] * CELLS + columns)[y.valid]
        found = torch.bincount(y.ids[y.valid] * CELLS**2 + cells, minlength=self.counts.numel())
        self.counts += found.view_as(self.counts) / (height * width)

    def prior(self) -> Tensor:
        """q (C, G, G): the share of class c among what cells and their surroundings show; adds up to 1 over C, and is 0
        for a class that no mask shows.

        Raises:
            ValueError: nothing was counted.
        """
        if not float(self.counts.sum()) > 0:
            raise ValueError("no labelled pixel was counted")
        smooth = torch.stack([torch.from_numpy(gaussian_filter(c.numpy(), SIGMA, mode="nearest")) for c in self.counts])
        # Cells far from any label, and so without a neighbour within the filter, say what all cells together say.
        everywhere = self.counts.sum((1, 2), keepdim=True) / self.counts.sum()
        total = smooth.sum(0)
        return torch.where(total > 0, smooth / total.clamp(min=torch.finfo(total.dtype).tiny), everywhere).float()
