"""InfoSeg's head: local features against class vectors that the photograph itself gives (GCPR 2021).

Legend: B images, K clusters, d width of local features, (h, w) map size.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from maskwright.models.parts.behind_decoder import BehindDecoder
from maskwright.models.parts.part import Part


class ClassVectors(BehindDecoder):
    """Scores V_k(p) = <L_p, H_k> of local features L with K vectors H of the same photograph.

    L is a 1x1 convolution of a decoder's map, H a linear layer of the mean of the deepest map: a photograph that is
    seen in windows has vectors for each.

    Args:
        decoder: the encoder's maps to (B, width, h, w).
        width: of its map.
        deep: width of the deepest map.
        classes: K.
        dim: d.
        unit_length: whether L and H have unit length.
    """

    numbers = ("width", "deep", "classes", "dim")
    switch = "unit_length"

    def __init__(self, decoder: Part, width: int, deep: int, classes: int, dim: int, unit_length: bool = False) -> None:
        super().__init__()
        self.width, self.deep, self.classes, self.dim = int(width), int(deep), int(classes), int(dim)
        self.unit_length = bool(unit_length)
        self.decoder = decoder
        self.local = nn.Conv2d(self.width, self.dim, 1)
        self.vectors = nn.Linear(self.deep, self.classes * self.dim)

    def both(self, features: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """The encoder's maps to L (B, d, h, w) and H (B, K, d)."""
        local = self.local(self.decoder(list(features)))
        vectors = self.vectors(features[-1].mean((2, 3))).unflatten(1, (self.classes, self.dim))
        if self.unit_length:
            local, vectors = F.normalize(local, dim=1), F.normalize(vectors, dim=2)
        return local, vectors

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        """The encoder's maps to V (B, K, h, w)."""
        local, vectors = self.both(features)
        return torch.einsum("bdhw,bkd->bkhw", local, vectors)


class Scores(Part):
    """Scores that are logits already, over a temperature.

    Args:
        classes: K.
        temperature: what they are divided by.
    """

    fields = ("classes", "temperature")

    def __init__(self, classes: int, temperature: float = 1.0) -> None:
        super().__init__()
        if not temperature > 0:
            raise ValueError(f"temperature is {temperature}, expected above 0")
        self.classes, self.temperature = int(classes), float(temperature)

    def forward(self, x: Tensor) -> Tensor:
        """(B, K, h, w) to logits of that shape."""
        return x / self.temperature
