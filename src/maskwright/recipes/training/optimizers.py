"""Optimisers of segmentation networks: parameter groups by depth and kind, one place for all methods."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from maskwright.recipes.pretraining.lars import LARS

if TYPE_CHECKING:
    from maskwright.recipes.training.options import OptimizerOptions

NOT_DECAYED = ("cls_token", "reg_token", "dist_token", "pos_embed")
"""Tensors of a transformer that are vectors by what they do, if not by their shape."""
OPTIMIZERS = ("sgd", "adamw")


def parameter_groups(
    network: Any, lr: float, encoder_lr: float, layer_decay: float, weight_decay: float
) -> list[dict[str, Any]]:
    """Groups by learning rate and weight decay.

    The head has `lr`, the encoder's deepest layer `lr * encoder_lr`, each layer before it `layer_decay` times the next.
    Norms, biases and other vectors are not decayed, nor are a transformer's class token and position embedding.

    Args:
        network: a `models.networks.network.Network`.
        lr: of the head.
        encoder_lr: share of it for the encoder.
        layer_decay: factor for each encoder layer towards the input.
        weight_decay: of matrices and kernels.
    """
    layers = network.encoder_layers()
    rated = [(network.head_parameters(), lr)]
    rated += [(layer, lr * encoder_lr * layer_decay ** (len(layers) - 1 - k)) for k, layer in enumerate(layers)]
    tables = {id(p) for name, p in network.named_parameters() if name.rpartition(".")[2] in NOT_DECAYED}
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for parameters, rate in rated:
        for p in parameters:
            if p.requires_grad:
                groups.setdefault((rate, weight_decay if p.ndim > 1 and id(p) not in tables else 0.0), []).append(p)
    return [{"params": ps, "lr": rate, "weight_decay": decay} for (rate, decay), ps in groups.items()]


def add_module(optimizer: torch.optim.Optimizer, module: nn.Module, lr: float, weight_decay: float) -> None:
    """Trains a module with an optimiser; biases and norms are not decayed.

    Args:
        optimizer: gets one or two groups more.
        module: with parameters that none of its groups holds.
        lr: initial rate; the loop's schedule is a factor on it.
        weight_decay: of matrices and kernels.
    """
    for vector, decay in ((False, weight_decay), (True, 0.0)):
        params = [p for p in module.parameters() if (p.ndim <= 1) == vector]
        if params:
            optimizer.add_param_group({"params": params, "lr": lr, "weight_decay": decay})


def make_optimizer(options: OptimizerOptions, network: Any) -> torch.optim.Optimizer:
    """The optimiser of options whose rates and decay are decided (`options.resolved`)."""
    o = options
    assert o.encoder_lr is not None and o.weight_decay is not None, "options that are not resolved"
    groups = parameter_groups(network, o.lr, o.encoder_lr, o.layer_decay, o.weight_decay)
    if o.name == "adamw":
        return torch.optim.AdamW(groups, lr=o.lr, betas=(0.9, 0.999))
    if o.name == "lars":
        return LARS(groups, o.lr)
    return torch.optim.SGD(groups, lr=o.lr, momentum=0.9, nesterov=True)
