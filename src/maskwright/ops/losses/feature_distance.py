"""How far features moved from those of the network that training began with, on cells of chosen classes.

DAFormer, Hoyer et al., CVPR 2022, https://arxiv.org/abs/2111.14887: a network that was pretrained on photographs knows
things that a source of renderings makes it forget.

Legend: B batch, D width, (h, w) feature-map size, (H, W) size of the labels.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def class_cells(
    target: Tensor, classes: Sequence[int], size: tuple[int, int], share: float = 0.75, *, ignore: int = 255
) -> Tensor:
    """The cells of a feature map that mostly show one of these classes.

    Args:
        target: integers (B, H, W), `ignore` where a pixel has no label.
        classes: their ids.
        size: (h, w) of the feature map; where it does not divide (H, W), cells overlap by a pixel.
        share: of a cell's pixels that have to be of one class, those without a label counted; above one half.
        ignore: the id of pixels without a label.

    Returns:
        bool (B, h, w).

    Raises:
        ValueError: a share at which two classes could both be the cell's.
    """
    if not 0.5 < share <= 1:
        raise ValueError(f"share is {share}, expected above 0.5 and at most 1")
    found = torch.zeros(len(target), *size, dtype=torch.bool, device=target.device)
    for c in classes:
        if c != ignore:
            found |= F.adaptive_avg_pool2d((target == c).double()[:, None], size)[:, 0] >= share
    return found


def feature_distance(features: Tensor, frozen: Tensor, cells: Tensor) -> Tensor:
    """Mean over cells of |f_i - f0_i|_2; 0, with a gradient of zeros, where there is no cell (there DAFormer's is NaN).

    Args:
        features: f (B, D, h, w).
        frozen: f0 (B, D, h, w), of the network that training began with; gets no gradient.
        cells: bool (B, h, w).

    Raises:
        ValueError: shapes that do not belong together.
    """
    if features.shape != frozen.shape or cells.shape != features.shape[:1] + features.shape[2:]:
        raise ValueError(
            f"features {tuple(features.shape)} and {tuple(frozen.shape)}, cells {tuple(cells.shape)}: of different maps"
        )
    kind = torch.float64 if features.dtype == torch.float64 else torch.float32
    distance = torch.linalg.vector_norm(features.to(kind) - frozen.detach().to(kind), dim=1)
    return torch.where(cells, distance, 0.0).sum() / cells.sum().clamp(min=1)
