"""Pixel-to-pixel alignment against loops, and the checks of its paper: identical, disjoint and mirrored crops."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from maskwright.data.training.views import View, shared_grid
from maskwright.ops.losses.pixel_alignment import p2p_loss, sample_grid


def grids(a: View, b: View, g: int = 7):
    pair = shared_grid(a, b, g)
    return pair[0][None], pair[1][None]


def bilinear(u: torch.Tensor, x: float, y: float) -> torch.Tensor:
    """One point by hand: cell centres at half indices, zeros beyond the map."""
    h, w = u.shape[-2:]
    col, row = (x + 1) / 2 * w - 0.5, (y + 1) / 2 * h - 0.5
    i0, j0 = int(torch.floor(torch.tensor(row))), int(torch.floor(torch.tensor(col)))
    out = torch.zeros(u.shape[0], dtype=u.dtype)
    for i in (i0, i0 + 1):
        for j in (j0, j0 + 1):
            weight = (1 - abs(row - i)) * (1 - abs(col - j))
            if 0 <= i < h and 0 <= j < w:
                out += weight * u[:, i, j]
    return out


def slow_p2p(u1, u2, grid1, grid2, predictor):
    total, count = 0.0, 0
    s1 = torch.stack([torch.stack([bilinear(u, *p.tolist()) for p in g.flatten(0, 1)], 1) for u, g in zip(u1, grid1)])
    s2 = torch.stack([torch.stack([bilinear(u, *p.tolist()) for p in g.flatten(0, 1)], 1) for u, g in zip(u2, grid2)])
    shape = (len(u1), u1.shape[1], *grid1.shape[1:3])
    p1, p2 = predictor(s1.reshape(shape)), predictor(s2.reshape(shape))
    for p, s in ((p1, s2), (p2, s1)):
        p = p.flatten(2)
        for b in range(len(u1)):
            for k in range(p.shape[2]):
                length = float(s[b, :, k].norm())
                total += float(p[b, :, k] @ s[b, :, k] / (p[b, :, k].norm() * length)) if length > 0 else 0.0
                count += 1
    return -total / count


@settings(max_examples=8)
@given(st.integers(0, 10_000))
def test_p2p_is_the_loop(seed):
    g = torch.Generator().manual_seed(seed)
    source = View.identity((40, 60))
    tops = torch.randint(0, 12, (4,), generator=g).tolist()
    a = source.crop(tops[0], tops[1], 28, 30).resize(16, 16).hflip()
    b = source.crop(tops[2], tops[3] + 10, 24, 26).resize(16, 16)
    g1, g2 = grids(a, b, 4)
    u1, u2 = torch.randn(1, 5, 4, 4, generator=g).double(), torch.randn(1, 5, 3, 3, generator=g).double()
    weight = torch.randn(5, 5, 1, 1, generator=g).double()
    predictor = lambda s: F.conv2d(s, weight)  # noqa: E731
    assert float(p2p_loss(u1, u2, g1, g2, predictor)) == pytest.approx(slow_p2p(u1, u2, g1, g2, predictor), abs=1e-6)


def batch_normed(x: torch.Tensor, w1: torch.Tensor, w2: torch.Tensor) -> torch.Tensor:
    """1x1 convolution, batch norm over everything that is given, ReLU, 1x1 convolution: written out."""
    y = torch.einsum("oc,bchw->bohw", w1, x)
    mean = y.mean((0, 2, 3), keepdim=True)
    y = (y - mean) / (((y - mean) ** 2).mean((0, 2, 3), keepdim=True) + 1e-5).sqrt()
    return torch.einsum("oc,bchw->bohw", w2, y.clamp(min=0))


def test_the_predictors_statistics_are_those_of_both_views_and_move_once():
    g = torch.Generator().manual_seed(0)
    u1, u2 = (torch.randn(3, 5, 4, 4, generator=g).double() * scale + scale for scale in (1.0, 3.0))
    grid = torch.rand(3, 4, 4, 2, generator=g).double() * 1.4 - 0.7
    w1, w2 = (torch.randn(5, 5, generator=g).double() for _ in range(2))
    norm = nn.BatchNorm2d(5).double()
    predictor = nn.Sequential(nn.Conv2d(5, 5, 1, bias=False), norm, nn.ReLU(), nn.Conv2d(5, 5, 1, bias=False)).double()
    with torch.no_grad():
        predictor[0].weight.copy_(w1[..., None, None])
        predictor[3].weight.copy_(w2[..., None, None])
    s1, s2 = sample_grid(u1, grid), sample_grid(u2, grid)
    p = batch_normed(torch.cat([s1, s2]), w1, w2)
    expected = -(F.cosine_similarity(p[:3], s2, dim=1).mean() + F.cosine_similarity(p[3:], s1, dim=1).mean()) / 2
    assert float(p2p_loss(u1, u2, grid, grid, predictor).detach()) == pytest.approx(float(expected), rel=1e-9)
    inside = torch.einsum("oc,bchw->bohw", w1, torch.cat([s1, s2]))
    torch.testing.assert_close(norm.running_mean, 0.1 * inside.mean((0, 2, 3)))
    assert int(norm.num_batches_tracked) == 1
    apart = [batch_normed(s, w1, w2) for s in (s1, s2)]
    other = -(F.cosine_similarity(apart[0], s2, dim=1).mean() + F.cosine_similarity(apart[1], s1, dim=1).mean()) / 2
    assert abs(float(other - expected)) > 0.01


def test_identical_crops_give_minus_one():
    view = View.identity((40, 60)).crop(3, 5, 30, 40).resize(56, 56)
    u = torch.randn(2, 8, 7, 7)
    grid = torch.cat([grids(view, view)[0]] * 2)
    assert float(p2p_loss(u, u, grid, grid, nn.Identity())) == pytest.approx(-1, abs=1e-5)


def test_disjoint_crops_give_exactly_zero_and_no_gradient():
    source = View.identity((40, 60))
    g1, g2 = grids(source.crop(0, 0, 10, 10).resize(32, 32), source.crop(25, 40, 10, 10).resize(32, 32))
    u1, u2 = (torch.randn(1, 8, 7, 7, requires_grad=True) for _ in range(2))
    predictor = nn.Sequential(nn.Conv2d(8, 8, 1), nn.ReLU(), nn.Conv2d(8, 8, 1))
    loss = p2p_loss(u1, u2, g1, g2, predictor)
    loss.backward()
    assert float(loss) == 0
    assert not u1.grad.any() and not u2.grad.any()
    assert not any(p.grad.any() for p in predictor.parameters())


def test_disjoint_crops_still_count_in_the_mean():
    source = View.identity((40, 60))
    whole, corner = source.resize(32, 32), source.crop(25, 40, 10, 10).resize(32, 32)
    same, none = grids(whole, whole), grids(source.crop(0, 0, 10, 10).resize(32, 32), corner)
    u = torch.randn(2, 8, 7, 7)
    grid = torch.cat([same[0], none[0]]), torch.cat([same[1], none[1]])
    assert float(p2p_loss(u, u, *grid, nn.Identity())) == pytest.approx(-0.5, abs=1e-5)


@pytest.mark.parametrize("flips", [(False, True), (True, False), (True, True)])
def test_flipped_crops_correspond(flips):
    """The map's values are the source's coordinates, so both crops must read the same ones."""
    source = View.identity((64, 64))
    a, b = source.crop(0, 0, 48, 48).resize(48, 48), source.crop(16, 16, 48, 48).resize(48, 48)
    a, b = (v.hflip() if f else v for v, f in zip((a, b), flips))
    y, x = torch.meshgrid(torch.arange(64) + 0.5, torch.arange(64) + 0.5, indexing="ij")
    place = torch.stack([x, y])
    maps = [v.render(place, antialias=False)[None] for v in (a, b)]
    pair = shared_grid(a, b, 5, corners=False)
    s1, s2 = (sample_grid(m, g[None]) for m, g in zip(maps, pair))
    torch.testing.assert_close(s1, s2, atol=1e-3, rtol=0)
    assert float(s1.std()) > 1


def test_the_target_side_gets_no_gradient():
    view = View.identity((40, 60)).resize(32, 32)
    grid = grids(view, view)[0]
    u1, u2 = (torch.randn(1, 8, 7, 7, requires_grad=True) for _ in range(2))
    weight = torch.zeros(8, 8, 1, 1)  # predictions do not depend on u: what is left would be the targets' gradient
    p2p_loss(u1, u2, grid, grid, lambda s: F.conv2d(s, weight) + 1).backward()
    assert not u1.grad.any() and not u2.grad.any()


def test_shapes_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="expected"):
        sample_grid(torch.randn(2, 8, 7, 7), torch.zeros(1, 7, 7, 2))
