"""The EMA teacher, with its policies named.

Code bases agree on the parameters and disagree on the rest: whether batch-norm statistics follow the student by
EMA, are copied, or are the teacher's own, and whether the teacher runs in train or eval mode. Here both are
options."""

from __future__ import annotations

import copy
from typing import Any, Literal

import torch
from torch import Tensor, nn

Buffers = Literal["ema", "copy", "own"]


class EMATeacher(nn.Module):
    """An exponential moving average of a student: theta_t <- a theta_t + (1 - a) theta_s, a = min(1 - 1/(n + 1),
    a_max).

    n counts updates from 0, so the first update copies the student. Tarvainen & Valpola, NeurIPS 2017.

    Args:
        student: the module to follow; it is copied, never aliased.
        momentum: a_max in [0, 1].
        buffers: `ema` averages float buffers and copies integer ones, `copy` copies all, `own` leaves the teacher's.
        mode: `eval` or `train`; `train` keeps those batch-norm layers in train mode that are so in the student when it
            is copied, and dropout off.
        warm: whether momentum grows from 0 as above; False uses a_max from the first update.
    """

    def __init__(
        self,
        student: nn.Module,
        momentum: float = 0.99,
        buffers: Buffers = "ema",
        mode: Literal["eval", "train"] = "eval",
        warm: bool = True,
    ) -> None:
        super().__init__()
        if not 0 <= momentum <= 1:
            raise ValueError(f"momentum {momentum} is outside [0, 1]")
        if buffers not in ("ema", "copy", "own"):
            raise ValueError(f"buffers {buffers!r} is not ema, copy or own")
        self.module = copy.deepcopy(student).requires_grad_(False)
        self.momentum, self.buffer_policy, self.teacher_mode, self.warm = momentum, buffers, mode, warm
        self.updates = 0
        norms = (n for n, m in student.named_modules() if isinstance(m, nn.modules.batchnorm._BatchNorm) and m.training)
        self.norms = tuple(norms) if mode == "train" else ()
        self.train(False)

    def train(self, mode: bool = True) -> EMATeacher:
        """The teacher's mode is its own: the student's `train()` and `eval()` do not reach it."""
        self.training = False
        self.module.eval()
        for name in self.norms:
            self.module.get_submodule(name).train()
        return self

    @torch.no_grad()
    def update(self, student: nn.Module, momentum: float | None = None) -> None:
        """Follows the student by one step.

        Args:
            student: the module that was copied.
            momentum: overrides a_max for this update (schedules).
        """
        a = self.momentum if momentum is None else momentum
        if self.warm:
            a = min(1 - 1 / (self.updates + 1), a)
        self.updates += 1
        for t, s in zip(self.module.parameters(), student.parameters(), strict=True):
            t.lerp_(s.detach().to(t.dtype), 1 - a) if a > 0 else t.copy_(s)
        if self.buffer_policy == "own":
            return
        for mine, theirs in zip(self.module.buffers(), student.buffers(), strict=True):
            if self.buffer_policy == "ema" and mine.is_floating_point() and a > 0:
                mine.lerp_(theirs.detach().to(mine.dtype), 1 - a)
            else:
                mine.copy_(theirs)

    @torch.no_grad()
    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The teacher's output, without gradient."""
        return self.module(*args, **kwargs)

    def get_extra_state(self) -> Tensor:
        """The number of updates: without it a resumed run would restart its momentum at 0."""
        return torch.tensor(self.updates)

    def set_extra_state(self, state: Tensor) -> None:
        """Restores the number of updates."""
        self.updates = int(state)
