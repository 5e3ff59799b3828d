"""PASS (Gao et al., TPAMI 2022): L_e by SwAV, pixel-to-pixel, deep-to-shallow."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from tests.golden.formulas import as64, draw, generator, softmax, unit
from torch import nn

from maskwright.ops.losses.pixel_alignment import p2p_loss
from maskwright.recipes.pretraining.instance import SwAV

B, D, K = 6, 5, 4


def assigned(scores: np.ndarray, eps: float = 0.05, rounds: int = 3) -> np.ndarray:
    """Sinkhorn as SwAV writes it: columns to 1 / K, rows to 1 / B, in turn."""
    q = np.exp(scores / eps)
    q /= q.sum()
    for _ in range(rounds):
        q /= q.sum(0, keepdims=True) * K
        q /= q.sum(1, keepdims=True) * B
    return q * B


def cross(q: np.ndarray, scores: np.ndarray) -> float:
    return float(-(q * np.log(softmax(scores / 0.1))).sum(1).mean())


def test_swapped_prediction_and_what_supervises_a_shallow_stage():
    torch.manual_seed(0)
    loss = SwAV(D, K)
    z, shallow = [draw(B, D, seed=k) for k in range(4)], [draw(B, D, seed=k) for k in (8, 9)]
    c = unit(as64(loss.prototypes.weight))
    s = [unit(as64(x)) @ c.T for x in z]
    q = [assigned(x) for x in s[:2]]
    expected = np.mean([np.mean([cross(q[i], s[v]) for v in range(4) if v != i]) for i in range(2)])
    assert float(loss(z, [], 0).detach()) == pytest.approx(expected, rel=1e-4)
    t = [unit(as64(x)) @ c.T for x in shallow]
    assert float(loss.supervise(shallow)) == pytest.approx((cross(q[0], t[1]) + cross(q[1], t[0])) / 2, rel=1e-4)


def test_pixel_to_pixel_with_one_batch_norm_over_both_views():
    grid = [torch.rand(2, 3, 3, 2, generator=generator(k)) * 1.2 - 0.6 for k in (0, 1)]
    u = [draw(2, D, 4, 4, seed=k) * (k + 1) for k in range(2)]
    torch.manual_seed(0)
    predictor = nn.Sequential(
        nn.Conv2d(D, D, 1, bias=False), nn.BatchNorm2d(D), nn.ReLU(), nn.Conv2d(D, D, 1, bias=False)
    )
    s = [as64(F.grid_sample(x.double(), g.double(), align_corners=False)) for x, g in zip(u, grid)]
    w1, w2 = (as64(predictor[k].weight)[..., 0, 0] for k in (0, 3))
    y = np.einsum("oc,bchw->bohw", w1, np.concatenate(s))
    y = (y - y.mean((0, 2, 3), keepdims=True)) / np.sqrt(y.var((0, 2, 3), keepdims=True) + 1e-5)
    p = np.split(np.einsum("oc,bchw->bohw", w2, np.maximum(y, 0)), 2)
    expected = -np.mean([(unit(p[i], 1) * unit(s[1 - i], 1)).sum(1).mean() for i in range(2)])
    found = p2p_loss(u[0], u[1], grid[0], grid[1], predictor)
    assert float(found.detach()) == pytest.approx(expected, rel=1e-4)
