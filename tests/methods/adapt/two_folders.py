"""A run's context, and a whole training, on a labelled source and a target without labels."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import maskwright as mw
from maskwright.data.folders.folder import open_folder
from maskwright.engine.config import configure
from maskwright.engine.opening import open_run
from maskwright.engine.progress import Progress
from maskwright.engine.request import RunRequest
from maskwright.engine.streams import open_sources

SMALL = {"crops.size": 32, "crops.batch": 2, "precision": "fp32"}


def context_of(
    domains: tuple[Path, Path], out: Path, method: type, *, sources: Any = None, inputs: Any = None, **options: Any
):
    """The context of a run of four steps on (source, target), or on other sources, with inputs."""
    source, target = domains
    request = RunRequest(
        data=open_folder(target), method=method, config=configure(method.Config, {**SMALL, **options}), out=out,
        sources=open_sources(sources or str(source)), inputs=inputs or {}, backbone="mobilenetv3_small_050",
        weights="random", steps=4, device="cpu",
        progress=Progress(quiet=True),
    )  # fmt: skip
    return open_run(request)


def train(target: Path, source: Path, out: Path, method: str, steps: int = 6, settings: dict | None = None, **options):
    """A training through the Python interface."""
    return mw.train(
        target, method, source=str(source), out=out, backbone="mobilenetv3_small_050", weights="random", steps=steps,
        device="cpu", report=False, settings={**SMALL, **(settings or {})}, progress=Progress(quiet=True), **options,
    )  # fmt: skip
