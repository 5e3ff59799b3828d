"""RoIAlign: a map resampled inside boxes, as a product of two small matrices.

He et al., Mask R-CNN, ICCV 2017 (https://arxiv.org/abs/1703.06870), in the corrected convention (`aligned=True`): cell
(i, j) of a map covers [j, j + 1] x [i, i + 1] and has its value at its centre. Each of n x n bins is the mean of a
grid of bilinear samples, one a cell and direction, rounded up. Bilinear samples on a grid are separable, so a box of
a map F (h, w) becomes A F B^T with A (n, h) and B (n, w); gradients follow from that.

Legend: N boxes, C channels, (h, w) map size, n bins a side.
"""

from __future__ import annotations

import torch
from torch import Tensor


def roi_align(maps: Tensor, boxes: Tensor, bins: int) -> Tensor:
    """Resamples a box of each map.

    Args:
        maps: (N, C, h, w), a map for each box.
        boxes: (N, 4), x1, y1, x2, y2 in cells of the map, 0 to w and h; an empty box (x2 <= x1) gives zeros.
        bins: n.

    Returns:
        (N, C, n, n), of the maps' type.

    Raises:
        ValueError: shapes that do not belong together.
    """
    if maps.ndim != 4 or boxes.shape != (len(maps), 4) or bins < 1:
        raise ValueError(
            f"maps {tuple(maps.shape)}, boxes {tuple(boxes.shape)} and {bins} bins, expected (N, C, h, w), (N, 4) and "
            "at least 1"
        )
    boxes = boxes.to(maps)
    rows = bin_weights(boxes[:, 1], boxes[:, 3], maps.shape[2], bins)  # (N, n, h)
    columns = bin_weights(boxes[:, 0], boxes[:, 2], maps.shape[3], bins)  # (N, n, w)
    return torch.einsum("nyh,nchw,nxw->ncyx", rows, maps, columns)


def bin_weights(start: Tensor, end: Tensor, length: int, bins: int) -> Tensor:
    """How much each cell of a line counts in each bin of intervals [start, end).

    Args:
        start, end: (N,) in cells.
        length: cells of the line.
        bins: n.

    Returns:
        (N, n, length); rows sum to 1 where all samples lie inside the line.
    """
    each = (end - start) / bins  # (N,), cells a bin
    count = each.ceil().clamp(min=0)
    most = max(1, int(count.max())) if len(count) else 1
    k = torch.arange(most, device=start.device, dtype=start.dtype)
    used = k < count[:, None]  # (N, most)
    inside = (k + 0.5) / count.clamp(min=1)[:, None]
    bin_ = torch.arange(bins, device=start.device, dtype=start.dtype)
    at = start[:, None, None] - 0.5 + (bin_[None, :, None] + inside[:, None]) * each[:, None, None]  # (N, n, most)
    there = used[:, None] & (at >= -1) & (at <= length)
    cells = torch.arange(length, device=start.device, dtype=start.dtype)
    weight = (1 - (at.clamp(0, length - 1)[..., None] - cells).abs()).clamp(min=0) * there[..., None]
    return weight.sum(2) / count.clamp(min=1)[:, None, None]
