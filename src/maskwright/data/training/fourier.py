"""FDA: Fourier domain adaptation, Yang and Soatto, CVPR 2020, https://arxiv.org/abs/2004.05498: a photograph with the
low frequencies of another's amplitude, which hold its light and colour; the phase, which holds what is seen, stays.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def fda(image: Tensor, style: Tensor, beta: float) -> Tensor:
    """The photograph in the style of another.

    Args:
        image: uint8 (3, H, W).
        style: uint8, of the same shape.
        beta: half the side of the window of frequencies that is taken over, as a share of the shorter side, rounded
            down: where that gives 0 the mean colour alone is. At beta = 0 nothing is.

    Returns:
        uint8 (3, H, W).

    Raises:
        ValueError: other shapes or types, or beta outside [0, 0.5].
    """
    if image.dtype != torch.uint8 or style.dtype != torch.uint8 or image.shape != style.shape or image.dim() != 3:
        raise ValueError(f"{tuple(image.shape)} in the style of {tuple(style.shape)}, expected uint8 (3, H, W), both")
    if not 0 <= beta <= 0.5:
        raise ValueError(f"beta is {beta}, expected 0 to 0.5")
    if beta == 0:
        return image.clone()
    height, width = image.shape[-2:]
    b = int(min(height, width) * beta)
    # Few frequencies change: each is a sum over the pixels, and what it changes is added to them.
    down, across = (_waves(n, sorted({k % n for k in range(-b, b + 1)})) for n in (height, width))
    found, other = (down @ x.to(down.dtype) @ across.T for x in (image, style))  # (3, 2b + 1, 2b + 1)
    change = torch.polar(other.abs(), found.angle()) - found
    added = (down.conj().T @ change @ across.conj()).real / (height * width)
    return (image.double() + added).round().clamp(0, 255).to(torch.uint8)


def _waves(n: int, frequencies: list[int]) -> Tensor:
    """exp(-2 pi i f k / n), complex128 (F, n)."""
    angle = -2 * math.pi * torch.outer(torch.tensor(frequencies), torch.arange(n)).double() / n
    return torch.polar(torch.ones_like(angle), angle)
