"""bf16 and float32 as the bits they are made of, so that numba, which knows no bf16, can work on both.

A bf16 is the upper half of a float32. Kernels take arrays of uint16 or uint32, shift what they read to the left by
`32 - 8 * itemsize` bits, compute in float32, and round on the way back.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from llvmlite import ir
from numba import extending, njit, types
from torch import Tensor

DTYPES = (torch.bfloat16, torch.float32)
intrinsic: Any = extending.intrinsic


def channels_last_bits(x: Tensor) -> np.ndarray:
    """The bits of maps (B, D, H, W), bf16 or float32, as unsigned integers (B, H, W, D); no copy with channels last."""
    x = x.detach().permute(0, 2, 3, 1).contiguous()
    if x.dtype == torch.bfloat16:
        return x.view(torch.int16).numpy().view(np.uint16)
    return x.numpy().view(np.uint32)


def empty_channels_last(x: Tensor) -> Tensor:
    """An uninitialised tensor of x's shape (B, D, H, W) and type with channels last, whatever x has.

    Not a view of another order: autograd lets nobody change a view in place that a function of ours returns.
    """
    b, d, h, w = x.shape
    return torch.empty_strided((b, d, h, w), (h * w * d, 1, w * d, d), dtype=x.dtype)


@intrinsic
def as_float(typingctx: Any, bits: Any) -> Any:
    """The float32 that has these 32 bits."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.bitcast(args[0], ir.FloatType())

    return types.float32(types.uint32), codegen


@intrinsic
def as_bits(typingctx: Any, number: Any) -> Any:
    """The 32 bits of a float32."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.bitcast(args[0], ir.IntType(32))

    return types.uint32(types.float32), codegen


@njit(cache=True, nogil=True, inline="always")
def rounded(bits, shift):  # type: ignore[no-untyped-def]
    """The upper bits of a float32's, nearest, ties to even; `shift` is how many go, 0 or 16."""
    half = np.uint32(0x7FFF) if shift else np.uint32(0)
    odd = np.uint32(1) if shift else np.uint32(0)
    return (bits + half + ((bits >> np.uint32(16)) & odd)) >> shift
