"""Losses between maps of logits and labels or probabilities, with pixels that are left out and a denominator by name.

Legend: B batch, C classes, (h, w) size of the logits, (H, W) size of the targets. Logits of another size than the
targets are first brought to it, bilinear with align_corners=False. Everything is computed in at least float32.

Denominators. Each loss is sum_i w_i l_i over the valid pixels i, w_i their weight (1 where none is given), divided by

- `valid`: the number of valid pixels, so that a pixel of low weight lowers the loss (UniMatch, FixMatch);
- `weights`: sum_i w_i over the valid pixels, the weighted mean;
- `all`: B H W, so that pixels left out lower the loss (CutMix-Seg, ClassMix);
- `none`: nothing is summed; the result is w_i l_i (B, H, W), 0 at pixels that are not valid.

A loss without any pixel to count is 0 and still has a gradient, of zeros.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from maskwright.ops.losses.thresholds import kth_smallest

Denominator = Literal["valid", "weights", "all", "none"]

DENOMINATORS = ("valid", "weights", "all", "none")

# A probability no pixel has: where pixels that are not valid sort, behind all others.
BEYOND = 2.0


def cross_entropy(
    logits: Tensor,
    target: Tensor,
    *,
    ignore: int = 255,
    weight: Tensor | None = None,
    pixel_weight: Tensor | None = None,
    denominator: Denominator = "valid",
) -> Tensor:
    """-log softmax(logits)[y].

    Args:
        logits: (B, C, h, w).
        target: integers (B, H, W) in [0, C), or `ignore` where a pixel is not valid.
        ignore: the id of pixels that are not valid.
        weight: (C,) weight v of each class. As in PyTorch a pixel then counts v[y] in the denominators `valid` and
            `weights` too.
        pixel_weight: (B, H, W), at least 0.
        denominator: see the module.

    Returns:
        A number, or (B, H, W) for `none`.

    Raises:
        ValueError: shapes that do not belong together, or an unknown denominator.
    """
    logits, target = _with_labels(logits, target)
    valid = target != ignore
    losses = F.cross_entropy(logits, target, _like(weight, logits), ignore_index=ignore, reduction="none")
    counts = None if weight is None else _class_counts(weight, target, valid, logits)
    return reduce_pixels(losses, valid, pixel_weight, denominator, counts=counts)


def ohem_cross_entropy(
    logits: Tensor,
    target: Tensor,
    threshold: float = 0.7,
    min_kept: int = 100_000,
    *,
    ignore: int = 255,
    weight: Tensor | None = None,
    pixel_weight: Tensor | None = None,
) -> Tensor:
    """Cross-entropy averaged over hard pixels only (online hard example mining), as semi-supervised papers have it.

    A valid pixel is kept where the probability of its class is at most max(`threshold`, the `min_kept`-th lowest of
    the batch). With fewer than `min_kept` valid pixels all are kept. Class weights do not change which are kept.

    Args:
        logits: (B, C, h, w).
        target: integers (B, H, W), `ignore` where not valid.
        threshold: probability in [0, 1] above which a pixel is easy.
        min_kept: least number of pixels kept of the whole batch, not of each image; 0 for none.
        ignore: the id of pixels that are not valid.
        weight: (C,) weight of each class.
        pixel_weight: (B, H, W), at least 0.

    Returns:
        The weighted mean over kept pixels, in PyTorch's sense: divided by the kept pixels' sum of class weights.

    Raises:
        ValueError: shapes that do not belong together or arguments out of range.
    """
    if not 0 <= threshold <= 1:
        raise ValueError(f"threshold is {threshold}, expected a probability")
    if min_kept < 0:
        raise ValueError(f"min_kept is {min_kept}, expected at least 0")
    logits, target = _with_labels(logits, target)
    valid = target != ignore
    nll = F.cross_entropy(logits, target, ignore_index=ignore, reduction="none")
    with torch.no_grad():
        likely = torch.where(valid, torch.exp(-nll), BEYOND)
        if min_kept >= likely.numel():
            kept = valid
        else:
            limit = likely.new_tensor(threshold)
            if min_kept:
                limit = torch.maximum(limit, kth_smallest(likely, min_kept)[0])
            kept = valid & (likely <= limit)
    weight = _like(weight, logits)
    counts = None if weight is None else _class_counts(weight, target, kept, logits)
    losses = nll if counts is None else nll * counts
    return reduce_pixels(losses, kept, pixel_weight, "valid", counts=counts)


def dice_loss(
    logits: Tensor,
    target: Tensor,
    *,
    ignore: int = 255,
    smooth: float = 0.0,
    classes: Literal["present", "all"] = "present",
) -> Tensor:
    """1 - (2 sum p g + smooth) / (sum p + sum g + smooth) of each class over the batch's valid pixels, averaged.

    Args:
        logits: (B, C, h, w).
        target: integers (B, H, W), `ignore` where not valid.
        ignore: the id of pixels that are not valid.
        smooth: added above and below; with `classes` "all" it makes the loss of an absent class less than 1.
        classes: `present` averages over classes that the target holds, `all` over all.

    Returns:
        A number in [0, 1].

    Raises:
        ValueError: shapes that do not belong together or arguments out of range.
    """
    if smooth < 0:
        raise ValueError(f"smooth is {smooth}, expected at least 0")
    logits, target = _with_labels(logits, target)
    valid = target != ignore
    probs = logits.softmax(1) * valid[:, None]
    is_class = _one_hot(target, logits.shape[1])
    overlap = torch.where(is_class, probs, 0.0).sum((0, 2, 3))  # (C,)
    truth = is_class.sum((0, 2, 3)).to(probs)
    both = probs.sum((0, 2, 3)) + truth + smooth
    losses = 1 - (2 * overlap + smooth) / torch.where(both > 0, both, 1.0)
    chosen = _chosen(truth, bool(valid.any()), classes)
    return _mean(losses * chosen, chosen)


def lovasz_softmax(
    logits: Tensor, target: Tensor, *, ignore: int = 255, classes: Literal["present", "all"] = "present"
) -> Tensor:
    """Lovasz-Softmax: the convex extension of the Jaccard loss of each class over the batch, averaged.

    Source: Berman et al., CVPR 2018, https://arxiv.org/abs/1705.08790.

    Each class's loss is linear in its errors once they are sorted, so their order and coefficients are found without
    a graph, class by class, and the graph holds the probabilities alone.

    Args:
        logits: (B, C, h, w).
        target: integers (B, H, W), `ignore` where not valid.
        ignore: the id of pixels that are not valid.
        classes: `present` averages over classes that the target holds, `all` over all.

    Returns:
        A number in [0, 1].

    Raises:
        ValueError: shapes that do not belong together or arguments out of range.
    """
    logits, target = _with_labels(logits, target)
    valid = (target != ignore).flatten()
    probs = logits.softmax(1).movedim(1, 0).flatten(1)[:, valid]  # (C, P)
    y = target.flatten()[valid]  # (P,)
    truth = torch.bincount(y, minlength=probs.shape[0])[: probs.shape[0]]
    chosen = _chosen(truth.to(probs), len(y) > 0, classes)
    slopes, constant = torch.zeros_like(probs), probs.new_zeros(())
    with torch.no_grad():
        for c in chosen.nonzero().flatten().tolist():
            is_class = y == c
            order = _descending(torch.where(is_class, 1 - probs[c], probs[c]))
            steps = _jaccard_steps(is_class[order]).to(probs)
            slopes[c, order] = torch.where(is_class[order], -steps, steps)
            constant += steps[is_class[order]].sum()
    return ((probs * slopes).sum() + constant) / chosen.sum().clamp(min=1)


def soft_cross_entropy(
    logits: Tensor,
    probs: Tensor,
    *,
    valid: Tensor | None = None,
    pixel_weight: Tensor | None = None,
    denominator: Denominator = "valid",
) -> Tensor:
    """-sum_c q_c log softmax(logits)_c, q the target probabilities.

    Args:
        logits: (B, C, h, w).
        probs: q (B, C, H, W); rows need not sum to 1. Detach them where no gradient is to flow.
        valid: bool (B, H, W); all by default.
        pixel_weight: (B, H, W), at least 0.
        denominator: see the module.

    Raises:
        ValueError: shapes that do not belong together, or an unknown denominator.
    """
    logits, probs = _with_probs(logits, probs)
    return reduce_pixels(-(probs * logits.log_softmax(1)).sum(1), valid, pixel_weight, denominator)


def mse_probs(
    logits: Tensor,
    probs: Tensor,
    *,
    over: Literal["sum", "mean"] = "mean",
    valid: Tensor | None = None,
    pixel_weight: Tensor | None = None,
    denominator: Denominator = "valid",
) -> Tensor:
    """(softmax(logits) - q)^2, summed or averaged over classes: the two differ by the factor C between papers.

    Args:
        logits: (B, C, h, w).
        probs: q (B, C, H, W).
        over: `mean` over classes (Mean Teacher, CCT: nn.MSELoss) or their `sum` (CutMix-Seg).
        valid: bool (B, H, W); all by default.
        pixel_weight: (B, H, W), at least 0.
        denominator: see the module.

    Raises:
        ValueError: shapes that do not belong together or unknown words.
    """
    if over not in ("sum", "mean"):
        raise ValueError(f"over is {over!r}, expected 'sum' or 'mean'")
    logits, probs = _with_probs(logits, probs)
    squares = (logits.softmax(1) - probs).square()
    losses = squares.sum(1) if over == "sum" else squares.mean(1)
    return reduce_pixels(losses, valid, pixel_weight, denominator)


def kl_divergence(
    logits: Tensor,
    probs: Tensor,
    *,
    valid: Tensor | None = None,
    pixel_weight: Tensor | None = None,
    denominator: Denominator = "valid",
) -> Tensor:
    """KL(q || softmax(logits)) = sum_c q_c (log q_c - log p_c), with 0 log 0 = 0.

    Args:
        logits: (B, C, h, w).
        probs: q (B, C, H, W), rows that sum to 1.
        valid: bool (B, H, W); all by default.
        pixel_weight: (B, H, W), at least 0.
        denominator: see the module.

    Raises:
        ValueError: shapes that do not belong together, or an unknown denominator.
    """
    logits, probs = _with_probs(logits, probs)
    losses = (probs * (_safe_log(probs) - logits.log_softmax(1))).sum(1)
    return reduce_pixels(losses, valid, pixel_weight, denominator)


def reduce_pixels(
    losses: Tensor,
    valid: Tensor | None = None,
    pixel_weight: Tensor | None = None,
    denominator: Denominator = "valid",
    *,
    counts: Tensor | None = None,
) -> Tensor:
    """What remains of a map of losses, by the module's denominators.

    Args:
        losses: (B, H, W).
        valid: bool (B, H, W); all by default.
        pixel_weight: (B, H, W), at least 0.
        denominator: see the module.
        counts: (B, H, W) what a pixel counts in `valid` and `weights`; 1 by default.

    Returns:
        A number, or (B, H, W) for `none`.

    Raises:
        ValueError: shapes that do not belong together, or an unknown denominator.
    """
    if denominator not in DENOMINATORS:
        raise ValueError(f"denominator is {denominator!r}, expected one of {', '.join(DENOMINATORS)}")
    for name, x in (("valid", valid), ("pixel_weight", pixel_weight)):
        if x is not None and x.shape != losses.shape:
            raise ValueError(f"{name} is {tuple(x.shape)}, expected {tuple(losses.shape)} as the losses")
    if pixel_weight is not None:
        pixel_weight = pixel_weight.detach().to(losses)
        losses = losses * pixel_weight
    if valid is not None:
        valid = valid.bool()
        losses = torch.where(valid, losses, 0.0)
    if denominator == "none":
        return losses
    if denominator == "all":
        return losses.sum() / max(losses.numel(), 1)
    share = torch.ones_like(losses) if counts is None else counts.to(losses)
    if denominator == "weights" and pixel_weight is not None:
        share = share * pixel_weight
    return _mean(losses, share.detach() if valid is None else torch.where(valid, share.detach(), 0.0))


# ------------------------------------------------------------------ parts


def _with_labels(logits: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    if logits.ndim != 4 or target.ndim != 3 or len(logits) != len(target) or target.is_floating_point():
        raise ValueError(
            f"logits {tuple(logits.shape)} and {target.dtype} target {tuple(target.shape)}, "
            "expected (B, C, h, w) and integers (B, H, W)"
        )
    return _resized(logits, target), target.long()


def _with_probs(logits: Tensor, probs: Tensor) -> tuple[Tensor, Tensor]:
    if logits.ndim != 4 or probs.ndim != 4 or logits.shape[:2] != probs.shape[:2]:
        raise ValueError(f"logits {tuple(logits.shape)} and probabilities {tuple(probs.shape)}, expected (B, C, ., .)")
    logits = _resized(logits, probs)
    return logits, probs.to(logits)


def _resized(logits: Tensor, like: Tensor) -> Tensor:
    if logits.dtype != torch.float64:
        logits = logits.float()
    if logits.shape[-2:] == like.shape[-2:]:
        return logits
    return F.interpolate(logits, like.shape[-2:], mode="bilinear", align_corners=False)


def _like(weight: Tensor | None, logits: Tensor) -> Tensor | None:
    if weight is None:
        return None
    if weight.shape != (logits.shape[1],):
        raise ValueError(f"weight is {tuple(weight.shape)}, expected ({logits.shape[1]},)")
    return weight.detach().to(logits)


def _class_counts(weight: Tensor, target: Tensor, valid: Tensor, logits: Tensor) -> Tensor:
    """(B, H, W) the weight of each pixel's class, 0 where not valid."""
    by_class = weight.detach().to(logits)
    return torch.where(valid, by_class[torch.where(valid, target, 0)], 0.0)


