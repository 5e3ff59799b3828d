"""Mixing two images with a binary mask: CutOut, CutMix, ClassMix, ComplexMix, cow masks, copy-paste.

x = M a + (1 - M) b, and the same M for labels, confidence and validity. Every generator returns M as bool (B,
H, W), True where the first image is kept; none changes its arguments. Randomness comes from a CPU generator.

Sources: French et al., BMVC 2020 (boxes, cow); Chen et al., CPS, CVPR 2021 (three boxes); Olsson et al.,
ClassMix, WACV 2021; Tranheden et al., DACS, WACV 2021; Chen et al., ComplexMix, ICIP 2021; Yang et al.,
UniMatch, CVPR 2023; Hoyer et al., MIC, CVPR 2023.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise
from typing import Any, Literal, TypeVar

import torch
from torch import Generator, Tensor

from maskwright.data.training.augment import gaussian_blur
from maskwright.data.training.labels import LabelMap

Size = tuple[int, int]
T = TypeVar("T")


def mix(a: T, b: T, mask: Tensor) -> T:
    """Takes `a` where the mask is True and `b` elsewhere, as new tensors.

    Args:
        a: a tensor (..., H, W) with or without channels, a `LabelMap`, or a tuple, list or dict of these.
        b: the same.
        mask: bool (B, H, W) or (H, W); channels are added as needed.

    Raises:
        ValueError: things of different kinds or shapes.
    """
    mixed: Any  # of the kind that came in, which no checker follows through these branches
    if isinstance(a, LabelMap) and isinstance(b, LabelMap):
        mixed = a.mix(b, mask.to(a.ids.device))
    elif isinstance(a, Tensor) and isinstance(b, Tensor):
        if a.shape != b.shape or a.shape[-2:] != mask.shape[-2:]:
            raise ValueError(f"cannot mix {tuple(a.shape)} with {tuple(b.shape)} by {tuple(mask.shape)}")
        kept = mask.bool().to(a.device)
        if mask.dim() == 3 and a.dim() == 4:
            kept = kept.unsqueeze(1)
        mixed = torch.where(kept, a, b)
    elif isinstance(a, dict) and isinstance(b, dict) and a.keys() == b.keys():
        mixed = {key: mix(a[key], b[key], mask) for key in a}
    elif isinstance(a, (tuple, list)) and isinstance(b, (tuple, list)) and len(a) == len(b):
        mixed = type(a)(mix(x, y, mask) for x, y in zip(a, b))
    else:
        raise ValueError(f"cannot mix {type(a).__name__} with {type(b).__name__}")
    return mixed


def cut_out(x: Tensor, mask: Tensor, fill: float = 0.0) -> Tensor:
    """The image where the mask is True, `fill` elsewhere (0 after normalisation is the mean colour); the loss
    then counts only where the mask is True.
    """
    return mix(x, torch.full_like(x, fill), mask)


def partner(n: int, how: Literal["roll", "shuffle"] = "roll", generator: Generator | None = None) -> Tensor:
    """Which item of the batch each is mixed with, int64 (n,): the next one, or a random one that is not
    itself."""
    following = (torch.arange(n) + 1) % n
    if how == "roll" or n < 2:
        return following
    order = torch.randperm(n, generator=generator)
    chosen = torch.empty(n, dtype=torch.int64)
    chosen[order] = order[following]
    return chosen


def _uniform(low: float, high: float, generator: Generator | None) -> float:
    return low + (high - low) * float(torch.rand((), generator=generator))


def _integer(low: int, high: int, generator: Generator | None) -> int:
    """A whole number in [low, high]."""
    return int(torch.randint(low, high + 1, (), generator=generator)) if high > low else low


def box_mask(
    batch: int,
    size: Size,
    *,
    area: tuple[float, float] = (0.5, 0.5),
    boxes: int = 1,
    keep: bool = False,
    generator: Generator | None = None,
) -> Tensor:
    """French et al.'s boxes of random aspect: all True, toggled inside each box (where two overlap, toggled
    back); with `keep` all False, toggled inside.

    With r ~ U(area) and u ~ U(0, 1), the height is r^u, the width r / height, both over sqrt(boxes). CutMix
    takes one box of area 0.5; CutOut r ~ U(0, 1) and keeps the box; CPS three boxes with r ~ U(0.25, 0.5).

    Args:
        batch: masks.
        size: (H, W).
        area: range of r, share of the image.
        boxes: boxes a mask.
        keep: whether the boxes are what is True.
        generator: CPU generator.

    Returns:
        bool (batch, H, W).
    """
    height, width = size
    mask = torch.full((batch, height, width), not keep)
    shrink = math.sqrt(1 / boxes)
    for k in range(batch):
        for _ in range(boxes):
            r = max(_uniform(*area, generator), 1e-6)
            y = math.exp(_uniform(0, 1, generator) * math.log(r))
            h, w = round(y * shrink * height), round(r / y * shrink * width)
            top = round((height - h) * _uniform(0, 1, generator))
            left = round((width - w) * _uniform(0, 1, generator))
            mask[k, top : top + h, left : left + w] ^= True
    return mask


def half_box_mask(batch: int, size: Size, *, generator: Generator | None = None) -> Tensor:
    """ClassMix's and ReCo's box: a False hole of half the image's area, its width uniform in [W / 2, W].

    Args:
        batch: masks.
        size: (H, W).
        generator: CPU generator.
    """
    height, width = size
    mask = torch.ones(batch, height, width, dtype=torch.bool)
    for k in range(batch):
        w = _integer(max(1, math.ceil(width / 2)), width, generator)
        h = min(height, max(1, round(height * width / 2 / w)))
        top, left = _integer(0, height - h, generator), _integer(0, width - w, generator)
        mask[k, top : top + h, left : left + w] = False
    return mask


def unimatch_box(
    batch: int,
    size: Size,
    *,
    p: float = 0.5,
    area: tuple[float, float] = (0.02, 0.4),
    aspect: tuple[float, float] = (0.3, 1 / 0.3),
    redraw: bool = False,
    generator: Generator | None = None,
) -> Tensor:
    """UniMatch's and ST++'s box: True inside, where the donor's pixels (or CutOut's noise) come.

    Aspect and corner are redrawn until the box lies inside, and in ST++ the area with them, so that small boxes, which
    fit in more places, are more frequent: of a square 0.138 on average, where UniMatch has 0.21.

    Args:
        batch: masks.
        size: (H, W); the papers use squares.
        p: chance that there is a box at all.
        area: range of its share of the image, uniform.
        aspect: range of height over width, uniform.
        redraw: whether the area is drawn anew with each place (ST++), or once a box (UniMatch).
        generator: CPU generator.
    """
    height, width = size
    mask = torch.zeros(batch, height, width, dtype=torch.bool)
    for k in range(batch):
        if float(torch.rand((), generator=generator)) >= p:
            continue
        pixels = 0.0 if redraw else _uniform(*area, generator) * height * width
        while True:
            if redraw:
                pixels = _uniform(*area, generator) * height * width
            ratio = _uniform(*aspect, generator)
            w, h = int(math.sqrt(pixels / ratio)), int(math.sqrt(pixels * ratio))
            if h > height or w > width:
                # On long images few aspects fit: shrink the longer side to the image and keep the area.
                h, w = min(h, height), min(w, width)
                h, w = min(height, int(pixels / max(w, 1))), min(width, int(pixels / max(h, 1)))
            top, left = _integer(0, height - 1, generator), _integer(0, width - 1, generator)
            if top + h <= height and left + w <= width:
                break
        mask[k, top : top + h, left : left + w] = True
    return mask


def _draw_classes(present: Tensor, rule: Literal["floor", "ceil"], generator: Generator | None) -> Tensor:
    """Half of the classes, without replacement."""
    n = len(present)
    count = n // 2 if rule == "floor" else (n + 1) // 2
    return present[torch.randperm(n, generator=generator)[:count].to(present.device)]


def _classes_of(ids: Tensor, ignore: int | None) -> Tensor:
    present = torch.unique(ids)
    return present if ignore is None else present[present != ignore]


def class_mask(
    labels: Tensor | LabelMap,
    *,
    rule: Literal["floor", "ceil"] = "floor",
    pool: Literal["image", "batch"] = "image",
    ignore: int | None = 255,
    generator: Generator | None = None,
) -> Tensor:
    """ClassMix: True on the pixels of a random half of the classes.

    ClassMix and ReCo draw floor(n / 2) of the classes of the teacher's argmax of each image; DACS and
    DAFormer draw ceil(n / 2) of the source's labels, of the classes of the whole batch (`pool="batch"`).

    Args:
        labels: int (B, H, W), or a batched `LabelMap`, whose pixels that are not valid belong to no class.
        rule: how half of an odd number is rounded.
        pool: whether the classes are those of the image or of the batch.
        ignore: id that is never drawn; of a `LabelMap` it is what is not valid.
        generator: CPU generator.

    Returns:
        bool (B, H, W) on the labels' device.
    """
    if isinstance(labels, LabelMap):
        ignore = -1  # whatever was asked: validity says it, and no class has this id
        labels = labels.target(ignore)
    shared = _classes_of(labels, ignore) if pool == "batch" else None
    masks = []
    for ids in labels:
        present = shared if shared is not None else _classes_of(ids, ignore)
        masks.append(torch.isin(ids, _draw_classes(present, rule, generator)))
    return torch.stack(masks)


def complex_mask(
    labels: Tensor | LabelMap,
    *,
    grid: int = 4,
    base: Literal["class", "box"] = "class",
    ignore: int | None = 255,
    generator: Generator | None = None,
) -> Tensor:
    """ComplexMix: the image is cut into grid x grid cells, and each has its own class mask or box.

    With grid 1 and base "class" it is ClassMix; the finer the grid, the more complex the mixture.

    Args:
        labels: int (B, H, W) or a batched `LabelMap`; with base "box" only their size counts.
        grid: cells a side.
        base: half of the cell's classes, or a box of half the cell's area.
        ignore: id that is never drawn; of a `LabelMap` it is what is not valid.
        generator: CPU generator.
    """
    if isinstance(labels, LabelMap):
        ignore = -1
        labels = labels.target(ignore)
    ids = labels
    height, width = ids.shape[-2:]
    mask = torch.zeros(ids.shape, dtype=torch.bool, device=ids.device)
    ys = [round(k * height / grid) for k in range(grid + 1)]
    xs = [round(k * width / grid) for k in range(grid + 1)]
    for top, bottom in pairwise(ys):
        for left, right in pairwise(xs):
            if bottom == top or right == left:
                continue
            if base == "class":
                cell = class_mask(ids[:, top:bottom, left:right], ignore=ignore, generator=generator)
            else:
                cell = half_box_mask(len(ids), (bottom - top, right - left), generator=generator).to(ids.device)
            mask[:, top:bottom, left:right] = cell
    return mask


def cow_mask(
    batch: int,
    size: Size,
    *,
    sigma: tuple[float, float] = (8.0, 32.0),
    p: float = 0.5,
    generator: Generator | None = None,
) -> Tensor:
    """CowMix: Gaussian-filtered noise, cut so that a share p of it is True.

    Args:
        batch: masks.
        size: (H, W).
        sigma: range of the filter's sigma, pixels, drawn log-uniformly.
        p: expected share of True.
        generator: CPU generator.
    """
    quantile = math.sqrt(2) * float(torch.erfinv(torch.tensor(2 * p - 1, dtype=torch.float64)))
    masks = []
    for _ in range(batch):
        s = math.exp(_uniform(math.log(sigma[0]), math.log(sigma[1]), generator))
        noise = gaussian_blur(torch.randn(1, *size, generator=generator), s, 2 * math.ceil(3 * s) + 1)[0]
        masks.append(noise <= noise.mean() + quantile * noise.std(unbiased=False))
    return torch.stack(masks)


def patch_mask(
    batch: int, size: Size, *, block: int = 64, ratio: float = 0.7, generator: Generator | None = None
) -> Tensor:
    """MIC's masked image: a share `ratio` of block x block cells is False.

    Args:
        batch: masks.
        size: (H, W).
        block: side of a cell, pixels.
        ratio: chance that a cell is masked.
        generator: CPU generator.
    """
    cells = (math.ceil(size[0] / block), math.ceil(size[1] / block))
    return kept_cells(torch.rand(batch, *cells, generator=generator), size, block, ratio)


def kept_cells(draws: Tensor, size: Size, block: int, ratio: float) -> Tensor:
    """`patch_mask` of draws (B, cells a column, cells a row) in [0, 1); a cell whose draw is above ratio is kept."""
    kept = draws > ratio
    return kept.repeat_interleave(block, 1).repeat_interleave(block, 2)[:, : size[0], : size[1]]


def composite(foreground: Tensor, alpha: Tensor, background: Tensor) -> tuple[Tensor, Tensor]:
    """Copy-paste of a cut-out: alpha F + (1 - alpha) B, and its mask, alpha > 0 (UDA-SOD, AAAI 2022).

    Args:
        foreground: (..., C, H, W), uint8 or float.
        alpha: float (..., H, W) in [0, 1].
        background: as the foreground.

    Returns:
        The picture, of the background's dtype and exact where alpha is 0 or 1, and bool (..., H, W).
    """
    weight = alpha.unsqueeze(-3).float()
    blended = weight * foreground.float() + (1 - weight) * background.float()
    if not background.is_floating_point():
        blended = blended.round()
    return blended.to(background.dtype), alpha > 0


def _named(function: Callable[..., Tensor], **fixed: Any) -> Callable[..., Tensor]:
    def generate(batch: int, size: Size, generator: Generator | None = None) -> Tensor:
        return function(batch, size, generator=generator, **fixed)

    generate.__doc__ = f"`{function.__name__}` with {fixed}."
    return generate


# Masks that need no labels, called with (batch, (H, W), generator).
MASKS: dict[str, Callable[..., Tensor]] = {
    "cutmix": _named(box_mask, area=(0.5, 0.5), boxes=1),
    "cutout": _named(box_mask, area=(0.0, 1.0), boxes=1, keep=True),
    "cutout_hole": _named(box_mask, area=(0.0, 1.0), boxes=1),
    "cps": _named(box_mask, area=(0.25, 0.5), boxes=3),
    "half_box": _named(half_box_mask),
    "unimatch": _named(unimatch_box),
    "cow": _named(cow_mask),
    "mic": _named(patch_mask),
}
