"""GroupViT: Semantic Segmentation Emerges from Text Supervision (Xu et al., CVPR 2022, https://arxiv.org/abs/2202.11094).

A vision transformer with group tokens: each patch goes to one of 64 groups, each of these to one of 8. The mean of the
8 is compared with captions; groups are then compared with class names, and a patch has the class of its group.

    L = L_caption + L_words        InfoNCE with the caption, and with three of its words, each in a sentence
    p(g, c) = softmax over the picture's best 5 classes * softmax over all, of scale * cos(g, c)

Deviates: photometric recipes in place of RandAugment, no random erasing; the words of a caption are those that are no
function words (`data/training/captioned.py`), where the authors ask a tagger for nouns and verbs; the whole picture at
once, where they slide windows of 448 pixels (as `predict --tile` does), so the best five are the picture's; logits are
the scores' logarithms, whose softmax is what confidence and refinements see. With very many classes the groups' maps
are enlarged less than to every pixel (`GroupClassifier`).

What the original gets wrong: its threshold is lowered to the greatest affinity, so that the surest group should never
be background; where that group owns no pixel, all of the picture is (kept here). It guesses the grid from the number of
tokens, which fails for odd shapes. transformers' `segmentation_logits` are another protocol: scale twice, no best five.

Legend: B batch, G groups, C classes, E channels of the joint space.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import torch

from maskwright.data.training.augment import PRESETS as RECIPES
from maskwright.engine import seeding
from maskwright.engine.checkpoint import CHECKPOINT, stage_parts
from maskwright.engine.config import Idle, fill_from_preset, option, part
from maskwright.engine.contract import Stage
from maskwright.engine.needs import Terms
from maskwright.engine.result import assembled
from maskwright.errors import MaskwrightError
from maskwright.methods.language.groupvit.training import ContrastTraining, start_of
from maskwright.models.preprocess import MAX_SIDE, Preprocess
from maskwright.models.segmenter import Segmenter
from maskwright.models.towers.groupvit.files import FILES, MULTI, TOWERS, write_pair
from maskwright.models.towers.groupvit.network import LENGTH
from maskwright.models.towers.groupvit.parts import GroupClassifier, GroupEncoder
from maskwright.models.towers.groupvit.shape import GROUPVIT
from maskwright.models.towers.groupvit.text import GroupText
from maskwright.models.towers.groupvit.tower import GroupTower, build_groupvit
from maskwright.models.towers.prompts import TEMPLATES
from maskwright.models.towers.text import Texts, clip_tokens
from maskwright.models.towers.vocabulary import check_words
from maskwright.ops.losses.captions import scale_of
from maskwright.predict.words import WORDS
from maskwright.recipes.language.method import WordConfig, WordMethod
from maskwright.recipes.language.words import (
    EMBEDDED,
    STAGE,
    VOCABULARY,
    WordOptions,
    embedded_vocabulary,
    word_record,
)

TRAIN = "train"
PAPER: dict[str, Any] = {
    "batch": 4096, "scale_min": 0.08, "recipe": "slotcon_2", "lr": 1.6e-3, "final": 0.025, "warmup": 2 / 30,
    "weight_decay": 0.05, "clip": 5.0, "drop_path": 0.1, "steps": 210_000,
}  # fmt: skip
PRESETS: dict[str, dict[str, Any]] = {
    "small": PAPER | {"batch": 32, "scale_min": 0.4, "recipe": "none", "lr": 0.0, "drop_path": 0.0, "steps": 400},
    "paper": PAPER,
    "zero_shot": PAPER | {"steps": 0},
}
"""By flat names. `small` finishes on two cores with `--backbone groupvit:small`; `paper` is 30 passes over 28.7 million
pairs; `zero_shot` takes a trained GroupViT as it is and needs names alone."""


@dataclass(kw_only=True)
class CropOptions:
    """What a step sees of the photographs."""

    size: int = option(0, "side of the crops, pixels; 0: what the towers were made for", low=0, high=MAX_SIDE)
    batch: int = option(None, "captioned photographs in a step, over all processes (preset)", low=2, main=True)
    scale_min: float = option(None, "least share of a photograph's area that a crop has (preset)", low=0.01, high=1)
    recipe: str = option(None, "photometric recipe of the crops (preset)", choices=tuple(RECIPES))


@dataclass(kw_only=True)
class ContrastOptions:
    """What photographs are compared with beside their captions."""

    words: int = option(3, "words of a caption, each in a sentence of its own; 0: captions alone", low=0, high=16)
    weight: float = option(1.0, "of the loss of words", low=0, high=10)


@dataclass(kw_only=True)
class RateOptions:
    """How weights move: AdamW, a warm-up and a cosine."""

    lr: float = option(None, "greatest rate; 0: 5e-4 from nothing, 5e-5 from trained towers (preset)", low=0, main=True)
    final: float = option(None, "what is left of it at the end, as a share (preset)", low=0, high=1)
    warmup: float = option(None, "share of the steps in which it rises (preset)", low=0, high=0.9)
    weight_decay: float = option(None, "of all but norms, biases, positions and group tokens (preset)", low=0)
    clip: float = option(None, "greatest norm of the gradient; 0: as it is (preset)", low=0)


@dataclass(kw_only=True)
class GroupVitConfig(WordConfig):
    """Options of `groupvit`; those without a value of their own take the preset's, those that are given win."""

    preset: str = option("small", "sets the other options' defaults", choices=tuple(PRESETS), main=True)
    words: WordOptions = part(
        WordOptions, without=("scale",), main=("short_side", "prompts"), short_side=448, prompts="photo",
        background={"threshold": 0.95},
        says={"short_side": "pixels; shorter side of the network's input at prediction"},
    )  # fmt: skip
    top: int = option(5, "classes that one picture may have", low=1, main=True)
    crops: CropOptions = part(CropOptions)
    contrast: ContrastOptions = part(ContrastOptions)
    optimizer: RateOptions = part(RateOptions)
    drop_path: float = option(None, "greatest chance that a block is left out in training (preset)", low=0, high=0.9)
    steps: int = option(
        None, "optimiser steps where --steps does not say; 0: the towers as they are (preset)", low=0, main=True
    )
    precision: str = option(
        "auto", "of training: bf16 where the processor has it, or fp32", choices=("auto", "bf16", "fp32")
    )

    def __post_init__(self) -> None:
        fill_from_preset(self, PRESETS.get(self.preset, {}))

    def idle(self) -> Idle:
        """Options of a training where there is none, and of words that are not compared."""
        yield from super().idle()
        if not self.steps:
            trains = PRESETS.get(self.preset, {}).get("steps")
            why = "steps=0" if trains else f"preset={self.preset}, which trains nothing"
            yield ("crops", "contrast", "optimizer", "drop_path", "precision"), why
        elif not self.contrast.words:
            yield ("contrast.weight",), "contrast.words=0"
        elif not self.contrast.weight:
            yield ("contrast.words",), "contrast.weight=0"