def _safe_log(probs: Tensor) -> Tensor:
    """log q, finite at 0, where its gradient is 0 and q log q with it."""
    return probs.clamp(min=torch.finfo(probs.dtype).tiny).log()


def _one_hot(target: Tensor, classes: int) -> Tensor:
    """bool (B, C, H, W); all False where the id is none of the classes."""
    return target[:, None] == torch.arange(classes, device=target.device)[:, None, None]


def _chosen(truth: Tensor, some: bool, classes: str) -> Tensor:
    """(C,) 1 for each class to average over; none where no pixel is valid."""
    if classes not in ("present", "all"):
        raise ValueError(f"classes is {classes!r}, expected 'present' or 'all'")
    return (truth > 0).to(truth) if classes == "present" else torch.full_like(truth, float(some))


def _mean(losses: Tensor, share: Tensor) -> Tensor:
    total = share.sum()
    return losses.sum() / torch.where(total > 0, total, 1.0)


def _descending(x: Tensor) -> Tensor:
    """Order of x (P,) from the greatest down; numpy's sort is several times as fast as torch's on the CPU."""
    if x.device.type != "cpu":
        return x.argsort(descending=True, stable=True)
    return torch.from_numpy(np.argsort(-x.numpy()))


def _jaccard_steps(is_class: Tensor) -> Tensor:
    """How much the Jaccard loss grows with each further error (P,), errors sorted from the greatest down.

    Counted in float64: float32 has no more exact integers above 16.8 million pixels.
    """
    hit = is_class.cumsum(0, dtype=torch.float64)
    seen = torch.arange(1, len(hit) + 1, dtype=torch.float64, device=hit.device)
    truth = hit[-1]
    jaccard = 1 - (truth - hit) / (truth + seen - hit)
    return torch.diff(jaccard, prepend=jaccard.new_zeros(1))
