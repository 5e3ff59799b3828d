"""What the layouts share: finding official folders, and masks whose file ids are translated as they are
read."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from maskwright.data.folders.scan import Folder
from maskwright.data.folders.tables import read_names
from maskwright.data.masking.classes import IGNORE8
from maskwright.data.masking.masks import read_mask
from maskwright.data.pictures.images import DECODER_ERRORS, IMAGE_SUFFIXES, image_error
from maskwright.errors import MaskwrightError


def first_folder(root: Path, candidates: Sequence[str], layout: str) -> Path:
    """The first of these folders below root that exists.

    Raises:
        MaskwrightError: none does.
    """
    for candidate in candidates:
        if (root / candidate).is_dir():
            return root / candidate
    what = "does not exist" if not root.is_dir() else f"has no folder {candidates[0]}"
    raise MaskwrightError(
        f"{root} {what}",
        f"{layout} as it unpacks, with {' or '.join(candidates)}",
        "name the folder that holds it",
    )


def files_below(folder: Path, suffixes: Iterable[str] = IMAGE_SUFFIXES) -> list[Path]:
    """Files of these suffixes below a folder, sorted, hidden ones left out; none where there is no folder."""
    wanted = {s.lower() for s in suffixes}
    if not folder.is_dir():
        return []
    return sorted(
        Path(folder, below, file)
        for below, place in Folder(folder).walk()
        for file in place.files
        if os.path.splitext(file)[1].lower() in wanted
    )


def read_lists(folder: Path, names: Iterable[str]) -> dict[str, list[str]]:
    """{name: names of images} of those lists NAME.txt that exist; only the first column and only its stem
    counts."""
    found = {}
    for name in names:
        path = folder / f"{name}.txt"
        if path.is_file():
            found[name] = [Path(line.split()[0]).stem for line in read_names(path)]
    return found


def lookup(table: Mapping[int, int]) -> bytes:
    """256 ids: file id -> training id, 255 (ignore) for every file id that is not in the table."""
    ids = bytearray([IGNORE8]) * 256
    for source, target in table.items():
        ids[source] = target
    return bytes(ids)


def translate(ids: np.ndarray, table: bytes) -> np.ndarray:
    """File ids to training ids, uint8 (H, W); ids beyond 255 are ignored."""
    if ids.dtype != np.uint8:
        ids = np.where((ids < 0) | (ids > 255), IGNORE8, ids).astype(np.uint8)
    return np.frombuffer(table, np.uint8)[ids]


def read_translated(path: Path, table: bytes) -> np.ndarray:
    """An index mask in training ids, uint8 (H, W). Raises as `read_mask`."""
    return translate(read_mask(path), table)


def read_colours(path: Path, colours: tuple[int, ...], ids: bytes) -> np.ndarray:
    """A mask whose classes are colours, in training ids; a colour that is not listed is ignored.

    Args:
        path: RGB or palette image.
        colours: R * 65536 + G * 256 + B of each colour.
        ids: training id of each colour.

    Returns:
        uint8 (H, W).

    Raises:
        MaskwrightError: missing or damaged.
    """
    try:
        with Image.open(path) as image:
            rgb = np.asarray(image.convert("RGB")).astype(np.int64)
    except DECODER_ERRORS as error:
        raise image_error(path, error) from error
    codes = rgb[..., 0] * 65536 + rgb[..., 1] * 256 + rgb[..., 2]
    order = np.argsort(colours)
    known, values = np.asarray(colours)[order], np.frombuffer(ids, np.uint8)[order]
    place = np.searchsorted(known, codes).clip(0, len(known) - 1)
    return np.where(known[place] == codes, values[place], IGNORE8).astype(np.uint8)
