"""Fully Convolutional Networks for Semantic Segmentation, Long et al., CVPR 2015, https://arxiv.org/abs/1411.4038

Training on masks alone: any network of the table, per-pixel cross-entropy (or OHEM, Dice, Lovasz, class weights), AdamW
or SGD with the poly schedule. It is the floor that every semi-supervised method is measured against with the same
masks, and the ceiling with all of them.

Deviates: one network head instead of FCN's; the recipe (random scale 0.5 to 2, crop, flip, poly 0.9, a lower rate
for the pretrained encoder) is that of DeepLab and PSPNet, which all papers of this field build on, with AdamW in place
of their SGD where `optimizer` does not say otherwise (docs/semi.md).
What published floors get wrong: they are often trained for fewer steps than the methods beside them. Here steps are
optimiser steps for every method, whatever a method's own epoch is.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from maskwright.recipes.training.method import NetworkMethod
from maskwright.recipes.training.options import NetworkConfig


@dataclass(kw_only=True)
class SupervisedConfig(NetworkConfig):
    """Options of `supervised`."""


class Supervised(NetworkMethod):
    """A network trained on the masks that may be read."""

    name: ClassVar[str] = "supervised"
    title: ClassVar[str] = "Fully Convolutional Networks for Semantic Segmentation"
    venue: ClassVar[str] = "Long et al., CVPR 2015"
    link: ClassVar[str] = "https://arxiv.org/abs/1411.4038"
    summary: ClassVar[str] = "Trains a network on the masks alone."
    family: ClassVar[str] = "supervised"
    Config: ClassVar[type] = SupervisedConfig
    says: ClassVar[str] = "a segmentation network on the masks"
