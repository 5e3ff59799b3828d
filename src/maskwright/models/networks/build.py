"""The field's segmentation networks under one roof: `build_network(name, backbone, classes)`.

    features(x) -> decode -> classify = logits (B, C, h, w) at the decoder's resolution

with anything between `features` and `decode` that a method wants there, auxiliary heads where the paper has them, and
`logits` of exactly the input's size for any input size. U-Net, U-Net++, PSPNet, DeepLab v3 and v3+, FPN, UPerNet and
SegFormer are segmentation-models-pytorch's, encoders timm's; the others are written here.

Legend: B batch, C classes, E embedding width, (H, W) input size, (h, w) feature-map size.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor, nn

from maskwright.errors import MaskwrightError, unknown
from maskwright.models.backbones.dense import Backbone
from maskwright.models.backbones.keymaps import (
    DDRNET_NAMES,
    HRNET_NAMES,
    OCR_NAMES,
    translate,
    translate_network,
    unwrap,
)
from maskwright.models.backbones.weights import read_weights_file
from maskwright.models.networks.blocks import FCNHead
from maskwright.models.networks.ddrnet import VARIANTS, DDRNetAux, DDRNetDecoder, DDRNetEncoder
from maskwright.models.networks.deeplab import LargeFOV, SummedASPP, VGGEncoder
from maskwright.models.networks.hrnet import HRNetDecoder, HRNetEncoder
from maskwright.models.networks.lateral_fpn import LateralFPN
from maskwright.models.networks.network import Network
from maskwright.models.networks.ocr import OCRAux, OCRDecoder
from maskwright.models.networks.plain import BLOCKS, PlainEncoder
from maskwright.models.networks.vit_head_keys import load_official_head
from maskwright.models.networks.vit_heads import LastMap, vit_head
from maskwright.models.parts.encoder import BackboneEncoder
from maskwright.models.parts.heads import LinearClassifier
from maskwright.models.provenance import Provenance

__all__ = ["NETWORKS", "Entry", "Network", "build_network"]


@dataclass(frozen=True)
class Entry:
    """One network of the table.

    Attributes:
        title: its name in print.
        paper: authors, venue and year.
        link: where to read it.
        encoder: "cnn" or "vit" says what backbone it stands on; "own" that it brings an encoder and the backbone is
            not used.
        build: makes it, from backbone or None, classes, official weights or None, and options.
        origin: whose code it is.
        stride: input pixels a cell of the logits, as a formula of the encoder where it depends on it.
    """

    title: str
    paper: str
    link: str
    encoder: Literal["cnn", "vit", "own", "any"]
    build: Callable[..., Network]
    origin: str
    stride: str


def brings_encoder(name: str) -> bool:
    """Whether a network has an encoder of its own, so that the run's backbone is left aside; "auto" has not."""
    return name in NETWORKS and NETWORKS[name].encoder == "own"


def build_network(
    name: str,
    backbone: Backbone | None,
    classes: int,
    *,
    options: dict[str, Any] | None = None,
    weights: str | None = None,
) -> Network:
    """Builds a network with an untrained head on a backbone's weights, in training mode.

    Args:
        name: a name of `NETWORKS`, or "auto": DeepLab v3+ on a convolutional backbone (UPerNet where it cannot be
            dilated), DPT on a vision transformer.
        backbone: what its encoder takes its weights from; the backbone itself stays as it is. None where the network
            has an encoder of its own ("own" in the table, which ignores it), and for "deeplabv1", "hrnet" and "ocr" on
            their papers' encoders with random weights or those of `weights`.
        classes: C.
        options: further arguments of the network: those of segmentation-models-pytorch or of `vit_head`, and those
            of the builders in this file.
        weights: official checkpoint of the whole network, for DDRNet, HRNet, OCR (tensors of another
            number of classes stay untrained), DPT of UniMatch V2, Segmenter and SETR; for DeepLab v1 a VGG.

    Raises:
        MaskwrightError: unknown name or option, a backbone that does not fit the network, or weights that cannot be
            read or do not fit.
    """
    if type(classes) is not int or classes < 1:
        raise MaskwrightError(f"{classes!r} classes", "a whole number of at least 1")
    if backbone is not None and backbone.groups and not brings_encoder(name):
        raise MaskwrightError(
            f"a segmentation network on {backbone.name}, which sorts patches into groups", "another backbone",
            "leave --backbone out; methods on frozen features, as kmeans, can stand on it",
        )  # fmt: skip
    if name == "auto":
        return _auto(backbone, classes, dict(options or {}), weights)
    if name not in NETWORKS:
        raise unknown("network", name, ["auto", *NETWORKS])
    entry = NETWORKS[name]
    if entry.encoder == "vit" and (backbone is None or not backbone.is_vit):
        found = "no backbone" if backbone is None else f"the convolutional {backbone.name}"
        raise MaskwrightError(
            f"network {name} on {found}", "a vision transformer", "give --backbone dinov2_small, or take deeplabv3plus"
        )
    if entry.encoder == "cnn" and backbone is not None and backbone.is_vit:
        raise MaskwrightError(
            f"network {name} on the vision transformer {backbone.name}",
            "a convolutional backbone",
            "give --backbone resnet50, or take one of "
            + ", ".join(n for n, e in NETWORKS.items() if e.encoder == "vit"),
        )
    known = inspect.signature(entry.build).parameters
    options = dict(options or {})
    if not any(p.kind is p.VAR_KEYWORD for p in known.values()):
        names = [n for n, p in known.items() if p.kind is p.KEYWORD_ONLY]
        if odd := sorted(set(options) - set(names)):
            raise unknown(f"option of {name}", str(odd[0])[:60], names or ["none"])
    try:
        return entry.build(backbone, classes, weights, **options).train()
    except (TypeError, ValueError, LookupError, ArithmeticError) as error:
        raise MaskwrightError(f"{name} cannot be built with {options or 'these arguments'} ({error})") from error


