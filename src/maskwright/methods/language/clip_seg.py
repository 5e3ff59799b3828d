"""Masks from a CLIP by another attention in its last block: SCLIP (Wang, Mei, Yuille, ECCV 2024,
https://arxiv.org/abs/2312.01597), ClearCLIP (Lan et al., ECCV 2024, https://arxiv.org/abs/2407.12442) and NACLIP
(Hajimiri, Ben Ayed, Dolz, WACV 2025, https://arxiv.org/abs/2404.08181), by `variant`. No relation to the CLIPSeg of
Lüddecke and Ecker (2022), which is trained on masks.

    sclip       softmax(q q^T) + softmax(k k^T), residual and MLP kept; rows sum to 2, as published
    clearclip   softmax(q q^T), neither residual nor MLP
    naclip      softmax(k k^T + exp(-|a - b|^2 / 2 std^2)), neither residual nor MLP

Places are compared with class names as in `maskclip`; nothing is trained and no label is read.

Deviates: the whole picture at once, where the authors slide windows of 224 pixels (as `predict --tile` does); positions
resized to the grid, where they resize by a factor of (grid + 0.1) / own grid, other numbers off the training grid; the
probability of a class is over classes, theirs over all words (no winner differs, a background's threshold is over all
words as theirs). Their lists of words for a benchmark's background are replaced by `words.background`. No ProxyCLIP.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, NamedTuple

from maskwright.engine.config import option, part
from maskwright.models.segmenter import Segmenter
from maskwright.recipes.language.method import WordConfig, WordMethod
from maskwright.recipes.language.words import WordOptions, word_segmenter


class Variant(NamedTuple):
    """How a paper runs the last block: attention of `surgery.LastBlock`, and whether residual and MLP are kept."""

    attention: str
    rest: bool


VARIANTS = {
    "sclip": Variant("sclip", True),
    "clearclip": Variant("query", False),
    "naclip": Variant("neighbour", False),
}


@dataclass(kw_only=True)
class ClipSegConfig(WordConfig):
    """Options of `clip_seg`."""

    words: WordOptions = part(
        WordOptions, main=("short_side", "prompts"), short_side=336, prompts="imagenet", scale=40.0,
        says={"scale": "cosines times this are logits, 40 as the authors; for confidence and a background's threshold"},
    )  # fmt: skip
    variant: str = option("naclip", "what the last block does", choices=tuple(VARIANTS), main=True)
    std: float = option(5.0, "patches; of the Gaussian of variant=naclip", low=0.1)


class ClipSeg(WordMethod):
    """A CLIP whose patches look at what is like them."""

    name: ClassVar[str] = "clip_seg"
    title: ClassVar[str] = "SCLIP, ClearCLIP and NACLIP: other attention in CLIP's last block"
    venue: ClassVar[str] = "ECCV 2024, ECCV 2024, WACV 2025"
    link: ClassVar[str] = "https://arxiv.org/abs/2312.01597"
    summary: ClassVar[str] = "Compares CLIP's patches, alike ones joined."
    Config: ClassVar[type] = ClipSegConfig
    config: ClipSegConfig

    def segmenter(self) -> Segmenter:
        """Tower and words."""
        c, variant = self.config, VARIANTS[self.config.variant]
        return word_segmenter(
            self, self.class_words, c.words, attention=variant.attention, rest=variant.rest, std=c.std
        )
