"""The segmentation network in training: encoder, decoder, classifier, and auxiliary heads that are not kept.

Legend: B batch, C classes, E embedding width, (H, W) input size, (h, w) feature-map size.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch.nn.functional as F
from torch import Tensor, nn

from maskwright.models.parts.part import Part
from maskwright.models.provenance import Provenance

AUX_WEIGHT = 0.4
"""Share of an auxiliary head's loss in PSPNet, OCR and DDRNet."""


class Network(nn.Module):
    """A segmentation network in training: three parts that a saved segmenter keeps, and heads that it does not.

    Args:
        encoder: images, whose sides are multiples of its `multiple_of`, to a list of maps.
        decoder: the list to an embedding (B, E, h, w).
        classifier: embedding to logits.
        aux: auxiliary heads by name, from the list to logits.
        aux_weights: what each head's loss counts in the paper.
        width: E.
        provenance: where the encoder's weights come from and what they saw.

    Attributes:
        classes: C.
        multiple_of: both input sides of `features` must be multiples of this.
    """

    def __init__(
        self,
        encoder: Part,
        decoder: Part,
        classifier: Part,
        *,
        width: int,
        provenance: Provenance,
        aux: Mapping[str, nn.Module] | None = None,
        aux_weights: Mapping[str, float] | None = None,
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.decoder = decoder
        self.classifier = classifier
        self.aux = nn.ModuleDict(dict(aux or {}))
        self.aux_weights = dict(aux_weights if aux_weights is not None else dict.fromkeys(self.aux, AUX_WEIGHT))
        self.classes = int(classifier.classes)  # type: ignore[arg-type]
        self.width = int(width)
        self.multiple_of = int(encoder.multiple_of)  # type: ignore[arg-type]
        self.provenance = provenance

    def features(self, x: Tensor) -> list[Tensor]:
        """Normalised images (B, 3, H, W), H and W multiples of `multiple_of`, to the encoder's maps, fine to coarse.

        Raises:
            ValueError: a side is no such multiple.
        """
        return list(self.encoder(x))

    def decode(self, features: list[Tensor]) -> Tensor:
        """The encoder's maps to an embedding (B, E, h, w)."""
        return self.decoder(features)

    def classify(self, embedding: Tensor) -> Tensor:
        """Embedding (B, E, h, w) to logits (B, C, h, w)."""
        return self.classifier(embedding)

    def forward(self, x: Tensor) -> Tensor:
        """Normalised images (B, 3, H, W) to logits (B, C, h, w) at the decoder's resolution."""
        return self.classify(self.decode(self.features(x)))

    def logits(self, x: Tensor) -> Tensor:
        """Logits of every pixel, for any input size.

        Args:
            x: normalised images (B, 3, H, W); padded at right and bottom by their own border where a side is no
                multiple of `multiple_of`.

        Returns:
            (B, C, H, W).
        """
        height, width = x.shape[-2:]
        right, below = -width % self.multiple_of, -height % self.multiple_of
        if right or below:
            x = F.pad(x, (0, right, 0, below), mode="replicate")
        y = F.interpolate(self(x), x.shape[-2:], mode="bilinear", align_corners=False)
        return y[..., :height, :width]

    def aux_logits(self, features: list[Tensor]) -> dict[str, Tensor]:
        """The encoder's maps to logits (B, C, h, w) of each auxiliary head, h and w its own; for training only."""
        return {name: head(features) for name, head in self.aux.items()}

    def encoder_layers(self) -> list[list[nn.Parameter]]:
        """The encoder's parameters by depth, shallow to deep, each once: blocks of the stages, stem first."""
        layered = getattr(self.encoder, "parameter_layers", None)
        return layered() if callable(layered) else _by_depth(self.encoder)

    def head_parameters(self) -> list[nn.Parameter]:
        """All parameters that are not the encoder's, each once."""
        inside = {id(p) for p in self.encoder.parameters()}
        return [p for p in self.parameters() if id(p) not in inside]


def _by_depth(encoder: nn.Module) -> list[list[nn.Parameter]]:
    """Groups by the block that names say ("layer3.5", "blocks.2.0", "stages_1.blocks.4"), in order of construction.

    What comes before the first numbered block (stem, position embedding) is one group. Where no name says a block so,
    as in timm's VGGs ("features_3") and RegNets ("s1.b2"), each child is one.
    """
    groups: dict[str, list[nn.Parameter]] = {}
    for name, parameter in encoder.named_parameters():
        tokens = _tokens(name)
        key = tokens[:1]
        for token in tokens[1:]:
            if not (token.isdigit() or token in ("blocks", "layers")):
                break
            key.append(token)
        numbered = any(c.isdigit() for token in key[1:] for c in token)
        if not numbered and all(place == "stem" for place in groups):
            key = ["stem"]
        groups.setdefault(".".join(key), []).append(parameter)
    return list(groups.values()) if len(groups) > 1 else _by_child(encoder)


def _by_child(encoder: nn.Module) -> list[list[nn.Parameter]]:
    """Groups by child, or by block of a child; a norm that is a child belongs with the layer before it."""
    groups: dict[str, list[nn.Parameter]] = {}
    for name, parameter in encoder.named_parameters():
        child, *inside = _tokens(name)
        block = next((t for t in inside[:1] if re.fullmatch(r"(b|denselayer)\d+", t)), "")
        groups.setdefault(f"{child}.{block}", []).append(parameter)
    layers: list[list[nn.Parameter]] = []
    for group in groups.values():
        if layers and all(p.ndim == 1 for p in group):
            layers[-1].extend(group)
        else:
            layers.append(group)
    return layers


def _tokens(name: str) -> list[str]:
    """A parameter's modules, without those that only wrap the network."""
    return re.sub(r"^((module|model|backbone|trunk|body)\.)+", "", name).split(".")[:-1]
