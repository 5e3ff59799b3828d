"""Edges beside colours: an encoder that also sees the Sobel gradients of the grey photograph.

IIC (ICCV 2019) gives its networks red, green, blue, dx and dy on COCO, against clusters of colours.

Legend: B images, (H, W) input size.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from maskwright.errors import MaskwrightError
from maskwright.models.parts.part import Part
from maskwright.models.parts.table import build_part

GREY = (0.299, 0.587, 0.114)


def sobel(grey: Tensor) -> Tensor:
    """Sobel gradients, without the factor 1/8, zeros outside.

    Args:
        grey: (B, 1, H, W), in [0, 1].

    Returns:
        (B, 2, H, W): dx, left minus right, and dy, above minus below.
    """
    dx = torch.tensor([[1.0, 0, -1], [2, 0, -2], [1, 0, -1]], dtype=grey.dtype, device=grey.device)
    return F.conv2d(grey, torch.stack((dx, dx.T))[:, None], padding=1)


class SobelEncoder(Part):
    """An encoder of five channels, or of three that a 1x1 convolution mixes from the five.

    The mixing begins as the photograph alone, so that weights that were trained on photographs begin as they are.

    Args:
        module: the encoder.
        mean: RGB in [0, 1] that the input is normalised with.
        std: likewise.
        mix: whether the encoder takes three channels.
    """

    def __init__(self, module: Part, mean: Sequence[float], std: Sequence[float], mix: bool = True) -> None:
        super().__init__()
        self.mean, self.std = tuple(map(float, mean)), tuple(map(float, std))
        self.mix = None
        if mix:
            self.mix = nn.Conv2d(5, 3, 1, bias=False)
            with torch.no_grad():
                self.mix.weight.copy_(torch.eye(3, 5)[..., None, None])
        self.module = module

    def spec(self) -> dict[str, Any]:
        """The encoder's spec and the arguments."""
        mean, std = list(self.mean), list(self.std)
        return {"kind": "SobelEncoder", "module": self.module.spec(), "mean": mean, "std": std,
                "mix": self.mix is not None}  # fmt: skip

    @classmethod
    def from_spec(cls, spec: Mapping[str, Any]) -> Self:
        """Builds the encoder inside, and this around it.

        Raises:
            MaskwrightError: an incomplete spec, and as the part inside does.
        """
        mean, std = spec.get("mean"), spec.get("std")
        whole = set(spec) == {"kind", "module", "mean", "std", "mix"} and isinstance(spec["mix"], bool)
        numbers = all(
            isinstance(v, list) and len(v) == 3 and all(isinstance(x, int | float) for x in v) for v in (mean, std)
        )
        if not whole or not numbers:
            raise MaskwrightError("part SobelEncoder is incomplete", "module, mean and std of three numbers, and mix")
        return cls(build_part(spec["module"]), spec["mean"], spec["std"], spec["mix"])

    @property
    def multiple_of(self) -> int:
        """That of the encoder inside."""
        return int(self.module.multiple_of)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Any:
        """Normalised (B, 3, H, W) to what the encoder inside makes of colours and edges."""
        weights = [g * s for g, s in zip(GREY, self.std)]
        offset = sum(g * m for g, m in zip(GREY, self.mean))
        grey = sum(x[:, k : k + 1] * weight for k, weight in enumerate(weights)) + offset
        with torch.no_grad():
            edges = sobel(torch.as_tensor(grey))
        both = torch.cat((x, edges), 1)
        return self.module(both if self.mix is None else self.mix(both))
