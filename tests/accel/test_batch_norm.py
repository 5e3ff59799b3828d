"""Batch normalisation with clipping against torch's in float64."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from maskwright.accel.batch_norm import normalise, normalise_backward

BOUNDS = [(-math.inf, math.inf), (0.0, 6.0), (0.0, math.inf)]


def case(shape=(3, 24, 7, 9), dtype=torch.float32, mean=1.0, seed=0):
    """x, gamma, beta and the output's gradient."""
    random = torch.Generator().manual_seed(seed)
    x = (torch.randn(shape, generator=random) * 2 + mean).to(dtype)
    gamma, beta = (torch.randn(shape[1], generator=random) + c for c in (1.5, 0.5))
    return x, gamma, beta, torch.randn(shape, generator=random).to(dtype)


@pytest.mark.parametrize("bounds", BOUNDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(3, 24, 7, 9), (1, 8, 1, 2), (8, 72, 64, 33)])  # the last in several parts
def test_forward_and_gradients_are_those_of_torch(shape, dtype, bounds):
    """Values, statistics and the three gradients."""
    x, gamma, beta, grad = case(shape, dtype)
    wide = [t.double().requires_grad_() for t in (x, gamma, beta)]
    want = F.batch_norm(wide[0], None, None, wide[1], wide[2], True, 0.1, 1e-3).clamp(*bounds)
    out = normalise(x, gamma, beta, 1e-3, *bounds)
    assert out.y.dtype == dtype and out.y.is_contiguous(memory_format=torch.channels_last)
    half = dtype == torch.bfloat16
    torch.testing.assert_close(out.y.double(), want.detach(), rtol=2**-8 if half else 1e-5, atol=1e-5)
    torch.testing.assert_close(out.mean.double(), x.double().mean((0, 2, 3)), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(out.var.double(), x.double().var((0, 2, 3), unbiased=False), rtol=1e-5, atol=1e-6)

    found = normalise_backward(x, gamma, beta, out.mean, out.var, 1e-3, *bounds, grad)
    wanted = torch.autograd.grad(want, wide, grad.double())
    for f, w, source in zip(found, wanted, (x, gamma, beta), strict=True):
        assert f.dtype == source.dtype and f.shape == source.shape
        scale = float(w.abs().max())
        torch.testing.assert_close(f.double(), w, rtol=2**-8 if half else 1e-4, atol=1e-4 * scale)


@pytest.mark.parametrize("bounds", BOUNDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(3, 24, 7, 9), (1, 8, 1, 2), (8, 72, 64, 33)])
def test_given_statistics_take_the_place_of_the_batchs(shape, dtype, bounds):
    """Values and gradients of torch's evaluation mode; the statistics come back as they were."""
    x, gamma, beta, grad = case(shape, dtype)
    random = torch.Generator().manual_seed(1)
    mean, var = torch.randn(shape[1], generator=random), torch.rand(shape[1], generator=random) + 0.5
    wide = [t.double().requires_grad_() for t in (x, gamma, beta)]
    want = F.batch_norm(wide[0], mean.double(), var.double(), wide[1], wide[2], False, 0.1, 1e-3).clamp(*bounds)
    out = normalise(x, gamma, beta, 1e-3, *bounds, (mean, var))
    assert torch.equal(out.mean, mean) and torch.equal(out.var, var)
    half = dtype == torch.bfloat16
    torch.testing.assert_close(out.y.double(), want.detach(), rtol=2**-8 if half else 1e-5, atol=1e-5)
    found = normalise_backward(x, gamma, beta, out.mean, out.var, 1e-3, *bounds, grad, fixed=True)
    for f, w in zip(found, torch.autograd.grad(want, wide, grad.double()), strict=True):
        scale = float(w.abs().max())
        torch.testing.assert_close(f.double(), w, rtol=2**-8 if half else 1e-4, atol=1e-4 * scale)


def test_a_mean_far_from_zero_does_not_cancel():
    """The variance of 1000 + N(0, 0.1), of which squares alone would leave nothing in float32."""
    random = torch.Generator().manual_seed(0)
    x = 1000 + 0.1 * torch.randn(4, 8, 16, 16, generator=random)
    out = normalise(x, torch.ones(8), torch.zeros(8), 0.0, *BOUNDS[0])
    torch.testing.assert_close(out.var, x.double().var((0, 2, 3), unbiased=False).float(), rtol=1e-4, atol=0)


def test_what_is_not_a_number_stays_so():
    """A clip must not hide that a network has diverged."""
    x, gamma, beta, _ = case()
    x[0, 0, 0, 1] = math.nan
    out = normalise(x, gamma, beta, 1e-3, 0.0, 6.0)
    assert out.y[:, 0].isnan().all() and not out.y[:, 1:].isnan().any()


def test_the_same_with_any_number_of_threads():
    """Sums are formed in one order."""
    x, gamma, beta, grad = case((8, 72, 64, 33))
    found, before = [], torch.get_num_threads()
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            out = normalise(x, gamma, beta, 1e-3, 0.0, 6.0)
            found.append((*out, *normalise_backward(x, gamma, beta, out.mean, out.var, 1e-3, 0.0, 6.0, grad)))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


def test_channels_in_eights():
    """Others are left to torch by `accel/quicken`."""
    x, gamma, beta, _ = case((2, 12, 3, 3))
    with pytest.raises(ValueError, match="12 channels, expected a multiple of 8"):
        normalise(x, gamma, beta, 1e-3, 0.0, 6.0)
