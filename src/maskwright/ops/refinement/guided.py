"""Colour guided filter: the nearly free stand-in for a dense CRF.

In every window the output is an affine function of the photograph's colour, q = a . I + b, fitted to the input by ridge
regression; a pixel takes the mean of the functions of all windows over it. Window means are running sums, so that the
cost does not depend on the radius.

Legend: C channels, (H, W) pixels, r radius, windows (2 r + 1)^2 cut off at the border.

Sources: He, Sun and Tang, Guided Image Filtering, ECCV 2010 and PAMI 2013; He and Sun, Fast Guided Filter, 2015
(`subsample`).
"""

from __future__ import annotations

from functools import partial

import numpy as np
from numba import njit

from maskwright.ops.threads import Threads


def guided_filter(
    x: np.ndarray,
    image: np.ndarray,
    radius: int = 8,
    eps: float = 1e-3,
    subsample: int = 1,
    *,
    threads: int | None = None,
) -> np.ndarray:
    """Filters maps so that their edges follow those of a colour photograph.

    Args:
        x: float (C, H, W), any range.
        image: uint8 (H, W, 3), or float (H, W, 3) in [0, 1].
        radius: pixels, at least 1: windows are 2 radius + 1 wide.
        eps: ridge on the colour weights, in squares of the image's range [0, 1]: colour contrast below sqrt(eps) is
            smoothed over.
        subsample: fits the functions on every `subsample`-th pixel each way and interpolates them (Fast Guided
            Filter); 1 is exact.
        threads: threads to run on; None takes what numba would. The result does not depend on it.

    Returns:
        float32 (C, H, W). Near edges it may leave the range of `x` a little.

    Raises:
        ValueError: for other shapes, types or settings, and values not finite.
    """
    x, image = np.asarray(x), np.asarray(image)
    if x.ndim != 3 or not x.size:
        raise ValueError(f"maps of shape {x.shape}: expected (C, H, W), none of them 0")
    if image.shape != (*x.shape[1:], 3):
        raise ValueError(f"an image of shape {image.shape}: expected {(*x.shape[1:], 3)}, the size of the maps")
    if radius < 1 or not eps > 0 or subsample < 1:
        raise ValueError(f"radius {radius}, eps {eps}, subsample {subsample}: expected at least 1, above 0, at least 1")
    guide = np.ascontiguousarray(image.transpose(2, 0, 1), dtype=np.float32)
    if image.dtype == np.uint8:
        guide *= np.float32(1.0 / 255.0)
    maps = np.ascontiguousarray(x, dtype=np.float32)
    if not (np.isfinite(maps).all() and np.isfinite(guide).all()):
        raise ValueError("values that are not finite: expected finite maps and image")
    out = np.empty_like(maps)
    step = min(subsample, *x.shape[1:])
    few_guide = np.ascontiguousarray(guide[:, step // 2 :: step, step // 2 :: step])
    few_radius = max(1, round(radius / step))
    means, inverse = _window_statistics(few_guide, few_radius, eps)

    def refine(channel: int) -> None:
        few = np.ascontiguousarray(maps[channel, step // 2 :: step, step // 2 :: step])
        weights = np.empty((4, *few.shape), np.float32)
        _fit(few, few_guide, means, inverse, few_radius, weights)
        smooth = np.empty_like(weights)
        for k in range(4):
            _box_mean(weights[k], few_radius, smooth[k])
        _apply(smooth, guide, step, out[channel])

    with Threads(threads) as pool:
        pool.run([partial(refine, channel) for channel in range(len(maps))])
    return out


def _window_statistics(guide: np.ndarray, radius: int, eps: float) -> tuple[np.ndarray, np.ndarray]:
    """Mean colour (3, H, W) of each window and the inverse of its covariance + eps, upper triangle (6, H, W)."""
    means = np.empty_like(guide)
    for k in range(3):
        _box_mean(guide[k], radius, means[k])
    # a centred guide keeps the covariance, a small difference of products, precise in float32
    centre = guide.mean(axis=(1, 2), keepdims=True)
    shifted = guide - centre
    products = np.empty((6, *guide.shape[1:]), np.float32)
    for slot, (i, j) in enumerate(((0, 0), (0, 1), (0, 2), (1, 1), (1, 2), (2, 2))):
        _box_mean(shifted[i] * shifted[j], radius, products[slot])
        products[slot] -= (means[i] - centre[i]) * (means[j] - centre[j])
    return means, _inverse(products, eps)


@njit(cache=True, nogil=True)
def _inverse(covariance, eps):  # type: ignore[no-untyped-def]
    """Inverses of symmetric 3x3 matrices + eps I by cofactors, in float64."""
    _, height, width = covariance.shape
    out = np.empty_like(covariance)
    for y in range(height):
        for x in range(width):
            rr, rg, rb = covariance[0, y, x] + eps, np.float64(covariance[1, y, x]), np.float64(covariance[2, y, x])
            gg, gb, bb = covariance[3, y, x] + eps, np.float64(covariance[4, y, x]), covariance[5, y, x] + eps
            c0, c1, c2 = gg * bb - gb * gb, gb * rb - rg * bb, rg * gb - gg * rb
            scale = 1.0 / (rr * c0 + rg * c1 + rb * c2)
            out[0, y, x], out[1, y, x], out[2, y, x] = c0 * scale, c1 * scale, c2 * scale
            out[3, y, x] = (rr * bb - rb * rb) * scale
            out[4, y, x] = (rb * rg - rr * gb) * scale
            out[5, y, x] = (rr * gg - rg * rg) * scale
    return out


@njit(cache=True, nogil=True)
def _box_mean(x, radius, out):  # type: ignore[no-untyped-def]
    """Mean over the windows, cut off at the border: running sums down the columns, then along each row, in float64."""
    height, width = x.shape
    column = np.zeros(width, np.float64)
    for y in range(min(radius, height)):
        for c in range(width):
            column[c] += x[y, c]
    for y in range(height):
        if y + radius < height:
            for c in range(width):
                column[c] += x[y + radius, c]
        if y - radius - 1 >= 0:
            for c in range(width):
                column[c] -= x[y - radius - 1, c]
        rows = min(y + radius, height - 1) - max(y - radius, 0) + 1
        total = 0.0
        for c in range(min(radius, width)):
            total += column[c]
        for c in range(width):
            if c + radius < width:
                total += column[c + radius]
            if c - radius - 1 >= 0:
                total -= column[c - radius - 1]
            out[y, c] = total / (rows * (min(c + radius, width - 1) - max(c - radius, 0) + 1))


@njit(cache=True, nogil=True)
def _fit(x, guide, means, inverse, radius, weights):  # type: ignore[no-untyped-def]
    """Weights (4, H, W) of red, green, blue and 1 of each window's function."""
    height, width = x.shape
    mean = np.empty((height, width), np.float32)
    product = np.empty((height, width), np.float32)
    _box_mean(x, radius, mean)
    level = np.float32(x.mean())
    for k in range(3):
        for y in range(height):
            for c in range(width):
                product[y, c] = guide[k, y, c] * (x[y, c] - level)
        _box_mean(product, radius, weights[k])
        for y in range(height):
            for c in range(width):
                weights[k, y, c] -= means[k, y, c] * (mean[y, c] - level)
    for y in range(height):
        for c in range(width):
            r, g, b = weights[0, y, c], weights[1, y, c], weights[2, y, c]
            ar = inverse[0, y, c] * r + inverse[1, y, c] * g + inverse[2, y, c] * b
            ag = inverse[1, y, c] * r + inverse[3, y, c] * g + inverse[4, y, c] * b
            ab = inverse[2, y, c] * r + inverse[4, y, c] * g + inverse[5, y, c] * b
            weights[0, y, c], weights[1, y, c], weights[2, y, c] = ar, ag, ab
            weights[3, y, c] = mean[y, c] - ar * means[0, y, c] - ag * means[1, y, c] - ab * means[2, y, c]


@njit(cache=True, nogil=True)
def _apply(weights, guide, step, out):  # type: ignore[no-untyped-def]
    """The functions, bilinear between the pixels that they were fitted on, of the full guide."""
    height, width = out.shape
    if step == 1:
        for y in range(height):
            for c in range(width):
                out[y, c] = (
                    weights[0, y, c] * guide[0, y, c]
                    + weights[1, y, c] * guide[1, y, c]
                    + weights[2, y, c] * guide[2, y, c]
                    + weights[3, y, c]
                )
        return
    few_height, few_width = weights.shape[1:]
    row = np.empty((4, few_width), np.float32)
    for y in range(height):
        at = min(max((y - step // 2) / step, 0.0), few_height - 1.0)
        top = min(int(at), max(few_height - 2, 0))
        under = min(top + 1, few_height - 1)
        share = np.float32(at - top)
        for k in range(4):
            for c in range(few_width):
                row[k, c] = weights[k, top, c] + share * (weights[k, under, c] - weights[k, top, c])
        for c in range(width):
            across = min(max((c - step // 2) / step, 0.0), few_width - 1.0)
            left = min(int(across), max(few_width - 2, 0))
            right = min(left + 1, few_width - 1)
            part = np.float32(across - left)
            total = row[3, left] + part * (row[3, right] - row[3, left])
            for k in range(3):
                total += (row[k, left] + part * (row[k, right] - row[k, left])) * guide[k, y, c]
            out[y, c] = total
