"""A crop of each photograph, and the same crop seen anew: other colours, mirrored, turned, nearer or farther.

The pair that IIC compares (ICCV 2019): x is a crop as it is, x' = g x. What is recorded is the geometry of both, so
that maps of x' are read back in the frame of x (`views.resample`).

Legend: B pairs, S crop side.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from maskwright.data.training.streams import Stream
from maskwright.data.training.views import View, resample


class WarpedPairs(NamedTuple):
    """Crops and what they were changed to.

    Attributes:
        u1: crops as they are (B, 3, S, S): uint8 as drawn, the network's input once they are on the device.
        u2: the same crops changed (B, 3, S, S).
        views1: the recorded geometry of the first.
        views2: of the second.
    """

    u1: Tensor
    u2: Tensor
    views1: tuple[View, ...]
    views2: tuple[View, ...]

    def as_input(self, normalise: Callable[[Tensor], Tensor], device: torch.device) -> WarpedPairs:
        """The pairs with their pixels as a network takes them, on the device.

        Args:
            normalise: uint8 (B, 3, S, S) to the network's input on the device.
            device: where they go; geometry stays where it is.
        """
        return self._replace(u1=normalise(self.u1), u2=normalise(self.u2))

    def valid(self) -> Tensor:
        """Bool (B, S, S), on the CPU: which pixels of the first crops lie in the photograph."""
        return torch.stack([v.valid() for v in self.views1])

    def back(self, maps2: Tensor) -> tuple[Tensor, Tensor]:
        """Maps (B, K, h, w) of the second crops in the frame of the first, differentiable, and where they are valid.

        Returns:
            (B, K, h, w), 0 where the second crops do not reach, and bool (B, h, w): the cell lies in the photograph
            and in both crops.
        """
        return resample(maps2, self.views2, self.views1, (maps2.shape[-2], maps2.shape[-1]))


class WarpedStream:
    """Draws pairs.

    Args:
        photographs: the stream whose order and crops these are; its photometric recipe (`change`) falls on the second
            crop alone.
        flip: chance that the second crop is mirrored.
        rotate: greatest angle by which it is turned, degrees either way.
        zoom: least and greatest factor by which it is enlarged about its centre.
    """

    def __init__(
        self, photographs: Stream, flip: float = 0.5, rotate: float = 0.0, zoom: tuple[float, float] = (1.0, 1.0)
    ) -> None:
        self.photographs, self.order = photographs, photographs.order
        self.flip, self.rotate, self.zoom = flip, rotate, zoom

    def next(self) -> np.ndarray:
        """Indices of this process's share of the next batch."""
        return self.photographs.next()

    def warp(self, view: View, random: torch.Generator) -> View:
        """Another view of what a view shows. Three numbers are drawn whatever the options, so that one option leaves
        the others' draws as they are."""
        flip, turn, zoom = torch.rand(3, generator=random).tolist()
        h, w = view.size
        if self.zoom != (1.0, 1.0):
            low, high = (math.log(z) for z in self.zoom)
            factor = math.exp(low + (high - low) * zoom)
            top, left = (h - h / factor) / 2, (w - w / factor) / 2
            view = view.window(top, left, h / factor, w / factor, view.size)
        if self.rotate:
            view = view.rotate((2 * turn - 1) * self.rotate)
        return view.hflip() if flip < self.flip else view

    def draw(self, images: Sequence[int], random: torch.Generator) -> WarpedPairs:
        """Pairs of crops of images; all randomness comes from `random`."""
        stream = self.photographs
        views1 = tuple(stream.view(int(i), random) for i in images)
        views2 = tuple(self.warp(v, random) for v in views1)
        u1, u2 = (
            torch.stack([stream.pixels(int(i), v, random) for i, v in zip(images, views)]) for views in (views1, views2)
        )
        return WarpedPairs(u1, u2 if stream.change is None else stream.change(u2, random), views1, views2)
