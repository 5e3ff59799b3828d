"""The encoder that most segmenters have: a backbone and which of its features are read.

Legend: B batch, D width, (H, W) input size, (h, w) feature-map size.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor

from maskwright.errors import MaskwrightError
from maskwright.models.backbones.build import build_backbone
from maskwright.models.backbones.dense import KINDS, Backbone
from maskwright.models.parts.part import Part, check_argument


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
