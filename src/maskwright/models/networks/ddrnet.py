"""DDRNet: deep dual-resolution networks for road scenes. Pan et al., IEEE T-ITS 2023,
https://arxiv.org/abs/2101.06085

One branch stays at 1/8, one goes down to 1/64; after each of the stages 3 and 4 they exchange what they have. A pyramid
pooling at 1/64 (DAPPM) sees the whole image for almost nothing, since the map is tiny, and is added to the fine branch.

Modules are named as in the official checkpoints (github.com/ydhongHIT/DDRNet), whose maps `keymaps` knows.

Deviates: coarse maps are enlarged by their exact factor and cut to size, where the original stretches them to the size
of the fine map. At multiples of 64 the two are equal; at other sizes (720 x 960) the original shifts context by up to
half a coarse cell. What the original gets wrong: batch norm behind the global pooling cannot train with one image;
here it can (`blocks.BatchNorm2d`).

Legend: p planes (width of the first stage), B batch, (H, W) input size.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from maskwright.errors import unknown
from maskwright.models.networks.blocks import BatchNorm2d, conv_norm, initialise
from maskwright.models.parts.part import Part


class Variant(NamedTuple):
    """Sizes of one network of the family.

    Attributes:
        blocks: residual blocks of the stages 1 to 4.
        planes: p.
        pooling: width of the branches of DAPPM.
        head: width of the head, E.
        thirds: parts of stage 3, each followed by a fusion.
    """

    blocks: tuple[int, int, int, int]
    planes: int
    pooling: int
    head: int
    thirds: tuple[str, ...]


VARIANTS: dict[str, Variant] = {
    "ddrnet23_slim": Variant((2, 2, 2, 2), 32, 128, 64, ("3",)),
    "ddrnet23": Variant((2, 2, 2, 2), 64, 128, 128, ("3",)),
    "ddrnet39": Variant((3, 4, 6, 3), 64, 128, 256, ("3_1", "3_2")),
}


def variant_sizes(name: str) -> Variant:
    """The sizes of a network by its name; raises `MaskwrightError` for an unknown one."""
    if name not in VARIANTS:
        raise unknown("DDRNet", str(name)[:60], VARIANTS)
    return VARIANTS[name]


class _Basic(nn.Module):
    """Two 3x3 convolutions and a shortcut; the last of a stage leaves its ReLU to whoever reads it."""

    def __init__(self, width: int, planes: int, stride: int = 1, relu: bool = True) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width, planes, 3, stride, 1, bias=False)
        self.bn1 = BatchNorm2d(planes)
        self.conv2 = nn.Conv2d(planes, planes, 3, padding=1, bias=False)
        self.bn2 = BatchNorm2d(planes)
        self.downsample = _shortcut(width, planes, stride)
        self.relu = relu

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn1(self.conv1(x)), inplace=True)
        y = self.bn2(self.conv2(y)) + (x if self.downsample is None else self.downsample(x))
        return F.relu(y, inplace=True) if self.relu else y


class _Bottleneck(nn.Module):
    """1x1, 3x3, 1x1 to twice the planes, and a shortcut; without a ReLU at its end."""

    def __init__(self, width: int, planes: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width, planes, 1, bias=False)
        self.bn1 = BatchNorm2d(planes)
        self.conv2 = nn.Conv2d(planes, planes, 3, stride, 1, bias=False)
        self.bn2 = BatchNorm2d(planes)
        self.conv3 = nn.Conv2d(planes, 2 * planes, 1, bias=False)
        self.bn3 = BatchNorm2d(2 * planes)
        self.downsample = _shortcut(width, 2 * planes, stride)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn1(self.conv1(x)), inplace=True)
        y = F.relu(self.bn2(self.conv2(y)), inplace=True)
        return self.bn3(self.conv3(y)) + (x if self.downsample is None else self.downsample(x))


def _shortcut(width: int, out: int, stride: int) -> nn.Sequential | None:
    return conv_norm(width, out, 1, stride) if stride != 1 or width != out else None


def _stage(width: int, planes: int, blocks: int, stride: int = 1) -> nn.Sequential:
    """Basic blocks, the first with the stride, the last without its ReLU."""
    return nn.Sequential(
        *(
            _Basic(planes if i else width, planes, 1 if i else stride, relu=i == 0 or i < blocks - 1)
            for i in range(blocks)
        )
    )


def enlarge(x: Tensor, factor: int, size: Sequence[int]) -> Tensor:
    """A coarse map (B, D, ceil(h / factor), ceil(w / factor)) on the grid of the fine one, (B, D, h, w)."""
    x = F.interpolate(x, scale_factor=factor, mode="bilinear", align_corners=False)
    return x[..., : size[0], : size[1]]


class DDRNetEncoder(Part):
    """Both branches.

    Args:
        variant: a name of `VARIANTS`.
    """

    fields = ("variant",)
    multiple_of = 8

    def __init__(self, variant: str) -> None:
        super().__init__()
        self.variant = variant
        sizes = variant_sizes(variant)
        p, blocks, self.thirds = sizes.planes, sizes.blocks, sizes.thirds
        parts = len(self.thirds)
        self.widths = (2 * p, 4 * p, 16 * p)
        stem: list[nn.Module] = []
        for width in (3, p):
            stem += [nn.Conv2d(width, p, 3, 2, 1), BatchNorm2d(p), nn.ReLU(inplace=True)]
        self.conv1 = nn.Sequential(*stem)
        self.layer1 = _stage(p, p, blocks[0])
        self.layer2 = _stage(p, 2 * p, blocks[1], 2)
        for i, name in enumerate(self.thirds):
            first = i == 0
            self.add_module(
                f"layer{name}", _stage(2 * p if first else 4 * p, 4 * p, blocks[2] // parts, 2 if first else 1)
            )
            self.add_module(f"layer{name}_", _stage(2 * p, 2 * p, blocks[2] // parts))
            self.add_module(f"compression{name}", conv_norm(4 * p, 2 * p))
            self.add_module(f"down{name}", conv_norm(2 * p, 4 * p, 3, 2))
        self.layer4 = _stage(4 * p, 8 * p, blocks[3], 2)
        self.layer4_ = _stage(2 * p, 2 * p, blocks[3])
        self.compression4 = conv_norm(8 * p, 2 * p)
        self.down4 = nn.Sequential(
            *conv_norm(2 * p, 4 * p, 3, 2), nn.ReLU(inplace=True), *conv_norm(4 * p, 8 * p, 3, 2)
        )
        self.layer5_ = nn.Sequential(_Bottleneck(2 * p, 2 * p))
        self.layer5 = nn.Sequential(_Bottleneck(8 * p, 8 * p, 2))
        initialise(self)

    def parameter_layers(self) -> list[list[nn.Parameter]]:
        """Parameters by depth, both branches of a stage together."""
        names = [["conv1", "layer1"], ["layer2"]]
        names += [[f"layer{n}", f"layer{n}_", f"compression{n}", f"down{n}"] for n in (*self.thirds, "4")]
        names += [["layer5", "layer5_"]]
        return [[p for name in group for p in self.get_submodule(name).parameters()] for group in names]

    def forward(self, x: Tensor) -> list[Tensor]:
        """(B, 3, H, W) to maps: fine after stage 3 (B, 2p, H/8, W/8), where the auxiliary head looks; fine at the end
        (B, 4p, H/8, W/8); coarse at the end (B, 16p, H/64, W/64), rounded up.

        Raises:
            ValueError: a side is no multiple of 8.
        """
        if x.shape[-2] % 8 or x.shape[-1] % 8:
            raise ValueError(f"input is {x.shape[-2]} x {x.shape[-1]}, expected multiples of 8")
        part = self.get_submodule
        x = self.layer1(self.conv1(x))
        high = low = self.layer2(F.relu(x))
        size, early = high.shape[-2:], high
        for name in (*self.thirds, "4"):
            low, high = part(f"layer{name}")(F.relu(low)), part(f"layer{name}_")(F.relu(high))
            risen = enlarge(part(f"compression{name}")(F.relu(low)), 4 if name == "4" else 2, size)
            low, high = low + part(f"down{name}")(F.relu(high)), high + risen
            if name == self.thirds[-1]:
                early = high
        return [early, self.layer5_(F.relu(high)), self.layer5(F.relu(low))]


class DAPPM(nn.Module):
    """Deep aggregation pyramid pooling: each coarser pooling is enlarged and refined together with the finer one.

    y_0 = c(x), y_i = C(up(c(pool_i(x))) + y_{i-1}), i = 1 to 4; out = c(y_0 | ... | y_4) + c(x), where c is norm, ReLU,
    1x1 and C is norm, ReLU, 3x3.

    Args:
        width: D.
        branch: width of the y_i.
        out: E.
    """

    POOLS = ((5, 2), (9, 4), (17, 8))

    def __init__(self, width: int, branch: int, out: int) -> None:
        super().__init__()
        self.scale0 = nn.Sequential(*_pre(width, branch))
        for i, (kernel, stride) in enumerate(self.POOLS, 1):
            pool = nn.AvgPool2d(kernel, stride, kernel // 2)
            self.add_module(f"scale{i}", nn.Sequential(pool, *_pre(width, branch)))
        self.scale4 = nn.Sequential(nn.AdaptiveAvgPool2d(1), *_pre(width, branch))
        for i in range(1, 5):
            self.add_module(f"process{i}", nn.Sequential(*_pre(branch, branch, 3)))
        self.compression = nn.Sequential(*_pre(5 * branch, out))
        self.shortcut = nn.Sequential(*_pre(width, out))

    def forward(self, x: Tensor) -> Tensor:
        """(B, D, h, w) to (B, E, h, w)."""
        size = x.shape[-2:]
        y = [self.scale0(x)]
        for i in range(1, 5):
            pooled = self.get_submodule(f"scale{i}")(x)
            risen = F.interpolate(pooled, size, mode="bilinear", align_corners=False)
            y.append(self.get_submodule(f"process{i}")(risen + y[-1]))
        return self.compression(torch.cat(y, dim=1)) + self.shortcut(x)


def _pre(width: int, out: int, kernel: int = 1) -> list[nn.Module]:
    """Norm, ReLU, convolution."""
    return [
        BatchNorm2d(width),
        nn.ReLU(inplace=True),
        nn.Conv2d(width, out, kernel, padding=kernel // 2, bias=False),
    ]


class _Head(nn.Module):
    """Norm, ReLU, 3x3, norm, ReLU, and for a whole head the 1x1 to classes."""

    def __init__(self, width: int, hidden: int, classes: int | None = None) -> None:
        super().__init__()
        self.bn1 = BatchNorm2d(width)
        self.conv1 = nn.Conv2d(width, hidden, 3, padding=1, bias=False)
        self.bn2 = BatchNorm2d(hidden)
        self.conv2 = None if classes is None else nn.Conv2d(hidden, classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn2(self.conv1(F.relu(self.bn1(x)))), inplace=True)
        return x if self.conv2 is None else self.conv2(x)


class DDRNetDecoder(Part):
    """DAPPM on the coarse branch, added to the fine one, and the head's 3x3 convolution.

    Args:
        variant: a name of `VARIANTS`.
    """

    fields = ("variant",)

    def __init__(self, variant: str) -> None:
        super().__init__()
        self.variant = variant
        sizes = variant_sizes(variant)
        self.spp = DAPPM(16 * sizes.planes, sizes.pooling, 4 * sizes.planes)
        self.head = _Head(4 * sizes.planes, sizes.head)
        self.width = sizes.head
        initialise(self)

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        """Features of the encoder to (B, E, H/8, W/8)."""
        _, high, low = features
        return self.head(high + enlarge(self.spp(low), 8, high.shape[-2:]))


class DDRNetAux(Part):
    """The auxiliary head on the fine branch after stage 3, for training.

    Args:
        variant: a name of `VARIANTS`.
        classes: C.
    """

    fields = ("variant", "classes")

    def __init__(self, variant: str, classes: int) -> None:
        super().__init__()
        self.variant, self.classes = variant, int(classes)
        sizes = variant_sizes(variant)
        self.head = _Head(2 * sizes.planes, sizes.head, self.classes)
        initialise(self)

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        """Features of the encoder to logits (B, C, H/8, W/8)."""
        return self.head(features[0])
