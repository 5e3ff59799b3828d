"""The losses of MaskContrast, as functions of tensors.

Deviates: a photograph that stands in a batch twice has both its prototypes as its own; the authors push the second one
away as another photograph's.

Legend: B photographs, D width of embeddings, (S, S) views, M^q and M^k object masks of the query and the key view, Q
rows of the queue.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from maskwright.ops.losses.contrast import contrastive_loss

ENET = 1.02
"""c of ENet's class weights (Paszke et al., 2016)."""


def object_prototypes(k: Tensor, mask: Tensor) -> Tensor:
    """p_i = norm(sum_u M^k_u k_u / |k_u|), (B, D); zeros where a mask is empty.

    Args:
        k: embeddings of the key views (B, D, S, S).
        mask: bool (B, S, S).
    """
    return F.normalize(torch.einsum("bdhw,bhw->bd", F.normalize(k, dim=1), mask.to(k)), dim=1)


def enet_weights(images: Tensor, count: int) -> Tensor:
    """w_j = 1 / ln(c + n_j / N) of photographs j that have n_j of N pixels, (count,): small objects weigh more.

    Args:
        images: int64 (N,), of each pixel its photograph.
        count: B.
    """
    n = torch.bincount(images, minlength=count).float()
    return 1 / torch.log(ENET + n / n.sum().clamp(min=1))


def first_places(images: Tensor) -> Tensor:
    """Of each place of a batch the first one that holds the same photograph, int64 (B,); images: int64 (B,)."""
    return (images[:, None] == images).to(torch.uint8).argmax(1)


def object_contrast(
    q: Tensor, mask: Tensor, prototypes: Tensor, queue: Tensor, temperature: float, images: Tensor | None = None
) -> Tensor:
    """L_c: each object pixel of the query views picks its own photograph's prototype among all and the queue's.

    Args:
        q: embeddings of the query views (B, D, S, S), of any length.
        mask: bool (B, S, S).
        prototypes: of the key views (B, D).
        queue: earlier ones (Q, D); Q may be 0.
        temperature: T.
        images: int64 (B,), which photograph each place holds. None: all differ.

    Returns:
        sum_u w_i(u) l_u / sum_u w_i(u), l_u the cross entropy of [q_u p_1..B, q_u queue] / T against its own
        photograph's column, or the sum of its columns where it has several; 0 where no pixel is object.
    """
    b = len(prototypes)
    rows = F.normalize(q, dim=1).permute(0, 2, 3, 1)[mask]  # (N, D)
    image = torch.arange(b, device=mask.device)[:, None, None].expand_as(mask)[mask]
    keys = torch.cat((prototypes, queue.to(prototypes)))
    key_ids = torch.arange(len(keys), device=mask.device)  # those of the queue belong to none
    if images is not None:
        key_ids[:b] = first_places(images)
    weights = enet_weights(image, b)[image]
    return contrastive_loss(
        rows, None, keys, temperature=temperature, anchor_ids=key_ids[image], negative_ids=key_ids, weights=weights
    )  # fmt: skip


def balanced_cross_entropy(s: Tensor, mask: Tensor, weight: float | None = None) -> Tensor:
    """L_s = [w sum_fg ce + (1 - w) sum_bg ce] / pixels, w the share of background pixels in the batch: HED's loss.

    It is 0 without a gradient where all is object or all background.

    Args:
        s: saliency logits (B, S, S).
        mask: bool (B, S, S).
        weight: w in place of that share.
    """
    inside = mask.to(s)
    w = 1 - inside.mean() if weight is None else weight
    ce = F.binary_cross_entropy_with_logits(s, inside, reduction="none")
    return (ce * torch.where(mask, w, 1 - w)).mean()


@torch.no_grad()
def agreement(q: Tensor, mask: Tensor, prototypes: Tensor, images: Tensor | None = None) -> Tensor:
    """Share of the query objects that are nearest to a prototype of their own photograph; 1 / B by chance.

    Args:
        q, mask, prototypes, images: as for `object_contrast`.
    """
    nearest = (object_prototypes(q, mask) @ prototypes.T).argmax(1)
    own = torch.arange(len(nearest), device=nearest.device) if images is None else images
    return (own[nearest] == own).float().mean()
