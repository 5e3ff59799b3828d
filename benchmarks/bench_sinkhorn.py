"""Sinkhorn, 25k x 300, three iterations, beside SwAV's loop and POT's algorithm.

POT itself where it is installed. Its algorithm in bare numpy, without POT's own checks and copies, is a harder mark:
one exponential of the matrix, two products with a vector an iteration. SwAV's loop normalises the matrix twice an
iteration. One thread on all sides.
"""

from __future__ import annotations

import numpy as np
import torch

from benchmarks.common import Row, one_thread, side_by_side
from maskwright.ops.clustering.sinkhorn import sinkhorn

B, K, EPS, ITERATIONS = 25_000, 300, 0.05, 3

try:
    import ot
except ImportError:
    ot = None


def knopp(cost: np.ndarray) -> np.ndarray:
    """Sinkhorn-Knopp on the whole matrix."""
    a, b = np.full(B, 1 / B, np.float32), np.full(K, 1 / K, np.float32)
    u = np.full(B, 1 / B, np.float32)
    kernel = np.exp(cost / -np.float32(EPS))
    scaled = (1 / a)[:, None] * kernel
    for _ in range(ITERATIONS):
        v = b / (kernel.T @ u)
        u = 1 / (scaled @ v)
    return u[:, None] * kernel * v[None]


def swav(scores: torch.Tensor) -> torch.Tensor:
    """The loop of the SwAV repository's kind: the matrix is normalised by columns, then by rows."""
    q = torch.exp(scores / EPS).T
    q = q / q.sum()
    for _ in range(ITERATIONS):
        q = q / q.sum(1, keepdim=True) / K
        q = q / q.sum(0, keepdim=True) / B
    return (q * B).T


def rows() -> list[Row]:
    """Against SwAV's loop, bare numpy, and POT where it is installed."""
    g = torch.Generator().manual_seed(0)
    x, c = torch.randn(B, 32, generator=g), torch.randn(K, 32, generator=g)
    scores = torch.nn.functional.normalize(x, dim=1) @ torch.nn.functional.normalize(c, dim=1).T
    cost = (1 - scores).numpy()
    ways = {"SwAV's loop": (2.5, 1.0, lambda: swav(scores)), "bare numpy": (0.8, B, lambda: knopp(cost))}
    if ot is not None:
        marginals = np.full(B, 1 / B, np.float32), np.full(K, 1 / K, np.float32)
        ways["POT"] = (2.5, B, lambda: ot.sinkhorn(*marginals, cost, EPS, numItermax=ITERATIONS, warn=False))
    path = f"Sinkhorn, {B} x {K}, {ITERATIONS} iterations"
    found = []
    with one_thread():
        q = sinkhorn(scores, EPS, ITERATIONS)
        for name, (asked, mass, way) in ways.items():
            a, b = side_by_side(lambda: sinkhorn(scores, EPS, ITERATIONS), way, repeats=9)
            gap = float((torch.as_tensor(way()) * mass - q).abs().max())
            found.append(Row(path, a, name, b, asked, None, f"largest difference {gap:.1e}"))
    return found


if __name__ == "__main__":
    for row in rows():
        print(f"{row.path}: {row.ours_s * 1e3:.1f} ms, {row.other} {row.other_s * 1e3:.1f} ms, {row.ratio:.2f}x"
              f" ({row.asked}x), {row.agrees}")  # fmt: skip
