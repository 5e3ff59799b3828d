"""ToCo's network: a vision transformer with a classifier on its last tokens, one on earlier tokens, and a decoder.

    tokens of the last block -> classifier = CAM,  the maximum over the tokens -> scores
    tokens of an earlier one -> auxiliary classifier = auxiliary CAM, scores
    tokens of the last block -> LargeFOV -> segmentation logits

Ru et al., Token Contrast for Weakly-Supervised Semantic Segmentation, CVPR 2023, https://arxiv.org/abs/2303.01267.
Encoder, decoder and its classifier are parts of a segmenter, so that the segmentation branch is saved like one.

Legend: B batch, D width, T tags, C classes, E projected width, (H, W) input size, (h, w) patch grid.
"""

from __future__ import annotations

import copy
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from maskwright.data.masking.classes import ClassTable
from maskwright.errors import MaskwrightError
from maskwright.models.backbones.dense import Backbone
from maskwright.models.backbones.vit import ViTBackbone
from maskwright.models.networks.cam import CamNetwork
from maskwright.models.parts.heads import LinearClassifier
from maskwright.models.parts.large_fov import TokenLargeFOV
from maskwright.models.preprocess import Preprocess
from maskwright.models.segmenter import Segmenter
from maskwright.ops.cam import cam


class Projector(nn.Module):
    """DINO's head: an MLP with GELU to a bottleneck of unit length, then a layer whose rows have unit length.

    Args:
        width: D of class tokens.
        hidden: width of the MLP, 2048 in the paper.
        bottleneck: 256 in the paper.
        out: E, 1024 in the paper.
    """

    def __init__(self, width: int, hidden: int = 2048, bottleneck: int = 256, out: int = 1024) -> None:
        super().__init__()
        self.mlp = nn.Sequential(
            nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, hidden), nn.GELU(), nn.Linear(hidden, bottleneck)
        )
        self.last = nn.Linear(bottleneck, out, bias=False)
        for layer in self.modules():
            if isinstance(layer, nn.Linear):
                nn.init.trunc_normal_(layer.weight, std=0.02)
                if layer.bias is not None:
                    nn.init.zeros_(layer.bias)

    def forward(self, vectors: Tensor) -> Tensor:
        """(..., D) to (..., E)."""
        z = F.normalize(self.mlp(vectors), dim=-1)
        return F.linear(z, F.normalize(self.last.weight, dim=-1))


class TocoOutput(NamedTuple):
    """What the network makes of images.

    Attributes:
        features: (B, D, h, w), tokens of the last block.
        vectors: (B, D), class tokens (means of the patch tokens where there is none).
        cams: (B, T, h, w), signed.
        scores: (B, T), logits of the image's tags.
        cams_aux: (B, T, h, w) of the earlier block.
        scores_aux: (B, T) of the earlier block.
    """

    features: Tensor
    vectors: Tensor
    cams: Tensor
    scores: Tensor
    cams_aux: Tensor
    scores_aux: Tensor


