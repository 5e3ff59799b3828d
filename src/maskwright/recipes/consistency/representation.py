"""Heads that map a network's embedding into a space of contrast, beside the classifier and dropped at test time.

Legend: B crops, S crop side, E width of the embedding, D width of the representation, (h, w) its size.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from maskwright.data.training.labels import LabelMap
from maskwright.ops.losses.region_contrast import nearest
from maskwright.recipes.training.forward import Forward

STRIDE = 4
"""Input pixels a representation covers: that of the papers' decoder."""


class RepresentationHead(nn.Module):
    """3x3 convolution E -> D, batch norm, ReLU, 1x1 convolution D -> D (ReCo and U2PL).

    Args:
        width: E.
        dim: D.
    """

    def __init__(self, width: int, dim: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(width, dim, 3, padding=1, bias=False),
            nn.BatchNorm2d(dim),
            nn.ReLU(inplace=True),
            nn.Conv2d(dim, dim, 1),
        )

    def forward(self, embedding: Tensor) -> Tensor:
        """(B, E, h, w) to (B, D, h, w)."""
        return self.layers(embedding)


def at_size(x: Tensor, size: tuple[int, int]) -> Tensor:
    """Maps (B, E, H, W) at size (h, w): means over cells where that is coarser, interpolated where it is finer."""
    if x.shape[-2:] == torch.Size(size):
        return x
    if x.shape[-2] >= size[0]:
        return F.adaptive_avg_pool2d(x, size)
    return F.interpolate(x, size, mode="bilinear", align_corners=False)


def labels_at(labels: LabelMap, size: tuple[int, int]) -> LabelMap:
    """Label maps (B, S, S) at size (h, w), by nearest, as `nearest` has them."""
    return LabelMap(*(nearest(part, size) for part in (labels.ids, labels.confidence, labels.valid)))


class Represent:
    """From embeddings to representations in float32, at stride 4 or the decoder's coarser one.

    Args:
        student: whose precision it has.
        crop: S.
    """

    def __init__(self, student: Forward, crop: int) -> None:
        self.student, self.side = student, -(-crop // STRIDE)

    def __call__(self, head: nn.Module, embedding: Tensor) -> Tensor:
        """(B, E, H, W) to (B, D, h, w)."""
        size = (min(self.side, embedding.shape[-2]), min(self.side, embedding.shape[-1]))
        with self.student.autocast():
            r = head(at_size(embedding, size))
        return r.float()
