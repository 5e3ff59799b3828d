"""What clusters of features are worth on masks, as the trials in memory count it."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch.nn.functional as F
from torch import Tensor

from maskwright.evaluate.confusion import ConfusionMatrix
from maskwright.evaluate.metrics import apply_mapping
from maskwright.ops.matching import hungarian


def matched_counts(
    maps: Iterable[Tensor], masks: Iterable[np.ndarray], centers: Tensor, classes: int, class_of: Tensor | None = None
) -> np.ndarray:
    """Counts (classes, classes) of pixels after one-to-one matching: each has the cluster of the nearest centre.

    Args:
        maps: features (D, h, w) of photographs.
        masks: their labels (H, W).
        centers: (K, D), compared by cosine, enlarged bilinearly.
        classes: as many as groups of clusters.
        class_of: (K,) the group of each cluster; None: each is one.
    """
    table, unit = ConfusionMatrix(classes, classes), F.normalize(centers, dim=1)
    for f, mask in zip(maps, masks):
        scores = (F.normalize(f.flatten(1), dim=0).T @ unit.T).T.unflatten(1, f.shape[1:])
        large = F.interpolate(scores[None], mask.shape, mode="bilinear", align_corners=False)[0].argmax(0)
        table.update((large if class_of is None else class_of[large]).numpy(), mask)
    counts: np.ndarray = apply_mapping(table.counts, hungarian(table.counts))
    return counts
