"""Tensors of the authors' own code, beside the photographs; tests that read them are marked `data`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open


class Case(dict[str, torch.Tensor]):
    """One case: `input.NAME`, `output.NAME`, `grad.NAME`, and its numbers."""

    numbers: dict[str, Any]


def cases_of(data_root: Path, paper: str) -> dict[str, Case]:
    """The cases of a paper by name; the test is skipped where they are not there."""
    path = data_root.parent / "golden" / paper / "cases.safetensors"
    if not path.exists():
        pytest.skip("no tensors of the authors' code beside the photographs")
    found: dict[str, Case] = {}
    with safe_open(path, "pt") as file:
        for name, text in file.metadata().items():
            found[name] = Case()
            found[name].numbers = json.loads(text)
        for key in file.keys():  # noqa: SIM118
            name, _, rest = key.partition(".")
            found[name][rest] = file.get_tensor(key)
    return found
