"""Training a segmentation network on labels alone: `supervised`, and stages that retrain on pseudo masks."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from maskwright.data.training.sources import Labels
from maskwright.engine.loop import Training
from maskwright.recipes.training.options import NetworkConfig
from maskwright.recipes.training.setup import NetworkSetup

if TYPE_CHECKING:
    from maskwright.engine.context import Context


class NetworkTraining(Training):
    """Labelled crops x through a network.

    Args:
        context: of the run.
        config: options, a `NetworkConfig`.
        labels: where labels come from, and of which data set.
        steps: of the stage.
        options: further arguments of `NetworkSetup`.
    """

    setup: NetworkSetup

    def __init__(self, context: Context, config: Any, labels: Labels, steps: int, **options: Any) -> None:
        super().__init__(NetworkSetup(context, config, labels, steps, **options))

    def losses(self, batch: Any, step: int) -> dict[str, Tensor]:
        """L = L_x."""
        x = batch["x"]
        return {"loss": self.setup.supervised(self.setup.student(x.weak), x.y)}


def train_network(context: Context, config: NetworkConfig, labels: Labels, name: str, folder: Path, steps: int) -> None:
    """A training stage: the configured network on labels; its checkpoint is the artefact."""
    context.fit(NetworkTraining(context, config, labels, steps, stage=name), name, folder, steps)
