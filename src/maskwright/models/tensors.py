"""Tensors on disk with a checksum: safetensors files that say what they hold and are compared with it when read."""

from __future__ import annotations

import math
import zlib
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from maskwright.data.trust.artefacts import Damage, must_fit, unreadable
from maskwright.data.trust.files import write_bytes

CHECKSUM = "checksum"
"""The field of a safetensors file's metadata that holds the checksum of all else."""


def checksum(tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> str:
    """CRC-32 over names, types, shapes and values of tensors, and over text beside them; eight hexadecimal digits.

    Args:
        tensors: of any shape and type, in any order.
        metadata: its field `checksum` is left out.
    """
    crc = 0
    for name, text in sorted((metadata or {}).items()):
        if name != CHECKSUM:
            crc = zlib.crc32(f"{name}\0{text}\0".encode(), crc)
    for name, tensor in sorted(tensors.items()):
        crc = zlib.crc32(f"{name}\0{tensor.dtype}\0{tuple(tensor.shape)}\0".encode(), crc)
        if tensor.numel():
            flat = tensor.detach().cpu().contiguous().reshape(-1)
            crc = zlib.crc32(flat.view(torch.uint8).numpy(), crc)  # type: ignore[arg-type]
    return f"{crc:08x}"


def _is_finite(x: Tensor) -> bool:
    # One sum says it in a tenth of the time, unless it overflows.
    return math.isfinite(float(x.sum())) or bool(torch.isfinite(x).all())


def save_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> None:
    """Writes an artefact as safetensors with its checksum, beside and renamed."""
    plain = {k: v.detach().cpu().contiguous() for k, v in tensors.items()}
    text = dict(metadata or {})
    write_bytes(path, save(plain, text | {CHECKSUM: checksum(plain, text)}))


def load_tensors(path: Path, expected: Mapping[str, str | tuple[str, str]], repair: str) -> dict[str, Tensor]:
    """Reads what `save_tensors` wrote. A file without a checksum (of an earlier version) is read all the same.

    Args:
        path: the file.
        expected: by name, a letter for each dimension of a floating-point tensor ("KD"), or its kind ("f" or "i") and
            these letters; equal letters are equal lengths, a digit is that length. Others may lie beside them.
        repair: what mends it.

    Returns:
        All tensors of the file.

    Raises:
        MaskwrightError: it is missing or damaged, lacks a tensor, or one is of another shape, type or not finite.
    """
    try:
        with safe_open(path, "pt") as file:
            metadata = dict(file.metadata() or {})
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        if CHECKSUM in metadata and metadata[CHECKSUM] != checksum(tensors, metadata):
            raise Damage("its checksum does not fit")
        found = {k: ("f" if v.is_floating_point() else "i", tuple(v.shape)) for k, v in tensors.items()}
        must_fit(found, {k: ("f", v) if isinstance(v, str) else v for k, v in expected.items()})
        for name in expected:
            if tensors[name].is_floating_point() and not _is_finite(tensors[name]):
                raise Damage(f"{name} has values that are not finite")
    except (SafetensorError, OSError, ValueError, TypeError, RuntimeError, KeyError) as error:
        raise unreadable(path, error, "what its stage wrote", repair) from error
    return tensors
