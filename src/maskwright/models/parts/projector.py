"""The head of self-supervised learning that runs a place at a time: 1x1 convolutions with batch norm and GELU between.

SlotCon, Wen et al., NeurIPS 2022, https://arxiv.org/abs/2205.15288; BYOL's and DINO's are alike.
"""

from __future__ import annotations

from torch import Tensor, nn

from maskwright.models.parts.part import Part


class Projector(Part):
    """Conv1x1 BN GELU Conv1x1 BN GELU Conv1x1, all with biases; the last has no norm.

    Args:
        width: D.
        hidden: width between.
        out: E.
    """

    fields = ("width", "hidden", "out")

    def __init__(self, width: int, hidden: int, out: int) -> None:
        super().__init__()
        self.width, self.hidden, self.out = int(width), int(hidden), int(out)
        self.layers = nn.Sequential(
            nn.Conv2d(self.width, self.hidden, 1), nn.BatchNorm2d(self.hidden), nn.GELU(),
            nn.Conv2d(self.hidden, self.hidden, 1), nn.BatchNorm2d(self.hidden), nn.GELU(),
            nn.Conv2d(self.hidden, self.out, 1),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        """(B, D, h, w) to (B, E, h, w); rows (N, D) to (N, E), each a place of its own."""
        if x.ndim == 2:
            return self.layers(x[..., None, None]).flatten(1)
        return self.layers(x)
