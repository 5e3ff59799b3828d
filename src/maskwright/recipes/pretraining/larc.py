"""LARC: each tensor's step is measured by its own length (You, Gitman, Ginsburg, arXiv 1708.03888).

SwAV, SimSiam's and PASS's large-batch recipes wrap SGD in it. With `clip` it only shortens steps; without, as they use
it, it decides their length altogether, and the learning rate is a factor on it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor


def two_rates(trained: Iterable[Tensor], slow: Iterable[Tensor], lr: float, share: float) -> list[dict[str, Any]]:
    """Groups of what is trained: what is among `slow`, at a share of the rate, and the rest, at all of it."""
    trained, within = list(trained), set(slow)
    return [
        {"params": [p for p in trained if p in within], "lr": lr * share},
        {"params": [p for p in trained if p not in within], "lr": lr},
    ]


class LARC(torch.optim.SGD):
    """SGD with momentum whose gradients are scaled per tensor by trust ||w|| / (||g|| + decay ||w||).

    Weight decay enters before the scaling. Tensors whose weights are all zero (a fresh bias) have no length to measure
    by; they take a plain step without decay, as in the original, but one of a gradient of at most unit length: from
    random weights and on small batches the original's first step can throw biases hundreds of deviations off, from
    where steps in proportion to their length never bring them back.

    Args:
        params: parameters or groups of them.
        lr: learning rate.
        momentum: of SGD.
        weight_decay: of all tensors, biases and norms too, as in the papers.
        trust: the coefficient.
        clip: never take a longer step than plain SGD.
    """

    def __init__(
        self,
        params: Iterable[Tensor] | Iterable[dict[str, Any]],
        lr: float,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
        trust: float = 1e-3,
        clip: bool = False,
    ) -> None:
        if not trust > 0:
            raise ValueError(f"trust is {trust}, expected above 0")
        super().__init__(params, lr=lr, momentum=momentum, weight_decay=weight_decay)
        self.trust, self.clip = trust, clip

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step; gradients are overwritten with what SGD is given."""
        decays = [group["weight_decay"] for group in self.param_groups]
        for group in self.param_groups:
            self._scale(group)
            group["weight_decay"] = 0.0  # it is in the gradients now
        try:
            return super().step(closure)
        finally:
            for group, decay in zip(self.param_groups, decays):
                group["weight_decay"] = decay

    def _scale(self, group: dict[str, Any]) -> None:
        params = [p for p in group["params"] if p.grad is not None]
        if not params:
            return
        grads: list[Tensor] = [p.grad for p in params]
        w = torch.stack(torch._foreach_norm(params)).float()
        g = torch.stack(torch._foreach_norm(grads)).float()
        measured = (w > 0) & (g > 0)
        rate = self.trust * w / (g + group["weight_decay"] * w).clamp(min=1e-30)
        if self.clip:
            rate = (rate / max(group["lr"], 1e-30)).clamp(max=1.0)
        rate = torch.where(measured, rate, 1 / g.clamp(min=1.0))
        decay = torch.where(measured, rate * group["weight_decay"], 0.0)
        torch._foreach_mul_(grads, list(rate.unbind()))
        torch._foreach_add_(grads, torch._foreach_mul(params, list(decay.unbind())))
