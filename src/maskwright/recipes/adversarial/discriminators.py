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
        width: of the first; the others have 2, 4 and 8 times as many channels.
    """

    def __init__(self, classes: int, width: int = WIDTHS[0]) -> None:
        super().__init__()
        self.convs = convolutions(classes, width)
        self.verdict = nn.Conv2d(8 * width, 1, 4, 2, 1)

    def forward(self, maps: Tensor) -> Tensor:
        """Maps (B, C, H, W), sides at least 32, to logits of being real (B, H, W)."""
        x = maps
        for conv in self.convs:
            x = F.leaky_relu(conv(x), 0.2)
        x = self.verdict(x).float()
        return F.interpolate(x, maps.shape[-2:], mode="bilinear", align_corners=False)[:, 0]


def convolutions(channels: int, width: int = WIDTHS[0]) -> nn.ModuleList:
    """The convolutions of `WIDTHS`, or in their proportions from another width on."""
    widths = [width * w // WIDTHS[0] for w in WIDTHS]
    return nn.ModuleList(nn.Conv2d(a, b, 4, 2, 1) for a, b in zip((channels, *widths), widths))


def check_side(crop: int) -> None:
    """Refuses crops that a discriminator cannot judge.

    Raises:
        MaskwrightError: a side of fewer than 32 pixels.
    """
    if crop < LEAST:
        raise MaskwrightError(f"crop={crop}", f"at least {LEAST} pixels, which the discriminator halves five times")
