"""Fully connected conditional random field with mean-field inference, in numba: no compiler, no wheel to miss.

Every pixel speaks to every other through two Gaussian kernels, one of position (smoothness) and one of position and
colour (appearance), filtered on the permutohedral lattice; labels that differ pay (Potts). Kernels are normalised
symmetrically, D^-1/2 K D^-1/2 with D the row sums of K, as pydensecrf's NORMALIZE_SYMMETRIC with DIAG_KERNEL.

Legend: C classes, (H, W) pixels, N = H W, P channels padded to a multiple of 8, Q the marginals.

Sources: Kraehenbuehl and Koltun, Efficient Inference in Fully Connected CRFs with Gaussian Edge Potentials, NeurIPS
2011; Adams et al., Eurographics 2010.
"""

from __future__ import annotations

from functools import partial

import numpy as np
from numba import njit

from maskwright.ops.lanes import LANES, add8, axpy8, exp8, largest8, load8, max8, same8, scale8, store8, sum8
from maskwright.ops.refinement.permutohedral import Lattice, build_lattices, spread
from maskwright.ops.threads import Threads

CRF_SETTINGS: dict[str, dict[str, float]] = {
    name: {
        "spatial_sigma": spatial[0],
        "spatial_weight": spatial[1],
        "color_xy_sigma": color[0],
        "color_rgb_sigma": color[1],
        "color_weight": color[2],
        "iterations": iterations,
    }
    for name, spatial, color, iterations in (
        ("stego", (1.0, 3.0), (67.0, 3.0, 4.0), 10),
        ("maskcontrast", (1.0, 3.0), (67.0, 3.0, 4.0), 10),
        ("reco", (1.0, 3.0), (67.0, 3.0, 4.0), 10),
        ("clip_es", (1.0, 3.0), (67.0, 3.0, 4.0), 10),
        ("deeplab", (3.0, 3.0), (67.0, 3.0, 4.0), 10),
        ("deep_spectral", (3.0, 3.0), (80.0, 13.0, 10.0), 5),
        ("seam", (3.0, 3.0), (80.0, 13.0, 10.0), 10),
        ("psa", (3.0, 3.0), (80.0, 13.0, 10.0), 10),
        ("psa_after_walk", (3.0, 3.0), (80.0, 13.0, 10.0), 1),
        ("irn", (3.0, 3.0), (50.0, 5.0, 10.0), 10),
        ("toco_cam", (3.0, 3.0), (80.0, 13.0, 10.0), 10),
        ("toco", (1.0, 1.0), (121.0, 5.0, 4.0), 10),
    )
}
"""Published settings as keyword arguments of `dense_crf`, by the method that uses them.

`irn` takes `label_probs` of its labels; `deep_spectral` one-hot masks; the others softmax scores.
"""

_PADDING = np.float32(-1e30)  # log-probability of the channels that only fill up the last eight


def dense_crf(
    probs: np.ndarray,
    image: np.ndarray,
    *,
    iterations: int = 10,
    spatial_sigma: float = 1.0,
    spatial_weight: float = 3.0,
    color_xy_sigma: float = 67.0,
    color_rgb_sigma: float = 3.0,
    color_weight: float = 4.0,
    clip: float = 1e-5,
    group: int = 32,
    threads: int | None = None,
) -> np.ndarray:
    """Sharpens class probabilities by mean-field inference in a fully connected CRF.

    Args:
        probs: float (C, H, W) in [0, 1]; the unary potential is -log of it.
        image: uint8 (H, W, 3), the photograph.
        iterations: mean-field updates; 0 gives the clipped and normalised input.
        spatial_sigma: pixels, standard deviation of the smoothness kernel.
        spatial_weight: Potts cost of the smoothness kernel; 0 switches it off.
        color_xy_sigma: pixels, standard deviation of the appearance kernel in position.
        color_rgb_sigma: grey levels of 255, its standard deviation in colour.
        color_weight: Potts cost of the appearance kernel; 0 switches it off.
        clip: smallest probability, without which a zero could never be overruled.
        group: channels filtered at a time, in eights; bounds the memory of a lattice with hundreds of classes.
        threads: threads to run on; None takes what numba would. The result does not depend on it.

    Returns:
        float32 (C, H, W), summing to 1 over C.

    Raises:
        ValueError: for shapes, types, sizes or settings other than these, and for probabilities not finite.
    """
    probs, image = np.asarray(probs), np.asarray(image)
    if probs.ndim != 3 or not probs.size:
        raise ValueError(f"probabilities of shape {probs.shape}: expected (C, H, W), none of them 0")
    if image.shape != (*probs.shape[1:], 3) or image.dtype != np.uint8:
        expected = (*probs.shape[1:], 3)
        raise ValueError(
            f"an image of {image.dtype} {image.shape}: expected uint8 {expected}, the size of the probabilities"
        )
    if iterations < 0 or spatial_weight < 0 or color_weight < 0:
        raise ValueError(f"{iterations} iterations, weights {spatial_weight}, {color_weight}: expected none below 0")
    if min(spatial_sigma, color_xy_sigma, color_rgb_sigma) <= 0:
        raise ValueError(f"sigmas {spatial_sigma}, {color_xy_sigma}, {color_rgb_sigma}: expected all above 0")
    if not 0 < clip < 1:
        raise ValueError(f"clip {clip}: expected in (0, 1)")
    if group < LANES or group % LANES:
        raise ValueError(f"group {group}: expected a multiple of {LANES}")
    classes, height, width = probs.shape
    with Threads(threads) as pool:
        log_probs = _log_rows(probs, clip, pool)
        kernels = []
        if iterations and classes > 1 and spatial_weight:
            kernels.append((spatial_points(height, width, spatial_sigma), spatial_weight))
        if iterations and classes > 1 and color_weight:
            kernels.append((color_points(image, color_xy_sigma, color_rgb_sigma), color_weight))
        lattices = build_lattices([points for points, _ in kernels], pool)
        lattices = [_normalised(lattice, weight, pool) for lattice, (_, weight) in zip(lattices, kernels)]
        marginals = _mean_field(log_probs, lattices, iterations, group, pool)
        out = np.empty((classes, height * width), np.float32)

        def turn(low: int, high: int) -> None:
            out[:, low:high] = marginals[low:high, :classes].T

        pool.run([partial(turn, *row) for row in pool.split(height * width)])
    return out.reshape(classes, height, width)


