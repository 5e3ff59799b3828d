"""What ReCo (Shin, Xie, Albanie, NeurIPS 2022, https://arxiv.org/abs/2206.07045) makes of an archive of one concept: a
seed in each picture that all pictures have something like, and one vector for the concept.

Legend: n pictures, D channels, (h, w) grid, N = h * w places, M vectors, C classes.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

TEMPERATURE = 10.0
"""Cosines of places to words times this are the logits of ReCo's attention."""


def word_attention(cosines: Tensor, size: tuple[int, int]) -> Tensor:
    """sigmoid(10 cos), then resized bilinearly.

    Args:
        cosines: of places to words (B, C, h', w').
        size: (h, w) wanted.

    Returns:
        (B, C, h, w) in (0, 1).
    """
    return F.interpolate(torch.sigmoid(TEMPERATURE * cosines), size, mode="bilinear", align_corners=False)


def likeness(features: Tensor, vectors: Tensor) -> Tensor:
    """sigmoid(cos): features (B, D, h, w), of any length, against vectors (M, D), to (B, M, h, w) in [0.27, 0.73]."""
    unit = F.normalize(vectors, dim=1)
    return torch.sigmoid(torch.einsum("bdhw,md->bmhw", F.normalize(features, dim=1), unit))


def without_context(features: Tensor, context: Tensor) -> Tensor:
    """How little each place is like what surrounds things: the product over m of 1 - sigmoid(cos), never 0.

    Args:
        features: (B, D, h, w).
        context: references (M, D) of tree, sky and the like; of none the result is 1.

    Returns:
        (B, h, w) in (0, 1].
    """
    if not len(context):
        return features.new_ones(features.shape[0], *features.shape[2:])
    return (1 - likeness(features, context)).prod(1)


def find_seeds(features: Tensor, weights: Tensor | None = None, *, as_released: bool = False) -> Tensor:
    """The place of each picture that has something like it in all pictures.

    A_ab = u_a . u_b w_b for all places a, b of all pictures, u of unit length; s_a = mean_j max_{b in j} A_ab; the seed
    of a picture is its place of greatest s.

    Args:
        features: (n, D, h, w), of any length.
        weights: w (n, h, w) in [0, 1]; 1 if None.
        as_released: as the authors' code, whose slice of picture j reaches from j to 2 j + 1.

    Returns:
        int64 (n,), row-major places of the pictures.
    """
    n = len(features)
    unit = F.normalize(features.flatten(2), dim=1).transpose(1, 2)  # (n, N, D)
    columns = unit.flatten(0, 1).T  # (D, n * N), image-major
    if weights is not None:
        columns = columns * weights.flatten().to(columns)
    seeds = []
    for own in unit:  # an image's rows at a time: of all at once the matrix has (n N)^2 numbers
        best = (own @ columns).unflatten(1, (n, -1)).amax(2)  # (N, n)
        if as_released:
            best = torch.stack([best[:, j : 2 * j + 1].amax(1) for j in range(n)], 1)
        seeds.append(best.mean(1).argmax())
    return torch.stack(seeds)


def reference_vector(features: Tensor, seeds: Tensor) -> Tensor:
    """The concept's vector: the mean of the seeds' features as they are, of unit length.

    Args:
        features: (n, D, h, w).
        seeds: int64 (n,), as `find_seeds` gives them.

    Returns:
        (D,).
    """
    chosen = features.flatten(2)[torch.arange(len(features), device=features.device), :, seeds]  # (n, D)
    return F.normalize(chosen.mean(0), dim=0)


def fused_scores(features: Tensor, references: Tensor, cosines: Tensor, size: tuple[int, int]) -> Tensor:
    """ReCo's score: likeness to the reference, resized, times the attention of the words at that size.

    Args:
        features: (B, D, h, w).
        references: (C, D).
        cosines: of places to classes' words (B, C, h', w').
        size: of the result.

    Returns:
        (B, C, *size) in (0, 1).
    """
    alike = F.interpolate(likeness(features, references), size, mode="bilinear", align_corners=False)
    return alike * word_attention(cosines, size)
