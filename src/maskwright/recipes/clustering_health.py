"""Whether a clustering falls together: entropy of the assignments and share of the largest cluster, for every method
that reads no label.

    health = ClusteringHealth(clusters, steps, context.note)    # in a training's __init__
    terms |= health(probabilities)                              # in losses: two more numbers in the metrics
    health.after_step(step)                                     # says one line where a bound is crossed

A method without a training calls `clustering_health(ids, clusters)` and says what `collapse(...)` gives.

Legend: B images, K clusters, (h, w) map size.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

LEAST_ENTROPY = 0.3
"""Of log K. Of 11 clusters two of equal size have 0.29; of two clusters one with 95 % of the cells has 0.29."""
LARGEST_SHARE = 0.95
EVERY = 50
"""Steps from one look at the bounds to the next: a GPU is waited for there."""
SETTLES = 0.2
"""Share of the steps before the first look: untrained heads give nearly everything to one cluster."""


@torch.no_grad()
def cluster_shares(assignments: Tensor, clusters: int | None = None, valid: Tensor | None = None) -> Tensor:
    """What share of the cells each cluster has.

    Args:
        assignments: probabilities or logits (B, K, h, w), of which the largest counts, or ids (...), int64, below 0
            where there is none.
        clusters: K; needed for ids.
        valid: which cells count, of the shape of the ids.

    Returns:
        float32 (K,) of sum 1, or zeros where no cell counts.
    """
    if assignments.is_floating_point():
        clusters = assignments.shape[1]
        assignments = assignments.argmax(1)
    if clusters is None:
        raise ValueError("ids without the number of clusters")
    counted = assignments >= 0 if valid is None else (assignments >= 0) & valid
    counts = torch.bincount(assignments[counted].flatten(), minlength=clusters).float()
    return counts / counts.sum().clamp(min=1)


def clustering_health(
    assignments: Tensor, clusters: int | None = None, valid: Tensor | None = None
) -> dict[str, Tensor]:
    """Figures of a clustering.

    Args:
        assignments, clusters, valid: as for `cluster_shares`.

    Returns:
        `entropy` of the shares, as a part of log K (1: all clusters are equally large; 0: there is one); and
        `largest_share`, in [0, 1].
    """
    return _figures(cluster_shares(assignments, clusters, valid))


def _figures(shares: Tensor) -> dict[str, Tensor]:
    entropy = -torch.special.xlogy(shares, shares).sum() / math.log(max(2, len(shares)))
    return {"entropy": entropy, "largest_share": shares.max()}


def collapse(health: Mapping[str, Tensor | float], clusters: int) -> str | None:
    """What is to be said of figures that cross a bound, else None.

    Args:
        health: of `clustering_health`.
        clusters: K; one cluster cannot fall together.
    """
    entropy, largest = float(health["entropy"]), float(health["largest_share"])
    if clusters < 2 or (entropy >= LEAST_ENTROPY and largest <= LARGEST_SHARE):
        return None
    used = math.exp(entropy * math.log(clusters))
    return (
        f"the clusters fall together: as few as {used:.1f} of {clusters} are in use, and the largest has "
        f"{100 * largest:.0f} % of the cells. Try a lower learning rate, fewer steps or fewer clusters."
    )


class ClusteringHealth:
    """Watches the assignments of a training.

    What is recorded are the figures of each step's batch; what is judged is the mean of the last twenty or so. It has
    no part in what is learned and none in the checkpoint: a resumed run looks at its own steps.

    Args:
        clusters: K.
        steps: of the stage.
        note: says a sentence, once (`Context.note`).
    """

    def __init__(self, clusters: int, steps: int, note: Callable[[str], None]) -> None:
        self.clusters, self.steps, self.note = clusters, steps, note
        self.shares: Tensor | None = None
        self.said = False

    def __call__(self, assignments: Tensor, valid: Tensor | None = None) -> dict[str, Tensor]:
        """`entropy` and `largest_share` of a batch, for the metrics."""
        shares = cluster_shares(assignments, self.clusters, valid)
        self.shares = shares if self.shares is None else self.shares.lerp(shares, 0.05)
        return _figures(shares)

    def after_step(self, step: int) -> None:
        """Says one line, with its step, where the clusters fall together."""
        last = step + 1 == self.steps
        if self.said or self.shares is None or not (last or (step + 1) % EVERY == 0):
            return
        if last or step >= SETTLES * self.steps:
            sentence = collapse(_figures(self.shares), self.clusters)
            if sentence is not None:
                self.note(f"Step {step + 1} of {self.steps}: {sentence}")
                self.said = True
