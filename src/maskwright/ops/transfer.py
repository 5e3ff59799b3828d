"""The way of a batch from the CPU to a GPU."""

from __future__ import annotations

import torch
from torch import Tensor


def to_device(x: Tensor, device: torch.device | str) -> Tensor:
    """A tensor on the device; the tensor itself where it lies there already.

    From the CPU to a GPU it goes through pinned memory, and the caller does not wait: what the GPU is asked for later
    comes after the copy. A copy from ordinary memory would stop the thread until all earlier work was done.

    Args:
        x: of any shape and type.
        device: where to.
    """
    device = torch.device(device)
    if device.type != "cuda" or x.is_cuda:
        return x.to(device)
    return x.pin_memory().to(device, non_blocking=True)
