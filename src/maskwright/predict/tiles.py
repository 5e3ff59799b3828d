"""Where the windows of a tiled prediction lie, how much each counts, and at what scale the network sees them.

The rule of scale. Without tiles an image is seen whole, at the size that the segmenter's preprocessing gives it. With
tiles of N every window of N x N pixels is seen as a photograph of N x N pixels would be: N decides the field of view.
That scale then holds for all images, also for those smaller than a tile, so that things keep their size.

Tiles are chosen without being asked for

- where the image is much larger than those trained on: whole, it would be seen at less than `SHRUNK` times the scale of
  a training photograph, and at a smaller scale than nearly all of them (the bundle's `image_size` is the median
  (H, W) of the training photographs, `largest_size` that of the largest but a few);
- where the whole image would be beyond recognition or memory: above `WHOLE_PIXELS`, more than cameras take (so it is a
  map, a scan or a slide), or where preprocessing does not shrink images and the input would have more than
  `INPUT_PIXELS`.

The tile is such that the network sees things at the scale of training; where the bundle does not know it, twice the
side of the network's input. Sizes cannot tell a mosaic from the same view taken with a better camera, which is better
seen whole: verbs say when tiles were chosen, and how to have the other.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from maskwright.errors import MaskwrightError
from maskwright.models.preprocess import MAX_ASPECT, strip_size

SHRUNK = 0.5
"""An image seen at less than this part of the scale of training is tiled: training crops reach down to about half."""
WHOLE_PIXELS = 64_000_000
"""Images of more pixels are tiled: cameras stay below."""
INPUT_PIXELS = 2048 * 2048
"""An input of more pixels is tiled, where preprocessing keeps the size of images."""
NATIVE_TILE = 1024
"""Pixels of a tile where preprocessing keeps the size of images."""
MIN_TILE = 8
"""Smaller tiles see nothing and would be without number."""


@dataclass(frozen=True)
class Axis:
    """Windows of one length along one side of an image, evenly spaced, the first and last at its ends.

    Attributes:
        total: pixels of the side.
        length: pixels of a window.
        starts: first pixel of each window.
    """

    total: int
    length: int
    starts: tuple[int, ...]

    @classmethod
    def cover(cls, total: int, length: int, overlap: float) -> Axis:
        """The fewest windows that cover a side and overlap by at least a share of their length.

        Args:
            total: pixels of the side.
            length: pixels of a window; shortened to `total` if larger.
            overlap: share of the length, in [0, 1).
        """
        length = min(length, total)
        step = max(1.0, length * (1 - overlap))
        count = 1 + math.ceil((total - length) / step)
        starts = np.linspace(0, total - length, count).round().astype(int)
        return cls(total, length, tuple(int(s) for s in starts))

    def __len__(self) -> int:
        return len(self.starts)

    def touching(self, low: int, high: int) -> range:
        """Indices of the windows that hold a pixel of [low, high)."""
        ends = np.asarray(self.starts) + self.length
        return range(int(np.searchsorted(ends, low, "right")), int(np.searchsorted(self.starts, high, "left")))

    @cached_property
    def weights(self) -> np.ndarray:
        """Share of each window in the pixels it holds, float32 (windows, length); sums to 1 at each pixel.

        Raised cosine over the overlap with each neighbour, none at the ends of the side.
        """
        raw = np.ones((len(self.starts), self.length))
        place = np.arange(self.length) + 0.5
        for left in range(len(self.starts) - 1):
            shared = self.starts[left] + self.length - self.starts[left + 1]
            if shared > 0:
                ramp = np.sin(np.pi / 2 * np.minimum(place / shared, 1)) ** 2
                raw[left + 1] *= ramp
                raw[left] *= ramp[::-1]
        sums = np.zeros(self.total)
        for start, row in zip(self.starts, raw):
            sums[start : start + self.length] += row
        return np.stack([row / sums[start : start + self.length] for start, row in zip(self.starts, raw)]).astype(
            np.float32
        )


@dataclass(frozen=True)
class Plan:
    """The windows of an image and the sizes at which the network sees each of them.

    Attributes:
        rows: windows from top to bottom.
        cols: windows from left to right.
        inputs: (h, w) of the network's input, one for each scale.
        tile: pixels of a window's side, as asked or as chosen; None where the image is seen whole.
    """

    rows: Axis
    cols: Axis
    inputs: tuple[tuple[int, int], ...]
    tile: int | None = None


def trained_size(segmenter: Any, key: str = "image_size") -> tuple[int, int] | None:
    """(H, W) of the photographs trained on, as the bundle has it; None where it does not say."""
    value = segmenter.extra.get(key)
    good = isinstance(value, list | tuple) and len(value) == 2
    if not good or not all(isinstance(v, int) and not isinstance(v, bool) and 0 < v <= 1_000_000 for v in value):
        return None
    return int(value[0]), int(value[1])


def scale_of(size: tuple[int, int], seen: tuple[int, int]) -> float:
    """Pixels of the input for one of the image, along a side: below 1 where an image (H, W) is shrunk to (h, w)."""
    return math.sqrt(seen[0] * seen[1] / (size[0] * size[1]))


def much_larger(segmenter: Any, size: tuple[int, int], seen: tuple[int, int] | None = None) -> bool:
    """Whether an image is so much larger than those trained on that whole it is seen at another scale than they were.

    Args:
        segmenter: the network with its `preprocess` and `extra`.
        size: (H, W) of the image, pixels.
        seen: (h, w) of the input that it becomes; as the preprocessing gives it if None.
    """
    trained = trained_size(segmenter)
    if trained is None:
        return False
    target = segmenter.preprocess.target_size
    scale = scale_of(size, seen or target(size))
    largest = trained_size(segmenter, "largest_size") or trained
    return scale < SHRUNK * scale_of(trained, target(trained)) and scale < scale_of(largest, target(largest))


def choose_tile(segmenter: Any, size: tuple[int, int]) -> int | None:
    """The tile of an image for which none was asked, or None if it is seen whole (see this module's page).

    Args:
        segmenter: the network with its `preprocess` and `extra`.
        size: (H, W) of the image, pixels.
    """
    preprocess = segmenter.preprocess
    shrinks = preprocess.short_side is not None or preprocess.size is not None
    h, w = preprocess.target_size(size)
    beyond = size[0] * size[1] > WHOLE_PIXELS or (not shrinks and h * w > INPUT_PIXELS)
    if not beyond and not much_larger(segmenter, size):
        return None
    trained = trained_size(segmenter)
    if trained is not None:
        # A tile is seen as a photograph of its size: of the sides that a training photograph offers, the one at its
        # scale; of those alike the shorter, which no training photograph lacked.
        scale = scale_of(trained, preprocess.target_size(trained))
        sides = (min(trained), math.isqrt(trained[0] * trained[1]), max(trained))
        off = [round(abs(math.log(scale_of((n, n), preprocess.target_size((n, n))) / scale)), 2) for n in sides]
        return max(MIN_TILE, sides[off.index(min(off))])
    if preprocess.short_side is not None:
        return max(MIN_TILE, 2 * preprocess.short_side)
    if preprocess.size is not None:
        return max(MIN_TILE, 2 * min(preprocess.size))
    return NATIVE_TILE


def make_plan(
    segmenter: Any,
    size: tuple[int, int],
    *,
    tile: int | None,
    overlap: float,
    scales: tuple[float, ...],
) -> Plan:
    """Lays windows over an image.

    Args:
        segmenter: the network with its `preprocess` and `multiple_of`.
        size: (H, W) of the image, pixels.
        tile: pixels of a window's side; 0 for the image as a whole; None leaves the choice to `choose_tile`.
        overlap: share of a tile that its neighbour holds too, in [0, 0.9].
        scales: factors on the network's input size, each in (0, 8].

    Raises:
        MaskwrightError: an argument is out of range.
    """
    if min(size) < 1:
        raise MaskwrightError(f"the image has {size[0]} x {size[1]} pixels", "at least 1 x 1")
    if tile and tile < MIN_TILE:
        raise MaskwrightError(f"tile is {tile}", f"at least {MIN_TILE} pixels, or 0 for the whole image")
    if not 0 <= overlap <= 0.9:
        raise MaskwrightError(f"overlap is {overlap}", "a share from 0 to 0.9")
    if not scales or not all(0 < s <= 8 for s in scales):
        raise MaskwrightError(f"scales are {scales}", "one or more factors above 0 and up to 8")
    tile = choose_tile(segmenter, size) if tile is None else tile or None
    h, w = size
    if tile is None:
        rows, cols = Axis.cover(h, h, 0.0), Axis.cover(w, w, 0.0)
        target: tuple[float, float] = segmenter.preprocess.target_size(size)
    else:
        rows, cols = Axis.cover(h, tile, overlap), Axis.cover(w, tile, overlap)
        seen = segmenter.preprocess.target_size((tile, tile))
        target = (rows.length * seen[0] / tile, cols.length * seen[1] / tile)
    multiple = math.lcm(segmenter.preprocess.multiple_of, segmenter.multiple_of)
    inputs = tuple(_input_size((target[0] * s, target[1] * s), multiple) for s in scales)
    return Plan(rows, cols, inputs, tile)


def _input_size(target: tuple[float, float], multiple: int) -> tuple[int, int]:
    rounded = _whole(target[0], multiple), _whole(target[1], multiple)
    if max(target) <= MAX_ASPECT * min(target):
        return rounded
    return strip_size(rounded, target, multiple)


def _whole(length: float, multiple: int) -> int:
    return max(1, math.floor(length / multiple + 0.5)) * multiple
