"""k-means for millions of rows, spherical or Euclidean, in one process or many.

Legend: N rows, K clusters, D width. Scores, labels and sums of a chunk of rows are formed together, so memory beside
the rows stays at a few numbers a row, and on a CPU the chunk never leaves the cache.

Sources: spherical k-means: Dhillon & Modha, Machine Learning 2001. Mini-batch k-means as running means: Sculley, WWW
2010, and PiCIE (Cho et al., CVPR 2021).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from maskwright.ops.clustering.kmeans_init import INITS, initial_centers, repair_empty, too_few
from maskwright.ops.clustering.kmeans_lloyd import Lloyd, means, path_length
from maskwright.ops.clustering.kmeans_rows import Reduce, Rows, Share, half_squares, tally, wide

Metric = Literal["cosine", "euclidean"]


@dataclass(frozen=True)
class KMeansResult:
    """What k-means found.

    Attributes:
        centers: (K, D) in float32 (float64 for such rows); unit length for cosine.
        labels: (N,) int64, the nearest center of each of this process's rows; ties to the lower label.
        inertia: weighted sum over all processes' rows of 1 - cosine, or of the squared distance.
        iterations: steps taken by the best start (passes over the rows in mini-batches).
    """

    centers: Tensor
    labels: Tensor
    inertia: float
    iterations: int


@torch.no_grad()
def kmeans(
    x: Tensor,
    k: int,
    *,
    metric: Metric = "cosine",
    init: str | Tensor = "kmeans++",
    iterations: int = 50,
    tol: float = 1e-4,
    restarts: int = 1,
    seed: int = 0,
    batch_size: int | None = None,
    chunk: int = 2048,
    weights: Tensor | None = None,
    dtype: torch.dtype | None = None,
    all_reduce: Reduce | None = None,
    offset: int | None = None,
    total: int | None = None,
    after: Callable[[int], object] | None = None,
) -> KMeansResult:
    """Clusters rows; the same arguments give the same clusters.

    No cluster ends without rows: one that empties moves to the row that is served worst. Rows of zeros have no
    direction; under cosine they take no part and get label 0.

    Args:
        x: (N, D) rows, any floating type, on any device; neither changed nor copied. For cosine their lengths do not
            matter.
        k: clusters K, at least 1.
        metric: "cosine" (spherical k-means) or "euclidean".
        init: "kmeans++" (greedy), "large_batch" (k-means with four starts on a sample of up to 65,536 rows, which costs
            least for large N or K), "random" (distinct rows), or centers (K, D).
        iterations: most steps, at least 0; with `batch_size`, most passes.
        tol: ends when the root mean square path of the centers is at most this part of the rows' spread (1 for
            cosine); 0 goes on until no label changes.
        restarts: starts, of which the one with the least inertia is kept.
        seed: of every random choice.
        batch_size: None for Lloyd's algorithm; else rows of all processes a step, centers being running means.
        chunk: rows at a time on a CPU; more on a GPU.
        weights: (N,) weight of each row, at least 0; ones by default.
        dtype: torch.bfloat16 scores rows in bfloat16 first. On a CPU rows too near to call are then scored again, so
            labels stay those of full precision; None does so where the CPU multiplies bfloat16 and the rows are
            float32, torch.float32 never. On a GPU only the final labels are in full precision.
        all_reduce: sums a tensor over processes that each hold a share of the rows; all get the same centers.
        offset: rows of the processes before this one; by default as the ranks of torch.distributed say.
        total: rows of all processes, if only to check.
        after: called after each start with the number of starts that are done.

    Raises:
        ValueError: for arguments out of range, values that are not finite, and more clusters than distinct rows.
    """
    _check(x, k, metric, init, weights, iterations=iterations, restarts=restarts, chunk=chunk, batch=batch_size)
    if dtype not in (None, torch.bfloat16, torch.float32, torch.float64):
        raise ValueError(f"dtype is {dtype}, expected None or torch.bfloat16")
    share = Share(len(x), x.device, all_reduce, offset, total)
    if share.total < k:
        raise ValueError(f"{k} clusters asked of {share.total} rows; ask for at most {share.total}")
    rows = Rows(x, metric, weights, chunk, k, share)
    if rows.usable < k:
        raise ValueError(f"{k} clusters asked of {rows.usable} rows that have weight and length")
    generator = torch.Generator().manual_seed(seed)

    def fit_sample(z: Tensor, w: Tensor, seed: int) -> Tensor:
        return kmeans(
            z.to(rows.dtype), k, metric=metric, iterations=20, restarts=4, seed=seed, chunk=chunk, weights=w
        ).centers

    best: KMeansResult | None = None
    for start in range(1 if isinstance(init, Tensor) and batch_size is None else restarts):
        if isinstance(init, Tensor):
            centers = _given_centers(rows, init, k)
        else:
            centers = initial_centers(rows, k, init, generator, fit_sample)
        lloyd = Lloyd(rows, k, dtype)
        if batch_size is None:
            centers, steps = _fit_lloyd(lloyd, centers, iterations, tol)
        else:
            centers, steps = _fit_batches(rows, centers, iterations, tol, batch_size, generator)
        found = _finish(lloyd, centers, steps)
        if best is None or found.inertia < best.inertia:
            best = found
        if after is not None:
            after(start + 1)
    assert best is not None
    return best


def _check(
    x: Tensor, k: int, metric: str, init: str | Tensor, weights: Tensor | None, batch: int | None, **counts: int
) -> None:
    if x.ndim != 2 or x.shape[1] < 1 or not x.is_floating_point():
        raise ValueError(f"rows are {tuple(x.shape)} {x.dtype}, expected floating (N, D)")
    if metric not in ("cosine", "euclidean"):
        raise ValueError(f"metric is {metric!r}, expected 'cosine' or 'euclidean'")
    if isinstance(init, str) and init not in INITS:
        raise ValueError(f"init is {init!r}, expected one of {', '.join(INITS)} or centers (K, D)")
    if weights is not None and weights.shape != x.shape[:1]:
        raise ValueError(f"weights are {tuple(weights.shape)}, expected ({len(x)},)")
    if k < 1:
        raise ValueError(f"k is {k}, expected at least 1")
    if batch is not None and batch < 1:
        raise ValueError(f"batch_size is {batch}, expected at least 1")
    for name, value in counts.items():
        if value < (name != "iterations"):
            raise ValueError(f"{name} is {value}, expected at least {int(name != 'iterations')}")


def _given_centers(rows: Rows, init: Tensor, k: int) -> Tensor:
    if init.shape != (k, rows.d):
        raise ValueError(f"initial centers are {tuple(init.shape)}, expected ({k}, {rows.d})")
    if not torch.isfinite(init).all():
        raise ValueError("initial centers hold NaN or infinite values")
    centers = rows.to_centers(init)
    if rows.metric == "cosine" and (centers == 0).all(1).any():
        raise ValueError("an initial center is zero and has no direction")
    return rows.share.first(centers)


def _fit_lloyd(lloyd: Lloyd, centers: Tensor, iterations: int, tol: float) -> tuple[Tensor, int]:
    """Lloyd's algorithm from `centers`; returns centers and steps."""
    rows = lloyd.rows
    for step in range(1, iterations + 1):
        sums, counts, changed = lloyd.step(centers)
        new, empty = means(rows, sums, counts, centers)
        if len(empty):
            new = repair_empty(rows, new, centers, empty, lloyd.labels)
        path, centers = path_length(new, centers), new
        if not len(empty) and (changed == 0 or path <= tol * rows.spread):
            return centers, step
    return centers, iterations


