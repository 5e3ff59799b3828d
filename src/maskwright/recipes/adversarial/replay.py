"""What was judged before, and whether a discriminator is good enough to be listened to.

Legend: B batch.
"""

from __future__ import annotations

from collections import deque
from typing import Any

import torch
from torch import Tensor

from maskwright.engine.distributed import all_reduce_sum


class ReplayPool:
    """Images that a generator made in earlier steps, so that its discriminator does not forget them: Shrivastava et
    al., Learning from simulated and unsupervised images through adversarial training, CVPR 2017,
    https://arxiv.org/abs/1612.07828.

    The first `size` images are kept and given. Then half of the time an image of the pool is given, in whose place the
    new one is kept, and else the new one. Draws are from torch's global generator, which the loop seeds at each step.

    Args:
        size: images that are kept; 0: what comes is given.
    """

    def __init__(self, size: int) -> None:
        self.size = size
        self.images: list[Tensor] = []

    def __call__(self, images: Tensor) -> Tensor:
        """New images (B, 3, h, w) to as many, new and old, without gradient."""
        images = images.detach()
        return torch.stack([self._given(image) for image in images]) if self.size else images

    def _given(self, image: Tensor) -> Tensor:
        if len(self.images) < self.size:
            self.images.append(image.cpu().clone())
            return image
        if self.uniform() <= 0.5:
            return image
        place = self.place()
        old, self.images[place] = self.images[place], image.cpu().clone()
        return old.to(image)

    def uniform(self) -> float:
        """A number in [0, 1)."""
        return float(torch.rand(()))

    def place(self) -> int:
        """A place in the pool."""
        return int(torch.randint(self.size, ()))

    def state_dict(self) -> dict[str, Any]:
        """The images that are kept."""
        return {"images": list(self.images)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on with the images of a state."""
        self.images = [image.clone() for image in state["images"]]


class AccuracyGate:
    """Open while a discriminator tells two kinds apart: Hoffman et al., CyCADA, ICML 2018,
    https://arxiv.org/abs/1711.03213. One that guesses has nothing to teach.

    Args:
        limit: the gate is open where the mean of the last accuracies is above it.
        window: how many they are.
    """

    def __init__(self, limit: float, window: int) -> None:
        self.limit = limit
        self.accuracies: deque[float] = deque(maxlen=window)
        self.opened = 0

    def push(self, accuracy: float) -> bool:
        """Notes an accuracy, and says whether the gate is open."""
        self.accuracies.append(accuracy)
        self.opened += self.open
        return self.open

    @property
    def open(self) -> bool:
        """Whether the mean is above the limit; not without any."""
        return bool(self.accuracies) and sum(self.accuracies) / len(self.accuracies) > self.limit

    def state_dict(self) -> dict[str, Any]:
        """The last accuracies, and how often the gate was open."""
        return {"accuracies": list(self.accuracies), "opened": self.opened}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on from a state."""
        self.accuracies.clear()
        self.accuracies.extend(state["accuracies"])
        self.opened = int(state["opened"])


def accuracy(right: Tensor) -> float:
    """Share of True among bool verdicts of any shape, over all processes: all of them open a gate at once;
    0 of no verdict."""
    counts = torch.tensor([float(right.sum()), float(right.numel())], dtype=torch.float64)
    hits, n = all_reduce_sum(counts).tolist()
    return hits / max(n, 1)
