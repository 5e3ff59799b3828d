"""SEAM (Wang et al., CVPR 2020): classification, equivariance, and the pixel correlation module."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tests.golden.formulas import as64, draw, generator

from maskwright.methods.weak.seam.method import (
    adaptive_min_pooling,
    equivariant_cross_regularization,
    equivariant_regularization,
    with_rest,
)
from maskwright.methods.weak.seam.network import correlate
from maskwright.recipes.tags.tags import multi_label_soft_margin

TAGS = torch.tensor([[1.0, 0.0, 1.0], [0.0, 1.0, 0.0]])


def maps(seed: int) -> torch.Tensor:
    return torch.rand(2, 3, 4, 5, generator=generator(seed))


def test_classification():
    scores = draw(2, 3)
    s, y = 1 / (1 + np.exp(-as64(scores))), as64(TAGS)
    expected = -np.mean(y * np.log(s) + (1 - y) * np.log(1 - s))
    assert float(multi_label_soft_margin(scores, TAGS)) == pytest.approx(expected, rel=1e-5)
    x, terms = as64(maps(1)), []
    for b in range(2):
        largest = sorted((x[b] * y[b][:, None, None]).max(0).flatten())
        terms += [max(v, 0.0) for v in largest[: 20 // 4]]
    assert float(adaptive_min_pooling(maps(1), TAGS)) == pytest.approx(np.mean(terms), rel=1e-5)


def test_equivariance():
    a, b, valid = maps(1), maps(2), maps(3)[:, 0] > 0.3
    gaps = [abs(float(a[n, c, i, j] - b[n, c, i, j])) for n, i, j in valid.nonzero().tolist() for c in range(3)]
    assert float(equivariant_regularization(a, b, valid)) == pytest.approx(np.mean(gaps), rel=1e-5)


def test_cross_regularization_is_of_the_hardest_fifth_against_one_class_a_pixel():
    y1, y2, r1, r2 = (with_rest(maps(k)) for k in (1, 2, 3, 4))
    valid = maps(5)[:, 0] > 0.2

    def one_class(y: np.ndarray) -> np.ndarray:
        out = y.copy()
        out[:, 1:] *= y[:, 1:] == y[:, 1:].max(1, keepdims=True)
        return out

    total = 0.0
    for target, refined in ((y2, r1), (y1, r2)):
        gap = np.abs(one_class(as64(target)) - as64(refined)) * valid.numpy()[:, None]
        hardest = [np.sort(g.flatten())[::-1][: int(0.2 * g.size)].mean() for g in gap]
        total += np.mean(hardest)
    assert float(equivariant_cross_regularization(y1, r1, y2, r2, valid, 0.2)) == pytest.approx(total, rel=1e-5)


def test_pixel_correlation():
    """Each pixel's map: the mean over pixels j weighed by ReLU(cos(f_i, f_j))."""
    f = torch.nn.functional.normalize(draw(2, 6, 20), dim=1)
    x, m = as64(f), as64(maps(1)).reshape(2, 3, 20)
    expected = np.zeros_like(m)
    for b in range(2):
        for i in range(20):
            likeness = [max(0.0, x[b, :, j] @ x[b, :, i]) for j in range(20)]
            expected[b, :, i] = sum(v * m[b, :, j] for j, v in enumerate(likeness)) / (sum(likeness) + 1e-5)
    np.testing.assert_allclose(as64(correlate(f, maps(1).flatten(2))), expected, rtol=1e-4)