def _auto(backbone: Backbone | None, classes: int, options: dict[str, Any], weights: str | None) -> Network:
    if backbone is None:
        raise MaskwrightError(
            "network auto without a backbone", "a backbone, or the name of a network", "give --backbone"
        )
    if backbone.is_vit:
        return build_network("dpt", backbone, classes, options=options, weights=weights)
    try:
        return build_network("deeplabv3plus", backbone, classes, options=options, weights=weights)
    except MaskwrightError:
        if options or weights:
            raise
        return build_network("upernet", backbone, classes)


def _smp(architecture: str, **defaults: Any) -> Callable[..., Network]:
    """A builder for a network of segmentation-models-pytorch."""

    def build(backbone: Backbone | None, classes: int, weights: str | None, **options: Any) -> Network:
        parts, source = _smp_parts(architecture, backbone, classes, weights, {**defaults, **options})
        return Network(*parts, width=parts.classifier.width, provenance=source)

    return build


def _smp_parts(
    architecture: str, backbone: Backbone | None, classes: int, weights: str | None, options: dict[str, Any]
) -> tuple[Any, Provenance]:
    from maskwright.models.networks.smp import smp_parts  # its package takes a second to import

    if weights is not None:
        raise MaskwrightError(
            f"official weights for {architecture}",
            "a network that has official checkpoints, such as ddrnet23_slim",
            "give the encoder's weights with --weights",
        )
    if backbone is None:
        raise MaskwrightError(
            f"{architecture} without a backbone", "a convolutional backbone", "give --backbone resnet50"
        )
    if "encoder_output_stride" in options:
        # The papers' dilations at 1/16, doubled where the map is twice as fine.
        rates = [6, 12, 18] if options["encoder_output_stride"] == 16 else [12, 24, 36]
        options = {"decoder_atrous_rates": rates, **options}
    try:
        parts = smp_parts(architecture, f"tu-{backbone.architecture}", classes, options=options, backbone=backbone)
    except MaskwrightError as error:
        if "cannot be built" not in str(error):
            raise
        raise MaskwrightError(
            error.found,
            error.expected or "an encoder that the network can stand on",
            error.repair or "take --backbone resnet50, or network upernet, fpn or unet, which need no dilation",
        ) from error
    return parts, backbone.provenance


def _deeplabv3(
    backbone: Backbone | None, classes: int, weights: str | None, *, output_stride: int = 16, **options: Any
) -> Network:
    options = {"encoder_output_stride": output_stride, **options}
    return _smp("deeplabv3")(backbone, classes, weights, **options)


def _deeplabv3plus(
    backbone: Backbone | None, classes: int, weights: str | None, *, output_stride: int = 16, **options: Any
) -> Network:
    options = {"encoder_output_stride": output_stride, **options}
    return _smp("deeplabv3plus")(backbone, classes, weights, **options)


