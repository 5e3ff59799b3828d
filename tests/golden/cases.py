"""Tensors that authors' own code gave, as they lie in a file: `CASE.input.X`, `CASE.output.X`, `CASE.grad.X`."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor


@dataclass
class Case:
    """One case: what goes in, what comes out, gradients of the loss, and the settings."""

    name: str
    settings: dict[str, Any]
    input: dict[str, Tensor] = field(default_factory=dict)
    output: dict[str, Tensor] = field(default_factory=dict)
    grad: dict[str, Tensor] = field(default_factory=dict)


def read_cases(root: Path, paper: str) -> dict[str, Case]:
    """All cases of a paper's file."""
    with safe_open(root / paper / "cases.safetensors", "pt") as file:
        settings = file.metadata()
        cases: dict[str, Case] = {}
        keys: list[str] = file.keys()
        for key in keys:
            name, kind, tensor = key.split(".", 2)
            case = cases.setdefault(name, Case(name, json.loads(settings[name])))
            getattr(case, kind)[tensor] = file.get_tensor(key)
    return cases


def close(found: Tensor, expected: Tensor, what: str = "", *, rel: float = 1e-5, least: float = 1e-2) -> None:
    """Equal to `rel` of the largest entry, which counts as `least` where it is smaller: a loss near 0 is only known to
    the rounding of a logarithm near 1."""
    scale = max(least, float(expected.abs().max()))
    told = f"{what}: " if what else ""
    torch.testing.assert_close(
        found.double(), expected.double(), rtol=rel, atol=rel * scale, msg=lambda m: f"{told}{m}"
    )
