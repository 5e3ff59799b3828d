"""The regularised loss of weak supervision: pixels that lie near each other and look alike should agree.

A relaxed dense CRF as a loss on soft segmentations: E = sum_ij w_ij (1 - <S_i, S_j>) / sum_ij w_ij with a Gaussian
w_ij of positions and colours, the share of affinity that a segmentation cuts. All pairs are held, so maps are brought
to a small grid first; the result is exact for that grid, with autograd, on any device.

Legend: B batch, C classes, (H, W) size of the maps, (g, g') the grid, n = g g' cells.

Sources: Tang et al., On Regularized Losses for Weakly-supervised CNN Segmentation, ECCV 2018; its use with a gate in
Ru et al., AFA, CVPR 2022, and ToCo, CVPR 2023. Theirs is -sum_ij w_ij <S_i, S_j> at half size through a permutohedral
lattice in C++, times 1e-7 for the number of pairs; dividing by sum_ij w_ij makes it a number in [0, 1] at any size.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def dense_energy(
    probs: Tensor,
    images: Tensor,
    *,
    gate: Tensor | None = None,
    valid: Tensor | None = None,
    sigma_rgb: float = 15.0,
    sigma_xy: float = 100.0,
    cells: int = 48,
) -> Tensor:
    """E of each segmentation, the mean over the batch.

    Args:
        probs: S, (B, C, H, W), distributions over C.
        images: (B, 3, H', W') RGB in the units of `sigma_rgb`, any size.
        gate: (B, H, W) in [0, 1], how much of the gradient a pixel gets; all of it by default. The value of the loss
            does not depend on it.
        valid: bool (B, H, W); pixels outside the photograph take no part.
        sigma_rgb: width of the colour kernel, grey levels.
        sigma_xy: width of the position kernel, pixels of the maps (H, W).
        cells: the grid's longer side; maps that are smaller stay as they are.

    Returns:
        A number in [0, 1]: 0 where all cells agree surely, no gradient to images.

    Raises:
        ValueError: shapes that do not belong together, or widths that are not positive.
    """
    if probs.dim() != 4 or images.dim() != 4 or images.shape[1] != 3 or len(images) != len(probs):
        raise ValueError(
            f"maps {tuple(probs.shape)}, images {tuple(images.shape)}: expected (B, C, H, W) and (B, 3, H', W')"
        )
    size = (len(probs), *probs.shape[-2:])
    for name, x in (("gate", gate), ("valid", valid)):
        if x is not None and tuple(x.shape) != size:
            raise ValueError(f"{name} is {tuple(x.shape)}, expected {size}")
    if min(sigma_rgb, sigma_xy) <= 0 or cells < 1:
        raise ValueError(f"widths {sigma_rgb} and {sigma_xy}, {cells} cells: expected positive numbers")
    with torch.autocast(probs.device.type, enabled=False):
        height, width = size[1:]
        shrink = min(1.0, cells / max(height, width))
        grid = (max(1, round(height * shrink)), max(1, round(width * shrink)))
        s = _at(probs.float(), grid).flatten(2)  # (B, C, n)
        if gate is not None:
            g = _at(gate.detach().float()[:, None], grid).flatten(2)
            s = s * g + (s * (1 - g)).detach()
        with torch.no_grad():
            w = _kernel(_at(images.float(), grid), (height / grid[0], width / grid[1]), sigma_rgb, sigma_xy)
            if valid is not None:
                inside = _at(valid.float()[:, None], grid).flatten(1)  # (B, n), the share of a cell that counts
                w = w * inside[:, :, None] * inside[:, None, :]
            total = w.sum((1, 2))
            some = total > 0
            w = w / torch.where(some, total, 1)[:, None, None]
        agreement = (s * (s @ w)).sum((1, 2))
        return (some.to(agreement) - agreement).mean()


def _at(x: Tensor, grid: tuple[int, int]) -> Tensor:
    """Maps (B, C, H, W) at the grid's size: means over what a cell covers, or bilinear where the grid is finer."""
    if tuple(x.shape[-2:]) == grid:
        return x
    if x.shape[-2] >= grid[0] and x.shape[-1] >= grid[1]:
        return F.adaptive_avg_pool2d(x, grid)
    return F.interpolate(x, grid, mode="bilinear", align_corners=False)


def _kernel(images: Tensor, cell: tuple[float, float], sigma_rgb: float, sigma_xy: float) -> Tensor:
    """w (B, n, n): exp(-|x_i - x_j|^2 / 2 sigma_xy^2 - |I_i - I_j|^2 / 2 sigma_rgb^2), 0 on the diagonal."""
    g, g2 = images.shape[-2:]
    y = torch.arange(g, device=images.device).mul(cell[0] / sigma_xy)[:, None].expand(g, g2)
    x = torch.arange(g2, device=images.device).mul(cell[1] / sigma_xy)[None].expand(g, g2)
    places = torch.stack([y, x]).flatten(1).expand(len(images), -1, -1)  # (B, 2, n)
    points = torch.cat([places, images.flatten(2) / sigma_rgb], 1).transpose(1, 2)  # (B, n, 5)
    points = points - points.mean(1, keepdim=True)  # the expanded square loses digits far from the origin
    square = points.square().sum(2)
    distance = (square[:, :, None] + square[:, None, :] - 2 * points @ points.transpose(1, 2)).clamp_(min=0)
    w = distance.mul_(-0.5).exp_()
    w.diagonal(dim1=1, dim2=2).zero_()
    return w
