"""Networks of segmentation-models-pytorch, taken apart into `features`, `decode` and `classify`.

Its models upsample their logits to the input's size; here logits stay at the decoder's resolution, because
a loss on upsampled logits costs ten times as much and whoever wants pixels upsamples once. That is with
`align_corners=False`; inside, its PSPNet (pooled maps), DeepLab v3+ (behind the ASPP) and FPN (towards a quarter)
enlarge maps with True, and stay so: figures stand on it.
"""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

import segmentation_models_pytorch as smp
import timm
import torch
from torch import Tensor, nn

from maskwright.accel.quicken import quicken
from maskwright.errors import MaskwrightError, unknown
from maskwright.models.backbones.build import Backbone, build_backbone
from maskwright.models.networks.blocks import BatchNorm2d, QuickBatchNorm2d, tolerate_single_values
from maskwright.models.parts.part import Part

_NAME = re.compile(r"[A-Za-z0-9_.\-]{1,80}")
PROBE = (96, 160)
"""Sides of the image, pixels, that every network is tried on: one size only, or windows that must divide it, show."""
_TRIED: set[str] = set()
"""Networks that took it, as specs; a trial costs a tenth of a second."""


class SmpParts(NamedTuple):
    """The three parts of one network; `network.encoder`, `.decoder` and `.segmentation_head` of the
    library."""

    encoder: SmpEncoder
    decoder: SmpDecoder
    classifier: SmpClassifier


def smp_parts(
    architecture: str,
    encoder: str,
    classes: int,
    *,
    weights: str | None = "random",
    options: dict[str, Any] | None = None,
    backbone: Backbone | None = None,
) -> SmpParts:
    """Builds a network of segmentation-models-pytorch as three parts of a segmenter.

    Args:
        architecture: "unet", "unetplusplus", "deeplabv3plus", "fpn", "pspnet", "upernet", "segformer", ...
        encoder: name of an encoder there ("resnet34"), or "tu-" and a timm name ("tu-tf_efficientnet_lite0").
        classes: C.
        weights: weights of a "tu-" encoder as for `build_backbone` (None hub, "package", a path), or
            "random".
        options: further arguments of the architecture, JSON values (`encoder_depth`, `encoder_output_stride`,
            `decoder_channels`; `output_stride` dilates a "tu-" encoder of an architecture without a stride option).
        backbone: a built backbone whose weights fill a "tu-" encoder of the same network, instead of `weights`.

    Raises:
        MaskwrightError: unknown architecture or encoder, one that cannot take images of any size, or weights that
            cannot be had or do not fit.
    """
    options = dict(options or {})
    network = _network(architecture, encoder, options)
    head = network.segmentation_head[0]
    parts = SmpParts(
        SmpEncoder(architecture, encoder, options, module=network.encoder),
        SmpDecoder(architecture, encoder, options, module=network.decoder),
        SmpClassifier(head.in_channels, classes, head.kernel_size[0]),
    )
    _probe(parts)
    if backbone is not None:
        parts.encoder.load_from(backbone)
    elif weights != "random":
        parts.encoder.load_backbone(weights)
    return parts


def _probe(parts: SmpParts) -> None:
    """Tries an image whose sides are multiples of everything but windows.

    Raises:
        MaskwrightError: the encoder cannot take it, or the decoder its maps.
    """
    encoder, decoder, _ = parts
    spec = json.dumps(encoder.spec(), sort_keys=True)
    if spec in _TRIED:
        return
    x = torch.zeros(1, 3, *PROBE, device=next(encoder.parameters()).device)
    try:
        with torch.no_grad():
            decoder.eval()(encoder.eval()(x))
    except (AssertionError, LookupError, RuntimeError, TypeError, ValueError) as error:
        why = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise MaskwrightError(
            f"{encoder.architecture} with {encoder.encoder} cannot take images of {PROBE[0]} x {PROBE[1]} ({why})",
            "an encoder that takes any size and halves its maps exactly",
            "take --backbone resnet50, convnext_tiny or swin_tiny_patch4_window7_224",
        ) from error
    finally:
        encoder.train()
        decoder.train()
    _TRIED.add(spec)


def _network(architecture: str, encoder: str, options: dict[str, Any]) -> Any:
    if not isinstance(architecture, str) or architecture not in smp.MODEL_ARCHITECTURES_MAPPING:
        raise unknown("architecture", str(architecture)[:60], smp.MODEL_ARCHITECTURES_MAPPING)
    # A name such as "tu-hf-hub:..." would make timm read from elsewhere.
    if not isinstance(encoder, str) or not _NAME.fullmatch(encoder):
        raise MaskwrightError(f"encoder name {str(encoder)[:60]!r}", "letters, digits, _, . and -")
    if encoder.startswith("tu-"):
        if not timm.is_model(encoder[3:]):
            raise MaskwrightError(f"unknown encoder {encoder!r}", "tu- and a name of timm", "see timm.list_models()")
    elif encoder not in smp.encoders.encoders:
        raise unknown("encoder", encoder, [*smp.encoders.encoders, "tu-NAME of timm"])
    # The library swallows options it does not know; those that this room decides are no options either.
    decided = {"encoder_name", "encoder_weights", "classes", "in_channels", "aux_params", "activation"}
    known = set(inspect.signature(smp.MODEL_ARCHITECTURES_MAPPING[architecture].__init__).parameters)
    if "kwargs" in known and "encoder_output_stride" not in known and encoder.startswith("tu-"):
        known.add("output_stride")  # goes through to the encoder
    known -= decided | {"self", "args", "kwargs"}
    if odd := sorted(set(options) - known):
        raise unknown(f"option of {architecture}", str(odd[0])[:60], sorted(known))
    sizes = {"dynamic_img_size": True} if encoder.startswith("tu-") and "swin" in encoder else {}
    try:
        network = smp.create_model(architecture, encoder, encoder_weights=None, classes=1, **sizes, **options)
    except (
        TypeError,
        ValueError,
        ArithmeticError,
        LookupError,
        AttributeError,
        AssertionError,
        RuntimeError,
    ) as error:
        raise MaskwrightError(f"{architecture} with {encoder} and {options} cannot be built ({error})") from error
    # Pyramid poolings end in one value a channel, which torch's batch norm refuses from a single image.
    tolerate_single_values(network.decoder)
    return quicken(network, {BatchNorm2d: QuickBatchNorm2d})


