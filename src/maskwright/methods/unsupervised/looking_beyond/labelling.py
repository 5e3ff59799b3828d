"""Auxiliary labels of whole photographs: clusters of the data set, voted on by superpixels (Looking Beyond, NeurIPS
2021).

Legend: K clusters, D width of reduced features, (H, W) photograph, (h, w) size at which it is labelled.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from maskwright.data.training.labels import LabelMap
from maskwright.methods.unsupervised.looking_beyond.losses import assign_margin
from maskwright.methods.unsupervised.looking_beyond.options import LabelOptions
from maskwright.models.preprocess import resize_uint8
from maskwright.ops.losses.region_contrast import nearest
from maskwright.ops.refinement.superpixels import slic, superpixel_vote


def vote(ids: Tensor, margin: Tensor, superpixels: np.ndarray) -> tuple[Tensor, Tensor]:
    """Labels that superpixels agree on, each pixel's vote weighed by its margin.

    Args:
        ids: int64 (h, w).
        margin: (h, w), at least 0.
        superpixels: (h, w).

    Returns:
        The voted labels (h, w), and the margins of pixels that voted for them; 0 for pixels that were outvoted.
    """
    voted = torch.from_numpy(superpixel_vote(ids.numpy(), superpixels, margin.double().numpy())[0]).long()
    return voted, torch.where(voted == ids, margin, 0.0)


def labelled(f: Tensor, mu: Tensor, image: np.ndarray, options: LabelOptions) -> LabelMap:
    """The auxiliary labels of a photograph, their margin as their confidence.

    Args:
        f: its reduced features (D, h', w').
        mu: the data set's centroids (K, D).
        image: uint8 (H, W, 3).
        options: of labels.
    """
    size = labelling_size((image.shape[0], image.shape[1]), options.side)
    small = F.interpolate(f[None], size, mode="bilinear", align_corners=False)
    found, sure = assign_margin(small, mu)
    ids, margin = found[0], sure[0].clamp(0, 1)
    if options.superpixels:
        ids, margin = vote(ids, margin, superpixels_of(image, size, options))
    return at_full_size(ids, margin, (image.shape[0], image.shape[1]))


def own_superpixels(image: np.ndarray, options: LabelOptions) -> LabelMap:
    """A photograph's superpixels as labels: they link nothing beyond it."""
    size = labelling_size((image.shape[0], image.shape[1]), options.side)
    ids = torch.from_numpy(superpixels_of(image, size, options).astype(np.int64))
    return at_full_size(ids, torch.ones(size), (image.shape[0], image.shape[1]))


def labelling_size(size: tuple[int, int], side: int) -> tuple[int, int]:
    """(h, w) of a photograph whose longer side is at most so many pixels."""
    shrink = min(1.0, side / max(size))
    return max(1, round(size[0] * shrink)), max(1, round(size[1] * shrink))


def superpixels_of(image: np.ndarray, size: tuple[int, int], options: LabelOptions) -> np.ndarray:
    """SLIC of the photograph at a size, (h, w)."""
    small = resize_uint8(image, size).permute(1, 2, 0).contiguous().numpy()
    return slic(small, options.superpixels, options.compactness)


def at_full_size(ids: Tensor, margin: Tensor, size: tuple[int, int]) -> LabelMap:
    """Labels and margins enlarged to the photograph's size, nearest."""
    ids, margin = nearest(ids, size), nearest(margin.float(), size)
    return LabelMap(ids, margin, torch.ones(size, dtype=torch.bool))
