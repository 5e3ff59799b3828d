"""Two random resized crops of each photograph, each with colours of its own recipe, and the box that they share.

The pair that SlotCon compares (NeurIPS 2022): windows of random area, aspect and place, mirrored or not. What is
recorded is where each shows what both show, so that maps of either are read off there (`ops.roi_align`).

Legend: B pairs, S crop side.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from maskwright.data.training.crops import random_resized_crop
from maskwright.data.training.streams import Change, Stream
from maskwright.data.training.views import Size, View, overlap
from maskwright.ops.transfer import to_device

TRIES = 10
"""Draws of a second crop that should overlap the first, before one is taken as it comes."""


class CropPairs(NamedTuple):
    """Two crops of each photograph.

    Attributes:
        u1: first crops (B, 3, S, S): uint8 as drawn, the network's input once they are on the device.
        u2: second crops (B, 3, S, S).
        boxes1: what both show, float64 (B, 4) as (x0, y0, x1, y1), parts of the first crop's side, in its own frame (of
            a mirrored crop the mirrored one); 0 where they share nothing.
        boxes2: the same in the second crops.
        flips1: bool (B,), whether the first crop is mirrored left to right.
        flips2: the second.
        shared: bool (B,), whether they share anything.
        views1: the recorded geometry of the first.
        views2: of the second.
    """

    u1: Tensor
    u2: Tensor
    boxes1: Tensor
    boxes2: Tensor
    flips1: Tensor
    flips2: Tensor
    shared: Tensor
    views1: tuple[View, ...]
    views2: tuple[View, ...]

    def as_input(self, normalise: Callable[[Tensor], Tensor], device: torch.device) -> CropPairs:
        """The pairs on a device, their pixels as a network takes them.

        Args:
            normalise: uint8 (B, 3, S, S) to the network's input on the device.
            device: for all else; geometry stays where it is.
        """
        return self._replace(
            u1=normalise(self.u1), u2=normalise(self.u2),
            boxes1=to_device(self.boxes1, device), boxes2=to_device(self.boxes2, device),
            flips1=to_device(self.flips1, device), flips2=to_device(self.flips2, device),
            shared=to_device(self.shared, device),
        )  # fmt: skip


def shared_boxes(a: View, b: View) -> tuple[tuple[float, ...], tuple[float, ...]] | None:
    """What two axis-aligned views share, (x0, y0, x1, y1) as parts of each one's sides and in its own frame, or
    None."""
    found = overlap(a, b)
    if found is None:
        return None

    def of(view: View, box: tuple[float, float, float, float]) -> tuple[float, ...]:
        h, w = view.size
        x0, y0, x1, y1 = box
        return x0 / w, y0 / h, x1 / w, y1 / h

    return of(a, found.box_a), of(b, found.box_b)


class TwoCropStream:
    """Draws pairs.

    Args:
        photographs: the stream whose order and side of crops these are; the scale of its crops is the least and
            greatest share of the photograph's area that a window has.
        changes: photometric recipe of the first and of the second crops; None leaves colours as they are.
        overlap: share of the second window's area that should lie in the first.
        flip: chance that a crop is mirrored left to right, for each on its own.
    """

    def __init__(
        self, photographs: Stream, changes: tuple[Change | None, Change | None], overlap: float = 0.01,
        flip: float = 0.5,
    ) -> None:  # fmt: skip
        self.photographs, self.order = photographs, photographs.order
        self.changes, self.overlap, self.flip = changes, overlap, flip

    def next(self) -> np.ndarray:
        """Indices of this process's share of the next batch."""
        return self.photographs.next()

    def window(self, size: Size, random: torch.Generator) -> View:
        """A random window of an image of `size` (H, W)."""
        crops = self.photographs.crops
        side = (crops.side, crops.side)
        return random_resized_crop(size, side, scale=crops.scale, flip=self.flip, generator=random)

    def pair(self, i: int, random: torch.Generator) -> tuple[View, View]:
        """Two crops of image `i`; after so many tries the second is taken as it comes."""
        size = self.photographs.data.size(i)
        first = self.window(size, random)
        for _ in range(TRIES if self.overlap > 0 else 0):
            second = self.window(size, random)
            found = overlap(first, second)
            if found is not None and found.area >= self.overlap * _area(second):
                return first, second
        return first, self.window(size, random)

    def draw(self, images: Sequence[int], random: torch.Generator) -> CropPairs:
        """Pairs of images; all randomness comes from `random`."""
        pairs = [self.pair(int(i), random) for i in images]
        views1, views2 = tuple(a for a, _ in pairs), tuple(b for _, b in pairs)
        pixels = [
            torch.stack([self.photographs.pixels(int(i), v, random) for i, v in zip(images, views)])
            for views in (views1, views2)
        ]
        u1, u2 = (x if change is None else change(x, random) for x, change in zip(pixels, self.changes))
        found = [shared_boxes(a, b) for a, b in pairs]
        nothing = ((0.0,) * 4, (0.0,) * 4)
        boxes1, boxes2 = torch.tensor([f or nothing for f in found], dtype=torch.float64).unbind(1)
        flips1, flips2 = (torch.tensor([v.flipped[0] for v in views]) for views in (views1, views2))
        shared = torch.tensor([f is not None for f in found])
        return CropPairs(u1, u2, boxes1, boxes2, flips1, flips2, shared, views1, views2)


def _area(view: View) -> float:
    """Source pixels of an axis-aligned view."""
    low, high = view.corners().amin(0), view.corners().amax(0)
    return float((high - low).prod())
