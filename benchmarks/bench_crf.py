"""Refinement at 500x375 and 21 classes: dense CRF beside pydensecrf, guided filter beside the CRF, PAR beside its usual
way.

pydensecrf has no wheels and is no dependency; it is compared where it can be imported. Without it the CRF is compared
with exact mean field over all pairs, on a small picture, and the table says so.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

from benchmarks.common import Row, side_by_side
from maskwright.ops.refinement.crf import CRF_SETTINGS, color_points, dense_crf, spatial_points
from maskwright.ops.refinement.par import pixel_adaptive_refine
from maskwright.predict.refine import refine

try:
    import pydensecrf.densecrf as densecrf
except ImportError:
    densecrf = None

CLASSES = 21


def _scene(height: int, width: int, classes: int = CLASSES) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A made-up photograph of coloured patches with shading and grain, rough probabilities of them, and the truth."""
    rng = np.random.default_rng(0)
    seeds = rng.random((3 * classes, 2)) * (height, width)
    yy, xx = np.mgrid[:height, :width]
    nearest = ((yy[..., None] - seeds[:, 0]) ** 2 + (xx[..., None] - seeds[:, 1]) ** 2).argmin(-1)
    truth = nearest % classes
    shading = Image.fromarray(rng.normal(0, 25, (8, 10)).astype(np.float32)).resize(
        (width, height), Image.Resampling.BICUBIC
    )
    colors = rng.integers(30, 226, (3 * classes, 3))
    image = colors[nearest] + np.asarray(shading)[..., None] + rng.normal(0, 5, (height, width, 3))
    coarse = np.eye(classes, dtype=np.float32)[truth[4::8, 4::8]] * 3 + rng.normal(
        0, 1, (*truth[4::8, 4::8].shape, classes)
    )
    maps = torch.from_numpy(coarse).float().permute(2, 0, 1)[None]
    probs = F.interpolate(maps, (height, width), mode="bilinear").softmax(1)[0].numpy()
    return probs, image.clip(0, 255).astype(np.uint8), truth


def _pydensecrf(probs: np.ndarray, image: np.ndarray, setting: dict[str, float]) -> np.ndarray:
    classes, height, width = probs.shape
    crf = densecrf.DenseCRF2D(width, height, classes)
    crf.setUnaryEnergy(np.ascontiguousarray(-np.log(probs.reshape(classes, -1).clip(1e-5, 1))))
    crf.addPairwiseGaussian(sxy=setting["spatial_sigma"], compat=setting["spatial_weight"])
    crf.addPairwiseBilateral(
        sxy=setting["color_xy_sigma"], srgb=setting["color_rgb_sigma"], rgbim=image, compat=setting["color_weight"]
    )
    return np.array(crf.inference(int(setting["iterations"]))).reshape(probs.shape)


def _exact(probs: np.ndarray, image: np.ndarray, setting: dict[str, float]) -> np.ndarray:
    """Mean field with dense N x N kernels, the normalisation and weights of the CRF."""
    kernel = np.zeros((probs[0].size,) * 2, np.float32)
    for points, weight in (
        (spatial_points(*probs.shape[1:], setting["spatial_sigma"]), setting["spatial_weight"]),
        (color_points(image, setting["color_xy_sigma"], setting["color_rgb_sigma"]), setting["color_weight"]),
    ):
        square = (points**2).sum(1)
        one = np.exp(-np.maximum(square[:, None] + square - 2 * points @ points.T, 0) / 2)
        norm = 1 / np.sqrt(one.sum(1))
        kernel += weight * norm[:, None] * one * norm
    unary = scores = np.log(probs.reshape(len(probs), -1).clip(1e-5, 1))
    for _ in range(int(setting["iterations"]) + 1):
        q = np.exp(scores - scores.max(0))
        q /= q.sum(0)
        scores = unary + q @ kernel
    return q.reshape(probs.shape)


