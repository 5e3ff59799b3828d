"""Two independent views of each photograph, with its object mask in both.

Legend: B photographs, S side of a view.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor

from maskwright.data.training.crops import random_resized_crop
from maskwright.data.training.labels import LabelMap
from maskwright.data.training.streams import Stream
from maskwright.data.training.views import View
from maskwright.errors import MaskwrightError
from maskwright.ops.transfer import to_device

PATIENCE = 3
"""Draws of one photograph before others are tried in its place."""
TRIES = 1000
"""Draws in all."""
T = TypeVar("T")


class ObjectViews(NamedTuple):
    """Pairs of views.

    Attributes:
        q: query views (B, 3, S, S): uint8 as drawn, the network's input once they are on the device.
        k: key views, likewise.
        mask_q: bool (B, S, S), the object in the query view.
        mask_k: in the key view.
        images: indices of the photographs, some of which stand for others.
    """

    q: Tensor
    k: Tensor
    mask_q: Tensor
    mask_k: Tensor
    images: tuple[int, ...]

    def as_input(self, normalise: Callable[[Tensor], Tensor], device: torch.device) -> ObjectViews:
        """The views on a device, their pixels as a network takes them."""
        return self._replace(
            q=normalise(self.q), k=normalise(self.k),
            mask_q=to_device(self.mask_q, device), mask_k=to_device(self.mask_k, device),
        )  # fmt: skip


def accepted(
    first: int,
    draw: Callable[[int], tuple[T, Sequence[float]]],
    other: Callable[[], int],
    least: float,
    most: float,
    tries: int = TRIES,
) -> tuple[int, T]:
    """Draws until the object has a share in (least, most) of all views: three times of the photograph asked for, then
    each time of another.

    Args:
        first: the photograph asked for.
        draw: from a photograph to its views and the object's share of each.
        other: gives another photograph.
        least, most: bounds, both strict.
        tries: draws at most.

    Returns:
        The photograph, and its views.

    Raises:
        MaskwrightError: no draw will do.
    """
    image = first
    for attempt in range(tries):
        if attempt >= PATIENCE:
            image = other()
        views, shares = draw(image)
        if all(least < share < most for share in shares):
            return image, views
    raise MaskwrightError(
        f"in none of {tries} draws the object has {100 * least:g} % to {100 * most:g} % of both views",
        "objects that views can hold", "look at the objects in the report of a run of few steps, or widen views.least",
    )  # fmt: skip


class ObjectStream:
    """Views of photographs and their object masks.

    Args:
        photographs: the stream whose order, side of crops and colour changes (`jitter`) these are.
        objects: from a photograph's index to its mask (H, W).
        area: least and greatest share of the photograph's area that a view shows.
        share: bounds of the object's share of a view, both strict.
    """

    def __init__(
        self, photographs: Stream, objects: Callable[[int], LabelMap], area: tuple[float, float],
        share: tuple[float, float],
    ) -> None:  # fmt: skip
        self.photographs, self.order = photographs, photographs.order
        self.objects, self.area, self.share = objects, area, share

    def next(self) -> np.ndarray:
        """Indices of this process's share of the next batch."""
        return self.photographs.next()

    def pair(self, i: int, random: torch.Generator) -> tuple[int, list[tuple[View, Tensor]]]:
        """A photograph, `i` unless its views hold no object of a fitting size, and two views with their masks."""
        side, indices = self.photographs.crops.side, self.photographs.indices

        def draw(image: int) -> tuple[list[tuple[View, Tensor]], list[float]]:
            mask, size = self.objects(image), self.photographs.data.size(image)
            found = []
            for _ in range(2):
                view = random_resized_crop(size, (side, side), scale=self.area, generator=random)
                found.append((view, mask.through(view).ids > 0))
            return found, [float(m.float().mean()) for _, m in found]

        def other() -> int:
            return int(indices[int(torch.randint(len(indices), (), generator=random))])

        return accepted(i, draw, other, *self.share)

    def draw(self, images: Sequence[int], random: torch.Generator) -> ObjectViews:
        """Pairs of views; all randomness comes from `random`."""
        seen, sides = [], []
        for i in images:
            image, pair = self.pair(int(i), random)
            seen.append(image)
            sides.append([(self.photographs.pixels(image, view, random), mask) for view, mask in pair])
        (q, mask_q), (k, mask_k) = ((torch.stack(part) for part in zip(*side)) for side in zip(*sides))
        return ObjectViews(q, k, mask_q, mask_k, tuple(seen))
