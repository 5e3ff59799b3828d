"""Connected parts of masks and of maps of ids.

Connectivity is 4 (pixels share a side) or 8 (a side or a corner). Parts are numbered in the order in which their first
pixel comes, row by row. `label_segments` is for SegSort and HSG, which are to come.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy import ndimage
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components


def _mask(mask: Any) -> np.ndarray:
    found = np.asarray(mask)
    if found.ndim != 2:
        raise ValueError(f"the mask is {found.shape}, expected (H, W)")
    return found if found.dtype == np.bool_ else found != 0


def _neighbours(connectivity: int) -> np.ndarray:
    if connectivity not in (4, 8):
        raise ValueError(f"connectivity is {connectivity}, expected 4 or 8")
    return ndimage.generate_binary_structure(2, 1 if connectivity == 4 else 2)


def label_components(mask: Any, connectivity: int = 4) -> tuple[np.ndarray, int]:
    """Numbers the connected parts of a mask.

    Args:
        mask: (H, W), nonzero is inside.
        connectivity: 4 or 8.

    Returns:
        Ids int32 (H, W), 0 outside, 1 to n inside; and n.

    Raises:
        ValueError: for another shape or connectivity.
    """
    labels, count = ndimage.label(_mask(mask), _neighbours(connectivity))
    return labels.astype(np.int32, copy=False), int(count)


def label_segments(ids: Any, connectivity: int = 4, ignore: int | None = None) -> tuple[np.ndarray, int]:
    """Numbers the connected parts of equal ids.

    Args:
        ids: (H, W) integers or booleans.
        connectivity: 4 or 8.
        ignore: an id whose pixels belong to no part.

    Returns:
        Parts int32 (H, W), numbered 1 to n where `ignore` is given and 0 where it lies, else 0 to n - 1; and n.

    Raises:
        ValueError: for another shape or connectivity.
    """
    ids = np.asarray(ids)
    if ids.ndim != 2:
        raise ValueError(f"ids are {ids.shape}, expected (H, W)")
    _neighbours(connectivity)
    h, w = ids.shape
    if not ids.size:
        return np.zeros((h, w), np.int32), 0
    node = np.arange(h * w, dtype=np.int32).reshape(h, w)
    steps = [(0, 1), (1, 0), (1, 1), (1, -1)][: 2 if connectivity == 4 else 4]
    here, there = [], []
    for down, right in steps:
        a = np.s_[: h - down, max(0, -right) : w - max(0, right)]
        b = np.s_[down:, max(0, right) : w - max(0, -right)]
        same = ids[a] == ids[b]
        here.append(node[a][same])
        there.append(node[b][same])
    i, j = np.concatenate(here), np.concatenate(there)
    graph = coo_matrix((np.ones(len(i), np.bool_), (i, j)), shape=(h * w, h * w))
    count, parts = connected_components(graph, directed=False)
    kept = np.ones(h * w, bool) if ignore is None else (ids != ignore).ravel()
    first = np.full(count, h * w)
    np.minimum.at(first, parts[kept], np.flatnonzero(kept))
    n = int((first < h * w).sum())
    number = np.empty(count, np.int32)
    number[np.argsort(first, kind="stable")] = np.arange(count, dtype=np.int32) + (ignore is not None)
    return np.where(kept, number[parts], 0).reshape(h, w).astype(np.int32), n


def largest_component(mask: Any, connectivity: int = 4) -> np.ndarray:
    """The part with most pixels, bool (H, W); the first of equals; empty for an empty mask.

    Raises:
        ValueError: for another shape or connectivity.
    """
    labels, count = label_components(mask, connectivity)
    if count == 0:
        return labels > 0
    return labels == 1 + int(np.bincount(labels.ravel(), minlength=count + 1)[1:].argmax())


def remove_small(mask: Any, n: int, connectivity: int = 4) -> np.ndarray:
    """The mask without its parts of fewer than n pixels, bool (H, W).

    Raises:
        ValueError: for another shape or connectivity.
    """
    labels, count = label_components(mask, connectivity)
    keep = np.bincount(labels.ravel(), minlength=count + 1) >= n
    keep[0] = False
    return keep[labels]


def bounding_box(mask: Any) -> tuple[int, int, int, int] | None:
    """(top, left, bottom, right) of a mask (H, W), bottom and right one past the last pixel; None for an empty mask.

    Raises:
        ValueError: for another shape.
    """
    inside = _mask(mask)
    rows, columns = np.flatnonzero(inside.any(1)), np.flatnonzero(inside.any(0))
    if not rows.size:
        return None
    return int(rows[0]), int(columns[0]), int(rows[-1]) + 1, int(columns[-1]) + 1
