"""Training whose batches are drawn from named streams: what of it knows neither networks nor labels.

Legend: B batch, S crop side.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from maskwright.data.training.streams import Streams
from maskwright.engine.loop import Training
from maskwright.models.preprocess import Preprocess


class DrawnTraining(Training):
    """A stage whose batches are views of its streams.

    Attributes:
        streams: what a step draws from, by name.
        preprocess: pixels to the network's input.
        device: where the step runs.
    """

    streams: Streams
    preprocess: Preprocess
    device: torch.device

    def batch(self, indices: Any, random: torch.Generator) -> dict[str, Any]:
        """Views of each stream, or pairs of them, on the CPU."""
        return self.streams.draw(indices, random)

    def on_device(self, batch: Any) -> Any:
        """What was drawn, with its pixels normalised, on the device."""
        return {name: self.prepared(drawn) for name, drawn in batch.items()}

    def prepared(self, drawn: Any) -> Any:
        """The views of one stream as the network's input."""
        return drawn.as_input(self.normalise, self.device)

    def normalise(self, x: Tensor) -> Tensor:
        """uint8 (B, 3, S, S) to the network's input on the device."""
        return self.preprocess.network_input(x, self.device)
