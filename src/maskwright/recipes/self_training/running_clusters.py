"""k-means of more rows than fit in memory: k-means of the first, then running means of what comes (mini-batch k-means).

    clusters = RunningClusters(k, begin)
    clusters.begin(rows)            # as many as fit
    clusters.add(rows)              # again and again
    clusters.centers, clusters.counts, clusters.inertia

Sculley, Web-Scale k-Means Clustering, WWW 2010; as PiCIE has it (Cho et al., CVPR 2021): the first rows set the centres
by k-means and are counted, and what comes later is assigned by the centres of before it, then moves them.

Legend: N rows, K clusters, D width.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from maskwright.ops.clustering.kmeans import MiniBatchKMeans, assign


class RunningClusters:
    """Euclidean clusters of rows as they come; centres are means, of no particular length.

    Args:
        k: K.
        start: centres (K, D) of the first rows of all processes, from this process's share of them.
        reduce: sums a tensor over processes; None: there is one.
    """

    def __init__(
        self, k: int, start: Callable[[Tensor], Tensor], reduce: Callable[[Tensor], Tensor] | None = None
    ) -> None:
        self.k, self.start, self.reduce = k, start, reduce
        self._means = MiniBatchKMeans(k, metric="euclidean", all_reduce=reduce)
        self._inertia: list[float] = []

    @torch.no_grad()
    def begin(self, rows: Tensor) -> None:
        """Takes the first rows (N, D): they set the centres and are counted, and do not move them further."""
        centers = self.start(rows)
        labels, score = assign(rows, centers.to(rows), "euclidean")
        counts = torch.bincount(labels, minlength=self.k)
        state = MiniBatchKMeans(self.k, metric="euclidean", centers=centers).state_dict()
        self._means.load_state_dict(state | {"counts": self._sum(counts.to(state["counts"]))})
        self._keep(-score)

    @torch.no_grad()
    def add(self, rows: Tensor) -> None:
        """Takes further rows (N, D): assigned by the centres as they are, which then become the means of all that was
        ever assigned to them, what set them at the start counted in. One that gets none stays."""
        before = self.centers
        labels = self._means.partial_fit(rows)
        self._keep((rows - before.to(rows)[labels]).square().sum(1))

    @property
    def centers(self) -> Tensor:
        """(K, D), in the precision of sums."""
        assert self._means.centers is not None, "no rows yet"
        return self._means.centers

    @property
    def counts(self) -> Tensor:
        """(K,), rows that each was given."""
        assert self._means.counts is not None, "no rows yet"
        return self._means.counts

    @property
    def inertia(self) -> float:
        """Mean over batches of the mean squared distance to the nearest centre of before the batch."""
        return sum(self._inertia) / len(self._inertia)

    def _keep(self, distance: Tensor) -> None:
        total = self._sum(torch.stack((distance.float().sum(), distance.new_tensor(len(distance)).float())))
        self._inertia.append(float(total[0] / total[1].clamp(min=1)))

    def _sum(self, x: Tensor) -> Tensor:
        return x if self.reduce is None else self.reduce(x)
