"""Objects from spectra: known answers on planted graphs, and Otsu against scikit-image."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from skimage.filters import threshold_otsu

from maskwright.ops.graphs.objectness import border_distance, border_nodes, fiedler_side, otsu_threshold
from maskwright.ops.graphs.spectral import spectral_embedding


def planted(h: int, w: int, box: tuple[int, int, int, int]) -> tuple[torch.Tensor, torch.Tensor]:
    """Affinity of a grid whose box is one part and the rest the other, and the part as a mask."""
    mask = torch.zeros(h, w, dtype=torch.bool)
    mask[box[0] : box[2], box[1] : box[3]] = True
    part = mask.flatten().float()
    return torch.where(part[:, None] == part[None], 1.0, 0.02), mask


@pytest.mark.parametrize("box", [(3, 4, 8, 10), (0, 3, 5, 9), (6, 6, 10, 12)])
def test_planted_object_is_found_even_at_the_border(box):
    w, mask = planted(10, 14, box)
    values, vectors = spectral_embedding(w, 2)  # further vectors of a graph of two flat parts are arbitrary
    soft = border_distance(values, vectors, (10, 14))
    assert soft.min() >= 0 and soft.max() <= 1
    found = soft.numpy() > otsu_threshold(soft.numpy())
    assert np.array_equal(found, mask.numpy())
    for rule in ("smaller", "border"):
        assert torch.equal(fiedler_side(vectors[:, 1], (10, 14), rule), mask)


def test_sign_of_vectors_does_not_matter():
    values, vectors = torch.tensor([0.0, 0.1, 0.3, 0.7]), torch.randn(72, 4)
    flipped = vectors * torch.tensor([1.0, -1.0, -1.0, 1.0])
    assert torch.allclose(border_distance(values, vectors, (8, 9)), border_distance(values, flipped, (8, 9)), atol=1e-5)


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_the_papers_side_is_the_smaller_one_whatever_touches_the_border(sign):
    """Ground seen above and below an object: the object is larger, and its rule takes the ground."""
    vector = torch.full((6, 8), -1.0)
    vector[1:5] = 1.0  # four of six rows, half of the border
    vector[0, :2] = vector[5, :2] = 1.0
    assert torch.equal(fiedler_side(sign * vector.flatten(), (6, 8)), vector < 0)
    inner = torch.full((6, 8), -1.0)
    inner[1:5, :7] = 1.0
    assert torch.equal(fiedler_side(sign * inner.flatten(), (6, 8)), inner < 0)
    assert torch.equal(fiedler_side(sign * inner.flatten(), (6, 8), "border"), inner > 0)
    half = torch.cat([torch.ones(4), -torch.ones(4)])
    assert torch.equal(fiedler_side(half, (2, 4)).flatten(), half > 0)
    with pytest.raises(ValueError, match="rule"):
        fiedler_side(half, (2, 4), "larger")  # type: ignore[arg-type]


def test_nothing_to_see():
    assert border_distance(torch.zeros(1), torch.ones(6, 1), (2, 3)).eq(0).all()
    with pytest.raises(ValueError, match="do not fit"):
        border_distance(torch.zeros(2), torch.ones(5, 2), (2, 3))


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 7), st.integers(1, 7))
def test_border_nodes(h, w):
    edge = {i * w + j for i in range(h) for j in range(w) if i in (0, h - 1) or j in (0, w - 1)}
    assert set(border_nodes(h, w).tolist()) == edge and len(border_nodes(h, w)) == len(edge)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 1000))
def test_otsu_equals_scikit_image(seed):
    rng = np.random.default_rng(seed)
    x = np.concatenate([rng.normal(0.2, 0.05, 300), rng.normal(0.7, 0.1, 100)])
    assert otsu_threshold(x) == pytest.approx(threshold_otsu(x), abs=1e-9)


def test_otsu_of_a_constant_is_the_constant():
    assert otsu_threshold(np.full(5, 0.3)) == pytest.approx(0.3)
