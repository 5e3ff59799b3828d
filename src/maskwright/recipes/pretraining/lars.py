"""LARS: each matrix's step is measured by its own length (You, Gitman, Ginsburg, arXiv 1708.03888), as BYOL, MoCo v3
and SlotCon have it.

Beside `larc.LARC`: here the momentum is of scaled updates without the rate, and vectors (norms, biases) are neither
scaled nor decayed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor


class LARS(torch.optim.Optimizer):
    """m <- mu m + trust ||w|| / ||u|| u, u = g + decay w; w <- w - lr m.

    A matrix of zero length, or one without a gradient, takes u as it is.

    Args:
        params: parameters or groups of them.
        lr: learning rate.
        momentum: mu.
        weight_decay: of matrices and kernels; vectors have none.
        trust: the coefficient.
    """

    def __init__(
        self,
        params: Iterable[Tensor] | Iterable[dict[str, Any]],
        lr: float,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
        trust: float = 1e-3,
    ) -> None:
        if not trust > 0:
            raise ValueError(f"trust is {trust}, expected above 0")
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay, "trust": trust})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step; gradients are left as they are."""
        loss = closure() if closure is not None else None
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is None:
                    continue
                update = p.grad
                if p.ndim > 1:
                    update = update.add(p, alpha=group["weight_decay"])
                    length, long = p.norm(), update.norm()
                    scaled = group["trust"] * length / long.clamp(min=1e-30)
                    update = update * torch.where((length > 0) & (long > 0), scaled, torch.ones_like(scaled))
                state = self.state[p]
                if "momentum" not in state:
                    state["momentum"] = torch.zeros_like(p)
                p.sub_(state["momentum"].mul_(group["momentum"]).add_(update), alpha=group["lr"])
        return loss
