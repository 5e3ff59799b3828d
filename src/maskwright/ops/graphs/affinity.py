"""Affinity graphs over patches and pixels: cosine affinities of features and nearest neighbours in colour and
place.

Legend: B batch, N patches or pixels, D width, (h, w) patch grid or image size.

Sources: Melas-Kyriazi et al., Deep Spectral Methods, CVPR 2022 (features and colour); Chen et al., KNN
matting, CVPR 2012 (colour); Wang et al., TokenCut, CVPR 2022 (thresholded affinity).
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import scipy.sparse as sp
import torch
from scipy.spatial import cKDTree
from torch import Tensor
from torch.nn import functional as F

# TokenCut's weight of a pair below the threshold: keeps the graph connected without letting weak pairs count.
WEAK = 1e-5


def feature_affinity(
    f: Tensor, threshold: Literal["zero"] | float = "zero", normalise: bool = True, weak: float = WEAK
) -> Tensor:
    """Dense nonnegative affinity of features.

    With `threshold="zero"` (Deep Spectral): W = max(F F^T, 0) divided by its largest entry. With a number tau
    (TokenCut, 0.2 there): 1 where F F^T > tau and `weak` elsewhere.

    Args:
        f: (N, D) or (B, N, D) features; half precision is computed in float32, because it distorts small
            affinities.
        threshold: "zero" or tau.
        normalise: L2-normalise the rows first, so that the products are cosines. Rows of zeros stay zero.
        weak: weight of the pairs at or below tau.

    Returns:
        (N, N) or (B, N, N) symmetric affinity in [0, 1].

    Raises:
        ValueError: for a wrong number of axes or an unknown threshold.
    """
    f = _unit_rows(f, normalise)
    if isinstance(threshold, str):
        if threshold != "zero":
            raise ValueError(f"threshold {threshold!r}: expected 'zero' or a number")
        w = (f @ f.mT).clamp_(min=0)
        if not normalise:
            # The largest product lies on the diagonal (Cauchy-Schwarz), so no pass over (N, N) is needed to
            # find it.
            largest = f.square().sum(-1).amax(-1)
            w = w / torch.where(largest > 0, largest, torch.ones_like(largest))[..., None, None]
        return w
    tau = float(threshold)
    return torch.where(f @ f.mT > tau, 1.0, weak).to(f.dtype)


def color_knn_affinity(
    image: Any,
    neighbors: Sequence[int] = (20, 10),
    spatial_weights: Sequence[float] = (2.0, 0.1),
    workers: int | None = None,
) -> sp.csr_matrix:
    """Sparse affinity of each pixel with its nearest neighbours in colour and place (KNN matting).

    For each pair (k, w) the features are (r, g, b, w x, w y), all in [0, 1] before the weight; each pixel i
    and each of its k nearest pixels j (itself among them, as in the original) add 1 at (i, j) and at (j, i);
    entries that meet are summed.

    Args:
        image: (h, w, 3) uint8 in [0, 255], or float in [0, 1]; array or tensor.
        neighbors: k of each search.
        spatial_weights: w of each search.
        workers: threads of the search; default the cores this process may use. The result does not depend on
            it.

    Returns:
        (h w, h w) symmetric csr matrix of float32 counts.

    Raises:
        ValueError: for a wrong shape, or numbers of neighbours and weights that differ.
    """
    pixels = np.asarray(image)
    if pixels.ndim != 3 or pixels.shape[2] != 3:
        raise ValueError(f"image of shape {pixels.shape}: expected (h, w, 3)")
    if len(neighbors) != len(spatial_weights) or not neighbors:
        raise ValueError(
            f"{len(neighbors)} neighbour counts and {len(spatial_weights)} spatial weights: expected as many"
        )
    if min(neighbors) < 1:
        raise ValueError(f"neighbors {tuple(neighbors)}: expected at least 1 each")
    h, w = pixels.shape[:2]
    n = h * w
    rgb = pixels.reshape(n, 3).astype(np.float64)
    if pixels.dtype == np.uint8:
        rgb /= 255.0
    elif rgb.size and (rgb.min() < -1e-3 or rgb.max() > 1.0 + 1e-3):
        raise ValueError(f"float image in [{rgb.min():.3g}, {rgb.max():.3g}]: expected [0, 1]; divide by 255")
    x = np.tile(np.linspace(0, 1, w), h)
    y = np.repeat(np.linspace(0, 1, h), w)
    threads = workers if workers is not None else _cores()
    total = sp.csr_matrix((n, n), dtype=np.float32)
    for count, weight in zip(neighbors, spatial_weights):
        k = min(count, n)
        points = np.column_stack([rgb, weight * x, weight * y])
        # Sliding-midpoint splits search faster than median splits on the flat regions that photographs have.
        tree = cKDTree(points, leafsize=16, balanced_tree=False)
        found = tree.query(points, k=k, workers=threads)[1].reshape(n, k)
        found = np.sort(found, axis=1).astype(np.int32)
        indptr = np.arange(0, n * k + 1, k, dtype=np.int32)
        total = total + sp.csr_matrix((np.ones(n * k, np.float32), found.ravel(), indptr), shape=(n, n))
    return (total + total.T.tocsr()).tocsr()


def combine(w_features: Any, w_color: Any, lam: float) -> Any:
    """W = W_features + lambda W_color.

    Args:
        w_features: dense tensor (N, N), or (B, N, N) with a sequence of B colour affinities, or sparse (N,
            N).
        w_color: sparse (N, N) with summed duplicates, or a sequence of B of them.
        lam: weight of the colour affinity (10 for matting, 0 leaves the features alone).

    Returns:
        A new affinity of the kind of `w_features`.

    Raises:
        ValueError: if sizes disagree.
    """
    if sp.issparse(w_features):
        _check_square(w_color, w_features.shape[0])
        return (w_features + lam * w_color).tocsr()
    if w_features.ndim == 3:
        if len(w_color) != w_features.shape[0]:
            raise ValueError(f"{len(w_color)} colour affinities for {len(w_features)} images: expected as many")
        return torch.stack([combine(one, color, lam) for one, color in zip(w_features, w_color)])
    n = w_features.shape[-1]
    _check_square(w_color, n)
    entries = sp.csr_matrix(w_color, copy=True)
    entries.sum_duplicates()
    coo = entries.tocoo()
    out = w_features.clone()
    index = torch.from_numpy(coo.row.astype(np.int64) * n + coo.col).to(out.device)
    out.view(-1)[index] += lam * torch.from_numpy(coo.data).to(out)
    return out


def _unit_rows(f: Tensor, normalise: bool) -> Tensor:
    if f.ndim not in (2, 3):
        raise ValueError(f"features of shape {tuple(f.shape)}: expected (N, D) or (B, N, D)")
    f = f if f.dtype == torch.float64 else f.float()
    return F.normalize(f, dim=-1) if normalise else f


def _check_square(w: Any, n: int) -> None:
    if tuple(w.shape) != (n, n):
        raise ValueError(f"affinity of shape {tuple(w.shape)}: expected ({n}, {n})")


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else (os.cpu_count() or 1)
