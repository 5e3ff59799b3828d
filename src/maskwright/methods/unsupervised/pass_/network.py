"""PASS's network in training: a backbone with image head, shallow branches, pixel head and predictor.

Gao et al., Large-scale Unsupervised Semantic Segmentation, TPAMI 2022, https://arxiv.org/abs/2106.03149. What a saved
segmenter keeps, the pixel attention and the labelling rule, is in `models/parts/attended_clusters.py`.

Legend: B images, F width of the deepest stage, C_s width of shallow stage s, d embedding width, (h, w) map size.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from maskwright.models.backbones.dense import Backbone


def image_head(width: int, hidden: int, out: int) -> nn.Sequential:
    """Pooled features (B, width) to embeddings (B, out): Linear BN ReLU Linear BN without scale and shift."""
    return nn.Sequential(
        nn.Linear(width, hidden),
        nn.BatchNorm1d(hidden),
        nn.ReLU(inplace=True),
        nn.Linear(hidden, out),
        nn.BatchNorm1d(out, affine=False),
    )


def pixel_head(width: int, hidden: int, out: int) -> nn.Sequential:
    """Feature maps (B, width, h, w) to pixel embeddings (B, out, h, w): three 1x1 convolutions with BN."""
    return nn.Sequential(
        nn.Conv2d(width, hidden, 1, bias=False),
        nn.BatchNorm2d(hidden),
        nn.ReLU(inplace=True),
        nn.Conv2d(hidden, hidden, 1, bias=False),
        nn.BatchNorm2d(hidden),
        nn.ReLU(inplace=True),
        nn.Conv2d(hidden, out, 1, bias=False),
        nn.BatchNorm2d(out, affine=False),
    )


def pixel_predictor(width: int) -> nn.Sequential:
    """Pixel embeddings (B, width, h, w) to predictions of the other view's: 1x1 convolution BN ReLU 1x1 convolution."""
    return nn.Sequential(
        nn.Conv2d(width, width, 1, bias=False),
        nn.BatchNorm2d(width),
        nn.ReLU(inplace=True),
        nn.Conv2d(width, width, 1),
    )


class ShallowBranch(nn.Module):
    """Embeds a shallow stage: a bottleneck over every pixel before the average, then the image head's MLP.

    Averaging a shallow map first would leave it colours and edges; the mapping lets each place be recognised before.

    Args:
        width: C_s.
        hidden: width inside.
        out: d.
    """

    def __init__(self, width: int, hidden: int, out: int) -> None:
        super().__init__()
        self.mapping = pixel_head(width, hidden, width)
        self.mlp = image_head(width, hidden, out)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C_s, h, w) to (B, d)."""
        return self.mlp(self.mapping(x).mean((-2, -1)))


class Embedded(NamedTuple):
    """What the network makes of crops.

    Attributes:
        z: image embeddings (B, d) of each of V crops.
        shallow: of the two global crops (2 B, d), for each shallow stage.
        deep: the deepest map of the global crops (2 B, F, h, w).
    """

    z: list[Tensor]
    shallow: list[Tensor]
    deep: Tensor


class PassNetwork(nn.Module):
    """A backbone with PASS's heads: image head, a branch for each shallow stage, pixel head and predictor.

    Args:
        backbone: trained with them; its stages are counted from the deepest, which is number 4.
        d2s: shallow stages with a branch, out of 3, 2, 1.
        hidden: width inside the heads.
        dim: d.
        pixels: whether there are a pixel head and its predictor.
        precision: of the backbone's forward pass, "bf16" or None.

    Raises:
        ValueError: the backbone has no such stage.
    """

    def __init__(
        self, backbone: Backbone, d2s: Sequence[int], hidden: int, dim: int, pixels: bool, precision: str | None = None
    ) -> None:
        super().__init__()
        self.backbone, self.precision = backbone, precision
        stages = backbone.stage_layers
        if any(not 5 - len(stages) <= s <= 3 for s in d2s):
            raise ValueError(f"stages {tuple(d2s)} of {backbone.name}, expected {5 - len(stages)} to 3")
        self.layers = [stages[s - 5] for s in d2s] + [stages[-1]]
        self.width = backbone.widths[stages[-1]]
        self.image_head = image_head(self.width, hidden, dim)
        self.shallow = nn.ModuleList(ShallowBranch(backbone.widths[k], hidden, dim) for k in self.layers[:-1])
        self.pixel_head = pixel_head(self.width, hidden, dim) if pixels else nn.Identity()
        self.predictor = pixel_predictor(dim) if pixels else nn.Identity()

    def maps(self, x: Tensor) -> list[Tensor]:
        """Feature maps of the shallow stages in question and the deepest."""
        return self.backbone.dense_many(x, self.layers, precision=self.precision)

    def deepest(self, x: Tensor) -> Tensor:
        """The deepest stage's map (B, F, h, w)."""
        return self.backbone.dense(x, self.layers[-1], precision=self.precision)

    def embed(self, x: Tensor) -> Tensor:
        """Images to embeddings (B, d)."""
        return self.image_head(self.deepest(x).mean((-2, -1)))

    def forward(self, global_: Tensor, local: Tensor | None = None) -> Embedded:
        """All crops; those of one size go through the backbone together, all pooled features through the head.

        Args:
            global_: the two global crops of B photographs, crop-major (2 B, 3, S, S).
            local: the local ones likewise, or None.
        """
        *shallow, deep = self.maps(global_)
        pooled = [deep.mean((-2, -1))]
        if local is not None:
            pooled.append(self.deepest(local).mean((-2, -1)))
        z = self.image_head(torch.cat(pooled)).split(len(global_) // 2)
        return Embedded(list(z), [branch(m) for branch, m in zip(self.shallow, shallow)], deep)
