"""OCR: object-contextual representations. Yuan et al., ECCV 2020, https://arxiv.org/abs/1909.11065

A first, supervised guess of the classes makes one soft region a class; the pixels of a region, weighed by how surely
they belong to it, are averaged into the region's vector; every pixel then attends to the C vectors and gets the mix
joined to its own features. Context is thus what objects there are, not where.

The first guess is part of the decoder, since prediction needs it, and is supervised in training (`OCRAux`, weight 0.4).

On HRNet maps are enlarged with aligned corners, as by the authors (`hrnet`). On other encoders, as in the paper's
variant on a dilated ResNet, pixels are read from the last map and regions from the one before.

Deviates: the logits themselves are enlarged with half-pixel centres, as those of all networks here.

Legend: B batch, D pixel width, C classes, K key width, N = h w pixels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from maskwright.models.networks.blocks import BatchNorm2d, Handed, initialise, join
from maskwright.models.parts.part import Part


def gather_regions(pixels: Tensor, regions: Tensor) -> Tensor:
    """f_k = sum_i m_ki x_i, with m_k = softmax over all pixels i of the region's logits.

    Args:
        pixels: x (B, D, h, w).
        regions: logits (B, C, h, w).

    Returns:
        (B, D, C, 1), one vector a class.
    """
    weight = regions.flatten(2).softmax(dim=2)  # (B, C, N)
    vectors = weight @ pixels.flatten(2).transpose(1, 2)  # (B, C, D)
    return vectors.transpose(1, 2).unsqueeze(3)


def object_attention(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """y_i = sum_k softmax_k(q_i . k_k / sqrt(K)) v_k: each pixel's mix of the regions.

    Args:
        query: of pixels, (B, K, h, w).
        key: of regions, (B, K, C, 1).
        value: of regions, (B, K, C, 1).

    Returns:
        (B, K, h, w).
    """
    q = query.flatten(2).transpose(1, 2)  # (B, N, K)
    k, v = key.flatten(2).transpose(1, 2), value.flatten(2).transpose(1, 2)  # (B, C, K)
    if torch.compiler.is_exporting():  # ONNX's attention has heads; in training one head more would round differently
        y = F.scaled_dot_product_attention(q[:, None], k[:, None], v[:, None])[:, 0]
    else:
        y = F.scaled_dot_product_attention(q, k, v)
    return y.transpose(1, 2).unflatten(2, query.shape[-2:])


def _norm_relu(width: int) -> nn.Sequential:
    return nn.Sequential(BatchNorm2d(width), nn.ReLU(inplace=True))


class _ObjectContext(nn.Module):
    """Projections of pixels and regions to keys, attention, and the way back to D."""

    def __init__(self, width: int, key: int) -> None:
        super().__init__()
        self.f_pixel = _two_layers(width, key)
        self.f_object = _two_layers(width, key)
        self.f_down = nn.Sequential(nn.Conv2d(width, key, 1, bias=False), _norm_relu(key))
        self.f_up = nn.Sequential(nn.Conv2d(key, width, 1, bias=False), _norm_relu(width))

    def forward(self, pixels: Tensor, vectors: Tensor) -> Tensor:
        return self.f_up(object_attention(self.f_pixel(pixels), self.f_object(vectors), self.f_down(vectors)))


def _two_layers(width: int, key: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(width, key, 1, bias=False), _norm_relu(key), nn.Conv2d(key, key, 1, bias=False), _norm_relu(key)
    )


class OCRDecoder(Part):
    """From feature maps to pixels that know their objects; modules are named as in the official checkpoints.

    Args:
        widths: D_i of each feature map.
        pixels: places of the maps that pixels are read from, joined.
        regions: places of the maps that the first guess is made from, joined.
        classes: C.
        mid: D of the pixels and of the embedding, 512 in the paper.
        key: K, 256 in the paper.
        region_kernel: kernel of the first guess's convolution, 1 on HRNet, 3 on a dilated ResNet.
        region_width: its width, or None for that of what it reads.
        dropout: probability of a channel of the embedding to be dropped in training.
        aligned: whether maps that are joined are enlarged with aligned corners.
    """

    fields = (
        "widths", "pixels", "regions", "classes", "mid", "key", "region_kernel", "region_width", "dropout", "aligned"
    )  # fmt: skip

    def __init__(
        self,
        widths: Sequence[int],
        pixels: Sequence[int],
        regions: Sequence[int],
        classes: int,
        mid: int = 512,
        key: int = 256,
        region_kernel: int = 1,
        region_width: int | None = None,
        dropout: float = 0.05,
        aligned: bool = False,
    ) -> None:
        super().__init__()
        self.aligned = bool(aligned)
        if region_kernel not in (1, 3):
            raise ValueError(f"region_kernel is {region_kernel}, expected 1 or 3")
        self.widths, self.pixels, self.regions = list(widths), list(pixels), list(regions)
        self.classes, self.mid, self.key = int(classes), int(mid), int(key)
        self.region_kernel, self.region_width, self.dropout = region_kernel, region_width, float(dropout)
        read = sum(self.widths[i] for i in self.pixels)
        guess = sum(self.widths[i] for i in self.regions)
        hidden = guess if region_width is None else region_width
        self.conv3x3_ocr = nn.Sequential(
            nn.Conv2d(read, self.mid, 3, padding=1), BatchNorm2d(self.mid), nn.ReLU(inplace=True)
        )
        self.aux_head = nn.Sequential(
            nn.Conv2d(guess, hidden, region_kernel, padding=region_kernel // 2),
            BatchNorm2d(hidden),
            nn.ReLU(inplace=True),
            nn.Conv2d(hidden, self.classes, 1),
        )
        self.object_context_block = _ObjectContext(self.mid, self.key)
        self.conv_bn_dropout = nn.Sequential(
            nn.Conv2d(2 * self.mid, self.mid, 1, bias=False), _norm_relu(self.mid), nn.Dropout2d(self.dropout)
        )
        self.width = self.mid
        self.handed = Handed()
        initialise(self)

    @classmethod
    def from_spec(cls, spec: Mapping[str, Any]) -> Self:
        """As of `Part`; a bundle that does not say was trained with half-pixel centres."""
        return super().from_spec({"aligned": False, **spec})

    def region_logits(self, features: Sequence[Tensor]) -> Tensor:
        """Feature maps to the first guess, logits (B, C, h, w)."""
        return self.aux_head(join([features[i] for i in self.regions], self.aligned))

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        """Feature maps to (B, E, h, w)."""
        pixels = self.conv3x3_ocr(join([features[i] for i in self.pixels], self.aligned))
        regions = self.region_logits(features)
        self.handed.put(features, regions, self.training)
        if regions.shape[-2:] != pixels.shape[-2:]:
            regions = F.interpolate(regions, pixels.shape[-2:], mode="bilinear", align_corners=False)
        context = self.object_context_block(pixels, gather_regions(pixels, regions))
        return self.conv_bn_dropout(torch.cat([context, pixels], dim=1))


class OCRAux(nn.Module):
    """The decoder's first guess as an auxiliary head; it has no parameters of its own.

    Args:
        decoder: whose guess it gives; a copy of the network refers to the copy of its decoder.
    """

    def __init__(self, decoder: OCRDecoder) -> None:
        super().__init__()
        # In a list, so that the parameters are registered once, under the decoder's name.
        self._decoder = [decoder]
        self.classes = decoder.classes

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        """Feature maps to logits (B, C, h, w)."""
        decoder = self._decoder[0]
        found = decoder.handed.get(features)
        return decoder.region_logits(features) if found is None else found
