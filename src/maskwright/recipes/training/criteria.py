"""Supervised losses on label maps, by name: `ce`, `ohem`, `dice`, `lovasz`, or several joined by `+`; and L_x, one of
them on a network's output with its auxiliary heads."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from maskwright.data.training.labels import LabelMap
from maskwright.data.training.sources import Labels
from maskwright.errors import MaskwrightError, unknown
from maskwright.ops.losses.seg_losses import cross_entropy, dice_loss, lovasz_softmax, ohem_cross_entropy
from maskwright.recipes.training.forward import Forward, Output, upsample

if TYPE_CHECKING:
    from maskwright.recipes.training.options import LossOptions

Criterion = Callable[[Tensor, LabelMap], Tensor]
"""(logits (B, C, H, W), labels (B, H, W)) -> a number. `ce` and `ohem` are means over pixels, each weighed by its
confidence; `dice` and `lovasz` are of whole sets of pixels and take all valid ones alike."""

IGNORE = -1
"""What stands for pixels without a label; no class table is too long for it."""


def make_criterion(
    loss: str, weight: Tensor | None = None, ohem_threshold: float = 0.7, ohem_kept: float = 1 / 16
) -> Criterion:
    """The sum of the named terms.

    Args:
        loss: names joined by `+`.
        weight: (C,) class weights of `ce` and `ohem`.
        ohem_threshold: probability of its class below which OHEM keeps a pixel.
        ohem_kept: least share of the pixels that OHEM keeps; the papers' 100,000 of a 1024 x 1024 crop and more lie
            around the default.

    Raises:
        MaskwrightError: an unknown name.
    """
    names = [n.strip() for n in loss.split("+")]
    for name in names:
        if name not in ("ce", "ohem", "dice", "lovasz"):
            raise unknown("loss", name, ["ce", "ohem", "dice", "lovasz"])

    def criterion(logits: Tensor, y: LabelMap) -> Tensor:
        target, total = y.target(IGNORE), logits.new_zeros(())
        for name in names:
            if name == "ce":
                total = total + cross_entropy(logits, target, ignore=IGNORE, weight=weight, pixel_weight=y.confidence)
            elif name == "ohem":
                total = total + ohem_cross_entropy(
                    logits, target, ohem_threshold, int(target.numel() * ohem_kept), ignore=IGNORE, weight=weight,
                    pixel_weight=y.confidence,
                )  # fmt: skip
            elif name == "dice":
                total = total + dice_loss(logits, target, ignore=IGNORE)
            else:
                total = total + lovasz_softmax(logits, target, ignore=IGNORE)
        return total

    return criterion


def pixel_counts(labels: Labels, classes: int) -> Tensor:
    """Labelled pixels of each class, float64 (C,).

    Args:
        labels: all of them are read.
        classes: C.
    """
    counts = torch.zeros(classes, dtype=torch.float64)
    for i in labels.indices:
        y = labels.read(i)
        counts += torch.bincount(y.ids[y.valid].flatten(), minlength=classes)[:classes]
    return counts


def class_weights(labels: Labels, classes: int) -> Tensor:
    """(C,) inverse square roots of the classes' shares of all labelled pixels, with mean 1 over the classes that occur.

    Args:
        labels: all of them are read.
        classes: C.
    """
    counts = pixel_counts(labels, classes)
    seen = counts > 0
    weight = torch.where(seen, 1 / (counts / counts.sum()).clamp(min=1e-12).sqrt(), 0.0)
    return torch.where(seen, weight / weight[seen].mean(), 1.0).float()


def class_aware_chances(labels: Labels) -> np.ndarray:
    """How often each labelled image comes in class-aware sampling: a class by lot, then an image of that class by lot.

    Shen, Lin and Huang, Relay Backpropagation, ECCV 2016, https://arxiv.org/abs/1512.05830.

    Args:
        labels: all of them are read.

    Returns:
        float64 (N,), sum over the image's classes of 1 / number of images with it; 0 where an image has no valid pixel.

    Raises:
        MaskwrightError: no image has a valid pixel.
    """
    shown = [y.ids[y.valid].unique().tolist() for y in map(labels.read, labels.indices)]
    images = Counter(c for classes in shown for c in classes)
    if not images:
        raise MaskwrightError("no valid pixel in any label", "at least one", "check the ignore value of the masks")
    return np.array([sum(1 / images[c] for c in classes) for classes in shown])


class SupervisedLoss:
    """L_x: the criterion, weighted by the labels' confidence, and auxiliary heads with their paper's weights.

    Args:
        student: the network that it is of, where a call does not name another.
        options: the terms.
        labels: all of them are read where classes are balanced.
        classes: C.
        weight: (C,) class weights in place of the options'.
    """

    def __init__(
        self, student: Forward, options: LossOptions, labels: Labels, classes: int, weight: Tensor | None = None
    ) -> None:
        if weight is None and options.balance:
            weight = class_weights(labels, classes)
        weight = None if weight is None else weight.to(student.device)
        self.student = student
        self.criterion = make_criterion(options.terms, weight, options.ohem_threshold, options.ohem_kept)

    def __call__(self, out: Output, y: LabelMap, student: Forward | None = None) -> Tensor:
        """A number.

        Args:
            out: what the network made of the crops.
            y: their labels (B, S, S).
            student: the network it comes from, where it is another than the first.
        """
        student = student or self.student
        loss, network = self.criterion(out.logits, y), student.network
        if len(network.aux):
            with student.autocast():
                aux = network.aux_logits(out.features)
            for name, logits in aux.items():
                loss = loss + network.aux_weights[name] * self.criterion(upsample(logits, y.size), y)
        return loss
