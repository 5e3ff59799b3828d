"""Soft pseudo-labels on disk beside the hard ones, and crops that bring them along.

Legend: B crops, C classes, S crop side, (H, W) image size.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from maskwright.data.training.streams import Stream, Views
from maskwright.data.trust.artefacts import Damage, read_arrays, unreadable, write_arrays
from maskwright.data.trust.files import file_for
from maskwright.ops.losses.seg_losses import soft_cross_entropy
from maskwright.ops.transfer import to_device

SOFT = "soft"
"""Folder of a `LabelStore` in which its soft labels lie."""
LEVELS = 65535
"""Steps of a stored probability, as of the confidences of hard labels."""


class SoftStore:
    """Soft labels by image name, in 16 bits, compressed.

    Args:
        folder: of the `LabelStore` beside whose labels they are.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.folder = Path(folder) / SOFT

    def write(self, name: str, y: Tensor) -> None:
        """Stores y (C, H, W) in [0, 1] of one image."""
        steps = (y.cpu().double() * LEVELS).round().numpy().astype(np.uint16)
        write_arrays(file_for(self.folder, name, ".npz"), {"y": steps}, compressed=True, durable=False)

    def read(self, name: str) -> Tensor:
        """y, float32 (C, H, W).

        Raises:
            MaskwrightError: there are none, or they are damaged.
        """
        path = file_for(self.folder, name, ".npz")
        try:
            steps = read_arrays(path, {"y": ("u", "CHW")})["y"]
        except Damage as error:
            repair = f"delete {self.folder.parent} and the stages behind it, and repeat the command with --resume"
            raise unreadable(path, error, "the soft labels of a photograph", repair) from error
        return torch.from_numpy(steps.astype(np.float32) / LEVELS)


@dataclass(frozen=True)
class SoftTarget:
    """Labels of a batch as probabilities.

    Attributes:
        y: (B, C, S, S).
        valid: bool (B, S, S), the pixels that have a label.
    """

    y: Tensor
    valid: Tensor

    @property
    def size(self) -> tuple[int, int]:
        """(S, S)."""
        return self.y.shape[-2], self.y.shape[-1]


def soft_loss(logits: Tensor, target: SoftTarget) -> Tensor:
    """Mean over labelled pixels of -sum_c y_c log softmax(logits)_c, logits (B, C, S, S)."""
    return soft_cross_entropy(logits, target.y, valid=target.valid)


class SoftViews(NamedTuple):
    """Crops with hard and soft labels.

    Attributes:
        views: with the hard ones, whose validity is that of both.
        soft: (B, C, S, S); zeros where there is no label.
    """

    views: Views
    soft: Tensor

    def as_input(self, normalise: Callable[[Tensor], Tensor], device: torch.device) -> SoftViews:
        """The crops on a device, their pixels as a network takes them."""
        return SoftViews(self.views.as_input(normalise, device), to_device(self.soft, device))


class SoftStream:
    """Crops of photographs that have soft labels. These are resized bilinearly, and add up to 1 again.

    Args:
        photographs: the stream, with the hard labels.
        store: the soft ones.
    """

    def __init__(self, photographs: Stream, store: SoftStore) -> None:
        self.photographs, self.order, self.store = photographs, photographs.order, store

    def next(self) -> np.ndarray:
        """Indices of this process's share of the next batch."""
        return self.photographs.next()

    def draw(self, images: Sequence[int], random: torch.Generator) -> SoftViews:
        """Crops of images; all randomness comes from `random`."""
        views, found = self.photographs.draw(images, random), []
        for i, view in zip(views.images, views.geometry):
            y = view.render(self.store.read(self.photographs.data.items[i].name), mode="bilinear")
            assert isinstance(y, Tensor)
            found.append(y / y.sum(0).clamp(min=1e-6))
        return SoftViews(views, torch.where(views.valid[:, None], torch.stack(found), 0.0))
