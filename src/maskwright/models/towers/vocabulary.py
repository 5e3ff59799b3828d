"""A vocabulary: the words of classes as vectors in the space of an image tower, computed once.

Legend: P words, C classes, M sentences around a word, E channels.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from maskwright.models.towers.names import ClassWords
from maskwright.models.towers.text import Texts


class Vocabulary(NamedTuple):
    """Words as vectors.

    Attributes:
        vectors: (P, E), of unit length.
        owner: int64 (P,), the class of each word.
    """

    vectors: Tensor
    owner: Tensor


def ensemble(embeddings: Tensor, units: bool = True) -> Tensor:
    """Embeddings of words in several sentences, (P, M, E), as one vector a word (P, E): each of unit length, unless
    `units` says otherwise, then their mean, of unit length."""
    return F.normalize((F.normalize(embeddings, dim=-1) if units else embeddings).mean(1), dim=-1)


def most_alike(found: Vocabulary, chunk: int = 1024) -> float | None:
    """The greatest cosine of two words of different classes; None where all words are of one class.

    Args:
        found: the words.
        chunk: words that are compared with all at once; memory grows with it.
    """
    highest = -math.inf
    for start in range(0, len(found.owner), chunk):
        some, own = found.vectors[start : start + chunk], found.owner[start : start + chunk]
        cosines = (some @ found.vectors.T).masked_fill_(own[:, None] == found.owner, -math.inf)
        highest = max(highest, float(cosines.max()))
    return highest if highest > -math.inf else None


def check_words(tower: Texts, classes: ClassWords, templates: Sequence[str]) -> None:
    """Refuses words that do not fit into a tower, in the longest of the sentences.

    Raises:
        MaskwrightError: with the word.
    """
    longest = max(templates, key=lambda t: len(tower.tokenizer.encode(t.replace("{}", ""))))
    for name, own in zip(classes.names, classes.words):
        for word in own:
            tower.check(longest.replace("{}", word), name if len(own) == 1 else word)


def embed_words(
    tower: Texts,
    classes: ClassWords,
    templates: Sequence[str],
    *,
    chunk: int = 256,
    track: Callable[[Iterable[Any], str, int], Iterable[Any]] | None = None,
) -> Vocabulary:
    """Embeds the words of all classes.

    Args:
        tower: the text tower.
        classes: their words.
        templates: sentences with {} where the word goes.
        chunk: texts that are embedded together; memory grows with it, results do not change beyond rounding.
        track: shows progress, as `Progress.track`.

    Raises:
        MaskwrightError: a word does not fit into the tower, before any is embedded.
    """
    check_words(tower, classes, templates)
    words = [(c, word) for c, own in enumerate(classes.words) for word in own]
    at_once = max(1, chunk // len(templates))
    starts = range(0, len(words), at_once)
    found = []
    for start in track(starts, "words", len(starts)) if track else starts:
        some = words[start : start + at_once]
        texts = [template.replace("{}", word) for _, word in some for template in templates]
        vectors = torch.cat([tower.encode(texts[i : i + chunk]) for i in range(0, len(texts), chunk)])
        found.append(ensemble(vectors.view(len(some), len(templates), -1), tower.units))
    return Vocabulary(torch.cat(found), torch.tensor([c for c, _ in words]))
