"""Batch normalisation with a clipping activation behind it and their gradients, on a processor.

torch's kernels for bf16 maps with channels last take several times what their memory traffic costs, and the ReLU6
behind them as much again. Here statistics, normalisation and clipping are two walks over a map, their gradients two
more, and of the activations only the input is kept for the backward pass. Statistics are the batch's, or given ones
(a norm that is frozen), which take one walk less forwards.

Legend: B batch, D channels, (h, w) map size, N = B h w rows. y = clip(gamma (x - mean) / sqrt(var + eps) + beta).
"""

from __future__ import annotations

import math
from functools import partial
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import torch
from numba import njit
from torch import Tensor

from maskwright.accel.bits import channels_last_bits, empty_channels_last
from maskwright.ops.lanes import (
    LANES,
    add8,
    clip8,
    load8,
    load_bits8,
    muladd8,
    same8,
    store8,
    store_bits8,
    sub8,
    within8,
)  # fmt: skip
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


Statistics = tuple[Tensor, Tensor]
"""Mean and biased variance, (D,) each."""


def normalise(
    x: Tensor,
    gamma: Tensor,
    beta: Tensor,
    eps: float,
    least: float,
    most: float,
    given: Statistics | None = None,
) -> Normalised:
    """Normalises by the batch's statistics, or by given ones, and clips.

    Args:
        x: (B, D, h, w), bf16 or float32, fastest with channels last; D a multiple of 8.
        gamma: scale (D,).
        beta: shift (D,).
        eps: added to the variance.
        least: lower bound of y; -inf for none, 0 for ReLU.
        most: upper bound of y; inf for none, 6 for ReLU6.
        given: statistics in place of the batch's; they come back in the result.

    Raises:
        ValueError: D is no multiple of 8.
    """
    rows, cuts, d = _rows(x), _cuts(x), x.shape[1]
    mean, var, y = np.empty(d, np.float32), np.empty(d, np.float32), empty_channels_last(x)
    scale, offset, pivot = _scratch(3, d)
    parts = np.zeros((len(cuts) - 1, 2, d))
    if given is None:
        _first_row(rows, pivot)  # sums of squares around it do not cancel
        _each(_statistics, cuts, parts, rows, pivot)
        _moments(parts, pivot, cuts[-1], mean, var)
    else:
        mean[:], var[:] = (_numbers(v) for v in given)
    _affine(_numbers(gamma), _numbers(beta), mean, var, eps, scale, offset)
    _each(_apply, cuts, parts, rows, _rows(y), scale, offset, np.float32(least), np.float32(most))
    return Normalised(y, torch.from_numpy(mean), torch.from_numpy(var))


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
    fixed: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of `normalise` for x, gamma and beta; nothing passes where y was clipped.

    Args:
        x, gamma, beta, eps, least, most: as given to `normalise`.
        mean, var: as it gave them.
        grad: of y, (B, D, h, w), of x's type.
        fixed: the statistics were given, so that they do not depend on x.

    Returns:
        Gradients of x, of its shape and type with channels last, and of gamma and beta, of their types.
    """
    rows, g, cuts, d = _rows(x), _rows(grad), _cuts(x), x.shape[1]
    grad_x, parts, m, v = empty_channels_last(x), np.zeros((len(cuts) - 1, 2, d)), mean.numpy(), var.numpy()
    scale, offset, a, b, c = _scratch(5, d)
    grad_gamma, grad_beta = np.empty(d, np.float32), np.empty(d, np.float32)
    gamma_, bounds = _numbers(gamma), (np.float32(least), np.float32(most))
    _affine(gamma_, _numbers(beta), m, v, eps, scale, offset)
    _each(_gradient_sums, cuts, parts, rows, g, m, scale, offset, *bounds)
    _coefficients(parts, gamma_, v, cuts[-1], eps, a, b, c, grad_gamma, grad_beta)
    if fixed:
        b[:], c[:] = 0, 0
    _each(_gradient, cuts, parts, rows, g, _rows(grad_x), m, scale, offset, *bounds, a, b, c)
    return grad_x, torch.from_numpy(grad_gamma).to(gamma), torch.from_numpy(grad_beta).to(beta)


def _rows(x: Tensor) -> np.ndarray:
    """The bits of (B, D, h, w) as N D numbers in a row, the channels of a place together."""
    if x.shape[1] % LANES:
        raise ValueError(f"{x.shape[1]} channels, expected a multiple of {LANES}")
    return channels_last_bits(x).reshape(-1)


def _numbers(x: Tensor) -> np.ndarray:
    """Float32 (D,)."""
    return x.detach().float().contiguous().numpy()


def _scratch(count: int, d: int) -> np.ndarray:
    return np.empty((count, d), np.float32)


def _cuts(x: Tensor) -> list[int]:
    """Where rows are cut into parts: the first row of each, and N."""
    n, count = x.numel() // x.shape[1], max(1, min(PARTS, x.numel() // LEAST))
    return [n * k // count for k in range(count + 1)]


def _each(kernel: Any, cuts: list[int], parts: np.ndarray, *args: Any) -> None:
    """Runs a kernel on all parts, side by side where torch may use several threads."""
    work = [partial(kernel, low, high, parts[k], *args) for k, (low, high) in enumerate(pairwise(cuts))]
    if len(work) == 1 or torch.get_num_threads() == 1:
        for one in work:
            one()
        return
    with Threads(torch.get_num_threads()) as threads:
        threads.run(work)


@njit(cache=True, nogil=True)
def _first_row(x, pivot):  # type: ignore[no-untyped-def]
    for c in range(0, len(pivot), LANES):
        store8(pivot, c, load_bits8(x, c))


@njit(cache=True, nogil=True)
def _moments(parts, pivot, n, mean, var):  # type: ignore[no-untyped-def]
    """Mean and biased variance from sums around the pivot."""
    for c in range(len(pivot)):
        shift, square = parts[:, 0, c].sum() / n, parts[:, 1, c].sum() / n
        mean[c], var[c] = pivot[c] + shift, max(square - shift * shift, 0.0)


@njit(cache=True, nogil=True)
def _affine(gamma, beta, mean, var, eps, scale, offset):  # type: ignore[no-untyped-def]
    """Scale and offset of x that normalise it; the same to the bit in both passes."""
    for c in range(len(gamma)):
        factor = float(gamma[c]) / math.sqrt(float(var[c]) + eps)
        scale[c], offset[c] = factor, float(beta[c]) - float(mean[c]) * factor


@njit(cache=True, nogil=True)
def _coefficients(parts, gamma, var, n, eps, a, b, c_, grad_gamma, grad_beta):  # type: ignore[no-untyped-def]
    """Of the gradient a g + b (x - mean) + c, and the gradients of scale and shift."""
    for c in range(len(gamma)):
        inverse = 1.0 / math.sqrt(float(var[c]) + eps)
        total, product = parts[:, 0, c].sum(), parts[:, 1, c].sum() * inverse
        factor = float(gamma[c]) * inverse
        a[c], b[c], c_[c] = factor, -factor * inverse * product / n, -factor * total / n
        grad_gamma[c], grad_beta[c] = product, total


@njit(cache=True, nogil=True)
def _add(sums, s, q):  # type: ignore[no-untyped-def]
    """Adds the sums of a stretch in float64, and begins the next."""
    for c in range(len(s)):
        sums[0, c] += s[c]
        sums[1, c] += q[c]
        s[c] = q[c] = 0


@njit(cache=True, nogil=True)
def _statistics(low, high, sums, x, pivot):  # type: ignore[no-untyped-def]
    """Adds sum (x - pivot) and sum (x - pivot)^2 of rows."""
    d = len(pivot)
    s, q = np.zeros(d, np.float32), np.zeros(d, np.float32)
    for start in range(low, high, STRETCH):
        for r in range(start, min(start + STRETCH, high)):
            for c in range(0, d, LANES):
                v = sub8(load_bits8(x, r * d + c), load8(pivot, c))
                store8(s, c, add8(load8(s, c), v))
                store8(q, c, muladd8(load8(q, c), v, v))
        _add(sums, s, q)


@njit(cache=True, nogil=True)
def _apply(low, high, sums, x, y, scale, offset, least, most):  # type: ignore[no-untyped-def]
    """y = clip(scale x + offset)."""
    d = len(scale)
    lower, upper = same8(least), same8(most)
    for r in range(low, high):
        for c in range(0, d, LANES):
            v = muladd8(load8(offset, c), load_bits8(x, r * d + c), load8(scale, c))
            store_bits8(y, r * d + c, clip8(v, lower, upper))


@njit(cache=True, nogil=True)
def _gradient_sums(low, high, sums, x, g, mean, scale, offset, least, most):  # type: ignore[no-untyped-def]
    """Adds sum g and sum g (x - mean) of rows, g where y was not clipped."""
    d = len(mean)
    lower, upper = same8(least), same8(most)
    s, q = np.zeros(d, np.float32), np.zeros(d, np.float32)
    for start in range(low, high, STRETCH):
        for r in range(start, min(start + STRETCH, high)):
            for c in range(0, d, LANES):
                v = load_bits8(x, r * d + c)
                y = muladd8(load8(offset, c), v, load8(scale, c))
                passed = within8(load_bits8(g, r * d + c), y, lower, upper)
                store8(s, c, add8(load8(s, c), passed))
                store8(q, c, muladd8(load8(q, c), passed, sub8(v, load8(mean, c))))
        _add(sums, s, q)


@njit(cache=True, nogil=True)
def _gradient(low, high, sums, x, g, out, mean, scale, offset, least, most, a, b, c_):  # type: ignore[no-untyped-def]
    """a g + b (x - mean) + c, g where y was not clipped."""
    d = len(mean)
    lower, upper = same8(least), same8(most)
    for r in range(low, high):
        for c in range(0, d, LANES):
            v = load_bits8(x, r * d + c)
            y = muladd8(load8(offset, c), v, load8(scale, c))
            passed = within8(load_bits8(g, r * d + c), y, lower, upper)
            total = muladd8(load8(c_, c), load8(b, c), sub8(v, load8(mean, c)))
            store_bits8(out, r * d + c, muladd8(total, load8(a, c), passed))
