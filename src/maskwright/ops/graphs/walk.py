"""Random walks of scores on a sparse pixel graph, and the affinities of AffinityNet (PSA) and IRN that drive
them.

The walk is repeated sparse products with the scores, never a power of the matrix: at 11.7k pixels the dense
matrix of the original takes 550 MB, the sparse one 6 MB.

Legend: C classes, (h, w) feature grid, N = h w its pixels in row-major order, P offsets in a half plane, D
width.

Sources: Ahn and Kwak, Learning Pixel-level Semantic Affinity (PSA), CVPR 2018; Ahn, Cho and Kwak, Inter-pixel
Relations (IRN), CVPR 2019.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import scipy.sparse as sp
import torch
from numba import njit


def pair_offsets(radius: int) -> np.ndarray:
    """Offsets (dy, dx) of the pairs closer than `radius`, each unordered pair once (the half plane below).

    Args:
        radius: pixels, exclusive; 5 gives 34 offsets.

    Returns:
        (P, 2) int64.

    Raises:
        ValueError: for a radius below 2, which has no pairs.
    """
    if radius < 2:
        raise ValueError(f"radius {radius}: expected at least 2, below which there are no pairs")
    right = [(0, dx) for dx in range(1, radius)]
    below = [
        (dy, dx) for dy in range(1, radius) for dx in range(1 - radius, radius) if dy * dy + dx * dx < radius * radius
    ]
    return np.array(right + below, dtype=np.int64)


def straight_path(dy: int, dx: int) -> np.ndarray:
    """Pixels (L, 2) nearer than 1 to the segment from (0, 0) to (dy, dx), both ends among them.

    Wide enough that a wall of 8-connected pixels cannot be crossed diagonally.
    """
    length = max(dy * dy + dx * dx, 1)
    return np.array(
        [
            (y, x)
            for y in range(min(0, dy), max(0, dy) + 1)
            for x in range(min(0, dx), max(0, dx) + 1)
            if (dy * x - dx * y) ** 2 < length
        ],
        dtype=np.int64,
    )


def affinity_from_edges(edge: Any, radius: int = 5) -> sp.csr_matrix:
    """IRN's affinity: 1 minus the strongest boundary on the straight path between two pixels.

    Args:
        edge: (h, w) boundary probability in [0, 1], array or tensor.
        radius: pixels, exclusive.

    Returns:
        (N, N) symmetric csr float32 in [0, 1] with ones on the diagonal. Pairs of affinity 0 are not stored,
        so a wall of edge 1 lets exactly nothing through.

    Raises:
        ValueError: for a wrong shape or values outside [0, 1].
    """
    boundary = _array(edge)
    if boundary.ndim != 2:
        raise ValueError(f"edge map of shape {boundary.shape}: expected (h, w)")
    if boundary.size and not (boundary.min() >= 0 and boundary.max() <= 1):
        raise ValueError(f"edges in [{boundary.min():.3g}, {boundary.max():.3g}]: expected probabilities, [0, 1]")
    h, w = boundary.shape
    pairs = []
    for dy, dx in pair_offsets(radius).tolist():
        # `row` and `col` start the window of the first pixels of all pairs with this offset.
        rows, cols, row, col = h - dy, w - abs(dx), 0, max(0, -dx)
        if rows <= 0 or cols <= 0:
            continue
        strongest = np.zeros((rows, cols), np.float32)
        for y, x in straight_path(dy, dx).tolist():
            np.maximum(strongest, boundary[row + y : row + y + rows, col + x : col + x + cols], out=strongest)
        pairs.append((dy, dx, 1 - strongest))
    return _assemble(pairs, h, w)


def local_feature_affinity(f: Any, radius: int = 5) -> sp.csr_matrix:
    """AffinityNet's affinity: exp(-mean over channels of |f_i - f_j|) of pixels closer than `radius`.

    Args:
        f: (D, h, w) features, array or tensor.
        radius: pixels, exclusive.

    Returns:
        (N, N) symmetric csr float32 in (0, 1] with ones on the diagonal.

    Raises:
        ValueError: for a wrong shape.
    """
    features = _array(f)
    if features.ndim != 3:
        raise ValueError(f"features of shape {features.shape}: expected (D, h, w)")
    _, h, w = features.shape
    pairs = []
    for dy, dx in pair_offsets(radius).tolist():
        rows, cols, col = h - dy, w - abs(dx), max(0, -dx)
        if rows <= 0 or cols <= 0:
            continue
        near = features[:, :rows, col : col + cols]
        far = features[:, dy : dy + rows, col + dx : col + dx + cols]
        pairs.append((dy, dx, np.exp(-np.abs(near - far).mean(0))))
    return _assemble(pairs, h, w)


def transition_matrix(affinity: Any, beta: float) -> sp.csr_matrix:
    """T = A^beta, entry by entry, with columns that sum to 1.

    A column without an entry gets a 1 on the diagonal: its pixel keeps its score. In float64: a column that is off by
    2e-6, as sums in float32 are, moves scores by 5e-4 within 256 steps.

    Args:
        affinity: (N, N) sparse, nonnegative.
        beta: exponent; large ones tend to the identity where the diagonal is largest (8 in PSA, 10 in IRN).

    Raises:
        ValueError: if not square or with negative entries.
    """
    a = sp.csr_matrix(affinity, dtype=np.float64, copy=True)
    if a.shape[0] != a.shape[1]:
        raise ValueError(f"affinity of shape {a.shape}: expected (N, N)")
    a.sum_duplicates()
    if a.nnz and not a.data.min() >= 0:
        raise ValueError("the affinity has negative entries: expected nonnegative ones")
    a.data **= beta
    sums = np.bincount(a.indices, weights=a.data, minlength=a.shape[1])
    lonely = sums <= 0
    if lonely.any():
        a = (a + sp.diags(lonely.astype(np.float64))).tocsr()
        sums[lonely] = 1.0
    a.data /= sums[a.indices]
    return a


def random_walk(scores: Any, affinity: Any, beta: float = 10.0, steps: int = 256, alpha: float | None = None) -> Any:
    """Diffuses scores: `scores @ T^steps` with T the column-normalised A^beta.

    Args:
        scores: (C, N) or (C, h, w) scores, tensor or array.
        affinity: (N, N) sparse.
        beta: exponent of the affinity.
        steps: length of the walk (2^6 in PSA, 2^8 in IRN, which first multiplies the scores by 1 - edge).
        alpha: if given, a background row (1 - max over classes)^alpha is put in front before the walk (PSA),
            for scores in [0, 1]; small alpha means more background.

    Returns:
        The kind and shape of `scores`, with one more row in front where alpha is given; float32.

    Raises:
        ValueError: if sizes disagree, steps is negative, or alpha is given for scores outside [0, 1].
    """
    x = _array(scores)
    if x.ndim not in (2, 3):
        raise ValueError(f"scores of shape {x.shape}: expected (C, N) or (C, h, w)")
    place = x.shape[1:]
    x = x.reshape(x.shape[0], -1)
    if tuple(affinity.shape) != (x.shape[1], x.shape[1]):
        raise ValueError(f"affinity of shape {tuple(affinity.shape)} for {x.shape[1]} pixels: expected one row a pixel")
    if steps < 0:
        raise ValueError(f"steps {steps}: expected 0 or more")
    if alpha is not None:
        if x.size and not (x.min() >= 0 and x.max() <= 1):
            raise ValueError(f"scores in [{x.min():.3g}, {x.max():.3g}]: expected [0, 1] to make a background row")
        x = np.concatenate([(1 - x.max(0, keepdims=True)) ** np.float32(alpha), x])
    # Row j of the transpose gathers what flows into pixel j; scores lie pixel by pixel for the inner loop.
    into = transition_matrix(affinity, beta).T.tocsr()
    state = np.ascontiguousarray(x.T, dtype=np.float64)
    spare = np.empty_like(state)
    for _ in range(steps):
        _step(into.indptr, into.indices, into.data, state, spare)
        state, spare = spare, state
    out = np.ascontiguousarray(state.T, dtype=np.float32).reshape(-1, *place)
    return torch.from_numpy(out).to(scores.device) if isinstance(scores, torch.Tensor) else out


@njit(cache=True, nogil=True, fastmath={"contract", "reassoc"})
def _step(indptr: np.ndarray, indices: np.ndarray, data: np.ndarray, x: np.ndarray, out: np.ndarray) -> None:
    """out (N, C) = the csr matrix times x (N, C)."""
    n, c = x.shape
    for i in range(n):
        row = out[i]
        row[:] = 0
        for p in range(indptr[i], indptr[i + 1]):
            weight, source = data[p], x[indices[p]]
            for j in range(c):
                row[j] += weight * source[j]


def _assemble(pairs: list[tuple[int, int, np.ndarray]], h: int, w: int) -> sp.csr_matrix:
    """Symmetric matrix with unit diagonal from pairs (dy, dx, affinities in the first pixels' window)."""
    n = h * w
    place = np.arange(n, dtype=np.int32).reshape(h, w)
    diagonal = place.reshape(-1)
    rows, columns, values = [diagonal], [diagonal], [np.ones(n, np.float32)]
    for dy, dx, affinity in pairs:
        height, width = affinity.shape
        col = max(0, -dx)
        near = place[:height, col : col + width].reshape(-1)
        far = place[dy : dy + height, col + dx : col + dx + width].reshape(-1)
        rows += [near, far]
        columns += [far, near]
        values += [affinity.reshape(-1).astype(np.float32)] * 2
    entries = (np.concatenate(values), (np.concatenate(rows), np.concatenate(columns)))
    out = sp.coo_matrix(entries, shape=(n, n)).tocsr()
    out.eliminate_zeros()
    return out


def _array(x: Any) -> np.ndarray:
    if isinstance(x, torch.Tensor):
        x = x.detach().float().cpu().numpy()
    return np.asarray(x, dtype=np.float32)
