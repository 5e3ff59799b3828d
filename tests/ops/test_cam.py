from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from skimage.filters import threshold_li
from torch import nn

from maskwright.ops import cam as C


def rand(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


class Small(nn.Module):
    """Two convolutions, average pooling, a linear layer or two."""

    def __init__(self, deep: bool) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 6, 3, stride=2), nn.ReLU())
        self.last = nn.Sequential(nn.Conv2d(6, 8, 3), nn.ReLU())
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Sequential(nn.Linear(8, 5), nn.Tanh(), nn.Linear(5, 4)) if deep else nn.Linear(8, 4, bias=False)

    def forward(self, x):
        return self.fc(self.pool(self.last(self.stem(x))).flatten(1))


def small(deep: bool) -> Small:
    torch.manual_seed(0)
    return Small(deep).eval()


def gradients(net: Small, x: torch.Tensor, c: int) -> tuple[torch.Tensor, torch.Tensor]:
    a = net.last(net.stem(x))
    (g,) = torch.autograd.grad(net.fc(net.pool(a).flatten(1))[:, c].sum(), a)
    return a.detach(), g


def test_mean_of_the_map_is_the_score():
    net, x = small(False), rand(2, 3, 20, 24)
    maps = C.cam(net.last(net.stem(x)), net.fc.weight)
    assert torch.allclose(maps.mean((-2, -1)), net(x), atol=1e-6)


def test_cam_passes_gradients_to_features_and_weights():
    a, w = rand(1, 4, 3, 3).requires_grad_(), rand(2, 4).requires_grad_()
    C.cam(a, w)[0, 1].sum().backward()
    assert torch.allclose(a.grad[0], w[1].detach()[:, None, None].expand(4, 3, 3))
    assert torch.allclose(w.grad[1], a.detach().sum((0, 2, 3))) and not w.grad[0].any()


@pytest.mark.parametrize("c", range(4))
def test_grad_cam_of_a_linear_head_is_cam_over_the_number_of_cells(c):
    net, x = small(False), rand(2, 3, 20, 24)
    a, g = gradients(net, x, c)
    expected = C.cam(a, net.fc.weight)[:, c].relu() / (a.shape[-1] * a.shape[-2])
    assert torch.allclose(C.grad_cam(a, g), expected, atol=1e-7)


@pytest.mark.parametrize("deep", [False, True])
def test_against_torchcam(deep):
    methods = pytest.importorskip("torchcam.methods")
    net, x = small(deep), rand(1, 3, 20, 24).requires_grad_()
    for c in range(4):
        with methods.GradCAM(net, "last", input_shape=(3, 20, 24)) as extractor:
            theirs = extractor(c, net(x), normalized=False)[0]
        a, g = gradients(net, x, c)
        assert torch.allclose(C.grad_cam(a, g), theirs.relu().detach(), atol=1e-6)
        if not deep:
            with methods.CAM(net, "last", fc_layer="fc", input_shape=(3, 20, 24)) as extractor:
                net(x)
                theirs = extractor(c, normalized=False)[0]
            assert torch.allclose(C.cam(a, net.fc.weight)[:, c].relu(), theirs.relu().detach(), atol=1e-6)


def test_grad_cam_pp_against_loops_over_the_paper_formula():
    net, x = small(True), rand(2, 3, 14, 14)
    a, g = gradients(net, x, 1)
    expected = torch.zeros(a.shape[0], *a.shape[2:])
    for b in range(a.shape[0]):
        for k in range(a.shape[1]):
            total, alpha = float(a[b, k].sum()), 0.0
            for gi in g[b, k].flatten().tolist():
                if gi > 0:
                    alpha += gi**2 / (2 * gi**2 + total * gi**3) * gi
            expected[b] += alpha * a[b, k]
    assert torch.allclose(C.grad_cam_pp(a, g), expected.relu(), atol=1e-6)


