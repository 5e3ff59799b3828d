"""What DANNet (Wu et al., CVPR 2021) asks of relit photographs and of the labels that day lends to night.

Legend: B batch, C classes, K static classes, S crop side, I photograph, r residual, R = I + r relit photograph.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from maskwright.data.training.labels import LabelMap
from maskwright.ops.losses.seg_losses import reduce_pixels

SSIM_C1, SSIM_C2 = 0.01**2, 0.03**2
"""Of SSIM for values in [0, 1]; the paper has them on normalised images, which lie in about [-2, 3]."""
SURE = 1e-7
"""A likelihood is kept so far from 0 and from 1."""
LEAST = 0.05
"""Least weight of a class."""


# ---------------------------------------------------------------------- re-weighting


def rarity_weights(counts: Tensor, spread: float) -> Tensor:
    """w'_c = spread (w_c - mean w) / std w + 1 with w_c = -log f_c, f_c the class's share; float32 (C,), above 0.

    Mean and standard deviation (of n - 1) are over the classes that occur; one that does not gets 1, and so do all
    where shares are equal.

    Args:
        counts: pixels of each class (C,), or their shares.
        spread: standard deviation of the weights; 0.05 in the paper's training, 0.16 in its tests. Where it is more
            than `widest`, that is taken.
    """
    counts, spread = counts.double(), min(spread, widest(counts))
    seen = counts > 0
    w = -(counts[seen] / counts.sum()).log()
    weight = torch.ones_like(counts)
    if len(w) > 1 and float(w.max() - w.min()) > 1e-9:
        weight[seen] = spread * (w - w.mean()) / w.std() + 1
    return weight.float()


def widest(counts: Tensor) -> float:
    """The greatest spread of `rarity_weights` with which no class weighs less than `LEAST`: the paper's formula gives
    one far more frequent than dozens of others a weight of 0 or below. Infinite where shares are equal."""
    w = -counts[counts > 0].double().log()  # but for a constant
    if len(w) < 2 or float(w.max() - w.min()) <= 1e-9:
        return math.inf
    return (1 - LEAST) * float(w.std() / (w.mean() - w.min()))


# ---------------------------------------------------------------------- relighting


def total_variation(r: Tensor) -> Tensor:
    """L_tv = 2 / B (sum dy^2 / ((H - 1) W) + sum dx^2 / (H (W - 1))) of the residual r (B, 3, H, W), summed over
    channels."""
    b, _, h, w = r.shape
    dy, dx = r[:, :, 1:] - r[:, :, :-1], r[:, :, :, 1:] - r[:, :, :, :-1]
    return 2 / b * (dy.square().sum() / ((h - 1) * w) + dx.square().sum() / (h * (w - 1)))


def mean_light(images: Tensor, valid: Tensor | None = None) -> Tensor:
    """m: mean over pixels, colours and photographs of normalised images (B, 3, H, W), where valid (B, H, W)."""
    return reduce_pixels(images.mean(1), valid).detach()


def exposure(relit: Tensor, m: Tensor | float, window: int = 32, valid: Tensor | None = None) -> Tensor:
    """L_exp = mean_p (mean of R over window p and colours - m)^2 over windows side by side; those cut by the right or
    lower edge are dropped.

    Args:
        relit: R (B, 3, H, W), sides at least the window's.
        m: the light that is asked for.
        window: pixels of a side.
        valid: bool (B, H, W); only windows that are so throughout count.
    """
    losses = (F.avg_pool2d(relit.mean(1, keepdim=True), window) - m).square()[:, 0]
    if valid is None:
        return losses.mean()
    return reduce_pixels(losses, F.max_pool2d((~valid)[:, None].float(), window)[:, 0] == 0)


def dissimilarity(a: Tensor, b: Tensor) -> Tensor:
    """clip((1 - SSIM) / 2, 0, 1) of images (B, 3, H, W) in each colour and pixel: means over 3 x 3 windows, padded by
    reflection."""
    pooled = [F.avg_pool2d(F.pad(x, (1, 1, 1, 1), mode="reflect"), 3, 1) for x in (a, b, a * a, b * b, a * b)]
    mean_a, mean_b, square_a, square_b, product = pooled
    alike = (2 * mean_a * mean_b + SSIM_C1) * (2 * (product - mean_a * mean_b) + SSIM_C2)
    all_ = (mean_a**2 + mean_b**2 + SSIM_C1) * (square_a - mean_a**2 + square_b - mean_b**2 + SSIM_C2)
    return ((1 - alike / all_) / 2).clamp(0, 1)


def structure(relit: Tensor, images: Tensor, valid: Tensor | None = None) -> Tensor:
    """L_ssim: mean dissimilarity of R and I (B, 3, H, W), where valid (B, H, W)."""
    return reduce_pixels(dissimilarity(relit, images).mean(1), valid)


# ---------------------------------------------------------------------- from day to night


def static_labels(
    day: Tensor,
    night: Tensor,
    weight: Tensor,
    static: Sequence[int],
    threshold: float = 0.4,
    sure: float = 0.8,
    unsure: float = 0.2,
) -> LabelMap:
    """k = argmax_c w'_c Z_c, with Z_c = t day_c + (1 - t) night_c in static classes, night_c in the others.

    t is `sure` where day_c > `threshold`, else `unsure`, for each class on its own; all on logits, as the paper has it.

    Args:
        day: logits of the photograph by day (B, C, S, S).
        night: logits of its partner by night.
        weight: w' (C,).
        static: ids of the K static classes.

    Returns:
        Labels (B, S, S) of the night's crops, without gradient: places in `static`; not valid where another class wins.
    """
    day, night = day.detach(), night.detach()
    chosen = torch.as_tensor(static, device=night.device)
    t = torch.where(day[:, chosen] > threshold, sure, unsure).to(night)
    z = night.clone()
    z[:, chosen] = t * day[:, chosen] + (1 - t) * night[:, chosen]
    k = (z * weight.to(z)[:, None, None]).argmax(1)
    place = torch.full((night.shape[1],), -1, device=night.device)
    place[chosen] = torch.arange(len(chosen), device=night.device)
    ids = place[k]
    valid = ids >= 0
    return LabelMap(ids.clamp(min=0), valid.float(), valid)


def static_loss(logits: Tensor, k: LabelMap, weight: Tensor, gamma: float = 1.0, window: int = 3) -> Tensor:
    """L_static: mean over valid pixels of -(1 - o)^gamma log o, with o = max_c w'_c q_c [c among the labels around].

    Day and night do not show quite the same: a label of any pixel of the window will do. 0 where no pixel is valid.

    Args:
        logits: of the static classes by night (B, K, S, S); q is their softmax.
        k: labels (B, S, S) of 0 to K - 1.
        weight: w' of the static classes (K,).
        gamma: of the focal factor.
        window: pixels of the window's side, odd.
    """
    q = logits.softmax(1)
    shown = F.one_hot(k.ids, logits.shape[1]).permute(0, 3, 1, 2).to(q) * k.valid[:, None]
    around = F.max_pool2d(shown, window, 1, window // 2)  # (B, K, S, S)
    o = (weight.to(q)[:, None, None] * q * around).amax(1).clamp(SURE, 1 - SURE)
    return reduce_pixels(-((1 - o) ** gamma) * o.log(), k.valid)