def label_probs(ids: np.ndarray, classes: int, certainty: float = 0.7, unsure: int | None = None) -> np.ndarray:
    """Probabilities that say of each pixel its label with some certainty and the other classes equally (IRN).

    Args:
        ids: whole numbers (H, W) in [0, classes), or `unsure`.
        classes: C, at least 2.
        certainty: probability of the given label, in (0, 1).
        unsure: id of the pixels of which nothing is said: 1 / C each.

    Returns:
        float32 (C, H, W), summing to 1 over C.

    Raises:
        ValueError: for ids out of range, fewer than 2 classes or a certainty outside (0, 1).
    """
    if classes < 2 or not 0 < certainty < 1:
        raise ValueError(f"{classes} classes, certainty {certainty}: expected at least 2 and in (0, 1)")
    unknown = np.zeros(ids.shape, bool) if unsure is None else ids == unsure
    if ((ids < 0) | (ids >= classes))[~unknown].any():
        raise ValueError(f"ids from {ids.min()} to {ids.max()}: expected in [0, {classes}), or `unsure` named")
    probs = np.full((classes, *ids.shape), (1.0 - certainty) / (classes - 1), np.float32)
    np.put_along_axis(probs, np.where(unknown, 0, ids)[None].astype(np.int64), np.float32(certainty), axis=0)
    probs[:, unknown] = 1.0 / classes
    return probs


def spatial_points(height: int, width: int, sigma: float) -> np.ndarray:
    """Positions (x, y) of all pixels in row-major order in units of sigma: float32 (N, 2)."""
    y, x = np.mgrid[:height, :width].reshape(2, -1)
    return np.stack([x / sigma, y / sigma], axis=1).astype(np.float32)


def color_points(image: np.ndarray, xy_sigma: float, rgb_sigma: float) -> np.ndarray:
    """Positions and colours (x, y, r, g, b) in units of their sigmas: float32 (N, 5)."""
    colors = image.reshape(-1, 3) / np.float32(rgb_sigma)
    positions = spatial_points(image.shape[0], image.shape[1], xy_sigma)
    return np.concatenate([positions, colors], axis=1).astype(np.float32)


def _normalised(lattice: Lattice, weight: float, threads: Threads) -> Lattice:
    """The lattice of `weight` D^-1/2 K D^-1/2."""
    mass = lattice.filter(np.ones((lattice.points, 1), np.float32), threads)[:, 0]
    return lattice.scaled(1.0 / np.sqrt(mass + 1e-20), after=weight * lattice.gain)


