"""How much of a clustering the position in the frame predicts.

Clusters of photographs without a fixed layout (plants from above, tissue, goods on a belt) should say what is there,
not where it is. A frozen network sees its padding, photographs darken towards their corners, and clusters become
regions of the frame. So each cell of a coarse grid over the frame predicts the cluster that is most frequent there in
one half of the photographs, and is judged on the other half; then the halves change roles. Beside it stands what the
most frequent cluster alone gets in the same way, and it is of chance that the position is better than that.

Legend: N photographs, K clusters, (h, w) size of a label map, G cells of the grid.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np

GRID = (12, 16)
"""Rows and columns of the grid, whatever the photograph's form: fine enough for a rim, too coarse for its objects."""
MUCH = 0.3
"""Share of what the most frequent cluster leaves that the position explains, from which clusters are places."""
LEAST = 4
"""Photographs below which nothing can be told: a half is then one photograph."""


@dataclass(frozen=True)
class Places:
    """What position alone predicts.

    Attributes:
        accuracy: share of the pixels whose cluster their place in the frame predicts, in photographs that the
            prediction was not fitted to.
        chance: share that the most frequent cluster predicts, in the same way; at least 1 / K, which any guess gets.
        photographs: N.
    """

    accuracy: float
    chance: float
    photographs: int

    @property
    def explained(self) -> float:
        """(accuracy - chance) / (1 - chance), at least 0: 1 where place is all, 0 where it tells nothing."""
        return max(0.0, self.accuracy - self.chance) / max(1e-9, 1 - self.chance)

    @property
    def much(self) -> bool:
        """Whether the clusters are largely places."""
        return self.explained >= MUCH

    def to_json(self) -> dict[str, float | int | str]:
        """For the record of a run, with the sentence."""
        return {**asdict(self), "explained": self.explained, "says": self.says()}

    def says(self) -> str:
        """What is said of it, and what to do where it is much."""
        figures = (
            f"Place in the frame alone predicts the cluster of {100 * self.accuracy:.0f} % of the pixels (the largest "
            f"cluster alone {100 * self.chance:.0f} %), in photographs that it was not fitted to."
        )
        if not self.much:
            return figures
        return (
            f"{figures} Unless the scenes themselves have a fixed layout, as a road below the sky, the clusters are "
            "largely places in the frame, not things: learn from random crops or without what lies along the border "
            "(kmeans, stego, primaps: --set crop=0.5, --set margin=0.25), or, with other methods, train on windows cut "
            "out of the photographs at random places instead of whole frames."
        )


def cell_counts(ids: np.ndarray, clusters: int, grid: tuple[int, int] = GRID) -> np.ndarray:
    """Share of a photograph's pixels in each cell and cluster, float64 (G, K), of sum 1.

    Args:
        ids: (h, w) integers; those that are no cluster are left out.
        clusters: K.
        grid: rows and columns.
    """
    h, w = ids.shape
    rows, columns = (np.arange(n) * g // n for n, g in zip((h, w), grid))
    cell = rows[:, None] * grid[1] + columns[None]
    inside = (ids >= 0) & (ids < clusters)
    index = cell[inside] * clusters + ids[inside].astype(np.int64)
    counts = np.bincount(index, minlength=grid[0] * grid[1] * clusters).astype(np.float64)
    return counts.reshape(-1, clusters) / max(1.0, counts.sum())


def place_share(masks: Sequence[np.ndarray], clusters: int, grid: tuple[int, int] = GRID) -> Places | None:
    """How well the place in the frame predicts the clusters of label maps.

    Args:
        masks: ids (h, w) of each photograph, of any sizes.
        clusters: K.
        grid: rows and columns of the cells.

    Returns:
        The figures; None for fewer than four photographs, or a single cluster.
    """
    if len(masks) < LEAST or clusters < 2:
        return None
    halves = np.zeros((2, grid[0] * grid[1], clusters))
    for n, ids in enumerate(masks):
        halves[n % 2] += cell_counts(ids, clusters, grid)
    right = usual = 0.0
    for fitted, judged in ((halves[0], halves[1]), (halves[1], halves[0])):
        common = int(fitted.sum(0).argmax())
        best = np.where(fitted.any(1), fitted.argmax(1), common)
        right += float(judged[np.arange(len(judged)), best].sum())
        usual += float(judged[:, common].sum())
    total = float(halves.sum())
    # Of few photographs the most frequent cluster of one half may be rare in the other.
    return Places(right / total, max(usual / total, 1 / clusters), len(masks)) if total > 0 else None
