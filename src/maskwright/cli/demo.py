"""`maskwright demo`: a first run without a folder of one's own."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def demo(
    out: Annotated[Path, typer.Option(help="The run folder.")] = Path("demo-run"),
) -> None:
    """Segment the photographs that come inside installed packages, with no label."""
    from maskwright.demo import run_demo

    run_demo(out)
