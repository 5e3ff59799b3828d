"""The discriminators of DANNet: does a prediction belong to the source (0) or to a target (1)?

Legend: B batch, C classes, W width, (H, W) size of a prediction.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn


class OutputDiscriminator(nn.Module):
    """Five 4 x 4 convolutions, the first two of stride 2, with leaky ReLU 0.2 between them and no norm.

    Args:
        classes: C.
        width: W of the first; the others have 2 W, 4 W, 4 W and 1.
    """

    def __init__(self, classes: int, width: int = 64) -> None:
        super().__init__()
        widths, strides = (classes, width, 2 * width, 4 * width, 4 * width), (2, 2, 1, 1)
        self.convs = nn.ModuleList(nn.Conv2d(a, b, 4, s, 1) for a, b, s in zip(widths, widths[1:], strides))
        self.verdict = nn.Conv2d(4 * width, 1, 4, 1, 1)

    def forward(self, maps: Tensor) -> Tensor:
        """Probabilities (B, C, H, W), sides at least 16, to verdicts (B, 1, H / 4 - 3, W / 4 - 3), rounded down."""
        x = maps
        for conv in self.convs:
            x = F.leaky_relu(conv(x), 0.2)
        return self.verdict(x).float()
