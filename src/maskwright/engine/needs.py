"""What a method takes beside the run's own data: data sets, second networks, proposals, and a kind of backbone."""

from __future__ import annotations

from dataclasses import dataclass
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
