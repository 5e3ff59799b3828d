"""A network that relights photographs before an encoder sees them, and a classifier whose logits are weighed by class:
what a segmenter of DANNet (Wu et al., CVPR 2021, https://arxiv.org/abs/2104.10834) holds beside its network.

Legend: B batch, C classes, E embedding width, W width, (H, W) input size, (h, w) feature-map size.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from maskwright.errors import MaskwrightError
from maskwright.models.networks.blocks import BatchNorm2d
from maskwright.models.parts.part import MAX_WIDTH, Part
from maskwright.models.parts.table import build_part

STRIDE = 4
"""Of the inner maps."""
LEAST = 8
"""Pixels of a side: padding by reflection needs two cells of the inner maps."""
BLOCKS = 3
"""Residual blocks."""


class Residual(nn.Module):
    """x + N(C(relu(N(C(x))))), 3 x 3 convolutions C with padding by reflection, batch norms N."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.ReflectionPad2d(1), nn.Conv2d(width, width, 3, bias=False), BatchNorm2d(width), nn.ReLU(inplace=True),
            nn.ReflectionPad2d(1), nn.Conv2d(width, width, 3, bias=False), BatchNorm2d(width),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        """(B, W, h, w) to the same shape."""
        return x + self.body(x)


class Relighting(Part):
    """What is added to a photograph, so that photographs of day and night look alike: r in (-1, 1), in units of the
    network's normalised input.

    A 7 x 7 convolution, two of stride 2, three residual blocks, two transposed ones, a 7 x 7 convolution and tanh. It
    begins as the identity: its last convolution is 0.

    Args:
        width: W of the first convolution; 64 in the paper. Cost and parameters grow with its square.
    """

    fields = ("width",)

    def __init__(self, width: int = 64) -> None:
        super().__init__()
        self.width = w = int(width)
        if w < 1:
            raise ValueError(f"a width of {w}, expected at least 1")
        down = [layer for a in (w, 2 * w) for layer in _shrinking(a)]
        up = [layer for a in (4 * w, 2 * w) for layer in _growing(a)]
        self.body = nn.Sequential(
            nn.ReflectionPad2d(3), nn.Conv2d(3, w, 7, bias=False), BatchNorm2d(w), nn.ReLU(inplace=True),
            *down, *(Residual(4 * w) for _ in range(BLOCKS)), *up, nn.ReflectionPad2d(3),
        )  # fmt: skip
        self.last = nn.Conv2d(w, 3, 7)
        nn.init.zeros_(self.last.weight)
        nn.init.zeros_(self.last.bias)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        """Normalised images (B, 3, H, W) of any size to r, of the same shape."""
        height, width = x.shape[-2:]
        below, right = (max(LEAST, (side + STRIDE - 1) // STRIDE * STRIDE) - side for side in (height, width))
        if below or right:
            x = F.pad(x, (0, right, 0, below), mode="replicate")
        return torch.tanh(self.last(self.body(x)))[..., :height, :width]


def _shrinking(width: int) -> list[nn.Module]:
    conv = nn.Conv2d(width, 2 * width, 3, 2, 1, bias=False)
    return [conv, BatchNorm2d(2 * width), nn.ReLU(inplace=True)]


def _growing(width: int) -> list[nn.Module]:
    conv = nn.ConvTranspose2d(width, width // 2, 3, 2, 1, output_padding=1, bias=False)
    return [conv, BatchNorm2d(width // 2), nn.ReLU(inplace=True)]


class RelitEncoder(Part):
    """An encoder of relit photographs: encoder(x + r(x)).

    Args:
        relighting: gives r.
        encoder: sees the relit photographs.
    """

    def __init__(self, relighting: Part, encoder: Part) -> None:
        super().__init__()
        self.relighting, self.encoder = relighting, encoder

    @property
    def multiple_of(self) -> int:
        """Input sides should be multiples of this: the encoder's."""
        return int(getattr(self.encoder, "multiple_of", 1))

    @property
    def stands_on(self) -> str:
        """What the encoder stands on."""
        return self.encoder.stands_on

    def backbone_tensors(self, wanted: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Those of the encoder."""
        return self.encoder.backbone_tensors(wanted)

    def spec(self) -> dict[str, Any]:
        """The specs of both."""
        return {"kind": "RelitEncoder", "relighting": self.relighting.spec(), "encoder": self.encoder.spec()}

    @classmethod
    def from_spec(cls, spec: Mapping[str, Any]) -> Self:
        """Builds both; raises `MaskwrightError` as each of them does."""
        if set(spec) != {"kind", "relighting", "encoder"}:
            raise MaskwrightError(f"part RelitEncoder has {', '.join(map(str, sorted(spec)))}", "relighting, encoder")
        return cls(build_part(spec["relighting"]), build_part(spec["encoder"]))

    def forward(self, x: Tensor) -> Any:
        """Normalised images (B, 3, H, W) to what the encoder makes of x + r."""
        return self.encoder(x + self.relighting(x))


class WeightedClassifier(Part):
    """A classifier whose logits are multiplied by a weight for each class.

    Args:
        classifier: gives the logits.
        weight: (C,), above 0.
    """

    weight: Tensor

    def __init__(self, classifier: Part, weight: Tensor) -> None:
        super().__init__()
        self.classifier, self.classes = classifier, int(weight.numel())
        self.register_buffer("weight", weight.detach().float().clone())
        inner = getattr(classifier, "classes", self.classes)
        if inner != self.classes:
            raise ValueError(f"{self.classes} weights for {inner} classes")

    def spec(self) -> dict[str, Any]:
        """The classifier's spec and C; the weights are a tensor."""
        return {"kind": "WeightedClassifier", "classifier": self.classifier.spec(), "classes": self.classes}

    @classmethod
    def from_spec(cls, spec: Mapping[str, Any]) -> Self:
        """Builds the classifier, with weights of 1; raises `MaskwrightError` as it does."""
        classes = spec.get("classes")
        whole = set(spec) == {"kind", "classifier", "classes"} and type(classes) is int
        if not whole or not 1 <= classes <= MAX_WIDTH:  # type: ignore[operator]
            raise MaskwrightError(f"part WeightedClassifier has classes {classes!r}", "a classifier and its classes")
        try:
            return cls(build_part(spec["classifier"]), torch.ones(classes))  # type: ignore[arg-type]
        except ValueError as error:
            raise MaskwrightError(f"part WeightedClassifier cannot be built: {error}", "one weight a class") from error

    def check_tensors(self) -> None:
        """Raises `ValueError` on weights that are not above 0."""
        if not bool((self.weight > 0).all() & self.weight.isfinite().all()):
            raise ValueError("WeightedClassifier has weights that are not above 0")

    def forward(self, x: Tensor) -> Tensor:
        """Embedding (B, E, h, w) to weighted logits (B, C, h, w)."""
        return self.classifier(x) * self.weight.to(x.dtype)[:, None, None]
