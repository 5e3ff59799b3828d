"""DeepLab v1 and v2, which no library in use has; v3 and v3+ are segmentation-models-pytorch's.

v1: Semantic image segmentation with deep convolutional nets and fully connected CRFs, Chen et al., ICLR 2015,
https://arxiv.org/abs/1412.7062. VGG16 whose last two poolings do not shrink, so that features stay at 1/8, with
convolutions dilated to make up for it; LargeFOV: fc6 becomes a 3x3 convolution of dilation 12.
v2: DeepLab, Chen et al., TPAMI 2018, https://arxiv.org/abs/1606.00915. ASPP: four 3x3 convolutions of dilations 6, 12,
18 and 24 on features at 1/8 give class scores each, which are summed; there is no normalisation and nothing between.

Both papers refine with a dense CRF afterwards, which is `predict --refine crf` here.

Deviates: v2 stands on any encoder that can be dilated, v1 on any VGG. What the originals leave to training, a rate of
ten and twenty times for the last layer, is the optimiser's affair.

Legend: B batch, C classes, (H, W) input size.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from maskwright.errors import MaskwrightError, unknown
from maskwright.models.backbones.dense import Backbone
from maskwright.models.networks.blocks import BatchNorm2d, initialise
from maskwright.models.parts.part import Part

VGGS: dict[str, tuple[int, ...]] = {
    "vgg11": (1, 1, 2, 2, 2),
    "vgg13": (2, 2, 2, 2, 2),
    "vgg16": (2, 2, 3, 3, 3),
    "vgg19": (2, 2, 4, 4, 4),
}
"""Convolutions of each stage."""
VGG_WIDTHS = (64, 128, 256, 512, 512)


class VGGEncoder(Part):
    """The convolutions of a VGG at 1/8; tensors have the names of timm and torchvision (`features.N`).

    Args:
        architecture: "vgg11", "vgg13", "vgg16", "vgg19", or one of these with "_bn".
    """

    fields = ("architecture",)
    multiple_of = 8

    def __init__(self, architecture: str) -> None:
        super().__init__()
        depth = str(architecture).removesuffix("_bn")
        if depth not in VGGS:
            raise unknown("VGG", str(architecture)[:60], [*VGGS, *(f"{name}_bn" for name in VGGS)])
        self.architecture = architecture
        self.widths = list(VGG_WIDTHS)
        normed = architecture.endswith("_bn")
        layers: list[nn.Module] = []
        self.ends = []
        width = 3
        for stage, (count, out) in enumerate(zip(VGGS[depth], VGG_WIDTHS, strict=True)):
            dilation = 2 if stage == 4 else 1
            for _ in range(count):
                layers.append(nn.Conv2d(width, out, 3, padding=dilation, dilation=dilation))
                layers += [BatchNorm2d(out)] if normed else []
                layers.append(nn.ReLU(inplace=True))
                width = out
            layers.append(nn.MaxPool2d(3, 2 if stage < 3 else 1, 1))
            self.ends.append(len(layers) - 1)
        self.features = nn.Sequential(*layers)
        initialise(self)

    def load_from(self, backbone: Backbone) -> None:
        """Takes the weights of a built backbone of the same architecture.

        Raises:
            MaskwrightError: the backbone is another network.
        """
        source, wanted = backbone.model.state_dict(), self.state_dict()
        if any(name not in source or source[name].shape != value.shape for name, value in wanted.items()):
            raise MaskwrightError(f"weights of {backbone.architecture} for {self.architecture}", "the same network")
        self.load_state_dict({name: source[name] for name in wanted})

    @property
    def stands_on(self) -> str:
        """The timm network."""
        return self.architecture

    def backbone_tensors(self, wanted: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """As of `Part`; the names are the same."""
        return dict(self.state_dict())

    def parameter_layers(self) -> list[list[nn.Parameter]]:
        """Parameters by depth: each convolution with its norm."""
        layers: list[list[nn.Parameter]] = []
        for layer in self.features:
            if isinstance(layer, nn.Conv2d):
                layers.append([])
            layers[-1].extend(layer.parameters())
        return layers

    def forward(self, x: Tensor) -> list[Tensor]:
        """(B, 3, H, W) to the maps behind the five poolings, at 1/2, 1/4, 1/8, 1/8 and 1/8.

        Raises:
            ValueError: a side is no multiple of 8.
        """
        if x.shape[-2] % 8 or x.shape[-1] % 8:
            raise ValueError(f"input is {x.shape[-2]} x {x.shape[-1]}, expected multiples of 8")
        maps = []
        for i, layer in enumerate(self.features):
            x = layer(x)
            if i in self.ends:
                maps.append(x)
        return maps


class LargeFOV(Part):
    """fc6 as a dilated 3x3 convolution and fc7 as a 1x1, each with ReLU and dropout.

    Args:
        width: D of the last map.
        hidden: E, 1024 in the paper.
        dilation: of fc6, 12 in the paper.
        dropout: probability, 0.5 in the paper.
    """

    fields = ("width", "hidden", "dilation", "dropout")

    def __init__(self, width: int = 512, hidden: int = 1024, dilation: int = 12, dropout: float = 0.5) -> None:
        super().__init__()
        self.width, self.hidden, self.dilation, self.dropout = int(width), int(hidden), int(dilation), float(dropout)
        self.fc6 = nn.Conv2d(self.width, self.hidden, 3, padding=self.dilation, dilation=self.dilation)
        self.fc7 = nn.Conv2d(self.hidden, self.hidden, 1)
        initialise(self)

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        """Feature maps to (B, E, H/8, W/8)."""
        x = F.avg_pool2d(features[-1], 3, 1, 1)
        for layer in (self.fc6, self.fc7):
            x = F.dropout(F.relu(layer(x), inplace=True), self.dropout, self.training)
        return x


class SummedASPP(Part):
    """DeepLab v2's classifier: parallel dilated 3x3 convolutions to classes, summed.

    Args:
        width: D.
        classes: C.
        rates: dilations.
    """

    fields = ("width", "classes", "rates")

    def __init__(self, width: int, classes: int, rates: Sequence[int] = (6, 12, 18, 24)) -> None:
        super().__init__()
        self.width, self.classes, self.rates = int(width), int(classes), [int(rate) for rate in rates]
        if not self.rates or min(self.rates) < 1:
            raise ValueError(f"rates are {self.rates}, expected positive dilations")
        branches = [nn.Conv2d(self.width, self.classes, 3, padding=rate, dilation=rate) for rate in self.rates]
        for branch in branches:
            nn.init.normal_(branch.weight, std=0.01)
            assert branch.bias is not None
            nn.init.zeros_(branch.bias)
        self.branches = nn.ModuleList(branches)

    def forward(self, x: Tensor) -> Tensor:
        """(B, D, h, w) to logits (B, C, h, w)."""
        first, *rest = self.branches
        y = first(x)
        for branch in rest:
            y = y + branch(x)
        return y
