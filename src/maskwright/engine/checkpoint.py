"""The state of a training stage on disk, whole or not at all.

A checkpoint holds tensors and plain containers, is written beside the old one and renamed over it, and is read with
`weights_only`. With `seed_step` the random state needs no place in it.

Behind torch's archive stands a checksum of the file, which is compared before anything is read: torch itself lets a
flipped bit pass into the weights. Of a checkpoint without one (of an earlier version) the checksums of its archive's
entries are compared.
"""

from __future__ import annotations

import os
import re
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

import torch
from torch import nn

from maskwright.data.trust.artefacts import Damage, file_checksum
from maskwright.data.trust.files import temporary_beside
from maskwright.errors import MaskwrightError

M = TypeVar("M", bound=nn.Module)
CHECKPOINT = "checkpoint.pt"
"""Its name in the folder of a training stage."""
TRAILER = b"maskwright crc32 %08x\n"
TRAILER_BYTES = len(TRAILER % 0)


class DamagedCheckpoint(MaskwrightError):
    """A checkpoint that is not what was written."""


class _Summed:
    """Writes on, and keeps the checksum of what went by."""

    def __init__(self, out: BinaryIO) -> None:
        self.out, self.crc = out, 0

    def write(self, data: Any) -> int:
        self.crc = zlib.crc32(data, self.crc)
        return self.out.write(data)

    def flush(self) -> None:
        self.out.flush()


def save_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Writes a checkpoint beside `path` and renames it into place.

    Args:
        path: the file.
        state: tensors, numbers, strings and containers of these.

    Raises:
        MaskwrightError: when the disk is full; the earlier checkpoint is left as it was.
    """
    scratch = temporary_beside(path)
    try:
        with scratch.open("wb") as out:
            summed = _Summed(out)
            torch.save(state, summed)  # type: ignore[arg-type]
            out.write(TRAILER % summed.crc)
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
        DamagedCheckpoint: when the file is not what was written.
    """
    if not path.exists():
        return None
    try:
        _must_be_whole(path)
        state = torch.load(path, map_location=device, weights_only=True)
        if not isinstance(state, dict):
            raise Damage(f"it holds a {type(state).__name__}")
        return state
    except Exception as error:  # torch raises many kinds on damaged files
        reason = str(error) if isinstance(error, Damage) else type(error).__name__
        raise DamagedCheckpoint(
            f"{path} cannot be read ({reason})",
            "a checkpoint as it was written",
            f"delete its folder {path.parent} and repeat the command with --resume; that stage then starts over",
        ) from error


def _must_be_whole(path: Path) -> None:
    end = path.stat().st_size - TRAILER_BYTES
    with path.open("rb") as file:
        file.seek(max(0, end))
        trailer = file.read()
    if re.fullmatch(rb"maskwright crc32 [0-9a-f]{8}\n", trailer):
        if TRAILER % file_checksum(path, end) != trailer:
            raise Damage("its checksum does not fit")
        return
    with zipfile.ZipFile(path) as archive:
        if bad := archive.testzip():
            raise Damage(f"the checksum of {bad} in it does not fit")


def stage_parts(path: Path) -> dict[str, Any]:
    """The parts of the checkpoint that a training stage must have left, by name.

    Raises:
        MaskwrightError: there is none, it is damaged, or it holds no parts.
    """
    state = load_checkpoint(path)
    repair = f"delete its folder {path.parent} and repeat the command with --resume"
    if state is None:
        raise MaskwrightError(f"the {path.parent.name} stage left no {path.name}", str(path), repair)
    parts = state.get("parts")
    if not isinstance(parts, dict):
        raise MaskwrightError(f"{path} holds no parts", "a checkpoint of a training stage", repair)
    return parts


def load_part(module: nn.Module, parts: Mapping[str, Any], name: str, path: Path) -> None:
    """Loads one part of a checkpoint into a module of the same build.

    Args:
        module: where its tensors go.
        parts: what `stage_parts` gave.
        name: of the part, as "module.network".
        path: of the checkpoint, for the error.

    Raises:
        MaskwrightError: there is no such part, or it is of another build.
    """
    try:
        module.load_state_dict(parts[name])
    except (KeyError, RuntimeError, TypeError, AttributeError, ValueError) as error:
        raise MaskwrightError(
            f"{path} is of another network: {' '.join(str(error).split())[:200]}",
            "the one of this run",
            f"delete its folder {path.parent} and repeat the command with --resume",
        ) from error


def trained(folder: Path, part: str, module: M) -> M:
    """A module with the weights that a training stage left, in evaluation mode.

    Args:
        folder: of the stage.
        part: the module's name in the training's `modules`.
        module: of the same build; its tensors are overwritten.

    Raises:
        MaskwrightError: the stage left no checkpoint, a damaged one, or one of another build.
    """
    path = folder / CHECKPOINT
    load_part(module, stage_parts(path), f"module.{part}", path)
    return module.eval()