def _fit_batches(
    rows: Rows, centers: Tensor, passes: int, tol: float, batch_size: int, generator: torch.Generator
) -> tuple[Tensor, int]:
    """Mini-batch k-means: each center is the running mean of what was assigned to it.

    Every pass goes through the rows in a new order. What was seen in earlier passes, under older centers, weighs as
    much as one batch.
    """
    k, batches = len(centers), -(-rows.share.total // batch_size)
    sums, counts = torch.zeros_like(centers), centers.new_zeros(k)
    for step in range(1, passes + 1):
        start = centers
        # One draw on all processes; each orders its own rows by a seed of its own place.
        seed = int(torch.randint(2**31, (), generator=generator)) + rows.share.offset
        order = torch.randperm(rows.n, generator=torch.Generator().manual_seed(seed)).to(rows.device)
        for batch in order.tensor_split(batches):
            fresh = torch.zeros(k * (rows.d + 1), dtype=rows.wide, device=rows.device)
            into = fresh[k:].view(k, rows.d), fresh[:k]
            c = centers.to(rows.dtype).contiguous()
            for index in batch.split(rows.chunk):
                at = rows.mass[index], rows.weight[index]
                tally(rows.take(index), *at, c, half_squares(c, rows.metric), *into)
            fresh = rows.share.sum(fresh)
            counts += fresh[:k]
            sums += fresh[k:].view(k, rows.d)
            centers = means(rows, sums, counts, centers)[0]
        if path_length(centers, start) <= tol * rows.spread:
            return centers, step
        sums, counts = sums / batches, counts / batches
    return centers, passes


def _finish(lloyd: Lloyd, centers: Tensor, steps: int) -> KMeansResult:
    """Final labels, in full precision and without empty clusters."""
    rows = lloyd.rows
    lloyd.full_precision()
    for _ in range(2 * lloyd.k + 8):
        # The centers that are given back, rounded as they are, are those the labels belong to.
        centers = centers.to(rows.dtype).to(rows.wide)
        empty = means(rows, *lloyd.step(centers)[:2], centers)[1]
        if not len(empty):
            break
        centers = repair_empty(rows, centers, centers, empty, lloyd.labels)
    else:
        raise too_few(lloyd.k - len(empty), lloyd.k, rows.metric)
    distance = rows.own_distances(lloyd.labels, centers)
    inertia = rows.share.sum((distance * rows.weight).sum(dtype=rows.wide)[None]).item()
    if rows.metric == "cosine":
        inertia /= 2  # |z - c|^2 = 2 (1 - cos) for unit vectors
    return KMeansResult(rows.from_centers(centers), lloyd.labels.long(), inertia, steps)


@torch.no_grad()
def assign(x: Tensor, centers: Tensor, metric: Metric = "cosine", chunk: int = 2048) -> tuple[Tensor, Tensor]:
    """The nearest center of each row.

    Args:
        x: (N, D) rows.
        centers: (K, D) on the same device, of any length for cosine.
        metric: "cosine" or "euclidean".
        chunk: rows at a time on a CPU; more on a GPU.

    Returns:
        Labels (N,) int64, ties to the lower one, and scores (N,) in the rows' precision, float32 at least: the
        cosine in [-1, 1] (0 for a zero row), or minus the squared distance.

    Raises:
        ValueError: when shapes do not fit, for no centers, or values that are not finite.
    """
    _check(x, max(1, len(centers)), metric, "random", None, None, chunk=chunk)
    if centers.ndim != 2 or not len(centers) or centers.shape[1] != x.shape[1]:
        raise ValueError(f"centers are {tuple(centers.shape)}, expected (K, {x.shape[1]}), K at least 1")
    if not torch.isfinite(centers).all():
        raise ValueError("centers hold NaN or infinite values")
    labels = torch.zeros(len(x), dtype=torch.int64, device=x.device)
    if not len(x):
        return labels, torch.zeros(0, dtype=torch.float64 if x.dtype == torch.float64 else torch.float32)
    rows = Rows(x, metric, None, chunk, len(centers), Share(len(x), x.device, None, 0, None))
    c = rows.to_centers(centers).to(rows.dtype).contiguous()
    half = half_squares(c, metric)
    into = torch.zeros(c.shape, dtype=rows.wide, device=x.device), torch.zeros(len(c), dtype=rows.wide, device=x.device)
    for s, e in rows.spans():
        labels[s:e] = tally(rows.block(s, e), rows.mass[s:e], rows.weight[s:e], c, half, *into)
    distance = rows.own_distances(labels, c)
    if metric == "euclidean":
        return labels, -distance
    return labels, torch.where(rows.square > 0, 1 - distance / 2, 0)


class MiniBatchKMeans:
    """k-means on batches as they come, each center the mean of all vectors ever assigned to it.

    As PiCIE has it (Cho et al., CVPR 2021): `recipes.self_training.running_clusters`. Its identity: after any
    number of batches center k equals the mean of every vector that was assigned to k when it came (of its unit vector
    for cosine, so that such a center may be shorter than 1). A center to which nothing was assigned stays where it
    began.

    Args:
        k: clusters.
        metric: "cosine" or "euclidean".
        centers: (K, D) to begin with; by default k-means++ on the first batch.
        seed: of that start.
        chunk: rows at a time on a CPU.
        all_reduce: sums a tensor over processes that each bring a share of every batch.

    Attributes:
        centers: (K, D) in the precision of sums, or None before the first batch.
        counts: (K,) weight assigned to each so far.
    """

    def __init__(
        self,
        k: int,
        *,
        metric: Metric = "cosine",
        centers: Tensor | None = None,
        seed: int = 0,
        chunk: int = 2048,
        all_reduce: Reduce | None = None,
    ) -> None:
        _check(torch.zeros(0, 1), k, metric, "random", None, None, chunk=chunk)
        if centers is not None and (centers.ndim != 2 or len(centers) != k):
            raise ValueError(f"centers are {tuple(centers.shape)}, expected ({k}, D)")
        self.k, self.metric, self.seed, self.chunk, self.all_reduce = k, metric, seed, chunk, all_reduce
        self.centers: Tensor | None = None
        self.counts: Tensor | None = None
        if centers is not None:
            self._begin(centers)

    def _begin(self, centers: Tensor) -> None:
        self.centers = centers.detach().to(wide(centers.device)).clone()
        self.counts = torch.zeros_like(self.centers[:, 0])

    @torch.no_grad()
    def partial_fit(
        self, x: Tensor, weights: Tensor | None = None, *, offset: int | None = None, total: int | None = None
    ) -> Tensor:
        """Assigns a batch by the centers as they are, then moves them.

        Args:
            x: (n, D), this process's share of the batch.
            weights: (n,) at least 0.
            offset: rows of the processes before this one, needed by the first batch of several processes where
                torch.distributed does not tell the ranks.
            total: rows of all processes in this batch, if only to check.

        Returns:
            Labels (n,) int64.

        Raises:
            ValueError: when shapes do not fit, for values that are not finite, or a first batch with fewer distinct
                rows than clusters.
        """
        _check(x, self.k, self.metric, "random", weights, None)
        share = {"all_reduce": self.all_reduce, "offset": offset, "total": total}
        if self.centers is None:
            begin = {"metric": self.metric, "iterations": 0, "seed": self.seed, "chunk": self.chunk}
            self._begin(kmeans(x, self.k, weights=weights, **begin, **share).centers)  # type: ignore[arg-type]
        assert self.centers is not None and self.counts is not None
        if x.shape[1] != self.centers.shape[1]:
            raise ValueError(f"rows are {tuple(x.shape)}, expected (n, {self.centers.shape[1]})")
        if self.centers.device != x.device:
            self.centers, self.counts = self.centers.to(x.device), self.counts.to(x.device)
        # Only sums leave this process, so the place of its rows does not matter here.
        local = Share(len(x), x.device, None, 0, None)
        rows = Rows(x, self.metric, weights, self.chunk, self.k, local)
        c = rows.to_centers(self.centers).to(rows.dtype).contiguous()
        fresh = torch.zeros(self.k * (rows.d + 1), dtype=rows.wide, device=x.device)
        sums, counts = fresh[self.k :].view(self.k, rows.d), fresh[: self.k]
        labels = torch.empty(len(x), dtype=torch.int64, device=x.device)
        for s, e in rows.spans():
            at = rows.mass[s:e], rows.weight[s:e]
            labels[s:e] = tally(rows.block(s, e), *at, c, half_squares(c, self.metric), sums, counts)
        if rows.shift is not None:
            sums += counts[:, None] * rows.shift
        if self.all_reduce is not None:
            out = self.all_reduce(fresh)
            fresh = fresh if out is None else out
            sums, counts = fresh[self.k :].view(self.k, rows.d), fresh[: self.k]
        self.counts = self.counts + counts
        step = counts / torch.where(self.counts > 0, self.counts, 1)
        mean = sums / torch.where(counts > 0, counts, 1)[:, None]
        self.centers = self.centers + step[:, None] * (mean - self.centers)
        return labels

    def predict(self, x: Tensor) -> Tensor:
        """Labels (n,) int64 of rows (n, D) by the centers as they are.

        Raises:
            ValueError: before the first batch, or as `assign`.
        """
        if self.centers is None:
            raise ValueError("there are no centers yet; call partial_fit first")
        return assign(x, self.centers.to(x.device), self.metric, self.chunk)[0]

    def state_dict(self) -> dict[str, Any]:
        """`centers` and `counts` (absent before the first batch) and the options, all that continuing needs."""
        state: dict[str, Any] = {"k": self.k, "metric": self.metric, "seed": self.seed}
        if self.centers is not None and self.counts is not None:
            state |= {"centers": self.centers.clone(), "counts": self.counts.clone()}
        return state

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continues from `state_dict`.

        Raises:
            ValueError: when it is of another number of clusters or metric.
        """
        if (state["k"], state["metric"]) != (self.k, self.metric):
            found, here = f"{state['k']} {state['metric']}", f"{self.k} {self.metric}"
            raise ValueError(f"the state is of {found} clusters, expected {here}")
        self.seed = state["seed"]
        self.centers = self.counts = None
        if "centers" in state:
            self.centers, self.counts = state["centers"].clone(), state["counts"].clone()
