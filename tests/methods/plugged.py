"""A method whose network ends in a part of its own, which the table does not know."""

from __future__ import annotations

from typing import Any, ClassVar

from tests.methods.faint import Faint
from torch import Tensor

from maskwright.engine.checkpoint import trained
from maskwright.methods.supervised import Supervised
from maskwright.models.networks.network import Network
from maskwright.recipes.training.network import make_network
from maskwright.recipes.training.training import NetworkTraining

STEPS: list[int] = []
"""Steps that were taken."""


class FaintTraining(NetworkTraining):
    """The supervised step on a network with another classifier."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        network = self.setup.network
        network.classifier = Faint(network.width, network.classes)

    def losses(self, batch: Any, step: int) -> dict[str, Tensor]:
        """Notes the step."""
        STEPS.append(step)
        return super().losses(batch, step)


class Plugged(Supervised):
    """The part stands in another file."""

    name: ClassVar[str] = "plugged"
    trainer: ClassVar[type[NetworkTraining]] = FaintTraining

    def network(self) -> Network:
        """From the checkpoint, with that part."""
        network = make_network(self.context, self.config)
        network.classifier = Faint(network.width, network.classes)
        return trained(self.context.run.path / "train", "network", network)