def test_grad_cam_pp_weights_are_those_of_true_derivatives_of_the_exponential():
    """With S = exp(y) and y linear in A: first, second and third derivatives of S by differentiating three times."""
    a, w = rand(3, 2, 2).double().abs(), rand(3, seed=1).double()
    weights = torch.zeros(3, dtype=torch.float64)
    for k in range(3):
        for i in range(2):
            for j in range(2):
                v = a[k, i, j].clone().requires_grad_()
                rest = a.clone()
                filled = torch.cat(
                    [rest.flatten()[: k * 4 + i * 2 + j], v[None], rest.flatten()[k * 4 + i * 2 + j + 1 :]]
                )
                s = (w @ filled.reshape(3, 4).mean(1)).exp()
                (d1,) = torch.autograd.grad(s, v, create_graph=True)
                (d2,) = torch.autograd.grad(d1, v, create_graph=True)
                (d3,) = torch.autograd.grad(d2, v)
                alpha = d2 / (2 * d2 + a[k].sum() * d3)
                weights[k] += float((alpha * (d1 / s).relu()).detach())
    expected = torch.einsum("k,khw->hw", weights, a).relu()
    g = (w / 4)[:, None, None].expand(3, 2, 2)
    assert torch.allclose(C.grad_cam_pp(a, g), expected)


def test_no_gradient_no_map():
    a = rand(4, 3, 3).abs()
    assert not C.grad_cam_pp(a, torch.zeros_like(a)).any() and not C.grad_cam(a, torch.zeros_like(a)).any()


@given(st.integers(1, 4), st.floats(0.1, 100), st.sampled_from(C.NORMS))
@settings(max_examples=20)
def test_normalised_maps_lie_in_the_unit_interval_and_reach_one(tags, scale, how):
    x = C.normalize_cam(rand(2, tags, 5, 6, seed=tags) * scale + 0.5, how)
    assert x.min() >= 0 and x.max() <= 1
    assert torch.allclose(x.amax((-2, -1)), torch.ones(2, tags), atol=1e-3)


def test_normalised_by_hand():
    m = torch.tensor([[[[-1.0, 2.0], [4.0, 1.0]]]])
    assert torch.allclose(C.normalize_cam(m, "max"), torch.tensor([0, 0.5, 1, 0.25]).reshape(1, 1, 2, 2), atol=1e-5)
    shifted = m + 2
    high, low = 6.0, 1.0
    expected = ((shifted - low - 1e-5).clamp(min=0)) / (high - low + 1e-5)
    assert torch.allclose(C.normalize_cam(shifted, "minmax"), expected)
    assert not C.normalize_cam(-torch.ones(1, 1, 3, 3)).any(), "no positive evidence stays none"


def test_absent_classes_are_zero_and_do_not_touch_the_others():
    x, tags = rand(2, 3, 4, 4), torch.tensor([[1, 0, 1], [0, 0, 0]])
    kept = C.keep_tagged(x, tags)
    assert torch.equal(kept[0, [0, 2]], x[0, [0, 2]]) and not kept[0, 1].any() and not kept[1].any()


def test_only_the_largest_map_survives_at_each_pixel():
    x = rand(2, 4, 5, 5).relu()
    y = C.suppress_non_maximal(x)
    assert ((y > 0).sum(1) <= 1).all() and torch.equal(y.amax(1), x.amax(1))
    assert torch.equal(C.suppress_non_maximal(x[:, :0]), x[:, :0])


def test_background_and_the_largest_map_add_up_to_one():
    x = rand(3, 5, 5).sigmoid()
    assert torch.allclose(C.background_power(x, 1)[0] + x.amax(0), torch.ones(5, 5))
    assert torch.equal(C.background_power(x[:0], 4), torch.ones(1, 5, 5))
    assert (C.background_power(x, 24) <= C.background_power(x, 4)).all()
    scores = C.with_background(x, threshold=0.3)
    assert scores.shape == (4, 5, 5) and torch.equal(scores[1:], x) and (scores[0] == 0.3).all()
    assert torch.equal(C.with_background(x, alpha=2)[:1], C.background_power(x, 2))
    with pytest.raises(ValueError, match="either"):
        C.with_background(x)
    with pytest.raises(ValueError, match="either"):
        C.with_background(x, threshold=0.1, alpha=1)


