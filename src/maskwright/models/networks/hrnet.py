"""HRNet with its own head: high-resolution representations. Wang et al., TPAMI 2020, https://arxiv.org/abs/1908.07919

Four streams at 1/4, 1/8, 1/16 and 1/32 run side by side and exchange what they have; the head (HRNetV2) enlarges all
to 1/4, joins them and classifies with 1x1 convolutions. The streams are timm's, whose tensors have the authors' names.

Coarse streams are enlarged bilinearly with aligned corners, where they enter finer ones and where all are joined, as in
the authors' segmentation network. timm's trunk is their classifier's and repeats pixels: with one state dict that moves
logits by 8 to 15 %, half-pixel centres by 10 to 40 %.

Deviates: the logits themselves are enlarged with half-pixel centres, as those of all networks here.

Legend: B batch, D_i width of stream i, (H, W) input size.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Self

import timm
from torch import Tensor, nn

from maskwright.errors import MaskwrightError, unknown
from maskwright.models.backbones.dense import Backbone
from maskwright.models.networks.blocks import conv_norm_relu, initialise, join
from maskwright.models.parts.part import Part


class HRNetEncoder(Part):
    """The four streams as they leave the last stage, before the modules that classification puts on them.

    Args:
        architecture: a timm name, "hrnet_w18" to "hrnet_w64".
        exchange: how coarse streams enter finer ones, "aligned" (bilinear, aligned corners) or "nearest".

    Raises:
        MaskwrightError: timm has no such HRNet.
        ValueError: for another `exchange`.
    """

    fields = ("architecture", "exchange")
    multiple_of = 32

    def __init__(self, architecture: str, exchange: str = "aligned") -> None:
        super().__init__()
        known = timm.list_models("hrnet*")
        if architecture not in known:
            raise unknown("HRNet", str(architecture)[:60], known)
        if exchange not in ("aligned", "nearest"):
            raise ValueError(f"exchange {exchange!r}, expected aligned or nearest")
        self.architecture, self.exchange = architecture, exchange
        self.trunk: Any = timm.create_model(
            architecture, pretrained=False, features_only=True, feature_location="", out_indices=(1, 2, 3, 4)
        )
        for module in self.trunk.modules():
            if isinstance(module, nn.Upsample) and exchange == "aligned":
                module.mode, module.align_corners = "bilinear", True
        info: Any = self.trunk.feature_info
        self.widths = [int(width) for width in info.channels()]

    @classmethod
    def from_spec(cls, spec: Mapping[str, Any]) -> Self:
        """As of `Part`; a bundle that does not name the exchange was trained with "nearest"."""
        return super().from_spec({"exchange": "nearest", **spec})

    def load_from(self, backbone: Backbone) -> None:
        """Takes the weights of a built backbone of the same architecture.

        Raises:
            MaskwrightError: the backbone is another network.
        """
        source = backbone.model.state_dict()
        wanted = self.trunk.state_dict()
        if any(name not in source or source[name].shape != value.shape for name, value in wanted.items()):
            raise MaskwrightError(f"weights of {backbone.architecture} for {self.architecture}", "the same network")
        self.trunk.load_state_dict({name: source[name] for name in wanted})

    @property
    def stands_on(self) -> str:
        """The timm network."""
        return self.architecture

    def backbone_tensors(self, wanted: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """As of `Part`; the names are the same."""
        return dict(self.trunk.state_dict())

    def parameter_layers(self) -> list[list[nn.Parameter]]:
        """Parameters by depth: stem, then each stage with the transition that leads to it."""
        names = [["conv1", "bn1", "conv2", "bn2"], ["layer1"]]
        names += [[f"transition{i}", f"stage{i + 1}"] for i in (1, 2, 3)]
        return [[p for name in group for p in self.trunk.get_submodule(name).parameters()] for group in names]

    def forward(self, x: Tensor) -> list[Tensor]:
        """(B, 3, H, W) to maps (B, D_i, H/4, W/4) to (B, D_4, H/32, W/32).

        Raises:
            ValueError: a side is no multiple of 32.
        """
        if x.shape[-2] % 32 or x.shape[-1] % 32:
            raise ValueError(f"input is {x.shape[-2]} x {x.shape[-1]}, expected multiples of 32")
        return self.trunk(x)


class HRNetDecoder(Part):
    """All streams enlarged to the finest, joined, one 1x1 convolution.

    Args:
        widths: D_i of each stream, fine to coarse; E is their sum.
        aligned: whether streams are enlarged with aligned corners.
    """

    fields = ("widths", "aligned")

    def __init__(self, widths: Sequence[int], aligned: bool = True) -> None:
        super().__init__()
        self.aligned = bool(aligned)
        self.widths = [int(width) for width in widths]
        self.width = sum(self.widths)
        # The norm forgets the bias, but the official checkpoints have one.
        self.fuse: nn.Sequential = conv_norm_relu(self.width, self.width, bias=True)
        initialise(self)

    @classmethod
    def from_spec(cls, spec: Mapping[str, Any]) -> Self:
        """As of `Part`; a bundle that does not say was trained with half-pixel centres."""
        return super().from_spec({"aligned": False, **spec})

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        """Streams to (B, E, H/4, W/4)."""
        return self.fuse(join(features, self.aligned))
