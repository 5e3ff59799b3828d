"""Other classes for a model whose classes are words: the same image tower, new names through its text tower."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from maskwright.data.masking.classes import ClassTable
from maskwright.data.trust.artefacts import misfit
from maskwright.errors import MaskwrightError
from maskwright.models.segmenter import Segmenter
from maskwright.models.towers.beside import ProxyEncoder
from maskwright.models.towers.groupvit.files import find_group_pair
from maskwright.models.towers.groupvit.parts import GroupEncoder
from maskwright.models.towers.groupvit.text import GroupText
from maskwright.models.towers.names import class_words, one_for_all
from maskwright.models.towers.other_text import text_tower
from maskwright.models.towers.pairs import find_pair
from maskwright.models.towers.parts import JointEncoder, VocabularyClassifier
from maskwright.models.towers.prompts import TEMPLATES
from maskwright.models.towers.text import Texts
from maskwright.models.towers.vocabulary import embed_words

WORDS = "words"
"""Where a model's `extra` says how its names became vectors."""
_SHAPE = {"tower": str, "prompts": str, "singular": bool, "background": [str], "threshold": float, "chunk": int}


def reworded(
    segmenter: Segmenter,
    names: Sequence[str],
    weights: str | None = None,
    track: Callable[[Iterable[Any], str, int], Iterable[Any]] | None = None,
) -> tuple[Segmenter, tuple[str, ...]]:
    """A segmenter of other classes; it shares its image tower with the one given.

    Args:
        segmenter: one whose classes are words.
        names: of the new classes, as for a training.
        weights: file or folder of the two towers; None: the hub's (or its local cache's).
        track: shows progress, as `Progress.track`.

    Returns:
        The segmenter, and sentences on what was changed of the names or taken for what.

    Raises:
        MaskwrightError: its classes are no words, the towers cannot be had or are others, or names that will not do.
    """
    encoder, before = segmenter.encoder, segmenter.classifier
    said = segmenter.extra.get(WORDS)
    if (
        not isinstance(encoder, JointEncoder | ProxyEncoder | GroupEncoder)
        or not isinstance(before, VocabularyClassifier)
        or said is None
    ):
        raise MaskwrightError(
            f"--names and a model of {segmenter.method or 'unknown make'}, whose classes are fixed",
            "a model whose classes are words",
            "train one: --method maskclip --names LIST_OR_FILE",
        )
    options = _checked(said)
    if weights is None and not segmenter.provenance.source.startswith("hub:"):
        raise MaskwrightError(
            f"--names, and the towers of this model came from {segmenter.provenance.source}",
            "the text tower that its image tower was trained with",
            "give --weights FILE, or the FOLDER, that it was trained on",
        )
    threshold = options["threshold"]
    classes = class_words(
        names, singular=options["singular"], background=options["background"], threshold=threshold
    )  # fmt: skip
    text, sha256 = _text_tower(encoder, options["tower"], weights)
    if sha256 != segmenter.provenance.sha256 or not sha256:
        raise MaskwrightError(
            f"{weights or options['tower']} is not the file that this model's image tower came from",
            f"the one whose sha256 begins with {segmenter.provenance.sha256[:12]}" if segmenter.provenance.sha256
            else "a model that was not made with random weights",
            "give --weights FILE, or the FOLDER, that it was trained on",
        )  # fmt: skip
    found = embed_words(
        text(), classes, TEMPLATES[options["prompts"]], chunk=options["chunk"], track=track
    )  # fmt: skip
    by_threshold = classes.background is not None and threshold > 0
    classifier = before.like(
        found.vectors, found.owner, len(classes.names),
        background=classes.background if by_threshold else None, threshold=threshold if by_threshold else 0.0,
    )  # fmt: skip
    made = Segmenter(
        encoder, segmenter.decoder, classifier, ClassTable(classes.names), segmenter.preprocess,
        segmenter.provenance, segmenter.method, segmenter.notes,
    ).eval()  # fmt: skip
    made.extra = dict(segmenter.extra)
    return made, tuple(filter(None, (*classes.said, one_for_all(classes))))


def _text_tower(
    encoder: JointEncoder | ProxyEncoder | GroupEncoder, name: str, weights: str | None
) -> tuple[Callable[[], Texts], str]:
    """What makes the text tower of a model's image tower, and the hash of the file that both come from."""
    if isinstance(encoder, GroupEncoder):
        groups = find_group_pair(name, weights)
        return lambda: GroupText.of(groups), "" if groups.file is None else groups.file.sha256
    pair = find_pair(name, weights)
    return lambda: text_tower(pair), "" if pair.file is None else pair.file.sha256


def _checked(said: Any) -> Mapping[str, Any]:
    wrong = misfit(said, _SHAPE, WORDS)
    if wrong or said["prompts"] not in TEMPLATES or not 0 <= said["threshold"] < 1 or said["chunk"] < 1:
        raise MaskwrightError(
            f"the model's file says of its words that {wrong or str(said)[:80]}", "what a training wrote",
            "train it again",
        )  # fmt: skip
    found: Mapping[str, Any] = said
    return found
