"""The segmenter, what every method ends in: an encoder, a decoder and a classifier, with all that is needed
to use them.

    features(x) -> decode -> classify = logits (B, C, h, w) at feature resolution

Legend: B batch, D width, C classes, (H, W) input size, (h, w) feature-map size.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from maskwright.data.masking.classes import ClassTable
from maskwright.errors import MaskwrightError
from maskwright.models.backbones.build import build_backbone
from maskwright.models.backbones.dense import KINDS, Backbone
from maskwright.models.parts.heads import HEADS, Identity, Part, build_part, check_argument
from maskwright.models.parts.pass_parts import PASS_PARTS
from maskwright.models.preprocess import Preprocess
from maskwright.models.provenance import Provenance


class BackboneEncoder(Part):
    """A backbone's dense features, of one layer or of several side by side.

    Args:
        backbone: the backbone; its weights belong to the segmenter and are saved with it.
        layers: a block or stage, or several, whose maps are resized to the finest of them and concatenated;
            the backbone's default layer if None.
        features: "tokens", "q", "k" or "v".
        normalize: each layer's features get unit length first, so that no layer outweighs the others.
        pyramid: give the list of maps instead, for decoders that want one: of `layers`, or of all stages if None.
        norm: a transformer's last normalisation is applied to tokens; decoders that normalise for themselves (SETR's)
            read the blocks as they are.
    """

    def __init__(
        self,
        backbone: Backbone,
        layers: int | Sequence[int] | None = None,
        features: str = "tokens",
        normalize: bool = False,
        pyramid: bool = False,
        norm: bool = True,
    ) -> None:
        super().__init__()
        if features not in KINDS:
            raise ValueError(f"features is {features!r}, expected one of {', '.join(KINDS)}")
        self.backbone = backbone
        asked = [layers] if layers is None or isinstance(layers, int) else list(layers)
        if not asked:
            raise ValueError("no layers, expected at least one")
        every = pyramid and layers is None
        self.layers = backbone.stage_layers if every else [backbone.resolve_layer(layer) for layer in asked]
        self.features, self.normalize, self.pyramid = features, bool(normalize), bool(pyramid)
        self.norm = bool(norm)
        self.precision: str | None = None

    @property
    def width(self) -> int:
        """D of the features (of a pyramid: of its coarsest map)."""
        widths = [self.backbone.widths[layer] for layer in self.layers]
        return widths[-1] if self.pyramid else sum(widths)

    @property
    def stride(self) -> int:
        """Input pixels a feature cell."""
        return min(self.backbone.strides[layer] for layer in self.layers)

    @property
    def multiple_of(self) -> int:
        """Input sides should be multiples of this."""
        return max(self.backbone.strides[layer] for layer in self.layers)

    @property
    def key(self) -> str:
        """sha256 over the weights' key and the spec: two encoders of one key give the same features."""
        text = json.dumps([self.backbone.key, self.spec()], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()

    def spec(self) -> dict[str, Any]:
        """Architecture and choice of features; neither weights nor paths. What is left out is as it is by default."""
        raw = {} if self.norm else {"norm": False}
        return {
            "kind": "BackboneEncoder",
            "backbone": self.backbone.architecture,
            "output_stride": self.backbone.output_stride,
            "img_size": self.backbone.img_size,
            "layers": list(self.layers),
            "features": self.features,
            "normalize": self.normalize,
            "pyramid": self.pyramid,
            **raw,
        }

    @classmethod
    def from_spec(cls, spec: Mapping[str, Any]) -> Self:
        """Builds the encoder with random weights; no file and no hub is asked.

        Raises:
            MaskwrightError: unknown backbone, or arguments that do not fit it.
        """
        known = {
            "kind",
            "backbone",
            "output_stride",
            "img_size",
            "layers",
            "features",
            "normalize",
            "pyramid",
        }
        if set(spec) - {"norm"} != known:
            raise MaskwrightError(f"part BackboneEncoder has {', '.join(map(str, sorted(spec)))}", ", ".join(known))
        for name, value in spec.items():
            check_argument("BackboneEncoder", name, value)
        if not isinstance(spec["backbone"], str):
            raise MaskwrightError(f"backbone is {spec['backbone']!r}", "a name")
        size = spec["img_size"]
        if size is not None and not (isinstance(size, list) and len(size) == 2 and all(type(v) is int for v in size)):
            raise MaskwrightError(f"part BackboneEncoder has img_size {size!r}", "height and width, or null")
        options: dict[str, Any] = {} if size is None else {"img_size": tuple(size)}
        backbone = build_backbone(spec["backbone"], "random", spec["output_stride"], **options)
        try:
            names = ("layers", "features", "normalize", "pyramid")
            return cls(backbone, **{name: spec[name] for name in names}, norm=spec.get("norm", True))
        except (ValueError, TypeError) as error:
            raise MaskwrightError(f"part BackboneEncoder cannot be built: {error}") from error

    def forward(self, x: Tensor) -> Any:
        """(B, 3, H, W) to (B, D, h, w), or to a list of maps if `pyramid`."""
        maps = self.backbone.dense_many(x, self.layers, self.features, norm=self.norm, precision=self.precision)
        if self.normalize:
            maps = [F.normalize(m, dim=1) for m in maps]
        return maps if self.pyramid else concatenate(maps)


def concatenate(maps: Sequence[Tensor]) -> Tensor:
    """Feature maps of one image side by side, (B, D_i, h_i, w_i) each, resized bilinearly to the largest of
    them."""
    if len(maps) == 1:
        return maps[0]
    h, w = max((m.shape[-2:] for m in maps), key=lambda s: s[0] * s[1])
    same = [
        m if m.shape[-2:] == (h, w) else F.interpolate(m, (h, w), mode="bilinear", align_corners=False) for m in maps
    ]
    return torch.cat(same, dim=1)


ENCODERS: dict[str, type[Part]] = {"BackboneEncoder": BackboneEncoder}


def part_table() -> dict[str, type[Part]]:
    """All parts that a segmenter's spec may name."""
    from maskwright.models.networks.smp import (
        SMP_PARTS,  # its package takes a second to import, and few segmenters need it
    )

    return {**HEADS, **ENCODERS, **PASS_PARTS, **_network_parts(), **SMP_PARTS}


def _network_parts() -> dict[str, type[Part]]:
    """The parts of the networks written here."""
    from maskwright.models.networks.blocks import BLOCKS
    from maskwright.models.networks.ddrnet import DDRNET_PARTS
    from maskwright.models.networks.deeplab import DEEPLAB_PARTS
    from maskwright.models.networks.hrnet import HRNET_PARTS
    from maskwright.models.networks.ocr import OCR_PARTS
    from maskwright.models.networks.vit_heads import VIT_PARTS
    from maskwright.models.parts.cam import CAM_PARTS
    from maskwright.models.parts.toco import TOCO_PARTS

    ours = (BLOCKS, CAM_PARTS, DDRNET_PARTS, DEEPLAB_PARTS, HRNET_PARTS, OCR_PARTS, TOCO_PARTS, VIT_PARTS)
    return {name: part for parts in ours for name, part in parts.items()}


def _table_for(spec: Any) -> dict[str, type[Part]]:
    kind = str(spec.get("kind", "")) if isinstance(spec, Mapping) else ""
    if kind.startswith("Smp"):
        return part_table()
    table = {**HEADS, **ENCODERS, **PASS_PARTS}
    return table if kind in table else {**table, **_network_parts()}


class Segmenter(nn.Module):
    """A network, its classes, its preprocessing and where it comes from.

    Args:
        encoder: images (B, 3, H, W) to features, a tensor (B, D, h, w) or a list of them.
        decoder: features to an embedding (B, E, h, w).
        classifier: embedding to logits (B, C, h, w).
        classes: names and colours of the C classes.
        preprocess: from photograph to input.
        provenance: where the encoder's weights come from and what they saw.
        method: name of the method that made it.
        notes: what a reader of the file should know.
    """

    def __init__(
        self,
        encoder: Part,
        decoder: Part | None,
        classifier: Part,
        classes: ClassTable,
        preprocess: Preprocess,
        provenance: Provenance,
        method: str = "",
        notes: str = "",
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.decoder = decoder if decoder is not None else Identity()
        self.classifier = classifier
        self.classes = classes
        self.preprocess = preprocess
        self.provenance = provenance
        self.method = method
        self.notes = notes
        self.extra: dict[str, Any] = {}
        count = getattr(classifier, "classes", None)
        if isinstance(count, int) and count != len(classes):
            raise ValueError(f"the classifier has {count} classes and the table {len(classes)}")

    def features(self, x: Tensor) -> Any:
        """Normalised images (B, 3, H, W) to features (B, D, h, w), or a list of them for decoders that want
        a pyramid."""
        return self.encoder(x)

    def decode(self, features: Any) -> Tensor:
        """Features to an embedding (B, E, h, w)."""
        return self.decoder(features)

    def classify(self, embedding: Tensor) -> Tensor:
        """Embedding (B, E, h, w) to logits (B, C, h, w)."""
        return self.classifier(embedding)

    def forward(self, x: Tensor) -> Tensor:
        """Normalised images (B, 3, H, W) to logits (B, C, h, w) at feature resolution."""
        return self.classify(self.decode(self.features(x)))

    @property
    def multiple_of(self) -> int:
        """Input sides should be multiples of this."""
        return int(getattr(self.encoder, "multiple_of", 1))

    def to_spec(self) -> dict[str, Any]:
        """The three parts as JSON values."""
        parts = (self.encoder, self.decoder, self.classifier)
        encoder, decoder, classifier = (part.spec() for part in parts)  # type: ignore[operator]
        return {"encoder": encoder, "decoder": decoder, "classifier": classifier}

    @classmethod
    def from_spec(
        cls,
        spec: Any,
        classes: ClassTable,
        preprocess: Preprocess,
        provenance: Provenance,
        method: str = "",
        notes: str = "",
    ) -> Self:
        """Builds the network with random weights, in evaluation mode; nothing is fetched and no file is read.

        Raises:
            MaskwrightError: unknown parts, arguments that do not fit, or another number of classes than the
                table's.
        """
        if not isinstance(spec, Mapping) or set(spec) != {"encoder", "decoder", "classifier"}:
            raise MaskwrightError("the network's description is incomplete", "encoder, decoder and classifier")
        encoder, decoder, classifier = (
            build_part(spec[name], _table_for(spec[name])) for name in ("encoder", "decoder", "classifier")
        )
        if isinstance(encoder, BackboneEncoder):
            encoder.backbone.provenance = provenance
        try:
            return cls(encoder, decoder, classifier, classes, preprocess, provenance, method, notes).eval()
        except ValueError as error:
            raise MaskwrightError(str(error), "as many classes as the classifier has") from error
