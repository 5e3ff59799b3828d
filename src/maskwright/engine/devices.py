"""Devices and processes, through lightning-fabric.

One process by default. Under `torchrun` (or any launcher that sets its environment variables) the run spans all
processes, on one machine or several: NCCL on GPUs, gloo on CPUs. Nothing else starts processes: variables of a
scheduler (SLURM's) say where a job runs, not that this command is one of several. Everything is true fp32 but what a
method puts under autocast itself.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal

import torch

from maskwright.errors import MaskwrightError

if TYPE_CHECKING:
    from lightning_fabric import Fabric

Device = Literal["auto", "cpu", "cuda"]


def on_cpu(device: str = "auto") -> bool:
    """Whether a run on this device computes without a GPU."""
    return device == "cpu" or not torch.cuda.is_available()


@contextmanager
def unseen(package: str) -> Iterator[None]:
    """Imports find no such package meanwhile, unless it was imported before.

    lightning-fabric imports torchmetrics, where it is installed, to compare its version for a callback that nobody asks
    for here, and with it transformers: seconds of each start.
    """
    modules: dict[str, Any] = sys.modules
    hidden = modules.setdefault(package, None) is None
    try:
        yield
    finally:
        if hidden:
            del modules[package]


def make_fabric(device: str = "auto") -> Fabric:
    """The fabric that a run uses, launched.

    Args:
        device: `auto` (a GPU where there is one), `cpu` or `cuda`.

    Raises:
        MaskwrightError: when a GPU is asked for and there is none, or the device is unknown.
    """
    if device not in ("auto", "cpu", "cuda"):
        raise MaskwrightError(f"unknown device {device!r}", "auto, cpu or cuda")
    has_gpu = torch.cuda.is_available()
    if device == "cuda" and not has_gpu:
        raise MaskwrightError("--device cuda, but torch sees no GPU", "a GPU", "use --device cpu or auto")
    accelerator = "cuda" if has_gpu and device != "cpu" else "cpu"

    with unseen("torchmetrics"):
        from lightning_fabric import Fabric
        from lightning_fabric.plugins.environments import LightningEnvironment, TorchElasticEnvironment

    for name in ("lightning_fabric", "lightning.fabric"):  # what it says of itself is nothing that a user asked
        logging.getLogger(name).setLevel(logging.WARNING)

    local = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    world = int(os.environ.get("WORLD_SIZE", "1"))
    fabric = Fabric(
        accelerator=accelerator,
        devices=local,
        num_nodes=max(1, world // max(1, local)),
        strategy="ddp" if world > 1 else "auto",
        precision="32-true",
        plugins=[TorchElasticEnvironment() if world > 1 else LightningEnvironment()],
    )
    fabric.launch()
    return fabric


def cpu_has_bf16() -> bool:
    """Whether the processor multiplies bf16 matrices in hardware; without it bf16 is emulated and slower than fp32."""
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


def pick_device(device: str = "auto") -> str:
    """`cpu` or `cuda` for prediction, without starting processes.

    Raises:
        MaskwrightError: as `make_fabric`.
    """
    if device not in ("auto", "cpu", "cuda"):
        raise MaskwrightError(f"unknown device {device!r}", "auto, cpu or cuda")
    if device == "cuda" and not torch.cuda.is_available():
        raise MaskwrightError("--device cuda, but torch sees no GPU", "a GPU", "use --device cpu or auto")
    return "cuda" if device != "cpu" and torch.cuda.is_available() else "cpu"
