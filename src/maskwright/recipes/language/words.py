"""Class names as the classes of a run: their words, their vectors, and the segmenter that compares places with them.

Legend: P words, E channels of the joint space.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from maskwright.engine import seeding
from maskwright.engine.config import option, part
from maskwright.engine.result import assembled
from maskwright.errors import MaskwrightError
from maskwright.models.backbones.dense import Backbone
from maskwright.models.parts.encoder import BackboneEncoder
from maskwright.models.parts.heads import Sequential
from maskwright.models.parts.part import Part
from maskwright.models.preprocess import MAX_SIDE, Preprocess
from maskwright.models.provenance import Provenance
from maskwright.models.segmenter import Segmenter
from maskwright.models.tensors import save_tensors
from maskwright.models.towers.beside import ProxyEncoder
from maskwright.models.towers.image import ClipResNet, ClipTower, ClipViT
from maskwright.models.towers.names import BACKGROUND_WORDS, ClassWords, class_words, one_for_all
from maskwright.models.towers.other_text import text_tower
from maskwright.models.towers.parts import JointEncoder, VocabularyClassifier
from maskwright.models.towers.prompts import TEMPLATES
from maskwright.models.towers.text import Texts
from maskwright.models.towers.vocabulary import Vocabulary, embed_words, most_alike
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
class LastBlockOptions:
    """How the last block of a vision transformer is run."""

    rest: bool = option(True, "keep its residual connection and MLP, as the authors do; a ResNet has none", main=True)


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


def words_of(names: Sequence[str], options: WordOptions) -> ClassWords:
    """Class names as words; raises as `class_words`."""
    background = options.background
    return class_words(
        names, singular=options.singular, background=background.words, threshold=background.threshold
    )  # fmt: skip


def read_classes(context: Context, options: WordOptions) -> ClassWords:
    """The run's class names as words; what is changed of them is said.

    Raises:
        MaskwrightError: as `class_words`.
    """
    found = words_of(context.table.names, options)
    for sentence in filter(None, (*found.said, one_for_all(found))):
        context.note(sentence)
    return found


def embed_classes(context: Context, classes: ClassWords, options: WordOptions, text: Texts | None = None) -> Vocabulary:
    """Embeds the words of all classes, on the CPU.

    Args:
        context: of the run.
        classes: their words.
        options: sentences, and how many at once.
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
        seeding.initialise(context.seed, STAGE)  # for a text tower whose weights are drawn
        text = text_tower(pair)
    return embed_words(text, classes, TEMPLATES[options.prompts], chunk=options.chunk, track=context.progress.track)


def embedded_vocabulary(
    context: Context, classes: ClassWords, options: WordOptions, folder: Path, text: Texts | None = None
) -> None:
    """Embeds the words of all classes and leaves them in the stage's folder; raises as `embed_classes`."""
    found = embed_classes(context, classes, options, text)
    if context.run.writes:
        save_tensors(folder / VOCABULARY, {"vectors": found.vectors, "owner": found.owner})
    if (alike := most_alike(found)) is not None:
        context.run.log(STAGE, 0, {"most_alike_words": alike})


def joint_encoder(method: Method, attention: str, rest: bool, std: float = 5.0, *, keys: bool = False) -> JointEncoder:
    """The run's tower with another last block.

    Args:
        method: whose run it is.
        attention, rest, std: as for `LastBlock`.
        keys: it gives the keys too.

    Raises:
        MaskwrightError: the network is a ResNet and another attention than "value" is asked for.
    """
    tower = tower_of(method.context)
    if isinstance(tower, ClipResNet) and attention != "value":
        raise MaskwrightError(
            f"{method.name} on {tower.name}, a ResNet without a last block", "a vision transformer",
            "give --backbone clip:ViT-B-16, or take the method maskclip",
        )  # fmt: skip
    return JointEncoder(tower, attention, rest, std, keys=keys)


class Beside(NamedTuple):
    """A second network beside the tower: the encoder, and from the tower's normalised channels to its own."""

    other: Part
    factor: list[float]
    offset: list[float]


def second_network(method: Method, name: str) -> Beside:
    """A network that is an input of the run, a backbone or a saved model's embedding, to stand beside the tower.

    Args:
        method: whose run it is.
        name: of the input.
    """
    thing = method.context.input(name)
    assert isinstance(thing, Backbone | Segmenter), "an input of kind network"
    if isinstance(thing, Backbone):
        other: Part = BackboneEncoder(thing)
        seen: Provenance | Preprocess = thing.provenance
    else:
        other, seen = Sequential(thing.encoder, thing.decoder), thing.preprocess
    own = tower_of(method.context).provenance
    factor = [a / b for a, b in zip(own.std, seen.std)]
    return Beside(other, factor, [(a - c) / b for a, b, c in zip(own.mean, seen.std, seen.mean)])


def word_segmenter(
    method: Method,
    classes: ClassWords,
    options: WordOptions,
    encoder: JointEncoder | ProxyEncoder,
    *,
    denoise: float = 0.0,
    smooth: float = 0.0,
) -> Segmenter:
    """An encoder into the space of words, and the words that the stage left.

    Args:
        method: whose run it is.
        classes: their words.
        options: scale, background and input size.
        encoder: on the run's tower; with keys where `smooth` is above 0.
        denoise, smooth: thresholds of MaskCLIP's refinements, 0 for none.
    """
    context = method.context
    tower = tower_of(context)
    t = context.run.tensors(STAGE, VOCABULARY, EMBEDDED)
    threshold = options.background.threshold if classes.background is not None else 0.0
    classifier = VocabularyClassifier(
        t["vectors"], t["owner"], len(classes.names), options.scale, denoise, smooth,
        background=classes.background if threshold else None, threshold=threshold,
    )  # fmt: skip
    preprocess = Preprocess.for_backbone(
        tower.provenance, short_side=options.short_side, multiple_of=encoder.multiple_of
    )
    made = assembled(method, encoder, None, classifier, preprocess)
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
    """The run's backbone, which `check_backbone` made sure is a tower."""
    assert isinstance(context.backbone, ClipViT | ClipResNet)
    return context.backbone
