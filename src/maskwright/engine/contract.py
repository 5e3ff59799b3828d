"""What a method is to the rest of the program: a name, the labels it needs, a configuration, stages, and a segmenter.

The loop, the command line and the contract tests know methods only by what stands here.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from maskwright.engine.needs import ClassesFrom, InputNeed, StreamNeed, Terms, check_backbone
from maskwright.models.parts.table import check_parts_of
from maskwright.models.segmenter import Segmenter

if TYPE_CHECKING:
    from maskwright.data.masking.classes import ClassTable
    from maskwright.engine.context import Context


@dataclass(frozen=True)
class Stage:
    """One step of a method's pipeline, with an artefact of its own.

    Attributes:
        name: the name of its folder in the run folder.
        kind: `train` (gradients, through the loop), `fit` (without gradients) or `label` (writes masks).
        run: does the work. It gets the stage's folder, writes its artefacts there and keeps nothing that a later
            stage needs anywhere else, so that a run can be resumed behind it.
        says: one sentence for the progress line and the report.
        steps: optimiser steps of a stage that trains.
    """

    name: str
    kind: Literal["train", "fit", "label"]
    run: Callable[[Path], None]
    says: str
    steps: int = 0


class Method(ABC):
    """A paper, as the program runs it.

    Attributes:
        name: the name on the command line.
        title: the paper's title.
        venue: where and when it appeared.
        link: the paper's address.
        summary: one plain sentence of what it does, at most 43 characters, so that a table of methods fits 80 columns.
        family: `unsupervised`, `semi`, `weak`, `adapt`, `language` or `supervised`.
        needs, streams, inputs, classes_from: its `Terms` as far as no option changes them.
        backbones: `any`, `vit` where only a vision transformer will do, `joint` where only an image tower that has
            a text tower will, or `groups` where only a GroupViT will; the automatic choice respects it.
        Config: its keyword-only dataclass of options.
    """

    name: ClassVar[str]
    title: ClassVar[str]
    venue: ClassVar[str]
    link: ClassVar[str]
    summary: ClassVar[str]
    family: ClassVar[str]
    needs: ClassVar[frozenset[str]] = frozenset()
    streams: ClassVar[Mapping[str, StreamNeed]] = {}
    inputs: ClassVar[Mapping[str, InputNeed]] = {}
    classes_from: ClassVar[ClassesFrom] = "labels"
    backbones: ClassVar[Literal["any", "vit", "joint", "groups"]] = "any"
    Config: ClassVar[type]

    def __init__(self, config: Any, context: Context) -> None:
        check_backbone(type(self), context.backbone)
        check_parts_of(type(self))
        self.config = config
        self.context = context

    @classmethod  # noqa: B027
    def check_classes(cls, config: Any, names: Sequence[str]) -> None:
        """Refuses class names that the method can do nothing with, before the run's folder is made.

        Raises:
            MaskwrightError: with the name; here none is refused.
        """

    @classmethod
    def terms(cls, config: Any, images: int = 1) -> Terms:
        """What a run with these options needs and is: what the class says, unless an option changes it, and its steps.

        Args:
            config: the options.
            images: of the run.
        """
        return Terms(needs=cls.needs, streams=cls.streams, inputs=cls.inputs, classes_from=cls.classes_from)

    def tail(self) -> float:
        """What comes behind the last training, as so many of its steps: about what whole photographs cost that are then
        passed through the network."""
        return 0.0

    def seconds_behind(self) -> float:
        """What comes behind the last training besides, seconds, by trying a part of it on this machine: what no step
        says, as a clustering. Asked once where `--minutes` chooses the steps; it changes nothing of the run."""
        return 0.0

    @abstractmethod
    def stages(self) -> list[Stage]:
        """The stages in order; each is skipped in a resumed run where its folder says that it is done."""

    @property
    def refinement(self) -> str:
        """How predictions are refined where the user does not say: `none`, `crf` or `guided`."""
        return "none"

    @property
    def table(self) -> ClassTable:
        """What the segmenter tells apart: the run's classes or clusters; a method that adds one of its own says so."""
        return self.context.table

    @abstractmethod
    def segmenter(self) -> Segmenter:
        """The trained segmenter, built from the stages' artefacts alone."""
