"""Depthwise convolutions and batch norms that do not hold up training on a processor.

`quicken` replaces the depthwise convolutions and batch norms inside a network of any library by modules with the
training passes of `accel/depthwise` and `accel/batch_norm`, where torch's are slow: a network of MobileNet's kind
spends two thirds of its training step in them. That holds for norms that are frozen in training, too. Weights, names of
tensors, copies and what is computed stay as they were, up to rounding. On a GPU, without gradients, while torch.compile
traces and with the switch off it is what it was.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from timm.layers import BatchNormAct2d, Conv2dSame
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from maskwright.accel.batch_norm import normalise, normalise_backward
from maskwright.accel.bits import DTYPES
from maskwright.accel.depthwise import Pair, depthwise_backward
from maskwright.accel.switch import enabled
from maskwright.ops.lanes import LANES

Pads = tuple[int, int, int, int]
"""Zeros left, right, above and below, pixels."""


def _ours(x: Tensor, *learned: Tensor) -> bool:
    """Whether a call is ours: a gradient is asked for, on a processor, the switch is on, and nothing is traced (numba's
    kernels cannot be)."""
    if not enabled() or torch.compiler.is_compiling() or x.device.type != "cpu":
        return False
    return torch.is_grad_enabled() and any(t.requires_grad for t in (x, *learned))


# ---------------------------------------------------------------------- depthwise convolutions


class _Depthwise(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, stride: Pair, pads: Pads, dilation: Pair
    ) -> Tensor:
        left, right, top, bottom = pads
        ctx.save_for_backward(x, weight)
        ctx.geometry, ctx.has_bias = (stride, (top, left), dilation), bias is not None
        if left == right and top == bottom:
            return F.conv2d(x, weight, bias, stride, (top, left), dilation, len(weight))
        return F.conv2d(F.pad(x, pads), weight, bias, stride, 0, dilation, len(weight))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        grad_x, grad_w = depthwise_backward(x, weight, grad, *ctx.geometry)
        grad_b = grad.sum((0, 2, 3)) if ctx.has_bias else None
        return grad_x, grad_w, grad_b, None, None, None


class _QuickDepthwise(nn.Conv2d):
    """What both kinds share; `quicken` puts one in a convolution's place, with its weights."""

    def pads(self, size: tuple[int, int]) -> Pads:
        """Zeros around an input (H, W)."""
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        """(B, D, H, W) to (B, D, h, w)."""
        weight, bias = self.weight, self.bias
        if _ours(x, weight):
            if torch.is_autocast_enabled("cpu"):
                to = torch.get_autocast_dtype("cpu")
                x, weight, bias = x.to(to), weight.to(to), None if bias is None else bias.to(to)
            if x.dtype in DTYPES and x.dtype == weight.dtype:
                pads = self.pads((x.shape[-2], x.shape[-1]))
                return _Depthwise.apply(x, weight, bias, self.stride, pads, self.dilation)
        return super().forward(x)


class QuickDepthwise(_QuickDepthwise):
    """`nn.Conv2d` with one filter a channel."""

    def pads(self, size: tuple[int, int]) -> Pads:
        """The same zeros whatever the size."""
        vertical, horizontal = int(self.padding[0]), int(self.padding[1])
        return horizontal, horizontal, vertical, vertical


