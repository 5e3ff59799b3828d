"""Class activation maps: CAM, Grad-CAM and Grad-CAM++ from features and gradients, and what is done with maps before
they become labels.

Legend: B batch, D channels, T tags (the classes that images are tagged with), K tags of one image, (h, w) map size.
Maps have the tags in dimension -3; whatever leads is a batch.

Sources: Zhou et al., Learning Deep Features for Discriminative Localization, CVPR 2016; Selvaraju et al., Grad-CAM,
ICCV 2017; Chattopadhay et al., Grad-CAM++, WACV 2018; Ahn and Kwak (PSA), CVPR 2018; Wang et al. (SEAM), CVPR 2020.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

EPS = 1e-5
"""Added to the maximum that maps are divided by, as in the published code: an empty map stays empty."""
NORMS = ("max", "minmax")
FUSIONS = ("sum", "max")


def cam(features: Tensor, weight: Tensor) -> Tensor:
    """Class activation maps, M_c = sum_k w_ck A_k: the linear classifier applied before the pooling.

    The mean of M_c over the map is exactly the score of a classifier without bias on the pooled features.

    Args:
        features: A, (B, D, h, w).
        weight: w, (T, D).

    Returns:
        (B, T, h, w), signed; differentiable in both.

    Raises:
        ValueError: when the widths differ.
    """
    if weight.dim() != 2 or features.dim() != 4 or weight.shape[1] != features.shape[1]:
        raise ValueError(
            f"weights {tuple(weight.shape)} for features {tuple(features.shape)}, expected (T, D), (B, D, h, w)"
        )
    return F.conv2d(features, weight[:, :, None, None].to(features.dtype))


def grad_cam(activations: Tensor, gradients: Tensor) -> Tensor:
    """Grad-CAM: ReLU of the activations weighted by the mean gradient of each channel.

    Args:
        activations: A, (..., D, h, w).
        gradients: of one score with respect to A, the same shape; leading dimensions broadcast.

    Returns:
        (..., h, w), not negative. For a score that is the mean of a linear map it is ReLU(CAM) / (h w).

    Raises:
        ValueError: when the shapes do not fit.
    """
    _same_maps(activations, gradients)
    alpha = gradients.mean((-2, -1))
    return torch.einsum("...dhw,...d->...hw", activations, alpha).relu()


def grad_cam_pp(activations: Tensor, gradients: Tensor) -> Tensor:
    """Grad-CAM++: channels weighted by the positive gradients, each pixel by the second and third derivatives.

    The score is taken as the exponential of the logit, whose higher derivatives are powers of the logit's gradient g:
    a = g^2 / (2 g^2 + sum(A) g^3), alpha = sum of a ReLU(g). The exponential's own factor cancels in any normalisation.

    Args:
        activations: A, (..., D, h, w).
        gradients: of the logit with respect to A, the same shape; leading dimensions broadcast.

    Returns:
        (..., h, w), not negative.

    Raises:
        ValueError: when the shapes do not fit.
    """
    _same_maps(activations, gradients)
    total = activations.sum((-2, -1), keepdim=True)
    # Divided by g^2 throughout, which may underflow; a pixel without gradient has no weight.
    denominator = 2 + total * gradients
    safe = torch.where(denominator.abs() < 1e-7, torch.ones_like(denominator), denominator)
    a = torch.where(gradients == 0, torch.zeros_like(safe), 1 / safe)
    alpha = (a * gradients.relu()).sum((-2, -1))
    return torch.einsum("...dhw,...d->...hw", activations, alpha).relu()


def _same_maps(activations: Tensor, gradients: Tensor) -> None:
    if activations.dim() < 3 or gradients.dim() < 3 or activations.shape[-3:] != gradients.shape[-3:]:
        found = f"activations {tuple(activations.shape)} and gradients {tuple(gradients.shape)}"
        raise ValueError(f"{found}, expected the same (..., D, h, w)")


def normalize_cam(maps: Tensor, how: str = "max", eps: float = EPS) -> Tensor:
    """Each map on its own to [0, 1), by its range over the image.

    Args:
        maps: (..., T, h, w).
        how: "max": ReLU(M) / (max + eps) (CAM, IRN). "minmax": (ReLU(M) - min - eps)+ / (max - min + eps), SEAM's N(.).
        eps: keeps empty maps empty.

    Returns:
        The same shape; the maximum is 1 but for eps. Differentiable, the range included.

    Raises:
        ValueError: an unknown way.
    """
    x = maps.relu()
    high = x.amax((-2, -1), keepdim=True)
    if how == "max":
        return x / (high + eps)
    if how == "minmax":
        low = x.amin((-2, -1), keepdim=True)
        return (x - low - eps).relu() / (high - low + eps)
    raise ValueError(f"normalisation {how!r}, expected one of {', '.join(NORMS)}")


def keep_tagged(maps: Tensor, tags: Tensor) -> Tensor:
    """Maps of classes that an image is not tagged with become zero.

    Args:
        maps: (..., T, h, w).
        tags: (..., T), 1 or True where tagged.
    """
    return maps * tags.to(maps.dtype)[..., None, None]


def suppress_non_maximal(maps: Tensor) -> Tensor:
    """At each pixel only the largest of the maps keeps its value, the others become zero (SEAM); ties all keep it.

    Args:
        maps: (..., T, h, w), not negative.
    """
    if maps.shape[-3] == 0:
        return maps
    return torch.where(maps == maps.amax(-3, keepdim=True), maps, torch.zeros_like(maps))


def background_power(maps: Tensor, alpha: float = 1.0) -> Tensor:
    """Background score (1 - max over the maps)^alpha; a larger alpha means less background.

    Args:
        maps: (..., T, h, w) in [0, 1]; T may be 0, then the score is 1.
        alpha: exponent (SEAM: 1 inside its network; 4 and 24 for the two labellings that AffinityNet learns from).

    Returns:
        (..., 1, h, w) in [0, 1].
    """
    if maps.shape[-3] == 0:
        return maps.new_ones(*maps.shape[:-3], 1, *maps.shape[-2:])
    return (1 - maps.amax(-3, keepdim=True)).clamp(min=0) ** alpha


def with_background(maps: Tensor, *, threshold: float | None = None, alpha: float | None = None) -> Tensor:
    """Puts a background channel before the maps: a constant, or a power of what the maps leave.

    Args:
        maps: (..., T, h, w) in [0, 1].
        threshold: the constant score.
        alpha: the exponent of `background_power`.

    Returns:
        (..., 1 + T, h, w).

    Raises:
        ValueError: when not exactly one of the two is given.
    """
    if (threshold is None) == (alpha is None):
        raise ValueError("give either a threshold or an exponent alpha of the background")
    if alpha is not None:
        rest = background_power(maps, alpha)
    elif threshold is not None:
        rest = maps.new_full((*maps.shape[:-3], 1, *maps.shape[-2:]), float(threshold))
    return torch.cat([rest, maps], dim=-3)


def resize_maps(maps: Tensor, size: tuple[int, int]) -> Tensor:
    """Maps (..., T, h, w) at another size, bilinear with align_corners=False."""
    if tuple(maps.shape[-2:]) == tuple(size):
        return maps
    if maps.shape[-3] == 0:
        return maps.new_zeros(*maps.shape[:-2], *size)
    flat = maps.reshape(-1, 1, *maps.shape[-2:])
    return F.interpolate(flat, tuple(size), mode="bilinear", align_corners=False).reshape(*maps.shape[:-2], *size)


def fuse_flips(maps: Tensor, flipped: Tensor, how: str = "sum") -> Tensor:
    """Maps of an image and of its mirror image, the latter mirrored back.

    Args:
        maps: (..., T, h, w) of the image.
        flipped: (..., T, h, w) of the image mirrored left to right.
        how: "sum" (IRN, SEAM) or "max" (ToCo).

    Raises:
        ValueError: an unknown way.
    """
    return _fuse(maps, flipped.flip(-1), how)


def fuse_scales(maps: Sequence[Tensor], size: tuple[int, int], how: str = "sum") -> Tensor:
    """Maps of one image at several scales, brought to one size and joined.

    Args:
        maps: (..., T, h_i, w_i) each, ReLU already applied.
        size: (h, w) of the result.
        how: "sum" (the mean, once normalised) or "max".

    Returns:
        (..., T, h, w); its order does not matter.

    Raises:
        ValueError: no maps, or an unknown way.
    """
    if not maps:
        raise ValueError("no maps to fuse, expected at least one scale")
    fused = resize_maps(maps[0], size)
    for one in maps[1:]:
        fused = _fuse(fused, resize_maps(one, size), how)
    return fused


def _fuse(a: Tensor, b: Tensor, how: str) -> Tensor:
    if how == "sum":
        return a + b
    if how == "max":
        return torch.maximum(a, b)
    raise ValueError(f"fusion {how!r}, expected one of {', '.join(FUSIONS)}")


def minimum_cross_entropy(values: np.ndarray, bins: int = 256) -> float:
    """The threshold that loses least when values are replaced by the means of the two groups (Li and Lee, 1993).

    It minimises - sum of x log(mean of x's group) over all bin edges. Evidence of class maps is positive and skewed,
    much of it small: Otsu's rule, for groups of like spread, then draws the line too high (Li and Lee, Minimum cross
    entropy thresholding, Pattern Recognition 26, 1993).

    Args:
        values: not negative, any shape.
        bins: between the least and the greatest value.

    Returns:
        The edge; values at or above it are the upper group. The value itself where nothing varies.

    Raises:
        ValueError: no values, or negative ones.
    """
    flat = np.asarray(values, np.float64).ravel()
    if flat.size == 0 or flat.min() < 0:
        raise ValueError("no values, or negative ones, expected at least one in [0, inf)")
    low, high = float(flat.min()), float(flat.max())
    if low == high:
        return low
    counts, edges = np.histogram(flat, bins=bins)
    mass = np.histogram(flat, bins=edges, weights=flat)[0]
    n, m = np.cumsum(counts)[:-1], np.cumsum(mass)[:-1]  # of the lower group, for each inner edge
    n_up, m_up = counts.sum() - n, mass.sum() - m
    usable = (n > 0) & (n_up > 0)
    loss = np.zeros(len(n))
    for group_mass, group_count in ((m, n), (m_up, n_up)):
        mean = np.divide(group_mass, group_count, out=np.ones(len(n)), where=group_count > 0)
        loss -= group_mass * np.log(np.maximum(mean, 1e-12))
    return float(edges[1:-1][int(np.where(usable, loss, np.inf).argmin())])
