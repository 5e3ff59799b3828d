"""`maskwright name`: the clusters of a run become classes with names."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from maskwright.cli.options import Labels, Range, Void


def name(
    run: Annotated[Path, typer.Argument(help="The run folder.")],
    data: Annotated[str | None, typer.Argument(help="Dataset folder, or layout:path; that of the run if none.")] = None,
    map_: Annotated[
        Path | None, typer.Option("--map", help="The table of names; map.csv of the run if none is given.")
    ] = None,
    from_masks: Annotated[
        str | None, typer.Option(help="Split or file, or all: propose the names by the majority in these masks.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="The folder of the run with named classes.")] = None,
    names: Annotated[
        str | None, typer.Option(help="The classes in the order of their ids: with commas between, or a file.")
    ] = None,
    masks: Annotated[
        bool, typer.Option("--masks/--no-masks", help="Write the masks of all photographs into the new run.")
    ] = True,
    labels: Labels = None,
    void: Void = None,
    range: Range = None,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
) -> None:
    """Give clusters names: several may become one class, some void. Without --out, write the table to fill in."""
    from maskwright import api

    api.name(
        run, data, map=map_, from_masks=from_masks, out=out, names=names, masks=masks, labels=labels, void=void,
        range=range, device=device,
    )  # fmt: skip
