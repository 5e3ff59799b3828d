"""Corrected masks back into the folder of their photographs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from maskwright.data.examining.findings import some
from maskwright.data.folders.folder import Dataset
from maskwright.data.folders.names import written
from maskwright.data.folders.opening import scan_folder
from maskwright.data.folders.scan import is_regular
from maskwright.data.folders.tables import NameIndex, read_names
from maskwright.data.masking.classes import IGNORE8, IGNORE16, ClassTable
from maskwright.data.masking.label_rules import ignore_of
from maskwright.data.masking.masks import write_mask
from maskwright.data.pictures.images import IMAGE_SUFFIXES
from maskwright.data.trust.files import file_for, write_text
from maskwright.errors import MaskwrightError

LIST = "labeled"
"""The list, in splits/, of the photographs that have a mask."""


def ids_of(data: Dataset, i: int, table: ClassTable) -> np.ndarray:
    """The ids of a mask in as many bits as the table needs."""
    with data.ledger.purpose("evaluate"):  # nothing is learned from them
        ids = data.mask(i)
    none = ignore_of(ids)
    if len(table) <= IGNORE8 and ids.dtype != np.uint8:
        return np.where(ids == none, IGNORE8, ids).astype(np.uint8)
    if len(table) > IGNORE8 and ids.dtype == np.uint8:
        return np.where(ids == none, IGNORE16, ids.astype(np.uint16)).astype(np.uint16)
    return ids


def add_masks(
    data: Dataset, table: ClassTable, out: Path, replace_masks: bool, progress: Callable[[int, int], object] | None
) -> int:
    """Puts masks into a folder of photographs; nothing is written before everything was read."""
    target = scan_folder(out, None, annotations=False)
    if target.classes is not None and target.classes.names != table.names:
        raise MaskwrightError(
            f"the classes are {some(table.names)} ({len(table)}) and those of {out} {some(target.classes.names)} "
            f"({len(target.classes)})",
            "the same in the same order",
            f"--names {out / 'classes.txt'}",
        )
    if target.classes is None and target.labels_present()["masks"]:
        raise MaskwrightError(f"{out} has masks and no classes.txt", "the names of their classes", "write it")
    finder = NameIndex(target.names, IMAGE_SUFFIXES)
    place: dict[int, str] = {}
    strange, there = [], []
    for i, item in enumerate(data.items):
        if not data.has_mask(i):
            continue
        name = finder.find(item.name)
        if name is None:
            strange.append(item.name)
        elif target.has_mask(target.index(name)) and not replace_masks:
            there.append(name)
        elif target.size(target.index(name)) != data.size(i):
            raise MaskwrightError(
                f"{item.name} is {data.size(i)} and {name} of {out} {target.size(target.index(name))} (height, width)",
                "the same photograph",
                "add masks of these photographs",
            )
        else:
            place[i] = name
    if strange:
        raise MaskwrightError(
            f"not in {out}: {len(strange)} of the photographs ({some(strange)})",
            "the same photographs",
            "name their folder",
        )
    if there:
        raise MaskwrightError(
            f"a mask already in {out}: {len(there)} of the photographs ({some(there)})", "photographs without",
            "add --replace to write over them",
        )  # fmt: skip
    old = {i: target.items[target.index(name)].mask for i, name in place.items()}
    for done, (i, name) in enumerate(place.items(), 1):
        ids = ids_of(data, i, table)
        was = old[i]
        write_mask(
            was if was is not None and was.suffix == ".png" else file_for(out / "masks", name, ".png"), ids, table
        )
        if progress is not None:
            progress(done, len(place))
    if not is_regular(out / "classes.txt"):
        write_text(out / "classes.txt", "".join(f"{name}\n" for name in table.names))
    path = out / "splits" / f"{LIST}.txt"
    known = read_names(path) if is_regular(path) else [n for n in target.names if target.has_mask(target.index(n))]
    listed = dict.fromkeys([*known, *place.values()])
    write_text(path, "".join(f"{written(name)}\n" for name in listed))
    return len(place)
