"""Convolutional decoders for vision transformers: SETR's three and DPT's.

SETR (Zheng et al., CVPR 2021, https://arxiv.org/abs/2012.15840): naive, progressive upsampling (PUP), multi-level
aggregation (MLA). DPT (Ranftl et al., ICCV 2021, https://arxiv.org/abs/2103.13413) in the light form of UniMatch V2
(Yang et al., TPAMI 2025, https://arxiv.org/abs/2410.10777): no batch normalisation, class token ignored.

Deviates: the last doubling of SETR-PUP is left to whoever resizes logits to pixels, since a 1x1 classifier and
bilinear interpolation commute, and C channels are cheaper than E. For the same reason DPT's fusion projects before
it upsamples (a quarter of that layer's work, the same result). DPT's fourth fusion has no side input, so the unit
for one, which the authors build and never run, is not here. UniMatch V2 enlarges the last logits, at 8h x 8w, to 14h x
14w with `align_corners=True`; `Network.logits` does it with False. Off 518 pixels DINOv2's position embeddings are
resized by timm, antialiased; the authors' code adds a tenth of a patch and does not, which changes smooth ones by 2 to
5 % of their length. Convolutions before batch normalisation have no
bias: it would have no effect.

Legend: B batch, D_i width of map i, E embedding width, C classes, (h, w) patch grid.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from timm.layers import LayerNorm2d
from torch import Tensor, nn

from maskwright.models.networks.blocks import Handed, conv_norm_relu
from maskwright.models.parts.heads import MAX_DEPTH, Part

Maps = Sequence[Tensor] | Tensor
"""Feature maps (B, D_i, h, w), shallow to deep; a single one may come without its list."""


def pick_map(features: Maps, index: int, width: int) -> Tensor:
    """One map of the list, checked.

    Raises:
        ValueError: there is no such map, or its shape is not (B, width, h, w).
    """
    if isinstance(features, Tensor):
        x = features
    elif -len(features) <= index < len(features):
        x = features[index]
    else:
        raise ValueError(f"map {index} of {len(features)}, expected {-len(features)} to {len(features) - 1}")
    if x.ndim != 4 or x.shape[1] != width:
        raise ValueError(f"map has shape {tuple(x.shape)}, expected (B, {width}, h, w)")
    return x


def check_maps(features: Maps, widths: Sequence[int]) -> list[Tensor]:
    """The maps as a list, checked.

    Raises:
        ValueError: another number of maps, other widths, or maps of several sizes.
    """
    maps = [features] if isinstance(features, Tensor) else list(features)
    shapes = [tuple(x.shape) for x in maps]
    if [shape[1:2] for shape in shapes] != [(width,) for width in widths] or any(
        s[-2:] != shapes[0][-2:] for s in shapes
    ):
        expected = ", ".join(f"(B, {width}, h, w)" for width in widths)
        raise ValueError(f"maps have shapes {shapes}, expected {expected} of one size")
    return maps


def dpt_channels(width: int) -> tuple[list[int], int]:
    """`out_channels` and `features` of DPT for a transformer of this width, as UniMatch V2 has them.

    384: [48, 96, 192, 384] and 64; 768: [96, 192, 384, 768] and 128; 1024: [256, 512, 1024, 1024] and 256;
    1536: [1536, 1536, 1536, 1536] and 384; other widths by the proportions of the first two.
    """
    if width == 1024:
        return [256, 512, 1024, 1024], 256
    if width == 1536:
        return [1536] * 4, 384
    return [max(1, width // 8), max(1, width // 4), max(1, width // 2), width], max(8, width // 48 * 8)


class _SetrConvs(Part):
    """Layer normalisation and `convs` convolutions with batch normalisation and ReLU, doublings between them."""

    def __init__(self, width: int, hidden: int, convs: int, kernel: int, upsample: int, index: int) -> None:
        super().__init__()
        if not 1 <= convs <= MAX_DEPTH:
            raise ValueError(f"{convs} convolutions, expected 1 to {MAX_DEPTH}")
        if not 0 <= upsample <= min(convs, 5):
            raise ValueError(f"{upsample} doublings, expected 0 to {min(convs, 5)}")
        if kernel not in (1, 3):
            raise ValueError(f"kernel is {kernel}, expected 1 or 3")
        self.width, self.hidden, self.index = int(width), int(hidden), int(index)
        self.convs, self.kernel, self.upsample = int(convs), int(kernel), int(upsample)
        self.out = self.hidden
        self.norm = LayerNorm2d(self.width, eps=1e-6)
        self.blocks = nn.ModuleList(
            conv_norm_relu(self.width if i == 0 else self.hidden, self.hidden, self.kernel) for i in range(self.convs)
        )

    def forward(self, features: Maps) -> Tensor:
        """Maps (B, D_i, h, w) to (B, E, h * 2^upsample, w * 2^upsample)."""
        x = self.norm(pick_map(features, self.index, self.width))
        for i, block in enumerate(self.blocks):
            x = block(x)
            if i < self.upsample:
                x = F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)
        return x


class SetrNaive(_SetrConvs):
    """SETR-Naive: one convolution on one map. With kernel 3 it is SETR-PUP's auxiliary head.

    Args:
        width: D of the map that is read.
        hidden: E.
        kernel: size of the convolution, pixels, 1 or 3.
        index: which map of the list, negative from the end.
    """

    fields = ("width", "hidden", "kernel", "index")

    def __init__(self, width: int, hidden: int = 256, kernel: int = 1, index: int = -1) -> None:
        super().__init__(width, hidden, 1, kernel, 0, index)


class SetrPup(_SetrConvs):
    """SETR-PUP: 3x3 convolutions, each followed by a doubling of the resolution.

    Args:
        width: D of the map that is read.
        hidden: E, the width of all convolutions.
        convs: number of 3x3 convolutions.
        upsample: doublings, one after each of the first convolutions. 3 of the paper's 4: the fourth has nothing
            but the 1x1 classifier behind it and commutes with it, so it is the first step of resizing the logits.
            4 does it here.
        index: which map of the list, negative from the end.
    """

    fields = ("width", "hidden", "convs", "upsample", "index")

    def __init__(self, width: int, hidden: int = 256, convs: int = 4, upsample: int = 3, index: int = -1) -> None:
        super().__init__(width, hidden, convs, 3, upsample, index)


class SetrMla(Part):
    """SETR-MLA: maps projected, summed from the deepest upwards, refined one by one and put side by side at 4x.

    Args:
        widths: D_i of the maps, shallow to deep.
        hidden: width of the aggregation.
        out: E, a multiple of the number of maps; each gives an equal share.
    """

    fields = ("widths", "hidden", "out")

    def __init__(self, widths: Sequence[int], hidden: int = 256, out: int = 512) -> None:
        super().__init__()
        self.widths, self.hidden, self.out = [int(width) for width in widths], int(hidden), int(out)
        if not self.widths or self.out < 1 or self.out % len(self.widths):
            raise ValueError(f"{self.out} channels of {len(self.widths)} maps, expected a multiple")
        share = self.out // len(self.widths)
        self.norms = nn.ModuleList(LayerNorm2d(width, eps=1e-6) for width in self.widths)
        self.projects = nn.ModuleList(conv_norm_relu(width, self.hidden, 1) for width in self.widths)
        self.smooths = nn.ModuleList(conv_norm_relu(self.hidden, self.hidden, 3) for _ in self.widths)
        self.heads = nn.ModuleList(
            nn.Sequential(conv_norm_relu(self.hidden, share, 3), conv_norm_relu(share, share, 3)) for _ in self.widths
        )
        self.handed = Handed()

    def sums(self, features: Maps) -> list[Tensor]:
        """The aggregated maps behind their 3x3 convolutions, (B, hidden, h, w) each, shallow to deep."""
        maps = check_maps(features, self.widths)
        streams: list[Tensor] = []
        total: Tensor | None = None
        for i in reversed(range(len(maps))):
            x = self.projects[i](self.norms[i](maps[i]))
            total = x if total is None else total + x
            streams.append(self.smooths[i](total))
        return streams[::-1]

    def forward(self, features: Maps) -> Tensor:
        """Maps (B, D_i, h, w) of one size to (B, E, 4h, 4w)."""
        sums = self.sums(features)
        self.handed.put(features, sums, self.training)
        streams = [head(x) for head, x in zip(self.heads, sums, strict=True)]
        large = [F.interpolate(x, scale_factor=4, mode="bilinear", align_corners=True) for x in streams]
        return torch.cat(large, dim=1)


class MlaSum(nn.Module):
    """One aggregated map of SETR-MLA, what its auxiliary heads stand on; it has no parameters of its own.

    Args:
        decoder: whose map it gives; a copy of the network refers to the copy of its decoder.
        index: which one, shallow to deep.
    """

    def __init__(self, decoder: SetrMla, index: int) -> None:
        super().__init__()
        # In a list, so that the parameters are registered once, under the decoder's name.
        self._decoder = [decoder]
        self.index, self.out = index, decoder.hidden

    def forward(self, features: Maps) -> Tensor:
        """Maps (B, D_i, h, w) to (B, hidden, h, w)."""
        decoder = self._decoder[0]
        found = decoder.handed.get(features)
        return (decoder.sums(features) if found is None else found)[self.index]


class MlaClassifier(Part):
    """The 3x3 convolution that classifies SETR-MLA's embedding.

    Args:
        width: E of the embedding.
        classes: C.
    """

    fields = ("width", "classes")

    def __init__(self, width: int, classes: int) -> None:
        super().__init__()
        self.width, self.classes = int(width), int(classes)
        self.conv = nn.Conv2d(self.width, self.classes, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, E, h, w) to logits (B, C, h, w)."""
        return self.conv(x)


