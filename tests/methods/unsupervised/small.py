"""Small trainings of methods without labels, and what they leave."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

import maskwright as mw
from maskwright.engine.config import configure, idle_options, options
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
            device="cpu", settings={**live(method, small, settings), **settings}, progress=Progress(quiet=True),
            report=False,
        )  # fmt: skip

    return train


def live(method: str, small: Mapping[str, Any], settings: Mapping[str, Any]) -> dict[str, Any]:
    """Those of the options `small` on which something depends beside the settings."""
    cls = mw.METHODS[method].Config
    idle = idle_options(configure(cls, settings))
    names = {name for o in options(cls) if o.name in idle for name in (o.name, o.flat)}
    return {name: value for name, value in small.items() if name not in names}


def parts_of(run: Path) -> dict[str, Any]:
    """What the training's checkpoint holds."""
    return torch.load(run / "train" / "checkpoint.pt", weights_only=True)["parts"]


def steps_of(run: Path, stage: str = "train") -> list[dict[str, Any]]:
    """The figures of each recorded step of a stage."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [m for m in lines if m["stage"] == stage]
