"""Crops of two photographs that belong together, at one place: of a street by night and by day.

Legend: B pairs, S crop side, (H, W) image size.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from maskwright.data.training.pairing import NO_PARTNER, paired
from maskwright.data.training.streams import Order, Stream, Views
from maskwright.data.training.views import View


class Twins(NamedTuple):
    """Crops of photographs and of their partners.

    Attributes:
        first: crops of the photographs, without labels.
        second: the same windows of their partners.
    """

    first: Views
    second: Views

    def as_input(self, normalise: Callable[[Tensor], Tensor], device: torch.device) -> Twins:
        """Both as `Views.as_input` has them."""
        return Twins(self.first.as_input(normalise, device), self.second.as_input(normalise, device))


def same_window(view: View, size: tuple[int, int]) -> View:
    """The view of another image, of `size` (H, W), that shows the same part of it, mirrored alike.

    Between images of two aspects it is stretched.
    """
    scale = [a / b for a, b in zip(view.source_size, size)]
    if scale == [1.0, 1.0]:
        return view
    return View(view.matrix @ torch.diag(torch.tensor([scale[1], scale[0], 1.0]).double()), view.size, size)


class TwinStream:
    """Photographs of one data set, each with its partner in another.

    Args:
        first: draws the photographs that have a partner, in its order; without labels.
        second: whose data set holds the partners.
        partner: place in the second data set for each image of the first one's, `NO_PARTNER` where it has none.

    Raises:
        ValueError: the first stream draws an image without a partner.
    """

    def __init__(self, first: Stream, second: Stream, partner: np.ndarray) -> None:
        if not set(first.indices.tolist()) <= set(paired(partner).tolist()):
            raise ValueError(f"an image without a partner, {NO_PARTNER}, among those that are drawn")
        self.first, self.second, self.partner = first, second, np.asarray(partner, np.int64)
        self.order: Order = first.order

    def next(self) -> np.ndarray:
        """Indices in the first data set of this process's share of the next batch, int64 (B,)."""
        return self.first.next()

    def draw(self, images: Sequence[int] | np.ndarray, random: torch.Generator) -> Twins:
        """Crops of these photographs and of their partners; all randomness comes from `random`."""
        partners = self.partner[np.asarray(images, np.int64)]
        views = [self.first.view(int(i), random) for i in images]
        same = [same_window(v, self.second.data.size(int(j))) for v, j in zip(views, partners)]
        return Twins(_drawn(self.first, images, views, random), _drawn(self.second, partners, same, random))


def _drawn(stream: Stream, images: Sequence[int] | np.ndarray, views: list[View], random: torch.Generator) -> Views:
    images = tuple(int(i) for i in images)
    weak = torch.stack([stream.pixels(i, v, random) for i, v in zip(images, views)])
    return Views(weak, None, torch.stack([v.valid() for v in views]), (), tuple(views), images)
