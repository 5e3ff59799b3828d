"""Pixel-adaptive refinement: scores spread to neighbours of like colour, a local stand-in for a dense CRF.

Every pixel looks at its eight neighbours at several dilations. Weights are a softmax over these of how little the
colours differ, measured in units of the neighbourhood's own contrast, plus a small share of a softmax of distance; a
few rounds of weighted means follow. Runs on any device.

Legend: B batch, C classes, (H, W) pixels, N neighbours = 8 x dilations.

Sources: PAR of Ru et al., Token Contrast for Weakly-Supervised Semantic Segmentation (ToCo), CVPR 2023; PAMR of
Araslanov and Roth, Single-Stage Semantic Segmentation from Image Labels, CVPR 2020. The original's weights sum to 1.01,
so its maps grow by that factor every round; here they sum to 1 unless `original_sum`.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F

_DIRECTIONS = ((-1, -1), (-1, 0), (-1, 1), (0, -1), (0, 1), (1, -1), (1, 0), (1, 1))


@torch.no_grad()
def pixel_adaptive_refine(
    x: torch.Tensor,
    images: torch.Tensor,
    dilations: Sequence[int] = (1, 2, 4, 8, 12, 24),
    iterations: int = 10,
    *,
    color_width: float = 0.3,
    position_width: float = 0.3,
    position_share: float = 0.01,
    original_sum: bool = False,
    chunk: int = 1 << 24,
) -> torch.Tensor:
    """Refines maps with the photographs they belong to. Without gradients.

    Args:
        x: float (B, C, h, w); of another size than the images it is brought to theirs, bilinearly.
        images: (B, 3, H, W), any affine scale: only contrasts relative to their neighbourhood count.
        dilations: pixels, distances of the rings of eight neighbours; borders are replicated.
        iterations: rounds; 0 gives `x`.
        color_width: width of the colour kernel, in standard deviations of the neighbourhood.
        position_width: width of the position kernel, in standard deviations of the neighbours' distances.
        position_share: weight of the position kernel beside the colour kernel's 1.
        original_sum: leaves the weights at a sum of 1 + position_share, as the original code does.
        chunk: most numbers held at a time beside the maps; an image of more (4 N H W) is worked off in strips of
            rows, whose weights are computed again in each round.

    Returns:
        (B, C, H, W) of the dtype of `x`.

    Raises:
        ValueError: for other shapes or settings.
    """
    if x.ndim != 4 or images.ndim != 4 or images.shape[1] != 3 or len(x) != len(images):
        raise ValueError(f"maps {tuple(x.shape)}, images {tuple(images.shape)}: expected (B, C, h, w) and (B, 3, H, W)")
    if not x.is_floating_point():
        raise ValueError(f"maps of {x.dtype}: expected floating point")
    if not len(dilations) or min(dilations) < 1 or iterations < 0:
        raise ValueError(
            f"dilations {tuple(dilations)}, {iterations} iterations: expected at least 1, and none below 0"
        )
    if min(color_width, position_width) <= 0 or position_share < 0 or chunk < 1:
        raise ValueError(
            f"widths {color_width}, {position_width}, share {position_share}, chunk {chunk}: expected positive numbers"
        )
    height, width = images.shape[-2:]
    if x.shape[-2:] != (height, width):
        x = F.interpolate(x, (height, width), mode="bilinear", align_corners=False)
    offsets = [(dy * d, dx * d) for d in dilations for dy, dx in _DIRECTIONS]
    images = images.to(x.device, torch.float32)
    shares = _position_weights(offsets, position_width, position_share).to(images)
    whole = 1.0 if original_sum else 1.0 / (1.0 + position_share)
    rows = max(1, min(height, chunk // (4 * len(offsets) * width)))  # three colours and their mean
    strips = [(top, min(top + rows, height)) for top in range(0, height, rows)]
    refined = []
    for maps, image in zip(x, images):
        padded_image = _pad(image, max(dilations))
        kept = None
        for _ in range(iterations):
            padded = _pad(maps, max(dilations))
            parts = []
            for top, bottom in strips:
                if kept is None or len(strips) > 1:
                    kept = (_color_weights(padded_image, offsets, top, bottom, color_width) + shares) * whole
                parts.append(_weighted_sum(padded, kept.to(maps), offsets, top, bottom))
            maps = torch.cat(parts, dim=1)
        refined.append(maps)
    return torch.stack(refined) if refined else x.new_zeros((0, x.shape[1], height, width))


def _position_weights(offsets: list[tuple[int, int]], width: float, share: float) -> torch.Tensor:
    """(N, 1, 1): share times a softmax of the squared distance in units of the distances' spread."""
    distance = torch.tensor(offsets, dtype=torch.float64).square().sum(1).sqrt()
    logits = -(distance / (distance.std() + 1e-8) / width).square()
    return (share * logits.softmax(0))[:, None, None]


def _pad(maps: torch.Tensor, reach: int) -> torch.Tensor:
    """(C, H + 2 reach, W + 2 reach) with replicated borders, of any reach."""
    height, width = maps.shape[-2:]
    y = torch.arange(-reach, height + reach, device=maps.device).clamp(0, height - 1)
    x = torch.arange(-reach, width + reach, device=maps.device).clamp(0, width - 1)
    return maps[:, y][:, :, x]


def _shifted(padded: torch.Tensor, offset: tuple[int, int], top: int, bottom: int, reach: int) -> torch.Tensor:
    """Rows top to bottom of what lies at an offset, a view."""
    dy, dx = offset
    width = padded.shape[-1] - 2 * reach
    return padded[:, top + reach + dy : bottom + reach + dy, reach + dx : reach + dx + width]


def _reach(offsets: list[tuple[int, int]]) -> int:
    return max(max(abs(dy), abs(dx)) for dy, dx in offsets)


def _color_weights(
    padded: torch.Tensor, offsets: list[tuple[int, int]], top: int, bottom: int, width: float
) -> torch.Tensor:
    """(N, rows, W): softmax over the neighbours of -(|difference| / contrast / width)^2, the mean over the colours."""
    reach = _reach(offsets)
    centre = _shifted(padded, (0, 0), top, bottom, reach)
    differences = torch.stack([_shifted(padded, offset, top, bottom, reach) for offset in offsets]).sub_(centre)
    # the neighbours' spread is that of their differences to the centre, which are small and so precise
    contrast = differences.std(0) + 1e-8
    return differences.div_(contrast * width).square_().mean(1).neg_().softmax(0)


def _weighted_sum(
    padded: torch.Tensor, weights: torch.Tensor, offsets: list[tuple[int, int]], top: int, bottom: int
) -> torch.Tensor:
    """(C, rows, W): the sum over the neighbours, one at a time so that nothing of N C H W is ever held."""
    reach = _reach(offsets)
    total = torch.zeros_like(_shifted(padded, (0, 0), top, bottom, reach))
    for weight, offset in zip(weights, offsets):
        total.addcmul_(_shifted(padded, offset, top, bottom, reach), weight)
    return total
