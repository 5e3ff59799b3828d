"""Batch normalisation in training with a clipping activation behind it, on a processor.

torch's kernels for bf16 maps with channels last take several times what their memory traffic costs, and the ReLU6
behind them as much again. Here statistics, normalisation and clipping are two walks over a map, their gradients two
more, and of the activations only the input is kept for the backward pass.

Legend: B batch, D channels, (h, w) map size, N = B h w rows. y = clip(gamma (x - mean) / sqrt(var + eps) + beta).
"""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from numba import njit
from torch import Tensor

from maskwright.ops.bits import as_bits, as_float, channels_last_bits, empty_channels_last, rounded
from maskwright.ops.threads import Threads

PARTS = 16
"""Most parts that rows are cut into, by their size and whatever the threads, so that sums do not depend on these."""
LEAST = 1 << 17
"""Numbers in a part at least; less is done before a thread has woken up."""
STRETCH = 256
"""Rows summed in float32 before they are added to sums in float64."""


class Normalised(NamedTuple):
    """What the forward pass gives.

    Attributes:
        y: (B, D, h, w), of x's type, channels last.
        mean: over the batch, float32 (D,).
        var: biased variance over the batch, float32 (D,).
    """

    y: Tensor
    mean: Tensor
    var: Tensor


def normalise(x: Tensor, gamma: Tensor, beta: Tensor, eps: float, least: float, most: float) -> Normalised:
    """Normalises by the batch's statistics and clips.

    Args:
        x: (B, D, h, w), bf16 or float32, fastest with channels last.
        gamma: scale (D,).
        beta: shift (D,).
        eps: added to the variance.
        least: lower bound of y; -inf for none, 0 for ReLU.
        most: upper bound of y; inf for none, 6 for ReLU6.
    """
    rows = _rows(x)
    n, d = rows.shape
    pivot = x[0, :, 0, 0].detach().float().numpy().copy()  # sums of squares around it do not cancel
    sums, squares = _sums(partial(_statistics, rows, pivot), n, d)
    shift = sums / n
    mean, var = pivot + shift, np.maximum(squares / n - shift**2, 0.0)
    scale, offset = _affine(gamma, beta, mean, var, eps)
    y = empty_channels_last(x)
    out = _rows(y)
    _each_part(n, d, lambda low, high, part: _apply(rows, out, low, high, scale, offset, *_bounds(least, most)))
    return Normalised(y, torch.from_numpy(mean.astype(np.float32)), torch.from_numpy(var.astype(np.float32)))


