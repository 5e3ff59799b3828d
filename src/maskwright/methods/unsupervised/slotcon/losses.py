"""SlotCon's grouping, inverse augmentation and losses as functions (NeurIPS 2022, arXiv 2205.15288).

Legend: B photographs in this process's share, K prototypes, d width of projections, (h, w) map, N anchors, M
candidates; q the student's, k the teacher's.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from maskwright.engine.distributed import all_reduce_sum, rank, world_size
from maskwright.engine.schedules import cosine
from maskwright.ops.roi_align import roi_align

EPS = 1e-6
"""Added to assignments before slots are pooled."""


class Grouped(NamedTuple):
    """A view of B photographs in the words of its prototypes.

    Attributes:
        slots: (B, K, d).
        scores: cosines (B, K, h, w) in [-1, 1].
    """

    slots: Tensor
    scores: Tensor


def group(x: Tensor, prototypes: Tensor, tau: float) -> Grouped:
    """score_k(u) = cos(x_u, s_k), a = softmax_k(score / tau) + 1e-6, slot_k = sum_u a_k(u) x_u / sum_u a_k(u).

    Args:
        x: projections (B, d, h, w), of any length; slots are means of them as they are.
        prototypes: s (K, d), of any length.
        tau: temperature of the assignments.
    """
    scores = F.conv2d(F.normalize(x, dim=1), F.normalize(prototypes, dim=1)[..., None, None])
    a = (scores / tau).softmax(1).flatten(2) + EPS
    return Grouped(a @ x.flatten(2).mT / a.sum(2, keepdim=True), scores)


def inverse_augment(scores: Tensor, boxes: Tensor, flips: Tensor) -> Tensor:
    """The scores inside the box that both views share, at the map's own size and turned back as the photograph is.

    Args:
        scores: (B, K, h, w) of one view.
        boxes: (B, 4), parts of the view's sides in its own frame, as `data.training.two_crops` records them.
        flips: bool (B,), whether the view is mirrored left to right.
    """
    h, w = scores.shape[-2:]
    boxes = boxes.double() * torch.tensor([w, h, w, h], dtype=torch.float64, device=boxes.device)
    aligned = roi_align(scores, boxes, (h, w))
    return torch.where(flips[:, None, None, None], aligned.flip(-1), aligned)


def grouping_loss(
    q: Tensor, k: Tensor, center: Tensor, tau_s: float, tau_t: float, shared: Tensor | None = None
) -> Tensor:
    """Mean over places of - sum_k softmax((k - c) / tau_t) log softmax(q / tau_s), one direction.

    Args:
        q: the student's aligned scores (B, K, h, w).
        k: the teacher's of the other view; they get no gradient.
        center: c (K,).
        tau_s: temperature of the student.
        tau_t: temperature of the teacher.
        shared: bool (B,), pairs whose views share something; the others do not count. 0 where none does.
    """
    target = ((k.detach() - center[:, None, None]) / tau_t).softmax(1)
    each = -(target * (q / tau_s).log_softmax(1)).sum(1).mean((1, 2))  # (B,)
    if shared is None:
        return each.mean()
    return torch.where(shared, each, 0.0).sum() / shared.sum().clamp(min=1)


def winners(scores: Tensor) -> Tensor:
    """Bool (B, K): which prototypes win some place of a view, scores (B, K, h, w)."""
    b, k = scores.shape[:2]
    won = torch.zeros(b, k, dtype=torch.bool, device=scores.device)
    return won.scatter(1, scores.argmax(1).flatten(1), True)


class Contrast(NamedTuple):
    """The contrast of slots in one direction.

    Attributes:
        loss: of float.
        anchors: N, int64.
        guess: what the loss would be if all M candidates were equally likely: it grows with M, and so does the loss.
    """

    loss: Tensor
    anchors: Tensor
    guess: Tensor


def slot_loss(
    q: Tensor, k: Tensor, anchors: Tensor, candidates: Tensor, predictor: Callable[[Tensor], Tensor], tau: float
) -> Contrast:
    """2 tau times the mean over anchors of - log softmax over candidates of cos(predictor(slot_q), slot_k) / tau.

    An anchor's positive is the slot of its photograph and prototype in the teacher's view; the candidates are those of
    all photographs of all processes.

    Args:
        q: the student's slots (B, K, d).
        k: the teacher's of the other view; they get no gradient.
        anchors: bool (B, K), prototypes that win somewhere in both views; all of them candidates.
        candidates: bool (B, K), those that win somewhere in the teacher's view.
        predictor: rows (N, d) to rows (N, d); its batch norm sees the anchors alone.
        tau: temperature.

    Returns:
        The loss, N and the guess. With fewer than two anchors, of which no batch norm has statistics, loss and guess
        are 0: the original is not a number without anchors, and stops at one.
    """
    n = anchors.sum()
    rows, owners, masks = k.detach(), rank() * anchors.numel(), candidates
    if world_size() > 1:
        rows, masks = gathered(rows), gathered(candidates.to(k.dtype)) > 0.5
    if int(n) < 2:
        return Contrast(q.sum() * 0.0, n, q.new_zeros(()))
    number = masks.flatten().cumsum(0) - 1  # of each slot, among the candidates
    positive = number[owners : owners + anchors.numel()][anchors.flatten()]  # (N,)
    logits = F.normalize(predictor(q[anchors]), dim=1) @ F.normalize(rows[masks], dim=1).T / tau  # (N, M)
    guess = q.new_tensor(2 * tau * math.log(logits.shape[1]))
    return Contrast(2 * tau * F.cross_entropy(logits, positive), n, guess)


def gathered(x: Tensor) -> Tensor:
    """Tensors (B, ...) of all processes, one after the other, without gradient."""
    b, places = len(x), x.new_zeros(world_size() * len(x), *x.shape[1:])
    places[rank() * b : (rank() + 1) * b] = x
    return all_reduce_sum(places)


class Center(nn.Module):
    """c, the running mean of the teacher's scores, which keeps one prototype from winning everywhere.

    Args:
        prototypes: K.
        momentum: share of c that stays in a step.
    """

    value: Tensor

    def __init__(self, prototypes: int, momentum: float = 0.9) -> None:
        super().__init__()
        self.momentum = momentum
        self.register_buffer("value", torch.zeros(prototypes))

    @torch.no_grad()
    def update(self, scores: Tensor) -> None:
        """c <- momentum c + (1 - momentum) mean of scores (B, K, h, w) as they are, of all processes."""
        mean = all_reduce_sum(scores.mean((0, 2, 3))) / world_size()
        self.value.mul_(self.momentum).add_(mean, alpha=1 - self.momentum)


def warm_cosine(steps: int, warm: int, final: float) -> Callable[[int], float]:
    """Factor on the rate: a hundredth to 1 over the first `warm` steps, then a cosine towards `final`."""

    falling = cosine(steps - warm, final)
    return lambda step: 0.01 + 0.99 * step / warm if step < warm else falling(step - warm)
