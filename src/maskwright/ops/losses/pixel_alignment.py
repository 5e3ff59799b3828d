"""Pixel-to-pixel alignment of two views of one photograph, without negatives (PASS, TPAMI 2022, arXiv 2106.03149).

The places that two crops share are sampled from both feature maps; a predictor on one side must give what the other
side has, whose gradient is stopped (SimSiam, Chen & He, CVPR 2021).

Legend: B photographs, d width, (h, w) feature-map size, G points a side.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor


def sample_grid(u: Tensor, grid: Tensor) -> Tensor:
    """Features at points of a view.

    Points on a crop's very edge lie half a cell beyond the outermost cell centres, so half of what they read is the
    zero padding: the direction is kept, the length halved. Points outside (`data.views.NOWHERE`) read zeros.

    Args:
        u: (B, d, h, w), covering the view.
        grid: (B, G, G, 2) as `data.views.shared_grid` gives it, x before y, -1 and 1 the view's edges.

    Returns:
        (B, d, G, G).

    Raises:
        ValueError: maps and grids do not fit each other.
    """
    if u.ndim != 4 or grid.ndim != 4 or len(u) != len(grid) or grid.shape[-1] != 2:
        raise ValueError(f"features {tuple(u.shape)} and grid {tuple(grid.shape)}, expected (B, d, h, w), (B, G, G, 2)")
    return F.grid_sample(u, grid.to(u), mode="bilinear", padding_mode="zeros", align_corners=False)


def alignment(p: Tensor, u: Tensor) -> Tensor:
    """Mean over places of cos(p, sg[u]); places where u is zero count as 0.

    Args:
        p: predictions (B, d, G, G).
        u: targets of that shape; they get no gradient.
    """
    return F.cosine_similarity(p, u.detach(), dim=1).mean()


def p2p_loss(u1: Tensor, u2: Tensor, grid1: Tensor, grid2: Tensor, predictor: Callable[[Tensor], Tensor]) -> Tensor:
    """L_p2p = -1/2 [mean cos(p1, sg u2) + mean cos(p2, sg u1)], p = predictor(u) at the shared places.

    The predictor sees both views at once, as in the original: their batch-norm statistics are common and move once.

    -1 for identical crops under an identity as predictor. Photographs whose crops share nothing give exactly 0 and no
    gradient, and still count in the mean, so that a batch's few overlaps are not weighed up.

    Args:
        u1: pixel embeddings of the first crops (B, d, h, w).
        u2: of the second crops.
        grid1: the shared places in the first crops (B, G, G, 2).
        grid2: the same places in the second crops.
        predictor: (2 B, d, G, G) to the same shape, first crops first.
    """
    s1, s2 = sample_grid(u1, grid1), sample_grid(u2, grid2)
    p1, p2 = predictor(torch.cat([s1, s2])).chunk(2)
    return -(alignment(p1, s2) + alignment(p2, s1)) / 2