def normalise_backward(
    x: Tensor,
    gamma: Tensor,
    beta: Tensor,
    mean: Tensor,
    var: Tensor,
    eps: float,
    least: float,
    most: float,
    grad: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of `normalise` for x, gamma and beta; nothing passes where y was clipped.

    Args:
        x, gamma, beta, eps, least, most: as given to `normalise`.
        mean, var: as it gave them.
        grad: of y, (B, D, h, w), of x's type.

    Returns:
        Gradients of x, of its shape and type with channels last, and of gamma and beta, of their types.
    """  # fmt: skip
    rows, g = _rows(x), _rows(grad)
    n, d = rows.shape
    scale, offset = _affine(gamma, beta, mean.numpy(), var.numpy(), eps)
    inverse = 1 / np.sqrt(var.numpy().astype(np.float64) + eps)
    mean32, bounds = mean.numpy(), _bounds(least, most)
    sum_g, sum_gx = _sums(partial(_gradient_sums, rows, g, mean32, scale, offset, *bounds), n, d)
    sum_gx *= inverse
    a = gamma.detach().double().numpy() * inverse
    b = -a * inverse * sum_gx / n
    c = -a * sum_g / n
    a32, b32, c32 = (v.astype(np.float32) for v in (a, b, c))
    grad_x = empty_channels_last(x)
    out = _rows(grad_x)
    _each_part(
        n, d,
        lambda low, high, part: _gradient(rows, g, out, low, high, mean32, scale, offset, *bounds, a32, b32, c32),
    )  # fmt: skip
    return grad_x, torch.from_numpy(sum_gx).to(gamma), torch.from_numpy(sum_g).to(beta)


def _rows(x: Tensor) -> np.ndarray:
    """The bits of (B, D, h, w) as (N, D)."""
    return channels_last_bits(x).reshape(-1, x.shape[1])


def _bounds(least: float, most: float) -> tuple[np.float32, np.float32]:
    return np.float32(least), np.float32(most)


def _affine(gamma: Tensor, beta: Tensor, mean: Any, var: Any, eps: float) -> tuple[np.ndarray, np.ndarray]:
    """Scale and offset of x that normalise it, float32 (D,); the same to the bit in both passes."""
    mean, var = np.asarray(mean, np.float32).astype(np.float64), np.asarray(var, np.float32).astype(np.float64)
    scale = gamma.detach().double().numpy() / np.sqrt(var + eps)
    return scale.astype(np.float32), (beta.detach().double().numpy() - mean * scale).astype(np.float32)


def _parts(n: int, d: int) -> int:
    return max(1, min(PARTS, n * d // LEAST))


def _each_part(n: int, d: int, work: Any) -> None:
    """Runs `work(low, high, part)` for all parts of n rows of d numbers."""
    count = _parts(n, d)
    if count == 1:
        work(0, n, 0)
        return
    cuts = [n * k // count for k in range(count + 1)]
    with Threads(torch.get_num_threads()) as threads:
        threads.run([partial(work, cuts[k], cuts[k + 1], k) for k in range(count)])


def _sums(kernel: Any, n: int, d: int) -> tuple[np.ndarray, np.ndarray]:
    """Two sums over rows, float64 (D,) each, of a kernel that adds what a part gives."""
    parts = np.zeros((_parts(n, d), 2, d))
    _each_part(n, d, lambda low, high, part: kernel(low, high, parts[part, 0], parts[part, 1]))
    first, second = parts.sum(0)
    return first, second


@njit(cache=True, nogil=True)
def _statistics(x, pivot, low, high, sums, squares):  # type: ignore[no-untyped-def]
    """Adds sum (x - pivot) and sum (x - pivot)^2 of rows."""
    shift = np.uint32(32 - 8 * x.itemsize)
    d = x.shape[1]
    s, q = np.zeros(d, np.float32), np.zeros(d, np.float32)
    for start in range(low, high, STRETCH):
        for r in range(start, min(start + STRETCH, high)):
            row = x[r]
            for c in range(d):
                v = as_float(np.uint32(row[c]) << shift) - pivot[c]
                s[c] += v
                q[c] += v * v
        for c in range(d):
            sums[c] += s[c]
            squares[c] += q[c]
        s[:] = 0
        q[:] = 0


@njit(cache=True, nogil=True)
def _apply(x, y, low, high, scale, offset, least, most):  # type: ignore[no-untyped-def]
    """y = clip(scale x + offset)."""
    shift = np.uint32(32 - 8 * x.itemsize)
    d = x.shape[1]
    for r in range(low, high):
        row, out = x[r], y[r]
        for c in range(d):
            v = as_float(np.uint32(row[c]) << shift) * scale[c] + offset[c]
            v = least if v < least else v  # not min and max, which would swallow what is not a number
            v = most if v > most else v
            out[c] = rounded(as_bits(v), shift)


@njit(cache=True, nogil=True)
def _gradient_sums(x, g, mean, scale, offset, least, most, low, high, sum_g, sum_gx):  # type: ignore[no-untyped-def]
    """Adds sum g and sum g (x - mean) of rows, g where y was not clipped."""
    shift = np.uint32(32 - 8 * x.itemsize)
    d = x.shape[1]
    s, q = np.zeros(d, np.float32), np.zeros(d, np.float32)
    for start in range(low, high, STRETCH):
        for r in range(start, min(start + STRETCH, high)):
            row, grad = x[r], g[r]
            for c in range(d):
                v = as_float(np.uint32(row[c]) << shift)
                y = v * scale[c] + offset[c]
                passed = as_float(np.uint32(grad[c]) << shift)
                passed = passed if (y > least) & (y < most) else np.float32(0)
                s[c] += passed
                q[c] += passed * (v - mean[c])
        for c in range(d):
            sum_g[c] += s[c]
            sum_gx[c] += q[c]
        s[:] = 0
        q[:] = 0


@njit(cache=True, nogil=True)
def _gradient(x, g, out, low, high, mean, scale, offset, least, most, a, b, c_):  # type: ignore[no-untyped-def]
    """a g + b (x - mean) + c, g where y was not clipped."""
    shift = np.uint32(32 - 8 * x.itemsize)
    d = x.shape[1]
    for r in range(low, high):
        row, grad, to = x[r], g[r], out[r]
        for c in range(d):
            v = as_float(np.uint32(row[c]) << shift)
            y = v * scale[c] + offset[c]
            passed = as_float(np.uint32(grad[c]) << shift)
            passed = passed if (y > least) & (y < most) else np.float32(0)
            to[c] = rounded(as_bits(a[c] * passed + b[c] * (v - mean[c]) + c_[c]), shift)
