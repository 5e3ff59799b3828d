"""The state of a training stage on disk, whole or not at all.

A checkpoint holds tensors and plain containers, is written beside the old one and renamed over it, and is read with
`weights_only`. With `seed_step` the random state needs no place in it.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch

from maskwright.errors import MaskwrightError


def save_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Writes a checkpoint beside `path` and renames it into place.

    Args:
        path: the file.
        state: tensors, numbers, strings and containers of these.

    Raises:
        MaskwrightError: when the disk is full; the earlier checkpoint is left as it was.
    """
    scratch = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with scratch.open("wb") as out:
            torch.save(state, out)
            out.flush()
            os.fsync(out.fileno())
        os.replace(scratch, path)
    except (OSError, RuntimeError) as error:
        # torch reports a full disk as a RuntimeError of its zip writer
        raise MaskwrightError(
            f"cannot write {path}: {error}", "room on the disk", "free some and add --resume"
        ) from error
    finally:
        scratch.unlink(missing_ok=True)


def load_checkpoint(path: Path, device: torch.device | str = "cpu") -> dict[str, Any] | None:
    """Reads a checkpoint, or None where there is none.

    Raises:
        MaskwrightError: when the file is damaged.
    """
    if not path.exists():
        return None
    try:
        return torch.load(path, map_location=device, weights_only=True)
    except Exception as error:  # torch raises many kinds on damaged files
        raise MaskwrightError(
            f"{path} cannot be read ({type(error).__name__})",
            "a checkpoint",
            "delete it; its stage then starts over",
        ) from error
