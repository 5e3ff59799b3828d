"""What a run was asked, left in its folder in the form that repeats it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from maskwright.engine.context import Context
    from maskwright.engine.request import RunRequest


def write_call(context: Context, request: RunRequest, *, data: Any, source: Any, log: str | None) -> None:
    """Writes the run's `config.yaml`; its paths hold from anywhere.

    Args:
        context: of the run.
        request: what was asked; the steps are those that the run has.
        data: the data set as it was given.
        source: the data beside it, likewise.
        log: what was asked to be logged.

    Raises:
        MaskwrightError: it cannot be written; the run's record then says that it failed.
    """
    from maskwright.engine.config import nested
    from maskwright.engine.config_file import CONFIG, lasting, write_config
    from maskwright.engine.ending import recorded
    from maskwright.engine.inputs import inputs_as_written
    from maskwright.engine.streams import sources_as_written

    r, images = request, request.data
    call = {
        "method": r.method.name, "data": data, "source": sources_as_written(source, dict(r.sources)) or None,
        "input": inputs_as_written(r.inputs) or None, "split": r.split, "labeled": r.labeled, "classes": r.classes,
        "names": None if r.names is None else list(r.names), "backbone": r.backbone, "weights": r.weights,
        "steps": context.steps, "minutes": context.timing.minutes, "seed": r.seed, "device": r.device, "log": log,
    }  # fmt: skip
    names = {"split": images.split_names, "labeled": images.split_names, "weights": ("package", "random")}
    for key in ("data", "split", "labeled", "weights"):
        given = call[key]
        place = given if isinstance(given, str | Path | None) else given.root
        call[key] = place if str(place) in names.get(key, ()) else lasting(place)
    if context.run.writes:
        with recorded(context.run):
            write_config(context.run.path / CONFIG, call | images.reading.arguments(), nested(r.config))
