"""Plain convolutional networks of the papers that learn to cluster from nothing.

`iic10a`: SegmentationNet10a of IIC, Invariant Information Clustering, Ji et al., ICCV 2019,
https://arxiv.org/abs/1807.06653: six convolutions, one pooling, the last two dilated.
`infoseg_cnn`: InfoSeg, Harb and Knobelreiter, GCPR 2021, https://arxiv.org/abs/2110.03477: blocks A to D; local
features are read from C, the class vectors of the photograph from D. The paper's widths could not be found: these are
ours.

Deviates: dilated convolutions are padded by their dilation and the head by nothing, so that a map covers its crop; the
authors' padding of 1 shrinks maps to 15/16 and adds a ring of cells whose clusters are equally likely. Photographs are
normalised.

Legend: B images, (H, W) input size.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from maskwright.models.networks.blocks import BatchNorm2d
from maskwright.models.parts.part import Part

BLOCKS: dict[str, tuple[tuple[int, int, int, int], ...]] = {
    "iic10a": ((64, 1, 1, 0), (128, 1, 1, 0), (256, 2, 1, 1), (512, 2, 2, 0)),
    "infoseg_cnn": ((64, 2, 1, 0), (128, 2, 1, 1), (256, 2, 1, 1), (512, 2, 1, 1)),
}
"""Of each network its blocks: width, 3x3 convolutions, their dilation, and whether a pooling by two comes before."""


class PlainEncoder(Part):
    """Blocks of 3x3 convolutions with batch norm and ReLU; no convolution has a bias.

    Args:
        blocks: of each block its width, convolutions, dilation, and 1 where a pooling by two comes before.
        channels: of the input.
    """

    fields = ("blocks", "channels")

    def __init__(self, blocks: Sequence[Sequence[int]], channels: int = 3) -> None:
        super().__init__()
        self.blocks, self.channels = [list(map(int, b)) for b in blocks], int(channels)
        self.widths = [b[0] for b in self.blocks]
        self.multiple_of = 2 ** sum(b[3] for b in self.blocks)
        stages, width = [], self.channels
        for out, count, dilation, _ in self.blocks:
            layers: list[nn.Module] = []
            for _ in range(count):
                conv = nn.Conv2d(width, out, 3, padding=dilation, dilation=dilation, bias=False)
                nn.init.kaiming_normal_(conv.weight, nonlinearity="relu")
                layers += [conv, BatchNorm2d(out), nn.ReLU(inplace=True)]
                width = out
            stages.append(nn.Sequential(*layers))
        self.stages = nn.ModuleList(stages)

    def forward(self, x: Tensor) -> list[Tensor]:
        """(B, channels, H, W) to the map of each block, fine to coarse.

        Raises:
            ValueError: a side is not a multiple of `multiple_of`.
        """
        if x.shape[-2] % self.multiple_of or x.shape[-1] % self.multiple_of:
            raise ValueError(f"input is {x.shape[-2]} x {x.shape[-1]}, expected multiples of {self.multiple_of}")
        maps = []
        for block, stage in zip(self.blocks, self.stages):
            x = stage(F.max_pool2d(x, 2) if block[3] else x)
            maps.append(x)
        return maps
