"""Gradients of depthwise convolutions against torch's in float64."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from maskwright.accel.depthwise import depthwise_backward


def expected(x, weight, grad, stride, pads, dilation):
    """torch's gradients in float64, of x and weight."""
    x, weight = x.double().requires_grad_(), weight.double().requires_grad_()
    y = F.conv2d(F.pad(x, pads), weight, None, stride, 0, dilation, len(weight))
    assert y.shape == grad.shape
    return torch.autograd.grad(y, (x, weight), grad.double())


def case(size, d, kernel, stride, pads, dilation, dtype, seed=0):
    """x, weight and the output's gradient for a geometry."""
    random = torch.Generator().manual_seed(seed)
    x = torch.randn(2, d, *size, generator=random).to(dtype)
    weight = torch.randn(d, 1, *kernel, generator=random)
    y = F.conv2d(F.pad(x.float(), pads), weight, None, stride, 0, dilation, d)
    return x, weight, torch.randn(y.shape, generator=random).to(dtype)


@settings(deadline=None, max_examples=40)
@given(
    st.tuples(st.integers(5, 14), st.integers(5, 14)), st.integers(1, 9).map(lambda n: 8 * n),
    st.tuples(st.sampled_from([1, 3, 5]), st.sampled_from([1, 3, 5])), st.tuples(st.integers(1, 3), st.integers(1, 3)),
    st.tuples(*[st.integers(0, 5)] * 4), st.tuples(st.integers(1, 2), st.integers(1, 2)), st.booleans(),
)  # fmt: skip
def test_gradients_are_those_of_torch(size, d, kernel, stride, pads, dilation, half):
    """Any size, blocks that are not full, any stride, unequal padding, dilation, both types."""
    reach = [(k - 1) * r for k, r in zip(kernel, dilation, strict=True)]
    if size[0] + pads[2] + pads[3] <= reach[0] or size[1] + pads[0] + pads[1] <= reach[1]:
        return
    dtype = torch.bfloat16 if half else torch.float32
    x, weight, grad = case(size, d, kernel, stride, pads, dilation, dtype)
    grad_x, grad_w = depthwise_backward(x, weight, grad, stride, (pads[2], pads[0]), dilation)
    want_x, want_w = expected(x, weight, grad, stride, pads, dilation)
    assert grad_x.dtype == dtype and grad_x.shape == x.shape and grad_w.shape == weight.shape
    near = {"rtol": 2**-8, "atol": 1e-4} if half else {"rtol": 1e-5, "atol": 1e-4}
    torch.testing.assert_close(grad_x.double(), want_x, **near)
    torch.testing.assert_close(grad_w.double(), want_w, rtol=1e-5, atol=1e-4)


def test_bf16_is_rounded_to_the_nearest():
    """Not cut off: the gradient of x is the float32 one as torch rounds it."""
    geometry = ((9, 8), 40, (3, 3), (2, 2), (1, 1, 1, 1), (1, 1))
    x, weight, grad = case(*geometry, torch.bfloat16)
    half, _ = depthwise_backward(x, weight, grad, (2, 2), (1, 1), (1, 1))
    full, _ = depthwise_backward(x.float(), weight, grad.float(), (2, 2), (1, 1), (1, 1))
    assert torch.equal(half, full.bfloat16())


def test_dilation_beyond_the_map_reaches_its_centre_alone():
    """Rate 12 on a map of 12 pixels, as DeepLab has it on small crops."""
    x, weight, grad = case((12, 12), 40, (3, 3), (1, 1), (12, 12, 12, 12), (12, 12), torch.float32)
    grad_x, grad_w = depthwise_backward(x, weight, grad, (1, 1), (12, 12), (12, 12))
    centre = weight[:, 0, 1, 1]
    torch.testing.assert_close(grad_x, grad * centre[None, :, None, None])
    torch.testing.assert_close(grad_w[:, 0, 1, 1], (grad * x).sum((0, 2, 3)), rtol=1e-4, atol=1e-4)
    off = grad_w.clone()
    off[:, 0, 1, 1] = 0
    assert not off.any()


def test_the_same_with_any_number_of_threads():
    """Sums are formed in one order."""
    x, weight, grad = case((8, 9), 136, (3, 3), (1, 1), (1, 1, 1, 1), (1, 1), torch.float32)
    found, before = [], torch.get_num_threads()
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            found.append(depthwise_backward(x, weight, grad, (1, 1), (1, 1), (1, 1)))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


def test_what_does_not_go_together_is_named():
    """Types and shapes."""
    x, weight, grad = case((6, 6), 8, (3, 3), (1, 1), (1, 1, 1, 1), (1, 1), torch.float32)
    with pytest.raises(ValueError, match="both bfloat16 or both float32"):
        depthwise_backward(x.double(), weight, grad.double(), (1, 1), (1, 1), (1, 1))
    with pytest.raises(ValueError, match="both bfloat16 or both float32"):
        depthwise_backward(x, weight, grad.bfloat16(), (1, 1), (1, 1), (1, 1))
    with pytest.raises(ValueError, match=r"\(D, 1, k, k\)"):
        depthwise_backward(x, weight[:2], grad, (1, 1), (1, 1), (1, 1))
    with pytest.raises(ValueError, match="7 channels, expected a multiple of 8"):
        depthwise_backward(x[:, :7], weight[:7], grad[:, :7], (1, 1), (1, 1), (1, 1))
