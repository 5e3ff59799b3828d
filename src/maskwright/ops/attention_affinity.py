"""Class maps that spread along a transformer's attention, inside boxes around their peaks: CLIP-ES (Lin et al., CVPR
2023, https://arxiv.org/abs/2212.09506), section 3.3.

Legend: (h, w) grid of patches, N = h w.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from maskwright.ops.refinement.components import label_components

EPS = 1e-7
"""Added to the greatest value that a map is divided by."""


def attention_transition(attention: Tensor, rounds: int = 3, power: int = 2) -> Tensor:
    """Attention as a symmetric transition between patches.

    Columns, then rows are brought to a sum of 1, so many times; the mean with its transpose; then its power.

    Args:
        attention: (N, N), above 0; row n says what patch n looks at.
        rounds: of the normalisation.
        power: the matrix is multiplied with itself to this power.

    Returns:
        (N, N), symmetric; rows and columns sum to nearly 1.
    """
    a = attention
    for _ in range(rounds):
        a = a / a.sum(0, keepdim=True)
        a = a / a.sum(1, keepdim=True)
    a = (a + a.T) / 2
    return torch.linalg.matrix_power(a, power)


def peak_boxes(cam: Tensor, share: float = 0.4) -> Tensor:
    """Which patches lie in a box around a connected part of what is high.

    Args:
        cam: (h, w), not negative.
        share: of the map's maximum that is high.

    Returns:
        bool (h, w); nothing where the map is 0 everywhere.
    """
    found = torch.zeros(cam.shape, dtype=torch.bool, device=cam.device)
    top = float(cam.max())
    if top <= 0:
        return found
    ids, count = label_components((cam >= share * top).cpu().numpy(), connectivity=8)
    for k in range(1, count + 1):
        rows, columns = np.nonzero(ids == k)
        found[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1] = True
    return found


def spread_in_boxes(cam: Tensor, transition: Tensor, share: float = 0.4) -> Tensor:
    """A class map along a transition, from patches in `peak_boxes` alone, in [0, 1].

    Args:
        cam: (h, w), not negative.
        transition: (N, N), row n gathers.
        share: as for `peak_boxes`.
    """
    kept = torch.where(peak_boxes(cam, share), cam, 0)
    spread = (transition @ kept.flatten()).view_as(cam)
    spread = spread - spread.min()
    return spread / (spread.max() + EPS)
