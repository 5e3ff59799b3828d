"""HRNet with its own head: high-resolution representations. Wang et al., TPAMI 2020, https://arxiv.org/abs/1908.07919

Four streams at 1/4, 1/8, 1/16 and 1/32 run side by side and exchange what they have; the head (HRNetV2) enlarges all
to 1/4, joins them and classifies with 1x1 convolutions. The streams are timm's, whose tensors have the authors' names.

Deviates: the streams are enlarged with `align_corners=False`, as logits are and all maps but those inside the decoders
that `smp` names, SETR-MLA's and DPT's; the authors' Cityscapes models were trained with True, so their published scores
are not reached to the last digit.

Legend: B batch, D_i width of stream i, (H, W) input size.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import timm
from torch import Tensor, nn

from maskwright.errors import MaskwrightError, unknown
from maskwright.models.blocks import conv_norm_relu, initialise, join
from maskwright.models.dense import Backbone
from maskwright.models.heads import Part


class HRNetEncoder(Part):
    """The four streams as they leave the last stage, before the modules that classification puts on them.

    Args:
        architecture: a timm name, "hrnet_w18" to "hrnet_w64".
    """

    fields = ("architecture",)
    multiple_of = 32

    def __init__(self, architecture: str) -> None:
        super().__init__()
        known = timm.list_models("hrnet*")
        if architecture not in known:
            raise unknown("HRNet", str(architecture)[:60], known)
        self.architecture = architecture
        self.trunk: Any = timm.create_model(
            architecture, pretrained=False, features_only=True, feature_location="", out_indices=(1, 2, 3, 4)
        )
        info: Any = self.trunk.feature_info
        self.widths = [int(width) for width in info.channels()]

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
    """

    fields = ("widths",)

    def __init__(self, widths: Sequence[int]) -> None:
        super().__init__()
        self.widths = [int(width) for width in widths]
        self.width = sum(self.widths)
        # The norm forgets the bias, but the official checkpoints have one.
        self.fuse: nn.Sequential = conv_norm_relu(self.width, self.width, bias=True)
        initialise(self)

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        """Streams to (B, E, H/4, W/4)."""
        return self.fuse(join(features))


HRNET_PARTS: dict[str, type[Part]] = {part.__name__: part for part in (HRNetEncoder, HRNetDecoder)}
