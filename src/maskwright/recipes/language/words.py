"""Class names as the classes of a run: their words, their vectors, and the segmenter that compares places with them.

Legend: P words, E channels of the joint space.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from maskwright.engine.config import option, part
from maskwright.errors import MaskwrightError
from maskwright.models.preprocess import MAX_SIDE, Preprocess
from maskwright.models.segmenter import Segmenter
from maskwright.models.tensors import save_tensors
from maskwright.models.towers.image import ClipResNet, ClipTower, ClipViT
from maskwright.models.towers.names import BACKGROUND_WORDS, ClassWords, class_words
from maskwright.models.towers.parts import JointEncoder, VocabularyClassifier
from maskwright.models.towers.prompts import TEMPLATES
from maskwright.models.towers.text import Texts, TextTower
from maskwright.models.towers.vocabulary import embed_words
from maskwright.predict.words import WORDS

if TYPE_CHECKING:
    from maskwright.engine.context import Context
    from maskwright.engine.contract import Method

VOCABULARY = "vocabulary.safetensors"
EMBEDDED: dict[str, str | tuple[str, str]] = {"vectors": "PE", "owner": ("i", "P")}
STAGE = "vocabulary"


@dataclass(kw_only=True)
class BackgroundOptions:
    """What a class that is called background is."""

    words: tuple[str, ...] = option(BACKGROUND_WORDS, "what counts as background; words that are classes are left out")
    threshold: float = option(
        0.0, "in place of words: background is where no class has this probability; 0 for words", low=0.0, high=0.99
    )


@dataclass(kw_only=True)
class WordOptions:
    """From class names to predictions."""

    short_side: int = option(512, "pixels; shorter side of the network's input", low=16, high=MAX_SIDE)
    prompts: str = option("all", "sentences around a name, averaged: all 85, ImageNet's 80, five of scenes, one, none, "
                          "CLIP-ES' one",
                          choices=tuple(TEMPLATES))  # fmt: skip
    singular: bool = option(True, "make plurals singular, as the sentences want")
    background: BackgroundOptions = part(BackgroundOptions)
    scale: float = option(
        100.0, "cosines times this are logits, CLIP's own factor; for confidence and refinements", low=1e-3
    )
    chunk: int = option(256, "texts through the text tower at once; memory grows with it", low=1)


def read_classes(context: Context, options: WordOptions) -> ClassWords:
    """The run's class names as words; what is changed of them is said.

    Raises:
        MaskwrightError: as `class_words`.
    """
    found = class_words(
        context.table.names, singular=options.singular, background=options.background.words,
        threshold=options.background.threshold,
    )  # fmt: skip
    for sentence in found.said:
        context.note(sentence)
    return found


def embedded_vocabulary(
    context: Context, classes: ClassWords, options: WordOptions, folder: Path, text: Texts | None = None
) -> None:
    """Embeds the words of all classes, on the CPU, and leaves them in the stage's folder.

    Args:
        context: of the run.
        classes: their words.
        options: sentences, and how many at once.
        folder: of the stage.
        text: what embeds them; None: the text tower of the run's CLIP.

    Raises:
        MaskwrightError: no text tower can be had, or a name does not fit into it.
    """
    if text is None:
        pair = tower_of(context).pair
        if pair is None:
            raise MaskwrightError(
                f"the backbone {context.backbone.name} comes without a text tower", "both towers",
                "give --backbone clip:NAME, with --weights FILE where no hub can be reached",
            )  # fmt: skip
        context.initialise(STAGE)  # for a text tower whose weights are drawn
        text = TextTower(pair)
    found = embed_words(text, classes, TEMPLATES[options.prompts], chunk=options.chunk, track=context.progress.track)
    if context.run.writes:
        save_tensors(folder / VOCABULARY, {"vectors": found.vectors, "owner": found.owner})
    alike = (found.vectors @ found.vectors.T).masked_fill(found.owner[:, None] == found.owner[None], -1)
    if alike.numel() > 1 and float(alike.max()) > -1:
        context.run.log(STAGE, 0, {"most_alike_words": float(alike.max())})


def word_segmenter(
    method: Method,
    classes: ClassWords,
    options: WordOptions,
    *,
    attention: str,
    rest: bool,
    std: float = 5.0,
    denoise: float = 0.0,
    smooth: float = 0.0,
) -> Segmenter:
    """The run's tower with another last block, and the words that the stage left.

    Args:
        method: whose run it is.
        classes: their words.
        options: scale, background and input size.
        attention, rest, std: as for `LastBlock`.
        denoise, smooth: thresholds of MaskCLIP's refinements, 0 for none.

    Raises:
        MaskwrightError: the network is a ResNet and another attention than "value" is asked for.
    """
    context = method.context
    tower = tower_of(context)
    if isinstance(tower, ClipResNet) and attention != "value":
        raise MaskwrightError(
            f"{method.name} on {tower.name}, a ResNet without a last block", "a vision transformer",
            "give --backbone clip:ViT-B-16, or take the method maskclip",
        )  # fmt: skip
    encoder = JointEncoder(tower, attention, rest, std, keys=smooth > 0)
    t = context.run.tensors(STAGE, VOCABULARY, EMBEDDED)
    threshold = options.background.threshold if classes.background is not None else 0.0
    classifier = VocabularyClassifier(
        t["vectors"], t["owner"], len(classes.names), options.scale, denoise, smooth,
        background=classes.background if threshold else None, threshold=threshold,
    )  # fmt: skip
    preprocess = Preprocess.for_backbone(
        tower.provenance, short_side=options.short_side, multiple_of=encoder.multiple_of
    )
    made = method.assembled(encoder, None, classifier, preprocess)
    made.extra[WORDS] = word_record(tower.name, options)
    return made


def word_record(tower: str, options: WordOptions) -> dict[str, Any]:
    """How names became vectors, as a model keeps it for other names at prediction.

    Args:
        tower: name of the backbone.
        options: of the words.
    """
    return {
        "tower": tower, "prompts": options.prompts, "singular": options.singular,
        "background": list(options.background.words), "threshold": float(options.background.threshold),
        "chunk": options.chunk,
    }  # fmt: skip


def tower_of(context: Context) -> ClipTower:
    """The run's backbone, which `Method.check_backbone` made sure is a tower."""
    assert isinstance(context.backbone, ClipViT | ClipResNet)
    return context.backbone
