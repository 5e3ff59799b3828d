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
from xml.parsers import expat

import numpy as np

from maskwright.data.folders.folder import Dataset, Item, Readers
from maskwright.data.folders.matlab import read_matlab
from maskwright.data.folders.scan import is_regular
from maskwright.data.layouts.base import files_below, first_folder, read_lists
from maskwright.data.masking.classes import ClassTable, default_palette
from maskwright.data.masking.masks import read_mask
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
_ANNOTATION = "an annotation of VOC"
_MOST_BYTES = 1 << 24
_MOST_NESTED = 64
VOC = ClassTable(VOC_NAMES, default_palette(21))

_SBD = ("SBD/cls", "SBD/dataset/cls", "sbd/cls", "benchmark_RELEASE/dataset/cls", "dataset/cls", "cls")


def read_voc_mask(path: Path) -> np.ndarray:
    """uint8 (H, W) of a palette PNG or of SBD's GTcls structure.

    Raises:
        MaskwrightError: missing, damaged, or a .mat file without that structure.
    """
    if path.suffix != ".mat":
        return read_mask(path)
    ids = read_matlab(path, "GTcls", "a mask of the SBD release", field="Segmentation")
    if ids.ndim != 2 or ids.dtype != np.uint8:
        raise MaskwrightError(
            f"{path} holds an array of shape {ids.shape} and type {ids.dtype}", "uint8 (H, W)", "unpack it again"
        )
    return np.ascontiguousarray(ids)


def _tags(path: Path) -> tuple[str, ...] | None:
    if not is_regular(path):
        return None
    found = {name.strip() for name in read_annotation(path)}
    return tuple(name for name in VOC_NAMES if name in found)


def read_annotation(path: Path) -> list[str]:
    """Names of the objects in an annotation of VOC; the parts of objects have none of their own.

    Definitions of entities, by which a small file can claim any memory, are refused.

    Raises:
        MaskwrightError: unreadable, too large, or not XML of that kind.
    """
    names: list[str] = []
    above: list[str] = []  # names of the elements that are open
    text: list[str] | None = None
    told: list[bool] = []  # for each open element, whether a name in it was read

    def begin(tag: str, _: object) -> None:
        nonlocal text
        if len(above) >= _MOST_NESTED:
            raise MaskwrightError(f"{path} nests more than {_MOST_NESTED} elements", _ANNOTATION, "unpack it again")
        if text is not None:
            end_of_text()
        if tag == "name" and above and above[-1] == "object" and not told[-1]:
            told[-1], text = True, []
        above.append(tag)
        told.append(False)

    def end_of_text() -> None:
        nonlocal text
        names.append("".join(text or ()))
        text = None

    def end(_: str) -> None:
        above.pop()
        told.pop()
        if text is not None:
            end_of_text()

    def characters(data: str) -> None:
        if text is not None:
            text.append(data)

    def refuse(*_: object) -> None:
        raise MaskwrightError(f"{path} defines entities", _ANNOTATION, "unpack it again")

    parser = expat.ParserCreate()
    parser.StartElementHandler, parser.EndElementHandler = begin, end
    parser.CharacterDataHandler, parser.EntityDeclHandler = characters, refuse
    try:
        if path.stat().st_size > _MOST_BYTES:
            raise MaskwrightError(f"{path} has more than {_MOST_BYTES >> 20} MiB", _ANNOTATION, "unpack it again")
        parser.Parse(path.read_bytes(), True)
    except OSError as error:
        raise MaskwrightError(f"cannot read {path}: {error.strerror}", _ANNOTATION, "unpack it again") from error
    except (expat.ExpatError, LookupError, ValueError) as error:  # the latter two of encodings that are not known
        raise MaskwrightError(f"{path} is not XML: {error}", _ANNOTATION, "unpack it again") from error
    return names


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
