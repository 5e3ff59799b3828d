"""PASS's labelling rule and its pixel attention, the parts of it that a saved segmenter keeps.

Gao et al., Large-scale Unsupervised Semantic Segmentation, TPAMI 2022, https://arxiv.org/abs/2106.03149.

Legend: B images, F width of the deepest stage, K clusters, (h, w) feature-map size.
"""

from __future__ import annotations

from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from maskwright.models.parts.part import Part

UPSAMPLE = 4
"""Factor by which the deepest feature map is enlarged before it is attended, pooled or labelled."""


def upsampled(x: Tensor, factor: int = UPSAMPLE) -> Tensor:
    """(B, F, h, w) to (B, F, factor h, factor w), bilinear with half-pixel centres."""
    return x if factor == 1 else F.interpolate(x, scale_factor=factor, mode="bilinear", align_corners=False)


class PixelAttention(Part):
    """A = sigmoid(BN(conv(relu(BN(conv(n))))) + b): one gate for each pixel and channel.

    Args:
        width: F.
    """

    fields = ("width",)

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = int(width)
        self.gate = nn.Sequential(
            nn.Conv2d(self.width, self.width, 1),
            nn.BatchNorm2d(self.width),
            nn.ReLU(inplace=True),
            nn.Conv2d(self.width, self.width, 1),
            nn.BatchNorm2d(self.width),
        )
        self.offset = nn.Parameter(torch.zeros(self.width, 1, 1))

    def forward(self, n: Tensor) -> Tensor:
        """Features of unit length (B, F, h, w) to gates in (0, 1) of that shape."""
        return torch.sigmoid(self.gate(n) + self.offset)


class AttendedClusters(Part):
    """PASS's labelling rule: the nearest centroid by cosine, and "other" where the mean gate is low.

    Logit 0 is "other" (where there is one), logits 1 to K are cosines over the temperature. That of "other" exceeds the
    best cosine exactly where the mean gate is below the threshold.

    Args:
        centroids: (K, F), of any length.
        threshold: of the mean gate, in [0, 1].
        attention: the gate; None for none, then nothing is "other".
        other: whether "other" is an output.
        temperature: of the logits.
        upsample: factor before labelling.
    """

    fields = ("width", "clusters", "threshold", "attended", "other", "temperature", "upsample")
    steepness = 50.0
    """Logits that a mean gate 1.0 below the threshold is worth; only its sign decides, its size the confidence."""

    def __init__(
        self,
        centroids: Tensor,
        threshold: float = 0.0,
        attention: PixelAttention | None = None,
        other: bool = True,
        temperature: float = 0.1,
        upsample: int = UPSAMPLE,
    ) -> None:
        super().__init__()
        if centroids.ndim != 2:
            raise ValueError(f"centroids are {tuple(centroids.shape)}, expected (K, F)")
        if not temperature > 0 or not 1 <= upsample <= 32:
            raise ValueError(f"temperature {temperature} and upsample {upsample}, expected above 0 and 1 to 32")
        self.clusters, self.width = int(centroids.shape[0]), int(centroids.shape[1])
        if attention is not None and attention.width != self.width:
            raise ValueError(f"an attention of width {attention.width} for centroids of width {self.width}")
        self.threshold, self.temperature, self.upsample = float(threshold), float(temperature), int(upsample)
        self.attended, self.other = attention is not None, bool(other)
        self.attention = attention
        self.register_buffer("centroids", centroids.detach().float().contiguous().clone())

    @classmethod
    def build(cls, **arguments: Any) -> Self:
        """`width`: F, `clusters`: K, `attended`: whether there is a gate; the others as of the constructor."""
        width, clusters, attended = (arguments.pop(k) for k in ("width", "clusters", "attended"))
        gate = PixelAttention(width) if attended else None
        return cls(torch.zeros(clusters, width), attention=gate, **arguments)

    @property
    def classes(self) -> int:
        """How many logits there are."""
        return self.clusters + self.other

    def attend(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Enlarged features, unit length left alone, and their mean gate.

        Args:
            x: (B, F, h, w) of the deepest stage.

        Returns:
            (B, F, H, W) and (B, H, W) in (0, 1), ones without attention; H = upsample h.
        """
        y = upsampled(x, self.upsample)
        if self.attention is None:
            return y, y.new_ones(y.shape[0], *y.shape[-2:])
        return y, self.attention(F.normalize(y, dim=1)).mean(1)

    def pooled(self, x: Tensor) -> Tensor:
        """Unit embeddings of images (B, F): the mean over pixels of gate times features that keep their length."""
        y = upsampled(x, self.upsample)
        gate = 1.0 if self.attention is None else self.attention(F.normalize(y, dim=1))
        return F.normalize((gate * y).mean((-2, -1)), dim=1)

    def cosines(self, y: Tensor) -> Tensor:
        """(B, F, H, W) to cosines to the centroids (B, K, H, W)."""
        weight = F.normalize(self.centroids, dim=1)[..., None, None].to(y.dtype)  # type: ignore[arg-type]
        return F.conv2d(F.normalize(y, dim=1), weight)

    def forward(self, x: Tensor) -> Tensor:
        """(B, F, h, w) to logits (B, K + 1, upsample h, upsample w), or K without "other"."""
        y, a = self.attend(x)
        logits = self.cosines(y) / self.temperature
        if not self.other:
            return logits
        best = logits.amax(1, keepdim=True)
        return torch.cat([best + self.steepness * (self.threshold - a[:, None]), logits], 1)
