"""`maskwright doctor`: what a folder holds, and what is wrong with it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from maskwright.cli.options import Json, Labels, Range, Void, echo, print_json


def doctor(
    data: Annotated[str, typer.Argument(help="Dataset folder, or layout:path.")],
    labels: Labels = None,
    void: Void = None,
    range: Range = None,
    fix: Annotated[
        Path | None, typer.Option(help="Write a mended copy of the folder here, and say what was changed.")
    ] = None,
    json: Json = False,
) -> None:
    """Say what labels a folder holds and what is wrong with it, each finding with its repair.

    The exit code is 2 where an error was found.
    """
    from maskwright.data.examining.doctor import examine
    from maskwright.data.examining.reading import Reading
    from maskwright.engine.progress import Progress

    said = Reading.parse(labels, void, range)
    bar = Progress(quiet=json)
    changes: list[str] = []
    if fix is not None:
        from maskwright.data.examining.mending import mend
        from maskwright.data.layouts import open_data

        with bar.counter("mending") as count:
            changes = mend(open_data(data, said), fix, progress=count)
        changes.append(
            f"{len(changes)} changes, listed in {fix / 'changes.txt'}; where a verb asks what the copy's values mean, "
            "they are ids: --labels ids; the copy:"
        )
        data, said = str(fix), Reading(labels="ids", range=said.range)
    with bar.counter("examining") as count:
        diagnosis = examine(data, progress=count, reading=said)
    if json:
        print_json({**diagnosis.to_json(), "changes": changes} if fix is not None else diagnosis.to_json())
    else:
        for line in changes:
            echo(line)
        echo(diagnosis.text())
    if not diagnosis.healthy:
        raise typer.Exit(2)
