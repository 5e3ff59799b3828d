"""FixMatch (Sohn et al., NeurIPS 2020), UniMatch (Yang et al., CVPR 2023) and V2 (TPAMI 2025)."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tests.golden.formulas import draw, generator, labels, nll

from maskwright.methods.semi.unimatch import confident_cross_entropy, reversed_partner, total_loss
from maskwright.ops.channel_dropout import complementary_masks


def test_sure_pixels_are_learnt_and_all_valid_ones_divide():
    y, logits, t = labels(3, 4), draw(3, 4, 5, 5, seed=1), 0.6
    losses = nll(logits, y)
    expected = sum(v for x, v in losses.items() if float(y.confidence[x]) >= t) / len(losses)
    assert 0 < expected < np.mean(list(losses.values()))
    assert float(confident_cross_entropy(logits, y, t)) == pytest.approx(expected, rel=1e-5)


def test_half_of_each():
    x, u = torch.tensor(0.8), torch.tensor(0.4)
    assert float(total_loss(x, u, 1.0)) == pytest.approx(0.6)
    assert float(total_loss(x, u, 0.0)) == pytest.approx(0.8)
    assert reversed_partner(4).tolist() == [3, 2, 1, 0]


def test_two_views_lose_complementary_channels():
    """m1 is 0 or 2 with even chances, m2 = 2 - m1; the share that is kept whole has ones."""
    (pair,) = complementary_masks(400, [6], kept=0.25, generator=generator(0))
    m1, m2 = pair
    assert torch.equal(m1 + m2, torch.full_like(m1, 2.0))
    whole = (m1 == 1).all(1)
    assert int(whole.sum()) == 100 and set(m1[~whole].unique().tolist()) == {0.0, 2.0}
    assert float(m1[~whole].mean()) == pytest.approx(1.0, abs=0.05)
