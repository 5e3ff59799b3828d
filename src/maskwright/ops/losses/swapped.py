"""Swapped prediction between views of one image: one view's cluster assignment is what another view must predict.

Sources: Caron et al., SwAV, NeurIPS 2020 (https://arxiv.org/abs/2006.09882); its supervision of shallow layers: PASS,
TPAMI 2022 (https://arxiv.org/abs/2106.03149).

Legend: B images, K prototypes, V views; views 0 and 1 are the ones that assign.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor


def soft_cross_entropy(logits: Tensor, q: Tensor) -> Tensor:
    """Mean over rows of -sum_k q_k log softmax(logits)_k.

    Args:
        logits: (B, K).
        q: target distributions (B, K), rows summing to 1; they get no gradient.

    Raises:
        ValueError: shapes differ.
    """
    if logits.shape != q.shape or logits.ndim != 2:
        raise ValueError(f"logits {tuple(logits.shape)} and assignments {tuple(q.shape)}, expected the same (B, K)")
    return -(q.detach() * F.log_softmax(logits.float(), 1)).sum(1).mean()


def swapped_loss(scores: Sequence[Tensor], q: Sequence[Tensor], temperature: float = 0.1) -> Tensor:
    """L = (1/2) sum_{i in {1,2}} 1/(V-1) sum_{v != i} CE(q_i, softmax(s_v / tau)).

    Args:
        scores: cosines to the prototypes of each of V views, (B, K) each, V at least 2.
        q: assignments of the first views, (B, K) each; usually two.
        temperature: tau, above 0.

    Raises:
        ValueError: fewer than two views, or more assignments than views.
    """
    if len(scores) < 2 or not 1 <= len(q) <= len(scores):
        raise ValueError(f"{len(scores)} views and {len(q)} assignments, expected at least 2 and no more than views")
    if not temperature > 0:
        raise ValueError(f"temperature is {temperature}, expected above 0")
    total = scores[0].new_zeros(())
    for i, target in enumerate(q):
        terms = [soft_cross_entropy(s / temperature, target) for v, s in enumerate(scores) if v != i]
        total = total + sum(terms) / len(terms)
    return total / len(q)


def supervise(scores: Sequence[Tensor], q: Sequence[Tensor], temperature: float = 0.1) -> Tensor:
    """L_d2s = (1/2) sum_i CE(q_i, softmax(s_{3-i} / tau)): deep assignments supervise another branch's other view.

    Args:
        scores: of the branch's two views, (B, K) each, to prototypes that get no gradient from it.
        q: deep assignments of the two views, (B, K) each.
        temperature: tau.

    Raises:
        ValueError: not two of each.
    """
    if len(scores) != 2 or len(q) != 2:
        raise ValueError(f"{len(scores)} views and {len(q)} assignments, expected two of each")
    return swapped_loss(scores, q, temperature)
