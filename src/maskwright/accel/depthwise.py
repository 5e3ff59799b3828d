"""Gradients of a depthwise convolution on a processor.

MobileNets, EfficientNets and separable decoders consist of depthwise convolutions, and torch's backward pass of these
is what their training on a processor spends half of its time in: oneDNN has no vectorised kernel for strides in bf16
(ten times the time of its unstrided one), for 5 x 5 weights, or for dilations beyond the map. Here both gradients come
from one walk over the maps, 32 channels at a time, in float32 whatever the tensors are.

Legend: B batch, D channels, (H, W) input size, (h, w) output size, k kernel size.
"""

from __future__ import annotations

from functools import partial

import numpy as np
import torch
from numba import njit
from torch import Tensor

from maskwright.accel.bits import DTYPES, channels_last_bits, empty_channels_last
from maskwright.ops.lanes import LANES, load8, load_bits8, muladd8, store8, store_bits8
from maskwright.ops.threads import Threads

BLOCK = 32
"""Channels that are worked on together: a cache line of bf16, four registers of float32."""
Pair = tuple[int, int]


def depthwise_backward(
    x: Tensor, weight: Tensor, grad: Tensor, stride: Pair, before: Pair, dilation: Pair
) -> tuple[Tensor, Tensor]:
    """Gradients of y = conv(x, weight) with one filter a channel, zeros around x.

    Args:
        x: input (B, D, H, W), bf16 or float32, fastest with channels last; D a multiple of 8.
        weight: (D, 1, k, k'), of any type.
        grad: of the output, (B, D, h, w), of x's type.
        stride: vertical and horizontal, pixels.
        before: zeros above and left of x, pixels; what is needed below and right follows from the output's size.
        dilation: vertical and horizontal, pixels.

    Returns:
        Gradients of x, of its shape and type with channels last, and of weight, of its shape and type. Sums are formed
        in float32 in an order that does not depend on the number of threads.

    Raises:
        ValueError: types or shapes that do not go together, or D is no multiple of 8.
    """
    if x.dtype not in DTYPES or grad.dtype != x.dtype:
        raise ValueError(f"x is {x.dtype} and grad {grad.dtype}, expected both bfloat16 or both float32")
    d, k = x.shape[1], tuple(weight.shape[2:])
    if weight.shape[:2] != (d, 1) or grad.shape[:2] != x.shape[:2]:
        raise ValueError(
            f"x {tuple(x.shape)}, weight {tuple(weight.shape)}, grad {tuple(grad.shape)}: expected (B, D, H, W), "
            "(D, 1, k, k), (B, D, h, w)"
        )
    if d % LANES:
        raise ValueError(f"{d} channels, expected a multiple of {LANES}")
    grad_x = empty_channels_last(x)
    bits_x, bits_g, out = (channels_last_bits(t).reshape(-1) for t in (x, grad, grad_x))
    w = weight.detach().to(torch.float32).permute(2, 3, 0, 1).reshape(k[0] * k[1], d).contiguous().numpy()
    grad_w = np.empty_like(w)
    geometry = (len(x), *x.shape[2:], *grad.shape[2:], *k, *stride, *before, *dilation)
    tasks = [partial(_block, bits_x, bits_g, w, out, grad_w, first, *geometry) for first in range(0, d, BLOCK)]
    with Threads(torch.get_num_threads()) as threads:
        threads.run(tasks)
    return grad_x, torch.from_numpy(grad_w).view(*k, d, 1).permute(2, 3, 0, 1).to(weight)


@njit(cache=True, nogil=True)
def _widen(source, start, places, d, count, into):  # type: ignore[no-untyped-def]
    """`count` channels of the places from number `start` on as float32, (places * BLOCK,)."""
    for k in range(places):
        for c in range(0, count, LANES):
            store8(into, k * BLOCK + c, load_bits8(source, start + k * d + c))


@njit(cache=True, nogil=True)
def _narrow(source, into, start, places, d, count):  # type: ignore[no-untyped-def]
    """The way back."""
    for k in range(places):
        for c in range(0, count, LANES):
            store_bits8(into, start + k * d + c, load8(source, k * BLOCK + c))


@njit(cache=True, nogil=True)
def _block(  # type: ignore[no-untyped-def]
    x,
    g,
    w,
    grad_x,
    grad_w,
    first,
    batch,
    height,
    width,
    h,
    w_out,
    kh,
    kw,
    stride_h,
    stride_w,
    top,
    left,
    dilation_h,
    dilation_w,
):
    """Both gradients of the channels from `first` on."""
    d = w.shape[1]
    count, places, places_out = min(BLOCK, d - first), height * width, h * w_out
    xs, gx = np.zeros(places * BLOCK, np.float32), np.empty(places * BLOCK, np.float32)
    gs = np.zeros(places_out * BLOCK, np.float32)
    taps = kh * kw
    weights, sums = np.zeros(taps * BLOCK, np.float32), np.zeros(taps * BLOCK, np.float32)
    for t in range(taps):
        for c in range(count):
            weights[t * BLOCK + c] = w[t, first + c]

    for b in range(batch):
        _widen(x, b * places * d + first, places, d, count, xs)
        _widen(g, b * places_out * d + first, places_out, d, count, gs)
        gx[:] = 0
        for oi in range(h):
            for ki in range(kh):
                i = oi * stride_h + ki * dilation_h - top
                if i < 0 or i >= height:
                    continue
                for kj in range(kw):
                    shift = kj * dilation_w - left
                    # outputs whose tap lies inside the row: 0 <= o * stride + shift < width
                    low = 0 if shift >= 0 else (-shift + stride_w - 1) // stride_w
                    high = min(w_out, (width - 1 - shift) // stride_w + 1)
                    if low >= high:
                        continue
                    t = (ki * kw + kj) * BLOCK
                    w0, w1 = load8(weights, t), load8(weights, t + 8)
                    w2, w3 = load8(weights, t + 16), load8(weights, t + 24)
                    s0, s1, s2, s3 = load8(sums, t), load8(sums, t + 8), load8(sums, t + 16), load8(sums, t + 24)
                    for oj in range(low, high):
                        at = (oi * w_out + oj) * BLOCK
                        to = (i * width + oj * stride_w + shift) * BLOCK
                        g0, g1, g2, g3 = load8(gs, at), load8(gs, at + 8), load8(gs, at + 16), load8(gs, at + 24)
                        s0 = muladd8(s0, g0, load8(xs, to))
                        s1 = muladd8(s1, g1, load8(xs, to + 8))
                        s2 = muladd8(s2, g2, load8(xs, to + 16))
                        s3 = muladd8(s3, g3, load8(xs, to + 24))
                        store8(gx, to, muladd8(load8(gx, to), g0, w0))
                        store8(gx, to + 8, muladd8(load8(gx, to + 8), g1, w1))
                        store8(gx, to + 16, muladd8(load8(gx, to + 16), g2, w2))
                        store8(gx, to + 24, muladd8(load8(gx, to + 24), g3, w3))
                    store8(sums, t, s0)
                    store8(sums, t + 8, s1)
                    store8(sums, t + 16, s2)
                    store8(sums, t + 24, s3)
        _narrow(gx, grad_x, b * places * d + first, places, d, count)

    for t in range(taps):
        for c in range(count):
            grad_w[t, first + c] = sums[t * BLOCK + c]
