"""One photograph in the colours of another, without anything learned: low frequencies by Fourier transform, histograms.

Legend: (H, W) size of the photograph that is changed.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def fourier_adaptation(source: Tensor, target: Tensor, beta: float) -> Tensor:
    """FDA, Yang and Soatto, CVPR 2020, https://arxiv.org/abs/2004.05498: the target's amplitude in the low frequencies,
    all else the source's, with its phase everywhere.

    Args:
        source: numbers (..., H, W).
        target: of the same shape.
        beta: half a side of the box of low frequencies as a share of the shorter side; 0: `source` as it is, where the
            authors' numpy code still takes the target's mean.

    Returns:
        Of the same shape; it may leave the range of its input a little.
    """
    if beta == 0:
        return source
    return swap_amplitude(source, target, math.floor(beta * min(source.shape[-2:])))


def fda_bytes(source: Tensor, target: Tensor, beta: float) -> Tensor:
    """`fourier_adaptation` of photographs, uint8 (3, H, W) both, rounded and kept in the range of bytes.

    Raises:
        ValueError: other types, or beta outside [0, 0.5].
    """
    if source.dtype != torch.uint8 or target.dtype != torch.uint8:
        raise ValueError(f"{source.dtype} in the style of {target.dtype}, expected uint8, both")
    if not 0 <= beta <= 0.5:
        raise ValueError(f"beta is {beta}, expected 0 to 0.5")
    changed = fourier_adaptation(source.double(), target.double(), beta)
    return changed.round().clamp(0, 255).to(torch.uint8)


def swap_amplitude(source: Tensor, target: Tensor, half: int, *, centred: bool = True) -> Tensor:
    """The inverse transform of |F(target)| where the frequencies are low and |F(source)| elsewhere, with the phase of
    F(source).

    Args:
        source: numbers (..., H, W).
        target: of the same shape.
        half: b; frequencies -b to b of both axes are low. At 0 that is the mean alone.
        centred: False: -b to b - 1, the box of the authors' torch code, whose result is not real; its real part is
            given.

    Raises:
        ValueError: two shapes.
    """
    if source.shape != target.shape:
        raise ValueError(f"a source {tuple(source.shape)} and a target {tuple(target.shape)}, expected one shape")
    f_s, f_t = torch.fft.fft2(source), torch.fft.fft2(target)
    low = _low(source.shape[-2], half, centred, source)[:, None] & _low(source.shape[-1], half, centred, source)
    amplitude = torch.where(low, f_t.abs(), f_s.abs())
    return torch.fft.ifft2(torch.polar(amplitude, f_s.angle())).real


def _low(n: int, half: int, centred: bool, like: Tensor) -> Tensor:
    f = torch.fft.fftfreq(n, 1 / n, device=like.device).round()  # 0, 1, ..., -2, -1
    return (f >= -half) & (f <= half if centred else f < half)


def match_histograms(source: Tensor, target: Tensor) -> Tensor:
    """Each channel's values moved so that their distribution is that of the target's channel.

    A value of the source goes to the value, interpolated, that has the same share of its photograph's pixels below it
    and half of those at it (after Gonzalez and Woods, Digital image processing, section 3.3, who count all at it: a sky
    that is overexposed to 255 would all become the target's one brightest value, and its 254 a far darker one).

    Args:
        source: uint8 (C, H, W).
        target: uint8 (C, h, w), of any size.

    Returns:
        uint8 (C, H, W), rounded.

    Raises:
        ValueError: another type, or another number of channels.
    """
    if source.dtype != torch.uint8 or target.dtype != torch.uint8 or len(source) != len(target):
        raise ValueError(
            f"{source.dtype} {tuple(source.shape)} and {target.dtype} {tuple(target.shape)}, expected uint8 of as many "
            "channels"
        )
    return torch.stack([_matching(s, t)[s.long()] for s, t in zip(source, target)])


def _matching(source: Tensor, target: Tensor) -> Tensor:
    """What each value becomes, uint8 (256,)."""
    counts = [x.flatten().long().bincount(minlength=256).double() for x in (source, target)]
    below, there = ((n.cumsum(0) - n / 2) / n.sum() for n in counts)
    values = counts[1].nonzero()[:, 0]
    reached = there[values]  # ascending, without equals
    right = torch.searchsorted(reached, below).clamp(max=len(values) - 1)
    left = (right - 1).clamp(min=0)
    gap = reached[right] - reached[left]
    way = torch.where(gap > 0, (below - reached[left]) / gap.where(gap > 0, torch.ones_like(gap)), 1.0)
    low, high = values[left].double(), values[right].double()
    return (low + way.clamp(0, 1) * (high - low)).round().to(torch.uint8)
