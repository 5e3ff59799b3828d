"""Batches that are drawn from named streams: what of a setup knows neither networks nor labels.

Legend: B batch, S crop side.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from maskwright.data.training.streams import Streams
from maskwright.engine.setup import Setup
from maskwright.ops.transfer import to_device


class StreamSetup(Setup):
    """The setup of a stage whose batches are views of its streams.

    Attributes:
        streams: what a step draws from, by name.

    Args:
        network_input: uint8 (B, 3, S, S) and a device to the network's input there.
        device: where the step runs.
    """

    def __init__(self, network_input: Callable[[Tensor, torch.device], Tensor], device: torch.device) -> None:
        self.network_input, self.device = network_input, device
        self.streams = self.sampler = Streams()
        self.modules, self.optimizers = {}, {}

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
        return self.network_input(x, self.device)


def to_signed(x: Tensor, device: torch.device) -> Tensor:
    """uint8 (B, 3, S, S) to [-1, 1] on a device, as generators of photographs take it."""
    return to_device(x, device).float() / 127.5 - 1
