"""The second stage of methods whose classes are words: a network learns the masks that a frozen tower and names give
(MaskCLIP+, ReCo+), then labels the photographs itself and goes on (self-training).

    pseudo       the frozen model labels the run's photographs
    student      any network of ours learns these labels
    pseudo_r     the network labels them itself
    student_r    and goes on with those, r = 1 ..

Legend: E channels of the joint space, C classes.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import torch

from maskwright.data.training.labels import LabelStore
from maskwright.data.training.sources import StoredLabels
from maskwright.engine import seeding
from maskwright.engine.config import Idle, fill_from_preset, option, part
from maskwright.engine.contract import Stage
from maskwright.engine.distributed import all_reduce_sum, share
from maskwright.engine.needs import InputNeed, Terms
from maskwright.errors import MaskwrightError
from maskwright.models.backbones.dense import Backbone
from maskwright.models.networks.build import Network, build_network
from maskwright.models.segmenter import Segmenter
from maskwright.models.towers.parts import WordHead
from maskwright.recipes.language.method import WordConfig, WordMethod
from maskwright.recipes.language.words import EMBEDDED, STAGE, VOCABULARY
from maskwright.recipes.self_training.labelling import LABELS, Labelling
from maskwright.recipes.self_training.rounds import round_steps
from maskwright.recipes.training.forward import precision_of
from maskwright.recipes.training.network import make_segmenter, network_options, trained_network
from maskwright.recipes.training.options import NetworkConfig
from maskwright.recipes.training.rates import resolved
from maskwright.recipes.training.training import NetworkTraining

PSEUDO, STUDENT = "pseudo", "student"
SMALL: dict[str, Any] = {
    "student.network.name": "auto", "student.crops.size": 256, "student.crops.batch": 4,
    "student.crops.long_side": 1024, "student.optimizer.name": "adamw", "student.optimizer.lr": 0.0,
    "student.norms.images": 64, "student.steps": 2000,
}  # fmt: skip
"""The preset of any network, by whole names."""


def student_preset(presets: Mapping[str, Any]) -> Any:
    """The option `preset` of a method whose masks a network may learn."""
    says = "sets the other options' defaults; papers' ones are of the network that learns, with plus.train"
    return option("small", says, choices=tuple(presets), main=True)


@dataclass(kw_only=True)
class PlusOptions:
    """The second stage."""

    train: bool = option(False, "a network learns the masks, and is what the run leaves", main=True)
    rounds: int = option(1, "how often the network then labels the photographs itself and goes on", low=0, high=100)
    share: float = option(0.5, "share of the steps on the tower's labels; rounds share the rest", low=0.01, high=0.99)
    round_lr: float = option(0.2, "share of the rates with which a round begins", low=1e-6, high=1)
    words: bool = option(
        True, "the network's last layer is the names' vectors, which do not learn; false: one that does"
    )


@dataclass(kw_only=True)
class StudentConfig(WordConfig):
    """Options of methods whose masks a network may learn; those without a value of their own take the preset's, those
    that are given win.

    Attributes:
        presets: options by whole names, by the preset's name.
    """

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {"small": SMALL}

    preset: str = student_preset({"small": SMALL})
    plus: PlusOptions = part(PlusOptions)
    student: NetworkConfig = part(
        NetworkConfig, without=("network.encoder", "holdout"), network={"name": None}, steps=None,
        crops={"size": None, "batch": None, "long_side": None}, optimizer={"name": None, "lr": None},
        norms={"images": None},
        says={
            "network.name": "a name of the table of networks; auto: deeplabv3plus on a CNN, dpt on a ViT (preset)",
            "crops.size": "side of the square crops, pixels; rounded up to what the network takes (preset)",
            "crops.batch": "crops in a step (preset)",
            "crops.long_side": "larger photographs are first scaled to this longer side, pixels (preset)",
            "optimizer.name": "adamw, or sgd with Nesterov momentum 0.9 (preset)",
            "optimizer.lr": "the head's rate, poly schedule; 0: adamw 1e-3, 2e-4 on a vision transformer; sgd 0.01 "
                            "(preset)",
            "norms.images": "whole photographs that batch-norm statistics are retaken on after the last step; 0: "
                            "training's own (preset)",
            "steps": "optimiser steps where --steps does not say (preset)",
        },
    )  # fmt: skip

    def __post_init__(self) -> None:
        fill_from_preset(self, self.presets.get(self.preset, {}))

    def check(self) -> None:
        """Raises `MaskwrightError` on the settings of a network where none learns."""
        if not self.plus.train and self.preset != "small":
            raise MaskwrightError(
                f"preset={self.preset}, the settings of a network, with plus.train=false", "a network that learns",
                "--set plus.train=true",
            )  # fmt: skip

    def idle(self) -> Idle:
        """Options of a network where none learns, and those of rounds that are none."""
        yield from super().idle()
        if not self.plus.train:
            yield ("plus", "student"), "plus.train=false"
        elif not self.plus.rounds:
            yield ("plus.share", "plus.round_lr"), "plus.rounds=0"


class StudentMethod(WordMethod):
    """A frozen model whose classes are words, and, with `plus.train`, a network that learns its masks."""

    inputs: ClassVar[Mapping[str, InputNeed]] = {
        "student": InputNeed(
            says="with plus.train=true, the backbone that the network stands on; the tower itself if none",
            kind="network", required=False,
        )
    }  # fmt: skip

    @classmethod
    def terms(cls, config: Any, images: int = 1) -> Terms:
        """What the network stands on and its steps, where one learns; rounds learn what those before labelled."""
        terms, plus = super().terms(config, images), config.plus
        if not plus.train:
            return replace(terms, inputs={name: need for name, need in cls.inputs.items() if name != "student"})
        fixed = "its trainings follow one another, and the later ones learn what the earlier ones labelled"
        return replace(terms, steps=config.student.steps, fixed=fixed if plus.rounds else "")

    @abstractmethod
    def teacher(self) -> Segmenter:
        """The frozen model, from the artefacts of the stages before."""

    def segmenter(self) -> Segmenter:
        """The frozen model, or the network that learned its masks."""
        return self.student(self.last) if self.config.plus.train else self.teacher()

    # ------------------------------------------------------------------ how long

    def all_steps(self) -> list[int]:
        """Steps on the tower's labels, and of each round."""
        plus, steps = self.config.plus, int(self.context.steps or self.config.student.steps)
        return round_steps(steps, plus.rounds, plus.share) if plus.rounds else [steps]

    # ------------------------------------------------------------------ stages

    def stages(self) -> list[Stage]:
        """Those of the frozen model, and two for the network and for each of its rounds."""
        found = super().stages()
        if not self.config.plus.train:
            return found
        steps = self.all_steps()
        for r in range(self.config.plus.rounds + 1):
            by = "what the names give" if r == 0 else f"what the network gives, round {r}"
            found.append(Stage(_numbered(PSEUDO, r), "label", self.label, f"labels of all photographs: {by}"))
            found.append(Stage(_numbered(STUDENT, r), "train", self.learn, f"a network on {by}", steps[r]))
        return found

    @property
    def last(self) -> int:
        """Number of the last round."""
        return int(self.config.plus.rounds)

    def label(self, folder: Path) -> None:
        """Labels the run's photographs by the frozen model, or by the network before."""
        number, context = _number(folder), self.context
        labels_by = self.teacher() if number == 0 else self.student(number - 1)
        precision = "fp32" if number == 0 else precision_of(self.config.student.precision, context.device)
        refined = self.refinement if number == 0 else "none"
        Labelling(context, precision, flips=False, refine=refined).label(folder, labels_by, context.data.names)
        store, counts = LabelStore(folder / LABELS, context.table), torch.zeros(context.classes, dtype=torch.float64)
        for name in share(context.data.names):
            y = store.read(name)
            counts += torch.bincount(y.ids[y.valid], minlength=context.classes)
        counts = all_reduce_sum(counts.to(context.device)).cpu()
        none = [name for name, n in zip(self.table.names, counts.tolist()) if not n]
        if none:
            context.note(f"Stage {folder.name}: no pixel of any photograph is labelled {', '.join(none)}.")

    def learn(self, folder: Path) -> None:
        """The network on the labels of its round; from the first round on it goes on with its own weights."""
        number, context, c = _number(folder), self.context, self.settled
        if number:
            c = replace(c, optimizer=replace(c.optimizer, lr=c.optimizer.lr * self.config.plus.round_lr))
            network = self.learned(number - 1)
        else:
            seeding.initialise(context.seed, folder.name)
            network = self.fresh()
        made = context.run.path / _numbered(PSEUDO, number) / LABELS
        labels = StoredLabels(context.data, LabelStore(made, context.table))
        steps = self.all_steps()[number]
        training = NetworkTraining(context, c, labels, steps, stage=folder.name, network=network)
        context.fit(training, folder.name, folder, steps)

    # ------------------------------------------------------------------ the network

    @property
    def stands_on(self) -> Backbone:
        """What the network's encoder takes its weights from.

        Raises:
            MaskwrightError: the input is a saved model.
        """
        if "student" not in self.context.inputs:
            return self.context.backbone
        thing = self.context.input("student")
        if not isinstance(thing, Backbone):
            raise MaskwrightError(
                f"--input student={self.context.inputs['student'].place} is a saved model", "a backbone's name",
                "give --input student=resnet50, or resnet50@FILE",
            )  # fmt: skip
        return thing

    @property
    def settled(self) -> NetworkConfig:
        """The network's options, with the rates that its encoder wants."""
        found: NetworkConfig = resolved(self.config.student, self.context, self.stands_on)
        return found

    def fresh(self) -> Network:
        """The network untrained; with `plus.words` its classifier ends in the names' vectors, and auxiliary heads,
        which would have no words, are left out."""
        c, context = self.config, self.context
        options, weights = network_options(c.student.network.options), c.student.network.weights or None
        words = context.run.tensors(STAGE, VOCABULARY, EMBEDDED)
        by_words = c.plus.words and len(set(words["owner"].tolist())) == context.classes
        outputs = words["vectors"].shape[1] if by_words else context.classes
        made = build_network(c.student.network.name, self.stands_on, outputs, options=options, weights=weights)
        made.requires_grad_(True)
        if c.plus.words and not by_words:
            context.note("The network's last layer learns, because the background is no word.")
        if not by_words:
            return made
        head = WordHead(made.classifier, words["vectors"], words["owner"], context.classes)
        return Network(made.encoder, made.decoder, head, width=made.width, provenance=made.provenance).train()

    def learned(self, number: int) -> Network:
        """The network as a round left it."""
        folder = self.context.run.path / _numbered(STUDENT, number)
        return trained_network(self.context, self.config.student, folder, network=self.fresh())

    def student(self, number: int) -> Segmenter:
        """The same as a segmenter."""
        context = self.context
        made = make_segmenter(context, self.config.student, self.learned(number), self.name, range(len(context.data)))
        made.classes = self.table
        own, tower = made.provenance.labels_seen, context.backbone.provenance.labels_seen
        if own != tower:
            told = f"{own}; learned masks by {context.backbone.name}, which saw {tower}"
            made.provenance = made.provenance.replace(labels_seen=told)
        return made


def _numbered(stage: str, number: int) -> str:
    return f"{stage}_{number}" if number else stage


def _number(folder: Path) -> int:
    return int(folder.name.partition("_")[2] or 0)
