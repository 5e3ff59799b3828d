"""Pairs of overlapping crops of a photograph, and which cell of one is which of the other.

Legend: U pairs, S crop side, (n, n) cells of a crop, N cells in overlaps.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from maskwright.data.training.crops import overlapping_crops
from maskwright.data.training.streams import Stream
from maskwright.data.training.views import View, transform_points
from maskwright.ops.transfer import to_device


class Pairs(NamedTuple):
    """Pairs of overlapping crops of unlabelled photographs.

    Attributes:
        u1: first crops (U, 3, S, S): uint8 as drawn, the network's input once they are on the device.
        u2: second crops (U, 3, S, S).
        cells1: int64 (N,), the overlap's cells among the U n n of the first crops.
        cells2: the same points of the photographs among the cells of the second crops.
        inside1: bool (U, n, n), cells of the first crops that lie in the photograph.
        inside2: of the second crops.
        views: the recorded geometry of each pair.
    """

    u1: Tensor
    u2: Tensor
    cells1: Tensor
    cells2: Tensor
    inside1: Tensor
    inside2: Tensor
    views: tuple[tuple[View, View], ...]

    def as_input(self, normalise: Callable[[Tensor], Tensor], device: torch.device) -> Pairs:
        """The pairs on a device, their pixels as a network takes them.

        Args:
            normalise: uint8 (U, 3, S, S) to the network's input on the device.
            device: for all else.
        """
        return self._replace(
            u1=normalise(self.u1), u2=normalise(self.u2),
            cells1=to_device(self.cells1, device), cells2=to_device(self.cells2, device),
            inside1=to_device(self.inside1, device), inside2=to_device(self.inside2, device),
        )  # fmt: skip


def inside_cells(view: View, cell: int) -> Tensor:
    """Bool (h / cell, w / cell): cells of a view all of whose pixels lie in the photograph.

    Raises:
        ValueError: the view is not a whole number of cells high and wide.
    """
    h, w = view.size
    if h % cell or w % cell:
        raise ValueError(f"a view of {h} x {w} pixels, expected multiples of {cell}")
    return view.valid().view(h // cell, cell, w // cell, cell).all(3).all(1)


def overlap_cells(a: View, b: View, cell: int) -> tuple[Tensor, Tensor]:
    """The cells that two views of a photograph share, mirrored ones included.

    Args:
        a: first view.
        b: second view; its cells lie on the lattice of the first one's.
        cell: side of a cell, pixels.

    Returns:
        Two int64 (N,), row-major cell numbers in a and in b; the same place holds the same point of the photograph.

    Raises:
        ValueError: the views' cells do not lie on one lattice.
    """
    in_a, in_b = inside_cells(a, cell), inside_cells(b, cell)
    rows, columns = in_a.nonzero(as_tuple=True)
    centres = (torch.stack((columns, rows), 1).double() + 0.5) * cell
    there = transform_points(a.matrix_to(b), centres) / cell  # (N, 2) as (x, y), in cells of b
    place = there.floor()
    if bool(((there - place - 0.5).abs() > 0.01).any()):
        raise ValueError(f"the offset of two views is not a multiple of {cell} pixels")
    h, w = in_b.shape
    x, y = place.long().unbind(1)
    shared = (x >= 0) & (x < w) & (y >= 0) & (y < h)
    shared[shared.clone()] = in_b[y[shared], x[shared]]
    return (rows * in_a.shape[1] + columns)[shared], (y * w + x)[shared]


def overlaps(views: Sequence[tuple[View, View]], cell: int) -> tuple[Tensor, Tensor]:
    """`overlap_cells` of all pairs, numbered through the batch; int64 (N,) twice."""
    first, second = [], []
    for k, (a, b) in enumerate(views):
        i, j = overlap_cells(a, b, cell)
        first.append(i + k * (a.size[0] // cell) * (a.size[1] // cell))
        second.append(j + k * (b.size[0] // cell) * (b.size[1] // cell))
    return torch.cat(first), torch.cat(second)


class PairStream:
    """Two overlapping crops of each photograph, their offset whole cells, their photometric changes independent.

    Args:
        photographs: the stream whose order, side of crops and photometric recipe (`change`) these are; without a
            recipe colours stay as they are.
        cell: side of a cell, pixels.
        scale: least and greatest random scale of a pair.
        iou: least and greatest intersection over union of a pair's crops.
    """

    def __init__(
        self, photographs: Stream, cell: int, scale: tuple[float, float], iou: tuple[float, float] = (0.1, 1.0)
    ) -> None:
        self.photographs, self.order = photographs, photographs.order
        self.cell, self.scale, self.iou = cell, scale, iou

    def next(self) -> np.ndarray:
        """Indices of this process's share of the next batch."""
        return self.photographs.next()

    def pair(self, i: int, random: torch.Generator) -> tuple[View, View]:
        """Two crops of image `i`."""
        size, crops = self.photographs.data.size(i), self.photographs.crops
        return overlapping_crops(
            size, (crops.side, crops.side), base=min(max(size), crops.long_side), scale=self.scale, iou=self.iou,
            multiple=self.cell, generator=random,
        )  # fmt: skip

    def pixels(self, i: int, views: tuple[View, View]) -> tuple[Tensor, ...]:
        """uint8 (3, S, S) of each view of image `i`, which is decoded once; outside it the mean colour."""
        image = torch.from_numpy(self.photographs.data.image(i)).permute(2, 0, 1)
        mean = [round(255 * m) for m in self.photographs.mean]
        return tuple(torch.as_tensor(v.render(image, fill=mean)) for v in views)

    def draw(self, images: Sequence[int], random: torch.Generator) -> Pairs:
        """Pairs of crops of images; all randomness comes from `random`."""
        change = self.photographs.change
        views = tuple(self.pair(int(i), random) for i in images)
        pixels = [self.pixels(int(i), pair) for i, pair in zip(images, views)]
        u1, u2 = (torch.stack(side) for side in zip(*pixels))
        if change is not None:
            u1, u2 = change(u1, random), change(u2, random)
        inside1, inside2 = (torch.stack([inside_cells(v, self.cell) for v in side]) for side in zip(*views))
        return Pairs(u1, u2, *overlaps(views, self.cell), inside1, inside2, views)
