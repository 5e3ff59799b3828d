"""k-means of a run: of all processes' rows, with its seed, as many clusters as it has classes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import Tensor

from maskwright.engine.config import option
from maskwright.engine.distributed import gather_objects, rank, reducer
from maskwright.errors import MaskwrightError
from maskwright.ops.clustering.kmeans import KMeansResult, Metric, kmeans

if TYPE_CHECKING:
    from maskwright.engine.context import Context

FEWEST = 4
"""Rows of a fine cluster on average, at least."""


@dataclass(kw_only=True)
class ClusterOptions:
    """k-means."""

    restarts: int = option(10, "starts of k-means; the one with the best inertia is kept", low=1)
    iterations: int = option(100, "most iterations of each start", low=1)


@dataclass(kw_only=True)
class FineClusterOptions(ClusterOptions):
    """k-means of more clusters than there are classes, which are then joined."""

    fine: int = option(
        1, "clusters of k-means for each class, fewer where positions are few, joined by how alike their centres are; "
        "1: none are joined", low=1, high=100, main=True,
    )  # fmt: skip

    def count(self, classes: int, rows: int) -> int:
        """Clusters of k-means for so many classes and rows: each has `FEWEST` rows on average at least."""
        return enough(self.fine * classes, rows, classes)


def enough(asked: int, rows: int, least: int = 1) -> int:
    """Clusters, at most as many as asked for, that have `FEWEST` rows each on average; `least` of them need not."""
    return min(asked, max(least, rows // FEWEST))


def note_fewer(context: Context, count: int, asked: int) -> None:
    """Says where positions are too few for the clusters asked for."""
    if count < asked:
        context.note(f"{count} clusters in place of {asked}: {FEWEST} positions of the photographs for each.")


def fewer_clusters(context: Context, asked: int, rows: Tensor, least: int = 1) -> int:
    """How many clusters rows of all processes, of which this one's are (N, D), are enough for; says where they are
    fewer than asked for."""
    count = enough(asked, sum(gather_objects(len(rows))), least)
    note_fewer(context, count, asked)
    return count


def cluster_rows(
    context: Context,
    rows: Tensor,
    options: ClusterOptions,
    clusters: int | None = None,
    metric: Metric = "cosine",
    shown: bool = True,
    of: str = "positions",
    asked: str = "--classes",
    more: str = "add images",
) -> KMeansResult:
    """k-means of all processes' rows, spherical unless the metric says otherwise. Says where there are fewer clusters
    than `FineClusterOptions` ask for.

    Args:
        context: the run.
        rows: this process's share (N, D).
        options: of k-means.
        clusters: how many; by default as many as the run has classes.
        metric: "cosine" or "euclidean".
        shown: whether progress shows it; not inside a training, which is shown itself.
        of: what the rows are, for errors; so are the next two.
        asked: the option that says how many clusters.
        more: what makes the rows more.

    Raises:
        MaskwrightError: when there are fewer rows than clusters.
    """
    k = clusters or context.classes
    counts = gather_objects(len(rows))
    if sum(counts) < k:
        raise MaskwrightError(
            f"{k} clusters from {sum(counts)} {of} of {len(context.data)} images", f"at least as many {of} as clusters",
            f"ask for fewer with {asked}, or {more}" if sum(counts) else more,
        )  # fmt: skip
    if isinstance(options, FineClusterOptions):
        note_fewer(context, k, options.fine * context.classes)
    try:
        with context.progress.task("k-means", options.restarts if shown else 0) as task:
            return kmeans(
                rows, k, metric=metric, init="kmeans++", iterations=options.iterations, restarts=options.restarts,
                seed=context.seed, all_reduce=reducer(), offset=sum(counts[: rank()]), total=sum(counts),
                after=task.advance_to,
            )  # fmt: skip
    except ValueError as error:
        raise MaskwrightError(
            f"the features cannot be clustered: {error}", "", f"ask for fewer with {asked}"
        ) from error
