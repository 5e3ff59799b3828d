"""k-means beside scikit-learn's Lloyd: a whole fit from the same start, and the first step alone.

One thread on both sides, so that neither is helped or hurt by what else the machine does. The first step looks at
every row and is bound by the same matrix product on both sides; in a fit, rows whose label cannot have changed are left
alone, on clustered rows most of them, on pure noise few. On noise labels part after many steps, since scikit-learn
rounds the sums of clusters to float32. scikit-learn's step is its compiled kernel, without the checks of its arguments.
"""

from __future__ import annotations

import time

import numpy as np
import torch
from sklearn.cluster import KMeans

from benchmarks.common import Row, one_thread, side_by_side
from maskwright.ops.clustering.kmeans import kmeans
from maskwright.ops.clustering.kmeans_lloyd import Lloyd
from maskwright.ops.clustering.kmeans_rows import Rows, Share

N, D, K = 1_000_000, 64, 27
STEPS = 20


def made_rows(groups: int, seed: int = 0) -> torch.Tensor:
    """N rows around this many points of the same spread as the noise about them; 0 for noise alone."""
    g = torch.Generator().manual_seed(seed)
    noise = torch.randn(N, D, generator=g)
    if groups == 0:
        return noise
    return noise.add_(torch.randn(groups, D, generator=g)[torch.randint(groups, (N,), generator=g)])


def product_seconds(x: torch.Tensor, centers: torch.Tensor) -> float:
    """What the scores alone cost as one matrix product: no step over all rows is faster."""
    out = torch.empty(len(x), len(centers))
    return side_by_side(lambda: torch.mm(x, centers.T, out=out), repeats=5)[0]


def fit_row(name: str, x: torch.Tensor, asked: float) -> Row:
    """A fit of `STEPS` steps."""
    start = x[:: N // K][:K].clone()
    found: list = [None, None]

    def ours() -> None:
        found[0] = kmeans(x, K, metric="euclidean", init=start, iterations=STEPS, tol=0)

    def theirs() -> None:
        fit = KMeans(K, init=start.numpy(), n_init=1, max_iter=STEPS, tol=0, algorithm="lloyd")
        found[1] = fit.fit(x.numpy())

    a, b = side_by_side(ours, theirs, repeats=3)
    same = float((found[0].labels.numpy() == found[1].labels_).mean())
    steps = (found[0].iterations, found[1].n_iter_)
    path = f"k-means, a step of a fit, {name}, 1M x {D}, k {K}"
    return Row(path, a / steps[0], "scikit-learn", b / steps[1], asked, None, f"labels equal {same:.4%}")


def first_step_row(x: torch.Tensor) -> Row:
    """One step over all rows, none left alone."""
    from sklearn.cluster._k_means_lloyd import lloyd_iter_chunked_dense  # a private name; only this row needs it

    start = x[:: N // K][:K].clone()
    rows = Rows(x, "euclidean", None, 2048, K, Share(N, x.device, None, 0, None))
    centers = rows.to_centers(start)
    found: list = [None, None]
    array, weights = x.numpy(), np.ones(N, np.float32)

    def ours() -> None:
        lloyd = Lloyd(rows, K, None)
        lloyd.step(centers)
        found[0] = lloyd.labels.numpy()

    def theirs() -> None:
        labels, new = np.empty(N, np.int32), np.zeros((K, D), np.float32)
        in_cluster, path = np.zeros(K, np.float32), np.zeros(K, np.float32)
        lloyd_iter_chunked_dense(array, weights, start.numpy(), new, in_cluster, labels, path, 1)
        found[1] = labels

    a, b = side_by_side(ours, theirs, repeats=5)
    same = float((found[0] == found[1]).mean())
    limit = product_seconds(x, start)
    path = f"k-means, first step, 1M x {D}, k {K}"
    return Row(path, a, "scikit-learn kernel", b, 1.0, limit, f"labels equal {same:.4%}")


def rows() -> list[Row]:
    """A fit on clustered rows, a fit on noise, and the first step."""
    with one_thread():
        clustered = made_rows(40)
        return [
            fit_row("clustered rows", clustered, 2.5),
            fit_row("noise", made_rows(0), 1.0),
            first_step_row(clustered),
        ]


if __name__ == "__main__":
    began = time.perf_counter()
    for row in rows():
        print(f"{row.path}: {row.ours_s * 1e3:.1f} ms, {row.other} {row.other_s * 1e3:.1f} ms, {row.ratio:.2f}x"
              f" ({row.asked}x), limit {row.limit_s}, {row.agrees}")  # fmt: skip
    print(f"{time.perf_counter() - began:.0f} s")
