"""Perturbations of feature maps: noise, dropped positions, erased boxes, masks and adversarial directions.

Source: Ouali et al., Semi-supervised semantic segmentation with cross-consistency training (CCT), CVPR 2020,
https://arxiv.org/abs/2003.09005; the adversarial direction is that of Miyato et al., Virtual adversarial training,
TPAMI 2018. Dropout of channels is in `ops.channel_dropout`. Random numbers are drawn on the CPU, so that one seed gives
the same on every device. No function changes its arguments.

Legend: B batch, D width, C classes, (h, w) feature-map size, (H, W) size of the masks.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from scipy import ndimage
from torch import Generator, Tensor

from maskwright.ops.losses.seg_losses import kl_divergence
from maskwright.ops.refinement.components import label_components

Box = tuple[int, int, int, int]
"""(top, left, bottom, right), bottom and right one past the last pixel."""


def feature_noise(z: Tensor, bound: float = 0.3, generator: Generator | None = None) -> Tensor:
    """F-Noise: z + z n with n ~ U(-bound, bound), one n (D, h, w) for the whole batch.

    Args:
        z: (B, D, h, w).
        bound: at least 0.
        generator: CPU generator; torch's default one when None.
    """
    n = torch.empty(z.shape[1:]).uniform_(-bound, bound, generator=generator)
    return z + z * n.to(z)


def feature_drop(z: Tensor, low: float = 0.7, high: float = 0.9, generator: Generator | None = None) -> Tensor:
    """F-Drop: the most active positions of each item become 0.

    The activity a of a position is the mean of |z| over channels; kept is a < u max(a), u ~ U(low, high) for the batch.
    An item none of whose positions would be kept (a constant map) stays as it is.

    Args:
        z: (B, D, h, w).
        low: least u.
        high: greatest u, at least `low`.
        generator: CPU generator.

    Raises:
        ValueError: bounds out of order.
    """
    if not 0 <= low <= high:
        raise ValueError(f"bounds {low} and {high}, expected 0 <= low <= high")
    u = low + (high - low) * float(torch.rand((), generator=generator))
    a = z.detach().abs().mean(1, keepdim=True)  # (B, 1, h, w)
    kept = a < u * a.amax((2, 3), keepdim=True)
    return z * (kept | ~kept.any(3, keepdim=True).any(2, keepdim=True))


def object_boxes(foreground: Tensor, min_contour: int = 50) -> list[list[Box]]:
    """The bounding boxes of each item's connected parts with a contour of more than so many pixels.

    Args:
        foreground: bool (B, H, W).
        min_contour: pixels of a part that touch, by an edge, what is not of it; the picture's border counts as
            outside.

    Returns:
        For each item its boxes, in the order of the parts' first pixels.

    Raises:
        ValueError: another shape.
    """
    if foreground.ndim != 3:
        raise ValueError(f"foreground is {tuple(foreground.shape)}, expected (B, H, W)")
    found = []
    for inside in foreground.cpu().numpy().astype(bool):
        parts, count = label_components(inside, 8)
        contour = inside & ~ndimage.binary_erosion(inside)
        lengths = np.bincount(parts[contour], minlength=count + 1)
        slices = ndimage.find_objects(parts)
        boxes = [(r.start, c.start, r.stop, c.stop) for k, (r, c) in enumerate(slices, 1) if lengths[k] > min_contour]
        found.append(boxes)
    return found


def guided_cutout(
    z: Tensor,
    boxes: Sequence[Sequence[Box]],
    size: tuple[int, int],
    share: float = 0.4,
    generator: Generator | None = None,
) -> Tensor:
    """G-Cutout: of each object's box a random sub-box of `share` of its height and of its width becomes 0.

    Args:
        z: (B, D, h, w).
        boxes: of each item, in a picture of the given size.
        size: (H, W).
        share: in [0, 1].
        generator: CPU generator.

    Raises:
        ValueError: as many lists of boxes as items are needed.
    """
    if len(boxes) != len(z):
        raise ValueError(f"boxes of {len(boxes)} items for {len(z)}")
    kept = torch.ones(len(z), 1, *size)
    for k, of_item in enumerate(boxes):
        for top, left, bottom, right in of_item:
            height, width = int(share * (bottom - top)), int(share * (right - left))
            y = top + int(torch.randint(0, bottom - top - height + 1, (), generator=generator))
            x = left + int(torch.randint(0, right - left - width + 1, (), generator=generator))
            kept[k, 0, y : y + height, x : x + width] = 0
    return z * _at_cells(kept, z)


def context_mask(z: Tensor, foreground: Tensor) -> Tensor:
    """Con-Msk: the context becomes 0 and the objects stay.

    Args:
        z: (B, D, h, w).
        foreground: bool (B, H, W); each cell takes its nearest pixel.
    """
    return z * _at_cells(foreground[:, None].float(), z)


def object_mask(z: Tensor, foreground: Tensor) -> Tensor:
    """Obj-Msk: the objects become 0 and the context stays, so that it adds up to z with `context_mask`."""
    return z * (1 - _at_cells(foreground[:, None].float(), z))


def vat_direction(
    z: Tensor,
    head: Callable[[Tensor], Tensor],
    *,
    eps: float = 2.0,
    step: float = 1e-2,
    iterations: int = 1,
    generator: Generator | None = None,
) -> Tensor:
    """I-VAT: the small change of z that changes what a head says the most, by power iteration on the KL divergence.

    Gradients are asked for with respect to the change alone: parameters and z get none.

    Args:
        z: (B, D, h, w).
        head: z to logits (B, C, H, W).
        eps: L2 norm of the result, of each item; in z's unit.
        step: length of the trial change, as a share of the item's own norm. The paper's absolute 1e-6, spread over a
            whole map, is below what float32 can add to z.
        iterations: of the power method.
        generator: CPU generator, for the first direction.

    Returns:
        r (B, D, h, w) of z's type, detached. Where the head does not react it is 0.
    """
    z = z.detach().float()
    d = _unit(torch.rand(z.shape, generator=generator).sub_(0.5).to(z.device))
    length = step * z.flatten(1).norm(dim=1).clamp(min=1e-6)[:, None, None, None]
    with torch.no_grad():
        q = head(z).float().softmax(1)
    for _ in range(iterations):
        with torch.enable_grad():
            d = d.detach().requires_grad_(True)
            loss = kl_divergence(head(z + length * d), q)
            (gradient,) = torch.autograd.grad(loss, d)
        d = _unit(gradient)
    return (eps * d).detach()


def _unit(d: Tensor) -> Tensor:
    """Each item of unit L2 norm; zero stays zero."""
    norm = d.flatten(1).norm(dim=1)[:, None, None, None]
    return torch.where(norm > 0, d / norm.clamp(min=torch.finfo(d.dtype).tiny), 0.0)


def _at_cells(mask: Tensor, z: Tensor) -> Tensor:
    """(B, 1, H, W) at z's cells, each with its nearest pixel, in z's type."""
    return F.interpolate(mask.to(z.device), z.shape[-2:], mode="nearest-exact").to(z.dtype)
