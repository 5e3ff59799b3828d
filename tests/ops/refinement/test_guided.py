"""Guided filter against a least-squares fit in every window, and its closed forms."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from maskwright.ops.refinement.guided import guided_filter
from maskwright.predict.refine import refine


def _by_windows(x: np.ndarray, image: np.ndarray, radius: int, eps: float) -> np.ndarray:
    """Ridge regression window by window in float64; each pixel takes the mean of its windows' predictions."""
    channels, height, width = x.shape
    total, count = np.zeros_like(x), np.zeros((height, width))
    for y in range(height):
        for c in range(width):
            rows = slice(max(y - radius, 0), y + radius + 1)
            columns = slice(max(c - radius, 0), c + radius + 1)
            colors = image[rows, columns].reshape(-1, 3)
            # the penalty n eps |a|^2 as three more rows of the least-squares problem; the constant goes free
            n = len(colors)
            design = np.vstack([np.c_[colors, np.ones(n)], np.sqrt(n * eps) * np.eye(4)[:3]])
            for k in range(channels):
                target = np.r_[x[k, rows, columns].ravel(), np.zeros(3)]
                fit = np.linalg.lstsq(design, target, rcond=None)[0]
                # q_i averages the functions of the windows around the pixels of i's own window
                total[k, rows, columns] += image[rows, columns] @ fit[:3] + fit[3]
            count[rows, columns] += 1
    return total / count


def _scene(height: int = 11, width: int = 14, channels: int = 3, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return rng.random((channels, height, width)).astype(np.float32), rng.random((height, width, 3))


@pytest.mark.parametrize(("radius", "eps"), [(1, 1e-2), (3, 1e-3), (20, 1e-1)])
def test_equals_least_squares_in_every_window(radius: int, eps: float) -> None:
    x, image = _scene()
    expected = _by_windows(x.astype(np.float64), image, radius, eps)
    np.testing.assert_allclose(guided_filter(x, image, radius, eps), expected, atol=2e-4)


def test_an_affine_function_of_colour_passes_and_a_flat_image_gives_the_box_mean_twice() -> None:
    _, image = _scene(30, 40)
    x = (image @ [0.3, -0.5, 0.2] + 0.1)[None]
    np.testing.assert_allclose(guided_filter(x, image, 5, 1e-9), x, atol=1e-4)
    maps = np.zeros((1, 21, 21), np.float32)
    maps[0, 10, 10] = 1.0
    got = guided_filter(maps, np.full((21, 21, 3), 90, np.uint8), 2, 1e-3)
    triangle = np.convolve(np.ones(5) / 5, np.ones(5) / 5)
    np.testing.assert_allclose(got[0, 6:15, 6:15], np.outer(triangle, triangle), atol=1e-6)


def test_uint8_is_the_float_image_and_threads_do_not_matter() -> None:
    x, image = _scene(24, 31)
    bytes_ = (image * 255).round().astype(np.uint8)
    got = guided_filter(x, bytes_, threads=1)
    np.testing.assert_allclose(got, guided_filter(x, bytes_ / 255.0), atol=1e-5)
    np.testing.assert_array_equal(got, guided_filter(x, bytes_, threads=3))


@settings(max_examples=8, deadline=None)
@given(gain=st.floats(-10, 10), shift=st.floats(-10, 10), seed=st.integers(0, 99))
def test_is_linear_and_keeps_constants(gain: float, shift: float, seed: int) -> None:
    x, image = _scene(seed=seed)
    np.testing.assert_allclose(
        guided_filter(gain * x + shift, image), gain * guided_filter(x, image) + shift, atol=2e-3
    )


def test_flips_follow() -> None:
    x, image = _scene()
    expected = guided_filter(x, image, 3)
    np.testing.assert_allclose(guided_filter(x[:, :, ::-1], image[:, ::-1], 3)[:, :, ::-1], expected, atol=1e-5)
    np.testing.assert_allclose(guided_filter(x[:, ::-1], image[::-1], 3)[:, ::-1], expected, atol=1e-5)


def _disc(seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    yy, xx = np.mgrid[:96, :120]
    truth = ((yy - 45) ** 2 + (xx - 60) ** 2 < 30**2).astype(int)
    image = np.where(truth[..., None] == 1, (200, 60, 50), (60, 140, 90)) + rng.normal(0, 6, (96, 120, 3))
    logits = np.stack([1.0 - truth, truth]) + rng.normal(0, 1.0, (2, 96, 120))
    probs = np.exp(logits) / np.exp(logits).sum(0)
    return probs.astype(np.float32), image.clip(0, 255).astype(np.uint8), truth


@pytest.mark.parametrize("subsample", [1, 3])
def test_noisy_probabilities_snap_to_the_edge(subsample: int) -> None:
    probs, image, truth = _disc()
    refined = refine(probs, image, "guided", subsample=subsample)
    np.testing.assert_allclose(refined.sum(0), 1.0, atol=1e-5)
    assert refined.min() >= 0 and refined.dtype == np.float32
    assert (probs.argmax(0) == truth).mean() < 0.85
    assert (refined.argmax(0) == truth).mean() > 0.98


def test_the_fast_filter_is_close_to_the_exact() -> None:
    rng = np.random.default_rng(0)
    coarse = rng.random((2, 12, 15))
    x = np.kron(coarse, np.ones((1, 8, 8)))
    image = np.kron(rng.random((12, 15, 3)), np.ones((8, 8, 1)))
    exact, fast = guided_filter(x, image, 8, 1e-2), guided_filter(x, image, 8, 1e-2, subsample=2)
    assert np.abs(exact - fast).mean() < 0.02
    assert np.corrcoef(exact.ravel(), fast.ravel())[0, 1] > 0.99


@pytest.mark.parametrize("size", [(1, 1), (1, 9), (9, 1), (2, 3)])
@pytest.mark.parametrize("subsample", [1, 2, 7])
def test_tiny_images(size: tuple[int, int], subsample: int) -> None:
    got = guided_filter(np.full((2, *size), 0.25, np.float32), np.zeros((*size, 3), np.uint8), 4, subsample=subsample)
    np.testing.assert_allclose(got, 0.25, atol=1e-6)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": np.ones((3, 4))}, "maps of shape"),
        ({"image": np.ones((5, 4, 3))}, "image of shape"),
        ({"radius": 0}, "radius 0"),
        ({"eps": 0.0}, "eps 0"),
        ({"subsample": 0}, "subsample 0"),
        ({"x": np.full((1, 4, 5), np.nan)}, "finite"),
        ({"threads": 0}, "threads 0"),
    ],
)
def test_refusals(change: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        guided_filter(**{"x": np.ones((1, 4, 5)), "image": np.ones((4, 5, 3)), **change})