class GroupVit(WordMethod):
    """Groups of patches that captions taught, compared with class names."""

    name: ClassVar[str] = "groupvit"
    title: ClassVar[str] = "GroupViT: Semantic Segmentation Emerges from Text Supervision"
    venue: ClassVar[str] = "CVPR 2022"
    link: ClassVar[str] = "https://arxiv.org/abs/2202.11094"
    summary: ClassVar[str] = "Learns groups of patches from captions."
    needs: ClassVar[frozenset[str]] = frozenset({"captions", "names"})
    backbones: ClassVar[Any] = "groups"
    Config: ClassVar[type] = GroupVitConfig
    config: GroupVitConfig

    @classmethod
    def terms(cls, config: Any, images: int = 1) -> Terms:
        """Names, and captions and steps where something is trained."""
        needs = cls.needs if config.steps else frozenset({"names"})
        return replace(super().terms(config, images), needs=needs, steps=config.steps)

    @property
    def steps(self) -> int:
        """Of the training; 0 where there is none."""
        return int(self.context.steps or self.config.steps) if self.config.steps else 0

    def stages(self) -> list[Stage]:
        """Training and what it made of both towers, where there is one; then the vocabulary."""
        trains = [
            Stage(TRAIN, "train", self.train, "photographs against captions", self.steps),
            Stage(TOWERS, "fit", self.write_towers, "both towers, for other names later"),
        ]
        return [*(trains if self.steps else []), *super().stages()]

    def train(self, folder: Path) -> None:
        """Trains both towers; the artefact is the checkpoint of the last step."""
        names = Texts(clip_tokens(LENGTH), LENGTH)
        check_words(names, self.class_words, TEMPLATES[self.config.words.prompts])  # not hours later
        training = ContrastTraining(self.context, self.config, self.steps)
        self.context.note(f"Learning rate {training.rate:g} for both towers of {self.context.backbone.name}.")
        self.context.fit(training, TRAIN, folder, self.steps)

    def write_towers(self, folder: Path) -> None:
        """Leaves both towers, as training left them, as transformers saves them."""
        left = stage_parts(self.context.run.path / TRAIN / CHECKPOINT)
        tensors = {f"{name}.{k}": v for name in ("image", "text") for k, v in left[f"module.{name}"].items()}
        tensors[MULTI] = left["module.multi"]["log_scale"]
        if self.context.run.writes:
            write_pair(folder, start_of(self.context).shape, tensors)

    @property
    def tower(self) -> GroupTower:
        """What the segmenter stands on: the run's backbone, or what training made of it."""
        return build_groupvit(GROUPVIT, str(self.context.run.path / TOWERS)) if self.steps else start_of(self.context)

    def vocabulary(self, folder: Path) -> None:
        """Embeds the class names; the artefact holds them."""
        context, pair = self.context, self.tower.pair
        if pair is None:
            raise MaskwrightError(
                f"{context.backbone.name} of a saved segmenter, whose text tower is not in it", "both towers",
                "give --backbone groupvit --weights FOLDER",
            )  # fmt: skip
        seeding.initialise(context.seed, STAGE)  # for a text tower whose weights are drawn
        embedded_vocabulary(context, self.class_words, self.config.words, folder, GroupText.of(pair))

    def segmenter(self) -> Segmenter:
        """Image tower and words."""
        c, context, tower = self.config, self.context, self.tower
        t = context.run.tensors(STAGE, VOCABULARY, EMBEDDED)
        place = self.class_words.background if c.words.background.threshold else None
        with torch.no_grad():
            scale = float(scale_of(tower.tower.log_scale))
        classifier = GroupClassifier(
            t["vectors"], t["owner"], len(self.class_words.names), scale, tower.groups, c.top, tower.shape.patch,
            background=place, threshold=c.words.background.threshold if place is not None else 0.0,
        )  # fmt: skip
        preprocess = Preprocess.for_backbone(
            tower.provenance, short_side=c.words.short_side, multiple_of=tower.multiple_of
        )
        made = assembled(self, GroupEncoder(tower), None, classifier, preprocess)
        made.provenance = tower.provenance
        if self.steps:
            began = start_of(context).provenance
            made.provenance = made.provenance.replace(
                source=f"file: {FILES[0]} in {TOWERS} of its run", license=began.license
            )
        made.extra[WORDS] = word_record(tower.name, c.words)
        return made
