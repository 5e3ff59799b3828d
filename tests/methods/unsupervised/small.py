"""Small trainings of methods without labels, and what they leave."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

import maskwright as mw
from maskwright.engine.progress import Progress
from maskwright.predict.model import Model


def trainer(
    method: str, small: Mapping[str, Any], classes: int = 3, backbone: str = "mobilenetv3_small_050"
) -> Callable[..., Model]:
    """A function that trains a method from random weights, two steps unless told, with the options `small` and those
    that it is given."""
    usual = classes, backbone

    def train(
        data: Path, out: Path, steps: int = 2, inputs: dict[str, str] | None = None, classes: int = usual[0],
        backbone: str = usual[1], **settings: Any,
    ) -> Model:  # fmt: skip
        return mw.train(
            data, method, out=out, inputs=inputs, classes=classes, backbone=backbone, weights="random", steps=steps,
            device="cpu", settings={**small, **settings}, progress=Progress(quiet=True), report=False,
        )  # fmt: skip

    return train


def parts_of(run: Path) -> dict[str, Any]:
    """What the training's checkpoint holds."""
    return torch.load(run / "train" / "checkpoint.pt", weights_only=True)["parts"]


def steps_of(run: Path, stage: str = "train") -> list[dict[str, Any]]:
    """The figures of each recorded step of a stage."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [m for m in lines if m["stage"] == stage]
