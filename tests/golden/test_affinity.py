"""AffinityNet (Ahn and Kwak, CVPR 2018) and IRN (Ahn, Cho and Kwak, CVPR 2019): pairs, losses, walks."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from tests.golden.formulas import as64, draw, generator

from maskwright.ops.graphs.pair_affinity import affinity_loss, boundary_affinity, feature_affinity, pair_labels
from maskwright.recipes.tags.walking import walk_with_boundaries, walk_with_features

H, W, RADIUS = 6, 7, 4


def pairs() -> list[tuple[tuple[int, int], tuple[int, int]]]:
    """Each two cells closer than the radius, once."""
    cells = list(np.ndindex(H, W))
    return [(a, b) for k, a in enumerate(cells) for b in cells[k + 1 :] if math.dist(a, b) < RADIUS]


def between(a: tuple[int, int], b: tuple[int, int]) -> list[tuple[int, int]]:
    """Cells nearer than 1 to the segment, within the box of its ends."""
    (ya, xa), (yb, xb) = a, b
    length = math.dist(a, b)
    return [
        (y, x)
        for y in range(min(ya, yb), max(ya, yb) + 1)
        for x in range(min(xa, xb), max(xa, xb) + 1)
        if abs((yb - ya) * (x - xa) - (xb - xa) * (y - ya)) / length < 1
    ]


def affinity(kind: str, x: np.ndarray, a: tuple[int, int], b: tuple[int, int]) -> float:
    if kind == "psa":
        return math.exp(-np.abs(x[(slice(None), *a)] - x[(slice(None), *b)]).mean())
    return 1 - max(x[p] for p in between(a, b))


def inputs(kind: str) -> torch.Tensor:
    return draw(1, 3, H, W) if kind == "psa" else torch.rand(1, H, W, generator=generator(1)) * 0.9


@pytest.mark.parametrize("kind", ["psa", "irn"])
def test_loss(kind):
    """Means of -log a over pairs of background (1/4) and of one class (1/4), of -log(1 - a) over unlike ones (1/2)."""
    g = generator(2)
    ids, valid = torch.randint(0, 3, (1, H, W), generator=g), torch.rand(1, H, W, generator=g) < 0.8
    x = inputs(kind)
    terms: dict[str, list[float]] = {"ground": [], "same": [], "other": []}
    for a, b in pairs():
        if not (valid[(0, *a)] and valid[(0, *b)]):
            continue
        value, (i, j) = affinity(kind, as64(x)[0], a, b), (int(ids[(0, *p)]) for p in (a, b))
        if i == j:
            terms["same" if i else "ground"].append(-math.log(value + 1e-5))
        else:
            terms["other"].append(-math.log(1 + 1e-5 - value))
    expected = np.mean(terms["ground"]) / 4 + np.mean(terms["same"]) / 4 + np.mean(terms["other"]) / 2
    made = feature_affinity(x, RADIUS) if kind == "psa" else boundary_affinity(x, RADIUS)
    assert float(affinity_loss(made, pair_labels(ids, valid, 0, RADIUS))) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("kind", ["psa", "irn"])
def test_walk(kind):
    """Scores times the power of the column-normalised matrix of affinities to the power beta, in float64."""
    x, beta, steps = inputs(kind), 5.0, 32
    a = np.eye(H * W)
    for p, q in pairs():
        i, j = (y * W + z for y, z in (p, q))
        a[i, j] = a[j, i] = affinity(kind, as64(x)[0], p, q)
    t = np.linalg.matrix_power(a**beta / (a**beta).sum(0), steps)
    cams = torch.rand(2, H, W, generator=generator(3))
    c = as64(cams).reshape(2, -1)
    if kind == "irn":
        walked = (c * (1 - as64(x)[0].reshape(1, -1))) @ t
        expected = walked / (walked.max() + 1e-5)
        found = walk_with_boundaries(cams, x[0], RADIUS, beta, steps)
    else:
        rest = (1 - c.max(0, keepdims=True)) ** 16
        walked = np.concatenate([rest, c]) @ t
        expected = walked[1:] / (walked[1:] + walked[:1])
        found = walk_with_features(cams, x[0], RADIUS, beta, steps, 16.0)
    np.testing.assert_allclose(as64(found).reshape(2, -1), expected, rtol=1e-5, atol=1e-6)
