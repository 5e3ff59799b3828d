"""PASCAL VOC 2012, with the extra masks of SBD (Hariharan et al., ICCV 2011).

VOC2012/JPEGImages/NAME.jpg
VOC2012/SegmentationClass/NAME.png                       palette, 0 background, 255 void
VOC2012/SegmentationClassAug/NAME.png                    SBD's masks as index images (the usual download), or
VOC2012/SBD, benchmark_RELEASE/dataset, .../cls/NAME.mat    SBD as released, beside or in the folder
VOC2012/ImageSets/Segmentation/{train,val,trainval,trainaug}.txt
VOC2012/Annotations/NAME.xml                             tags, difficult objects included
"""

from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree

import numpy as np

from maskwright.data.classes import ClassTable, default_palette
from maskwright.data.folder import Dataset, Item, Readers
from maskwright.data.layouts.base import files_below, first_folder, load_matlab, read_lists
from maskwright.data.masks import read_mask
from maskwright.errors import MaskwrightError

VOC_NAMES = (
    "background",
    "aeroplane",
    "bicycle",
    "bird",
    "boat",
    "bottle",
    "bus",
    "car",
    "cat",
    "chair",
    "cow",
    "diningtable",
    "dog",
    "horse",
    "motorbike",
    "person",
    "pottedplant",
    "sheep",
    "sofa",
    "train",
    "tvmonitor",
)
VOC = ClassTable(VOC_NAMES, default_palette(21))

_SBD = ("SBD/cls", "SBD/dataset/cls", "sbd/cls", "benchmark_RELEASE/dataset/cls", "dataset/cls", "cls")


def read_voc_mask(path: Path) -> np.ndarray:
    """uint8 (H, W) of a palette PNG or of SBD's GTcls structure.

    Raises:
        MaskwrightError: missing, damaged, or a .mat file without that structure.
    """
    if path.suffix != ".mat":
        return read_mask(path)
    content = load_matlab(path, "GTcls", "a mask of the SBD release", squeeze_me=True, struct_as_record=False)
    if not hasattr(content, "Segmentation"):
        raise MaskwrightError(f"{path} holds no GTcls.Segmentation", "a mask of the SBD release", "unpack it again")
    return np.ascontiguousarray(content.Segmentation, dtype=np.uint8)


def _tags(path: Path) -> tuple[str, ...] | None:
    if not path.is_file():
        return None
    try:
        root = ElementTree.parse(path).getroot()
    except ElementTree.ParseError as error:
        raise MaskwrightError(f"{path} is not XML: {error}", "an annotation of VOC", "unpack it again") from error
    found = {(node.findtext("name") or "").strip() for node in root.iter("object")}
    return tuple(name for name in VOC_NAMES if name in found)


def open_voc(root: Path) -> Dataset:
    """VOC 2012: all its photographs, fine masks where there are any, else those of SBD.

    Splits train, val, trainval and trainaug; where no list of trainaug lies there it is made: every image
    with a mask but those of val (10,582 with all of SBD).

    Raises:
        MaskwrightError: the folder is not VOC's.
    """
    images = first_folder(root, ("JPEGImages", "VOC2012/JPEGImages", "VOCdevkit/VOC2012/JPEGImages"), "VOC 2012")
    base = images.parent
    masks: dict[str, Path] = {}
    for place in [*(p / s for p in (base, base.parent, base.parent.parent) for s in _SBD)]:
        if place.is_dir():
            masks.update({p.stem: p for p in files_below(place, (".mat",))})
            break
    for folder in ("SegmentationClassAug", "SegmentationClass"):  # the later are finer and win
        masks.update({p.stem: p for p in files_below(base / folder, (".png",))})
    pictures = files_below(images, (".jpg", ".jpeg"))
    notes = base / "Annotations"
    items = [Item(p.stem, p, masks.get(p.stem), _tags(notes / f"{p.stem}.xml")) for p in pictures]
    lists = base / "ImageSets" / "Segmentation"
    splits = read_lists(lists, ("train", "val", "trainval", "trainaug", "train_aug", "test"))
    if "train_aug" in splits:
        splits.setdefault("trainaug", splits["train_aug"])
    if "trainaug" not in splits and "val" in splits:
        held_out = set(splits["val"])
        splits["trainaug"] = [item.name for item in items if item.mask is not None and item.name not in held_out]
    return Dataset(root, items, classes=VOC, splits=splits, readers=Readers(mask=read_voc_mask))