def _stacked_par(x: torch.Tensor, images: torch.Tensor, dilations: tuple[int, ...], iterations: int) -> torch.Tensor:
    """The usual way: dilated convolutions with one-hot kernels stack all neighbours of all channels."""
    kernel = torch.zeros(8, 1, 3, 3)
    for k in range(8):
        kernel[k, 0].view(-1)[k + (k > 3)] = 1

    def neighbours(maps: torch.Tensor) -> torch.Tensor:
        b, c, h, w = maps.shape
        flat = maps.reshape(b * c, 1, h, w)
        found = [F.conv2d(F.pad(flat, (d,) * 4, mode="replicate"), kernel, dilation=d) for d in dilations]
        return torch.cat(found, dim=1).view(b, c, -1, h, w)

    around = neighbours(images)
    distance = torch.tensor([d * s for d in dilations for s in (2**0.5, 1, 2**0.5, 1, 1, 2**0.5, 1, 2**0.5)])
    near = (-((distance / (distance.std() + 1e-8) / 0.3) ** 2)).softmax(0)[:, None, None]
    colors = (around - images[:, :, None]).abs() / (around.std(dim=2, keepdim=True) + 1e-8) / 0.3
    weights = (-(colors**2)).mean(1, keepdim=True).softmax(2) + 0.01 * near
    for _ in range(iterations):
        x = (neighbours(x) * weights).sum(2)
    return x


def _equal(a: Any, b: Any, axis: int = 0) -> str:
    return f"labels {(np.asarray(a).argmax(axis) == np.asarray(b).argmax(axis)).mean():.4%} equal"


def rows() -> list[Row]:
    """Lines of the table."""
    probs, image, truth = _scene(375, 500)
    found = []
    for name, label in (("stego", "67 px, 3 grey"), ("seam", "80 px, 13 grey")):
        setting = CRF_SETTINGS[name]
        ours: Callable[[], np.ndarray] = partial(dense_crf, probs, image, threads=1, **setting)  # type: ignore[arg-type]
        path = f"dense CRF 500x375x{CLASSES}, {label}, one thread"
        if densecrf is not None:
            theirs = partial(_pydensecrf, probs, image, setting)
            seconds, other_seconds = side_by_side(ours, theirs, repeats=3)
            found.append(Row(path, seconds, "pydensecrf", other_seconds, 1.0, agrees=_equal(ours(), theirs())))
        else:
            small, small_image, _ = _scene(60, 80)
            ours = partial(dense_crf, small, small_image, threads=1, **setting)  # type: ignore[arg-type]
            theirs = partial(_exact, small, small_image, setting)
            seconds, other_seconds = side_by_side(ours, theirs, repeats=3)
            path = f"dense CRF 80x60x{CLASSES}, {label} (no pydensecrf here)"
            found.append(
                Row(path, seconds, "exact mean field, N^2", other_seconds, 1.0, agrees=_equal(ours(), theirs()))
            )
    one = partial(dense_crf, probs, image, threads=1)
    if (os.cpu_count() or 1) > 1:
        two = partial(dense_crf, probs, image, threads=2)
        seconds, other_seconds = side_by_side(two, one, repeats=3)
        same = "bits equal" if np.array_equal(one(), two()) else "differ"
        found.append(
            Row(f"dense CRF 500x375x{CLASSES}, two threads", seconds, "one thread", other_seconds, 1.7, agrees=same)
        )
    guided = partial(refine, probs, image, "guided", threads=1)
    seconds, other_seconds = side_by_side(guided, one, repeats=3)
    before, by_guided, by_crf = ((p.argmax(0) == truth).mean() for p in (probs, guided(), one()))
    gain = f"{before:.1%} -> {by_guided:.1%}, CRF {by_crf:.1%}"
    found.append(
        Row(f"guided filter 500x375x{CLASSES}, one thread", seconds, "our dense CRF", other_seconds, 5.0, agrees=gain)
    )
    maps, pictures = (
        torch.from_numpy(probs[None, :, ::2, ::2]).clone(),
        torch.from_numpy(image[::2, ::2]).permute(2, 0, 1),
    )
    dilations = (1, 2, 4, 8, 12, 24)
    par = partial(pixel_adaptive_refine, maps, pictures[None].float(), dilations, 10, original_sum=True)
    stacked = partial(_stacked_par, maps, pictures[None].float(), dilations, 10)
    seconds, other_seconds = side_by_side(par, stacked, repeats=1)
    found.append(
        Row(
            f"PAR 250x188x{CLASSES}, 10 rounds",
            seconds,
            "stacked neighbours",
            other_seconds,
            1.0,
            agrees=_equal(par(), stacked(), 1),
        )
    )
    return found
