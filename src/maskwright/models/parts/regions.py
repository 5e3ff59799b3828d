"""ReDO's mask network: from a photograph to the regions that can be redrawn (Chen et al., NeurIPS 2019,
https://arxiv.org/abs/1905.13539).

Convolutions with instance norm at a quarter of the size, residual blocks, pyramid pooling of one channel a grid, and
two doublings. There is no statistic that one photograph shares with another, so training and prediction agree.

Legend: B images, E width of the embedding, K regions, (H, W) input size, (h, w) a quarter of it.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from maskwright.models.parts.part import Part

GRIDS = (1, 2, 3, 6)
"""Cells a side of the pyramid's poolings."""
MAX: Any = torch.sym_max
"""Of sizes that a tracer leaves open."""
LEAST = 8
"""Pixels of a side that reflection and normalisation of the quarter map need."""


def normalised(width: int) -> nn.InstanceNorm2d:
    """Instance norm with scale and shift."""
    return nn.InstanceNorm2d(width, affine=True)


class Residual(nn.Module):
    """relu(norm(x + conv relu norm conv x)), 3 x 3 convolutions.

    Args:
        width: channels.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1, self.norm1 = nn.Conv2d(width, width, 3, padding=1, bias=False), normalised(width)
        self.conv2, self.norm2 = nn.Conv2d(width, width, 3, padding=1), normalised(width)

    def forward(self, x: Tensor) -> Tensor:
        """(B, width, h, w) to the same shape."""
        y = self.conv2(F.relu(self.norm1(self.conv1(x))))
        return F.relu(self.norm2(x + y))


class RegionEncoder(Part):
    """Photographs in [-1, 1] to an embedding of their own size.

    Args:
        width: of the quarter map, a multiple of 4.
        blocks: residual blocks.

    Attributes:
        out: E, half the width.
        multiple_of: both input sides must be multiples of this.
    """

    fields = ("width", "blocks")
    multiple_of = 4

    def __init__(self, width: int = 64, blocks: int = 3) -> None:
        super().__init__()
        if width < 4 or width % 4:
            raise ValueError(f"width is {width}, expected a multiple of 4")
        if not 0 <= blocks <= 64:
            raise ValueError(f"{blocks} residual blocks, expected 0 to 64")
        inner = int(width) + len(GRIDS)
        self.width, self.blocks, self.out = int(width), int(blocks), inner // 4
        widths = (width // 4, width // 2, width)
        self.first = nn.Conv2d(3, widths[0], 7, bias=False)
        self.down = nn.ModuleList(nn.Conv2d(a, b, 3, 2, 1, bias=False) for a, b in pairwise(widths))
        self.down_norms = nn.ModuleList(normalised(w) for w in widths)
        self.residual = nn.Sequential(*[Residual(width) for _ in range(blocks)])
        self.pyramid = nn.ModuleList(nn.Conv2d(width, 1, 1) for _ in GRIDS)
        back = (inner, inner // 2, self.out)
        self.up = nn.ModuleList(nn.Conv2d(a, b, 3, padding=1, bias=False) for a, b in pairwise(back))
        self.up_norms = nn.ModuleList(normalised(w) for w in back[1:])

    def forward(self, x: Tensor) -> Tensor:
        """(B, 3, H, W) in [-1, 1] to (B, E, H, W).

        Raises:
            ValueError: a side that is no multiple of 4.
        """
        height, width = x.shape[-2:]
        if height % 4 or width % 4:
            raise ValueError(f"input is {height} x {width}, expected multiples of 4")
        # a strip narrower than the network takes is repeated at its border, and cut again
        right, below = (MAX(0, LEAST - side) for side in (width, height))
        x = F.pad(x, (0, right, 0, below), mode="replicate")
        y = self.first(F.pad(x, (3, 3, 3, 3), mode="reflect"))
        y = F.relu(self.down_norms[0](y))
        for conv, norm in zip(self.down, list(self.down_norms)[1:]):
            y = F.relu(norm(conv(y)))
        y = self.pooled(self.residual(y))
        for conv, norm in zip(self.up, self.up_norms):
            y = F.relu(norm(conv(F.interpolate(y, scale_factor=2, mode="nearest"))))
        return y[..., :height, :width]

    def pooled(self, x: Tensor) -> Tensor:
        """(B, D, h, w) with a channel for each grid behind."""
        h, w = x.shape[-2:]
        maps = [x]
        for grid, conv in zip(GRIDS, self.pyramid):
            y = conv(cells(h, grid, x) @ x @ cells(w, grid, x).T)
            maps.append(F.interpolate(y, (h, w), mode="bilinear", align_corners=False))
        return torch.cat(maps, 1)


def cells(side: int, grid: int, like: Tensor) -> Tensor:
    """(grid, side): the means of `grid` cells of whole rows each; a grid that does not divide the side leaves out its
    last rows, as the authors' does. Of a side below the grid the last cells are all its last row.

    It is a product and no pooling so that the network can be exported for any size.
    """
    length = MAX(side // grid, 1)
    which = torch.arange(side, device=like.device) // length
    wanted = torch.arange(grid, device=like.device).clamp(max=side // length - 1)
    means: Tensor = (which == wanted[:, None]).to(like) / length
    return means


class RegionClassifier(Part):
    """A 7 x 7 convolution to the logits of the regions, over a temperature; of two regions one logit and 0.

    Args:
        width: E.
        classes: K.
        temperature: of the logits.
        swap: regions in the reverse order.
    """

    fields = ("width", "classes", "temperature", "swap")

    def __init__(self, width: int, classes: int, temperature: float = 1.0, swap: bool = False) -> None:
        super().__init__()
        if classes < 2:
            raise ValueError(f"{classes} regions, expected at least 2")
        if not temperature > 0:
            raise ValueError(f"temperature is {temperature}, expected above 0")
        self.width, self.classes = int(width), int(classes)
        self.temperature, self.swap = float(temperature), bool(swap)
        self.conv = nn.Conv2d(self.width, 1 if self.classes == 2 else self.classes, 7)

    def forward(self, x: Tensor) -> Tensor:
        """(B, E, H, W), sides from 4 on, to logits (B, K, H, W), whose softmax are the regions' masks."""
        y = self.conv(F.pad(x, (3, 3, 3, 3), mode="reflect")) / self.temperature
        y = torch.cat((y, torch.zeros_like(y)), 1) if self.classes == 2 else y
        return y.flip(1) if self.swap else y
