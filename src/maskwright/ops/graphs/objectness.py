"""Which part of a spectral embedding is the object: commute-time distance to the border, and thresholds without labels.

The eigenvectors of a graph Laplacian, each divided by the root of its eigenvalue, place nodes so that squared
distances are commute times of a random walk (Qiu & Hancock, PAMI 2007). Photographs show ground at their border
more often than the object (the boundary prior of saliency detection: Zhu et al., CVPR 2014), so what a walk from
the border takes long to reach is the object. Unlike the sign of one vector this has a side, and it uses all vectors
by their weight."""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
from torch import Tensor


def border_nodes(h: int, w: int) -> Tensor:
    """Indices of the outermost rows and columns of an (h, w) grid, row-major, each once."""
    grid = torch.arange(h * w).reshape(h, w)
    edge = torch.cat([grid[0], grid[-1], grid[:, 0], grid[:, -1]])
    return torch.unique(edge)


def border_distance(values: Tensor, vectors: Tensor, size: tuple[int, int], share: float = 0.25) -> Tensor:
    """How far each node is from the border, in commute time.

    Args:
        values: (k,) eigenvalues, ascending, the constant vector's first.
        vectors: (N, k) eigenvectors of (D - W) v = mu D v.
        size: (h, w) of the grid, N = h w.
        share: distance is the mean over this share of the border's nodes, the nearest ones: an object that touches
            the border a little stays far from the rest of it.

    Returns:
        (h, w) in [0, 1]; zeros where there is no second vector or nothing varies.

    Raises:
        ValueError: when sizes do not fit.
    """
    h, w = size
    if vectors.shape[0] != h * w or vectors.shape[1] != values.shape[0]:
        raise ValueError(f"{tuple(vectors.shape)} vectors and {tuple(values.shape)} values do not fit a {h} x {w} grid")
    if vectors.shape[1] < 2:
        return torch.zeros(h, w)
    z = vectors[:, 1:] / values[1:].clamp(min=1e-6).sqrt()  # (N, k - 1)
    edge = z[border_nodes(h, w).to(z.device)]
    nearest = max(1, int(share * len(edge)))
    d = torch.cdist(z, edge).topk(nearest, dim=1, largest=False).values.mean(1)
    spread = d.max() - d.min()
    if spread <= 1e-12:
        return torch.zeros(h, w)
    return ((d - d.min()) / spread).reshape(h, w)


def fiedler_side(vector: Tensor, size: tuple[int, int], rule: Literal["smaller", "border"] = "smaller") -> Tensor:
    """One side of the Fiedler vector's sign as a mask (h, w).

    Args:
        vector: (N,) second eigenvector.
        size: (h, w), N = h w.
        rule: the side with fewer nodes, the positive one of two halves (Deep Spectral Methods), or the one that touches
            the border less.

    Raises:
        ValueError: an unknown rule.
    """
    if rule not in ("smaller", "border"):
        raise ValueError(f"rule {rule!r}, expected smaller or border")
    h, w = size
    side = vector > 0
    where = border_nodes(h, w).to(side.device) if rule == "border" else slice(None)
    return (side if side[where].float().mean() <= 0.5 else ~side).reshape(h, w)


def otsu_threshold(x: np.ndarray, bins: int = 256) -> float:
    """The threshold that splits values into two groups with the least variance within (Otsu 1979).

    Args:
        x: values of any shape.
        bins: of the histogram between the least and the greatest value.

    Returns:
        The centre of the last bin of the lower group; the value itself where nothing varies.
    """
    flat = np.asarray(x, dtype=np.float64).ravel()
    if flat.size == 0:
        raise ValueError("no values to threshold")
    counts, edges = np.histogram(flat, bins=bins)
    centers = (edges[:-1] + edges[1:]) / 2
    if flat.min() == flat.max():
        return float(flat[0])
    below, above = np.cumsum(counts), np.cumsum(counts[::-1])[::-1]
    mean_below = np.cumsum(counts * centers) / np.maximum(below, 1)
    mean_above = (np.cumsum((counts * centers)[::-1]) / np.maximum(np.cumsum(counts[::-1]), 1))[::-1]
    between = below[:-1] * above[1:] * (mean_below[:-1] - mean_above[1:]) ** 2
    return float(centers[int(np.argmax(between))])
