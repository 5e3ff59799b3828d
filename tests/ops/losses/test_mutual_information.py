"""What must hold of the mutual information of two views; its values by loops are in tests/golden/test_iic.py."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from maskwright.ops.losses.mutual_information import collapsed_loss, joint, negative_information, uncollapsed_loss

K = 4
BOTH = pytest.mark.parametrize("loss", [uncollapsed_loss, collapsed_loss])


def maps(seed: int, b: int = 2, h: int = 5, w: int = 6) -> torch.Tensor:
    return torch.randn(b, K, h, w, generator=torch.Generator().manual_seed(seed)).mul(2).softmax(1)


def everywhere(p: torch.Tensor) -> torch.Tensor:
    return torch.ones(p.shape[0], *p.shape[2:], dtype=torch.bool)


@BOTH
@pytest.mark.parametrize("lamb", [1.0, 1.5])
def test_landmarks(loss, lamb):
    """Sure, balanced and equal: (1 - 2 lambda) log K. All alike: 2 (1 - lambda) log K. One cluster: 0."""
    ids = torch.arange(2 * 4 * 4).reshape(2, 4, 4) % K
    sure = F.one_hot(ids, K).permute(0, 3, 1, 2).float()
    uniform, one = torch.full_like(sure, 1 / K), F.one_hot(ids * 0, K).permute(0, 3, 1, 2).float()
    for p, expected, d in (
        (sure, (1 - 2 * lamb) * math.log(K), 0),
        (uniform, 2 * (1 - lamb) * math.log(K), 2),
        (one, 0.0, 2),
    ):
        assert float(loss(p, p, everywhere(p), d, lamb)) == pytest.approx(expected, abs=1e-6)


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10_000), d=st.integers(0, 2), form=st.sampled_from([uncollapsed_loss, collapsed_loss]))
def test_it_knows_no_order_of_views_or_clusters_and_has_a_bound(seed, d, form):
    p, q, mask = maps(seed), maps(seed + 1), torch.rand(2, 5, 6, generator=torch.Generator().manual_seed(seed)) < 0.8
    value = float(form(p, q, mask, d))
    assert float(form(q, p, mask, d)) == pytest.approx(value, abs=1e-7)
    order = torch.randperm(K, generator=torch.Generator().manual_seed(seed))
    assert float(form(p[:, order], q[:, order], mask, d)) == pytest.approx(value, abs=1e-7)
    assert -math.log(K) - 1e-9 <= value <= 1e-9


def test_a_displacement_finds_a_shifted_map():
    """The second view is the first moved by one row: only one displacement has all the information."""
    ids = torch.randint(0, K, (1, 12, 12), generator=torch.Generator().manual_seed(0))
    p = F.one_hot(ids, K).permute(0, 3, 1, 2).float()
    q = p.roll(-1, 2)  # q at u is p at u + (1, 0)
    mask = everywhere(p)
    mask[:, -1] = False
    j = joint(p, q, mask, 1)
    informed = [
        (y - 1, x - 1)
        for y in range(3)
        for x in range(3)
        if float(negative_information((j[:, :, y, x] + j[:, :, y, x].T) / 2 / j[:, :, y, x].sum())) < -1.2
    ]
    assert informed == [(1, 0)]


@BOTH
def test_masked_pixels_count_for_nothing_and_an_empty_mask_is_no_error(loss):
    p, q = maps(1).requires_grad_(), maps(2)
    mask = everywhere(p)
    mask[0] = False
    mask[1, 2:] = False
    other = q.clone()
    other[0], other[1, :, 2:] = maps(7)[0], maps(8)[1, :, 2:]
    value = loss(p, q, mask, 2)
    assert value.item() == pytest.approx(loss(p, other, mask, 2).item(), abs=1e-9)
    value.backward()
    assert not bool(p.grad[0].any()) and not bool(p.grad[1, :, 2:].any()) and bool(p.grad[1, :, :2].any())
    p.grad = None
    nothing = loss(p, q, mask & False, 2)
    nothing.backward()
    assert nothing.item() == 0 and p.grad.isfinite().all() and not p.grad.any()


def test_displacements_without_a_pair_are_left_out():
    """One valid pixel: of nine displacements none but the first has a pair."""
    p, q = maps(3), maps(4)
    mask = everywhere(p) & False
    mask[0, 2, 2] = True
    assert float(uncollapsed_loss(p, q, mask, 1)) == pytest.approx(float(uncollapsed_loss(p, q, mask, 0)), abs=1e-12)


def test_wrong_shapes_are_refused():
    p = maps(0)
    for mask, d in ((everywhere(p)[:1], 1), (everywhere(p), -1)):
        with pytest.raises(ValueError, match="displacement"):
            joint(p, p, mask, d)
