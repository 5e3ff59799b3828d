"""`maskwright train`: a method, a folder, a run."""

from __future__ import annotations

from typing import Any

import typer

from maskwright.cli import train_options as o
from maskwright.cli.compare import train_and_show
from maskwright.cli.options import Labels, Range, Void
from maskwright.errors import MaskwrightError


def train(
    context: typer.Context,
    data: o.Data = None,
    method: o.Method = "auto",
    source: o.Source = None,
    input: o.Input = None,
    split: o.Split = None,
    labeled: o.Labeled = None,
    out: o.Out = None,
    classes: o.Classes = None,
    names: o.Names = None,
    backbone: o.Backbone = "auto",
    weights: o.Weights = None,
    steps: o.Steps = None,
    minutes: o.Minutes = None,
    seed: o.Seed = 0,
    seeds: o.Seeds = None,
    device: o.Device = "auto",
    set_: o.Set = None,
    config: o.Config = None,
    log: o.Log = None,
    labels: Labels = None,
    void: Void = None,
    range: Range = None,
    resume: o.Resume = False,
) -> None:
    """Train a method on a folder: masks, a model and a report."""
    if data is None:
        raise MaskwrightError("no DATA", "a dataset folder", "maskwright train DATA, or a --config with a line data:")
    asked: dict[str, Any] = {
        "data": data, "method": method, "source": source, "inputs": input, "split": split, "labeled": labeled,
        "out": out, "classes": classes, "names": names, "backbone": backbone, "weights": weights, "steps": steps,
        "minutes": minutes, "device": device, "settings": o.settings_of(context, config, set_), "log": log,
        "labels": labels, "void": void, "range": range, "resume": resume,
    }  # fmt: skip
    if seeds is not None:
        train_and_show(o.whole_numbers(seeds), **asked)
        return
    from maskwright import api

    api.train(seed=seed, **asked)
