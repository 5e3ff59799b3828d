"""RoIAlign: the part of a map that lies in a box, read off at a grid of its own (He et al., Mask R-CNN, ICCV 2017).

A cell of the output is the mean of bilinear samples at even distances in its share of the box; of an axis-aligned box
both axes stand for themselves, so each box is two small matrices and a map of it two products. That is the same on
every device, in every run and for gradients.

Legend: B boxes and maps, K channels, (h, w) map, (p, q) output.
"""

from __future__ import annotations

import torch
from torch import Tensor

SNAP = 1e-6
"""By so much of a cell may a box exceed a whole number of cells without another sample: boxes are computed."""


def roi_align(x: Tensor, boxes: Tensor, size: tuple[int, int]) -> Tensor:
    """The maps inside their boxes, torchvision's `roi_align(..., sampling_ratio=-1, aligned=True)` of one box a map.

    A cell has as many samples along an axis as its share of the box has cells of the map, at least one. Samples up to
    a cell beyond the map read its border, those farther away 0. A box of negative height or width gives 0; the box of
    the whole map, read off at its own size, is the map itself.

    Args:
        x: (B, K, h, w), differentiable.
        boxes: (B, 4) as (x0, y0, x1, y1) in cells of the map, cell j covering [j, j + 1].
        size: (p, q).

    Returns:
        (B, K, p, q).

    Raises:
        ValueError: as many boxes as there are not maps.
    """
    if x.ndim != 4 or boxes.shape != (len(x), 4):
        raise ValueError(f"boxes {tuple(boxes.shape)} for maps {tuple(x.shape)}, expected ({len(x)}, 4) and 4 axes")
    x0, y0, x1, y1 = boxes.detach().double().unbind(1)
    rows = _weights(y0, y1, size[0], x.shape[2]).to(x)[:, None]  # (B, 1, p, h)
    columns = _weights(x0, x1, size[1], x.shape[3]).to(x)[:, None]  # (B, 1, q, w)
    return rows @ x @ columns.mT


def _weights(start: Tensor, end: Tensor, out: int, whole: int) -> Tensor:
    """What each of `whole` cells counts in each of `out` cells of [start, end], float64 (B, out, whole)."""
    step = (end - start) / out
    count = (step - SNAP).ceil().clamp(min=1)  # samples of a cell
    most = int(count.max()) if len(count) else 1
    i = torch.arange(most, dtype=start.dtype, device=start.device)
    cell = torch.arange(out, dtype=start.dtype, device=start.device)
    within = (i + 0.5) / count[:, None]  # (B, n)
    at = (start[:, None, None] - 0.5) + (cell[:, None] + within[:, None]) * step[:, None, None]  # (B, out, n)
    taken = (i < count[:, None])[:, None] & (at >= -1) & (at <= whole) & (step > 0)[:, None, None]
    cells = torch.arange(whole, dtype=start.dtype, device=start.device)
    hats = (1 - (at.clamp(0, whole - 1)[..., None] - cells).abs()).clamp(min=0)  # (B, out, n, whole)
    return (hats * taken[..., None]).sum(2) / count[:, None, None]
