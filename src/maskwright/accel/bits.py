"""bf16 and float32 as the bits they are made of, so that numba, which knows no bf16, can work on both.

A bf16 is the upper half of a float32. Kernels take flat arrays of uint16 or uint32, read and write them by
`lanes.load_bits8` and `lanes.store_bits8`, and compute in float32.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

DTYPES = (torch.bfloat16, torch.float32)


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
