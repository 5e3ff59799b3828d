"""The pixel correlation module: what its affinity keeps, where its gradient goes, what it holds in memory."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from maskwright.methods.weak.seam.network import (
    PixelCorrelation,
    SeamNetwork,
    attention_input,
    columns_at_a_time,
    correlate,
    pixel_affinity,
)
from maskwright.models.backbones.build import build_backbone
from maskwright.models.networks.cam import attention_levels


def unit(b: int, e: int, n: int, seed: int = 0) -> torch.Tensor:
    return F.normalize(torch.randn(b, e, n, generator=torch.Generator().manual_seed(seed)), dim=1)


@settings(max_examples=10)
@given(st.integers(0, 99), st.integers(1, 3), st.integers(1, 20))
def test_columns_sum_to_one_and_are_not_negative(seed, b, n):
    a = pixel_affinity(unit(b, 4, n, seed))
    assert (a >= 0).all()
    torch.testing.assert_close(a.sum(1), torch.ones(b, n), rtol=0, atol=1e-4)


def test_affinity_against_a_loop():
    f = unit(1, 4, 6)
    raw = torch.tensor([[max(0.0, float(f[0, :, i] @ f[0, :, j])) for j in range(6)] for i in range(6)])
    torch.testing.assert_close(pixel_affinity(f)[0], raw / (raw.sum(0) + 1e-5), rtol=1e-4, atol=1e-6)


def test_constant_features_give_the_spatial_mean():
    f = unit(2, 5, 1).expand(2, 5, 30)
    maps = torch.rand(2, 3, 30)
    torch.testing.assert_close(correlate(f, maps), maps.mean(2, keepdim=True).expand_as(maps), rtol=1e-4, atol=1e-5)


def test_chunks_do_not_change_the_result_and_bound_the_memory(monkeypatch):
    f, maps = unit(2, 5, 50), torch.rand(2, 3, 50)
    whole = torch.matmul(maps, pixel_affinity(f))
    sizes = []

    def watched(f, columns=slice(None)):
        a = pixel_affinity(f, columns)
        sizes.append(a.numel())
        return a

    monkeypatch.setattr("maskwright.methods.weak.seam.network.pixel_affinity", watched)
    torch.testing.assert_close(correlate(f, maps, elements=700), whole, rtol=1e-5, atol=1e-6)
    assert max(sizes) <= 700 and sum(sizes) == 2 * 50 * 50


def test_a_large_photograph_fits():
    """One of 2000 x 1500 at scale 2 and stride 8 has 188 000 pixels: their affinity would take 140 GB."""
    n = 500 * 375
    assert columns_at_a_time(1, n) * n * 4 <= 64 << 20 and columns_at_a_time(1, n) >= 64
    assert columns_at_a_time(2, 10**9) == 1


def test_module_refines_towards_pixels_that_look_alike():
    torch.manual_seed(0)
    module = PixelCorrelation(8, 12)
    assert module.f9.weight.shape == (192, 195, 1, 1), "192 channels from the image and 64 + 128"
    x, fine, coarse = torch.randn(2, 3, 32, 48), torch.randn(2, 8, 8, 12), torch.randn(2, 12, 4, 6)
    maps = torch.rand(2, 5, 4, 6)
    out = module(x, fine, coarse, maps)
    assert out.shape == maps.shape and out.dtype == torch.float32
    assert (out <= maps.amax((2, 3), keepdim=True) + 1e-5).all(), "a mean lies in the range of its map"


def test_the_image_is_sampled_corner_to_corner():
    """With features of the maps' size the module is the authors': means over pixels that look alike."""
    torch.manual_seed(0)
    module = PixelCorrelation(8, 12).double()
    x, fine, coarse = (
        torch.randn(1, c, s, s, dtype=torch.float64)
        for c, s in (
            (
                3,
                33,
            ),
            (8, 5),
            (12, 5),
        )
    )
    maps = torch.rand(1, 4, 5, 5, dtype=torch.float64)
    seen = x[:, :, ::8, ::8]  # the pixels on a grid that has both corners
    rows = [F.conv2d(fine, module.f3.weight).relu(), F.conv2d(coarse, module.f4.weight).relu()]
    f = F.conv2d(torch.cat([seen, *rows], 1), module.f9.weight).flatten(2)[0]
    f = f / (f.norm(dim=0, keepdim=True) + 1e-5)
    a = (f.T @ f).clamp(min=0)
    expected = (maps.flatten(2)[0] @ (a / (a.sum(0, keepdim=True) + 1e-5))).view(1, 4, 5, 5)
    single = module.float()(*(t.float() for t in (x, fine, coarse, maps)))
    torch.testing.assert_close(single, expected.float(), rtol=1e-4, atol=1e-5)


def test_gradient_reaches_the_module_and_nothing_else():
    module = PixelCorrelation(8, 12)
    inputs = [torch.randn(1, c, 4, 4, requires_grad=True) for c in (3, 8, 12, 5)]
    module(*inputs).square().sum().backward()
    assert all(t.grad is None for t in inputs), "the maps' gradient through the module is zero"
    assert all(p.grad is not None and p.grad.any() for p in module.parameters())


def test_attention_input_has_one_class_a_pixel_and_the_background_is_the_rest():
    cams = torch.randn(2, 4, 5, 6, generator=torch.Generator().manual_seed(1)).requires_grad_(True)
    tags = torch.tensor([[1, 0, 1, 0], [0, 0, 0, 0]])
    x = attention_input(cams, tags)
    assert not x.requires_grad and x.shape == (2, 5, 5, 6)
    torch.testing.assert_close(x[:, 0] + x[:, 1:].amax(1), torch.ones(2, 5, 6))
    assert ((x[:, 1:] > 0).sum(1) <= 1).all()
    assert not x[0, [2, 4]].any() and not x[1, 1:].any() and (x[1, 0] == 1).all()
    assert attention_input(cams)[:, 2].any(), "without tags no class is left out"


@pytest.mark.parametrize("name, stride", [("resnet18", 16), ("mobilenetv2_050", 8), ("vit_tiny_patch16_224", None)])
def test_network_on_any_backbone(name, stride):
    torch.manual_seed(0)
    backbone = build_backbone(name, "random")
    network = SeamNetwork(backbone, 3, stride).eval()
    x, tags = torch.randn(2, 3, 64, 96), torch.tensor([[1, 0, 0], [0, 1, 1]])
    out = network(x, tags)
    h, w = 64 // network.stride, 96 // network.stride
    assert out.cams.shape == (2, 3, h, w) and out.refined.shape == (2, 4, h, w)
    torch.testing.assert_close(out.scores, out.cams.mean((2, 3)), rtol=1e-4, atol=1e-5)
    assert not out.refined[0, 2:].any() and not out.refined[1, 1].any(), "absent classes stay zero"
    grouped = [p for g in network.groups(0.1, 0.1, 1e-4) for p in g["params"]]
    wanted = [p for p in network.parameters() if p.requires_grad]
    assert {id(p) for p in grouped} == {id(p) for p in wanted} and len(grouped) == len(wanted)


def test_levels_are_those_of_the_paper_on_a_residual_network():
    backbone = build_backbone("resnet50", "random", 16)
    assert [backbone.widths[k] for k in attention_levels(backbone)] == [512, 1024]
    assert [backbone.strides[k] for k in attention_levels(backbone)] == [8, 16]
