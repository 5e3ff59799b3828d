"""Potsdam as released by IIC (Ji et al., ICCV 2019): 200x200 tiles in MATLAB files.

ROOT/imgs/NAME.mat      img, uint8 (200, 200, 4): red, green, blue, infrared
ROOT/gt/NAME.mat        gt, ids 0 road, 1 building, 2 low vegetation, 3 tree, 4 car, 5 clutter
ROOT/{labelled_train,labelled_test,unlabelled_train,all}.txt
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np

from maskwright.data.folders.folder import Dataset, Item, Readers
from maskwright.data.folders.matlab import read_matlab
from maskwright.data.layouts.base import files_below, first_folder, lookup, read_lists, translate
from maskwright.data.masking.classes import ClassTable
from maskwright.errors import MaskwrightError

_SIX = ("road", "building", "low vegetation", "tree", "car", "clutter")
_COLOURS = ((255, 255, 255), (0, 0, 255), (0, 255, 255), (0, 255, 0), (255, 255, 0), (255, 0, 0))
TABLES = {
    6: ClassTable(_SIX, np.array(_COLOURS, np.uint8)),
    3: ClassTable(
        ("road and car", "building and clutter", "vegetation and tree"),
        np.array(_COLOURS[:2] + _COLOURS[3:4], np.uint8),
    ),
}
IDS = {6: {i: i for i in range(6)}, 3: {0: 0, 4: 0, 1: 1, 5: 1, 2: 2, 3: 2}}


KIND = "a tile of the IIC release"


def read_tile(path: Path) -> np.ndarray:
    """uint8 (H, W, 3), the infrared left out."""
    tile = read_matlab(path, "img", KIND)
    if tile.ndim != 3 or tile.shape[2] < 3:
        raise MaskwrightError(f"{path} holds an array of shape {tile.shape}", "(H, W, 4)", "unpack it again")
    return np.ascontiguousarray(tile[..., :3], dtype=np.uint8)


def tile_size(path: Path) -> tuple[int, int]:
    """(H, W) of a tile. A tile is small and compressed, so that its size is not cheaper than its pixels."""
    height, width, _ = read_tile(path).shape
    return height, width


def read_tile_mask(path: Path, table: bytes) -> np.ndarray:
    """uint8 (H, W) in training ids."""
    ids = read_matlab(path, "gt", KIND)
    if ids.ndim != 2:
        raise MaskwrightError(f"{path} holds an array of shape {ids.shape}", "(H, W)", "unpack it again")
    with np.errstate(invalid="ignore"):
        return translate(ids.astype(np.int64), table)


def open_potsdam(root: Path, classes: int) -> Dataset:
    """Potsdam with 3 merged classes or all 6; tiles without gt are unlabelled.

    Splits as the lists that are there, and train (labelled), test, and train_all (with the unlabelled tiles).

    Raises:
        MaskwrightError: the folder is not in IIC's layout.
    """
    images = first_folder(root, ("imgs", "potsdam/imgs", "potsdamraw/processed/imgs"), "IIC's Potsdam")
    base = images.parent
    masks = {p.stem: p for p in files_below(base / "gt", (".mat",))}
    items = [Item(p.stem, p, masks.get(p.stem)) for p in files_below(images, (".mat",))]
    splits = read_lists(base, ("labelled_train", "labelled_test", "unlabelled_train", "all"))
    if "labelled_train" in splits:
        splits["train"] = splits["labelled_train"]
        splits["train_all"] = splits["labelled_train"] + splits.get("unlabelled_train", [])
    if "labelled_test" in splits:
        splits["test"] = splits["val"] = splits["labelled_test"]
    reader = partial(read_tile_mask, table=lookup(IDS[classes]))
    readers = Readers(image=read_tile, size=tile_size, mask=reader, verify=read_tile)
    return Dataset(root, items, classes=TABLES[classes], splits=splits, readers=readers)
