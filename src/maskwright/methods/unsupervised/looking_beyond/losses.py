"""The contrast of labelled pixels across photographs, what it draws, and labels of pixels with their margin (Looking
Beyond Single Images, NeurIPS 2021).

Legend: B photographs, K labels, N drawn pixels, D width, (h, w) map size.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from maskwright.ops.losses.contrast import masked_logsumexp


def assign_margin(f: Tensor, mu: Tensor) -> tuple[Tensor, Tensor]:
    """The nearest centroid of each pixel by cosine, and how much nearer it is than the second.

    Args:
        f: features (B, D, h, w), of any length.
        mu: centroids (K, D), of any length.

    Returns:
        int64 (B, h, w), and best minus second best cosine, 2 where there is one centroid.
    """
    cosines = F.conv2d(F.normalize(f, dim=1), F.normalize(mu, dim=1).to(f)[..., None, None])
    best = cosines.topk(min(2, len(mu)), dim=1)
    margin = best.values[:, 0] - best.values[:, 1] if len(mu) > 1 else torch.full_like(best.values[:, 0], 2.0)
    return best.indices[:, 0], margin


def cross_image_contrast(z: Tensor, labels: Tensor, images: Tensor, temperature: float, across: bool = False) -> Tensor:
    """L = mean over anchors with a positive of the mean over their positives q of
    -log( e^{s_pq} / (e^{s_pq} + sum_n e^{s_pn}) ), s = cosine / tau.

    Positives have the anchor's label, negatives another one; both lie in any photograph of the batch. Other positives
    are not in the denominator.

    Args:
        z: (N, D), of any length.
        labels: int64 (N,).
        images: int64 (N,), which photograph each is of.
        temperature: tau.
        across: whether positives must lie in another photograph.

    Returns:
        A number, 0 where no anchor has a positive.
    """
    z = F.normalize(z, dim=1)
    s = z @ z.T / temperature  # (N, N)
    against = masked_logsumexp(z, z, temperature=temperature, anchor_ids=labels, key_ids=labels)  # (N,)
    positive = (labels[:, None] == labels) & ~torch.eye(len(z), dtype=torch.bool, device=z.device)
    if across:
        positive = positive & (images[:, None] != images)
    opposed = against.isfinite()[:, None] & positive  # an anchor without negatives has a loss of 0
    gap = torch.where(opposed, against[:, None] - s, 0.0)
    losses = torch.where(opposed, F.softplus(gap, threshold=40), 0.0)
    count = positive.sum(1)
    each = losses.sum(1) / count.clamp(min=1)
    return each.sum() / (count > 0).sum().clamp(min=1)


def draw_pixels(
    labels: Tensor, margin: Tensor, valid: Tensor, count: int, anchors: int, drop: float, across: bool
) -> Tensor:
    """Which pixels are contrasted: as many of each of some labels, balanced over the photographs that show it.

    Random numbers come from torch's global generator.

    Args:
        labels: int64 (B, h, w).
        margin: (B, h, w), how sure each label is.
        valid: bool (B, h, w).
        count: labels drawn.
        anchors: pixels of each.
        drop: share of the valid pixels, those of least margin, that are never drawn.
        across: whether labels must be in two photographs at least; where none is, any will do.

    Returns:
        int64 (N,), places among B h w; empty where nothing is valid.
    """
    b, h, w = labels.shape
    flat, sure = labels.flatten().cpu(), valid.flatten().cpu()
    values = margin.flatten().cpu()
    if drop > 0 and bool(sure.any()):
        known = sure.nonzero()[:, 0]
        known = known[torch.randperm(len(known))]  # of equal margins any may go
        sure = sure.clone()
        sure[known[values[known].argsort(stable=True)[: int(drop * len(known))]]] = False
    image = torch.arange(b).repeat_interleave(h * w)
    names, index = flat[sure].unique(return_inverse=True)
    if not len(names):
        return torch.empty(0, dtype=torch.int64)
    places, of = sure.nonzero()[:, 0], image[sure]
    shown = torch.zeros(len(names), b, dtype=torch.bool)
    shown[index, of] = True
    wanted = (shown.sum(1) > 1).nonzero()[:, 0] if across else torch.arange(len(names))
    wanted = wanted if len(wanted) else torch.arange(len(names))
    drawn = []
    for k in wanted[torch.randperm(len(wanted))[:count]].tolist():
        each = -(-anchors // int(shown[k].sum()))
        parts = []
        for i in shown[k].nonzero()[:, 0].tolist():
            mine = places[(index == k) & (of == i)]
            parts.append(mine[torch.randperm(len(mine))[:each]])
        drawn.append(_evenly(parts, anchors))
    return torch.cat(drawn)


def _evenly(parts: list[Tensor], most: int) -> Tensor:
    """At most so many places, photograph by photograph in turn."""
    longest = max(map(len, parts))
    turns = [p[k : k + 1] for k in range(longest) for p in parts]
    return torch.cat(turns)[:most]
