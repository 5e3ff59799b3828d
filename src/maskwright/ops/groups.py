"""From groups of patches to classes: GroupViT's zero-shot segmentation (Xu et al., CVPR 2022).

Legend: B batch, G groups, C classes, (h, w) grid of patches, (H, W) size of the result.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def group_affinity(groups: Tensor, picture: Tensor, top: int = 5) -> Tensor:
    """How much each group is of each class: softmax over the picture's best classes times softmax over all.

    Args:
        groups: logits of the groups (B, G, C); -inf where a class has no words.
        picture: logits of the whole picture (B, C), whose best classes alone may occur.
        top: how many these are.

    Returns:
        (B, G, C), 0 for other classes.
    """
    best = picture.topk(min(top, picture.shape[1]), 1).indices  # (B, top)
    left = torch.full_like(picture, float("-inf")).scatter_(1, best, 0.0)  # (B, C)
    return (groups + left[:, None]).softmax(-1) * groups.softmax(-1)


def paint_groups(maps: Tensor, scores: Tensor, size: tuple[int, int]) -> Tensor:
    """Gives each pixel what its group has.

    Args:
        maps: how much a patch is of each group (B, G, h, w), enlarged bilinearly.
        scores: of groups (B, G, C).
        size: (H, W).

    Returns:
        (B, C, H, W).
    """
    owner = F.interpolate(maps, size, mode="bilinear", align_corners=False).argmax(1)  # (B, H, W)
    picked = torch.stack([one[ids] for one, ids in zip(scores, owner)])  # (B, H, W, C)
    return picked.permute(0, 3, 1, 2)


def behind(scores: Tensor, affinity: Tensor, place: int, threshold: float) -> Tensor:
    """Makes one class what no other is sure of.

    The threshold is lowered to the picture's greatest affinity; where the group that has it owns no pixel, all of the
    picture is background, as in the authors' code.

    Args:
        scores: (B, C, H, W), 0 at that class.
        affinity: (B, G, C), likewise.
        place: the class.
        threshold: where the best score is below, that class has 1, elsewhere 0.

    Returns:
        (B, C, H, W).
    """
    floor = affinity.amax((1, 2)).clamp(max=threshold)
    unsure = scores.amax(1) < floor[:, None, None]  # (B, H, W)
    return scores.index_copy(1, torch.tensor([place], device=scores.device), unsure[:, None].to(scores.dtype))
