"""Random crops as views, each drawn from an explicit generator, with the conventions of the papers that use
them."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Generator, Tensor

from maskwright.data.training.views import Size, View, overlap


def _uniform(low: float, high: float, generator: Generator | None) -> float:
    return low + (high - low) * float(torch.rand((), generator=generator))


def _integer(low: int, high: int, generator: Generator | None) -> int:
    """A whole number in [low, high]."""
    return int(torch.randint(low, high + 1, (), generator=generator)) if high > low else low


def _maybe_flip(view: View, chance: float, generator: Generator | None) -> View:
    return view.hflip() if float(torch.rand((), generator=generator)) < chance else view


def random_resized_crop(
    source_size: Size,
    size: Size,
    *,
    scale: tuple[float, float] = (0.08, 1.0),
    ratio: tuple[float, float] = (3 / 4, 4 / 3),
    flip: float = 0.5,
    generator: Generator | None = None,
) -> View:
    """A window of random area and aspect, resized: torchvision's `RandomResizedCrop` and flip.

    Args:
        source_size: (H, W) of the image.
        size: (h, w) of the view.
        scale: range of the window's share of the image's area.
        ratio: range of width over height, drawn log-uniformly.
        flip: chance of a left-right flip.
        generator: the source of randomness; torch's default one when None.
    """
    height, width = source_size
    low, high = math.log(ratio[0]), math.log(ratio[1])
    base = View.identity(source_size)
    for _ in range(10):
        area = height * width * _uniform(*scale, generator)
        aspect = math.exp(_uniform(low, high, generator))
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            top, left = _integer(0, height - h, generator), _integer(0, width - w, generator)
            return _maybe_flip(base.crop(top, left, h, w).resize(*size), flip, generator)
    # No window fits (a very long image): the largest central one of a permitted aspect.
    aspect = min(max(width / height, ratio[0]), ratio[1])
    w, h = min(width, max(1, round(height * aspect))), min(height, max(1, round(width / aspect)))
    view = base.crop((height - h) // 2, (width - w) // 2, h, w).resize(*size)
    return _maybe_flip(view, flip, generator)


def _scaled(source_size: Size, base: int | None, scale: tuple[float, float], generator: Generator | None) -> Size:
    """The image's size after its long side became base * U(scale), short side in proportion."""
    long = max(source_size)
    target = max(1, int((base or long) * _uniform(*scale, generator)))
    return max(1, int(source_size[0] * target / long + 0.5)), max(1, int(source_size[1] * target / long + 0.5))


