"""STEGO's losses, and the shifts and weights that they need (Hamilton et al., ICLR 2022).

Legend: B batch, D channels of f, E channels of c, P = points^2 sampled positions, K clusters.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def normalize(x: Tensor) -> Tensor:
    """Unit length over channels (dimension 1)."""
    return F.normalize(x, dim=1, eps=1e-10)


def correlation(a: Tensor, b: Tensor) -> Tensor:
    """Cosine of every position of a with every position of b.

    Args:
        a: (B, D, P), unit length over D.
        b: (B, D, P), likewise.

    Returns:
        (B, P, P) in [-1, 1]; [n, i, j] of position i of a and j of b.
    """
    return a.transpose(1, 2) @ b


def center(f: Tensor) -> Tensor:
    """Spatial centring of correlations (B, P, P): each anchor position loses its mean, the mean of all is kept."""
    m = f.mean()
    f1 = f - f.mean(dim=2, keepdim=True)
    return f1 - f1.mean() + m


def correspondence_loss(f_a: Tensor, f_b: Tensor, c_a: Tensor, c_b: Tensor, b: float) -> Tensor:
    """- clamp(S, 0) (F_centred - b), averaged: codes correlate where features do by more than b.

    Args:
        f_a: features (B, D, P) of the anchors, unit length; no gradient reaches them.
        f_b: features (B, D, P) of the partners, unit length.
        c_a: codes (B, E, P) of the anchors, unit length.
        c_b: codes (B, E, P) of the partners, unit length.
        b: shift.
    """
    with torch.no_grad():
        f = center(correlation(f_a, f_b))
    s = correlation(c_a, c_b)
    return -(s.clamp(min=0) * (f - b)).mean()


def super_permutation(size: int, generator: torch.Generator | None = None) -> Tensor:
    """Indices (size,) that never name themselves where size >= 2; an index may occur twice, as in the original."""
    p = torch.randperm(size, generator=generator)
    p[p == torch.arange(size)] += 1
    return p % size


def sample(x: Tensor, points: Tensor, sampling: str = "corners") -> Tensor:
    """Bilinear samples of unit length.

    Args:
        x: maps (B, D, h, w).
        points: (B, P, 2) in [-1, 1], x before y.
        sampling: "corners": -1 and 1 are the centres of the outer cells; "cells": their outer edges, and the half cell
            between repeats the rim, which of a 14 x 14 grid is 14 % of the points.

    Returns:
        (B, D, P).
    """
    aligned = sampling == "corners"
    return normalize(F.grid_sample(x, points[:, None], padding_mode="border", align_corners=aligned)[:, :, 0])


def quantile_shift(correlations: Tensor, share: float) -> float:
    """The shift that a share of centred correlations exceed."""
    flat = correlations.flatten()
    rank_ = min(len(flat) - 1, int((1 - share) * len(flat)))
    return float(flat.kthvalue(rank_ + 1).values)


def balanced_weights(spreads: Sequence[float], weights: Sequence[float]) -> list[float]:
    """Weights under which each pairing pulls with the strength its weight asks for.

    A pairing's gradient on S is F_centred - b; pairings whose correlations spread less would pull less.

    Args:
        spreads: mean |F_centred - b| of each pairing.
        weights: the wanted proportions.

    Returns:
        Weights with the same sum.
    """
    raw = [w / max(s, 1e-6) for w, s in zip(weights, spreads)]
    return [r * sum(weights) / sum(raw) for r in raw]


class ClusterProbe(nn.Module):
    """K directions trained beside the head by the cosine k-means energy; no gradient reaches the codes."""

    def __init__(self, clusters: int, code: int) -> None:
        super().__init__()
        self.mu = nn.Parameter(torch.randn(clusters, code))

    def forward(self, c: Tensor) -> Tensor:
        """- mean over positions of the cosine to the nearest direction; c: (B, E, h, w)."""
        return -torch.einsum("behw,ke->bkhw", normalize(c.detach()), normalize(self.mu)).amax(1).mean()
