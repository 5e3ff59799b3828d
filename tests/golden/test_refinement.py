"""Refinement by colours: PAR (ToCo, CVPR 2023) and the dense CRF (Kraehenbuehl and Koltun, NeurIPS 2011)."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tests.golden.formulas import as64, generator, softmax

from maskwright.ops.refinement.crf import CRF_SETTINGS, dense_crf
from maskwright.ops.refinement.par import pixel_adaptive_refine


@pytest.mark.parametrize("original", [False, True])
def test_pixel_adaptive_refinement(original):
    """Softmax of -(difference / spread / 0.3)^2 in colour, and 0.01 of it in distance, over 8 neighbours a ring."""
    h, w, rings, rounds = 5, 6, (1, 2), 2
    x = torch.rand(1, 2, h, w, generator=generator(0))
    image = torch.rand(1, 3, h, w, generator=generator(1)) * 255
    offsets = [(dy * r, dx * r) for r in rings for dy in (-1, 0, 1) for dx in (-1, 0, 1) if dy or dx]
    distance = np.array([np.hypot(*o) for o in offsets])
    place = softmax(-((distance / (distance.std(ddof=1) + 1e-8) / 0.3) ** 2), 0)
    maps, colors = as64(x)[0], as64(image)[0]

    def at(a: np.ndarray, i: int, j: int) -> np.ndarray:
        return a[:, min(max(i, 0), h - 1), min(max(j, 0), w - 1)]

    for _ in range(rounds):
        new = np.zeros_like(maps)
        for i, j in np.ndindex(h, w):
            near = np.stack([at(colors, i + dy, j + dx) for dy, dx in offsets])  # (N, 3)
            gap = (near - colors[:, i, j]) / (near.std(0, ddof=1) + 1e-8) / 0.3
            weight = softmax(-(gap**2).mean(1), 0) + 0.01 * place
            new[:, i, j] = sum(v * at(maps, i + dy, j + dx) for v, (dy, dx) in zip(weight, offsets))
        maps = new if original else new / 1.01
    found = pixel_adaptive_refine(x, image, rings, rounds, original_sum=original)[0]
    np.testing.assert_allclose(as64(found), maps, rtol=2e-4, atol=1e-6)


def test_mean_field_over_all_pairs():
    """Symmetrically normalised Gaussian kernels over all N^2 pairs; the lattice only comes close."""
    rng = np.random.default_rng(0)
    h, w = 16, 20
    image = np.zeros((h, w, 3), np.uint8)
    image[:, w // 2 :] = 200
    image = (image + rng.integers(0, 20, image.shape)).astype(np.uint8)
    truth = (np.arange(w) >= w // 2)[None].repeat(h, 0)
    noisy = np.where(rng.random((h, w)) < 0.25, ~truth, truth)
    probs = np.where(noisy, 0.7, 0.3)
    probs = np.stack([1 - probs, probs]).astype(np.float32)
    s = CRF_SETTINGS["seam"]
    y, x = np.mgrid[:h, :w]
    at = np.stack([y, x], -1).reshape(-1, 2).astype(float)
    color = image.reshape(-1, 3).astype(float)
    kernel = np.zeros((h * w, h * w))
    for points, weight in (
        (at / s["spatial_sigma"], s["spatial_weight"]),
        (np.concatenate([at / s["color_xy_sigma"], color / s["color_rgb_sigma"]], 1), s["color_weight"]),
    ):
        k = np.exp(-((points[:, None] - points[None]) ** 2).sum(-1) / 2)
        norm = 1 / np.sqrt(k.sum(1))
        kernel += weight * norm[:, None] * k * norm
    unary = np.log(probs.reshape(2, -1).astype(float))
    q = softmax(unary, 0)
    for _ in range(5):
        q = softmax(unary + q @ kernel, 0)
    found = dense_crf(probs, image, **{**s, "iterations": 5})
    exact = q.reshape(2, h, w)
    assert np.array_equal(found.argmax(0), exact.argmax(0)) and np.abs(found - exact).max() < 0.05
    assert np.array_equal(exact.argmax(0), truth)
