"""ImageNet-S 50, 300 and 919 (Gao et al., Large-scale Unsupervised Semantic Segmentation, TPAMI 2022).

    ROOT/{train,train-semi,validation,test}/WNID/NAME.JPEG
    ROOT/{train-semi,validation}-segmentation/WNID/NAME.png      id = R + 256 G; 0 other, 1000 ignore

A class's id is the rank of its WordNet id among the sorted categories, from 1; id 0 is "other", a class of
its own.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np

from maskwright.data.folders.folder import Dataset, Item, Readers
from maskwright.data.layouts.base import files_below, first_folder
from maskwright.data.masking.classes import IGNORE8, IGNORE16, ClassTable, default_palette
from maskwright.data.masking.masks import read_mask_rg
from maskwright.errors import MaskwrightError

IGNORE_RG = 1000
SPLITS = ("train", "train-semi", "validation", "test")


def read_imagenet_s(path: Path, wide: bool) -> np.ndarray:
    """Ids (H, W): uint16 with 65535 for ignore where `wide`, else uint8 with 255. Raises as `read_mask_rg`.

    Raises:
        MaskwrightError: also for ids beyond 255 where not `wide`.
    """
    ids = read_mask_rg(path)
    ignored = ids == IGNORE_RG
    if wide:
        return np.where(ignored, np.uint16(IGNORE16), ids)
    if ids.size and int(np.where(ignored, 0, ids).max()) >= IGNORE8:
        raise MaskwrightError(
            f"mask {path} has id {int(ids[~ignored].max())}", "ids of this edition", "check the edition"
        )
    return np.where(ignored, IGNORE8, ids).astype(np.uint8)


def open_imagenet_s(root: Path, classes: int | None) -> Dataset:
    """ImageNet-S with as many classes as there are category folders.

    Splits train, train-semi (and train_semi), validation (and val), test. Images are named SPLIT/WNID/NAME.

    Args:
        root: the folder that holds train, validation and so on.
        classes: number of categories to insist on (50, 300, 919), or None.

    Raises:
        MaskwrightError: no such folder, or another number of categories.
    """
    first_folder(root, SPLITS, "ImageNet-S")
    items: list[Item] = []
    splits: dict[str, list[str]] = {}
    categories: set[str] = set()
    for split in SPLITS:
        folder = root / split
        if not folder.is_dir():
            continue
        # The test images may lie without category folders.
        categories |= {p.name for p in folder.iterdir() if p.is_dir() and not p.name.startswith(".")}
        masks_folder = root / f"{split}-segmentation"
        masks = {
            p.relative_to(masks_folder).with_suffix("").as_posix(): p for p in files_below(masks_folder, (".png",))
        }
        names = []
        for path in files_below(folder):
            below = path.relative_to(folder).with_suffix("").as_posix()
            items.append(Item(f"{split}/{below}", path, masks.get(below)))
            names.append(f"{split}/{below}")
        splits[split] = names
    if classes is not None and len(categories) != classes:
        raise MaskwrightError(
            f"{root} has {len(categories)} categories",
            f"the {classes} of ImageNet-S",
            "name the folder of that edition",
        )
    for alias, split in (("val", "validation"), ("train_semi", "train-semi")):
        if split in splits:
            splits[alias] = splits[split]
    table = ClassTable(("other", *sorted(categories)), default_palette(len(categories) + 1))
    reader = partial(read_imagenet_s, wide=len(table) > IGNORE8)
    return Dataset(root, items, classes=table, splits=splits, readers=Readers(mask=reader))
