"""ToCo (Ru et al., CVPR 2023): token contrasts."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from tests.golden.formulas import as64, draw, generator, unit

from maskwright.methods.weak.toco.method import L_ctc, L_ptc, warm_poly
from maskwright.ops.cam_labels import IGNORE


def test_patch_tokens():
    x, y = draw(2, 6, 3, 4), torch.randint(-1, 3, (2, 3, 4), generator=generator(0))
    assert IGNORE == -1
    alike, unlike = [], []
    for b in range(2):
        z, k = unit(as64(x)[b].reshape(6, -1).T), y[b].flatten().tolist()
        for i in range(12):
            for j in range(12):
                if i != j and IGNORE not in (k[i], k[j]):
                    (alike if k[i] == k[j] else unlike).append(abs(z[i] @ z[j]))
    expected = 0.5 * (1 - np.mean(alike)) + 0.5 * np.mean(unlike)
    assert float(L_ptc(x, y)) == pytest.approx(expected, rel=1e-5)


def test_class_tokens_keep_their_length():
    p, q, t = draw(2, 2, 8, seed=1), draw(2, 6, 8, seed=2), 0.5
    pos = torch.tensor([[True, True, True, False, False, False], [True, True, False, False, False, True]])
    images = []
    for b in range(2):
        terms = []
        for g in range(2):
            e = [math.exp(as64(p)[b, g] @ as64(q)[b, v] / t) for v in range(6)]
            rest = sum(x for x, k in zip(e, pos[b]) if not k)
            terms += [-math.log(x / (x + rest + 1e-4)) for x, k in zip(e, pos[b]) if k]
        images.append(np.mean(terms))
    assert float(L_ctc(p, q, pos, ~pos, t)) == pytest.approx(np.mean(images), rel=1e-4)


def test_rates():
    factor = warm_poly(20000, 1500)
    assert factor(0) == pytest.approx(1e-6)
    assert factor(750) == pytest.approx(1 - 0.5 * (1 - 1e-6))
    assert factor(2000) == pytest.approx((1 - 2000 / 20000) ** 0.9)
