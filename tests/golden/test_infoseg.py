"""InfoSeg (Harb and Knobelreiter, GCPR 2021): the Jensen-Shannon bound between local features and class vectors."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from tests.golden.cases import read_cases
from tests.golden.formulas import as64, draw, softmax

from maskwright.methods.unsupervised.infoseg import imbalance, jensen_shannon


def softplus(x: float) -> float:
    return max(x, 0.0) + math.log1p(math.exp(-abs(x)))


def by_loops(local, vectors, tau, shift, negatives, over_temperature) -> float:
    b, _, h, w = local.shape
    s = np.zeros_like(local)
    for n in range(b):
        for y in range(h):
            for x in range(w):
                p = softmax(vectors[n] @ local[n, :, y, x] / tau, 0)
                s[n, :, y, x] = sum(p_k * h_k for p_k, h_k in zip(p, vectors[n]))
    total = 0.0
    for n in range(b):
        m = (n + shift) % b
        for y in range(h):
            for x in range(w):
                at = (slice(None), y, x)
                positive = local[n][at] @ s[n][at]
                negative = local[m][at] @ s[n][at] if negatives == "local" else local[n][at] @ s[m][at]
                scale = tau if over_temperature else 1.0
                total += softplus(-positive / scale) + softplus(negative / scale)
    return total / (b * h * w)


@pytest.mark.parametrize("negatives", ["local", "classes"])
@pytest.mark.parametrize("tau, shift, over", [(1.0, 1, False), (0.3, 2, False), (0.5, 1, True)])
def test_bound(negatives, tau, shift, over):
    local, vectors = draw(3, 5, 2, 3, seed=1), draw(3, 4, 5, seed=2)
    bound = jensen_shannon(local, vectors, tau, shift=shift, negatives=negatives, over_temperature=over)
    assert float(bound.loss) == pytest.approx(
        by_loops(as64(local), as64(vectors), tau, shift, negatives, over), rel=1e-5
    )
    assert bound.p.sum(1).allclose(torch.ones(3, 2, 3))


def test_imbalance():
    p = draw(2, 4, 3, 3, seed=4).softmax(1)
    mean = as64(p).mean((0, 2, 3))
    assert float(imbalance(p)) == pytest.approx(math.log(4) + float((mean * np.log(mean)).sum()), rel=1e-4)


@pytest.mark.data
def test_bound_of_the_stored_cases(golden_root):
    """They come from the brief's formulas: there is no code of the authors."""
    cases = read_cases(golden_root, "infoseg")
    assert len(cases) >= 11
    for case in cases.values():
        s, leaves = case.settings, [case.input[n].clone().requires_grad_() for n in ("local", "classes")]
        local, vectors = (F.normalize(leaves[0], dim=1), F.normalize(leaves[1], dim=2)) if s["unit_length"] else leaves
        bound = jensen_shannon(
            local, vectors, s["tau"], shift=s["roll"], detach=s["detach_assignment"], over_temperature=s["unit_length"]
        )
        bound.loss.backward()
        found = {
            "scores": bound.v, "probability": bound.p, "assigned": bound.s, "t_pos": bound.positive,
            "t_neg": bound.negative, "loss": bound.loss, "prediction": bound.v.argmax(1),
        }  # fmt: skip
        for name, value in found.items():
            expected = case.output[name].to(value.dtype).reshape(value.shape)
            torch.testing.assert_close(
                value, expected, rtol=1e-5, atol=1e-7, msg=lambda m, c=case, n=name: f"{c.name} {n}: {m}"
            )
        for name, leaf in zip(("local", "classes"), leaves):
            torch.testing.assert_close(
                leaf.grad, case.grad[name], rtol=1e-5, atol=1e-7, msg=lambda m, c=case: f"{c.name}: {m}"
            )