def _log_rows(probs: np.ndarray, clip: float, threads: Threads) -> np.ndarray:
    """log of the clipped probabilities as rows (N, P), the channels of one pixel side by side."""
    classes = len(probs)
    flat = probs.reshape(classes, -1)
    rows = np.empty((flat.shape[1], -(-classes // LANES) * LANES), np.float32)

    def turn(low: int, high: int) -> None:
        part = flat[:, low:high]
        if not np.isfinite(part).all():
            raise ValueError("probabilities that are not finite: expected numbers in [0, 1]")
        rows[low:high, :classes] = np.log(np.clip(part, clip, 1.0).astype(np.float32, copy=False)).T
        rows[low:high, classes:] = _PADDING

    threads.run([partial(turn, *row) for row in threads.split(len(rows))])
    return rows


def _mean_field(
    log_probs: np.ndarray, lattices: list[Lattice], iterations: int, group: int, threads: Threads
) -> np.ndarray:
    """Marginals Q (N, P) after the updates Q <- softmax(log p + sum_m w_m K_m Q)."""
    count, channels = log_probs.shape
    groups = [(column, min(group, channels - column)) for column in range(0, channels, group)]
    marginals = np.empty_like(log_probs)
    # with a single group the slice may write over Q, which the splat has read by then
    scores = marginals if len(groups) == 1 else np.empty_like(log_probs)
    rows = threads.split(count)
    threads.run([partial(_softmax, log_probs.reshape(-1), marginals.reshape(-1), channels, *row) for row in rows])
    if not lattices:
        return marginals
    vertices = [np.empty(lattice.size * groups[0][1], np.float32) for lattice in lattices]
    one, other = lattices[0], lattices[-1] if len(lattices) == 2 else None
    for _ in range(iterations):
        for column, width in groups:
            spread(lattices, marginals, column, width, vertices, threads)
            threads.run(
                [
                    partial(
                        _update,
                        one.corner,
                        one.weight,
                        one.dim + 1,
                        vertices[0],
                        other.corner if other else one.corner[:0],
                        other.weight if other else one.weight[:0],
                        other.dim + 1 if other else 0,
                        vertices[-1],
                        log_probs.reshape(-1),
                        scores.reshape(-1),
                        marginals.reshape(-1),
                        channels,
                        column,
                        width,
                        *row,
                    )
                    for row in rows
                ]
            )
    return marginals


@njit(cache=True, nogil=True, inline="always")
def _softmax_row(scores, marginals, start, channels):
    top = load8(scores, start)
    for b in range(8, channels, 8):
        top = max8(top, load8(scores, start + b))
    least = same8(-largest8(top))
    mass = same8(np.float32(0.0))
    for b in range(0, channels, 8):
        power = exp8(add8(load8(scores, start + b), least))
        mass = add8(mass, power)
        store8(marginals, start + b, power)
    share = np.float32(1.0) / sum8(mass)
    for b in range(0, channels, 8):
        store8(marginals, start + b, scale8(share, load8(marginals, start + b)))


@njit(cache=True, nogil=True)
def _softmax(scores, marginals, channels, low, high):
    for n in range(low, high):
        _softmax_row(scores, marginals, n * channels, channels)


@njit(cache=True, nogil=True)
def _update(
    corner1,
    weight1,
    corners1,
    vertices1,
    corner2,
    weight2,
    corners2,
    vertices2,
    log_probs,
    scores,
    marginals,
    channels,
    column,
    width,
    low,
    high,
):
    """Slices both kernels for one group of channels; after the last group the softmax of the row, still in cache."""
    last = column + width == channels
    for n in range(low, high):
        place = n * channels + column
        b = 0
        while b + 24 <= width:
            total0, total1, total2 = load8(log_probs, place), load8(log_probs, place + 8), load8(log_probs, place + 16)
            for e in range(n * corners1, (n + 1) * corners1):
                share, row = weight1[e], corner1[e] * width + b
                total0 = axpy8(total0, share, load8(vertices1, row))
                total1 = axpy8(total1, share, load8(vertices1, row + 8))
                total2 = axpy8(total2, share, load8(vertices1, row + 16))
            for e in range(n * corners2, (n + 1) * corners2):
                share, row = weight2[e], corner2[e] * width + b
                total0 = axpy8(total0, share, load8(vertices2, row))
                total1 = axpy8(total1, share, load8(vertices2, row + 8))
                total2 = axpy8(total2, share, load8(vertices2, row + 16))
            store8(scores, place, total0)
            store8(scores, place + 8, total1)
            store8(scores, place + 16, total2)
            place += 24
            b += 24
        while b < width:
            total0 = load8(log_probs, place)
            for e in range(n * corners1, (n + 1) * corners1):
                total0 = axpy8(total0, weight1[e], load8(vertices1, corner1[e] * width + b))
            for e in range(n * corners2, (n + 1) * corners2):
                total0 = axpy8(total0, weight2[e], load8(vertices2, corner2[e] * width + b))
            store8(scores, place, total0)
            place += 8
            b += 8
        if last:
            _softmax_row(scores, marginals, n * channels, channels)
