"""Which class each cluster stands for, from counts of pixels.

Legend: K clusters (predicted ids), C classes (true ids), counts (K, C) int64: pixels of cluster k and class c.

One-to-one matching maximises a sum over pairs (Kuhn, Naval Research Logistics 1955; solved by scipy). Where several
matchings reach the maximum, the result is the one in which cluster 0 has the lowest class it can have, then cluster 1,
and so on; to stay unmatched counts as the highest class. It depends on neither the solver nor its version. Many-to-one
matching takes each cluster's best class, the lowest among equals, and none for a cluster without pixels.

Counts and IoU give different matchings, and many-to-one figures rise with K: one cluster a pixel is always perfect.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy.optimize import linear_sum_assignment
from scipy.sparse.csgraph import connected_components

# IoU are compared in these units: finer than any difference that counts of pixels make visible, and sums of a
# thousand of them are still whole numbers in float64.
IOU_UNITS = 2.0**40


def _counts(counts: Any) -> np.ndarray:
    found = np.asarray(counts)
    if found.ndim != 2 or not found.size:
        raise ValueError(f"counts are {found.shape}, expected (K, C)")
    if not np.issubdtype(found.dtype, np.integer) and not (
        np.issubdtype(found.dtype, np.floating) and np.isfinite(found).all() and (found == np.floor(found)).all()
    ):
        raise ValueError(f"counts are {found.dtype}, expected whole numbers")
    if (found < 0).any():
        raise ValueError("counts are negative")
    return found.astype(np.int64)


def iou_matrix(counts: Any) -> np.ndarray:
    """Intersection over union of each cluster with each class, float64 (K, C); 0 where both are empty.

    Raises:
        ValueError: when counts are not whole numbers (K, C), at least 0.
    """
    n = _counts(counts)
    union = n.sum(1, keepdims=True) + n.sum(0, keepdims=True) - n
    return n / np.maximum(union, 1)


def hungarian(counts: Any, background: int = -1) -> np.ndarray:
    """One-to-one matching with the most pixels in agreement (IIC, PiCIE, STEGO).

    Args:
        counts: (K, C).
        background: class of clusters that stay unmatched where K > C; -1 means none (wrong everywhere).

    Returns:
        Class of each cluster, int64 (K,).

    Raises:
        ValueError: as `iou_matrix`, or for a background that is not a class.
    """
    n = _counts(counts)
    return _with_background(one_to_one(n), background, n.shape[1])


def hungarian_iou(counts: Any, background: int = -1) -> np.ndarray:
    """One-to-one matching with the largest sum of IoU (MaskContrast, Deep Spectral Methods, Leopart with K = C).

    Args, result and errors as `hungarian`.
    """
    iou = iou_matrix(counts)
    whole = np.rint(iou * IOU_UNITS).astype(np.int64)
    return _with_background(one_to_one(whole), background, iou.shape[1])


def majority(counts: Any, background: int = -1) -> np.ndarray:
    """Many-to-one matching: each cluster to the class most of its pixels have (IIC).

    Args:
        counts: (K, C).
        background: class of clusters without pixels; -1 means none.

    Returns:
        Class of each cluster, int64 (K,).

    Raises:
        ValueError: as `hungarian`.
    """
    n = _counts(counts)
    return _best(n, n, background)


def majority_iou(counts: Any, background: int = -1) -> np.ndarray:
    """Many-to-one matching: each cluster to the class with the largest IoU (MaskContrast, Leopart).

    Args, result and errors as `majority`.
    """
    return _best(iou_matrix(counts), _counts(counts), background)


def precision(counts: Any, background: int = -1) -> np.ndarray:
    """Many-to-one matching: each cluster to the class with the largest precision (Leopart's headline figures).

    A cluster's precisions are its counts over its size, so this is `majority` under its other name.

    Args, result and errors as `majority`.
    """
    n = _counts(counts)
    return _best(n, n, background)


def _best(values: np.ndarray, counts: np.ndarray, background: int) -> np.ndarray:
    found = np.where(counts.any(1), values.argmax(1), -1).astype(np.int64)
    return _with_background(found, background, counts.shape[1])


def _with_background(found: np.ndarray, background: int, classes: int) -> np.ndarray:
    if not -1 <= background < classes:
        raise ValueError(f"background is {background}, expected -1 or a class 0 to {classes - 1}")
    return np.where(found < 0, background, found)


def one_to_one(scores: np.ndarray) -> np.ndarray:
    """The matching of largest sum, by the rule for ties at the top of this file.

    Args:
        scores: (K, C) int64; exact while max(K, C) times the largest is below 2^53.

    Returns:
        Column of each row, int64 (K,); -1 for rows without.
    """
    k, c = scores.shape
    mate, tight = _best_matching(scores)
    if tight is not None:
        mate = _lowest(tight, mate, k)
    return np.where(mate[:k] < c, mate[:k], -1)


def tied(scores: np.ndarray) -> np.ndarray:
    """Which rows have another column, or none, in some matching of the same largest sum: bool (K,).

    Args:
        scores: (K, C) int64, as for `one_to_one`.
    """
    k, c = scores.shape
    mate, tight = _best_matching(scores)
    if tight is None:
        return np.zeros(k, bool)
    leads = tight[:, mate]  # (n, n): row i could take what row j has
    part = connected_components(leads, directed=True, connection="strong")[1]
    # Such a trade is part of a whole one exactly where the two rows lie on a cycle.
    column = np.where(mate < c, mate, -1)
    trades = leads & (part[:, None] == part[None, :]) & (column[:, None] != column[None, :])
    return trades[:k].any(1)


def _best_matching(scores: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
    """A matching (n,) of the largest sum and its tight pairs (n, n), with n = max(K, C): a column beyond C is
    "unmatched", a row beyond K takes what is left."""
    k, c = scores.shape
    size = max(k, c)
    square = np.zeros((size, size), np.int64)
    square[:k, :c] = scores
    mate = linear_sum_assignment(square.astype(np.float64), maximize=True)[1].astype(np.int64)
    return mate, _tight(square, mate)


def _tight(scores: np.ndarray, mate: np.ndarray) -> np.ndarray | None:
    """Which pairs (n, n) occur in some matching as good as `mate`, among others that do not; None if it is not best.

    Prices of columns under which every row is content with its mate exist exactly for a best matching, and are
    longest paths; a pair is tight where its row would be as content.
    """
    rows = np.arange(len(mate))
    gain = scores - scores[rows, mate][:, None]  # of row i for taking column j
    price = np.zeros(len(mate), np.int64)
    for _ in range(len(mate) + 1):
        raised = np.maximum(price, (price[mate][:, None] + gain).max(0))
        if (raised == price).all():
            return price[mate][:, None] + gain == price[None, :]
        price = raised
    return None


def _lowest(tight: np.ndarray, mate: np.ndarray, k: int) -> np.ndarray:
    """The first of the best matchings in the order of the first k rows' columns.

    Best matchings differ by cycles of tight pairs, so only rows in one strongly connected part trade columns.
    """
    mate = mate.copy()
    holder = np.argsort(mate)  # row of each column
    leads = tight[:, mate]  # (n, n): row i could take what row j has
    part = connected_components(leads, directed=True, connection="strong")[1]
    for members in _groups(part):
        free = np.zeros(len(mate), bool)
        free[members] = True
        for i in members[members < k]:
            wanted = np.flatnonzero(tight[i, : mate[i]] & free[holder[: mate[i]]])
            if len(wanted):
                path = _way_back(tight, mate, holder, free, int(i), wanted)
                if path:
                    columns = mate[path]
                    mate[path] = np.roll(columns, -1)
                    holder[mate[path]] = path
            free[i] = False
    return mate


def _groups(part: np.ndarray) -> list[np.ndarray]:
    """Members, ascending, of every part with more than one."""
    order = np.argsort(part, kind="stable")
    cuts = np.flatnonzero(np.diff(part[order])) + 1
    return [g for g in np.split(order, cuts) if len(g) > 1]


def _way_back(
    tight: np.ndarray, mate: np.ndarray, holder: np.ndarray, free: np.ndarray, i: int, wanted: np.ndarray
) -> list[int]:
    """Rows of a cycle from i in which each takes the next one's column, i the lowest wanted one; [] without any.

    Searched backwards from i among free rows: a row reaches i if it could take the column of one that does.
    """
    following = np.full(len(mate), -1)
    open_rows = free.copy()
    open_rows[i] = False
    frontier = [i]
    while frontier:
        reached = []
        for row in frontier:
            new = np.flatnonzero(tight[:, mate[row]] & open_rows)
            following[new] = row
            open_rows[new] = False
            reached.extend(new.tolist())
        frontier = reached
    for column in wanted:
        row = int(holder[column])
        if following[row] >= 0:
            path = [i]
            while row != i:
                path.append(row)
                row = int(following[row])
            return path
    return []
