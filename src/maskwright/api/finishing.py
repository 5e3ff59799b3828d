"""`finish`: the model of a run that was stopped, of what it last saved."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import TYPE_CHECKING

from maskwright.api.training import train
from maskwright.errors import MaskwrightError

if TYPE_CHECKING:
    from maskwright.engine.progress import Progress
    from maskwright.predict.model import Model


def finish(
    run: str | Path, *, device: str | None = None, report: bool = True, progress: Progress | None = None
) -> Model:
    """Makes the model of a stopped run as it stands.

    No further step is trained, what comes behind the training is done, and model, previews and report are those of the
    last checkpoint. The run can be resumed all the same.

    Args:
        run: its folder.
        device: `auto`, `cpu` or `cuda`; None: as the run was begun.
        report: write previews and `report.html`.
        progress: how work shows itself.

    Returns:
        The model.

    Raises:
        MaskwrightError: there is no such run, it is finished, or it was stopped before there was anything to finish.
    """
    from maskwright.engine.config_file import CONFIG, read_config
    from maskwright.engine.records import MODEL, RunFolder

    path = Path(run)
    standing = RunFolder.standing(path)
    if not standing or not (path / CONFIG).exists():
        raise MaskwrightError(
            f"{path} holds no run" + (f" with a {CONFIG}" if standing else ""),
            "the folder of a run that was stopped", "check the path",
        )  # fmt: skip
    if standing == "is finished" and (path / MODEL).exists():
        raise MaskwrightError(
            f"{path} is finished", "a run that was stopped",
            f"its model is {path / MODEL}; train with --resume --steps N goes on",
        )  # fmt: skip
    known = set(inspect.signature(train).parameters)
    said, settings = read_config(path / CONFIG, known | {"input"})
    said["inputs"] = said.pop("input", None)
    given = {key: value for key, value in said.items() if key not in ("steps", "minutes", "out")}
    if device is not None:
        given["device"] = device
    return train(**given, out=path, settings=settings, resume=True, as_it_stands=True, report=report, progress=progress)
