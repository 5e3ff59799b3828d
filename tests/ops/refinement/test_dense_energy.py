"""The dense energy against a slow double sum, its range, its gate and what it ignores."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st

from maskwright.ops.refinement.dense_energy import dense_energy


def scene(seed: int = 0, b: int = 2, c: int = 3, h: int = 5, w: int = 6) -> tuple[torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(seed)
    return torch.randn(b, c, h, w, generator=g).softmax(1), torch.rand(b, 3, h, w, generator=g) * 255


def slow(probs, images, sigma_rgb, sigma_xy, valid=None) -> float:
    """The definition, pair by pair."""
    total = 0.0
    for s, image, inside in zip(probs, images, valid if valid is not None else [None] * len(probs)):
        h, w = s.shape[-2:]
        cells = [(y, x) for y in range(h) for x in range(w) if inside is None or inside[y, x]]
        cut = weight = 0.0
        for a in cells:
            for b in cells:
                if a != b:
                    near = ((a[0] - b[0]) ** 2 + (a[1] - b[1]) ** 2) / (2 * sigma_xy**2)
                    like = float((image[:, a[0], a[1]] - image[:, b[0], b[1]]).square().sum()) / (2 * sigma_rgb**2)
                    k = math.exp(-near - like)
                    weight += k
                    cut += k * (1 - float(s[:, a[0], a[1]] @ s[:, b[0], b[1]]))
        total += cut / weight if weight else 0.0
    return total / len(probs)


@examples(max_examples=6)
@given(st.integers(0, 99), st.floats(20, 200), st.floats(0.5, 8))
def test_equals_the_double_sum(seed, sigma_rgb, sigma_xy):
    probs, images = scene(seed)
    found = dense_energy(probs, images, sigma_rgb=sigma_rgb, sigma_xy=sigma_xy)
    assert 0 <= float(found) <= 1
    assert float(found) == pytest.approx(slow(probs, images, sigma_rgb, sigma_xy), abs=1e-5)


def test_pixels_outside_take_no_part():
    probs, images = scene()
    valid = torch.ones(2, 5, 6, dtype=torch.bool)
    valid[0, :, 4:] = False
    valid[1] = False  # nothing there: no energy
    found = dense_energy(probs, images, valid=valid, sigma_rgb=60, sigma_xy=3)
    assert float(found) == pytest.approx(slow(probs, images, 60, 3, valid), abs=1e-5)
    other = torch.where(valid[:, None], images, 0.0)
    assert torch.allclose(found, dense_energy(probs, other, valid=valid, sigma_rgb=60, sigma_xy=3))


def test_agreement_costs_nothing_and_a_cut_along_the_edge_little():
    image = torch.zeros(1, 3, 8, 8)
    image[..., 4:] = 200.0
    one = torch.zeros(1, 2, 8, 8)
    one[:, 0] = 1
    assert float(dense_energy(one, image)) == pytest.approx(0, abs=1e-6)
    along, across = one.clone(), one.clone()
    along[..., 4:] = along[..., 4:].flip(1)
    across[..., 4:, :] = across[..., 4:, :].flip(1)
    assert float(dense_energy(along, image)) < 1e-4 < float(dense_energy(across, image))


def test_the_gate_scales_the_gradient_and_not_the_value():
    probs, images = scene()
    gate = torch.zeros(2, 5, 6)
    gate[:, 2, 3], gate[:, 1, 1] = 1.0, 0.5
    grads, values = [], []
    for g in (None, gate):
        p = probs.clone().requires_grad_(True)
        values.append(dense_energy(p, images, gate=g, sigma_rgb=60))
        values[-1].backward()
        grads.append(p.grad)
    assert torch.allclose(values[0], values[1])
    assert torch.allclose(grads[1], grads[0] * gate[:, None], atol=1e-8) and grads[1].any()


def test_descent_joins_what_looks_alike():
    image = torch.zeros(1, 3, 6, 6)
    image[..., 3:] = 200.0
    logits = (torch.randn(1, 2, 6, 6, generator=torch.Generator().manual_seed(0)) * 0.1).requires_grad_(True)
    first = float(dense_energy(logits.softmax(1), image).detach())
    for _ in range(60):
        (g,) = torch.autograd.grad(dense_energy(logits.softmax(1), image), logits)
        logits = (logits - 40 * g).detach().requires_grad_(True)
    last = logits.softmax(1)
    assert float(dense_energy(last, image).detach()) < 0.2 * first
    for half in (last[0, 0, :, :3], last[0, 0, :, 3:]):
        assert float(half.max() - half.min()) < 0.5


def test_large_maps_are_brought_to_the_grid():
    probs, images = scene(h=40, w=64)
    found = dense_energy(probs, images, cells=8, sigma_xy=20)
    small = torch.nn.functional.adaptive_avg_pool2d(probs, (5, 8))
    colors = torch.nn.functional.adaptive_avg_pool2d(images, (5, 8))
    assert float(found) == pytest.approx(slow(small, colors, 15, 20 / 8), abs=1e-5)


@pytest.mark.parametrize(
    "change", [{"sigma_xy": 0.0}, {"cells": 0}, {"gate": torch.ones(2, 4, 4)}, {"valid": torch.ones(1, 5, 6).bool()}]
)
def test_refuses(change):
    probs, images = scene()
    with pytest.raises(ValueError):
        dense_energy(probs, images, **change)
    with pytest.raises(ValueError):
        dense_energy(probs, images[:1])