class QuickDepthwiseSame(_QuickDepthwise, Conv2dSame):
    """timm's `Conv2dSame` with one filter a channel: TensorFlow's padding, which the input's size decides."""

    def pads(self, size: tuple[int, int]) -> Pads:
        """As many zeros as give ceil(size / stride) outputs, the odd one right and below."""
        sides: list[int] = []
        for n, k, s, d in zip(size[::-1], self.kernel_size[::-1], self.stride[::-1], self.dilation[::-1], strict=True):
            whole = max((-(-n // s) - 1) * s + (k - 1) * d + 1 - n, 0)
            sides += [whole // 2, whole - whole // 2]
        return sides[0], sides[1], sides[2], sides[3]


def _slow_depthwise(m: nn.Conv2d) -> bool:
    """One filter a channel, and a stride, more than 3 x 3 weights or a dilation: torch's is quick enough for others."""
    depthwise = m.groups == m.in_channels == m.out_channels and m.groups % LANES == 0
    slow = max(m.stride) > 1 or max(m.kernel_size) > 3 or max(m.dilation) > 1
    return depthwise and slow and m.padding_mode == "zeros" and not isinstance(m.padding, str)


# ---------------------------------------------------------------------- batch norms


class _Normalise(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, norm: nn.BatchNorm2d, gamma: Tensor, beta: Tensor, least: float, most: float
    ) -> Tensor:
        assert norm.running_mean is not None and norm.running_var is not None and norm.momentum is not None
        given = None if norm.training else (norm.running_mean, norm.running_var)
        y, mean, var = normalise(x, gamma, beta, norm.eps, least, most, given)
        ctx.save_for_backward(x, gamma, beta, mean, var)
        ctx.settings, ctx.fixed = (norm.eps, least, most), given is not None
        if given is None:
            n = x.numel() // x.shape[1]
            norm.running_mean.lerp_(mean.to(norm.running_mean), norm.momentum)
            norm.running_var.lerp_(var.to(norm.running_var) * (n / (n - 1)), norm.momentum)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, gamma, beta, mean, var = ctx.saved_tensors
        eps, least, most = ctx.settings
        grads = normalise_backward(x, gamma, beta, mean, var, eps, least, most, grad, ctx.fixed)
        grad_x, grad_gamma, grad_beta = grads
        return grad_x, None, grad_gamma, grad_beta, None, None


class QuickNorm(nn.BatchNorm2d):
    """What all kinds share; `quicken` puts one in a batch norm's place, with its weights and statistics."""

    def bounds(self) -> tuple[float, float] | None:
        """What the activation behind it clips to, or None where it does something else."""
        return -math.inf, math.inf

    def forward(self, x: Tensor) -> Tensor:
        """(B, D, h, w) to the same shape."""
        own = x.dtype in DTYPES and x.ndim == 4 and _ours(x, *((self.weight,) if self.affine else ()))
        bounds = self.bounds() if own else None
        if bounds is None or not self.affine or self.momentum is None or self.running_mean is None:
            return super().forward(x)
        if x.numel() <= x.shape[1]:  # torch's own error, or what a subclass does with single values
            return super().forward(x)
        if self.training and self.num_batches_tracked is not None:
            self.num_batches_tracked.add_(1)
        return _Normalise.apply(x, self, self.weight, self.bias, *bounds)


class QuickBatchNorm(QuickNorm):
    """`nn.BatchNorm2d`."""


class QuickNormAct(QuickNorm, BatchNormAct2d):
    """timm's batch norm with an activation."""

    def bounds(self) -> tuple[float, float] | None:
        """Of ReLU, ReLU6 and no activation."""
        if not isinstance(self.drop, nn.Identity):
            return None
        if isinstance(self.act, nn.ReLU6):
            return 0.0, 6.0
        if isinstance(self.act, nn.ReLU):
            return 0.0, math.inf
        return (-math.inf, math.inf) if isinstance(self.act, nn.Identity) else None


# ---------------------------------------------------------------------- putting them into a network

Norms = Mapping[type[nn.BatchNorm2d], type[QuickNorm]]
"""The quick kind of each kind of batch norm."""
CONVOLUTIONS: dict[type[nn.Conv2d], type[_QuickDepthwise]] = {
    nn.Conv2d: QuickDepthwise, Conv2dSame: QuickDepthwiseSame,
}  # fmt: skip
NORMS: Norms = {nn.BatchNorm2d: QuickBatchNorm, BatchNormAct2d: QuickNormAct}


def quicken(module: nn.Module, norms: Norms | None = None) -> nn.Module:
    """Replaces the batch norms and slow depthwise convolutions inside a module by quick ones with the same tensors.

    What carries hooks of its own stays: whoever set them holds on to that very module.

    Args:
        module: any network; changed in place.
        norms: further kinds of batch norm and their quick kinds, beside `NORMS`.

    Returns:
        The module, or what stands in its place where it is itself such a norm or convolution.
    """
    return _quickened(module, {**NORMS, **(norms or {})}, {})


def _quickened(module: nn.Module, norms: Norms, done: dict[nn.Module, nn.Module]) -> nn.Module:
    """`done` holds what was seen, so that a module with two names is replaced by one."""
    if module not in done:
        done[module] = _quick_twin(module, norms)
        for name, child in done[module].named_children():
            if (quick := _quickened(child, norms, done)) is not child:
                setattr(done[module], name, quick)
    return done[module]


def _quick_twin(m: nn.Module, norms: Norms) -> nn.Module:
    """The quick module of a plain one, or the plain one where there is none."""
    twin: nn.Module
    if _has_hooks(m):
        return m
    if isinstance(m, nn.Conv2d) and (conv := CONVOLUTIONS.get(type(m))) and _slow_depthwise(m):
        with torch.device("meta"):  # no memory, and no random number is drawn for weights that are replaced
            twin = conv(
                m.in_channels, m.out_channels, _pair(m.kernel_size), _pair(m.stride), _pair(m.padding),
                _pair(m.dilation), m.groups, m.bias is not None,
            )  # fmt: skip
    elif isinstance(m, nn.BatchNorm2d) and (norm := norms.get(type(m))) and m.num_features % LANES == 0:
        with torch.device("meta"):
            twin = norm(m.num_features, m.eps, m.momentum, m.affine, m.track_running_stats)
    else:
        return m
    for name, parameter in m.named_parameters(recurse=False):
        twin.register_parameter(name, parameter)
    for name, buffer in m.named_buffers(recurse=False):
        twin.register_buffer(name, buffer)
    for name, child in m.named_children():  # of timm's norms: what drops and activates behind them
        twin.add_module(name, child)
    twin.training = m.training
    return twin


def _pair(sizes: Any) -> Pair:
    return int(sizes[0]), int(sizes[1])


def _has_hooks(m: nn.Module) -> bool:
    return any((m._forward_hooks, m._forward_pre_hooks, m._backward_hooks, m._backward_pre_hooks))
