"""From a photograph of any size to class probabilities or a mask, whole or in tiles, at bounded memory.

What is kept of a window is the network's logits at feature resolution, hundreds of times smaller than probabilities at
the photograph's. These are made block by block: logits of all windows that touch the block are resized to it, turned
into probabilities, blended, refined and reduced to ids at once. Rows of windows are dropped as soon as no later block
touches them, and an image too wide for that is worked off in vertical stripes, so memory depends neither on the
image's height nor on its width.

Legend: C classes, (H, W) image size, (h, w) feature-map size, maps: one per test-time scale and flip.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from maskwright.data.masking.classes import IGNORE8, IGNORE16
from maskwright.errors import MaskwrightError
from maskwright.models.backbones.dense import autocast
from maskwright.models.parts.named_clusters import NamedClusters
from maskwright.ops.memory import PixelBudget
from maskwright.predict.refine import check_refinement, refine
from maskwright.predict.tiles import WHOLE_PIXELS, Axis, Plan, make_plan

MAX_BYTES = 1 << 30
"""Bytes that a prediction may take beside the image, the network and the result."""
BLOCK_ROWS = 256
"""Rows of a block: large enough for matrix products, small enough for the cache."""
BLOCK_COLS = 16 * BLOCK_ROWS
"""Columns of a block at most: the matrix that resizes a strip's columns has as many rows."""
MARGIN = 128
"""Pixels of context around a block that is refined on its own: twice the CRF's usual spatial deviation."""
BATCH_PIXELS = {"cpu": 1 << 18, "cuda": 1 << 23}
"""Input pixels of one batch of windows."""


@dataclass(frozen=True)
class Prediction:
    """A predicted mask.

    Attributes:
        ids: (H, W), uint8 up to 255 classes, else uint16, unless another type was asked for.
        confidence: (H, W) probability of the predicted class: float32 or float16 in [0, 1], uint8 in [0, 255]; or None.
        classes: C.
        tile: pixels of the windows in which the image was seen; None where it was seen whole.
    """

    ids: np.ndarray
    confidence: np.ndarray | None
    classes: int
    tile: int | None = None


def predict_probs(
    segmenter: Any,
    image: np.ndarray,
    *,
    tile: int | None = None,
    overlap: float = 0.25,
    flips: bool = False,
    scales: Sequence[float] = (1.0,),
    device: str | torch.device = "cpu",
    precision: str = "fp32",
    only: Sequence[int] | None = None,
) -> np.ndarray:
    """Class probabilities of every pixel: the softmax of the segmenter's logits, resized bilinearly.

    Args:
        segmenter: a `models.segmenter.Segmenter`; it is moved to `device` and left there.
        image: uint8 (H, W, 3), RGB, from 1 x 1 up.
        tile: see the image in windows of this many pixels (`predict.tiles` gives the rule of scale); 0: whole; None
            leaves the choice to the image's size and that of the photographs trained on.
        overlap: share of a tile that its neighbour holds too; blended by a raised cosine.
        flips: average with the prediction of the mirrored image.
        scales: average over the input sizes that these factors give.
        device: where the network runs.
        precision: "fp32" or "bf16".
        only: ids of the classes that may occur; the others get probability 0, and these the same shares among
            themselves. All if None.

    Returns:
        float32 (C, H, W), summing to 1 over C. It holds 4 C H W bytes: for large images take `predict_mask`. Where
        classes are made of clusters, each is the sum of its clusters', and what is missing to 1 is that of void.

    Raises:
        MaskwrightError: the image is no uint8 RGB image, or an argument is out of range.
    """
    with _ready(segmenter, device):
        windows = _Windows(segmenter, image, tile, overlap, flips, scales, device, precision, only)
        out = np.empty((windows.named, *image.shape[:2]), np.float32)
        for top, bottom, left, right in windows.blocks(MAX_BYTES):
            probs = windows.compose(top, bottom, left, right)
            probs = probs if windows.naming is None else windows.naming.join(probs)[: windows.named]
            out[:, top:bottom, left:right] = probs.cpu().numpy()
    return out


