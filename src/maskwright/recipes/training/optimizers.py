"""Optimisers of segmentation networks: parameter groups by depth and kind, one place for all methods."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

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
        network: a `models.networks.Network`.
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


def make_optimizer(config: Any, network: Any) -> torch.optim.Optimizer:
    """The optimiser of a configuration whose `optimizer`, rates and decay are decided (`segmenting.resolved`)."""
    groups = parameter_groups(network, config.lr, config.encoder_lr, config.layer_decay, config.weight_decay)
    if config.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=config.lr, betas=(0.9, 0.999))
    return torch.optim.SGD(groups, lr=config.lr, momentum=0.9, nesterov=True)
