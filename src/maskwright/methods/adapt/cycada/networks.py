"""The networks that translate and judge: CycleGAN's residual generator and patch discriminator, ADDA's discriminator.

Legend: B batch, E channels of what ADDA's discriminator sees.
"""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

MULTIPLE = 4
"""A generator halves its input twice."""
LEAST = 8
"""Pixels of a side of its input: reflection needs two at a quarter of the size."""


class ResidualBlock(nn.Module):
    """x + two 3 x 3 convolutions of x, reflected at the borders.

    Args:
        width: channels.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(width, width, 3), nn.Conv2d(width, width, 3)

    def forward(self, x: Tensor) -> Tensor:
        """(B, width, h, w) to the same shape."""
        y = F.relu(F.instance_norm(self.conv1(F.pad(x, (1, 1, 1, 1), mode="reflect"))))
        return x + F.instance_norm(self.conv2(F.pad(y, (1, 1, 1, 1), mode="reflect")))


class Generator(nn.Module):
    """Johnson et al.'s network (ECCV 2016) as CycleGAN has it: 7 x 7, two halvings, residual blocks, two doublings,
    7 x 7, tanh. Instance norm without scale, shift and running statistics: no image depends on its batch.

    Args:
        blocks: residual blocks; 9 from 256 pixels on, 6 below.
        width: channels of the first convolution.
    """

    def __init__(self, blocks: int = 9, width: int = 64) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, width, 7)
        self.down = nn.ModuleList(nn.Conv2d(width * k, 2 * width * k, 3, 2, 1) for k in (1, 2))
        self.blocks = nn.Sequential(*[ResidualBlock(4 * width) for _ in range(blocks)])
        self.up = nn.ModuleList(
            nn.ConvTranspose2d(width * k, width * k // 2, 3, 2, 1, output_padding=1) for k in (4, 2)
        )
        self.last = nn.Conv2d(width, 3, 7)
        initialise(self)

    def forward(self, x: Tensor) -> Tensor:
        """Images (B, 3, h, w) in [-1, 1] to images of the same shape and range; h and w multiples of 4 from 8 on."""
        y = F.relu(F.instance_norm(self.first(F.pad(x, (3, 3, 3, 3), mode="reflect"))))
        for conv in self.down:
            y = F.relu(F.instance_norm(conv(y)))
        y = self.blocks(y)
        for conv in self.up:
            y = F.relu(F.instance_norm(conv(y)))
        return self.last(F.pad(y, (3, 3, 3, 3), mode="reflect")).tanh()


class PatchDiscriminator(nn.Module):
    """Five 4 x 4 convolutions, three of stride 2: each verdict is on a patch of 70 x 70 pixels.

    Args:
        width: channels of the first convolution.
    """

    def __init__(self, width: int = 64) -> None:
        super().__init__()
        widths = [3, width, 2 * width, 4 * width, 8 * width, 1]
        strides = (2, 2, 2, 1, 1)
        self.convs = nn.ModuleList(nn.Conv2d(a, b, 4, s, 1) for a, b, s in zip(widths, widths[1:], strides))
        initialise(self)

    def forward(self, x: Tensor) -> Tensor:
        """Images (B, 3, h, w) in [-1, 1], sides from 32 pixels on, to verdicts (B, 1, h', w'), 1 for real; 48 a side
        for 400 pixels."""
        x = F.leaky_relu(self.convs[0](x), 0.2)
        for conv in self.convs[1:4]:
            x = F.leaky_relu(F.instance_norm(conv(x)), 0.2)
        return self.convs[4](x)


class DomainDiscriminator(nn.Sequential):
    """ADDA's discriminator (Tzeng et al., CVPR 2017) at every place: three 1 x 1 convolutions with dropout of channels
    between them, to logits of target (0) and source (1).

    Args:
        channels: E.
    """

    def __init__(self, channels: int) -> None:
        width = 1024 if channels >= 4096 else 512
        super().__init__(
            nn.Conv2d(channels, width, 1), nn.Dropout2d(0.5), nn.ReLU(),
            nn.Conv2d(width, width // 2, 1), nn.Dropout2d(0.5), nn.ReLU(),
            nn.Conv2d(width // 2, 2, 1),
        )  # fmt: skip


def initialise(module: nn.Module) -> None:
    """Weights of all convolutions from N(0, 0.02^2), biases 0."""
    for part in module.modules():
        conv: Any = part
        if isinstance(part, nn.Conv2d | nn.ConvTranspose2d):
            nn.init.normal_(conv.weight, 0.0, 0.02)
            nn.init.zeros_(conv.bias)
