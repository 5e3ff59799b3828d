"""What is made of similarities between places and words: synonyms, background, MaskCLIP's two refinements.

Legend: B batch, P words, C classes, (h, w) grid, N = h * w places, D channels of keys.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

REMOVED = -100.0
"""Similarity of a class that prompt denoising took away; no cosine is near it."""


def of_classes(words: Tensor, owner: Tensor, classes: int) -> Tensor:
    """The similarity of each class: that of the best of its words.

    Args:
        words: similarities (B, P, h, w).
        owner: int64 (P,), the class of each word.
        classes: C; a class without words gets -inf.

    Returns:
        (B, C, h, w).
    """
    best = words.new_full((words.shape[0], classes, *words.shape[2:]), float("-inf"))
    index = owner.view(1, -1, 1, 1).expand_as(words)
    return best.scatter_reduce(1, index, words, "amax")


def denoise_prompts(similarity: Tensor, threshold: float = 0.5, scale: float = 100.0) -> Tensor:
    """Prompt denoising of MaskCLIP: takes away the classes that are nowhere in the picture likely.

    Args:
        similarity: cosines (B, C, h, w).
        threshold: a class whose probability is below it at every place of a picture gets `REMOVED` there.
        scale: cosines are multiplied by it before the softmax over classes.

    Returns:
        (B, C, h, w).
    """
    highest = (similarity * scale).softmax(1).amax((2, 3), keepdim=True)  # (B, C, 1, 1)
    return similarity.masked_fill(highest < threshold, REMOVED)


def smooth_by_keys(
    similarity: Tensor, keys: Tensor, threshold: float = 1.0, scale: float = 100.0, per_key: bool = True
) -> tuple[Tensor, Tensor]:
    """Key smoothing of MaskCLIP: places with alike keys vote together.

    p = softmax(scale * similarity), W = k k^T of keys of unit length; W p stands where max p is below the threshold.

    Args:
        similarity: cosines (B, C, h, w).
        keys: (B, D, h, w), of any length.
        threshold: 1 replaces all places but those where a class has all the probability.
        scale: as for `denoise_prompts`.
        per_key: keys get unit length, as the paper says; False: each channel gets it over the picture's places, as the
            authors' code has it.

    Returns:
        W p (B, C, h, w), not normalised (divided by the sum of |W| in a row it lies in [-1, 1]), at the places where it
        stands, p elsewhere; and the sum of |W| (B, 1, h, w), 1 elsewhere.
    """
    b, c, h, w = similarity.shape
    p = (similarity * scale).softmax(1)
    k = F.normalize(keys.flatten(2), dim=1 if per_key else 2)  # (B, D, N)
    weight = k.transpose(1, 2) @ k  # (B, N, N)
    voted = (p.flatten(2) @ weight.transpose(1, 2)).view(b, c, h, w)
    mass = weight.abs().sum(2).view(b, 1, h, w)
    unsure = p.amax(1, keepdim=True) < threshold
    return torch.where(unsure, voted, p), torch.where(unsure, mass, torch.ones_like(mass))


def threshold_logit(words: Tensor, threshold: float) -> Tensor:
    """The logit of a background that wins just where no word has a probability of at least the threshold.

    Args:
        words: logits (B, P, h, w) of all words, whose softmax gives the probabilities.
        threshold: in (0, 1).

    Returns:
        (B, 1, h, w).
    """
    return words.logsumexp(1, keepdim=True) + torch.log(words.new_tensor(threshold))
