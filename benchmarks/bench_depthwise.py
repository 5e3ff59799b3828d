"""Training passes of depthwise convolutions and of batch norm with ReLU6 beside torch's, bf16, channels last.

Both sides go through autograd, forward and backward, on the same tensors; the other side is the untouched module."""

from __future__ import annotations

import copy
from collections.abc import Callable

import timm.layers
import torch
from torch import Tensor, nn

from benchmarks.common import Row, one_thread, side_by_side
from maskwright.accel.quicken import quicken

SHAPES = (
    ("3x3, stride 2, 64 x 96 x 64 x 64", (64, 96, 64, 64), 3, 2, 1),
    ("5x5, stride 1, 64 x 672 x 8 x 8", (64, 672, 8, 8), 5, 1, 1),
    ("5x5, stride 2, 64 x 144 x 32 x 32", (64, 144, 32, 32), 5, 2, 1),
    ("3x3, dilation 12, 4 x 960 x 12 x 12", (4, 960, 12, 12), 3, 1, 12),
)


def passes(module: nn.Module, x: Tensor) -> Callable[[], Tensor]:
    """Forward and backward of a module under bf16; gives the gradient of x."""
    x = x.to(torch.bfloat16, memory_format=torch.channels_last).requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        grad = torch.randn_like(module(x))

    def run() -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            y = module(x)
        return torch.autograd.grad(y, (x, *module.parameters()), grad)[0]

    return run


def row(name: str, module: nn.Module, x: Tensor) -> Row:
    """A module beside itself with quick passes."""
    plain = module.train().to(memory_format=torch.channels_last)
    a, b = side_by_side(passes(quicken(copy.deepcopy(plain)), x), passes(plain, x))
    return Row(name, a, "torch", b, 0)


def rows() -> list[Row]:
    """Nothing is asked: these were found by looking where a training step spends its time."""
    found = []
    with one_thread():
        torch.manual_seed(0)
        for name, shape, k, stride, dilation in SHAPES:
            d = shape[1]
            conv = nn.Conv2d(d, d, k, stride, dilation * (k // 2), dilation, groups=d, bias=False)
            found.append(row(f"depthwise {name}", conv, torch.randn(shape)))
        for shape in ((64, 144, 32, 32), (4, 144, 48, 48)):
            norm = timm.layers.BatchNormAct2d(shape[1], act_layer=nn.ReLU6)
            found.append(row(f"batch norm, ReLU6 {' x '.join(map(str, shape))}", norm, torch.randn(shape)))
    return found
