"""A crop of each photograph, and a window inside it brought to the same size, mirrored or not; colours of both changed.

The pair that PiCIE compares (CVPR 2021): what the network makes of the window's pixels, and the window of what it makes
of the crop's. The window is read from the photograph itself, so it is as sharp as that, and its geometry is recorded.

Legend: B pairs, S crop side.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from maskwright.data.training.streams import Stream
from maskwright.data.training.views import View
from maskwright.data.training.warped import WarpedPairs


class WindowStream:
    """Draws pairs: crops as `u1`, their windows as `u2`.

    Args:
        photographs: the stream whose order and crops these are; its photometric recipe (`change`) falls on both, drawn
            for each.
        side: least and greatest side of a window, as a part of the crop's; None: it is the crop itself.
        hflip: chance that it is mirrored left to right.
        vflip: top to bottom.
    """

    def __init__(
        self, photographs: Stream, side: tuple[float, float] | None, hflip: float = 0.5, vflip: float = 0.0
    ) -> None:
        self.photographs, self.order = photographs, photographs.order
        self.side, self.hflip, self.vflip = side, hflip, vflip

    def next(self) -> np.ndarray:
        """Indices of this process's share of the next batch."""
        return self.photographs.next()

    def window(self, view: View, random: torch.Generator) -> View:
        """A window of a view. Five numbers are drawn whatever the options, so that one leaves the others' draws as they
        are."""
        side, down, right, hflip, vflip = torch.rand(5, generator=random).tolist()
        if self.side is None:
            return view
        part = self.side[0] + (self.side[1] - self.side[0]) * side
        h, w = view.size
        view = view.window(down * (1 - part) * h, right * (1 - part) * w, part * h, part * w, view.size)
        if hflip < self.hflip:
            view = view.hflip()
        return view.vflip() if vflip < self.vflip else view

    def draw(self, images: Sequence[int], random: torch.Generator) -> WarpedPairs:
        """Pairs of images; all randomness comes from `random`."""
        stream = self.photographs
        views1 = tuple(stream.view(int(i), random) for i in images)
        views2 = tuple(self.window(v, random) for v in views1)
        u1 = torch.stack([stream.pixels(int(i), v, random) for i, v in zip(images, views1)])
        u2 = u1
        if self.side is not None:
            u2 = torch.stack([stream.pixels(int(i), v, random) for i, v in zip(images, views2)])
        if stream.change is not None:
            u1, u2 = stream.change(u1, random), stream.change(u2, random)
        return WarpedPairs(u1, u2, views1, views2)