def predict_mask(
    segmenter: Any,
    image: np.ndarray,
    *,
    tile: int | None = None,
    overlap: float = 0.25,
    flips: bool = False,
    scales: Sequence[float] = (1.0,),
    refine: str = "none",
    settings: dict[str, Any] | None = None,
    device: str | torch.device = "cpu",
    precision: str = "fp32",
    only: Sequence[int] | None = None,
    max_bytes: int = MAX_BYTES,
    dtype: type | None = None,
    confidence: type | None = np.float32,
    seen: list[Tensor] | None = None,
) -> Prediction:
    """The most probable class of every pixel, at bounded memory: 20000 x 20000 pixels within 4 GiB in all.

    Where classes are made of clusters it is the class of the most probable cluster, so that the mask is that of the
    clusters with each id replaced; where that cluster is void, the id is 255 (65535 above 255 classes). A class of
    several clusters may be more probable in all; its probability is what `predict_probs` tells, and here the
    confidence.

    Args:
        segmenter, image, tile, overlap, flips, scales, device, precision, only: as for `predict_probs`.
        refine: "none", "crf" or "guided"; where probabilities of the whole image would not fit, in blocks with margins.
        settings: options of the refinement.
        max_bytes: bytes to take beside image, network and result. Results do not depend on it unless refined.
        dtype: type of the ids; the smallest that holds them if None.
        confidence: np.float32, np.float16 or np.uint8, or None for no confidence.
        seen: logits (C, h, w) of the whole image at each scale and flip, where `predict_many` has them already.

    Raises:
        MaskwrightError: as `predict_probs`, or an unknown refinement.
    """
    check_refinement(refine)
    if max_bytes < 1 << 20:
        raise MaskwrightError(f"max_bytes is {max_bytes}", "at least one mebibyte")
    with _ready(segmenter, device):
        windows = _Windows(segmenter, image, tile, overlap, flips, scales, device, precision, only, seen)
        if dtype is None:
            dtype = np.uint8 if windows.named <= 255 else np.uint16
        ids: np.ndarray = np.empty(image.shape[:2], dtype)
        conf: np.ndarray | None = None if confidence is None else np.empty(image.shape[:2], confidence)
        for top, bottom, left, right in windows.blocks(max_bytes, refined=refine != "none"):
            if refine == "none":
                probs = windows.compose(top, bottom, left, right)
            else:
                probs = torch.from_numpy(_refined(windows, (top, bottom, left, right), refine, settings or {}))
            best, winner = _most_probable(probs)
            if windows.naming is not None:
                best, winner = _as_classes(windows.naming, probs, winner, conf is not None, best)
            ids[top:bottom, left:right] = winner.cpu().numpy()
            if conf is not None:
                best = best.clamp_(0, 1)
                scaled = best.mul_(255).round_() if conf.dtype == np.uint8 else best
                conf[top:bottom, left:right] = scaled.cpu().numpy()
    return Prediction(ids, conf, windows.named, windows.plan.tile)


