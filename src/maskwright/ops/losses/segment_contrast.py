"""Pixels against the prototypes of segments: the loss of SegSort and of all that stands on it.

l_i = -log( a_i / (a_i + sum over segments of other labels of e^{kappa v_i mu_s}) ), a_i the sum of e^{kappa v_i mu_s}
over the segments of the pixel's label other than its own, or of its own where there is no other. Where each segment has
a label of its own this is a softmax over all segments.

The authors get a_i as the sum over the label less the own term. In float32 that loses segments whose cosine is below
about 1 - 16.6 / kappa, and the own segment then takes their place. Here the own term is masked, in log space.

Legend: N pixels, S segments, M rows of a memory, D width.

Sources: SegSort, Hwang et al., ICCV 2019, https://arxiv.org/abs/1910.06962; neighbourhood components analysis,
Goldberger et al., NeurIPS 2004.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from maskwright.ops.losses.contrast import SOFTPLUS_LINEAR, masked_logsumexp


def segment_contrast(
    v: Tensor,
    own: Tensor,
    mu: Tensor,
    labels: Tensor,
    *,
    concentration: float,
    memory: Tensor | None = None,
    memory_labels: Tensor | None = None,
) -> Tensor:
    """The mean over pixels of l_i. Gradients flow to pixels and prototypes.

    Args:
        v: unit vectors (N, D).
        own: int64 (N,) in [0, S), the segment of each pixel.
        mu: prototypes (S, D), unit.
        labels: int64 (S,), the label of each segment.
        concentration: kappa, above 0.
        memory: (M, D), prototypes of earlier batches, of any length; no gradient.
        memory_labels: int64 (M,).

    Returns:
        The loss, at least 0; 0 without pixels.

    Raises:
        ValueError: shapes that do not belong together or a concentration out of range.
    """
    if own.shape != v.shape[:1] or labels.shape != mu.shape[:1] or (memory is None) != (memory_labels is None):
        raise ValueError(f"pixels {tuple(v.shape)} in {tuple(own.shape)}, segments {tuple(mu.shape)} of "
                         f"{tuple(labels.shape)}, expected (N, D), (N,), (S, D), (S,)")  # fmt: skip
    if not concentration > 0:
        raise ValueError(f"concentration is {concentration}, expected above 0")
    if not len(v):
        return v.sum() + mu.sum()
    temperature, label = 1 / concentration, labels[own]
    keys, key_labels = mu, labels
    if memory is not None and memory_labels is not None:
        keys, key_labels = (
            torch.cat((mu, F.normalize(memory.detach().to(mu), dim=1))),
            torch.cat((labels, memory_labels)),
        )
    s = (v * mu[own]).sum(1) * concentration
    if len(key_labels.unique()) < len(key_labels):
        others = (key_labels[None] == label[:, None]).scatter(1, own[:, None], False)  # (N, S + M)
        a = masked_logsumexp(v, keys, temperature=temperature, keep=others)
        s = torch.where(others.any(1), a, s)
    against = masked_logsumexp(v, keys, temperature=temperature, anchor_ids=label, key_ids=key_labels)
    return F.softplus(against - s, threshold=SOFTPLUS_LINEAR).mean()
