"""Masks from a CLIP by another attention in its last block: SCLIP (Wang, Mei, Yuille, ECCV 2024,
https://arxiv.org/abs/2312.01597), ClearCLIP (Lan et al., ECCV 2024, https://arxiv.org/abs/2407.12442), NACLIP
(Hajimiri, Ben Ayed, Dolz, WACV 2025, https://arxiv.org/abs/2404.08181) and ProxyCLIP (Lan et al., ECCV 2024,
https://arxiv.org/abs/2408.04883), by `variant`. No relation to the CLIPSeg of Lüddecke and Ecker (2022), which is
trained on masks.

    sclip       softmax(q q^T) + softmax(k k^T), residual and MLP kept; rows sum to 2, as published
    clearclip   softmax(q q^T), neither residual nor MLP
    naclip      softmax(k k^T + exp(-|a - b|^2 / 2 std^2)), neither residual nor MLP
    proxyclip   softmax of gamma (S - beta mean S) where that is not negative, S the cosines of a second network's
                features (`--input proxy=BACKBONE`, DINO in the paper, or a saved model); on its grid, neither
                residual nor MLP

Places are compared with class names as in `maskclip`; nothing is trained and no label is read.

Deviates: the whole picture at once, where the authors slide windows of 224 pixels (as `predict --tile` does); positions
resized to the grid, where they resize by a factor of (grid + 0.1) / own grid, other numbers off the training grid; the
probability of a class is over classes, theirs over all words (no winner differs, a background's threshold is over all
words as theirs). Their lists of words for a benchmark's background are replaced by `words.background`. ProxyCLIP's mean
of S is that of one picture, theirs that of the batch; a place that is like none gathers itself, where theirs is NaN.
Its release swaps height and width of CLIP's grid, which only square windows forgive; here they are not swapped.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, NamedTuple

from maskwright.engine.config import Idle, option, part
from maskwright.engine.needs import InputNeed, Terms
from maskwright.models.segmenter import Segmenter
from maskwright.models.towers.beside import ProxyEncoder
from maskwright.models.towers.parts import JointEncoder
from maskwright.recipes.language.method import WordConfig, WordMethod
from maskwright.recipes.language.words import WordOptions, joint_encoder, second_network, word_segmenter


class Variant(NamedTuple):
    """How a paper runs the last block: attention of `surgery.LastBlock`, and whether residual and MLP are kept."""

    attention: str
    rest: bool


VARIANTS = {
    "sclip": Variant("sclip", True),
    "clearclip": Variant("query", False),
    "naclip": Variant("neighbour", False),
    "proxyclip": Variant("value", False),
}


@dataclass(kw_only=True)
class ProxyOptions:
    """What variant=proxyclip makes of a second network's similarities."""

    beta: float = option(1.2, "places less alike than beta times the picture's mean are not gathered", low=0)
    gamma: float = option(3.0, "sharpness of what is gathered", low=0.01)


@dataclass(kw_only=True)
class ClipSegConfig(WordConfig):
    """Options of `clip_seg`."""

    words: WordOptions = part(
        WordOptions, main=("short_side", "prompts"), short_side=336, prompts="imagenet", scale=40.0,
        says={"scale": "cosines times this are logits, 40 as the authors; for confidence and a background's threshold"},
    )  # fmt: skip
    variant: str = option("naclip", "what the last block does", choices=tuple(VARIANTS), main=True)
    std: float = option(5.0, "patches; of the Gaussian of variant=naclip", low=0.1)
    proxy: ProxyOptions = part(ProxyOptions)

    def idle(self) -> Idle:
        """Options of another variant."""
        yield from super().idle()
        others = [name for name, variant in (("std", "naclip"), ("proxy", "proxyclip")) if self.variant != variant]
        yield others, f"variant={self.variant}"


class ClipSeg(WordMethod):
    """A CLIP whose patches look at what is like them."""

    name: ClassVar[str] = "clip_seg"
    title: ClassVar[str] = "SCLIP, ClearCLIP, NACLIP and ProxyCLIP: other attention in CLIP's last block"
    venue: ClassVar[str] = "ECCV 2024, ECCV 2024, WACV 2025, ECCV 2024"
    link: ClassVar[str] = "https://arxiv.org/abs/2312.01597"
    summary: ClassVar[str] = "Compares CLIP's patches, alike ones joined."
    inputs: ClassVar[Mapping[str, InputNeed]] = {
        "proxy": InputNeed(
            says="with variant=proxyclip, the network whose similarities decide what a place gathers, as dino_small16, "
            "or a run",
            kind="network", required=False,
        )
    }  # fmt: skip
    Config: ClassVar[type] = ClipSegConfig
    config: ClipSegConfig

    @classmethod
    def terms(cls, config: Any, images: int = 1) -> Terms:
        """The second network of ProxyCLIP."""
        proxy = {"proxy": replace(cls.inputs["proxy"], required=True)} if config.variant == "proxyclip" else {}
        return replace(super().terms(config, images), inputs=proxy)

    def segmenter(self) -> Segmenter:
        """Tower and words."""
        c, variant = self.config, VARIANTS[self.config.variant]
        encoder: JointEncoder | ProxyEncoder = joint_encoder(self, variant.attention, variant.rest, c.std)
        if c.variant == "proxyclip":
            encoder = ProxyEncoder(encoder, *second_network(self, "proxy"), c.proxy.beta, c.proxy.gamma)
        return word_segmenter(self, self.class_words, c.words, encoder)