class ResidualConvUnit(nn.Module):
    """x + conv(relu(conv(relu(x)))), 3x3 with bias and without normalisation.

    Args:
        width: channels.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width, width, 3, padding=1)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, E, h, w) to (B, E, h, w)."""
        return x + self.conv2(F.relu(self.conv1(F.relu(x))))


class Fusion(nn.Module):
    """DPT's fusion: x (+ unit1(side)), unit2, resize, 1x1 projection.

    Args:
        width: channels.
        side: it takes a second map.
        align_corners: of the bilinear interpolation.
    """

    def __init__(self, width: int, side: bool, align_corners: bool) -> None:
        super().__init__()
        self.unit1 = ResidualConvUnit(width) if side else None
        self.unit2 = ResidualConvUnit(width)
        self.out_conv = nn.Conv2d(width, width, 1)
        self.align_corners = align_corners

    def forward(self, x: Tensor, side: Tensor | None, size: tuple[int, int]) -> Tensor:
        """(B, E, h, w) and a side map of that shape to (B, E, *size)."""
        if self.unit1 is not None and side is not None:
            x = x + self.unit1(side)
        return F.interpolate(self.out_conv(self.unit2(x)), size, mode="bilinear", align_corners=self.align_corners)


class DPTDecoder(Part):
    """DPT as UniMatch V2 has it: four maps to strides x4, x2, x1 and x0.5 of the patch grid, fused coarse to fine.

    Args:
        widths: D_i of the four maps, shallow to deep.
        out_channels: widths of the four reassembled maps (`dpt_channels`).
        features: E, the width of the fusion.
        align_corners: of all interpolations. True as the authors have it; it shifts content by up to half a cell
            of the map it reads, since the transposed convolutions keep cells where they are; False does not.
    """

    fields = ("widths", "out_channels", "features", "align_corners")

    def __init__(
        self, widths: Sequence[int], out_channels: Sequence[int], features: int, align_corners: bool = True
    ) -> None:
        super().__init__()
        self.widths, self.out_channels = [int(width) for width in widths], [int(width) for width in out_channels]
        self.features, self.align_corners = int(features), bool(align_corners)
        if len(self.widths) != 4 or len(self.out_channels) != 4:
            raise ValueError(f"{len(self.widths)} widths and {len(self.out_channels)} out_channels, expected 4 of each")
        self.out = self.features
        a, b, _, d = self.out_channels
        self.projects = nn.ModuleList(nn.Conv2d(i, o, 1) for i, o in zip(self.widths, self.out_channels, strict=True))
        self.resize_layers = nn.ModuleList(
            [
                nn.ConvTranspose2d(a, a, 4, stride=4),
                nn.ConvTranspose2d(b, b, 2, stride=2),
                nn.Identity(),
                nn.Conv2d(d, d, 3, stride=2, padding=1),
            ]
        )
        self.layer_rn = nn.ModuleList(
            nn.Conv2d(width, self.features, 3, padding=1, bias=False) for width in self.out_channels
        )
        self.refine = nn.ModuleList(Fusion(self.features, i < 3, self.align_corners) for i in range(4))
        self.output = nn.Conv2d(self.features, self.features, 3, padding=1)

    def reassemble(self, features: Maps) -> list[Tensor]:
        """Maps (B, D_i, h, w) to four (B, E, ...) of sizes 4h, 2h, h and ceil(h / 2)."""
        maps = check_maps(features, self.widths)
        return [
            smooth(resize(project(x)))
            for x, project, resize, smooth in zip(maps, self.projects, self.resize_layers, self.layer_rn, strict=True)
        ]

    def forward(self, features: Maps) -> Tensor:
        """Maps (B, D_i, h, w) to (B, E, 8h, 8w), not negative."""
        levels = self.reassemble(features)
        h, w = levels[0].shape[-2:]
        path = self.refine[3](levels[3], None, levels[2].shape[-2:])
        path = self.refine[2](path, levels[2], levels[1].shape[-2:])
        path = self.refine[1](path, levels[1], (h, w))
        path = self.refine[0](path, levels[0], (2 * h, 2 * w))
        return F.relu(self.output(path))
