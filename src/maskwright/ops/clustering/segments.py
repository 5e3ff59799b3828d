"""Spherical k-means within an image, and the segments and prototypes that it gives.

Pixels carry unit vectors; k-means sees these with the pixel's place appended, made unit again. Segments are clusters,
or clusters cut by regions. Their prototypes are unit sums of the vectors without the place.

Legend: B images, N pixels of one image or of a batch, K clusters, S segments, D width, (h, w) map size.

Sources: SegSort, Hwang et al., ICCV 2019, https://arxiv.org/abs/1910.06962; HSG, Ke et al., CVPR 2022,
https://arxiv.org/abs/2204.11432.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

Layout = Literal["corner", "centred"]
"""Where k-means starts and how places are written. `corner`, SegSort's: cells of ceil(side / n) pixels from the upper
left corner, of which there may be fewer than n, and y / h, x / w in [0, 1). `centred`, HSG's: n cells whose outermost
are half as wide, and places from -0.5 to 0.5."""


def grid_labels(size: tuple[int, int], n: int | tuple[int, int], layout: Layout = "corner") -> Tensor:
    """The cell of each pixel of a grid of at most n by n, numbered down the columns, int64 (h, w).

    Args:
        size: (h, w).
        n: cells down and across, at least 1.
        layout: which grid.
    """
    down, across = (n, n) if isinstance(n, int) else n
    (rows, count), (columns, _) = (_cells(side, k, layout) for side, k in zip(size, (down, across)))
    return rows[:, None] + count * columns[None]


def _cells(side: int, n: int, layout: Layout) -> tuple[Tensor, int]:
    """The cell of each of `side` pixels, and how many cells there are."""
    if layout == "centred":
        return (_steps(side) * (n - 1)).round().long(), n
    cell = (side + n - 1) // n  # of whole numbers above 0: an exported division of one below 0 rounds to 0
    return torch.arange(side) // cell, (side + cell - 1) // cell


def located(v: Tensor, layout: Layout = "corner") -> Tensor:
    """Unit vectors (B, D, h, w) with the place of each pixel appended, made unit again: (B, D + 2, h, w)."""
    b, _, h, w = v.shape
    y, x = (_places(side, layout, v) for side in (h, w))
    places = torch.stack((y[:, None].expand(h, w), x[None].expand(h, w)))
    return F.normalize(torch.cat((v, places[None].expand(b, -1, -1, -1)), 1), dim=1)


def _places(side: int, layout: Layout, like: Tensor) -> Tensor:
    if layout == "corner":
        return torch.arange(side, device=like.device).to(like) / side
    return _steps(side, like.device).to(like) - 0.5


def _steps(side: int, device: torch.device | None = None) -> Tensor:
    """From 0 to 1 in float64; `linspace` fixes the side where a network is traced for all sizes."""
    last: Any = torch.sym_max(side - 1, 1)
    return torch.arange(side, device=device).double().div(last)


def cluster_within(z: Tensor, start: Tensor, k: int, iterations: int, counted: Tensor | None = None) -> Tensor:
    """Spherical k-means of each image on its own: centres are unit sums, pixels go to the greatest product.

    A cluster that empties stays empty: in the authors' first code its centre is 0 / 0 and never chosen again, in their
    later one it is zero, and draws pixels whose products with all others are negative.

    Args:
        z: (B, N, D), unit.
        start: int64 (B, N) in [0, K), where it starts.
        k: K.
        iterations: at least 0.
        counted: bool (B, N), pixels that take part; all if None.

    Returns:
        int64 (B, N), the cluster of each pixel, also of those that take no part.
    """
    labels = start
    for _ in range(iterations):
        member = F.one_hot(labels, k).to(z.dtype)  # (B, N, K)
        if counted is not None:
            member = member * counted[..., None].to(z.dtype)
        centres = F.normalize(member.transpose(1, 2) @ z, dim=2)  # (B, K, D)
        empty = member.sum(1) == 0  # (B, K)
        labels = (z @ centres.transpose(1, 2)).masked_fill(empty[:, None], -torch.inf).argmax(2)
    return labels


def segments_within(
    v: Tensor, n: int, iterations: int, layout: Layout = "corner", counted: Tensor | None = None
) -> Tensor:
    """Clusters of each image's pixels from a grid on, int64 (B, h, w), in [0, n n); no gradient.

    Args:
        v: unit vectors (B, D, h, w).
        n: cells of the grid down and across. 1: one segment.
        iterations: of k-means.
        layout: of the grid and of places.
        counted: bool (B, h, w), pixels that take part.
    """
    b, _, h, w = v.shape
    start = grid_labels((h, w), n, layout).to(v.device).flatten()[None].expand(b, -1)
    if n == 1:
        return start.view(b, h, w)
    z = located(v.detach(), layout).flatten(2).transpose(1, 2)
    found = cluster_within(z, start, n * n, iterations, None if counted is None else counted.flatten(1))
    return found.view(b, h, w)


def numbered(*keys: Tensor) -> tuple[Tensor, Tensor]:
    """Numbers the distinct tuples of integers, in sorted order.

    Args:
        keys: int64 (N,) each, at least 0.

    Returns:
        int64 (N,) in [0, S), the number of each tuple; and int64 (S,), for each number a place where it stands.
    """
    joined = torch.zeros_like(keys[0])
    for key in keys:
        joined = joined * (int(key.max()) + 1 if len(key) else 1) + key
        joined = joined.unique(return_inverse=True)[1]
    count = int(joined.max()) + 1 if len(joined) else 0
    place = joined.new_full((count,), len(joined))
    return joined, place.scatter_reduce(0, joined, torch.arange(len(joined), device=joined.device), "amin")


def prototypes(v: Tensor, segments: Tensor, count: int) -> Tensor:
    """Unit sums (S, D) of the vectors of each segment; 0 of one without pixels.

    Args:
        v: (N, D), unit. Gradients flow.
        segments: int64 (N,), in [0, S).
        count: S.
    """
    return F.normalize(v.new_zeros(count, v.shape[1]).index_add(0, segments, v), dim=1)


def majority(ids: Tensor, segments: Tensor, classes: int, count: int) -> Tensor:
    """The most frequent class of each segment, the smaller of two that tie: int64 (S,), 0 of one without pixels.

    Args:
        ids: int64 (N,), in [0, C).
        segments: int64 (N,), in [0, S).
        classes: C.
        count: S.
    """
    return torch.bincount(segments * classes + ids, minlength=count * classes).view(count, classes).argmax(1)
