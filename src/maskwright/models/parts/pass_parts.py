"""The parts of PASS beside its backbone: heads, predictor, shallow mapping, pixel attention, and its labelling rule.

Gao et al., Large-scale Unsupervised Semantic Segmentation, TPAMI 2022, https://arxiv.org/abs/2106.03149. Only the
pixel attention and the labelling rule are parts of a saved segmenter; the rest serves training.

Legend: B images, F width of the deepest stage, C_s width of shallow stage s, d embedding width, K clusters,
(h, w) feature-map size.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from maskwright.models.backbones.dense import Backbone
from maskwright.models.parts.heads import Part

UPSAMPLE = 4
"""Factor by which the deepest feature map is enlarged before it is attended, pooled or labelled."""


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


PASS_PARTS: dict[str, type[Part]] = {part.__name__: part for part in (PixelAttention, AttendedClusters)}
"""Parts of a saved segmenter."""
