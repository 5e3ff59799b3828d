"""CAC (Lai et al., CVPR 2021): directional contrast of an overlap's pixels."""

from __future__ import annotations

import math

import pytest
import torch
from tests.golden.formulas import as64, draw, generator, unit

from maskwright.methods.semi.cac import Cells, directional_contrast


def test_the_less_sure_pixel_follows_the_surer_one():
    """-log(e(z1, z2) / (e(z1, z2) + sum over other classes of e(z1, n))), e(a, b) = exp(a . b / 0.1)."""
    n, m, d, tau, least = 12, 20, 6, 0.1, 0.75
    z1, z2, bank = (torch.nn.functional.normalize(draw(k, d, seed=k), dim=1) for k in (n, n + 1, m))
    z2 = z2[:n]
    g = generator(0)
    p1, p2 = torch.rand(n, generator=g), 0.6 + 0.4 * torch.rand(n, generator=g)
    k1, c = torch.randint(0, 3, (n,), generator=g), torch.randint(0, 3, (m,), generator=g)
    a, b, e = unit(as64(z1)), unit(as64(z2)), unit(as64(bank))
    terms = []
    for i in range(n):
        if float(p2[i]) > least and float(p1[i]) < float(p2[i]):
            own = math.exp(a[i] @ b[i] / tau)
            rest = sum(math.exp(a[i] @ e[j] / tau) for j in range(m) if c[j] != k1[i])
            terms.append(-math.log(own / (own + rest)))
    loss, mask = directional_contrast(Cells(z1, p1, k1), Cells(z2, p2, k1), bank, c, tau, least)
    assert 0 < len(terms) < n and int(mask.sum()) == len(terms)
    assert float(loss) == pytest.approx(sum(terms) / len(terms), rel=1e-4)


def test_the_loss_does_not_saturate():
    """The authors' 1e-8 inside the logarithm ends it at 18.4; opposite pixels among near negatives cost more."""
    z = torch.tensor([[1.0, 0.0]])
    cells = [Cells(s * z, torch.tensor([p]), torch.tensor([0])) for s, p in ((1.0, 0.1), (-1.0, 0.9))]
    bank, ids = z.expand(50, 2), torch.ones(50, dtype=torch.int64)
    loss, _ = directional_contrast(*cells, bank, ids, 0.1, 0.75)
    assert float(loss) == pytest.approx(20 + math.log(50 + math.exp(-20)), rel=1e-5)
