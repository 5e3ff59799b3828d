"""The losses of UDA-SOD on soft masks, each pixel weighed by how sure its label is.

    e_i = exp(-k v_i)
    l_m = mean_i e_i (BCE(o, m)_i + mean_b (1 - (I_b + 1) / (U_b - I_b + 1))),  I = sum p m,  U = sum p + m

The IoU term is one number for the batch that is added to each pixel before the weighting, as in the authors' code.
Legend: B crops, (H, W) their size, o the logit of the object, p = sigmoid(o), m label in [0, 1], v variance in [0, 1].
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from maskwright.ops.transfer import to_device


class SoftMasks(NamedTuple):
    """Labels of crops.

    Attributes:
        m: float (B, H, W) in [0, 1], how much a pixel belongs to an object.
        v: float (B, H, W) in [0, 1], the variance of the predictions that it comes from; 0 for composites.
        valid: bool (B, H, W), what has a label.
    """

    m: Tensor
    v: Tensor
    valid: Tensor

    @property
    def size(self) -> tuple[int, int]:
        """(H, W)."""
        return self.m.shape[-2], self.m.shape[-1]

    def to(self, device: torch.device | str) -> SoftMasks:
        """The labels on another device."""
        return SoftMasks(*(to_device(part, device) for part in self))


def joined(parts: Sequence[SoftMasks]) -> SoftMasks:
    """Labels of several batches, one after the other."""
    return SoftMasks(*(torch.cat(part) for part in zip(*parts)))


def object_logit(logits: Tensor) -> Tensor:
    """o (B, H, W) of the logits (B, 2, H, W) of two classes: sigmoid(o) is the softmax's second probability."""
    return logits[:, 1] - logits[:, 0]


def pixel_weight(v: Tensor, k: float) -> Tensor:
    """e = exp(-k v), in (0, 1]."""
    return torch.exp(-k * v)


def iou_loss(logit: Tensor, m: Tensor, valid: Tensor) -> Tensor:
    """mean_b 1 - (I + 1) / (U - I + 1) over valid pixels, a number; arguments (B, H, W)."""
    p, m = logit.sigmoid() * valid, m * valid
    both, total = (p * m).sum((1, 2)), (p + m).sum((1, 2))
    return (1 - (both + 1) / (total - both + 1)).mean()


def weighted_bce(logit: Tensor, y: SoftMasks, k: float, added: Tensor | float = 0.0) -> Tensor:
    """mean_i e_i (BCE_i + added) over valid pixels; 0 without one.

    Args:
        logit: o (B, H, W).
        y: labels (B, H, W).
        k: weight of the variance.
        added: a number added to each pixel's loss before it is weighed.
    """
    losses = F.binary_cross_entropy_with_logits(logit, y.m, reduction="none") + added
    return (losses * pixel_weight(y.v, k) * y.valid).sum() / y.valid.sum().clamp(min=1)


def mask_loss(logit: Tensor, y: SoftMasks, k: float) -> Tensor:
    """l_m, a number; arguments as for `weighted_bce`."""
    return weighted_bce(logit, y, k, iou_loss(logit, y.m, y.valid))
