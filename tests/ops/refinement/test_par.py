"""Pixel-adaptive refinement against a loop over pixels, and its mass, symmetries and chunks."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from maskwright.ops.refinement.par import pixel_adaptive_refine


def _by_loops(x: np.ndarray, image: np.ndarray, dilations: tuple[int, ...], iterations: int) -> np.ndarray:
    """One image in float64, neighbour by neighbour, weights of the original (summing to 1.01)."""
    _, height, width = image.shape
    directions = [(dy, dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1) if (dy, dx) != (0, 0)]
    offsets = [(dy * d, dx * d) for d in dilations for dy, dx in directions]
    distance = np.array([np.hypot(*o) for o in offsets])
    near = np.exp(-((distance / distance.std(ddof=1) / 0.3) ** 2))
    near = 0.01 * near / near.sum()
    for _ in range(iterations):
        out = np.zeros_like(x)
        for y in range(height):
            for c in range(width):
                places = [(min(max(y + dy, 0), height - 1), min(max(c + dx, 0), width - 1)) for dy, dx in offsets]
                colors = np.array([image[:, p, q] for p, q in places])
                std = colors.std(axis=0, ddof=1) + 1e-8
                logits = -((np.abs(colors - image[:, y, c]) / std / 0.3) ** 2).mean(axis=1)
                weights = np.exp(logits - logits.max())
                weights = weights / weights.sum() + near
                out[:, y, c] = sum(w * x[:, p, q] for w, (p, q) in zip(weights, places))
        x = out
    return x


def _scene(height: int = 9, width: int = 12, batch: int = 2) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return (
        torch.rand((batch, 3, height, width), generator=generator, dtype=torch.float64),
        torch.rand((batch, 3, height, width), generator=generator, dtype=torch.float64),
    )


@pytest.mark.parametrize("dilations", [(1,), (1, 2, 4)])
def test_equals_a_loop_over_pixels(dilations: tuple[int, ...]) -> None:
    x, images = _scene()
    got = pixel_adaptive_refine(x, images, dilations, 2, original_sum=True)
    for k in range(len(x)):
        expected = _by_loops(x[k].numpy(), images[k].numpy(), dilations, 2)
        np.testing.assert_allclose(got[k].numpy(), expected, atol=2e-5)


def test_constant_maps_keep_their_mass_and_the_original_adds_a_hundredth_each_round() -> None:
    _, images = _scene()
    ones = torch.ones(2, 4, 9, 12)
    torch.testing.assert_close(pixel_adaptive_refine(ones, images), ones)
    grown = pixel_adaptive_refine(ones, images, original_sum=True)
    torch.testing.assert_close(grown, ones * 1.01**10)


def test_probabilities_stay_probabilities() -> None:
    x, images = _scene()
    got = pixel_adaptive_refine(x.softmax(1), images, (1, 3), 5)
    torch.testing.assert_close(got.sum(1), torch.ones(2, 9, 12, dtype=torch.float64), atol=1e-5, rtol=0)
    assert got.min() >= 0


def test_strips_do_not_change_the_result() -> None:
    x, images = _scene(17, 13)
    torch.testing.assert_close(
        pixel_adaptive_refine(x, images, (1, 5), 3, chunk=16 * 4 * 13 * 3), pixel_adaptive_refine(x, images, (1, 5), 3)
    )


@settings(max_examples=8, deadline=None)
@given(gain=st.floats(0.1, 100.0), shift=st.floats(-5.0, 5.0))
def test_only_relative_contrast_counts(gain: float, shift: float) -> None:
    x, images = _scene()
    expected = pixel_adaptive_refine(x, images, (1, 2), 2)
    torch.testing.assert_close(pixel_adaptive_refine(x, images * gain + shift, (1, 2), 2), expected, atol=1e-3, rtol=0)


def test_flipped_input_gives_flipped_output() -> None:
    x, images = _scene()
    flipped = pixel_adaptive_refine(x.flip(-1), images.flip(-1), (1, 2), 3).flip(-1)
    torch.testing.assert_close(flipped, pixel_adaptive_refine(x, images, (1, 2), 3), atol=1e-6, rtol=0)


def test_noisy_scores_snap_to_the_edge() -> None:
    generator = torch.Generator().manual_seed(1)
    truth = torch.zeros(32, 40, dtype=torch.long)
    truth[8:24, 10:30] = 1
    image = torch.where(truth == 1, 200.0, 60.0)[None, None].expand(1, 3, -1, -1) + 5 * torch.randn(
        (1, 3, 32, 40), generator=generator
    )
    one_hot = torch.nn.functional.one_hot(truth, 2).permute(2, 0, 1)[None].float()
    noisy = one_hot + torch.randn(one_hot.shape, generator=generator)
    before = (noisy.argmax(1)[0] == truth).float().mean()
    after = (pixel_adaptive_refine(noisy, image).argmax(1)[0] == truth).float().mean()
    assert before < 0.85 and after > 0.97


def test_maps_of_another_size_come_to_the_images_and_borders_outlast_the_reach() -> None:
    x, images = _scene()
    assert pixel_adaptive_refine(x[:, :, ::3, ::3], images).shape == (2, 3, 9, 12)
    assert pixel_adaptive_refine(torch.ones(1, 2, 1, 1), torch.ones(1, 3, 1, 1)).flatten().tolist() == pytest.approx(
        [1, 1]
    )
    assert pixel_adaptive_refine(x, images, iterations=0).equal(x)
    assert pixel_adaptive_refine(x[:0], images[:0]).shape == (0, 3, 9, 12)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"dilations": ()}, "dilations"),
        ({"dilations": (0,)}, "dilations"),
        ({"iterations": -1}, "iterations"),
        ({"color_width": 0.0}, "widths"),
        ({"images": torch.ones(2, 1, 9, 12)}, "images"),
        ({"x": torch.ones(2, 3, 9, 12, dtype=torch.long)}, "floating"),
    ],
)
def test_refusals(change: dict, message: str) -> None:
    x, images = _scene()
    with pytest.raises(ValueError, match=message):
        pixel_adaptive_refine(**{"x": x, "images": images, **change})
