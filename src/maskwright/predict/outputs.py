"""Where the files of a prediction lie, settled before the first of them is written: none in the way of another, of an
image or of a label."""

from __future__ import annotations

import os
import shutil
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from maskwright.data.folders.folder import Dataset
from maskwright.data.trust.files import NAME_BYTES, PATH_BYTES, disk_error, file_for, sweep, temporary_beside, too_long
from maskwright.errors import MaskwrightError, shown


@dataclass(frozen=True)
class Outputs:
    """Files of a prediction.

    Attributes:
        masks: folder of NAME.png.
        confidences: folder of the confidence maps, NAME.png; None where none are written.
        overlays: folder of the overlays, NAME.jpg; None where none are written.
        notices: what their user should know, in sentences.
    """

    masks: Path
    confidences: Path | None
    overlays: Path | None
    notices: tuple[str, ...] = ()

    def files(self, name: str) -> tuple[Path, Path | None, Path | None]:
        """The mask, the confidence map and the overlay of an image; None for what is not written."""
        return (
            file_for(self.masks, name, ".png"),
            None if self.confidences is None else file_for(self.confidences, name, ".png"),
            None if self.overlays is None else file_for(self.overlays, name, ".jpg"),
        )


def place_outputs(out: Path, data: Dataset, *, confidence: bool, overlays: bool) -> Outputs:
    """Settles where the files lie, and removes temporary files there that killed processes left.

    The folders `confidence` and `overlays` get another name where images of the data set lie in folders so called.

    Args:
        out: the folder for masks.
        data: the images.
        confidence, overlays: whether these are written too.

    Raises:
        MaskwrightError: a path is too long, a file would be written over an image or a label, two images would have
            one file, or one needs a folder where the file of another is to lie.
    """
    sides = {kind: _side(out, kind, data) for kind in ("confidence", "overlays")}
    notices = [
        f"images lie in a folder called {kind}, so {what} are written to {sides[kind]}"
        for kind, what, wanted in (
            ("confidence", "confidence maps", confidence), ("overlays", "overlays", overlays),
        )
        if wanted and sides[kind] != out / kind
    ]  # fmt: skip
    outputs = Outputs(out, sides["confidence"] if confidence else None, sides["overlays"] if overlays else None)
    files = {name: [f for f in outputs.files(name) if f is not None] for name in data.names}
    check_lengths(out, [f for made in files.values() for f in made])
    _check_given(files.values(), data)
    _check_folders(files)
    _check_twins(out, data.names)
    if cut := [name for name in data.names if files[name][0] != out / f"{name}.png"]:
        notices.append(
            f"{len(cut)} names are too long for files of masks and are shortened: "
            f"that of {shown(cut[0])} is {shown(files[cut[0]][0].name)}"
        )
    if removed := sweep({f.parent for made in files.values() for f in made}):
        notices.append(f"removed {removed} temporary files that killed runs had left in {out}")
    return Outputs(outputs.masks, outputs.confidences, outputs.overlays, tuple(notices))


def _side(out: Path, kind: str, data: Dataset) -> Path:
    """OUT/KIND, or the first of OUT/KIND-2, OUT/KIND-3, ... in which no mask will lie.

    All images of the folder count, so that a split's maps lie where those of the whole would."""
    taken = {name.partition("/")[0].casefold() for name in (*data.known_names, *data.names) if "/" in name}
    names = [kind, *(f"{kind}-{n}" for n in range(2, len(taken) + 3))]
    return out / next(n for n in names if n not in taken)


def check_lengths(out: Path, files: Iterable[Path] = ()) -> None:
    """Raises `MaskwrightError` where the system would not take a path, with room for the temporary name beside it."""
    longest = max((len(os.fsencode(part)) for part in out.parts), default=0)
    if longest > NAME_BYTES:
        raise too_long(out)
    for file in (out, *files):
        room = max(len(os.fsencode(file)), len(os.fsencode(temporary_beside(file))))
        if room > PATH_BYTES:
            raise too_long(file)


def _check_given(files: Iterable[list[Path]], data: Dataset) -> None:
    """Refuses to write over what the data set is made of, as overlays over images that lie in OUT/overlays."""
    kinds = {_real(item.image): "an image" for item in data.items}
    kinds |= {_real(item.mask): "a label" for item in data.items if item.mask is not None}
    parents: dict[Path, Path] = {}
    for file in (f for made in files for f in made):
        parent = parents.setdefault(file.parent, _real(file.parent))
        if (kind := kinds.get(parent / file.name)) is not None:
            raise MaskwrightError(
                f"{file} is {kind} of the data set and would be written over",
                "another folder for predictions",
                "choose another --out",
            )


def _real(path: Path) -> Path:
    return Path(os.path.realpath(path))


def _check_folders(files: dict[str, list[Path]]) -> None:
    """Refuses an image in a folder called as the mask of another: `a.png/b` beside `a`."""
    owners = {file: name for name, made in files.items() for file in made}
    for name, made in files.items():
        for file in made if "/" in name else ():
            if above := next((p for p in file.parents if p in owners), None):
                below = len(file.parts) - len(above.parts)
                folder = "/".join(name.split("/")[:-below])
                raise MaskwrightError(
                    f"image {name!r} needs a folder {above}, which is to be the file of image {owners[above]!r}",
                    "images in folders that are not called as a file of a mask",
                    f"rename the folder {folder} of the images",
                )


def _check_twins(out: Path, names: Iterable[str]) -> None:
    """Refuses names that the disk of `out` does not tell apart, as A and a on disks that ignore case."""
    groups: dict[str, list[str]] = {}
    for name in names:
        groups.setdefault(unicodedata.normalize("NFC", name).casefold(), []).append(name)
    twins = [group for group in groups.values() if len(group) > 1]
    if not twins:
        return
    trial = temporary_beside(out / "names")
    try:
        for k, group in enumerate(twins):
            for name in group:
                file = file_for(trial / str(k), name, ".png")
                file.parent.mkdir(parents=True, exist_ok=True)
                if file.exists():
                    raise MaskwrightError(
                        f"the disk of {out} does not tell the names {group[0]!r} and {name!r} apart, so that one mask "
                        f"would replace the other",
                        "names that differ by more than case or accents",
                        "rename one of the images, or choose an --out on another disk",
                    )
                file.touch()
    except OSError as error:
        raise disk_error(error, trial) from error
    finally:
        shutil.rmtree(trial, ignore_errors=True)
