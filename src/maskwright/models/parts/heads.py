"""Parts after the backbone that several methods share: projections, classifiers, a small decoder, parts in sequence.

Legend: B batch, D input width, E output width, K clusters, C classes, (h, w) feature-map size.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from maskwright.errors import MaskwrightError
from maskwright.models.parts.part import MAX_DEPTH, Part
from maskwright.models.parts.table import build_part


class Identity(Part):
    """Gives what it gets."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, D, h, w) as it is."""
        return x


class L2Norm(Part):
    """Unit length over the channels."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, D, h, w) to unit vectors of that shape."""
        return F.normalize(x, dim=1)


class Standardize(Part):
    """(x - mean) / scale for each channel.

    Args:
        mean: (D,).
        scale: (D,), standard deviations; channels that never vary may have 0 and are only centred.
    """

    fields = ("width",)

    def __init__(self, mean: Tensor, scale: Tensor) -> None:
        super().__init__()
        self.width = _width(mean, scale)
        self.register_buffer("mean", mean.detach().float().clone())
        self.register_buffer("scale", torch.where(scale > 0, scale, torch.ones_like(scale)).detach().float().clone())

    @classmethod
    def build(cls, **arguments: Any) -> Self:
        """`width`: D."""
        width = arguments["width"]
        return cls(torch.zeros(width), torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        """(B, D, h, w) to standardised features of that shape."""
        return (x - _channels(self.mean, x)) / _channels(self.scale, x)  # type: ignore[arg-type]


class Projection(Part):
    """A linear projection of every pixel, as PCA and whitening give it: ((x - mean) components^T) * scale.

    Args:
        mean: (D,).
        components: (E, D), one a row.
        scale: (E,), factor of each component (1 / standard deviation whitens); ones if None.
        normalize: unit length afterwards.
    """

    fields = ("width", "out", "normalize")

    def __init__(self, mean: Tensor, components: Tensor, scale: Tensor | None = None, normalize: bool = False) -> None:
        super().__init__()
        if components.ndim != 2 or components.shape[1] != mean.numel():
            raise ValueError(f"components are {tuple(components.shape)}, expected (E, {mean.numel()})")
        self.out, self.width = int(components.shape[0]), int(components.shape[1])
        self.normalize = bool(normalize)
        scale = torch.ones(self.out) if scale is None else scale
        if scale.shape != (self.out,):
            raise ValueError(f"scale is {tuple(scale.shape)}, expected ({self.out},)")
        self.register_buffer("mean", mean.detach().float().clone())
        self.register_buffer("components", components.detach().float().contiguous().clone())
        self.register_buffer("scale", scale.detach().float().clone())

    @classmethod
    def build(cls, **arguments: Any) -> Self:
        """`width`: D, `out`: E, `normalize`."""
        width, out = arguments["width"], arguments["out"]
        return cls(torch.zeros(width), torch.zeros(out, width), torch.ones(out), arguments["normalize"])

    def forward(self, x: Tensor) -> Tensor:
        """(B, D, h, w) to (B, E, h, w)."""
        weight = (self.components * self.scale[:, None])[..., None, None]  # type: ignore[operator, index]
        y = F.conv2d(x - _channels(self.mean, x), weight.to(x.dtype))  # type: ignore[arg-type]
        return F.normalize(y, dim=1) if self.normalize else y


class CosineClassifier(Part):
    """Logits are cosines to the centres of K clusters, over a temperature.

    Args:
        centers: (K, D), of any length.
        temperature: 0.5 gives STEGO's 2 cos.
    """

    fields = ("width", "classes", "temperature")

    def __init__(self, centers: Tensor, temperature: float = 1.0) -> None:
        super().__init__()
        if centers.ndim != 2:
            raise ValueError(f"centers are {tuple(centers.shape)}, expected (K, D)")
        if not temperature > 0:
            raise ValueError(f"temperature is {temperature}, expected above 0")
        self.classes, self.width = int(centers.shape[0]), int(centers.shape[1])
        self.temperature = float(temperature)
        self.centers = nn.Parameter(centers.detach().float().contiguous().clone())

    @classmethod
    def build(cls, **arguments: Any) -> Self:
        """`width`: D, `classes`: K, `temperature`."""
        return cls(torch.zeros(arguments["classes"], arguments["width"]), arguments["temperature"])

    def forward(self, x: Tensor) -> Tensor:
        """(B, D, h, w) to logits (B, K, h, w) in [-1, 1] / temperature."""
        weight = F.normalize(self.centers, dim=1)[..., None, None].to(x.dtype)
        return F.conv2d(F.normalize(x, dim=1), weight) / self.temperature


class LinearClassifier(Part):
    """One linear layer a pixel (1x1 convolution).

    Args:
        width: D.
        classes: C.
    """

    fields = ("width", "classes")

    def __init__(self, width: int, classes: int) -> None:
        super().__init__()
        self.width, self.classes = int(width), int(classes)
        self.linear = nn.Conv2d(self.width, self.classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, D, h, w) to logits (B, C, h, w)."""
        return self.linear(x)


class StegoHead(Part):
    """STEGO's head: a linear and a nonlinear branch, added (Hamilton et al., 2022).

    code = Conv1x1(drop(f)) + [Conv1x1 ReLU Conv1x1](drop(f)), whole channels dropped, drawn for each branch.

    Args:
        width: D of the features.
        code: E of the codes.
        dropout: probability of a channel to be dropped in training.
    """

    fields = ("width", "code", "dropout")

    def __init__(self, width: int, code: int = 70, dropout: float = 0.1) -> None:
        super().__init__()
        self.width, self.code, self.dropout = int(width), int(code), float(dropout)
        self.drop = nn.Dropout2d(self.dropout)
        self.linear = nn.Conv2d(self.width, self.code, 1)
        self.nonlinear = nn.Sequential(
            nn.Conv2d(self.width, self.width, 1), nn.ReLU(), nn.Conv2d(self.width, self.code, 1)
        )

    def forward(self, x: Tensor) -> Tensor:
        """(B, D, h, w) to codes (B, E, h, w)."""
        return self.linear(self.drop(x)) + self.nonlinear(self.drop(x))


class ConvDecoder(Part):
    """A few 3x3 convolutions with group normalisation, optionally upsampling by two each.

    Group rather than batch normalisation: few masks make small batches.

    Args:
        width: D of the features.
        hidden: width of the convolutions.
        out: E.
        depth: number of 3x3 convolutions.
        upsample: how many of them double the resolution before.
    """

    fields = ("width", "hidden", "out", "depth", "upsample")

    def __init__(self, width: int, hidden: int = 256, out: int = 256, depth: int = 2, upsample: int = 0) -> None:
        super().__init__()
        if not 0 <= upsample <= depth <= MAX_DEPTH or upsample > 5:
            raise ValueError(f"depth {depth} and upsample {upsample}: expected upsample <= depth and at most 5")
        self.width, self.hidden, self.out = int(width), int(hidden), int(out)
        self.depth, self.upsample = int(depth), int(upsample)
        groups = next(g for g in (32, 16, 8, 4, 2, 1) if self.hidden % g == 0)
        self.blocks = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(self.width if i == 0 else self.hidden, self.hidden, 3, padding=1, bias=False),
                nn.GroupNorm(groups, self.hidden),
                nn.ReLU(),
            )
            for i in range(self.depth)
        )
        self.last = nn.Conv2d(self.hidden if self.depth else self.width, self.out, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, D, h, w) to (B, E, h * 2^upsample, w * 2^upsample)."""
        for i, block in enumerate(self.blocks):
            if i < self.upsample:
                x = F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)
            x = block(x)
        return self.last(x)


