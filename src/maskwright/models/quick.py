"""Depthwise convolutions and batch norms that do not hold up training on a processor.

`quicken` gives the depthwise convolutions and batch norms inside a network of any library the training passes of
`accel/depthwise` and `accel/batch_norm`, where torch's are slow: a network of MobileNet's kind spends two thirds of its
training step in them. That holds for norms that are frozen in training, too. Weights, names of tensors, copies and what
is computed stay as they were, up to rounding; on a GPU and without gradients it is what it was.
"""

from __future__ import annotations

import math
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from timm.layers import BatchNormAct2d, Conv2dSame
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from maskwright.accel.batch_norm import normalise, normalise_backward
from maskwright.accel.depthwise import Pair, depthwise_backward
from maskwright.models.networks.blocks import BatchNorm2d
from maskwright.ops.bits import DTYPES
from maskwright.ops.lanes import LANES

M = TypeVar("M", bound=nn.Module)
Pads = tuple[int, int, int, int]
"""Zeros left, right, above and below, pixels."""


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
    """What both kinds share; a convolution becomes one of them by `quicken`, with everything it has."""

    def pads(self, size: tuple[int, int]) -> Pads:
        """Zeros around an input (H, W)."""
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        """(B, D, H, W) to (B, D, h, w)."""
        weight, bias = self.weight, self.bias
        learns = torch.is_grad_enabled() and (x.requires_grad or weight.requires_grad)
        if learns and x.device.type == "cpu":
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


class _QuickNorm(nn.BatchNorm2d):
    """What all kinds share; a batch norm becomes one of them by `quicken`, with everything it has."""

    def bounds(self) -> tuple[float, float] | None:
        """What the activation behind it clips to, or None where it does something else."""
        return -math.inf, math.inf

    def forward(self, x: Tensor) -> Tensor:
        """(B, D, h, w) to the same shape."""
        learns = torch.is_grad_enabled() and (x.requires_grad or (self.affine and self.weight.requires_grad))
        own = learns and x.device.type == "cpu" and x.dtype in DTYPES and x.ndim == 4
        bounds = self.bounds() if own else None
        if bounds is None or not self.affine or self.momentum is None or self.running_mean is None:
            return super().forward(x)
        if x.numel() <= x.shape[1]:  # torch's own error, or what `BatchNorm2d` does with single values
            return super().forward(x)
        if self.training and self.num_batches_tracked is not None:
            self.num_batches_tracked.add_(1)
        return _Normalise.apply(x, self, self.weight, self.bias, *bounds)


class QuickBatchNorm(_QuickNorm):
    """`nn.BatchNorm2d`."""


class QuickTolerantNorm(_QuickNorm, BatchNorm2d):
    """Our `BatchNorm2d`, which bears single values."""


class QuickNormAct(_QuickNorm, BatchNormAct2d):
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


_CONVOLUTIONS: dict[type, type[_QuickDepthwise]] = {nn.Conv2d: QuickDepthwise, Conv2dSame: QuickDepthwiseSame}
_NORMS: dict[type, type[_QuickNorm]] = {
    nn.BatchNorm2d: QuickBatchNorm, BatchNorm2d: QuickTolerantNorm, BatchNormAct2d: QuickNormAct,
}  # fmt: skip


def quicken(module: M) -> M:
    """Gives the module's batch norms and slow depthwise convolutions quick training passes, in place; returns it."""
    for m in module.modules():
        if isinstance(m, nn.Conv2d) and type(m) in _CONVOLUTIONS and _slow_depthwise(m):
            m.__class__ = _CONVOLUTIONS[type(m)]
        elif isinstance(m, nn.BatchNorm2d) and type(m) in _NORMS and m.num_features % LANES == 0:
            m.__class__ = _NORMS[type(m)]
    return module