def predict_many(
    segmenter: Any,
    images: Sequence[np.ndarray],
    *,
    tile: int | None = None,
    flips: bool = False,
    scales: Sequence[float] = (1.0,),
    device: str | torch.device = "cpu",
    precision: str = "fp32",
    only: Sequence[Sequence[int] | None] | None = None,
    **options: Any,
) -> list[Prediction]:
    """Masks of several images of one size, which the network sees together where it sees them whole.

    They are what `predict_mask` gives one by one, but for pixels where two classes are equally probable up to the
    rounding of sums. Images in windows are gone through one by one: their windows are seen together already.

    Args:
        segmenter, tile, flips, scales, device, precision: as for `predict_probs`.
        images: uint8 (H, W, 3) each, of one size.
        only: for each image the ids of the classes that may occur, None for all.
        options: further ones of `predict_mask`.

    Raises:
        MaskwrightError: as `predict_mask`; a batch that does not fit into the memory of a GPU is halved.
    """
    limits = only if only is not None else [None] * len(images)
    known: list[list[Tensor] | None] = [None] * len(images)
    plan = make_plan(segmenter, images[0].shape[:2], tile=tile, overlap=0.0, scales=tuple(scales))
    if len(images) > 1 and len(plan.rows) == len(plan.cols) == 1 and plan.tile is None:
        known = [[] for _ in images]
        with _ready(segmenter, device):
            for size in plan.inputs:
                see = partial(_see, segmenter, size=size, device=torch.device(device), precision=precision, flips=flips)
                done = 0
                budget = PixelBudget(len(images) * size[0] * size[1])
                for chosen, maps in budget.batches(images, size, see):
                    for n in range(len(chosen)):
                        known[done + n].extend(m[n].clone() for m in maps)  # type: ignore[union-attr]
                    done += len(chosen)
    return [
        predict_mask(
            segmenter, image, tile=tile, flips=flips, scales=scales, device=device, precision=precision, only=limit,
            seen=seen, **options,
        )
        for image, limit, seen in zip(images, limits, known)
    ]  # fmt: skip


def smallest_confidence(size: tuple[int, int]) -> type:
    """float32 for ordinary images, float16 above `WHOLE_PIXELS`, where every byte a pixel is half a gigabyte."""
    return np.float32 if size[0] * size[1] <= WHOLE_PIXELS else np.float16


def _refined(windows: _Windows, block: tuple[int, int, int, int], how: str, settings: dict[str, Any]) -> np.ndarray:
    top, bottom, left, right = block
    height, width = windows.image.shape[:2]
    t, b = max(0, top - MARGIN), min(height, bottom + MARGIN)
    l, r = max(0, left - MARGIN), min(width, right + MARGIN)
    probs = refine(windows.compose(t, b, l, r), windows.image[t:b, l:r], how, **settings)
    return np.ascontiguousarray(probs[:, top - t : bottom - t, left - l : right - l])


def _most_probable(probs: Tensor) -> tuple[Tensor, Tensor]:
    """Largest value over C and its index, the first of equals; overwrites no input."""
    if probs.is_cuda:
        values, places = probs.max(0)
        return values, places
    # Class by class is three times as fast as torch's reduction over the first dimension, and makes no int64 map.
    best = probs[0].clone()
    winner = torch.zeros(best.shape, dtype=torch.uint8 if len(probs) <= 256 else torch.int32)
    for c in range(1, len(probs)):
        winner.masked_fill_(probs[c] > best, c)
        torch.maximum(best, probs[c], out=best)
    return best, winner


def _as_classes(
    naming: NamedClusters, probs: Tensor, winner: Tensor, confidence: bool, best: Tensor
) -> tuple[Tensor, Tensor]:
    """The class of each pixel's most probable cluster, and that class's probability where it is asked for.

    Args:
        naming: the class of each cluster.
        probs: of the clusters (K, h, w).
        winner: the most probable of them (h, w).
        confidence: whether probabilities of classes are wanted.
        best: the winner's probability (h, w), given back where they are not.
    """
    slots = naming.slots.to(probs.device)[winner.long()]
    if confidence:
        best = naming.join(probs).gather(0, slots[None])[0]
    void = IGNORE8 if naming.classes <= IGNORE8 else IGNORE16
    return best, slots.masked_fill_(slots == naming.classes, void)


@contextmanager
def _ready(segmenter: Any, device: str | torch.device) -> Iterator[None]:
    """Evaluation mode, on the device, without gradients; the mode is put back afterwards."""
    training = segmenter.training
    segmenter.to(device)
    segmenter.eval()
    try:
        with torch.inference_mode():
            yield
    finally:
        segmenter.train(training)


