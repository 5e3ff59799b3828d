"""Cut-outs: an object of one photograph with its opacity, turned, scaled and pasted onto another, by a recorded view.

The recipe is that of the composites of UDA-SOD (Yan et al., AAAI 2022): I = a F + (1 - a) B, and the mask is where
a > 0 (`mixing.composite`). Legend: (H, W) size of the ground, a opacity in [0, 1].
"""

from __future__ import annotations

import os
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Generator, Tensor

from maskwright.data.pictures.images import read_header
from maskwright.data.pictures.turning import orient
from maskwright.data.training.augment import gaussian_blur
from maskwright.data.training.mixing import composite
from maskwright.data.training.views import View
from maskwright.errors import MaskwrightError

Box = tuple[int, int, int, int]
"""(top, left, bottom, right), pixels; bottom and right one past the last."""


@dataclass(frozen=True)
class Placing:
    """How cut-outs are turned, scaled and placed.

    Attributes:
        rotate: greatest angle either way, whole degrees.
        size: least and greatest size, as shares of the largest at which the object's box fits the ground.
        enlarge: greatest factor on the object's own pixels, whatever fits.
        flip: chance of being mirrored.
        centred: chance of lying in the middle of the ground; anywhere inside it otherwise.
    """

    rotate: int = 5
    size: tuple[float, float] = (0.4, 1.0)
    enlarge: float = 1.1
    flip: float = 0.5
    centred: float = 0.0

    def draw(self, source: tuple[int, int], box: Box, ground: tuple[int, int], random: Generator) -> View:
        """A view of the object's photograph that covers the ground, the object's box wholly inside it.

        Args:
            source: (H, W) of the object's photograph.
            box: where the object lies in it.
            ground: (H, W) of the ground.
            random: source of all draws, five of them.
        """
        flip, turn, scale, middle, *place = torch.rand(6, generator=random, dtype=torch.float64).tolist()
        top, left, bottom, right = box
        view = View.identity(source).crop(top, left, bottom - top, right - left)
        if flip < self.flip:
            view = view.hflip()
        angle = int(turn * (2 * self.rotate + 1)) - self.rotate
        if angle:
            view = view.rotate(angle, expand=True)
        fit = min(g / v for g, v in zip(ground, view.size))
        factor = min((self.size[0] + scale * (self.size[1] - self.size[0])) * fit, self.enlarge)
        view = view.resize(*(min(g, max(1, round(factor * v))) for g, v in zip(ground, view.size)))
        room = [g - v for g, v in zip(ground, view.size)]
        at = [r // 2 if middle < self.centred else int(p * (r + 1)) for r, p in zip(room, place)]
        return view.crop(-at[0], -at[1], *ground)


def soft_border(mask: Tensor, sigma: float) -> Tensor:
    """Opacity that falls to 0 at the outline from inside, so that nothing of the old ground comes along.

    Args:
        mask: float (H, W), 1 inside, 0 outside, between them at an antialiased outline.
        sigma: of the Gaussian that softens it, pixels; 0: the mask as it is.

    Returns:
        float32 (H, W): 2 blur(mask) - 1, from 0 to 1, above 0 where the blurred mask is above 1/2.
    """
    soft = mask.float() if sigma == 0 else gaussian_blur(mask.float()[None], sigma)[0]
    return (2 * soft - 1).clamp(0, 1) if sigma else soft


def paste(pixels: Tensor, alpha: Tensor, ground: Tensor, view: View, soften: float = 0.0) -> tuple[Tensor, Tensor]:
    """The object on the ground.

    Args:
        pixels: uint8 (3, h, w), the object's photograph.
        alpha: float (h, w), its opacity, 0 outside the object.
        ground: uint8 (3, H, W).
        view: of the object's photograph, that covers the ground.
        soften: sigma of `soft_border`, pixels of the ground, for opacity that is a mask; 0: the opacity is the matte.

    Returns:
        The composite uint8 (3, H, W) and its mask, bool (H, W). Opacity below 1/255 counts as 0, as in 8 bits.
    """
    placed, cover = view.render(pixels, fill=None), view.render(alpha[None].float(), fill=0.0)
    assert isinstance(placed, Tensor) and isinstance(cover, Tensor)
    opacity = soft_border(cover[0].clamp(0, 1), soften)
    return composite(placed, (opacity * 255 + 1e-3).floor() / 255, ground)


def read_cutout(path: str | os.PathLike[str]) -> tuple[np.ndarray, np.ndarray]:
    """A picture with transparency, its colours not mixed with anything.

    Returns:
        uint8 (H, W, 3), and float32 (H, W), opacity in [0, 1].

    Raises:
        MaskwrightError: it has no transparency, or cannot be read.
    """
    try:
        with Image.open(path) as file:
            clear = "A" in file.getbands() or "transparency" in file.info
            values = orient(np.asarray(file.convert("RGBA")), read_header(path).orientation)
    except (OSError, UnidentifiedImageError, ValueError, Image.DecompressionBombError) as error:
        raise MaskwrightError(f"{path} cannot be read: {error}", "a PNG with transparency") from error
    if not clear:
        raise MaskwrightError(
            f"{path} has no transparency", "cut-outs: PNG files with an alpha channel",
            "or give photographs with masks and --set objects.of=masks",
        )  # fmt: skip
    return values[..., :3].copy(), values[..., 3].astype(np.float32) / 255


def free_window(free: np.ndarray, cells: int = 32) -> Box | None:
    """The largest upright window in which all is free, found on a grid of cells.

    Args:
        free: bool (H, W).
        cells: of the grid along the longer side.

    Returns:
        The window; None where no cell is free. A cell is free where all of its pixels are.
    """
    height, width = free.shape
    step = max(1, -(-max(height, width) // cells))
    rows, columns = -(-height // step), -(-width // step)
    padded = np.ones((rows * step, columns * step), bool)
    padded[:height, :width] = free
    grid = np.asarray(padded.reshape(rows, step, columns, step).all((1, 3)))
    run = [0] * columns
    best: Box | None = None
    area = 0
    for i, row in enumerate(grid):
        run = [n + 1 if is_free else 0 for n, is_free in zip(run, row.tolist())]
        for j in range(columns):
            least = run[j]
            for k in range(j, columns):  # columns j to k, as high as the lowest of them
                least = min(least, run[k])
                if not least:
                    break
                box = ((i + 1 - least) * step, j * step, min((i + 1) * step, height), min((k + 1) * step, width))
                pixels = (box[2] - box[0]) * (box[3] - box[1])
                if pixels > area:
                    best, area = box, pixels
    return best
