"""Objects of photographs from the eigenvectors of a graph over their cells (Deep Spectral Methods, CVPR 2022,
https://arxiv.org/abs/2205.07839): the graph, and a mask at the photograph's size. No label and no training enters.

Legend: D width, (h, w) map size, N = h w cells, k eigenvectors.
"""

from __future__ import annotations

import numpy as np
import torch.nn.functional as F
from torch import Tensor

from maskwright.models.preprocess import resize_uint8
from maskwright.ops.graphs.affinity import color_knn_affinity, combine, feature_affinity
from maskwright.ops.graphs.objectness import border_distance, otsu_threshold
from maskwright.ops.graphs.spectral import SpectralResult, spectral_embedding
from maskwright.ops.refinement.guided import guided_filter

OBJECT_VECTORS = 6
"""Vectors, the constant one among them, that the object is found from: later ones split it into parts."""
COLOR = 10.0
"""Weight lambda of the colour affinity beside that of features."""


def graph_spectrum(features: Tensor, image: np.ndarray, vectors: int, color: float, seed: int) -> SpectralResult:
    """The smallest eigenpairs of a photograph's graph, with features and colour as its affinity.

    Args:
        features: (D, h, w).
        image: uint8 (H, W, 3).
        vectors: k, the constant one among them.
        color: lambda, weight of the colour affinity; 0: none.
        seed: of the eigensolver.
    """
    _, h, w = features.shape
    affinity = feature_affinity(features.flatten(1).T)  # (N, N)
    if color > 0:
        small = resize_uint8(image, (h, w)).permute(1, 2, 0).numpy()
        affinity = combine(affinity, color_knn_affinity(small), color)
    return spectral_embedding(affinity, min(vectors, h * w), seed=seed)


def object_mask(soft: Tensor, image: np.ndarray, refine: bool = True) -> np.ndarray:
    """A soft map (h, w) as a mask, bool (H, W): enlarged, sharpened by a colour guided filter, cut at Otsu's threshold.

    Args:
        soft: how much each cell belongs to the object.
        image: uint8 (H, W, 3).
        refine: whether it is sharpened.
    """
    full = F.interpolate(soft[None, None], image.shape[:2], mode="bilinear", align_corners=False)[0].numpy()
    if refine:
        full = np.asarray(guided_filter(full, image, radius=max(2, min(image.shape[:2]) // 40), eps=1e-3))
    return full[0] > otsu_threshold(full[0])


def spectral_object(features: Tensor, image: np.ndarray, seed: int) -> np.ndarray:
    """What lies far from the border of a photograph in commute time, bool (H, W).

    Args:
        features: (D, h, w).
        image: uint8 (H, W, 3).
        seed: of the eigensolver.
    """
    size = (int(features.shape[1]), int(features.shape[2]))
    found = graph_spectrum(features, image, OBJECT_VECTORS, COLOR, seed)
    return object_mask(border_distance(found.values.float(), found.vectors.float(), size), image)