def _see(
    segmenter: Any,
    crops: Sequence[np.ndarray],
    *,
    size: tuple[int, int],
    device: torch.device,
    precision: str,
    flips: bool,
) -> list[Tensor]:
    """Logits (B, C, h, w) of images of one size at an input size, and those of the mirrored ones, mirrored back."""
    x = segmenter.preprocess.apply_many(list(crops), size).to(device)  # (B, 3, h, w)
    with autocast(device, precision):
        maps = [_told_apart(segmenter, x)]
        if flips:
            maps.append(_told_apart(segmenter, x.flip(-1)).flip(-1))
    return [m.float() for m in maps]


def _told_apart(segmenter: Any, x: Tensor) -> Tensor:
    """Logits (B, C, h, w), or of clusters (B, K, h, w) where classes are made of them."""
    if getattr(segmenter, "naming", None) is None:
        return segmenter(x)
    return segmenter.told_apart(segmenter.decode(segmenter.features(x)))


class _Windows:
    """Logits of an image's windows, computed when a block asks for them, and their blend."""

    def __init__(
        self,
        segmenter: Any,
        image: np.ndarray,
        tile: int | None,
        overlap: float,
        flips: bool,
        scales: Sequence[float],
        device: str | torch.device,
        precision: str,
        only: Sequence[int] | None = None,
        seen: list[Tensor] | None = None,
    ) -> None:
        if not isinstance(image, np.ndarray) or image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
            found = f"{image.dtype} {image.shape}" if isinstance(image, np.ndarray) else type(image).__name__
            raise MaskwrightError(f"the image is {found}", "a uint8 array (H, W, 3) in RGB")
        if precision not in ("fp32", "bf16"):
            raise MaskwrightError(f"precision is {precision!r}", "fp32 or bf16")
        self.segmenter, self.image, self.flips = segmenter, image, flips
        self.naming: NamedClusters | None = getattr(segmenter, "naming", None)
        self.device, self.precision = torch.device(device), precision
        height, width = image.shape[:2]
        self.plan: Plan = make_plan(segmenter, (height, width), tile=tile, overlap=overlap, scales=tuple(scales))
        self.held: dict[tuple[int, int], list[Tensor]] = {}
        self.budget = PixelBudget(BATCH_PIXELS.get(self.device.type, BATCH_PIXELS["cuda"]))
        if seen is None:
            self._fill([(0, 0)])
        else:
            self.held[0, 0] = seen
        first = self.held[0, 0]
        self.classes = int(first[0].shape[0])  # clusters, where classes are made of them
        self.named = self.classes if self.naming is None else self.naming.classes
        self.window_bytes = sum(m.numel() * m.element_size() for m in first)
        self.only = None if only is None else self._told_apart(sorted(set(only)))

    def _told_apart(self, only: list[int]) -> list[int]:
        """What may occur, as the network tells things apart: classes, or the clusters that they are made of."""
        if not only or only[0] < 0 or only[-1] >= self.named:
            raise MaskwrightError(f"only the classes {only}", f"at least one of 0 to {self.named - 1}")
        if self.naming is None:
            return only
        clusters = [k for k, c in enumerate(self.naming.class_of.tolist()) if c in only]
        if not clusters:
            raise MaskwrightError(
                f"only the classes {only}, of which none is made of any cluster", "a class that the model can find",
                "name others",
            )  # fmt: skip
        return clusters

    # ------------------------------------------------------------------ the network

    def _fill(self, places: list[tuple[int, int]]) -> None:
        """Runs the network on the windows at these (row, column) places."""
        self.held.update((place, []) for place in places)
        for size in self.plan.inputs:
            try:
                for chosen, maps in self.budget.batches(places, size, partial(self._logits, size=size)):
                    for n, place in enumerate(chosen):
                        # Without the clone a batch's tensor would stay alive as long as one window of it.
                        self.held[place].extend(m[n].clone() if len(chosen) > 1 else m[n] for m in maps)
            except torch.OutOfMemoryError as error:
                raise MaskwrightError(
                    f"one window of {size[0]} x {size[1]} pixels does not fit into the memory of {self.device}",
                    "a smaller one",
                    f"add --tile {max(1, min(size) // 2)}, or --device cpu",
                ) from error

    def _crop(self, i: int, j: int) -> np.ndarray:
        rows, cols = self.plan.rows, self.plan.cols
        top, left = rows.starts[i], cols.starts[j]
        return self.image[top : top + rows.length, left : left + cols.length]

    def _logits(self, places: Sequence[tuple[int, int]], size: tuple[int, int]) -> list[Tensor]:
        crops = [self._crop(i, j) for i, j in places]
        return _see(self.segmenter, crops, size=size, device=self.device, precision=self.precision, flips=self.flips)

    # ------------------------------------------------------------------ the order of work

    def blocks(self, max_bytes: int, refined: bool = False) -> Iterator[tuple[int, int, int, int]]:
        """Blocks (top, bottom, left, right) that cover the image; the windows each needs are held when it comes."""
        height, width = self.image.shape[:2]
        margin = MARGIN if refined else 0
        block_h, block_w = self._block_size(max_bytes, refined)
        for x0, x1 in _spans(width, self._stripe(max_bytes // 4, block_h + 2 * margin, block_w, margin)):
            columns = self.plan.cols.touching(max(0, x0 - margin), min(width, x1 + margin))
            for y0, y1 in _spans(height, block_h):
                rows = self.plan.rows.touching(max(0, y0 - margin), min(height, y1 + margin))
                needed = [(i, j) for i in rows for j in columns]
                wanted = set(needed)
                for place in [p for p in self.held if p not in wanted]:
                    del self.held[place]
                self._fill([p for p in needed if p not in self.held])
                for left, right in _spans(x1 - x0, block_w):
                    yield y0, y1, x0 + left, x0 + right

    def _block_size(self, max_bytes: int, refined: bool) -> tuple[int, int]:
        height, width = self.image.shape[:2]
        if not refined:
            # Four arrays of a block's probabilities live at once; beyond 32 MiB they leave the cache for nothing.
            pixels = max(4096, min(max_bytes // 4, 32 << 20) // (16 * self.classes))
            rows = min(height, BLOCK_ROWS)
            return rows, min(width, BLOCK_COLS, max(1, pixels // rows))
        # A lattice of the CRF takes about 200 bytes a pixel and holds the classes some six times over.
        pixels = max_bytes // 2 // (200 + 24 * self.classes)
        if height * width <= pixels:
            return height, width
        side = max(2 * MARGIN, math.isqrt(pixels) - 2 * MARGIN)
        return min(height, side), min(width, side)

    def _stripe(self, budget: int, band: int, block_w: int, margin: int) -> int:
        """Width of the vertical stripes: all of the image, or what keeps the logits held within a budget."""
        rows, cols = self.plan.rows, self.plan.cols
        held_rows = min(len(rows), 2 + _windows_across(rows, band))
        fitting = budget // (held_rows * self.window_bytes)
        if len(cols) <= fitting:
            return cols.total
        step = (cols.total - cols.length) / max(1, len(cols) - 1)
        width = int((fitting - 2) * step) - 2 * margin
        return max(block_w, width // block_w * block_w)

    # ------------------------------------------------------------------ probabilities

    def compose(self, top: int, bottom: int, left: int, right: int) -> Tensor:
        """Probabilities (C, bottom - top, right - left) of a block whose windows are held."""
        probs = self._blend(top, bottom, left, right)
        if self.only is not None:
            for c in range(self.classes):
                # A little for each that may occur: where all of them are 0, one of them still wins.
                probs[c].add_(1e-12) if c in self.only else probs[c].zero_()
            probs.div_(probs.sum(0))
        return probs

    def _blend(self, top: int, bottom: int, left: int, right: int) -> Tensor:
        """Of all classes."""
        rows, cols = self.plan.rows, self.plan.cols
        places = [(i, j) for i in rows.touching(top, bottom) for j in cols.touching(left, right)]
        if len(places) == 1:
            return self._window_probs(places[0], top, bottom, left, right)
        out = torch.zeros((self.classes, bottom - top, right - left), device=self.device)
        for i, j in places:
            y0, y1, row_weights = _part(rows, i, top, bottom)
            x0, x1, col_weights = _part(cols, j, left, right)
            probs = self._window_probs((i, j), y0, y1, x0, x1)
            weights = torch.outer(row_weights.to(self.device), col_weights.to(self.device))
            out[:, y0 - top : y1 - top, x0 - left : x1 - left].addcmul_(probs, weights)
        return out

    def _window_probs(self, place: tuple[int, int], top: int, bottom: int, left: int, right: int) -> Tensor:
        rows, cols = self.plan.rows, self.plan.cols
        y, x = rows.starts[place[0]], cols.starts[place[1]]
        maps = self.held[place]
        total: Tensor | None = None
        for logits in maps:
            part = resize_part(logits, (rows.length, cols.length), (top - y, bottom - y), (left - x, right - x))
            probs = part.softmax(0)
            total = probs if total is None else total.add_(probs)
        assert total is not None
        return total if len(maps) == 1 else total.div_(len(maps))


def _part(axis: Axis, index: int, low: int, high: int) -> tuple[int, int, Tensor]:
    """The pixels of [low, high) that a window holds, and its weights there."""
    start = axis.starts[index]
    a, b = max(low, start), min(high, start + axis.length)
    return a, b, torch.from_numpy(axis.weights[index, a - start : b - start])


def _windows_across(axis: Axis, length: int) -> int:
    """Windows that at most start within so many pixels."""
    if len(axis) == 1:
        return 1
    return math.ceil(length * (len(axis) - 1) / (axis.total - axis.length))


def _spans(total: int, length: int) -> Iterator[tuple[int, int]]:
    for start in range(0, total, length):
        yield start, min(total, start + length)


def resize_part(x: Tensor, size: tuple[int, int], rows: tuple[int, int], cols: tuple[int, int]) -> Tensor:
    """A window of a map resized bilinearly, without making the rest of it.

    Equals `F.interpolate(x, size, mode="bilinear", antialias=True, align_corners=False)[..., rows, cols]` (enlarging,
    so also without antialias), as two products with matrices of the window's size.

    Args:
        x: float (C, h, w).
        size: (H, W) that all of `x` would get.
        rows: first row and end.
        cols: first column and end.

    Returns:
        (C, rows, columns).
    """
    row_matrix, r0, r1 = _interpolation(x.shape[1], size[0], *rows, x)
    col_matrix, c0, c1 = _interpolation(x.shape[2], size[1], *cols, x)
    return (row_matrix @ x[:, r0:r1, c0:c1]) @ col_matrix.T  # (C, rows, w') then (C, rows, columns)


def _interpolation(source: int, target: int, low: int, high: int, like: Tensor) -> tuple[Tensor, int, int]:
    """Weights (high - low, n) of the source cells [first, first + n), with first and its end."""
    scale = source / target
    reach = max(1.0, scale)
    centre = (torch.arange(low, high, dtype=torch.float64) + 0.5) * scale - 0.5
    first = max(0, math.floor(float(centre[0]) - reach) + 1)
    last = min(source, math.ceil(float(centre[-1]) + reach))
    # At the ends of the map a centre may lie beyond the last cell; the nearest cell then counts alone.
    first, last = min(first, source - 1), max(last, 1)
    cells = torch.arange(first, last, dtype=torch.float64)
    weights = (1 - (centre[:, None] - cells).abs() / reach).clamp_(min=0)
    weights = weights / weights.sum(1, keepdim=True)
    return weights.to(like), first, last
