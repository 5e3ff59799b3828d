"""MaskContrast's two heads, and its read-out: the salient pixels of a photograph get the cluster of their mean
embedding (ICCV 2021).

Legend: B images, D width of pixel embeddings, E components kept, K clusters with the background, (h, w) map.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from maskwright.models.parts.behind_decoder import BehindDecoder
from maskwright.models.parts.part import Part

THRESHOLD = 0.5
"""Saliency above which a pixel is object. The authors' network has no sigmoid, so this is of the logit."""


def object_vectors(e: Tensor, s: Tensor, threshold: float = THRESHOLD) -> Tensor:
    """norm(sum_u 1[s_u > t] s_u e_u) of raw embeddings and saliency logits; zeros where no pixel is salient.

    Args:
        e: (B, D, h, w).
        s: (B, h, w).
        threshold: t.

    Returns:
        (B, D).
    """
    return F.normalize(torch.einsum("bdhw,bhw->bd", e, s * (s > threshold)), dim=1)


class SalientDecoder(BehindDecoder):
    """A decoder's map to pixel embeddings and, as the last channel, how salient a pixel is.

    Args:
        decoder: the encoder's maps to (B, width, h, w).
        width: of its map.
        dim: width of the embeddings.
        deep: width of the encoder's deepest map, which is given in place of the embeddings (enlarged to h, w); 0: the
            embeddings are.
        saliency: whether there is a saliency head.
    """

    numbers = ("width", "dim", "deep")
    may_be_0 = ("deep",)
    switch = "saliency"

    def __init__(self, decoder: Part, width: int, dim: int, deep: int = 0, saliency: bool = True) -> None:
        super().__init__()
        self.width, self.dim, self.deep, self.saliency = int(width), int(dim), int(deep), bool(saliency)
        self.decoder = decoder
        self.head = nn.Conv2d(self.width, self.dim, 1)
        self.salient = nn.Conv2d(self.width, 1, 1, bias=False) if self.saliency else None

    @property
    def out(self) -> int:
        """Channels given."""
        return (self.deep or self.dim) + self.saliency

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        """The encoder's maps to (B, D + 1, h, w): embeddings, then the saliency logit, where there is one."""
        maps = self.decoder(list(features))
        e = self.head(maps)
        if self.deep:
            e = F.interpolate(features[-1], maps.shape[-2:], mode="bilinear", align_corners=False)
        return e if self.salient is None else torch.cat((e, self.salient(maps).to(e.dtype)), 1)


class ObjectClusters(Part):
    """All salient pixels of an image in the cluster whose centre their whitened mean embedding is nearest to; all
    others are cluster 0, the background.

    The background's logit is 0, that of the nearest cluster s - t, those of the others lower by the difference of their
    squared distances, over the temperature.

    Args:
        mean: (D,) of object vectors.
        components: (E, D).
        scale: (E,), factor of each component.
        centers: (K - 1, E).
        threshold: t.
        temperature: what squared distances are divided by.
    """

    fields = ("width", "dim", "clusters", "threshold", "temperature")
    mean: Tensor
    components: Tensor
    scale: Tensor
    centers: Tensor

    def __init__(
        self, mean: Tensor, components: Tensor, scale: Tensor, centers: Tensor, threshold: float = THRESHOLD,
        temperature: float = 1.0,
    ) -> None:  # fmt: skip
        super().__init__()
        self.dim, self.width = (int(n) for n in components.shape)
        self.clusters = len(centers)
        if mean.shape != (self.width,) or scale.shape != (self.dim,) or centers.shape != (self.clusters, self.dim):
            raise ValueError(
                f"mean {tuple(mean.shape)}, components {tuple(components.shape)}, scale {tuple(scale.shape)} and "
                f"centers {tuple(centers.shape)}, expected (D,), (E, D), (E,) and (K - 1, E)"
            )
        if not temperature > 0:
            raise ValueError(f"temperature is {temperature}, expected above 0")
        self.classes = self.clusters + 1
        self.threshold, self.temperature = float(threshold), float(temperature)
        for name, value in (("mean", mean), ("components", components), ("scale", scale), ("centers", centers)):
            self.register_buffer(name, value.detach().float().contiguous().clone())

    @classmethod
    def build(cls, **arguments: Any) -> Self:
        """`width`: D, `dim`: E, `clusters`: K - 1, `threshold`, `temperature`."""
        d, e, k = (arguments[n] for n in ("width", "dim", "clusters"))
        rest = {n: arguments[n] for n in ("threshold", "temperature")}
        return cls(torch.zeros(d), torch.zeros(e, d), torch.ones(e), torch.zeros(k, e), **rest)

    def scores(self, vectors: Tensor) -> Tensor:
        """Object vectors (B, D) to (B, K - 1): 0 for the nearest centre, of the others how much farther, below 0."""
        z = ((vectors - self.mean) @ self.components.T) * self.scale
        distances = self.centers.square().sum(1) - 2 * z @ self.centers.T
        return (distances.amin(1, keepdim=True) - distances) / self.temperature

    def forward(self, x: Tensor) -> Tensor:
        """(B, D + 1, h, w), the last channel the saliency logit, to logits (B, K, h, w)."""
        x = x.float()
        e, s = x[:, :-1], x[:, -1]
        scores = self.scores(object_vectors(e, s, self.threshold))
        objects = (s - self.threshold)[:, None] + scores[..., None, None]
        return torch.cat((torch.zeros_like(objects[:, :1]), objects), 1)
