"""Methods with one training stage, whose result is a network: `NetworkMethod` on masks, `CropMethod` without labels."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, Literal

from maskwright.data.training.sources import Labels, MaskLabels
from maskwright.engine.contract import Method, Stage
from maskwright.engine.loop import Training
from maskwright.engine.needs import Terms
from maskwright.models.networks.build import Network
from maskwright.models.segmenter import Segmenter
from maskwright.recipes.training.network import leaves_backbone, make_segmenter, trained_network
from maskwright.recipes.training.rates import note_rates
from maskwright.recipes.training.selection import hold_out
from maskwright.recipes.training.tail import steps_of_photographs
from maskwright.recipes.training.training import NetworkTraining


class CropMethod(Method):
    """A method with one training stage, whose result is a network; as it stands here it learns without labels, and each
    output of the network is a cluster.

    Attributes:
        trainer: its training, called with (context, config, steps).
        says: one sentence for the progress line.
        result: name in the training's `modules` of the network that is kept.
    """

    family: ClassVar[str] = "unsupervised"
    classes_from: ClassVar[Literal["labels", "clusters", "objects"]] = "clusters"
    trainer: ClassVar[Callable[..., Training]]
    says: ClassVar[str] = ""
    config: Any

    @classmethod
    def terms(cls, config: Any, images: int = 1) -> Terms:
        """The steps of the options, and what these make of the backbone."""
        terms, network = super().terms(config, images), config.network
        return replace(terms, steps=config.steps, backbone=network.encoder, backbone_unused=leaves_backbone(network))

    @property
    def result(self) -> str:
        """The network that learns, unless a method keeps another."""
        return "network"

    def stages(self) -> list[Stage]:
        """One: train."""
        return [Stage("train", "train", self.train, self.says, self.steps)]

    def tail(self) -> float:
        """Photographs for batch-norm statistics, for the report, and for what a stage behind the training fits."""
        return steps_of_photographs(self, fitted=self.stages()[-1].kind == "fit")

    @property
    def steps(self) -> int:
        """Of the training."""
        return int(self.context.steps or self.config.steps)

    def training(self, steps: int) -> Training:
        """The training of so many steps."""
        return self.trainer(self.context, self.config, steps)

    def train(self, folder: Path) -> None:
        """Trains; the artefact is the checkpoint of the last step."""
        training = self.training(self.steps)
        note_rates(training.setup)
        self.context.fit(training, "train", folder, self.steps)

    def network(self) -> Network:
        """The trained network, from the artefact."""
        return trained_network(self.context, self.config, self.context.run.path / "train", self.result)

    def segmenter(self) -> Segmenter:
        """The last iterate, with batch-norm statistics of the run's photographs."""
        return make_segmenter(self.context, self.config, self.network(), self.name, range(len(self.context.data)))


class NetworkMethod(CropMethod):
    """One that learns from masks.

    Attributes:
        trainer: its training, called with (context, config, labels, steps).
    """

    needs: ClassVar[frozenset[str]] = frozenset({"masks"})
    classes_from: ClassVar[Literal["labels", "clusters", "objects"]] = "labels"
    trainer: ClassVar[Callable[..., Training]] = NetworkTraining

    def labels(self) -> Labels:
        """The masks that may be read."""
        return MaskLabels(self.context.data, self.context.classes)

    def training(self, steps: int) -> Training:
        """The training of so many steps, on `labels`."""
        return self.trainer(self.context, self.config, self.labels(), steps)

    def seen(self) -> list[int]:
        """Labelled images that training looked at, in the data set of `labels`: not those held out."""
        return list(hold_out(self.labels(), self.config.holdout, self.context.seed)[0].indices)

    def segmenter(self) -> Segmenter:
        """The last iterate, or the one that held-out images chose."""
        return make_segmenter(self.context, self.config, self.network(), self.name, self.seen(), self.labels().data)
