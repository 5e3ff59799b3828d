"""A stream of photographs with a sentence and some of its words each.

Legend: B photographs, S crop side, K words of a caption, L tokens.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from maskwright.data.folders.folder import Dataset
from maskwright.data.training.crops import random_resized_crop
from maskwright.data.training.sources import read_view
from maskwright.data.training.streams import Change, Order
from maskwright.ops.transfer import to_device

_FUNCTION = (
    "a about above across after again against all almost along also although always am among an and another any are "
    "around as at away back be because been before behind being below beneath beside besides between beyond both "
    "but by can could did do does down during each either else enough etc even ever every few for from further had "
    "has have he her here hers him his how however i if in inside into is it its itself just less lots many may me "
    "might mine more most much my near nearby neither next no none nor not nothing now of off often on once one "
    "ones only onto or other others our out outside over own past per perhaps quite rather same several shall she "
    "should since so some someone something still such than that the their them themselves then there these they "
    "thing things this those though through throughout to together too toward towards two three four five six seven "
    "eight nine ten under until up upon us very via was we were what when where whether which while who whom whose "
    "why will with within without would yet you your "
)
FUNCTION_WORDS = frozenset(_FUNCTION.split())
"""English words that name nothing to be seen."""
_WORD = re.compile(r"[^\W\d_]+(?:['’-][^\W\d_]+)*")


def content_words(caption: str) -> list[str]:
    """The words of a sentence that may name something to be seen, in lower case and in order, each as often as it
    stands there: letters alone, at least two, no function word of English."""
    words = (w.casefold() for w in _WORD.findall(caption))
    return [w for w in words if len(w) > 1 and w.removesuffix("'s") not in FUNCTION_WORDS]


class Captioned(NamedTuple):
    """What the stream draws for a step.

    Attributes:
        pixels: the crops (B, 3, S, S): uint8 as drawn, the network's input once they are on the device.
        tokens: int64 (B, 1 + K, L): the caption, then sentences of its words.
        images: their indices in the data set.
    """

    pixels: Tensor
    tokens: Tensor
    images: tuple[int, ...]

    def as_input(self, normalise: Callable[[Tensor], Tensor], device: torch.device) -> Captioned:
        """The same on a device, pixels as a network takes them."""
        return self._replace(pixels=normalise(self.pixels), tokens=to_device(self.tokens, device))


class CaptionStream:
    """Photographs with captions.

    Args:
        data: the data set.
        indices: its photographs that have captions.
        order: which of them come next.
        side: S, pixels.
        least: least share of a photograph's area that a crop has.
        encode: sentences to token ids int64 (N, L).
        templates: sentences with {} where a word goes.
        words: K; a caption of fewer words stands in for those that it lacks.
        change: photometric recipe of the crops; None: they stay as they are.
    """

    def __init__(
        self,
        data: Dataset,
        indices: Sequence[int],
        order: Order,
        side: int,
        least: float,
        encode: Callable[[list[str]], Tensor],
        templates: Sequence[str],
        words: int,
        change: Change | None = None,
    ) -> None:
        self.data, self.indices, self.order = data, np.asarray(indices, np.int64), order
        self.side, self.least, self.change = side, least, change
        self.encode, self.templates, self.words = encode, tuple(templates), words

    def next(self) -> np.ndarray:
        """Indices in the data set of this process's share of the next batch, int64 (B,)."""
        return self.indices[self.order.next()]

    def pixels(self, i: int, random: torch.Generator) -> Tensor:
        """A resized crop, mirrored half of the time, uint8 (3, S, S)."""
        size = (self.side, self.side)
        view = random_resized_crop(self.data.size(i), size, scale=(self.least, 1.0), generator=random)
        x = torch.from_numpy(read_view(self.data, i, view)).permute(2, 0, 1)
        return x if self.change is None else self.change(x, random)

    def sentences(self, i: int, random: torch.Generator) -> list[str]:
        """One of the captions at random, then K sentences of its words, drawn without replacement."""
        captions = self.data.captions(i)
        caption = captions[_draw(len(captions), random)]
        found = content_words(caption)
        chosen = [found[k] for k in torch.randperm(len(found), generator=random)[: self.words].tolist()]
        made = [self.templates[_draw(len(self.templates), random)].replace("{}", word) for word in chosen]
        return [caption, *made, *[caption] * (self.words - len(made))]

    def draw(self, images: Sequence[int] | np.ndarray, random: torch.Generator) -> Captioned:
        """Crops and texts of images; all randomness comes from `random`."""
        images = tuple(int(i) for i in images)
        pixels = torch.stack([self.pixels(i, random) for i in images])
        texts = [text for i in images for text in self.sentences(i, random)]
        return Captioned(pixels, self.encode(texts).unflatten(0, (len(images), -1)), images)


def _draw(n: int, random: torch.Generator) -> int:
    return int(torch.randint(n, (), generator=random))
