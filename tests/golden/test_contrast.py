"""InfoNCE with masked negatives, as U2PL, ReCo, CAC and others use it."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from tests.golden.formulas import as64, draw, generator

from maskwright.ops.losses.contrast import contrastive_loss


@pytest.mark.parametrize("chunk", [None, 7])
def test_contrastive_loss(chunk):
    a, pos, neg = draw(6, 4, seed=1), draw(6, 4, seed=2), draw(9, 4, seed=3)
    ids, others = (torch.randint(0, 3, (n,), generator=generator(n)) for n in (6, 9))
    weights = torch.tensor([1.0, 0.5, 0.0, 2.0, 1.0, 1.0])
    x, y, z, t = as64(a), as64(pos), as64(neg), 0.5
    total = 0.0
    for i in range(6):
        own = math.exp(x[i] @ y[i] / t)
        rest = sum(math.exp(x[i] @ z[j] / t) for j in range(9) if others[j] != ids[i])
        total += float(weights[i]) * -math.log(own / (own + rest))
    found = contrastive_loss(
        a, pos, neg, temperature=t, anchor_ids=ids, negative_ids=others, weights=weights, chunk=chunk
    )
    assert float(found) == pytest.approx(total / float(weights.sum()), rel=1e-5)
    assert np.isfinite(float(found))
