"""The decoder of PiCIE (Cho et al., CVPR 2021, https://arxiv.org/abs/2103.17070): Panoptic FPN down to its laterals.

Each map of the encoder goes through a 1x1 convolution; from coarse to fine each sum is enlarged and added to the next.
There is no other convolution and no nonlinearity, so that a cell's embedding is a sum of linear maps of what the
encoder has at that place.

Legend: B images, D_i width of map i, E embedding width, (h, w) size of the finest map.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from maskwright.models.parts.part import Part


class LateralFPN(Part):
    """Laterals and sums.

    Args:
        widths: D_i of the maps that are read, the last of the encoder's list, fine to coarse.
        out: E.
    """

    fields = ("widths", "out")

    def __init__(self, widths: Sequence[int], out: int = 128) -> None:
        super().__init__()
        self.widths, self.out = [int(w) for w in widths], int(out)
        if not self.widths:
            raise ValueError("no maps to read")
        self.lateral = nn.ModuleList(nn.Conv2d(w, self.out, 1) for w in self.widths)

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        """Maps, fine to coarse, to (B, E, h, w) of the finest that is read."""
        maps = list(features)[-len(self.widths) :]
        y = self.lateral[-1](maps[-1])
        for x, lateral in zip(maps[-2::-1], list(self.lateral)[-2::-1]):
            fine = lateral(x)
            y = F.interpolate(y, fine.shape[-2:], mode="bilinear", align_corners=False).to(fine.dtype) + fine
        return y
