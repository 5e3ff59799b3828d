"""STEGO (Hamilton et al., ICLR 2022): the correspondence loss on sampled positions, and the cluster probe."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tests.golden.formulas import as64, draw, generator, unit

from maskwright.methods.unsupervised.stego.losses import ClusterProbe, correspondence_loss, sample


def read(maps: np.ndarray, x: float, y: float) -> np.ndarray:
    """Bilinear, -1 and 1 the centres of the outer cells."""
    h, w = maps.shape[1:]
    col, row = (x + 1) / 2 * (w - 1), (y + 1) / 2 * (h - 1)
    i, j = min(int(row), h - 2), min(int(col), w - 2)
    a, b = row - i, col - j
    return (
        (1 - a) * (1 - b) * maps[:, i, j] + (1 - a) * b * maps[:, i, j + 1]
        + a * (1 - b) * maps[:, i + 1, j] + a * b * maps[:, i + 1, j + 1]
    )  # fmt: skip


@pytest.mark.parametrize("partner", ["self", "other"])
def test_correspondence(partner):
    """- mean of max(S, 0) (F_c - b), F_c the cosines of features less each anchor's mean plus the mean of all."""
    n, shift = 9, 0.15
    f, c = draw(2, 5, 4, 6), draw(2, 3, 4, 6, seed=1)
    p, q = (torch.rand(2, n, 2, generator=generator(k)) * 2 - 1 for k in (2, 3))
    order, at = ([0, 1], p) if partner == "self" else ([1, 0], q)
    sampled = []
    for maps in (f, c):
        one = np.stack([[read(as64(maps)[b], *p[b, i].tolist()) for i in range(n)] for b in range(2)])
        two = np.stack([[read(as64(maps)[k], *at[b, i].tolist()) for i in range(n)] for b, k in enumerate(order)])
        sampled.append((unit(one), unit(two)))
    corr, code = (np.einsum("bid,bjd->bij", *pair) for pair in sampled)
    centred = corr - corr.mean(2, keepdims=True)
    centred = centred - centred.mean() + corr.mean()
    expected = -np.mean(np.maximum(code, 0) * (centred - shift))
    f_a, f_b, c_a, c_b = sample(f, p), sample(f[order], at), sample(c, p), sample(c[order], at)
    assert float(correspondence_loss(f_a, f_b, c_a, c_b, shift)) == pytest.approx(expected, rel=1e-4)


def test_probe():
    torch.manual_seed(0)
    probe, c = ClusterProbe(4, 3), draw(2, 3, 4, 5)
    z = unit(as64(c), 1)
    cosines = np.einsum("kd,bdhw->bkhw", unit(as64(probe.mu)), z)
    assert float(probe(c).detach()) == pytest.approx(-cosines.max(1).mean(), rel=1e-5)
