"""Leopart's loss: where two crops show the same, one must predict what the other is assigned (CVPR 2022, arXiv
2204.13101), with the boxes of overlaps and the foreground that it looks at.

Legend: B photographs, V crops, the first G global, K prototypes, (h, w) map size, n bins a side.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from maskwright.data.training.augment import gaussian_blur
from maskwright.data.training.views import View, overlap
from maskwright.ops.clustering.sinkhorn import Reduce, sinkhorn
from maskwright.ops.refinement.components import remove_small
from maskwright.ops.roi_align import roi_align

GLOBAL = 2
"""G, crops that assign."""
BINS = 7
"""n."""
WHOLE = 1 - 1e-5
"""Share from which a bin is wholly foreground: of a mask of ones RoIAlign gives a little less in float32, which the
authors' >= 1 drops."""


class Boxes(NamedTuple):
    """Where the crops of photographs overlap, as x1, y1, x2, y2 in shares of the crop's sides; an empty box where
    they do not.

    Attributes:
        of_global: (B, G, V, 4), what a global crop shares with each crop, in the global crop.
        of_other: (B, V, G, 4), the same in the other crop.
    """

    of_global: Tensor
    of_other: Tensor


def overlap_boxes(views: Sequence[Sequence[View]]) -> Boxes:
    """The boxes of the V crops of each photograph; crops are neither mirrored nor turned."""
    first: list[tuple[float, ...]] = []
    second: list[tuple[float, ...]] = []
    for crops in views:
        for g in range(GLOBAL):
            for crop in crops:
                shared = overlap(crops[g], crop)
                both = ((0.0,) * 4, (0.0,) * 4) if shared is None else (shared.box_a, shared.box_b)
                for found, box, (height, width) in zip((first, second), both, (crops[g].size, crop.size)):
                    found.append((box[0] / width, box[1] / height, box[2] / width, box[3] / height))
    shape = (len(views), GLOBAL, -1, 4)
    of_global, of_other = (torch.tensor(found, dtype=torch.float32).view(shape) for found in (first, second))
    return Boxes(of_global, of_other.transpose(1, 2))


def aligned(maps: Tensor, boxes: Tensor) -> Tensor:
    """Maps (B, C, h, w) inside boxes (B, 4) in shares of their sides: (B, C, n, n)."""
    h, w = maps.shape[-2:]
    return roi_align(maps, boxes.to(maps) * boxes.new_tensor([w, h, w, h]).to(maps), (BINS, BINS))


@torch.no_grad()
def assign(
    scores: Tensor, queued: Tensor | None, eps: float, iterations: int, all_reduce: Reduce | None = None
) -> Tensor:
    """Q of a global crop: Sinkhorn over the queue's and the batch's tokens together.

    Args:
        scores: the teacher's (B, K, h, w).
        queued: scores of the queue's rows (N, K), or None.
        eps, iterations: of Sinkhorn.
        all_reduce: sums over processes.

    Returns:
        (B, K, h, w), sums 1 over K.
    """
    b, k, h, w = scores.shape
    rows = scores.permute(0, 2, 3, 1).reshape(-1, k)  # (B h w, K)
    both = rows if queued is None else torch.cat([queued.to(rows), rows])
    q = sinkhorn(both, eps, iterations, all_reduce=all_reduce)[-len(rows) :]
    return q.view(b, h, w, k).permute(0, 3, 1, 2)


def foreground_bins(masks: Sequence[Tensor], boxes: Boxes) -> Tensor:
    """Which bins are wholly foreground.

    Args:
        masks: of each global crop (B, 1, h, w), 1 in the foreground.
        boxes: of the crops.

    Returns:
        bool (G, V, B, n, n).
    """
    crops = boxes.of_global.shape[2]
    return torch.stack([
        torch.stack([aligned(m.float(), boxes.of_global[:, g, v])[:, 0] >= WHOLE for v in range(crops)])
        for g, m in enumerate(masks)
    ])  # fmt: skip


def spatial_loss(
    q: Sequence[Tensor], scores: Sequence[Tensor], boxes: Boxes, m: Tensor | None, temperature: float
) -> Tensor:
    """L = 1/G sum_g 1/(V-1) sum_{v != g} - sum_x m_x sum_k q_k log p_k / sum_x m_x, x over all photographs' bins.

    q is the assignment of g and p = softmax(scores / T) the prediction of v, both inside their overlap. A pair
    without a bin left is left out of its sum, which V - 1 still divides.

    Args:
        q: assignments (B, K, h, w) of each of G global crops, without gradient.
        scores: the student's (B, K, h, w) of each of V crops.
        boxes: of the crops.
        m: bool (G, V, B, n, n), or None for all bins. Bins of crops that do not overlap do not count.
        temperature: T.
    """
    total = torch.stack([s.sum() for s in scores]).sum() * 0  # a loss without any bin has a gradient, of zeros
    for g, of_g in enumerate(q):
        for v, s in enumerate(scores):
            if v == g:
                continue
            in_g, in_v = boxes.of_global[:, g, v], boxes.of_other[:, v, g]
            log_p = (aligned(s.float(), in_v) / temperature).log_softmax(1)
            there = (in_g[:, 2:] > in_g[:, :2]).all(1).to(s.device)[:, None, None]
            counted = there.expand(-1, BINS, BINS) if m is None else there & m[g, v].bool()
            entropies = -(aligned(of_g, in_g).detach() * log_p).sum(1)  # (B, n, n)
            count = counted.sum()
            total = total + torch.where(counted, entropies, 0).sum() / count.clamp(min=1)
    return total / (len(q) * max(1, len(scores) - 1))


def attention_masks(attention: Tensor, mass: float, smallest: int) -> Tensor:
    """Foreground of the class token's attention: the cells that hold most of it, without specks.

    Args:
        attention: (B, heads, h, w).
        mass: share of it that is kept.
        smallest: cells of the smallest part, over sides and corners.

    Returns:
        float32 (B, 1, h, w), 0 and 1.
    """
    mean = gaussian_blur(attention.float().mean(1), 0.6, 7)  # (B, h, w)
    flat, order = mean.flatten(1).sort(1)
    share = (flat / flat.sum(1, keepdim=True)).cumsum(1)
    kept = torch.zeros_like(flat).scatter(1, order, (share > 1 - mass).float()).view_as(mean).cpu().numpy()
    found = np.stack([remove_small(k, smallest, connectivity=8) for k in kept])
    return torch.from_numpy(found.astype(np.float32))[:, None].to(attention.device)
