"""`maskwright compare`: runs side by side."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def compare(
    runs: Annotated[list[str], typer.Argument(help="Run folders, folders that hold runs, or patterns.")],
    out: Annotated[Path | None, typer.Option(help="Write one HTML page to this file.")] = None,
    json: Annotated[Path | None, typer.Option("--json", help="Write the comparison to this file.")] = None,
) -> None:
    """Runs side by side: means over seeds, classes, curves, photographs."""
    from maskwright import api
    from maskwright.app.comparing.tables import print_comparison
    from maskwright.cli.options import echo
    from maskwright.data.trust.files import write_json

    comparison = api.compare(*runs, out=out)
    print_comparison(comparison)
    if json is not None:
        write_json(json, comparison.to_json())
    if out is not None:
        echo(f"page: {out}")
