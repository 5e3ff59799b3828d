"""Contrast of photographs with texts: InfoNCE of pairs, and of photographs with several words each.

In a run of several processes each has B rows of its own and sees those of all, `offset` behind them.

Legend: B pictures of this process, A of all, K texts a picture, E channels.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

MOST = 100.0
"""Greatest factor of cosines; beyond it the scale gets no gradient, as in CLIP."""


def scale_of(log_scale: Tensor) -> Tensor:
    """exp of a learned scale, at most `MOST`."""
    return log_scale.exp().clamp(max=MOST)


def caption_contrast(
    image: Tensor, text: Tensor, log_scale: Tensor, all_image: Tensor, all_text: Tensor, offset: int = 0
) -> Tensor:
    """Mean over this process's pairs of 0.5 (CE(image -> all texts) + CE(text -> all images)).

    Args:
        image, text: (B, E), of any length; row n of both is one pair.
        log_scale: (), of the cosines.
        all_image, all_text: (A, E), those of all processes.
        offset: place of this process's first row among all.
    """
    image, text, all_image, all_text = (F.normalize(x, dim=-1) for x in (image, text, all_image, all_text))
    target = offset + torch.arange(len(image), device=image.device)
    scale = scale_of(log_scale)
    to_text, to_image = scale * image @ all_text.T, scale * text @ all_image.T  # (B, A)
    return 0.5 * (F.cross_entropy(to_text, target) + F.cross_entropy(to_image, target))


def word_contrast(
    image: Tensor, words: Tensor, log_scale: Tensor, all_image: Tensor, all_words: Tensor, offset: int = 0
) -> Tensor:
    """The same with K texts a picture: a picture has 1/K of each of its own, a text has its picture.

    Args:
        image: (B, E).
        words: (B, K, E).
        log_scale: (), of the cosines.
        all_image: (A, E).
        all_words: (A, K, E).
        offset: as for `caption_contrast`.
    """
    image, words, all_image, all_words = (F.normalize(x, dim=-1) for x in (image, words, all_image, all_words))
    b, k = words.shape[:2]
    scale = scale_of(log_scale)
    own = offset + torch.arange(b, device=image.device)
    to_words = (scale * image @ all_words.flatten(0, 1).T).log_softmax(-1).unflatten(-1, (-1, k))  # (B, A, K)
    images_loss = -to_words[torch.arange(b, device=image.device), own].mean()
    to_image = scale * words.flatten(0, 1) @ all_image.T  # (B K, A)
    return 0.5 * (images_loss + F.cross_entropy(to_image, own.repeat_interleave(k)))
