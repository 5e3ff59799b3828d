"""`maskwright finish`: the model of a run that was stopped."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def finish(
    run: Annotated[Path, typer.Argument(help="The folder of a run that was stopped.")],
    device: Annotated[str | None, typer.Option(help="auto, cpu or cuda; as the run was begun if left out.")] = None,
) -> None:
    """Make the model of a stopped run as it stands: masks and report, without another step."""
    from maskwright import api

    api.finish(run, device=device)
