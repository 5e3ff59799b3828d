"""A discriminator as a part of a training: its optimiser, its freeze, its losses.

Legend: B batch, S crop side.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from maskwright.ops.losses.seg_losses import reduce_pixels


class Adversary:
    """A discriminator D and what trains it.

    Args:
        discriminator: D; moved to the device.
        device: where it runs.
        lr: its learning rate, on which the loop's schedule is a factor.
        betas: of Adam.
    """

    def __init__(
        self, discriminator: nn.Module, device: torch.device, lr: float, betas: tuple[float, float] = (0.9, 0.99)
    ) -> None:
        self.discriminator: Any = discriminator.to(device)
        self.optimizer = torch.optim.Adam(discriminator.parameters(), lr=lr, betas=betas)

    def __call__(self, *seen: Tensor) -> Any:
        """D's verdicts, with gradients into D."""
        return self.discriminator(*seen)

    @contextmanager
    def frozen(self) -> Iterator[Any]:
        """D as a judge: gradients flow through it, its parameters get none."""
        trained = [p for p in self.discriminator.parameters() if p.requires_grad]
        for p in trained:
            p.requires_grad_(False)
        try:
            yield self.discriminator
        finally:
            for p in trained:
                p.requires_grad_(True)


def adversarial(verdicts: Tensor, real: bool, valid: Tensor | None = None) -> Tensor:
    """BCE(sigma(D), 1) where `real`, else BCE(sigma(D), 0); 1 stands for people's labels throughout.

    Args:
        verdicts: logits (B, S, S) or (B,).
        real: what they ought to say.
        valid: bool (B, S, S), the pixels that count.
    """
    losses = F.softplus(-verdicts if real else verdicts)
    return losses.mean() if valid is None else reduce_pixels(losses, valid)


def least_squares(verdicts: Tensor, wanted: float, valid: Tensor | None = None) -> Tensor:
    """Mean (D - wanted)^2 of LSGAN, Mao et al., ICCV 2017, https://arxiv.org/abs/1611.04076; without its half.

    Args:
        verdicts: numbers (B, 1, h, w); of any shape where all of them count.
        wanted: what they ought to be.
        valid: bool (B, S, S), pixels of what is judged; a verdict counts where the pixel at its place does.
    """
    losses = (verdicts - wanted).square()
    if valid is None:
        return losses.mean()
    losses = losses[:, 0]
    return reduce_pixels(losses, at_places(valid, losses.shape[-2:]))


def at_places(valid: Tensor, size: Sequence[int]) -> Tensor:
    """Which verdicts count, bool (B, h, w): those whose pixel does.

    Args:
        valid: bool (B, S, S), pixels of what is judged.
        size: (h, w) of the map of verdicts.
    """
    return F.interpolate(valid[:, None].float(), tuple(size), mode="nearest")[:, 0] > 0


def hinge(verdicts: Tensor, real: bool) -> Tensor:
    """Mean max(0, 1 - D) where `real`, else mean max(0, 1 + D): the discriminator's loss of geometric GANs (Lim & Ye,
    https://arxiv.org/abs/1705.02894); its opponent minimises - mean D.

    Args:
        verdicts: numbers of any shape.
        real: what they ought to say.
    """
    return F.relu(1 - verdicts if real else 1 + verdicts).mean()
