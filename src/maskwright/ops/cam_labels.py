"""Labels that class maps in [0, 1] give while a network trains: sure classes, sure background, and what lies between.

Legend: B batch, T tags, (h, w) map size.

Source: Ru et al., Token Contrast for Weakly-Supervised Semantic Segmentation (ToCo), CVPR 2023.
"""

from __future__ import annotations

import torch
from torch import Tensor

from maskwright.ops.refinement.par import pixel_adaptive_refine

IGNORE = -1
"""Label of what is neither surely a class nor surely background."""


def cam_labels(cams: Tensor, high: float, low: float, valid: Tensor | None = None) -> Tensor:
    """Y: tag k as k + 1 where its map is the largest and at least `high`, 0 where none exceeds `low`, else IGNORE.

    Args:
        cams: (B, T, h, w) in [0, 1], zero for classes that are not tagged.
        high: least value of a class.
        low: greatest value of the background.
        valid: bool (B, h, w); IGNORE outside.

    Returns:
        int64 (B, h, w).

    Raises:
        ValueError: thresholds in the wrong order.
    """
    if low > high:
        raise ValueError(f"background up to {low} and classes from {high}, expected low <= high")
    value, k = cams.max(1)
    y = torch.where(value >= high, k + 1, IGNORE).masked_fill(value <= low, 0)
    return y if valid is None else y.masked_fill(~valid, IGNORE)


def cam_regions(cams: Tensor, high: float, low: float) -> Tensor:
    """0 background, 1 unsure, 2 a class; arguments as for `cam_labels`. float32 (B, h, w)."""
    y = cam_labels(cams, high, low)
    return torch.where(y == IGNORE, 1.0, torch.where(y == 0, 0.0, 2.0))


def refined_cam_labels(
    cams: Tensor, tags: Tensor, images: Tensor, high: float, low: float, valid: Tensor | None = None, rounds: int = 10
) -> Tensor:
    """Labels of the maps after pixel-adaptive refinement, of each image's own tags only.

    The background's score and the maps of the tags are brought to a sum of 1 by a softmax and refined, once with `high`
    as the background's score and once with `low`: a class where it is the largest of the first, background where
    it is the largest of both.

    Args:
        cams: (B, T, h, w) in [0, 1], zero for classes that are not tagged.
        tags: (B, T), 1 where tagged.
        images: (B, 3, h, w), any affine scale.
        high: the background's score that classes must beat.
        low: the background's score that none may beat where background is sure.
        valid: bool (B, h, w); IGNORE outside.
        rounds: of the refinement.

    Returns:
        int64 (B, h, w) as `cam_labels`, without gradient.

    Raises:
        ValueError: thresholds in the wrong order.
    """
    if low > high:
        raise ValueError(f"background up to {low} and classes from {high}, expected low <= high")
    y = torch.zeros(len(cams), *cams.shape[-2:], dtype=torch.int64, device=cams.device)
    for b, own in enumerate(tags.bool()):
        ids = torch.cat([own.new_zeros(1, dtype=torch.int64), own.nonzero()[:, 0] + 1])
        maps = cams[b, own].detach()
        with_ground = torch.stack([torch.cat([torch.full_like(cams[b, :1], score), maps]) for score in (high, low)])
        refined = pixel_adaptive_refine(with_ground.softmax(1), images[b].expand(2, -1, -1, -1), iterations=rounds)
        strict, loose = ids[refined.argmax(1)]
        y[b] = torch.where(strict > 0, strict, torch.where(loose == 0, 0, IGNORE))
    return y if valid is None else y.masked_fill(~valid, IGNORE)
