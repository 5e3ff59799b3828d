"""The options of `maskwright train`: what they take and what their help says, and the file that may give them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from maskwright.cli.methods import method_names
from maskwright.cli.options import key_value
from maskwright.engine.config_file import read_config
from maskwright.errors import MaskwrightError

NOT_IN_A_FILE = ("config", "set_", "resume")
"""Parameters of the verb that a file cannot give."""


def from_file(context: typer.Context, path: Path | None) -> Path | None:
    """Makes the options that a file gives the defaults of those on the command line."""
    if path is not None and not context.resilient_parsing:
        known = {str(p.name) for p in context.command.params} - set(NOT_IN_A_FILE)
        said, context.meta[str(path)] = read_config(path, known)
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


def settings_of(context: typer.Context, config: Path | None, given: list[str] | None) -> dict[str, Any]:
    """Options of the method: those of the file, and above them those of `--set`, later ones last."""
    said: dict[str, Any] = dict(key_value(one) for one in given or [])
    from_it = {} if config is None else context.meta[str(config)]
    return {key: value for key, value in from_it.items() if key not in said} | said


def whole_numbers(text: str) -> list[int]:
    """The numbers of `--seeds 0,1,2`."""
    words = [word.strip() for word in text.split(",")]
    if not all(word.isascii() and word.isdigit() for word in words):
        raise MaskwrightError(f"--seeds {text}", "whole numbers with commas between, as 0,1,2")
    return [int(word) for word in words]


Data = Annotated[str | None, typer.Argument(help="Dataset folder, or layout:path.")]
Method = Annotated[
    str, typer.Option(help="A name that `maskwright methods` lists, or auto.", autocompletion=method_names)
]
Source = Annotated[
    list[str] | None, typer.Option(help="[NAME=]DATA[@SPLIT], repeatable: other data, labelled if it has no name.")
]
Input = Annotated[
    list[str] | None, typer.Option(help="NAME=PLACE, repeatable: a second network or proposals, as a run's folder.")
]
Split = Annotated[str | None, typer.Option(help="Only the images of this split.")]
Labeled = Annotated[str | None, typer.Option(help="Split or file: the images whose masks may be read.")]
Out = Annotated[Path | None, typer.Option(help="The run folder.")]
Classes = Annotated[int | None, typer.Option(help="Number of classes or clusters.")]
Names = Annotated[str | None, typer.Option(help="Class names: with commas between, or a file with one a line.")]
Backbone = Annotated[str, typer.Option(help="A timm name or a short name, or auto.")]
Weights = Annotated[str | None, typer.Option(help="A run of yours to go on from, a checkpoint, package or random.")]
Steps = Annotated[int | None, typer.Option(help="Optimiser steps of the main training stage.")]
Minutes = Annotated[float | None, typer.Option(help="As many steps as fit into so long, in place of --steps.")]
Seed = Annotated[int, typer.Option(help="Every random draw is a function of it.")]
Seeds = Annotated[
    str | None, typer.Option(help="0,1,2, in place of --seed: a run each, OUT/seed-0 and so on, and their table.")
]
Device = Annotated[str, typer.Option(help="auto, cpu or cuda.")]
Set = Annotated[list[str] | None, typer.Option("--set", help="An option of the method, key=value.")]
Config = Annotated[
    Path | None,
    typer.Option(
        help="A YAML or TOML file that says the same; the command line wins.", callback=from_file, is_eager=True
    ),
]
Log = Annotated[str | None, typer.Option(help="tensorboard: curves as events too, in RUN/logs.")]
Resume = Annotated[
    bool, typer.Option("--resume", help="Continue the run in --out; with more --steps it is lengthened.")
]
