"""Regions of an image between contours: superpixels that are joined where the contour between them is weakest.

Each border has the mean contour along it as its strength, as in ultrametric contour maps (Arbelaez et al., TPAMI 2011).
These start from a watershed and join by strength alone; this starts from superpixels, and joins small regions first.
Contours are given (those of a detector), or are the image's own colour gradients.

Legend: (H, W) image size, R regions.
"""

from __future__ import annotations

import heapq

import numpy as np
from scipy import ndimage

from maskwright.ops.refinement.superpixels import lab_of

STRONG = 95
"""Percentile of an image's gradients that counts as a contour of strength 1."""


def gradient_contours(image: np.ndarray, sigma: float = 1.0) -> np.ndarray:
    """Colour gradients as contours: float32 (H, W) in [0, 1], 1 from the image's own 95th percentile on.

    Args:
        image: uint8 (H, W, 3).
        sigma: of the Gaussian whose derivatives are taken in CIE Lab, pixels.
    """
    squares = sum(ndimage.gaussian_gradient_magnitude(channel, sigma) ** 2 for channel in lab_of(image))
    strength = np.sqrt(np.asarray(squares, np.float32))
    top = float(np.percentile(strength, STRONG))
    return np.minimum(strength / top, 1.0).astype(np.float32) if top > 0 else np.zeros_like(strength)


def merge_regions(ids: np.ndarray, contours: np.ndarray, threshold: float, most: int) -> np.ndarray:
    """Joins neighbouring regions, the cheapest border first: its mean strength times the root of half the harmonic mean
    of the two sizes. By strength alone weak borders chain into one region of most of the image.

    Args:
        ids: (H, W) regions, contiguous from 0, each connected.
        contours: (H, W) strength in [0, 1].
        threshold: borders of a mean strength below it are removed.
        most: until so many regions are left, at least 1, stronger ones are removed too.

    Returns:
        (H, W) uint16, ids contiguous from 0 in order of their first pixel.

    Raises:
        ValueError: shapes that differ, or most below 1.
    """
    if ids.shape != contours.shape or most < 1:
        raise ValueError(f"regions {ids.shape}, contours {contours.shape}, most {most}: expected one shape, and 1")
    borders, size = _borders(ids, contours), np.bincount(ids.ravel()).tolist()
    count, parent = len(size), np.arange(len(size))

    def entry(i: int, j: int) -> tuple[float, int, int, int, float]:
        total, length = borders[i][j]
        pixels = size[i] + size[j]
        return total / length * (size[i] * size[j] / pixels) ** 0.5, i, j, pixels, total / length

    heap = [entry(i, j) for i in borders for j in borders[i] if i < j]
    heapq.heapify(heap)
    while heap and count > 1:
        _, i, j, pixels, strength = heapq.heappop(heap)
        if parent[i] != i or parent[j] != j or size[i] + size[j] != pixels:
            continue  # of regions that are no more, or have grown meanwhile
        if strength >= threshold and count <= most:
            continue
        del borders[i][j]
        for other, (total, length) in borders.pop(j).items():
            if other != i:
                before = borders[i].get(other, (0.0, 0))
                del borders[other][j]
                borders[i][other] = borders[other][i] = (before[0] + total, before[1] + length)
        parent[j] = i
        size[i], count = pixels, count - 1
        for other in borders[i]:
            heapq.heappush(heap, entry(min(i, other), max(i, other)))
    for k in range(len(parent)):  # roots come before what they gather
        parent[k] = parent[parent[k]]
    return _in_order(parent[ids])


def _borders(ids: np.ndarray, contours: np.ndarray) -> dict[int, dict[int, tuple[float, int]]]:
    """Of each region its neighbours, with the sum of the contour along the border and its length in pixel pairs."""
    count = int(ids.max()) + 1
    pairs, weights = [], []
    for a, b in ((np.s_[:, :-1], np.s_[:, 1:]), (np.s_[:-1], np.s_[1:])):
        one, two = ids[a].astype(np.int64), ids[b].astype(np.int64)
        apart = one != two
        pairs.append(np.minimum(one, two)[apart] * count + np.maximum(one, two)[apart])
        weights.append(((contours[a].astype(np.float64) + contours[b]) / 2)[apart])
    keys, index = np.unique(np.concatenate(pairs), return_inverse=True)
    totals, lengths = np.bincount(index, np.concatenate(weights)), np.bincount(index)
    found: dict[int, dict[int, tuple[float, int]]] = {k: {} for k in range(count)}
    for key, total, length in zip(keys.tolist(), totals.tolist(), lengths.tolist()):
        i, j = divmod(key, count)
        found[i][j] = found[j][i] = (total, length)
    return found


def _in_order(ids: np.ndarray) -> np.ndarray:
    """Renumbers in order of the first pixel."""
    _, first, index = np.unique(ids, return_index=True, return_inverse=True)
    rank = np.empty(len(first), np.uint16)
    rank[np.argsort(first)] = np.arange(len(first))
    return rank[index.reshape(ids.shape)]
