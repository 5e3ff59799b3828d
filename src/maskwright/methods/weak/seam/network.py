"""SEAM's network: a classifier that localises, and the pixel correlation module that refines its maps.

    image, two feature levels -> unit features f -> A = ReLU(f^T f), columns summing to one -> refined = maps A

Wang et al., Self-supervised Equivariant Attention Mechanism, CVPR 2020. The module sees maps and features detached: its
gradient reaches its own three convolutions and nothing else.

Legend: B batch, T tags, D width, E embedding width, (H, W) input size, (h, w) map size, n = h w.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from maskwright.models.backbones.dense import Backbone
from maskwright.models.networks.cam import CamNetwork, attention_levels, freeze_norm_weights, pool
from maskwright.ops.cam import background_power, keep_tagged, normalize_cam, suppress_non_maximal

EPS = 1e-5
"""Added to the sum that a column is divided by."""
ELEMENTS = 1 << 24
"""Entries of the affinity that are held at a time where no gradient is asked for: 64 MiB."""


def pixel_affinity(f: Tensor, columns: slice = slice(None)) -> Tensor:
    """A = ReLU(f^T f), each column divided by its sum.

    Args:
        f: (B, E, n), unit length over E.
        columns: which pixels' columns.

    Returns:
        (B, n, m), not negative; each column sums to 1 but for `EPS`.
    """
    a = torch.matmul(f.transpose(1, 2), f[:, :, columns]).relu()
    return a / (a.sum(1, keepdim=True) + EPS)


def correlate(f: Tensor, maps: Tensor, elements: int = ELEMENTS) -> Tensor:
    """Maps refined by the affinity of the pixels: each becomes the mean of the maps of pixels like it.

    Args:
        f: (B, E, n), unit length over E.
        maps: (B, C, n).
        elements: entries of the affinity at a time where no gradient is recorded; n^2 of them are never held then.

    Returns:
        (B, C, n); every value lies in the range of its map.
    """
    b, _, n = f.shape
    if torch.is_grad_enabled() and f.requires_grad:
        return torch.matmul(maps, pixel_affinity(f))
    width = columns_at_a_time(b, n, elements)
    parts = [torch.matmul(maps, pixel_affinity(f, slice(k, k + width))) for k in range(0, n, width)]
    return torch.cat(parts, dim=2)


def columns_at_a_time(b: int, n: int, elements: int = ELEMENTS) -> int:
    """How many columns of b affinities of n pixels are held at a time: as many as fit, at least one."""
    return max(1, elements // max(1, b * n))


class PixelCorrelation(nn.Module):
    """The pixel correlation module: self-attention without value, query or residual, and ReLU for the softmax.

    Args:
        fine: width of the finer feature level (conv4 in the paper).
        coarse: width of the coarser one (conv5).
        hidden_fine: channels that it contributes.
        hidden_coarse: channels of the other.
    """

    def __init__(self, fine: int, coarse: int, hidden_fine: int = 64, hidden_coarse: int = 128) -> None:
        super().__init__()
        self.fine, self.coarse = int(fine), int(coarse)
        self.hidden_fine, self.hidden_coarse = int(hidden_fine), int(hidden_coarse)
        joined = self.hidden_fine + self.hidden_coarse
        self.f3 = nn.Conv2d(self.fine, self.hidden_fine, 1, bias=False)
        self.f4 = nn.Conv2d(self.coarse, self.hidden_coarse, 1, bias=False)
        self.f9 = nn.Conv2d(3 + joined, joined, 1, bias=False)
        nn.init.kaiming_normal_(self.f3.weight)
        nn.init.kaiming_normal_(self.f4.weight)
        nn.init.xavier_uniform_(self.f9.weight, gain=4)

    def embed(self, x: Tensor, fine: Tensor, coarse: Tensor, size: tuple[int, int]) -> Tensor:
        """Unit features of every pixel of the maps.

        Args:
            x: (B, 3, H, W), the normalised image.
            fine: (B, D, h', w').
            coarse: (B, D', h'', w'').
            size: (h, w) of the maps.

        Returns:
            float32 (B, E, h w).
        """
        # Sampled as by the authors, corner to corner, and not averaged: the module sees single pixels.
        seen = F.interpolate(x.detach().float(), size, mode="bilinear", align_corners=True)
        f3 = _resized(self.f3(fine.detach().float()).relu(), size)
        f4 = _resized(self.f4(coarse.detach().float()).relu(), size)
        return F.normalize(self.f9(torch.cat([seen, f3, f4], dim=1)).flatten(2), dim=1)

    def forward(self, x: Tensor, fine: Tensor, coarse: Tensor, maps: Tensor) -> Tensor:
        """Refines maps (B, C, h, w), detached; the other arguments as for `embed`."""
        # Cosines of hundreds of pixels are summed: bf16 would lose the small ones.
        with torch.autocast(x.device.type, enabled=False):
            size = (int(maps.shape[-2]), int(maps.shape[-1]))
            f = self.embed(x, fine, coarse, size)
            return correlate(f, maps.detach().float().flatten(2)).unflatten(2, size)


def _resized(x: Tensor, size: tuple[int, int]) -> Tensor:
    if tuple(x.shape[-2:]) == size:
        return x
    return F.interpolate(x, size, mode="bilinear", align_corners=False)


def attention_input(cams: Tensor, tags: Tensor | None = None) -> Tensor:
    """What the module refines: each map by its maximum, the background as what they leave, one class a pixel.

    Args:
        cams: (B, T, h, w), signed.
        tags: (B, T); maps of other classes are removed first.

    Returns:
        (B, 1 + T, h, w) in [0, 1], no gradient; background and largest class sum to 1.
    """
    with torch.no_grad():
        maps = normalize_cam(cams.float(), "max")
        if tags is not None:
            maps = keep_tagged(maps, tags.to(maps.device))
        return torch.cat([background_power(maps), suppress_non_maximal(maps)], dim=1)


class SeamOutput(NamedTuple):
    """What the network makes of images.

    Attributes:
        features: (B, D, h, w), what the classifier sees.
        cams: (B, T, h, w), signed logits of every pixel.
        scores: (B, T), their means.
        refined: (B, 1 + T, h, w) in [0, 1], background first: cam_rv of the paper.
    """

    features: Tensor
    cams: Tensor
    scores: Tensor
    refined: Tensor


class SeamNetwork(CamNetwork):
    """A `CamNetwork` with the pixel correlation module on two of its feature levels; arguments as there.

    Scales and shifts of batch norms are not trained.
    """

    def __init__(
        self,
        backbone: Backbone,
        tags: int,
        output_stride: int | None = 8,
        dropout: float = 0.0,
        frozen_stages: int = 0,
    ) -> None:
        super().__init__(backbone, tags, output_stride, dropout, frozen_stages)
        freeze_norm_weights(self)
        self.attended = attention_levels(self.backbone)
        self.pcm = PixelCorrelation(*(self.backbone.widths[k] for k in self.attended))

    def forward(self, x: Tensor, tags: Tensor | None = None) -> SeamOutput:  # type: ignore[override]
        """Images (B, 3, H, W), and their tags (B, T) where known, to maps and refined maps."""
        (fine, coarse), features = self.levels(x, self.attended)
        cams = self.cams(features)
        refined = self.pcm(x, fine, coarse, attention_input(cams, tags))
        return SeamOutput(features, cams, pool(cams), refined)

    def groups(self, lr: float, encoder_lr: float, weight_decay: float) -> list[dict[str, Any]]:
        """Those of the classifier, and the module at `lr`."""
        found = super().groups(lr, encoder_lr, weight_decay)
        return [*found, {"params": list(self.pcm.parameters()), "lr": lr, "weight_decay": weight_decay}]