class Sequential(Part):
    """Parts one after another."""

    def __init__(self, *parts: Part) -> None:
        super().__init__()
        self.parts = nn.ModuleList(parts)

    def spec(self) -> dict[str, Any]:
        """The specs of the parts, in order."""
        return {"kind": "Sequential", "parts": [part.spec() for part in self.parts]}  # type: ignore[operator]

    @classmethod
    def from_spec(cls, spec: Mapping[str, Any]) -> Self:
        """Builds the parts in order; raises `MaskwrightError` as each of them does."""
        parts = spec.get("parts")
        if set(spec) != {"kind", "parts"} or not isinstance(parts, list) or len(parts) > MAX_DEPTH:
            raise MaskwrightError("part Sequential has no list of parts", f"a list of at most {MAX_DEPTH} parts")
        return cls(*(build_part(part) for part in parts))

    def __len__(self) -> int:
        return len(self.parts)

    def __getitem__(self, index: int) -> Part:
        return self.parts[index]  # type: ignore[return-value]

    def forward(self, x: Tensor) -> Tensor:
        """(B, D, h, w) through all parts."""
        for part in self.parts:
            x = part(x)
        return x


def _width(*tensors: Tensor) -> int:
    if any(t.ndim != 1 or t.shape != tensors[0].shape for t in tensors):
        raise ValueError(f"shapes {[tuple(t.shape) for t in tensors]}, expected the same (D,)")
    return int(tensors[0].numel())


def _channels(vector: Tensor, like: Tensor) -> Tensor:
    return vector.to(like.dtype)[:, None, None]