class TocoNetwork(CamNetwork):
    """Two classifiers and a segmentation branch on one vision transformer.

    Args:
        backbone: a pretrained vision transformer; it is copied.
        tags: T.
        classes: C of the segmentation branch.
        aux_layer: block of the auxiliary classifier, negative from the end.
        hidden: width of the decoder.
        dilation: of the decoder.
        dropout: chance of a channel of the pooled tokens to be dropped in training.
        frozen_stages: the stem and so many blocks get no gradient.

    Raises:
        MaskwrightError: a convolutional backbone, or a block that there is not.
        ValueError: no tags.
    """

    def __init__(
        self,
        backbone: Backbone,
        tags: int,
        classes: int,
        *,
        aux_layer: int = -3,
        hidden: int = 512,
        dilation: int = 5,
        dropout: float = 0.0,
        frozen_stages: int = 0,
    ) -> None:
        if not isinstance(backbone, ViTBackbone):
            raise MaskwrightError(
                f"the convolutional backbone {backbone.name}, which has no tokens to contrast",
                "a vision transformer",
                "give --backbone dinov2_small or dino_small16",
            )
        if not -backbone.layers <= aux_layer < backbone.layers - 1 or aux_layer == -1:
            raise MaskwrightError(
                f"aux_layer={aux_layer} of {backbone.name} with {backbone.layers} blocks",
                f"a block before the last: {-backbone.layers} to -2, or 0 to {backbone.layers - 2}",
                "--set aux_layer=-3",
            )
        super().__init__(backbone, tags, None, dropout, frozen_stages)
        self.aux_layer = backbone.resolve_layer(aux_layer)
        self.aux_classifier = LinearClassifier(self.width, tags)
        self.largefov = TokenLargeFOV(self.width, hidden, dilation)
        self.segment = LinearClassifier(hidden, classes)
        for head in (self.aux_classifier, self.segment):
            nn.init.zeros_(head.linear.bias)  # type: ignore[arg-type]
            head.linear.bias.requires_grad_(False)  # type: ignore[union-attr]

    @property
    def vit(self) -> ViTBackbone:
        """The network's own backbone."""
        assert isinstance(self.backbone, ViTBackbone)
        return self.backbone

    def tokens(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Images (B, 3, H, W) to last tokens (B, D, h, w), auxiliary ones, and class tokens (B, D), in one pass."""
        size = (int(x.shape[-2]), int(x.shape[-1]))
        aux, last = self.vit.tokens_many(x, [self.aux_layer, -1], precision=self.encoder.precision)
        vectors, features = self.vit.split_tokens(last, size)
        return features, self.vit.split_tokens(aux, size)[1], vectors

    def maps(self, features: Tensor, aux: Tensor) -> tuple[Tensor, Tensor]:
        """CAM and auxiliary CAM (B, T, h, w) of tokens, signed."""
        return cam(features, self.weight), cam(aux, self.aux_classifier.linear.weight.flatten(1))

    def signed_maps(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """CAM and auxiliary CAM (B, T, h, w) of images."""
        features, aux, _ = self.tokens(x)
        return self.maps(features, aux)

    def class_maps(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """CAM and auxiliary CAM (B, T, h, w) of images, positive evidence only."""
        main, early = self.signed_maps(x)
        return main.relu(), early.relu()

    def forward(self, x: Tensor) -> TocoOutput:  # type: ignore[override]
        """Images (B, 3, H, W) to tokens, maps and scores."""
        features, aux, vectors = self.tokens(x)
        cams, cams_aux = self.maps(features, aux)
        scores, scores_aux = (
            head(self.drop(tokens.amax((-2, -1), keepdim=True))).flatten(1)
            for head, tokens in ((self.classifier, features), (self.aux_classifier, aux))
        )
        return TocoOutput(features, vectors, cams, scores, cams_aux, scores_aux)

    def segmentation(self, features: Tensor) -> Tensor:
        """Last tokens (B, D, h, w) to logits (B, C, h, w)."""
        return self.segment(self.largefov(features))

    def groups(self, lr: float, encoder_lr: float, weight_decay: float) -> list[dict[str, Any]]:
        """Parameter groups: the heads at `lr`, the transformer at `encoder_lr * lr`; vectors are not decayed."""
        found: dict[float, list[nn.Parameter]] = {}
        for module in (self.aux_classifier, self.largefov, self.segment):
            for p in module.parameters():
                if p.requires_grad:
                    found.setdefault(weight_decay if p.ndim > 1 else 0.0, []).append(p)
        heads = [{"params": ps, "lr": lr, "weight_decay": decay} for decay, ps in found.items()]
        return super().groups(lr, encoder_lr, weight_decay) + heads

    def branch(self, classes: ClassTable, preprocess: Preprocess, method: str = "toco") -> Segmenter:
        """The segmentation branch as a segmenter, a copy.

        Args:
            classes: C names.
            preprocess: from photograph to input.
            method: its name.
        """
        # In the memory format that a loaded file has: another one gives other last digits.
        encoder, decoder, classifier = (
            copy.deepcopy(part).cpu().to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
            for part in (self.encoder, self.largefov, self.segment)
        )
        provenance = self.backbone.provenance
        return Segmenter(encoder, decoder, classifier, classes, preprocess, provenance, method).eval()
