"""What methods share whose classes are words: their options, the stage that embeds the words, their table."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

from maskwright.data.masking.classes import ClassTable
from maskwright.engine.config import Idle, option, part
from maskwright.engine.contract import Method, Stage
from maskwright.models.towers.names import ClassWords
from maskwright.recipes.language.words import STAGE, WordOptions, embedded_vocabulary, read_classes, words_of


@dataclass(kw_only=True)
class WordConfig:
    """Options of all methods that compare places with words."""

    words: WordOptions = part(WordOptions, main=("short_side", "prompts"))
    crf: bool = option(False, "the dense CRF after prediction unless --refine says otherwise")

    def idle(self) -> Idle:
        """Words of a background that is a threshold."""
        if self.words.background.threshold > 0:
            why = f"words.background.threshold={self.words.background.threshold:g}"
            yield ("words.background.words",), why


class WordMethod(Method):
    """An image tower whose places are compared with class names."""

    family: ClassVar[str] = "language"
    needs: ClassVar[frozenset[str]] = frozenset({"names"})
    backbones: ClassVar[Any] = "joint"
    Config: ClassVar[type] = WordConfig
    config: Any

    @classmethod
    def check_classes(cls, config: Any, names: Sequence[str]) -> None:
        """Refuses names that are no words; raises as `class_words`."""
        words_of(names, config.words)

    @cached_property
    def class_words(self) -> ClassWords:
        """The run's class names as words."""
        return read_classes(self.context, self.config.words)

    @property
    def table(self) -> ClassTable:
        """The run's classes, each called by the first of its words."""
        return ClassTable(self.class_words.names, self.context.table.colors)

    @property
    def refinement(self) -> str:
        """The dense CRF, where that is asked for."""
        return "crf" if self.config.crf else "none"

    def stages(self) -> list[Stage]:
        """The vocabulary; methods add stages of their own."""
        return [Stage(STAGE, "fit", self.vocabulary, "class names through the text tower")]

    def vocabulary(self, folder: Path) -> None:
        """Embeds the class names; the artefact holds them."""
        embedded_vocabulary(self.context, self.class_words, self.config.words, folder)
