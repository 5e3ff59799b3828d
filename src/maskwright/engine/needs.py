"""What a run needs and takes beside its own data: data sets, second networks, proposals, a kind of backbone; and all
other terms on which it can be."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from maskwright.errors import MaskwrightError

if TYPE_CHECKING:
    from maskwright.engine.contract import Method
    from maskwright.models.backbones.dense import Backbone


@dataclass(frozen=True, kw_only=True)
class StreamNeed:
    """What a method takes of one named data set beside the run's own.

    Attributes:
        says: what it is for, in a few words.
        labels: the kinds of labels that it reads there and that each image must have, out of `masks`, `tags`,
            `captions`; all others are hidden from it.
        required: whether it cannot run without.
    """

    says: str
    labels: frozenset[str] = frozenset()
    required: bool = True


LABELLED_SOURCE = StreamNeed(says="a fully labelled folder of another domain", labels=frozenset({"masks"}))
"""What the data set called `source` is, where a method says no more than that it needs it."""


@dataclass(frozen=True, kw_only=True)
class InputNeed:
    """What a method takes that another training made.

    Attributes:
        says: what it is for, in a few words.
        kind: `network`: a saved model, a run, or the name of a backbone with weights; `proposals`: a folder of masks,
            regions or maps named as the images, or a run with a stage that made one.
        required: whether the method cannot run without.
        networks: of proposals, whether a network that makes them will do too: a model, a run that has one and no
            proposals, or an ONNX file.
    """

    says: str
    kind: Literal["network", "proposals"]
    required: bool = True
    networks: bool = False


ClassesFrom = Literal["labels", "clusters", "objects"]


@dataclass(frozen=True, kw_only=True)
class Terms:
    """On what terms a run with given options can be: what the program asks a method before it begins.

    Attributes:
        needs: the labels without which it cannot be, out of `masks`, `tags`, `captions`, `names`, `source`.
        streams: the named data sets that it takes beside its own, required or not.
        inputs: the second networks and the proposals that it takes, by name, required or not.
        classes_from: `labels` where its classes are those of the labels, which have names; `clusters` where it finds
            them itself; `objects` where it tells objects from background, whatever classes the labels have.
        peeks: whether it reads masks of its own data that it does not need, to learn from them or to choose what it
            keeps.
        judges: whether it writes figures against masks beside its model.
        steps: of its main training where `--steps` does not say; 0 where nothing is trained with gradients.
        fixed: why it cannot be lengthened though it trains; empty where its steps are all of one training, which goes
            on from its last one.
        untimed: what later steps of its training do that the first do not, for `--minutes` and the forecast, which time
            these; empty where all do the same.
        backbone: the one that the options name; empty where they name none.
        backbone_unused: why the backbone's weights are left aside; empty where they are not.
    """

    needs: frozenset[str] = frozenset()
    streams: Mapping[str, StreamNeed] = field(default_factory=dict)
    inputs: Mapping[str, InputNeed] = field(default_factory=dict)
    classes_from: ClassesFrom = "labels"
    peeks: bool = False
    judges: bool = False
    steps: int = 0
    fixed: str = ""
    untimed: str = ""
    backbone: str = ""
    backbone_unused: str = ""

    @property
    def taken(self) -> dict[str, StreamNeed]:
        """`streams`, and a fully labelled `source` where one is needed and no more is said of it."""
        return {**({"source": LABELLED_SOURCE} if "source" in self.needs else {}), **self.streams}

    @property
    def reads_masks(self) -> bool:
        """Whether masks of the run's own data are learned from or choose what it keeps."""
        return self.peeks or "masks" in self.needs

    @property
    def fixed_length(self) -> str:
        """Why the run cannot be lengthened; empty where it can."""
        return self.fixed if self.steps else "it trains nothing step by step"


def check_backbone(method: type[Method], backbone: Backbone) -> None:
    """Refuses a backbone that a method cannot stand on.

    Args:
        method: which says what kind it needs, `Method.backbones`.
        backbone: the network.

    Raises:
        MaskwrightError: a convolutional network where only a vision transformer will do, a network without words where
            only one with them will, or one that sorts no patches where only a GroupViT will.
    """
    kind = method.backbones
    if kind == "joint" and not backbone.joint_width:
        raise MaskwrightError(
            f"{method.name} on the backbone {backbone.name}, whose features have no words",
            "an image tower that was trained with a text tower",
            "give --backbone clip:ViT-B-16, or --backbone clip --weights FOLDER, or leave it out",
        )
    if kind == "groups" and not backbone.groups:
        raise MaskwrightError(
            f"{method.name} on the backbone {backbone.name}, which sorts no patches into groups",
            "a GroupViT",
            "give --backbone groupvit, or --backbone groupvit --weights FOLDER, or leave it out",
        )
    if kind == "vit" and not backbone.is_vit:
        raise MaskwrightError(
            f"{method.name} on the convolutional backbone {backbone.name}",
            "a vision transformer",
            "give --backbone dinov2_small or dino_small16, or leave it out",
        )
