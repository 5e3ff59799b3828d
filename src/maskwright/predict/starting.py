"""A start for an annotation tool: photographs with the model's masks as outlines, to be corrected and brought back."""

from __future__ import annotations

import os
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from maskwright.data.annotations.writing import OUTLINES, Writer
from maskwright.data.folders.folder import Dataset
from maskwright.data.folders.opening import scan_folder
from maskwright.data.layouts import layout_of
from maskwright.data.masking.classes import IGNORE8, IGNORE16
from maskwright.data.trust.files import folder_beside
from maskwright.errors import MaskwrightError, unknown
from maskwright.ops.outlines import without_specks
from maskwright.predict.model import Bar, Model, read_ahead

SPECK = 1 / 5000
"""Share of an image below which a region becomes part of what is around it: nobody corrects a hundred specks."""


def check_start(out: str | os.PathLike[str] | None, to: str) -> None:
    """Raises `MaskwrightError` where no start can be written: an unknown format, or one is there, perhaps corrected."""
    if to not in OUTLINES:
        raise unknown("format of outlines", to, OUTLINES)
    if out is None:
        raise MaskwrightError(f"--to {to} without a folder", "--out DIR", "name one")
    folder = Path(out) / to
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise MaskwrightError(
            f"{folder} is there already, and may be corrected by now", "a new folder", "choose another --out"
        )


def write_start(out: Path, to: str, model: Model, data: Dataset, names: Sequence[str], progress: Any = None) -> Path:
    """Writes photographs and the outlines of the model's masks.

    Args:
        out: the new folder.
        to: a name of `OUTLINES`.
        model: what predicts.
        data: the photographs.
        names: those that are written, in this order.
        progress: as for `suggest`.

    Returns:
        The folder.

    Raises:
        MaskwrightError: the place cannot be written.
    """
    chosen = data.subset(data.index(name) for name in names)
    with folder_beside(out, f".{to}-") as work:
        writer = Writer(work, to, model.classes)
        with Bar(progress, "outlines", len(chosen)) as show:
            for done, (name, pixels) in enumerate(read_ahead(chosen), 1):
                if not isinstance(pixels, str):
                    size = pixels.shape[0], pixels.shape[1]
                    ids = without_specks(model.predict(pixels).mask, round(size[0] * size[1] * SPECK))
                    if len(model.classes) <= IGNORE8:
                        ids = np.where(ids == IGNORE16, IGNORE8, ids).astype(np.uint8)
                    writer.add(name, chosen.items[chosen.index(name)].image, ids, size)
                show(done)
        writer.close(None)  # no list: nothing is labelled yet
    return out


def way_back(start: Path, data: str | os.PathLike[str], names: Sequence[str] = ()) -> str:
    """The sentence that says how a start is corrected and brought back into the folder of the photographs.

    Args:
        start: what `write_start` wrote.
        data: the place of the photographs.
        names: those that were written; where the folder has masks of them, the command replaces these and says so.
    """
    where = shlex.quote(os.fspath(start))
    opened = {
        "labelme": f"correct them: labelme {where} --labels {shlex.quote(os.fspath(start / 'labels.txt'))}; then",
        "cvat": f"upload {where} to CVAT (docs/correcting.md), correct, export for images; with the archive as FROM",
    }.get(start.name, f"correct {where}; then")
    classes = shlex.quote(os.fspath(start / "classes.txt"))
    if layout_of(os.fspath(data)) is not None:  # an official folder is left as it is
        new = shlex.quote(os.fspath(start.parent / "corrected"))
        return f"{opened} maskwright convert {where} {new} --to masks --names {classes}"
    there = scan_folder(data, None, annotations=False)
    masked = [name for name in names if name in there and there.has_mask(there.index(name))]
    told = f"{opened} maskwright convert {where} {shlex.quote(os.fspath(data))} --to masks --add"
    if masked:
        return (
            f"{len(masked)} of them have a mask there, which --replace writes over; {told} --replace --names {classes}"
        )
    return f"{told} --names {classes}"
