"""Whole photographs of the source in the target's look, as a data set with the source's masks.

What a translation changes is found at the scale of training, in tiles, and added to the photograph: memory depends on
the tile, and a large photograph keeps its detail.

Legend: (H, W) size of a photograph, (h, w) size at the scale of training.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from maskwright.data.folders.folder import Dataset
from maskwright.data.folders.readers import Item
from maskwright.data.masking.masks import write_mask
from maskwright.data.training.image_store import ImageStore
from maskwright.data.training.labels import LabelMap
from maskwright.data.training.sources import Labels
from maskwright.data.trust.files import file_for, write_text
from maskwright.engine import seeding
from maskwright.engine.distributed import each
from maskwright.methods.adapt.cycada.networks import LEAST, MULTIPLE, Generator
from maskwright.models.backbones.dense import autocast
from maskwright.models.preprocess import resize_uint8
from maskwright.ops.style import fourier_adaptation, match_histograms
from maskwright.predict.tiles import Axis

if TYPE_CHECKING:
    from maskwright.engine.context import Context

PHOTOGRAPHS = "photographs"
OVERLAP = 0.25
"""Share of a tile that its neighbour holds too: each has instance-norm statistics of its own, and is blended."""
Style = Callable[[], np.ndarray]
"""A photograph of the target, uint8 (H', W', 3), read where it is wanted."""
Translation = Callable[[np.ndarray, Style], np.ndarray]
"""A photograph, uint8 (H, W, 3), and one of the target to the translated photograph, of the first one's shape."""


def at_scale(image: np.ndarray, long_side: int, change: Callable[[Tensor], Tensor]) -> np.ndarray:
    """Adds to a photograph what a translation changes in it where its longer side is at most `long_side`.

    Args:
        image: uint8 (H, W, 3).
        long_side: pixels.
        change: float32 (3, h, w) in [0, 255] to the same, translated.

    Returns:
        uint8 (H, W, 3).
    """
    height, width = image.shape[:2]
    scale = min(1.0, long_side / max(height, width))
    size = max(1, round(height * scale)), max(1, round(width * scale))
    small = resize_uint8(image, size).float()
    difference = change(small) - small
    if size != (height, width):
        difference = F.interpolate(difference[None], (height, width), mode="bilinear", align_corners=False)[0]
    new = torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1) + difference
    return new.round().clamp(0, 255).to(torch.uint8).permute(1, 2, 0).contiguous().numpy()


def by_fourier(beta: float, long_side: int) -> Translation:
    """FDA: the low frequencies' amplitude of a target photograph, brought to the size of the source's."""

    def translate(image: np.ndarray, style: Style) -> np.ndarray:
        def change(small: Tensor) -> Tensor:
            other = resize_uint8(style(), (small.shape[-2], small.shape[-1])).float()
            return fourier_adaptation(small, other, beta)

        return at_scale(image, long_side, change)

    return translate


def by_histogram(image: np.ndarray, style: Style) -> np.ndarray:
    """Each channel's histogram that of a target photograph's."""
    source, target = (torch.from_numpy(np.ascontiguousarray(x)).permute(2, 0, 1) for x in (image, style()))
    return match_histograms(source, target).permute(1, 2, 0).contiguous().numpy()


def by_generator(generator: Generator, device: torch.device, precision: str, tile: int, long_side: int) -> Translation:
    """A trained generator, in tiles.

    Args:
        generator: G, on the device.
        device: where it runs.
        precision: of its passes.
        tile: pixels of a tile's side.
        long_side: larger photographs are seen at this longer side.
    """

    def translate(image: np.ndarray, style: Style) -> np.ndarray:
        return at_scale(image, long_side, lambda small: in_tiles(generator, small, tile, device, precision))

    return translate


@torch.no_grad()
def in_tiles(
    generator: Callable[[Tensor], Tensor], image: Tensor, tile: int, device: torch.device, precision: str = "fp32"
) -> Tensor:
    """A generator on windows that overlap and are blended by a raised cosine.

    Args:
        generator: (1, 3, h', w') in [-1, 1] to the same.
        image: float32 (3, h, w) in [0, 255].
        tile: pixels of a window's side at most.
        device: where it runs.
        precision: of its passes.

    Returns:
        float32 (3, h, w) in [0, 255], on the CPU.
    """
    rows, cols = (Axis.cover(side, tile, OVERLAP) for side in image.shape[-2:])
    out = torch.zeros_like(image)
    for top, down in zip(rows.starts, torch.from_numpy(rows.weights)):
        for left, across in zip(cols.starts, torch.from_numpy(cols.weights)):
            at = (slice(None), slice(top, top + rows.length), slice(left, left + cols.length))
            seen = padded(image[at][None] / 127.5 - 1).to(device)
            with autocast(device, precision):
                made = generator(seen)
            made = (made.float().cpu() + 1) * 127.5
            out[at] += made[0, :, : rows.length, : cols.length] * down[:, None] * across
    return out


def padded(x: Tensor) -> Tensor:
    """(1, 3, h, w) with its border repeated at right and bottom, up to sides that a generator takes."""
    h, w = (max(LEAST, -(-side // MULTIPLE) * MULTIPLE) for side in x.shape[-2:])
    return F.pad(x, (0, w - x.shape[-1], 0, h - x.shape[-2]), mode="replicate")


def translate_all(context: Context, folder: Path, translation: Translation) -> None:
    """Writes the source's photographs, translated, with their masks: a data set that any method takes as a source.
    What a killed run left stays.

    Args:
        context: of the run.
        folder: of the stage.
        translation: of one photograph; its style is a photograph of the target by lot, the same in each run of a seed.
    """
    source, target, root = context.data_of("source"), context.data, folder / PHOTOGRAPHS
    store = ImageStore(root)
    write_text(root / "classes.txt", "\n".join(context.table.names) + "\n")

    def done(i: int) -> bool:
        there = source.items[i].name in store
        if there:
            source.ledger.note("masks", source.items[i].name)  # a run that was killed outright could not save that
        return there

    for i in each(context.progress, range(len(source)), "translated", done):
        name = source.items[i].name
        lot = seeding.generator(context.seed, "style", name)
        style = int(torch.randint(len(target), (), generator=lot))
        mask = file_for(root / "masks", name, ".png")
        mask.parent.mkdir(parents=True, exist_ok=True)
        write_mask(mask, source.mask(i), context.table)
        store.write(name, translation(source.image(i), lambda style=style: target.image(style)))  # type: ignore[misc]


class TranslatedLabels:
    """Labels of the source on its translated photographs; the source's ledger counts them.

    Args:
        labels: of the source.
        folder: of the stage that translated.
    """

    def __init__(self, labels: Labels, folder: Path) -> None:
        store, source = ImageStore(folder / PHOTOGRAPHS), labels.data
        items = [Item(item.name, store.path(item.name)) for item in source.items]
        self.labels, self.indices = labels, labels.indices
        self.data = Dataset(store.folder, items, classes=source.classes, ledger=source.ledger)

    def read(self, i: int) -> LabelMap:
        """Labels (H, W) of image `i`."""
        return self.labels.read(i)