class _SmpPart(Part):
    """A module of one of the library's networks, which can be built again from its name.

    Args:
        architecture: name of the architecture (it decides on depth and dilation).
        encoder: name of the encoder.
        options: further arguments of the architecture.
        module: the library's module; built with random weights if None.

    Attributes:
        taken: what the library's network calls it.
    """

    fields = ("architecture", "encoder", "options")
    taken: ClassVar[str]

    def __init__(
        self,
        architecture: str,
        encoder: str,
        options: dict[str, Any] | None = None,
        *,
        module: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.architecture, self.encoder, self.options = architecture, encoder, dict(options or {})
        self.module: Any = module
        if module is None:
            self.module = getattr(_network(architecture, encoder, self.options), self.taken)


class SmpEncoder(_SmpPart):
    """The encoder: a pyramid of features, fine to coarse."""

    taken = "encoder"

    @property
    def multiple_of(self) -> int:
        """Input sides must be multiples of this."""
        return int(self.module.output_stride)

    def load_backbone(self, weights: str | None) -> None:
        """Fills a "tu-" encoder with the weights of the same timm backbone, found as `build_backbone` finds
        them.

        Raises:
            MaskwrightError: the encoder is not of timm, or weights cannot be had or do not fit.
        """
        if not self.encoder.startswith("tu-"):
            raise MaskwrightError(
                f"weights for encoder {self.encoder}",
                "an encoder of timm",
                f"take tu-NAME instead of {self.encoder}",
            )
        self.load_from(build_backbone(self.encoder[3:], weights))

    def load_from(self, backbone: Backbone) -> None:
        """Fills a "tu-" encoder with the weights of a built backbone, which stays as it is.

        Raises:
            MaskwrightError: the encoder is another network than the backbone.
        """
        if self.encoder != f"tu-{backbone.architecture}":
            raise MaskwrightError(f"weights of {backbone.architecture} for encoder {self.encoder}", "the same network")
        source = backbone.model.state_dict()
        target: Any = self.module.model
        wanted, names = target.state_dict(), self._names_in(source)
        fitted = {name: source.get(names.get(name, "")) for name in wanted}
        missing = [name for name, value in fitted.items() if value is None or value.shape != wanted[name].shape]
        if missing:
            raise MaskwrightError(f"{len(missing)} tensors of {self.encoder} have no weights ({missing[0]}, ...)")
        target.load_state_dict(fitted)

    def _names_in(self, source: Mapping[str, Tensor]) -> dict[str, str]:
        """What the backbone calls each tensor of the encoder.

        Networks of features only flatten the first containers in some families, layers.0 is layers_0, and wrap the
        whole network in others.
        """
        flat = {re.sub(r"^([^.]+)\.([^.]+)\.", r"\1_\2.", name): name for name in source}
        found = {}
        for name in self.module.model.state_dict():
            inner = re.sub(r"^(model|body)\.", "", name)
            theirs = name if name in source else flat.get(name, inner if inner in source else None)
            if theirs is not None:
                found[name] = theirs
        return found

    @property
    def stands_on(self) -> str:
        """The timm network of a "tu-" encoder."""
        return self.encoder[3:] if self.encoder.startswith("tu-") else ""

    def backbone_tensors(self, wanted: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """As of `Part`."""
        own, names = self.module.model.state_dict(), self._names_in(wanted)
        return {names[name]: value for name, value in own.items() if name in names}

    def forward(self, x: Tensor) -> list[Tensor]:
        """(B, 3, H, W) to feature maps, fine to coarse, the input among them.

        Raises:
            ValueError: a side is not a multiple of `multiple_of`.
        """
        if x.shape[-2] % self.multiple_of or x.shape[-1] % self.multiple_of:
            raise ValueError(
                f"input is {x.shape[-2]} x {x.shape[-1]}, expected multiples of {self.multiple_of} for {self.encoder}"
            )
        return self.module(x)


class SmpDecoder(_SmpPart):
    """The decoder of an architecture."""

    taken = "decoder"

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        """Feature maps, fine to coarse, to (B, E, h, w)."""
        return self.module(list(features))


class SmpClassifier(Part):
    """The last convolution.

    Args:
        width: E of the decoder.
        classes: C.
        kernel: its size, pixels, odd.
    """

    fields = ("width", "classes", "kernel")

    def __init__(self, width: int, classes: int, kernel: int = 3) -> None:
        super().__init__()
        if kernel not in (1, 3, 5, 7):
            raise ValueError(f"kernel is {kernel}, expected 1, 3, 5 or 7")
        self.width, self.classes, self.kernel = int(width), int(classes), int(kernel)
        self.conv = nn.Conv2d(self.width, self.classes, self.kernel, padding=self.kernel // 2)
        nn.init.xavier_uniform_(self.conv.weight)
        assert self.conv.bias is not None
        nn.init.zeros_(self.conv.bias)

    def forward(self, x: Tensor) -> Tensor:
        """(B, E, h, w) to logits (B, C, h, w)."""
        return self.conv(x)
