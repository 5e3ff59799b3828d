"""`maskwright train`: a method, a folder, a run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from maskwright.cli.methods import method_names
from maskwright.cli.options import Labels, Range, Void, key_value


def train(
    data: Annotated[str, typer.Argument(help="Dataset folder, or layout:path.")],
    method: Annotated[
        str, typer.Option(help="A name that `maskwright methods` lists, or auto.", autocompletion=method_names)
    ] = "auto",
    source: Annotated[str | None, typer.Option(help="A fully labelled folder of another domain.")] = None,
    split: Annotated[str | None, typer.Option(help="Only the images of this split.")] = None,
    labeled: Annotated[str | None, typer.Option(help="Split or file: the images whose masks may be read.")] = None,
    out: Annotated[Path | None, typer.Option(help="The run folder.")] = None,
    classes: Annotated[int | None, typer.Option(help="Number of classes or clusters.")] = None,
    backbone: Annotated[str, typer.Option(help="A timm name or a short name, or auto.")] = "auto",
    weights: Annotated[str | None, typer.Option(help="A local checkpoint, or package, or random.")] = None,
    steps: Annotated[int | None, typer.Option(help="Optimiser steps of the main training stage.")] = None,
    seed: Annotated[int, typer.Option(help="Every random draw is a function of it.")] = 0,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    set_: Annotated[list[str] | None, typer.Option("--set", help="An option of the method, key=value.")] = None,
    labels: Labels = None,
    void: Void = None,
    range: Range = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue the run that lies in --out.")] = False,
) -> None:
    """Train a method on a folder: masks, a model and a report."""
    settings = dict(key_value(s) for s in set_ or [])
    from maskwright import api

    api.train(
        data, method, out=out, source=source, split=split, labeled=labeled, classes=classes, backbone=backbone,
        weights=weights, steps=steps, seed=seed, device=device, settings=settings, resume=resume,
        labels=labels, void=void, range=range,
    )  # fmt: skip
