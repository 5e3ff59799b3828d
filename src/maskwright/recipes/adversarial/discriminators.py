"""Discriminators of maps: 4 x 4 convolutions of stride 2.

Legend: B batch, C channels of a map, (H, W) its size.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from maskwright.errors import MaskwrightError

WIDTHS = (64, 128, 256, 512)
"""Of the convolutions before the verdict's."""
LEAST = 32
"""Pixels of a map's side that five convolutions of stride 2 take."""


class PixelDiscriminator(nn.Module):
    """Five 4 x 4 convolutions of stride 2, the verdicts enlarged to the map's size.

    Args:
        classes: C.
    """

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.convs = convolutions(classes)
        self.verdict = nn.Conv2d(WIDTHS[-1], 1, 4, 2, 1)

    def forward(self, maps: Tensor) -> Tensor:
        """Maps (B, C, H, W), sides at least 32, to logits of being real (B, H, W)."""
        x = maps
        for conv in self.convs:
            x = F.leaky_relu(conv(x), 0.2)
        x = self.verdict(x).float()
        return F.interpolate(x, maps.shape[-2:], mode="bilinear", align_corners=False)[:, 0]


def convolutions(channels: int) -> nn.ModuleList:
    """The convolutions of `WIDTHS`."""
    return nn.ModuleList(nn.Conv2d(a, b, 4, 2, 1) for a, b in zip((channels, *WIDTHS), WIDTHS))


def check_side(crop: int) -> None:
    """Refuses crops that a discriminator cannot judge.

    Raises:
        MaskwrightError: a side of fewer than 32 pixels.
    """
    if crop < LEAST:
        raise MaskwrightError(f"crop={crop}", f"at least {LEAST} pixels, which the discriminator halves five times")
