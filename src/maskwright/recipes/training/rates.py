"""What rates, decay and batch norm a network is trained with where the options do not say."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeVar

from maskwright.models.networks.build import brings_encoder
from maskwright.recipes.training.options import CropConfig, NetworkOptions

if TYPE_CHECKING:
    from maskwright.engine.context import Context
    from maskwright.models.backbones.dense import Backbone

C = TypeVar("C", bound=CropConfig)

OF_FEW_CROPS: dict[str, Any] = {
    "without": ("photographs",), "photographs": "all", "freeze": None,
    "says": {"freeze": "keep the encoder's batch-norm statistics; none: if trained (preset)"},
}  # fmt: skip
"""How the part `NormOptions` begins where a step has few photographs and no labels: the statistics of trained weights
are kept if the preset does not say otherwise (docs/results.md)."""


def learns_vit(network: NetworkOptions, backbone: Backbone) -> bool:
    """Whether the network that will be trained has a vision transformer as its encoder."""
    return backbone.is_vit and not brings_encoder(network.name)


def starts_pretrained(network: NetworkOptions, backbone: Backbone) -> bool:
    """Whether the encoder that will be trained starts from weights that learned something."""
    untrained = brings_encoder(network.name) or backbone.provenance.source == "random"
    return bool(network.weights) or not untrained


def resolved(config: C, context: Context, backbone: Backbone | None = None) -> C:
    """The configuration with its rates, its decay and whether batch norms learn decided; what it says already stays.

    AdamW by default, also on a convolutional network, where papers have SGD and schedules of many epochs: with a dozen
    masks and 800 steps it was ahead of SGD on photographs that were not trained on (docs/semi.md). A vision transformer
    has UniMatch V2's rates. An encoder of random weights learns as fast as the head.

    Args:
        config: options.
        context: of the run.
        backbone: that the network stands on; the run's if None.
    """
    o, backbone = config.optimizer, context.backbone if backbone is None else backbone
    sgd, is_vit = o.name == "sgd", learns_vit(config.network, backbone)
    lr = 0.01 if sgd else (2e-4 if is_vit else 1e-3)
    slower = 1 / 40 if is_vit else 0.3
    share = slower if not sgd and starts_pretrained(config.network, backbone) else 1.0
    decided = replace(
        o,
        lr=o.lr or lr,
        encoder_lr=share if o.encoder_lr is None else o.encoder_lr,
        weight_decay=(1e-4 if sgd else 0.01) if o.weight_decay is None else o.weight_decay,
    )
    norms = config.norms
    if norms.freeze is None:
        norms = replace(norms, freeze=starts_pretrained(config.network, backbone))
    return replace(config, optimizer=decided, norms=norms)


def note_rates(setup: Any) -> None:
    """Says what learns at which rates.

    Args:
        setup: a `CropSetup`.
    """
    o, decoder = setup.config.optimizer, type(setup.network.decoder).__name__
    setup.context.note(f"Decoder {decoder}, {o.name} at {o.lr:g}, encoder at {o.encoder_lr:g} of it.")
