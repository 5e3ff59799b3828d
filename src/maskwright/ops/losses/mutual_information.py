"""Mutual information of the cluster assignments of two views, over spatial displacements.

IIC, Invariant Information Clustering for Unsupervised Image Classification and Segmentation, Ji, Henriques, Vedaldi,
ICCV 2019, https://arxiv.org/abs/1807.06653. Joint distributions are added up and their logarithms taken in float64,
whatever the precision of the maps.

Legend: B images, K clusters, (h, w) map size, d greatest displacement, T = (2 d + 1)^2 displacements.
"""

from __future__ import annotations

import torch
from torch import Tensor

FLOOR = 1e-12
"""Least probability whose logarithm is taken, far above the rounding of the sums; there is no gradient below it."""
MASS = 1e-6
"""Pairs of pixels below which a displacement has none: a bilinear reading weighs its pixels."""


def joint(p1: Tensor, p2: Tensor, valid: Tensor, d: int) -> Tensor:
    """J_t[a, b] = sum_n,u M(u + t) p1_a(u + t) M(u) p2_b(u) of all displacements t at once, by Fourier transforms.

    Args:
        p1: probabilities of the first view (B, K, h, w).
        p2: of the second, in the frame of the first (B, K, h, w).
        valid: M, bool or weights (B, h, w).
        d: greatest displacement, pixels of the maps.

    Returns:
        float64 (K, K, 2 d + 1, 2 d + 1), differentiable; the displacement (ty, tx) lies at [ty + d, tx + d]. Pixels
        that are displaced out of the map count for nothing.

    Raises:
        ValueError: shapes that differ, or d below 0.
    """
    if p1.shape != p2.shape or p1.dim() != 4 or valid.shape != (p1.shape[0], *p1.shape[2:]) or d < 0:
        raise ValueError(f"maps {tuple(p1.shape)} and {tuple(p2.shape)}, mask {tuple(valid.shape)}, displacement {d}")
    m = valid.double()[:, None]
    if d == 0:
        return torch.einsum("nahw,nbhw->ab", p1.double() * m, p2.double() * m)[..., None, None]
    size = (p1.shape[2] + d, p1.shape[3] + d)  # no displacement comes around to the other side
    f1, f2 = (torch.fft.rfft2(p.double() * m, size) for p in (p1, p2))
    correlation = torch.fft.irfft2(torch.einsum("nahw,nbhw->abhw", f1, f2.conj()), size)
    t = torch.arange(-d, d + 1, device=p1.device)
    return correlation[..., (t % size[0])[:, None], t % size[1]]


def negative_information(p: Tensor, lamb: float = 1.0) -> Tensor:
    """- sum_ab P_ab (log P_ab - lambda log P_a - lambda log P_b); - I(a; b) at lambda 1.

    Args:
        p: joint distributions (..., K, K), symmetric, each of sum 1.
        lamb: lambda, weight of the marginals' entropies.

    Returns:
        (...), nats.
    """
    rows = p.sum(-1, keepdim=True).clamp(min=FLOOR).log()
    columns = p.sum(-2, keepdim=True).clamp(min=FLOOR).log()
    p = p.clamp(min=FLOOR)
    return -(p * (p.log() - lamb * rows - lamb * columns)).sum((-2, -1))


def _symmetric(p: Tensor) -> Tensor:
    return (p + p.transpose(-2, -1)) / 2


def uncollapsed_loss(p1: Tensor, p2: Tensor, valid: Tensor, d: int = 10, lamb: float = 1.0) -> Tensor:
    """IIC's loss of all published numbers: each displacement has an information of its own, and they are averaged.

    Displacements without a pair of valid pixels are left out.

    Args:
        p1: probabilities of the first view (B, K, h, w).
        p2: of the second, in the frame of the first (B, K, h, w).
        valid: which pixels count (B, h, w).
        d: greatest displacement, pixels of the maps.
        lamb: lambda.

    Returns:
        float64 number: - log K at best and 0 where assignments agree by chance, for lambda 1; 0 where no pixel is
        valid.
    """
    j = joint(p1, p2, valid, d).flatten(2).permute(2, 0, 1)  # (T, K, K)
    mass = j.sum((1, 2))
    some = mass > MASS
    p = _symmetric(j / torch.where(some, mass, 1)[:, None, None])
    return (negative_information(p, lamb) * some).sum() / some.sum().clamp(min=1)


def collapsed_loss(p1: Tensor, p2: Tensor, valid: Tensor, d: int = 10, lamb: float = 1.0) -> Tensor:
    """The other form: displacements are added up to one distribution, whose information counts.

    Its sum is taken as a constant, as the authors do; the gradient of logits is the same.

    Args:
        p1, p2, valid, d, lamb: as for `uncollapsed_loss`.

    Returns:
        float64 number.
    """
    j = joint(p1, p2, valid, d).sum((2, 3))
    mass = j.sum().detach()
    some = mass > MASS
    return negative_information(_symmetric(j / torch.where(some, mass, 1)), lamb) * some