def around(place: int, length: int, whole: int) -> int:
    """Where a window of `length` begins that has a place in its middle and lies inside [0, whole)."""
    return max(0, min(place - length // 2, whole - length))


def random_scale_crop(
    source_size: Size,
    size: Size,
    *,
    base: int | None = None,
    scale: tuple[float, float] = (0.5, 2.0),
    flip: float = 0.5,
    generator: Generator | None = None,
    centre: tuple[int, int] | None = None,
) -> View:
    """Random scale, padding at the right and bottom, random crop: the weak augmentation of the
    semi-supervised papers.

    The window is rounded to whole source pixels, so that only it needs decoding and resizing; the scale moves
    by less than one pixel over the crop for that.

    Args:
        source_size: (H, W) of the image.
        size: (h, w) of the view.
        base: long side before scaling (ST++: 400 for VOC, 2048 for Cityscapes); the image's own when None
            (UniMatch).
        scale: range of the factor.
        flip: chance of a left-right flip.
        generator: the source of randomness.
        centre: (row, column) of the source that the window lies around, moved inside the source at its borders; a
            random place when None.
    """
    height, width = _scaled(source_size, base, scale, generator)
    h = max(1, round(size[0] * source_size[0] / height))
    w = max(1, round(size[1] * source_size[1] / width))
    if centre is None:
        top = _integer(0, max(0, source_size[0] - h), generator)
        left = _integer(0, max(0, source_size[1] - w), generator)
    else:
        top, left = (around(c, n, whole) for c, n, whole in zip(centre, (h, w), source_size))
    return _maybe_flip(View.identity(source_size).crop(top, left, h, w).resize(*size), flip, generator)


def overlapping_crops(
    source_size: Size,
    size: Size,
    *,
    base: int | None = None,
    scale: tuple[float, float] = (0.8, 2.0),
    iou: tuple[float, float] = (0.1, 1.0),
    multiple: int = 8,
    tries: int = 50,
    flip: float = 0.5,
    generator: Generator | None = None,
) -> tuple[View, View]:
    """Two crops of one scaled image whose offset is whole feature cells (CAC, CVPR 2021).

    Args:
        source_size: (H, W) of the image.
        size: (h, w) of both views.
        base: long side before scaling; the image's own when None.
        scale: range of the factor, the same for both crops.
        iou: range of the pair's intersection over union, of whole windows.
        multiple: the offset between the crops is a multiple of it, in view pixels.
        tries: draws of the second crop before it becomes the first.
        flip: chance of a left-right flip, for each crop on its own.
        generator: the source of randomness.
    """
    height, width = _scaled(source_size, base, scale, generator)
    scaled = View.identity(source_size).resize(height, width)
    h, w = size
    # Rows and columns where a crop may begin; smaller images are padded at the right and bottom.
    rows, columns = max(0, height - h), max(0, width - w)
    top, left = _integer(0, rows, generator), _integer(0, columns, generator)
    second = (top, left)
    for _ in range(tries):
        y = top % multiple + multiple * _integer(0, (rows - top % multiple) // multiple, generator)
        x = left % multiple + multiple * _integer(0, (columns - left % multiple) // multiple, generator)
        shared = max(0, h - abs(y - top)) * max(0, w - abs(x - left))
        if iou[0] <= shared / (2 * h * w - shared) <= iou[1]:
            second = (y, x)
            break
    first_view = _maybe_flip(scaled.crop(top, left, h, w), flip, generator)
    return first_view, _maybe_flip(scaled.crop(*second, h, w), flip, generator)


def multi_crop(
    source_size: Size,
    crops: Sequence[tuple[int, Size, tuple[float, float]]],
    *,
    min_overlap: float = 0.0,
    min_overlap_others: float = 0.0,
    tries: int = 10,
    ratio: tuple[float, float] = (3 / 4, 4 / 3),
    flip: float = 0.5,
    generator: Generator | None = None,
) -> list[View]:
    """Several random resized crops of one image (SwAV), the later ones redrawn until they overlap the first
    group.

    PASS: [(2, (224, 224), (0.14, 1)), (6, (96, 96), (0.05, 0.14))]. SlotCon: min_overlap 0.01, 10 tries.
    Leopart: min_overlap 0.02, min_overlap_others 0.01, no flips.

    Args:
        source_size: (H, W) of the image.
        crops: (number, (h, w), area range) for each group; the first group are the global crops.
        min_overlap: share of the image's area that two global crops must share.
        min_overlap_others: share of it that every other crop must share with every global crop.
        tries: draws of a crop before the last draw is kept as it is.
        ratio: range of width over height.
        flip: chance of a left-right flip for each crop.
        generator: the source of randomness.
    """
    views: list[View] = []
    globals_: list[View] = []
    whole = source_size[0] * source_size[1]
    for group, (count, size, scale) in enumerate(crops):
        needed = (min_overlap if group == 0 else min_overlap_others) * whole
        for _ in range(count):
            for _ in range(max(1, tries)):
                view = random_resized_crop(source_size, size, scale=scale, ratio=ratio, flip=flip, generator=generator)
                if needed <= 0 or all(_shared_area(view, other) >= needed for other in globals_):
                    break
            views.append(view)
            if group == 0:
                globals_.append(view)
    return views


def _shared_area(a: View, b: View) -> float:
    shared = overlap(a, b)
    return 0.0 if shared is None else shared.area


def windows_where(
    wanted: Tensor,
    allowed: Tensor,
    view: View,
    size: int,
    count: int,
    generator: Generator | None = None,
) -> list[View]:
    """Square windows of a view around random places of a map, as many as asked for, all inside the view.

    Wanted places are drawn first, then allowed ones, then any; a place is drawn twice only where there are too few.

    Args:
        wanted: bool (h, w), a map of any resolution that covers the view.
        allowed: bool (h, w).
        view: what they are windows of.
        size: their side, whole pixels of the view, at most its shorter side.
        count: how many.
        generator: CPU generator; torch's default one when None.

    Raises:
        ValueError: maps that do not belong together, or a window larger than the view.
    """
    if wanted.dim() != 2 or wanted.shape != allowed.shape:
        raise ValueError(f"maps {tuple(wanted.shape)} and {tuple(allowed.shape)}, expected the same (h, w)")
    height, width = view.size
    if not 1 <= size <= min(height, width):
        raise ValueError(f"windows of {size} pixels in a view of {height} x {width}")
    h, w = wanted.shape
    y = (torch.arange(h) + 0.5) * height / h
    x = (torch.arange(w) + 0.5) * width / w
    half = size / 2
    fits = ((y >= half) & (y <= height - half))[:, None] & ((x >= half) & (x <= width - half))
    allowed = allowed.cpu() & fits
    tier = 2 - allowed.float() - (allowed & wanted.cpu()).float() + (~fits).float()
    order = (torch.rand(h, w, generator=generator) + 2 * tier).flatten().argsort()[:count].tolist()
    views = []
    for n in range(count):
        i, j = divmod(order[n % len(order)], w)
        top = min(max(0, math.floor(float(y[i]) - half)), height - size)
        left = min(max(0, math.floor(float(x[j]) - half)), width - size)
        views.append(view.crop(top, left, size, size))
    return views
