"""The classifier of tags: untrained, as a stage left it, what it takes in, and its optimiser."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch

from maskwright.data.training.tag_targets import TagTargets
from maskwright.models.networks.cam import CamNetwork
from maskwright.models.preprocess import Preprocess

if TYPE_CHECKING:
    from maskwright.engine.context import Context

Make = Callable[["Context", Any, TagTargets], Any]
"""Builds an untrained network: (context, config, targets)."""


def make_cam_network(context: Context, config: Any, targets: TagTargets) -> CamNetwork:
    """An untrained classifier on a copy of the run's backbone."""
    c = config.classifier
    return CamNetwork(context.backbone, len(targets), c.output_stride or None, c.dropout, frozen_stages=c.freeze)


def tag_optimizer(options: Any, network: Any) -> torch.optim.Optimizer:
    """The optimiser of a classifier, over its network's groups.

    Args:
        options: `ClassifierOptions`.
        network: with `groups(lr, encoder_lr, weight_decay)`.
    """
    groups = network.groups(options.lr, options.encoder_lr, options.weight_decay)
    if options.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=options.lr)
    return sgd(groups, options.lr, options.momentum)


def sgd(groups: list[dict[str, Any]], lr: float, momentum: float) -> torch.optim.Optimizer:
    """SGD over parameter groups, Nesterov's where there is momentum."""
    return torch.optim.SGD(groups, lr=lr, momentum=momentum, nesterov=momentum > 0)


def tag_preprocess(context: Context, config: Any, multiple_of: int) -> Preprocess:
    """Normalisation of the backbone's weights; images up to the classifier's `long_side`."""
    provenance = context.backbone.provenance
    return Preprocess.for_backbone(provenance, long_side=config.classifier.long_side, multiple_of=multiple_of)


def tag_steps(context: Context, config: Any, default: int = 800) -> int:
    """Steps of a training stage on tags: the option's, else the run's, else the default."""
    return int(config.classifier.steps or context.steps or default)
