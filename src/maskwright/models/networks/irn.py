"""Networks that tell whether two nearby pixels are of one thing: IRN's boundaries on a frozen backbone, and
AffinityNet's features on a trained one.

Ahn, Cho and Kwak, Inter-pixel Relations (IRN), CVPR 2019; Ahn and Kwak, AffinityNet (PSA), CVPR 2018.

IRN's second branch, a displacement field that separates instances, is left out: it shares nothing with the boundaries,
and no step of the walk reads it.

Legend: B batch, S feature levels, D width, (H, W) input size, (h, w) grid.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from maskwright.models.backbones.dense import Backbone
from maskwright.models.networks.cam import attention_levels, copy_backbone, freeze_norm_weights, freeze_stages

GRID = 4
"""Input pixels a cell of the boundary map."""
VARIANTS = ("irn", "psa")


def group_norm(width: int, groups: int) -> nn.GroupNorm:
    """Group normalisation with as many groups as asked, or the most below that divide the width."""
    return nn.GroupNorm(math.gcd(width, groups), width)


class LevelHead(nn.Module):
    """Feature levels to one map: each level through 1x1 convolution and group norm to a common grid, then joined.

    Args:
        widths: D of each level.
        hidden: channels that each contributes.
        groups: of their normalisation.
    """

    def __init__(self, widths: Sequence[int], hidden: int = 32, groups: int = 4) -> None:
        super().__init__()
        self.widths = [int(w) for w in widths]
        self.hidden, self.groups = int(hidden), int(groups)
        self.reduce = nn.ModuleList(
            nn.Sequential(nn.Conv2d(w, self.hidden, 1, bias=False), group_norm(self.hidden, self.groups))
            for w in self.widths
        )
        self.last = nn.Conv2d(self.hidden * len(self.widths), 1, 1)

    def forward(self, levels: Sequence[Tensor], size: tuple[int, int]) -> Tensor:
        """Maps (B, D_s, h_s, w_s) to (B, 1, h, w)."""
        maps = [_at(reduce(level), size).relu() for reduce, level in zip(self.reduce, levels)]
        return self.last(torch.cat(maps, dim=1))


def _at(x: Tensor, size: tuple[int, int]) -> Tensor:
    """Bilinear; a level that is finer than the grid is averaged, not sampled."""
    if tuple(x.shape[-2:]) == size:
        return x
    return F.interpolate(x.float(), size, mode="bilinear", align_corners=False, antialias=x.shape[-2] > size[0])


class BoundaryNet(nn.Module):
    """IRN: a boundary branch on all stages of a frozen backbone.

    As in the original the first level of a ResNet is what its max-pool gives, and the stage that would be coarser than
    `output_stride` keeps its resolution by its stride alone, without dilation.

    Args:
        backbone: pretrained; it is copied, and neither its weights nor its statistics change.
        output_stride: of the copy, as for `models.networks.cam.copy_backbone`.
    """

    def __init__(self, backbone: Backbone, output_stride: int | None = 16) -> None:
        super().__init__()
        self.backbone = copy_backbone(backbone, output_stride).requires_grad_(False).eval()
        _take_dilation(self.backbone.model, backbone.model)
        self.layers = list(self.backbone.stage_layers)
        self.edge = LevelHead([self.backbone.widths[k] for k in self.layers], 32, 4)

    @property
    def stride(self) -> int:
        """Input pixels a cell of the grid."""
        return GRID

    @property
    def multiple_of(self) -> int:
        """Input sides should be multiples of this."""
        return max(GRID, *(self.backbone.strides[k] for k in self.layers))

    def train(self, mode: bool = True) -> Self:
        """Training mode of the branches; the backbone stays in evaluation."""
        super().train(mode)
        self.backbone.eval()
        return self

    def freeze_norm(self) -> None:
        """Nothing: the backbone's statistics are fixed, the branches have none."""

    def groups(self, lr: float, encoder_lr: float, weight_decay: float) -> list[dict[str, Any]]:
        """The boundary branch at `lr`."""
        return _groups(self.edge, lr, weight_decay)

    @torch.no_grad()
    def levels(self, x: Tensor) -> list[Tensor]:
        """Images (B, 3, H, W) to the maps (B, D_s, h_s, w_s) that boundaries are read from."""
        levels = self.backbone.dense_many(x, self.layers)
        pool = dict(self.backbone.model.named_children()).get("maxpool")  # of timm's ResNets, behind the stem
        return levels if pool is None else [pool(levels[0]), *levels[1:]]

    def forward(self, x: Tensor) -> Tensor:
        """Images (B, 3, H, W) to boundary logits (B, h, w) on a grid of every fourth pixel."""
        size = (-(-x.shape[-2] // GRID), -(-x.shape[-1] // GRID))
        return self.edge(self.levels(x), size)[:, 0]

    @torch.no_grad()
    def boundaries(self, x: Tensor) -> Tensor:
        """Boundary probability (h, w) of one image (3, H, W), logits averaged with those of its mirror image."""
        edge = self(torch.stack([x, x.flip(-1)])).float()
        return ((edge[0] + edge[1].flip(-1)) / 2).sigmoid()


def _take_dilation(model: nn.Module, source: nn.Module) -> None:
    """Gives the convolutions of a dilated copy the dilation of the network that it is a copy of; strides stay."""
    for conv, original in zip(model.modules(), source.modules(), strict=True):
        if isinstance(conv, nn.Conv2d) and isinstance(original, nn.Conv2d) and conv.dilation != original.dilation:
            conv.dilation, conv.padding = original.dilation, original.padding


class AffinityNet(nn.Module):
    """AffinityNet: three feature levels, each through 1x1 convolution and ELU, joined by another.

    Args:
        backbone: pretrained; it is copied and trained.
        output_stride: dilation of the copy.
        frozen_stages: the stem and so many stages get no gradient, as for `freeze_stages`; scales and shifts of batch
            norms get none anywhere.
        widths: channels that the levels contribute; their sum is D.
    """

    def __init__(
        self,
        backbone: Backbone,
        output_stride: int | None = 16,
        frozen_stages: int = 0,
        widths: tuple[int, int, int] = (64, 128, 256),
    ) -> None:
        super().__init__()
        self.backbone = copy_backbone(backbone, output_stride)
        freeze_stages(self.backbone, frozen_stages)
        freeze_norm_weights(self.backbone)
        self.layers = [*attention_levels(self.backbone), self.backbone.layers - 1]
        reduce = [nn.Conv2d(self.backbone.widths[k], w, 1, bias=False) for k, w in zip(self.layers, widths)]
        self.reduce = nn.ModuleList(reduce)
        self.join = nn.Conv2d(sum(widths), sum(widths), 1, bias=False)
        for conv in reduce:
            nn.init.kaiming_normal_(conv.weight)
        nn.init.xavier_uniform_(self.join.weight, gain=4)
        for name in ("conv_head", "bn2"):  # unused here, and would count as parameters without gradient
            unused = getattr(self.backbone.model, name, None)
            if isinstance(unused, nn.Module):
                unused.requires_grad_(False)

    @property
    def stride(self) -> int:
        """Input pixels a cell of the features."""
        return min(self.backbone.strides[k] for k in self.layers)

    @property
    def multiple_of(self) -> int:
        """Input sides should be multiples of this."""
        return max(self.backbone.strides[k] for k in self.layers)

    def freeze_norm(self) -> None:
        """Batch norms use the statistics that they came with."""
        for m in self.modules():
            if isinstance(m, nn.modules.batchnorm._BatchNorm):
                m.eval()

    def groups(self, lr: float, encoder_lr: float, weight_decay: float) -> list[dict[str, Any]]:
        """What is new at `lr`, the backbone at `encoder_lr * lr`; vectors not decayed."""
        found = itertools.chain.from_iterable(_groups(m, lr, weight_decay) for m in (self.reduce, self.join))
        return [*found, *_groups(self.backbone, lr * encoder_lr, weight_decay)]

    def forward(self, x: Tensor) -> Tensor:
        """Images (B, 3, H, W) to features (B, D, h, w) at the finest level's size."""
        maps = self.backbone.dense_many(x, self.layers)
        size = max(((int(m.shape[-2]), int(m.shape[-1])) for m in maps), key=lambda s: s[0] * s[1])
        reduced = [_at(F.elu(conv(m)), size) for conv, m in zip(self.reduce, maps)]
        return F.elu(self.join(torch.cat(reduced, dim=1)))


def _groups(module: nn.Module, lr: float, weight_decay: float) -> list[dict[str, Any]]:
    """Parameters with a gradient at one rate, matrices and kernels decayed, vectors not."""
    trained = [p for p in module.parameters() if p.requires_grad]
    parts = (([p for p in trained if p.ndim > 1], weight_decay), ([p for p in trained if p.ndim <= 1], 0.0))
    return [{"params": ps, "lr": lr, "weight_decay": decay} for ps, decay in parts if ps]
