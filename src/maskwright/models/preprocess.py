"""From a photograph to what a backbone wants: resize with antialiasing, scale to [0, 1], normalise.

The aspect ratio is kept; both sides are rounded to the nearest multiple of `multiple_of`, because a vision
transformer takes only whole patches, and squeezing by half a patch costs less than padding or cropping
(which would lose pixels that need a label).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from maskwright.errors import MaskwrightError
from maskwright.models.provenance import Provenance, read_numbers, read_record
from maskwright.ops.transfer import to_device

MAX_SIDE = 4096
"""Pixels of `size` and `short_side` at most: every image is brought up to them; at 100,000 it takes 30 GB and more."""
MAX_LONG_SIDE = 1_000_000
"""Of `long_side`, which only ever makes images smaller."""
MAX_MULTIPLE = 1024
"""Of `multiple_of`; networks have up to 64."""
MAX_ASPECT = 16
"""Images longer than this many times their width are scaled to the area of one of this aspect: a strip of 1
x 5000 pixels brought to a short side of 320 would have 1.6 million columns."""

STRIP_PIXELS = 1 << 19
"""Input pixels of a strip that is narrower than one multiple, at most."""


@dataclass(frozen=True)
class Preprocess:
    """Size and normalisation of a network's input.

    Attributes:
        mean: RGB mean of inputs in [0, 1].
        std: RGB standard deviation of inputs in [0, 1].
        short_side: pixels that the shorter side gets, or None for no such rule.
        size: (height, width) that every image gets, whatever its aspect; excludes the other two rules.
        long_side: pixels that the longer side has at most.
        multiple_of: both sides become the nearest positive multiple of this.
    """

    mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    std: tuple[float, ...] = (0.229, 0.224, 0.225)
    short_side: int | None = None
    size: tuple[int, int] | None = None
    long_side: int | None = None
    multiple_of: int = 1

    def __post_init__(self) -> None:
        if isinstance(self.size, int):
            object.__setattr__(self, "size", (self.size, self.size))
        for name in ("mean", "std"):
            object.__setattr__(self, name, tuple(float(v) for v in getattr(self, name)))
        if len(self.mean) != 3 or len(self.std) != 3 or min(self.std) <= 0:
            raise ValueError(f"mean {self.mean} and std {self.std} must be three numbers each, std above 0")
        if self.size is not None and (self.short_side or self.long_side):
            raise ValueError("give size, or short_side and long_side, not both")
        most = {"short_side": MAX_SIDE, "long_side": MAX_LONG_SIDE, "multiple_of": MAX_MULTIPLE}
        for name, limit in most.items():
            value = getattr(self, name)
            if value is not None and not 1 <= value <= limit:
                raise ValueError(f"{name} is {value}, expected 1 to {limit}")
        if self.size is not None and not all(1 <= side <= MAX_SIDE for side in self.size):
            raise ValueError(f"size is {self.size}, expected 1 to {MAX_SIDE} a side")

    @classmethod
    def for_backbone(cls, provenance: Provenance, **sizes: Any) -> Preprocess:
        """The normalisation that a backbone's weights were trained with, at the given sizes."""
        return cls(mean=provenance.mean, std=provenance.std, **sizes)

    def target_size(self, size: tuple[int, int]) -> tuple[int, int]:
        """The size that an image is resized to.

        Args:
            size: (H, W) of the image, pixels.

        Returns:
            (h, w), multiples of `multiple_of`. 360 x 480 at short_side 320 and multiple 16 gives 320 x 432. A strip
            longer than `MAX_ASPECT` times its width is shortened where rounding up its width
            would multiply its area.
        """
        height, width = size
        if height < 1 or width < 1:
            raise ValueError(f"image size is {height} x {width}, expected at least 1 x 1")
        if self.size is not None:
            return self._round(self.size[0]), self._round(self.size[1])
        scale = 1.0
        if self.short_side is not None:
            scale = self.short_side / min(height, width)
            scale = min(scale, math.sqrt(MAX_ASPECT / (height * width)) * self.short_side)
        if self.long_side is not None:
            scale = min(scale, self.long_side / max(height, width))
        rounded = self._round(height * scale), self._round(width * scale)
        if max(height, width) <= MAX_ASPECT * min(height, width):
            return rounded
        return strip_size(rounded, (height * scale, width * scale), self.multiple_of)

    def _round(self, length: float) -> int:
        return max(1, math.floor(length / self.multiple_of + 0.5)) * self.multiple_of

    def apply(self, image: np.ndarray | torch.Tensor, size: tuple[int, int] | None = None) -> torch.Tensor:
        """Resizes and normalises one image.

        Args:
            image: uint8 (H, W, 3), RGB.
            size: (h, w) instead of `target_size`.

        Returns:
            float32 (3, h, w).

        Raises:
            ValueError: the image has another type or shape.
        """
        h, w = size or self.target_size((int(image.shape[0]), int(image.shape[1])))
        x = resize_uint8(image, (h, w))  # (3, h, w)
        return self.normalise(x)

    def apply_many(
        self, images: Sequence[np.ndarray | torch.Tensor], size: tuple[int, int] | None = None
    ) -> torch.Tensor:
        """Resizes and normalises several images into one batch.

        Args:
            images: uint8 (H, W, 3) each; their target sizes agree, or `size` is given.
            size: (h, w) of the batch.

        Returns:
            float32 (B, 3, h, w).

        Raises:
            ValueError: no image, or target sizes differ.
        """
        if not images:
            raise ValueError("no images to make a batch of")
        sizes = {size or self.target_size((int(i.shape[0]), int(i.shape[1]))) for i in images}
        if len(sizes) > 1:
            raise ValueError(f"target sizes {sorted(sizes)} differ in one batch; group the images or give size=")
        target = sizes.pop()
        return self.normalise(torch.stack([resize_uint8(image, target) for image in images]))

    def normalise(self, x: torch.Tensor) -> torch.Tensor:
        """uint8 or [0, 255] values (..., 3, h, w) to normalised float32 of that shape."""
        mean = torch.tensor(self.mean, device=x.device).view(3, 1, 1) * 255
        std = torch.tensor(self.std, device=x.device).view(3, 1, 1) * 255
        return (x.float() - mean).div_(std)

    def network_input(self, x: torch.Tensor, device: torch.device) -> torch.Tensor:
        """uint8 (B, 3, h, w) as a network takes it: on the device, normalised, channels last in memory."""
        return self.normalise(to_device(x, device)).contiguous(memory_format=torch.channels_last)

    def denormalise(self, x: torch.Tensor) -> torch.Tensor:
        """The inverse of `normalise`: float (..., 3, h, w) back to uint8, for refinement and pictures."""
        mean = torch.tensor(self.mean, device=x.device).view(3, 1, 1)
        std = torch.tensor(self.std, device=x.device).view(3, 1, 1)
        return (x.float() * std + mean).mul_(255).round_().clamp_(0, 255).to(torch.uint8)

    def to_json(self) -> dict[str, Any]:
        """The fields as JSON values; `from_json` reads them back."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}

    @classmethod
    def from_json(cls, record: Mapping[str, Any] | str) -> Preprocess:
        """Reads what `to_json` gives (or its text).

        Raises:
            MaskwrightError: fields are unknown, of another type or out of range.
        """
        values = read_record(record, "preprocess", {f.name for f in fields(cls)}, required={"mean", "std"})
        for name, length in (("mean", 3), ("std", 3), ("size", 2)):
            if name != "size" or values.get(name) is not None:
                values[name] = read_numbers(values[name], length, f"preprocess field {name}")
        for name in ("short_side", "long_side", "multiple_of"):
            value = values.get(name, 1)
            optional = value is None and name != "multiple_of"
            if not optional and (not isinstance(value, int) or isinstance(value, bool)):
                raise MaskwrightError(f"preprocess field {name} is {value!r}", "a whole number of pixels")
        if values.get("size") is not None:
            values["size"] = (int(values["size"][0]), int(values["size"][1]))
        try:
            return cls(**values)
        except ValueError as error:
            raise MaskwrightError(f"preprocess is not usable: {error}") from error


def strip_size(rounded: tuple[int, int], wanted: tuple[float, float], multiple: int) -> tuple[int, int]:
    """Size of a long strip's input whose short side was rounded up to a whole multiple.

    The long side is shortened until the area is that which was wanted, but not below `MAX_ASPECT` times the short side.
    Where the short side was less than one multiple there is nothing to see but stripes: `STRIP_PIXELS` are enough.

    Args:
        rounded: (h, w), multiples of `multiple`.
        wanted: (h, w) before rounding.
        multiple: of both sides.

    Returns:
        (h, w), multiples of `multiple`, neither larger than `rounded`.
    """
    short, long = min(rounded), max(rounded)
    area = wanted[0] * wanted[1]
    if short == multiple and min(wanted) < short:
        area = min(area, STRIP_PIXELS)
    area = max(area, MAX_ASPECT * short * short)
    fitting = max(1, math.floor(area / short / multiple + 0.5)) * multiple
    long = min(long, fitting)
    return (short, long) if rounded[0] <= rounded[1] else (long, short)


def resize_uint8(image: np.ndarray | torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """Bilinear resize with antialiasing on bytes, torch's fastest path (no float image is made).

    Args:
        image: uint8 (H, W, 3).
        size: (h, w).

    Returns:
        uint8 (3, h, w), a view of memory in (h, w, 3) order.

    Raises:
        ValueError: the image has another type or shape.
    """
    if isinstance(image, np.ndarray):
        if not image.flags.writeable or not image.flags.c_contiguous:
            image = image.copy()  # torch warns about read-only memory and cannot take negative strides
        image = torch.from_numpy(image)
    if image.dtype != torch.uint8 or image.ndim != 3 or image.shape[2] != 3:
        raise ValueError(f"image is {image.dtype} {tuple(image.shape)}, expected uint8 (H, W, 3)")
    x = image.permute(2, 0, 1).unsqueeze(0)  # (1, 3, H, W), channels last in memory
    if x.shape[-2:] != tuple(size):
        x = F.interpolate(x, size, mode="bilinear", antialias=True, align_corners=False)
    return x[0]
