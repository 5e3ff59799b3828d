"""`maskwright train`: a method, a folder, a run."""

from __future__ import annotations

from functools import partial
from inspect import signature
from pathlib import Path
from typing import Annotated, Any

import typer

from maskwright.cli.methods import method_names
from maskwright.cli.options import Labels, Range, Void, key_value
from maskwright.engine.config_file import read_config
from maskwright.errors import MaskwrightError


def from_file(context: typer.Context, path: Path | None) -> Path | None:
    """Makes the options that a file gives the defaults of those on the command line."""
    if path is not None and not context.resilient_parsing:
        said = read_config(path, OPTIONS)[0]
        context.default_map = {name: argument(value, name in ("source", "input")) for name, value in said.items()}
    return path


def argument(value: Any, repeatable: bool = False) -> Any:
    """A value of a file as the command line would have it; of an option that is repeatable, a list, which the file may
    have as a table by name."""
    if repeatable:
        value = [f"{k}={v}" for k, v in value.items()] if isinstance(value, dict) else value
        return [str(v) for v in (value if isinstance(value, list) else [value] if value is not None else [])]
    if isinstance(value, list):
        return ",".join(map(str, value))
    return None if value is None else str(value)


def train(
    data: Annotated[str | None, typer.Argument(help="Dataset folder, or layout:path.")] = None,
    method: Annotated[
        str, typer.Option(help="A name that `maskwright methods` lists, or auto.", autocompletion=method_names)
    ] = "auto",
    source: Annotated[
        list[str] | None, typer.Option(help="[NAME=]DATA[@SPLIT], repeatable: other data, labelled if it has no name.")
    ] = None,
    input: Annotated[
        list[str] | None, typer.Option(help="NAME=PLACE, repeatable: a second network or proposals, as a run's folder.")
    ] = None,
    split: Annotated[str | None, typer.Option(help="Only the images of this split.")] = None,
    labeled: Annotated[str | None, typer.Option(help="Split or file: the images whose masks may be read.")] = None,
    out: Annotated[Path | None, typer.Option(help="The run folder.")] = None,
    classes: Annotated[int | None, typer.Option(help="Number of classes or clusters.")] = None,
    names: Annotated[
        str | None, typer.Option(help="Class names: with commas between, or a file with one a line.")
    ] = None,
    backbone: Annotated[str, typer.Option(help="A timm name or a short name, or auto.")] = "auto",
    weights: Annotated[
        str | None, typer.Option(help="A run of yours to go on from, a checkpoint, package or random.")
    ] = None,
    steps: Annotated[int | None, typer.Option(help="Optimiser steps of the main training stage.")] = None,
    minutes: Annotated[
        float | None, typer.Option(help="As many steps as fit into so long, in place of --steps.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Every random draw is a function of it.")] = 0,
    seeds: Annotated[
        str | None,
        typer.Option(help="0,1,2, in place of --seed: a run each, OUT/seed-0 and so on, and their table."),
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    set_: Annotated[list[str] | None, typer.Option("--set", help="An option of the method, key=value.")] = None,
    config: Annotated[
        Path | None,
        typer.Option(
            help="A YAML or TOML file that says the same; the command line wins.", callback=from_file, is_eager=True
        ),
    ] = None,
    log: Annotated[str | None, typer.Option(help="tensorboard: curves as events too, in RUN/logs.")] = None,
    labels: Labels = None,
    void: Void = None,
    range: Range = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Continue the run in --out; with more --steps it is lengthened.")
    ] = False,
) -> None:
    """Train a method on a folder: masks, a model and a report."""
    settings: dict[str, Any] = dict(key_value(s) for s in set_ or [])
    if config is not None:
        settings = {k: v for k, v in read_config(config, OPTIONS)[1].items() if k not in settings} | settings
    if data is None:
        raise MaskwrightError("no DATA", "a dataset folder", "maskwright train DATA, or a --config with a line data:")
    from maskwright import api

    make = partial(api.train, seed=seed) if seeds is None else partial(train_and_show, whole_numbers(seeds))
    make = partial(make, log=log)
    make(
        data, method, out=out, source=source, inputs=input, split=split, labeled=labeled, classes=classes, names=names,
        backbone=backbone, weights=weights, steps=steps, minutes=minutes, device=device, settings=settings,
        resume=resume, labels=labels, void=void, range=range,
    )  # fmt: skip


def whole_numbers(text: str) -> list[int]:
    """The numbers of `--seeds 0,1,2`."""
    words = [word.strip() for word in text.split(",")]
    if not all(word.isascii() and word.isdigit() for word in words):
        raise MaskwrightError(f"--seeds {text}", "whole numbers with commas between, as 0,1,2")
    return [int(word) for word in words]


def train_and_show(seeds: list[int], data: str, method: str, **asked: Any) -> None:
    """One run a seed, and the table of all, printed once where several processes made them."""
    from maskwright import api
    from maskwright.app.comparing.tables import print_comparison
    from maskwright.engine.progress import Progress

    comparison = api.train_seeds(data, method, seeds=seeds, **asked)
    if not Progress.of_this_process().quiet:
        print_comparison(comparison)


OPTIONS = frozenset(signature(train).parameters) - {"config", "set_", "resume"}
"""What a file may say beside settings of the method."""
