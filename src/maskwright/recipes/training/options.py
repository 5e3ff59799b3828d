"""Options of everything that trains a segmentation network, a group for each part."""

from __future__ import annotations

from dataclasses import dataclass

from maskwright.engine.config import Idle, option, part
from maskwright.errors import MaskwrightError
from maskwright.models.preprocess import MAX_LONG_SIDE
from maskwright.recipes.training.optimizers import OPTIMIZERS


@dataclass(kw_only=True)
class NetworkOptions:
    """Which network is trained."""

    name: str = option(
        "auto", "a name of the table of networks; auto: deeplabv3plus on a CNN, dpt on a ViT", old="network", main=True
    )
    encoder: str = option("", "timm name of its encoder, the same as --backbone; empty: the run's backbone")
    weights: str = option("", "official checkpoint of a network that has an encoder of its own", old="network_weights")
    options: str = option(
        "", "options of its builder, key=value joined by ;, as output_stride=8", old="network_options"
    )


@dataclass(kw_only=True)
class CropOptions:
    """What a step sees of the photographs."""

    size: int = option(
        256, "side of the square training crops, pixels; rounded up to what the network takes", low=16, old="crop",
        main=True,
    )  # fmt: skip
    batch: int = option(4, "labelled crops in a step", low=1, main=True)
    long_side: int = option(
        1024, "larger images are first scaled to this longer side, pixels", low=16, high=MAX_LONG_SIDE
    )
    scale_min: float = option(0.5, "least random scale of a labelled crop", low=0.05, high=10)
    scale_max: float = option(2.0, "greatest random scale", low=0.05, high=10)
    sample: str = option(
        "photographs",
        "which labelled photograph comes next: each as often as any other, or first a class at random, then one of the "
        "photographs that show it (reads all labels)",
        choices=("photographs", "classes"),
    )

    def check(self) -> None:
        """Raises `MaskwrightError` on options that contradict each other."""
        if self.scale_min > self.scale_max:
            raise MaskwrightError(f"scale_min={self.scale_min}", f"at most scale_max={self.scale_max}")


@dataclass(kw_only=True)
class OptimizerOptions:
    """How weights move."""

    name: str = option("adamw", "adamw, or sgd with Nesterov momentum 0.9", choices=OPTIMIZERS, old="optimizer")
    lr: float = option(
        0.0, "the head's rate, poly schedule; 0: adamw 1e-3, 2e-4 on a vision transformer; sgd 0.01", low=0, main=True
    )
    encoder_lr: float | None = option(
        None,
        "the encoder's share of lr; none: adamw 0.3, 1/40 on a vision transformer; sgd 1; without pretrained weights 1",
        low=0,
        high=10,
    )
    layer_decay: float = option(
        1.0, "further factor on the rate for each encoder layer towards the input", low=0.1, high=1
    )
    weight_decay: float | None = option(None, "of all but norms and biases; none: adamw 0.01, sgd 1e-4", low=0)


@dataclass(kw_only=True)
class LossOptions:
    """The supervised loss."""

    terms: str = option("ce", "terms joined by +: ce, ohem, dice, lovasz; ce+dice adds the two", old="loss")
    ohem_threshold: float = option(0.7, "ohem keeps pixels whose probability of their class is below", low=0, high=1)
    ohem_kept: float = option(1 / 16, "and at least this share of the pixels", low=0, high=1)
    balance: bool = option(
        False, "weigh classes by the inverse square root of their share in the labels (reads them all)"
    )


@dataclass(kw_only=True)
class NormOptions:
    """Batch normalisation."""

    freeze: bool | None = option(False, "keep the encoder's batch-norm statistics; none: if trained", old="freeze_norm")
    images: int = option(
        64,
        "whole photographs that batch-norm statistics are retaken on after training, at least 2; 0: training's own",
        low=0,
        old="norm_images",
    )
    photographs: str = option(
        "seen",
        "which photographs these are: those that training looked at, or all of the run",
        choices=("seen", "all"),
        old="norm_from",
    )


@dataclass(kw_only=True)
class CropConfig:
    """Options of everything that trains a segmentation network, with labels or without."""

    network: NetworkOptions = part(NetworkOptions)
    crops: CropOptions = part(
        CropOptions, without=("sample",),
        says={"batch": "photographs in a step", "scale_min": "least random scale of a crop"},
    )  # fmt: skip
    optimizer: OptimizerOptions = part(OptimizerOptions)
    norms: NormOptions = part(NormOptions, without=("photographs",), photographs="all")
    steps: int = option(2000, "optimiser steps where --steps does not say", low=1, main=True)
    precision: str = option(
        "auto", "bf16 where the processor has it (1.4 x), or fp32", choices=("auto", "bf16", "fp32")
    )

    def idle(self) -> Idle:
        """Rates of an encoder's layers where it does not learn."""
        if self.optimizer.encoder_lr == 0:
            yield ("optimizer.layer_decay",), "optimizer.encoder_lr=0"


@dataclass(kw_only=True)
class NetworkConfig(CropConfig):
    """Options of everything that trains a segmentation network on labels."""

    crops: CropOptions = part(CropOptions)
    loss: LossOptions = part(LossOptions)
    norms: NormOptions = part(NormOptions)
    holdout: float = option(
        0.0, "share of the labelled images held out to choose the iterate; 0: the last", low=0, high=0.9
    )

    def idle(self) -> Idle:
        """Options of a loss that is not asked for, and whose statistics are taken where none are."""
        yield from super().idle()
        terms, why = {term.strip() for term in self.loss.terms.split("+")}, f"loss.terms={self.loss.terms}"
        if "ohem" not in terms:
            yield ("loss.ohem_threshold", "loss.ohem_kept"), why
        if terms <= {"dice", "lovasz"}:  # of whole sets of pixels, which no class weight reaches
            yield ("loss.balance",), why
        if self.norms.images == 0:
            yield ("norms.photographs",), "norms.images=0"
