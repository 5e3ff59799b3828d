"""Segmentation heads for vision transformers: Segmenter here, SETR and DPT of `vit_decoders`, and all by name.

Segmenter (Strudel et al., ICCV 2021, https://arxiv.org/abs/2105.05633): a linear layer a patch, or a mask
transformer in which class tokens and patches attend to each other.

Every network is three parts, as `Segmenter` wants them: an encoder that gives a list of maps, one a block, shallow
to deep (`Backbone.dense_many`); a decoder from that list to one embedding; a classifier from embedding to logits.
Whatever is done to the maps between encoder and decoder (each multiplied by one mask of channels, say) needs no hook
of its own. `vit_head` puts decoder, classifier and the blocks that they read together.

Deviates: the mask transformer is the classifier, and the decoder only its linear projection, so that the embedding
is a plain map that no class enters. Logits stay at the decoder's resolution.

Legend: B batch, D_i width of map i, E embedding width, C classes, N patches, (h, w) patch grid.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from maskwright.errors import MaskwrightError, unknown
from maskwright.models.networks.vit_decoders import (
    DPTDecoder,
    Maps,
    MlaClassifier,
    MlaSum,
    SetrMla,
    SetrNaive,
    SetrPup,
    dpt_channels,
    pick_map,
)
from maskwright.models.parts.heads import MAX_DEPTH, LinearClassifier, Part


def default_blocks(depth: int) -> list[int]:
    """The four blocks of a transformer that DPT and UniMatch V2 read.

    [2, 5, 8, 11] of 12, [4, 11, 17, 23] of 24, [9, 19, 29, 39] of 40; evenly spaced, the last among them, for every
    other depth (a block comes twice where there are fewer than four).

    Raises:
        ValueError: depth below 1.
    """
    if depth < 1:
        raise ValueError(f"depth is {depth}, expected at least 1")
    if depth == 24:
        return [4, 11, 17, 23]
    return [-(-(i + 1) * depth // 4) - 1 for i in range(4)]


def setr_blocks(depth: int) -> list[int]:
    """The blocks that SETR supervises by auxiliary heads: two, three, four and five fifths of the depth
    ([9, 14, 19, 23] of 24, as the authors have it).

    Raises:
        ValueError: depth below 1.
    """
    if depth < 1:
        raise ValueError(f"depth is {depth}, expected at least 1")
    return [-(-fifths * depth // 5) - 1 for fifths in (2, 3, 4, 5)]


class LastMap(Part):
    """One map of the list as it is; Segmenter's linear head reads the last.

    Args:
        width: D of that map.
        index: which one, negative from the end.
    """

    fields = ("width", "index")

    def __init__(self, width: int, index: int = -1) -> None:
        super().__init__()
        self.width, self.index = int(width), int(index)
        self.out = self.width

    def forward(self, features: Maps) -> Tensor:
        """Maps (B, D_i, h, w) to (B, D, h, w)."""
        return pick_map(features, self.index, self.width)


class SegmenterLinear(Part):
    """Segmenter's linear head: one linear layer a patch.

    Args:
        width: E of the embedding.
        classes: C.
    """

    fields = ("width", "classes")

    def __init__(self, width: int, classes: int) -> None:
        super().__init__()
        self.width, self.classes = int(width), int(classes)
        self.head = nn.Linear(self.width, self.classes)
        _truncated(self.head)

    def forward(self, x: Tensor) -> Tensor:
        """(B, E, h, w) to logits (B, C, h, w)."""
        return F.conv2d(x, self.head.weight[..., None, None], self.head.bias)


class SegmenterDecoder(Part):
    """The projection that stands before Segmenter's mask transformer: one linear layer a patch.

    Args:
        width: D of the map that is read.
        out: E, the mask transformer's width.
        index: which map of the list, negative from the end.
    """

    fields = ("width", "out", "index")

    def __init__(self, width: int, out: int, index: int = -1) -> None:
        super().__init__()
        self.width, self.out, self.index = int(width), int(out), int(index)
        self.proj_dec = nn.Linear(self.width, self.out)
        _truncated(self.proj_dec)

    def forward(self, features: Maps) -> Tensor:
        """Maps (B, D_i, h, w) to (B, E, h, w)."""
        x = pick_map(features, self.index, self.width)
        return F.conv2d(x, self.proj_dec.weight[..., None, None], self.proj_dec.bias)


class SegmenterMask(Part):
    """Segmenter's mask transformer: C class tokens join the patches, and a patch's logits are its cosines to them.

    tokens = LN(blocks([patches, class tokens])); m = normalize(patches P) . normalize(class tokens Q);
    logits = LN over the classes of m. It has no position embedding of its own, so any grid fits.

    Args:
        width: E of the embedding, the transformer's width.
        classes: C, at least 2 (normalisation over one class would give a constant).
        layers: transformer blocks.
        heads: attention heads; width / 64 as the authors if None.
        dropout: probability within attention and MLP in training; the authors' 0.1.
    """

    fields = ("width", "classes", "layers", "heads", "dropout")

    def __init__(
        self, width: int, classes: int, layers: int = 2, heads: int | None = None, dropout: float = 0.1
    ) -> None:
        super().__init__()
        self.width, self.classes, self.layers = int(width), int(classes), int(layers)
        self.heads = max(1, self.width // 64) if heads is None else int(heads)
        self.dropout = float(dropout)
        if self.classes < 2:
            raise ValueError(f"{self.classes} classes, expected at least 2")
        if not 1 <= self.layers <= MAX_DEPTH:
            raise ValueError(f"{self.layers} layers, expected 1 to {MAX_DEPTH}")
        if self.heads < 1 or self.width % self.heads:
            raise ValueError(f"{self.heads} heads do not divide the width {self.width}")
        self.cls_emb = nn.Parameter(torch.empty(1, self.classes, self.width))
        self.blocks = nn.ModuleList(
            Block(
                self.width,
                self.heads,
                qkv_bias=True,
                proj_drop=self.dropout,
                attn_drop=self.dropout,
                norm_layer=nn.LayerNorm,
            )
            for _ in range(self.layers)
        )
        self.decoder_norm = nn.LayerNorm(self.width)
        self.proj_patch = nn.Parameter(self.width**-0.5 * torch.randn(self.width, self.width))
        self.proj_classes = nn.Parameter(self.width**-0.5 * torch.randn(self.width, self.width))
        self.mask_norm = nn.LayerNorm(self.classes)
        for module in self.blocks.modules():
            if isinstance(module, nn.Linear):
                _truncated(module)
        nn.init.trunc_normal_(self.cls_emb, std=0.02)

    def cosines(self, x: Tensor) -> Tensor:
        """(B, E, h, w) to cosines in [-1, 1] of each patch to each class token, (B, N, C), float32."""
        tokens = x.flatten(2).transpose(1, 2)  # (B, N, E)
        count = tokens.shape[1]
        tokens = torch.cat([tokens, self.cls_emb.expand(len(x), -1, -1).to(tokens.dtype)], dim=1)  # (B, N + C, E)
        for block in self.blocks:
            tokens = block(tokens)
        tokens = self.decoder_norm(tokens)
        patches, classes = tokens[:, :count] @ self.proj_patch, tokens[:, count:] @ self.proj_classes
        # The normalisation over classes divides by the spread of the cosines, which can be smaller than the
        # rounding of bf16.
        device = x.device.type
        with torch.autocast(device if torch.amp.is_autocast_available(device) else "cpu", enabled=False):
            return F.normalize(patches.float(), dim=-1) @ F.normalize(classes.float(), dim=-1).transpose(1, 2)

    def forward(self, x: Tensor) -> Tensor:
        """(B, E, h, w) to logits (B, C, h, w)."""
        masks = self.mask_norm(self.cosines(x).to(self.mask_norm.weight.dtype))
        return masks.transpose(1, 2).unflatten(2, x.shape[-2:])


class ViTHead(NamedTuple):
    """Decoder and classifier for a transformer, and the blocks whose maps they read.

    Attributes:
        layers: blocks, shallow to deep, for `Backbone.dense_many`.
        decoder: maps to embedding.
        classifier: embedding to logits.
        auxiliary: decoder and classifier of each auxiliary head, on the same list of maps; SETR weighs the loss of
            each 0.4 and drops them after training.
    """

    layers: list[int]
    decoder: Part
    classifier: Part
    auxiliary: list[tuple[nn.Module, Part]]


def _segmenter_linear(widths: Sequence[int], classes: int) -> ViTHead:
    return ViTHead([len(widths) - 1], LastMap(widths[-1]), SegmenterLinear(widths[-1], classes), [])


def _segmenter_mask(widths: Sequence[int], classes: int, model: int | None = None, **options: Any) -> ViTHead:
    decoder = SegmenterDecoder(widths[-1], widths[-1] if model is None else model)
    return ViTHead([len(widths) - 1], decoder, SegmenterMask(decoder.out, classes, **options), [])


def _setr(kind: type[SetrNaive] | type[SetrPup]) -> Callable[..., ViTHead]:
    # Naive has auxiliary heads of 1x1 on three blocks before the last, PUP of 3x3 on these and the last.
    sides, kernel = (3, 1) if kind is SetrNaive else (4, 3)

    def build(widths: Sequence[int], classes: int, auxiliary: bool = False, **options: Any) -> ViTHead:
        layers = setr_blocks(len(widths)) if auxiliary else [len(widths) - 1]
        heads: list[tuple[nn.Module, Part]] = []
        for i, layer in enumerate(layers[:sides] if auxiliary else []):
            side = SetrNaive(widths[layer], kernel=kernel, index=i)
            heads.append((side, LinearClassifier(side.out, classes)))
        decoder = kind(widths[-1], **options)
        return ViTHead(layers, decoder, LinearClassifier(decoder.out, classes), heads)

    return build


def _setr_mla(widths: Sequence[int], classes: int, auxiliary: bool = False, **options: Any) -> ViTHead:
    depth = len(widths)
    layers = [-(-(i + 1) * depth // 4) - 1 for i in range(4)]
    decoder = SetrMla([widths[layer] for layer in layers], **options)
    sides = [MlaSum(decoder, i) for i in range(len(layers) if auxiliary else 0)]
    heads: list[tuple[nn.Module, Part]] = [(side, LinearClassifier(decoder.hidden, classes)) for side in sides]
    return ViTHead(layers, decoder, MlaClassifier(decoder.out, classes), heads)


def _dpt(widths: Sequence[int], classes: int, **options: Any) -> ViTHead:
    layers = default_blocks(len(widths))
    channels, features = dpt_channels(widths[-1])
    options = {"out_channels": channels, "features": features, **options}
    decoder = DPTDecoder([widths[layer] for layer in layers], **options)
    return ViTHead(layers, decoder, LinearClassifier(decoder.out, classes), [])


VIT_HEADS: dict[str, Callable[..., ViTHead]] = {
    "segmenter_linear": _segmenter_linear,
    "segmenter_mask": _segmenter_mask,
    "setr_naive": _setr(SetrNaive),
    "setr_pup": _setr(SetrPup),
    "setr_mla": _setr_mla,
    "dpt": _dpt,
}


def vit_head(name: str, widths: Sequence[int], classes: int, **options: Any) -> ViTHead:
    """Builds a head by its name, with the published widths for the transformer at hand.

    Args:
        name: a key of `VIT_HEADS`.
        widths: D of each block, `Backbone.widths`.
        classes: C.
        options: further arguments of the decoder (of the classifier for "segmenter_mask", and its width `model`);
            `auxiliary=True` for the three of SETR adds its auxiliary heads.

    Raises:
        MaskwrightError: unknown name, or an option that the head does not have or that is out of range.
        ValueError: the transformer has no block.
    """
    if name not in VIT_HEADS:
        raise unknown("head", name, VIT_HEADS)
    if not widths:
        raise ValueError("no widths, expected one a block")
    try:
        return VIT_HEADS[name](widths, classes, **options)
    except (TypeError, ValueError, RuntimeError) as error:
        raise MaskwrightError(
            f"head {name} for {classes} classes with {options or 'no options'} cannot be built: {error}"
        ) from error


def _truncated(linear: nn.Linear) -> None:
    nn.init.trunc_normal_(linear.weight, std=0.02)
    if linear.bias is not None:
        nn.init.zeros_(linear.bias)
