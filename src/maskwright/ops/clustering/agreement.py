"""How well a clustering agrees with features that it was not made from, without a label.

Legend: N rows, D width, K clusters.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor


def pair_agreement(f: Tensor, labels: Tensor) -> float:
    """Correlation, over all ordered pairs of rows, of their cosine with whether they are in one cluster.

    With S_k the sum of the unit rows of cluster k and S that of all, the mean cosine is |S|^2 / N^2, the mean of
    cosine times "same" is sum_k |S_k|^2 / N^2, and the mean squared cosine is |F^T F|^2 / N^2, so no pair is formed.

    Args:
        f: features (N, D); their lengths do not matter.
        labels: (N,) int64, at least 0.

    Returns:
        -1 to 1; 0 where all rows are in one cluster, or all cosines are equal.

    Raises:
        ValueError: shapes that do not fit.
    """
    if f.ndim != 2 or labels.shape != f.shape[:1] or not len(f):
        raise ValueError(f"rows {tuple(f.shape)} with labels {tuple(labels.shape)}, expected (N, D) and (N,)")
    unit, n = F.normalize(f.detach().double(), dim=1), len(f)
    sums = unit.new_zeros(int(labels.max()) + 1, f.shape[1]).index_add_(0, labels, unit)  # (K, D)
    cosine = float(sums.sum(0).square().sum()) / n**2
    both = float(sums.square().sum()) / n**2
    spread = float((unit.T @ unit).square().sum()) / n**2 - cosine**2
    same = float((torch.bincount(labels).double() / n).square().sum())
    scale = spread * same * (1 - same)
    return (both - cosine * same) / math.sqrt(scale) if scale > 1e-12 else 0.0
