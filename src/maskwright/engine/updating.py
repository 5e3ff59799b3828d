"""A step of optimisers on a loss: its gradients, their mean over processes, their greatest norm."""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from maskwright.engine.distributed import average_gradients

if TYPE_CHECKING:
    from lightning_fabric import Fabric


def take_step(
    optimizers: Collection[torch.optim.Optimizer], fabric: Fabric, loss: Tensor, clip: float | None = None
) -> None:
    """One step of optimisers, gradients the mean over processes; what they do not train gets gradients of the loss too.

    Args:
        optimizers: all of a training, or those of one player.
        fabric: device and processes.
        loss: of the training, or of that player.
        clip: greatest norm of each optimiser's gradient, a training's `clip`; None: as it is.
    """
    for optimizer in optimizers:
        optimizer.zero_grad(set_to_none=True)
    fabric.backward(loss)
    average_gradients(p for optimizer in optimizers for p in parameters_of(optimizer))
    for optimizer in optimizers:
        if clip is not None:
            nn.utils.clip_grad_norm_(parameters_of(optimizer), clip)
        optimizer.step()


def parameters_of(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    """What an optimiser trains."""
    return [p for group in optimizer.param_groups for p in group["params"]]