@given(st.permutations(range(4)), st.sampled_from(C.FUSIONS))
@settings(max_examples=12)
def test_order_of_scales_does_not_matter(order, how):
    maps = [rand(2, 3 + k, 4 + k, seed=k).relu() for k in range(4)]
    a = C.fuse_scales(maps, (7, 7), how)
    assert torch.allclose(a, C.fuse_scales([maps[k] for k in order], (7, 7), how), atol=1e-6)


def test_one_scale_without_flip_is_the_raw_map():
    x = rand(2, 5, 6)
    assert torch.equal(C.fuse_scales([x], (5, 6)), x)


def test_fused_flips_commute_with_a_flip():
    x, y = rand(2, 5, 6), rand(2, 5, 6, seed=1)
    for how in C.FUSIONS:
        assert torch.allclose(C.fuse_flips(x, y, how).flip(-1), C.fuse_flips(y, x, how))


def test_resize_keeps_position():
    """The centre of mass stays where it is, to less than half a cell."""
    x = torch.zeros(1, 8, 8)
    x[0, 2, 5] = 1
    y = C.resize_maps(x, (32, 32))[0]
    yy, xx = np.mgrid[:32, :32] + 0.5
    w = y.numpy() / y.sum().item()
    assert abs((w * yy).sum() / 4 - 2.5) < 0.5 and abs((w * xx).sum() / 4 - 5.5) < 0.5
    assert C.resize_maps(x[:0], (3, 4)).shape == (0, 3, 4)


@pytest.mark.parametrize("seed", range(4))
def test_threshold_of_least_cross_entropy(seed):
    rng = np.random.default_rng(seed)
    values = np.concatenate([rng.exponential(0.12, 4000), rng.normal(0.7, 0.12, 1000)]).clip(0, 1)
    t = C.minimum_cross_entropy(values)
    assert t == pytest.approx(threshold_li(values, tolerance=1e-4), abs=0.02)

    def loss(split):
        parts = values[values < split], values[values >= split]
        return -sum(p.sum() * np.log(p.mean()) for p in parts)

    assert loss(t) <= min(loss(s) for s in np.linspace(0.05, 0.9, 60)) + 1e-2 * abs(loss(t)) / 10


def test_threshold_of_two_values_lies_between_and_of_one_is_it():
    assert 0.2 < C.minimum_cross_entropy(np.array([0.2, 0.2, 0.8])) <= 0.8
    assert C.minimum_cross_entropy(np.full(5, 0.4)) == 0.4
    assert 0 < C.minimum_cross_entropy(np.array([0.0, 0.0, 1.0])) <= 1


@pytest.mark.parametrize(
    "call",
    [
        lambda: C.cam(torch.zeros(1, 3, 2, 2), torch.zeros(2, 4)),
        lambda: C.grad_cam(torch.zeros(3, 2, 2), torch.zeros(2, 2, 2)),
        lambda: C.grad_cam_pp(torch.zeros(3, 2), torch.zeros(3, 2)),
        lambda: C.normalize_cam(torch.zeros(1, 2, 2), "mean"),
        lambda: C.fuse_scales([], (2, 2)),
        lambda: C.fuse_flips(torch.zeros(1, 2, 2), torch.zeros(1, 2, 2), "product"),
        lambda: C.minimum_cross_entropy(np.array([-0.1, 0.2])),
    ],
)
def test_refuses_what_does_not_fit(call):
    with pytest.raises(ValueError, match="expected"):
        call()
