"""A segmenter whose answer is known in closed form: it tells colours apart."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from maskwright.data.masking.classes import ClassTable
from maskwright.models.preprocess import Preprocess
from maskwright.models.provenance import Provenance

COLORS = np.array([(90, 140, 90), (220, 60, 40), (40, 70, 220)], np.uint8)


class ColorSegmenter(nn.Module):
    """Logits are minus the squared distance of the mean colour of each stride x stride cell to three colours.

    Args:
        stride: input pixels a cell; sides must be multiples of it, as for a transformer.
        sharpness: factor on the logits.
        classes: further classes that never win.
        preprocess: sizes; colours are not normalised.
    """

    def __init__(self, stride: int = 4, sharpness: float = 40.0, classes: int = 3, **sizes: object) -> None:
        super().__init__()
        self.stride, self.sharpness = stride, sharpness
        centers = np.concatenate([COLORS / 255.0, np.full((classes - 3, 3), 9.0)])
        self.centers = nn.Parameter(torch.tensor(centers, dtype=torch.float32))
        self.classes = ClassTable.numbered(classes)
        sizes.setdefault("multiple_of", stride)
        self.preprocess = Preprocess(mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0), **sizes)  # type: ignore[arg-type]
        self.provenance = Provenance("color")
        self.method, self.extra = "color", {}
        self.seen: list[tuple[int, int]] = []

    @property
    def multiple_of(self) -> int:
        return self.stride

    def forward(self, x: Tensor) -> Tensor:
        assert not self.training
        assert x.shape[-2] % self.stride == 0 and x.shape[-1] % self.stride == 0
        self.seen.append((x.shape[-2], x.shape[-1]))
        cells = F.avg_pool2d(x, self.stride)
        return -self.sharpness * (cells[:, None] - self.centers[None, :, :, None, None]).square().sum(2)


def scene(h: int, w: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """A picture of a disc and a square on a ground, and its ids."""
    yy, xx = np.mgrid[:h, :w]
    ids = np.zeros((h, w), np.uint8)
    ids[(yy - h * 0.35) ** 2 + (xx - w * 0.3) ** 2 < (min(h, w) * 0.22) ** 2] = 1
    ids[np.maximum(abs(yy - h * 0.65), abs(xx - w * 0.7)) < min(h, w) * 0.2] = 2
    noise = np.random.default_rng(seed).normal(0, 4, (h, w, 3))
    return (COLORS[ids] + noise).clip(0, 255).astype(np.uint8), ids
