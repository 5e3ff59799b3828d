"""`maskwright compare`: runs side by side, also those that `maskwright train --seeds` makes."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

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


def train_and_show(seeds: list[int], **asked: Any) -> None:
    """One run a seed, and the table of all, printed once where several processes made them."""
    from maskwright import api
    from maskwright.app.comparing.tables import print_comparison
    from maskwright.engine.progress import Progress

    comparison = api.train_seeds(seeds=seeds, **asked)
    if not Progress.of_this_process().quiet:
        print_comparison(comparison)
