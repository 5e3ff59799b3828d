"""What a method is to the rest of the program: a name, the labels it needs, a configuration, stages, and a segmenter.

The loop, the command line and the contract tests know methods only by what stands here.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from maskwright.errors import MaskwrightError
from maskwright.models.parts.table import check_parts_of
from maskwright.models.segmenter import Segmenter

if TYPE_CHECKING:
    from maskwright.data.masking.classes import ClassTable
    from maskwright.engine.context import Context
    from maskwright.models.backbones.dense import Backbone
    from maskwright.models.parts.part import Part
    from maskwright.models.preprocess import Preprocess

StageKind = Literal["train", "fit", "label"]


@dataclass(frozen=True)
class Stage:
    """One step of a method's pipeline, with an artefact of its own.

    Attributes:
        name: the name of its folder in the run folder.
        kind: `train` (gradients, through the loop), `fit` (without gradients) or `label` (writes masks).
        run: does the work. It gets the stage's folder, writes its artefacts there and keeps nothing that a later
            stage needs anywhere else, so that a run can be resumed behind it.
        says: one sentence for the progress line and the report.
    """

    name: str
    kind: StageKind
    run: Callable[[Path], None]
    says: str


class Method(ABC):
    """A paper, as the program runs it.

    Attributes:
        name: the name on the command line.
        title: the paper's title.
        venue: where and when it appeared.
        link: the paper's address.
        family: `unsupervised`, `semi`, `weak`, `adapt`, `language` or `supervised`.
        needs: labels without which it cannot run, out of `masks`, `tags`, `captions`, `names`, `source`.
        backbones: `any`, or `vit` where only a vision transformer will do; the automatic choice respects it.
        Config: its keyword-only dataclass of options.
    """

    name: ClassVar[str]
    title: ClassVar[str]
    venue: ClassVar[str]
    link: ClassVar[str]
    family: ClassVar[str]
    needs: ClassVar[frozenset[str]] = frozenset()
    backbones: ClassVar[Literal["any", "vit"]] = "any"
    Config: ClassVar[type]

    def __init__(self, config: Any, context: Context) -> None:
        self.check_backbone(context.backbone)
        check_parts_of(type(self))
        self.config = config
        self.context = context

    @classmethod
    def check_backbone(cls, backbone: Backbone) -> None:
        """Refuses a backbone that the method cannot stand on.

        Raises:
            MaskwrightError: a convolutional network where only a vision transformer will do.
        """
        if cls.backbones == "vit" and not backbone.is_vit:
            raise MaskwrightError(
                f"{cls.name} on the convolutional backbone {backbone.name}",
                "a vision transformer",
                "give --backbone dinov2_small or dino_small16, or leave it out",
            )

    @abstractmethod
    def stages(self) -> list[Stage]:
        """The stages in order; each is skipped in a resumed run where its folder says that it is done."""

    @property
    def refinement(self) -> str:
        """How predictions are refined where the user does not say: `none`, `crf` or `guided`."""
        return "crf" if getattr(self.config, "crf", False) else "none"

    @property
    def table(self) -> ClassTable:
        """What the segmenter tells apart: the run's classes or clusters; a method that adds one of its own says so."""
        return self.context.table

    def assembled(self, encoder: Part, decoder: Part | None, classifier: Part, preprocess: Preprocess) -> Segmenter:
        """A segmenter of the method on the run's backbone, in evaluation mode.

        Args:
            encoder: images to features.
            decoder: features to an embedding; None: they are it.
            classifier: embedding to logits, one for each class of `table`.
            preprocess: from photograph to input.
        """
        provenance = self.context.backbone.provenance
        return Segmenter(encoder, decoder, classifier, self.table, preprocess, provenance, self.name).eval()

    @abstractmethod
    def segmenter(self) -> Segmenter:
        """The trained segmenter, built from the stages' artefacts alone."""
