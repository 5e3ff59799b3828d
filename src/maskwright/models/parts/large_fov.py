"""LargeFOV on the patch grid of a transformer, the decoder of ToCo's segmentation branch.

Legend: B batch, D width, E output width, (h, w) patch grid.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Self

import torch.nn.functional as F
from torch import Tensor, nn

from maskwright.models.networks.blocks import initialise
from maskwright.models.parts.part import Part


class TokenLargeFOV(Part):
    """LargeFOV as transformers' patch grids have it: two dilated 3x3 convolutions with ReLU, no norm, no biases.

    Args:
        width: D of the tokens.
        hidden: E, 512 in the paper.
        dilation: of both, 5 in the paper: with patches of 16 pixels a field of view of 21 patches.
        bias: whether the convolutions have biases.
    """

    fields = ("width", "hidden", "dilation", "bias")

    def __init__(self, width: int, hidden: int = 512, dilation: int = 5, bias: bool = False) -> None:
        super().__init__()
        self.width, self.hidden, self.dilation, self.bias = int(width), int(hidden), int(dilation), bool(bias)
        place: dict[str, Any] = {"padding": self.dilation, "dilation": self.dilation, "bias": self.bias}
        self.conv6 = nn.Conv2d(self.width, self.hidden, 3, **place)
        self.conv7 = nn.Conv2d(self.hidden, self.hidden, 3, **place)
        initialise(self)

    @classmethod
    def from_spec(cls, spec: Mapping[str, Any]) -> Self:
        """As of `Part`; a bundle that does not say was trained with biases."""
        return super().from_spec({"bias": True, **spec})

    def forward(self, x: Tensor) -> Tensor:
        """(B, D, h, w) to (B, E, h, w)."""
        return F.relu(self.conv7(F.relu(self.conv6(x))))