def _pspnet(
    backbone: Backbone | None, classes: int, weights: str | None, *, output_stride: int = 8, **options: Any
) -> Network:
    # The library's default stops at stage 3 of an undilated encoder; the paper reads the last stage at 1/8.
    options = {"encoder_depth": 5, "output_stride": output_stride, **options}
    parts, source = _smp_parts("pspnet", backbone, classes, weights, options)
    width = int(parts.encoder.module.out_channels[-2])
    aux = FCNHead(width, classes, -2, max(width // 4, 16))
    return Network(*parts, width=parts.classifier.width, provenance=source, aux={"aux": aux})


def _lateral_fpn(backbone: Backbone | None, classes: int, weights: str | None, *, width: int = 128) -> Network:
    parts, source = _smp_parts("fpn", backbone, classes, weights, {})
    widths = [int(w) for w in parts.encoder.module.out_channels[-4:]]
    decoder = LateralFPN(widths, width)
    return Network(parts.encoder, decoder, LinearClassifier(width, classes), width=width, provenance=source)


def _deeplabv1(
    backbone: Backbone | None,
    classes: int,
    weights: str | None,
    *,
    architecture: str = "vgg16",
    hidden: int = 1024,
    dilation: int = 12,
) -> Network:
    if backbone is not None and not backbone.architecture.startswith("vgg"):
        raise MaskwrightError(
            f"DeepLab v1 on {backbone.name}",
            "a VGG",
            "give --backbone vgg16, or take deeplabv2",
        )
    encoder = VGGEncoder(architecture if backbone is None else backbone.architecture)
    source = _own_provenance(encoder.architecture)
    if backbone is not None:
        encoder.load_from(backbone)
        source = backbone.provenance
    if weights is not None:
        file = read_weights_file(weights)
        encoder.load_state_dict(translate(_under(unwrap(file.tensors), "features."), encoder, file.source))
        source = _own_provenance(encoder.architecture, file)
    decoder = LargeFOV(encoder.widths[-1], hidden, dilation)
    return Network(encoder, decoder, LinearClassifier(hidden, classes), width=hidden, provenance=source)


def _deeplabv2(
    backbone: Backbone | None,
    classes: int,
    weights: str | None,
    *,
    output_stride: int = 8,
    rates: Any = (6, 12, 18, 24),
) -> Network:
    parts, source = _smp_parts("deeplabv3", backbone, classes, weights, {"encoder_output_stride": output_stride})
    width = int(parts.encoder.module.out_channels[-1])
    return Network(parts.encoder, LastMap(width), SummedASPP(width, classes, rates), width=width, provenance=source)


def _hrnet_encoder(name: str, backbone: Backbone | None, architecture: str) -> tuple[HRNetEncoder, Provenance]:
    if backbone is None:
        encoder = HRNetEncoder(architecture)
        return encoder, _own_provenance(architecture)
    if not backbone.architecture.startswith("hrnet"):
        raise MaskwrightError(
            f"network {name} on {backbone.name}", "an HRNet", "give --backbone hrnet_w18, or take upernet or ocr"
        )
    encoder = HRNetEncoder(backbone.architecture)
    encoder.load_from(backbone)
    return encoder, backbone.provenance


def _hrnet(backbone: Backbone | None, classes: int, weights: str | None, *, architecture: str = "hrnet_w48") -> Network:
    encoder, source = _hrnet_encoder("hrnet", backbone, architecture)
    decoder = HRNetDecoder(encoder.widths)
    classifier = LinearClassifier(decoder.width, classes)
    network = Network(encoder, decoder, classifier, width=decoder.width, provenance=source)
    return _load_official(network, encoder.architecture, HRNET_NAMES, weights)


def _ocr(
    backbone: Backbone | None,
    classes: int,
    weights: str | None,
    *,
    architecture: str = "hrnet_w48",
    mid: int = 512,
    key: int = 256,
    output_stride: int = 8,
) -> Network:
    if backbone is None or backbone.architecture.startswith("hrnet"):
        encoder, source = _hrnet_encoder("ocr", backbone, architecture)
        every = list(range(len(encoder.widths)))
        decoder = OCRDecoder(encoder.widths, every, every, classes, mid, key, aligned=True)
    else:
        parts, source = _smp_parts("deeplabv3", backbone, classes, weights, {"encoder_output_stride": output_stride})
        encoder = parts.encoder
        widths = [int(w) for w in encoder.module.out_channels]
        last = len(widths) - 1
        decoder = OCRDecoder(widths, [last], [last - 1], classes, mid, key, 3, mid)
    network = Network(
        encoder, decoder, LinearClassifier(mid, classes), width=mid, provenance=source, aux={"aux": OCRAux(decoder)}
    )
    return _load_official(network, getattr(encoder, "architecture", "ocr"), OCR_NAMES, weights)


def _ddrnet(variant: str) -> Callable[..., Network]:
    def build(backbone: Backbone | None, classes: int, weights: str | None) -> Network:
        decoder = DDRNetDecoder(variant)
        network = Network(
            DDRNetEncoder(variant),
            decoder,
            LinearClassifier(decoder.width, classes),
            width=decoder.width,
            provenance=_own_provenance(variant),
            aux={"aux": DDRNetAux(variant, classes)},
        )
        return _load_official(network, variant, DDRNET_NAMES, weights)

    return build


def _plain(name: str) -> Callable[..., Network]:
    def build(backbone: Backbone | None, classes: int, weights: str | None, *, channels: int = 3) -> Network:
        if weights is not None:
            raise MaskwrightError(f"official weights for {name}", "a network that has official checkpoints")
        encoder = PlainEncoder(BLOCKS[name], channels)
        width = encoder.widths[-1]
        classifier = LinearClassifier(width, classes)
        return Network(encoder, LastMap(width), classifier, width=width, provenance=_own_provenance(name))

    return build


def _vit(name: str) -> Callable[..., Network]:
    """A builder for a head of `vit_heads`."""

    def build(backbone: Backbone, classes: int, weights: str | None, **options: Any) -> Network:
        setr = name.startswith("setr_")
        if setr:
            options = {"auxiliary": True, **options}
        head = vit_head(name, backbone.widths, classes, **options)
        encoder = BackboneEncoder(copy.deepcopy(backbone), head.layers, pyramid=True, norm=not setr)
        source = backbone.provenance
        inner: Any = encoder.backbone.model
        for unused in ("norm", "fc_norm") if setr else ():
            getattr(inner, unused, nn.Identity()).requires_grad_(False)
        if weights is not None:
            file = read_weights_file(weights)
            tensors = unwrap(file.tensors)
            for prefix in ("encoder.", "pretrained."):
                tensors = _under(tensors, prefix, strip=True) or tensors
            if setr:  # it leaves the last normalisation out, and so do its files
                tensors = {**_under(inner.state_dict(), "norm."), **tensors}
            inner.load_state_dict(translate(tensors, inner, file.source))
            load_official_head(file.tensors, head.decoder, head.classifier)
            source = _own_provenance(backbone.architecture, file)
        aux = {f"aux{i}": nn.Sequential(*pair) for i, pair in enumerate(head.auxiliary)}
        width = int(head.decoder.out)  # type: ignore[arg-type]
        return Network(encoder, head.decoder, head.classifier, width=width, provenance=source, aux=aux)

    return build


def _under(tensors: Mapping[str, Tensor], prefix: str, strip: bool = False) -> dict[str, Tensor]:
    """The tensors whose names begin with a prefix."""
    return {(n[len(prefix) :] if strip else n): v for n, v in tensors.items() if n.startswith(prefix)}


def _load_official(network: Network, architecture: str, names: Any, weights: str | None) -> Network:
    if weights is not None:
        file = read_weights_file(weights)
        network.load_state_dict(translate_network(file.tensors, network, names, network.classes, file.source))
        network.provenance = _own_provenance(architecture, file)
    return network


def _own_provenance(architecture: str, file: Any = None) -> Provenance:
    if file is None:
        return Provenance(architecture, "random", "none needed", "none")
    labels = file.metadata.get("labels_seen", "unknown")
    return Provenance(architecture, file.source, file.metadata.get("license", "unknown"), labels, file.sha256)


_STREAM = "Wang et al., TPAMI 2020"
_DDR = ("Pan et al., IEEE T-ITS 2023", "https://arxiv.org/abs/2101.06085")
_SETR = ("Zheng et al., CVPR 2021", "https://arxiv.org/abs/2012.15840")
_SEGMENTER = ("Strudel et al., ICCV 2021", "https://arxiv.org/abs/2105.05633")

NETWORKS: dict[str, Entry] = {
    "unet": Entry(
        "U-Net", "Ronneberger et al., MICCAI 2015", "https://arxiv.org/abs/1505.04597", "cnn", _smp("unet"), "smp", "1"
    ),
    "unetplusplus": Entry(
        "U-Net++",
        "Zhou et al., DLMIA 2018",
        "https://arxiv.org/abs/1807.10165",
        "cnn",
        _smp("unetplusplus"),
        "smp",
        "1",
    ),
    "pspnet": Entry(
        "PSPNet",
        "Zhao et al., CVPR 2017",
        "https://arxiv.org/abs/1612.01105",
        "cnn",
        _pspnet,
        "smp, auxiliary head ours",
        "8",
    ),
    "deeplabv1": Entry(
        "DeepLab v1 LargeFOV",
        "Chen et al., ICLR 2015",
        "https://arxiv.org/abs/1412.7062",
        "cnn",
        _deeplabv1,
        "ours",
        "8",
    ),
    "deeplabv2": Entry(
        "DeepLab v2",
        "Chen et al., TPAMI 2018",
        "https://arxiv.org/abs/1606.00915",
        "cnn",
        _deeplabv2,
        "ours, encoder timm",
        "8",
    ),
    "deeplabv3": Entry(
        "DeepLab v3",
        "Chen et al., 2017",
        "https://arxiv.org/abs/1706.05587",
        "cnn",
        _deeplabv3,
        "smp",
        "16",
    ),
    "deeplabv3plus": Entry(
        "DeepLab v3+",
        "Chen et al., ECCV 2018",
        "https://arxiv.org/abs/1802.02611",
        "cnn",
        _deeplabv3plus,
        "smp",
        "4",
    ),
    "fpn": Entry(
        "FPN", "Kirillov et al., CVPR 2019", "https://arxiv.org/abs/1901.02446", "cnn", _smp("fpn"), "smp", "4"
    ),
    "lateral_fpn": Entry(
        "PiCIE's FPN",
        "Cho et al., CVPR 2021",
        "https://arxiv.org/abs/2103.17070",
        "cnn",
        _lateral_fpn,
        "ours, encoder timm",
        "4",
    ),
    "upernet": Entry(
        "UPerNet",
        "Xiao et al., ECCV 2018",
        "https://arxiv.org/abs/1807.10221",
        "cnn",
        _smp("upernet"),
        "smp",
        "4",
    ),
    "segformer": Entry(
        "SegFormer's decoder",
        "Xie et al., NeurIPS 2021",
        "https://arxiv.org/abs/2105.15203",
        "cnn",
        _smp("segformer"),
        "smp",
        "4",
    ),
    "hrnet": Entry(
        "HRNetV2",
        _STREAM,
        "https://arxiv.org/abs/1908.07919",
        "cnn",
        _hrnet,
        "timm, head ours",
        "4",
    ),
    "ocr": Entry(
        "OCR",
        "Yuan et al., ECCV 2020",
        "https://arxiv.org/abs/1909.11065",
        "cnn",
        _ocr,
        "ours, encoder timm",
        "4 (HRNet), 8",
    ),
    "ddrnet23_slim": Entry("DDRNet-23-slim", *_DDR, "own", _ddrnet("ddrnet23_slim"), "ours", "8"),
    "ddrnet23": Entry("DDRNet-23", *_DDR, "own", _ddrnet("ddrnet23"), "ours", "8"),
    "ddrnet39": Entry("DDRNet-39", *_DDR, "own", _ddrnet("ddrnet39"), "ours", "8"),
    "iic10a": Entry(
        "SegmentationNet10a",
        "Ji et al., ICCV 2019",
        "https://arxiv.org/abs/1807.06653",
        "own",
        _plain("iic10a"),
        "ours",
        "2",
    ),
    "infoseg_cnn": Entry(
        "InfoSeg's blocks A to D",
        "Harb & Knöbelreiter, GCPR 2021",
        "https://arxiv.org/abs/2110.03477",
        "own",
        _plain("infoseg_cnn"),
        "ours",
        "8",
    ),
    "segmenter_linear": Entry(
        "Segmenter, linear", *_SEGMENTER, "vit", _vit("segmenter_linear"), "ours, encoder timm", "patch"
    ),
    "segmenter_mask": Entry(
        "Segmenter, mask transformer", *_SEGMENTER, "vit", _vit("segmenter_mask"), "ours, encoder timm", "patch"
    ),
    "setr_naive": Entry("SETR-Naive", *_SETR, "vit", _vit("setr_naive"), "ours, encoder timm", "patch"),
    "setr_pup": Entry("SETR-PUP", *_SETR, "vit", _vit("setr_pup"), "ours, encoder timm", "patch / 8"),
    "setr_mla": Entry("SETR-MLA", *_SETR, "vit", _vit("setr_mla"), "ours, encoder timm", "patch / 4"),
    "dpt": Entry(
        "DPT",
        "Ranftl et al., ICCV 2021",
        "https://arxiv.org/abs/2103.13413",
        "vit",
        _vit("dpt"),
        "ours, encoder timm",
        "patch / 8",
    ),
}
"""All networks by name; `VARIANTS` of `ddrnet` has the sizes of the DDRNets."""
assert set(VARIANTS) <= set(NETWORKS)
