"""Which pseudo-labels to trust: class-balanced thresholds and entropy percentiles.

Legend: B batch, C classes, (H, W) image size, lam (C,) thresholds.

Sources: CBST, Zou et al., ECCV 2018, https://arxiv.org/abs/1810.07911; CRST, Zou et al., ICCV 2019,
https://arxiv.org/abs/1908.09822; U2PL, Wang et al., CVPR 2022, https://arxiv.org/abs/2203.03884.

`class_balanced_labels` is CBST's; `lrent_labels`, `mrkld`, `mrent` and `mrl2` are CRST's.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

BINS = 1 << 14


class ClassHistogram:
    """Confidences of the pixels predicted as each class, of a whole dataset in a few megabytes.

    Thresholds read from it are within 1 / bins of those of sorting all confidences. Histograms of shares of the data
    add up: `merge`, or a sum of `counts` over processes.

    Args:
        classes: C.
        bins: of [0, 1], equally wide.
        device: where to count.

    Attributes:
        counts: int64 (C, bins); bin b counts confidences in [b / bins, (b + 1) / bins), the last one 1 too.
    """

    def __init__(self, classes: int, bins: int = BINS, device: torch.device | str = "cpu") -> None:
        if classes < 1 or bins < 1:
            raise ValueError(f"{classes} classes and {bins} bins, expected at least 1 of both")
        self.counts = torch.zeros(classes, bins, dtype=torch.int64, device=device)

    @property
    def classes(self) -> int:
        """C."""
        return self.counts.shape[0]

    @property
    def bins(self) -> int:
        """Bins of [0, 1]."""
        return self.counts.shape[1]

    @torch.no_grad()
    def update(self, probs: Tensor, ids: Tensor | None = None, *, valid: Tensor | None = None, every: int = 1) -> None:
        """Counts pixels.

        Args:
            probs: probabilities (..., C, H, W); or, with `ids`, confidences in [0, 1] of any shape.
            ids: predicted classes of the confidences' shape.
            valid: bool (..., H, W), or of the confidences' shape; all by default.
            every: of the pixels of one image, which the last two axes are, that are predicted as one class, in reading
                order, only each so-many-th counts, from the first on (4 in CBST): so that a class of thin things has
                its part too, which a coarser grid would pass by.

        Raises:
            ValueError: shapes that do not belong together, classes out of range, or confidences outside [0, 1].
        """
        if ids is None:
            if probs.ndim < 3 or probs.shape[-3] != self.classes:
                raise ValueError(f"probabilities are {tuple(probs.shape)}, expected (..., {self.classes}, H, W)")
            confidence, ids = probs.max(-3)
        else:
            if probs.shape != ids.shape or (every > 1 and ids.ndim < 2):
                raise ValueError(f"confidences {tuple(probs.shape)} and ids {tuple(ids.shape)}, expected one shape")
            confidence = probs
        if valid is not None and valid.shape != ids.shape:
            raise ValueError(f"valid is {tuple(valid.shape)}, expected {tuple(ids.shape)}")
        if every > 1:
            counted = _each(every, ids, valid)
            confidence, ids = confidence[counted], ids[counted]
        elif valid is not None:
            confidence, ids = confidence[valid.bool()], ids[valid.bool()]
        if not ids.numel():
            return
        confidence, ids = confidence.double().flatten(), ids.long().flatten()
        low, high = float(confidence.min()), float(confidence.max())
        if not (low >= 0 and high <= 1 + 1e-5):  # NaN fails too; softmax may round to a little above 1
            raise ValueError(f"confidences from {low} to {high}, expected [0, 1]")
        if int(ids.min()) < 0 or int(ids.max()) >= self.classes:
            raise ValueError(f"ids from {int(ids.min())} to {int(ids.max())}, expected 0 to {self.classes - 1}")
        places = ids * self.bins + (confidence * self.bins).long().clamp(max=self.bins - 1)
        self.counts += torch.bincount(places, minlength=self.counts.numel()).view_as(self.counts).to(self.counts)

    def merge(self, other: ClassHistogram) -> ClassHistogram:
        """Adds another histogram's counts to these and returns these.

        Raises:
            ValueError: other classes or bins.
        """
        if self.counts.shape != other.counts.shape:
            raise ValueError(f"histograms of {tuple(self.counts.shape)} and {tuple(other.counts.shape)} counts")
        self.counts += other.counts.to(self.counts.device)
        return self

    def thresholds(self, portion: float) -> Tensor:
        """lam: the confidence that floor(portion * n_c) of the n_c pixels predicted as class c reach.

        The left edge of the bin where the count from above first reaches that number, so that at least so many reach
        it, and more only by pixels of the same bin. 1 where the number is 0, as for classes never predicted.

        Args:
            portion: in [0, 1].

        Returns:
            float64 (C,) in [0, 1].

        Raises:
            ValueError: a portion out of range.
        """
        if not 0 <= portion <= 1:
            raise ValueError(f"portion is {portion}, expected in [0, 1]")
        tail = self.counts.flip(1).cumsum(1)  # (C, bins), from the top
        # 0.29 * 100 is a little below 29.
        wanted = (tail[:, -1].double() * portion + 1e-9).floor().long()
        steps = (tail < wanted[:, None]).sum(1)  # bins from the top that do not suffice
        lam = (self.bins - 1 - steps).double() / self.bins
        return torch.where(wanted > 0, lam, 1.0)


def _each(every: int, ids: Tensor, valid: Tensor | None) -> Tensor:
    """bool like ids (..., H, W): in each image each so-many-th pixel of a class, the first one among them."""
    lists = ids.flatten(-2).reshape(-1, ids.shape[-2] * ids.shape[-1]).long()  # an image a row
    counts = torch.ones_like(lists, dtype=torch.bool) if valid is None else valid.bool().reshape(lists.shape)
    taken = torch.zeros_like(counts)
    for row, counted, out in zip(lists, counts, taken):
        places = counted.nonzero()[:, 0]
        order = places[row[places].argsort(stable=True)]  # by class, in reading order
        of_class = torch.bincount(row[places])
        rank = torch.arange(len(order), device=ids.device) - (of_class.cumsum(0) - of_class)[row[order]]
        out[order[rank % every == 0]] = True
    return taken.view_as(ids)


def class_balanced_labels(probs: Tensor, thresholds: Tensor, ignore: int = 255) -> Tensor:
    """argmax_c p_c / lam_c, `ignore` where even the largest of these is below 1 (CBST).

    Args:
        probs: (..., C, H, W).
        thresholds: lam (C,), at least 0. Of a class with lam = 1 only certain pixels (p = 1) become labels.
        ignore: the id of pixels that get no label.

    Returns:
        int64 (..., H, W).

    Raises:
        ValueError: thresholds that do not belong to the probabilities.
    """
    ratio, ids = (probs / _lam(probs, thresholds)).max(-3)
    return torch.where(ratio >= 1, ids, ignore)


def lrent_labels(probs: Tensor, thresholds: Tensor, alpha: float = 0.25) -> tuple[Tensor, Tensor]:
    """Soft labels y_c ~ (p_c / lam_c)^{1 / alpha} of CRST with the label-entropy regulariser, and which to keep.

    A pixel is kept where -sum y log p + alpha sum y log y < -sum y log lam. With this y the two sides differ by
    alpha log sum_c (p_c / lam_c)^{1 / alpha}, which is computed in their place.

    Args:
        probs: (..., C, H, W).
        thresholds: lam (C,), above 0.
        alpha: above 0; towards 0 the labels become those of `class_balanced_labels`.

    Returns:
        y like `probs`, whose classes sum to 1, and kept, bool (..., H, W).

    Raises:
        ValueError: thresholds that do not belong to the probabilities, or alpha out of range.
    """
    if not alpha > 0:
        raise ValueError(f"alpha is {alpha}, expected above 0")
    tiny = torch.finfo(probs.dtype).tiny
    scores = (probs.clamp(min=tiny).log() - _lam(probs, thresholds).log()) / alpha
    return scores.softmax(-3), scores.logsumexp(-3) > 0


def mrkld(logits: Tensor, valid: Tensor | None = None) -> Tensor:
    """-sum_c (1 / C) log softmax(logits)_c, averaged over valid pixels: CRST's pull of the model towards uniform.

    Args:
        logits: (B, C, H, W).
        valid: bool (B, H, W), the pixels with a pseudo-label; all by default.

    Returns:
        At least log C, which uniform probabilities reach; 0 where no pixel is valid.

    Raises:
        ValueError: shapes that do not belong together.
    """
    logits = _floating(logits)
    return _mean_of(logits.logsumexp(1) - logits.mean(1), valid)


def mrent(logits: Tensor, valid: Tensor | None = None) -> Tensor:
    """sum_c p_c log p_c of p = softmax(logits), averaged over valid pixels: CRST's negative entropy of the model.

    Args:
        logits: (B, C, H, W).
        valid: as in `mrkld`.

    Returns:
        From -log C, of uniform probabilities, to 0; 0 where no pixel is valid.
    """
    return _mean_of(-entropy(_floating(logits).softmax(1)), valid)


def mrl2(logits: Tensor, valid: Tensor | None = None) -> Tensor:
    """sum_c p_c^2 of p = softmax(logits), averaged over valid pixels: CRST's squared length of the model's answer.

    Args:
        logits: (B, C, H, W).
        valid: as in `mrkld`.

    Returns:
        From 1 / C, of uniform probabilities, to 1; 0 where no pixel is valid.
    """
    return _mean_of(_floating(logits).softmax(1).square().sum(1), valid)


def _floating(logits: Tensor) -> Tensor:
    return logits if logits.dtype == torch.float64 else logits.float()


def _mean_of(losses: Tensor, valid: Tensor | None) -> Tensor:
    """Mean of (B, H, W) over valid pixels; 0, with a gradient of zeros, where there is none."""
    if valid is None:
        return losses.mean()
    if valid.shape != losses.shape:
        raise ValueError(f"valid is {tuple(valid.shape)}, losses {tuple(losses.shape)}")
    return torch.where(valid, losses, 0.0).sum() / valid.sum().clamp(min=1)


def entropy(probs: Tensor, dim: int = -3) -> Tensor:
    """-sum p log p in nats over the class axis, with 0 log 0 = 0."""
    return torch.special.entr(probs).sum(dim)


@torch.no_grad()
def kth_smallest(x: Tensor, *k: int) -> tuple[Tensor, ...]:
    """The k-th smallest value of x for each k, counted from 1, without a graph.

    On the CPU by numpy's partition: torch's `kthvalue` there takes quadratic time on descending values, and on random
    ones many times as long.

    Args:
        x: floating, any shape.
        k: each in [1, number of values].

    Returns:
        Numbers of x's type.
    """
    values = x.detach().flatten()
    if x.device.type != "cpu":
        return tuple(values.kthvalue(n).values for n in k)
    exact = values if values.dtype in (torch.float32, torch.float64) else values.float()
    places = [n - 1 for n in k]
    return tuple(values.new_tensor(v) for v in np.partition(exact.numpy(), places)[places])


@torch.no_grad()
def percentile(x: Tensor, q: float, mask: Tensor | None = None) -> Tensor:
    """The q-th percentile with linear interpolation, as numpy has it, of any number of values.

    Selects rather than sorts; `torch.quantile` takes no more than 16 million values.

    Args:
        x: floating, any shape.
        q: in [0, 100].
        mask: bool of the same shape, which values count; all by default.

    Returns:
        A number of x's type; NaN of no values, so that comparisons with it are False.

    Raises:
        ValueError: q out of range or a mask of another shape.
    """
    if not 0 <= q <= 100:
        raise ValueError(f"q is {q}, expected in [0, 100]")
    if mask is not None and mask.shape != x.shape:
        raise ValueError(f"mask is {tuple(mask.shape)}, expected {tuple(x.shape)}")
    values = x.flatten() if mask is None else x[mask.bool()]
    if not values.numel():
        return x.new_tensor(math.nan)
    place = q / 100 * (values.numel() - 1)
    low, high = math.floor(place), math.ceil(place)
    below, above = kth_smallest(values, low + 1, high + 1)
    return torch.lerp(below, above, place - low)


class EntropyMasks(NamedTuple):
    """Pixels by the entropy of their probabilities.

    Attributes:
        reliable: bool (..., H, W), entropy at most the low percentile.
        unreliable: bool (..., H, W), entropy at least the high percentile.
        entropy: (..., H, W), nats.
    """

    reliable: Tensor
    unreliable: Tensor
    entropy: Tensor


@torch.no_grad()
def entropy_masks(probs: Tensor, low_percent: float, high_percent: float, valid: Tensor | None = None) -> EntropyMasks:
    """The pixels of low and of high entropy (U2PL): percentiles over all valid pixels of the batch together.

    Both bounds are inclusive, as in the paper's code: at 0 and 100 percent the least and the most uncertain pixel are
    still in, and with equal percentiles a pixel may be both.

    Args:
        probs: (..., C, H, W).
        low_percent: in [0, 100]; reliable is the share below.
        high_percent: in [0, 100]; unreliable is the share above.
        valid: bool (..., H, W); others are neither and do not count in the percentiles. All by default.

    Raises:
        ValueError: percentages out of range or a mask of another shape.
    """
    h = entropy(probs)
    valid = torch.ones_like(h, dtype=torch.bool) if valid is None else valid.bool()
    low, high = percentile(h, low_percent, valid), percentile(h, high_percent, valid)
    return EntropyMasks((h <= low) & valid, (h >= high) & valid, h)


def _lam(probs: Tensor, thresholds: Tensor) -> Tensor:
    """lam (C, 1, 1) in the probabilities' type, above 0."""
    if probs.ndim < 3 or thresholds.shape != probs.shape[-3:-2]:
        raise ValueError(f"thresholds {tuple(thresholds.shape)} for probabilities {tuple(probs.shape)}")
    return thresholds.to(probs).clamp(min=torch.finfo(probs.dtype).tiny)[:, None, None]
