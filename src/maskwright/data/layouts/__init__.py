"""Readers that present official benchmark folders as datasets, with their class tables, encodings and splits; and
label formats of other programs.

`open_data("voc:PATH")` reads a benchmark as it unpacks, `open_data("coco:PATH")` annotations and their photographs;
anything without a layout's name is an ordinary dataset folder.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from pathlib import Path

from maskwright.data.annotations.opening import FORMATS, open_annotated, open_colours
from maskwright.data.examining.findings import some
from maskwright.data.examining.reading import Reading
from maskwright.data.folders.folder import Dataset
from maskwright.data.folders.opening import scan_folder
from maskwright.data.folders.scan import odd_below
from maskwright.data.layouts.cocostuff import open_cocostuff27
from maskwright.data.layouts.imagenet_s import open_imagenet_s
from maskwright.data.layouts.potsdam import open_potsdam
from maskwright.data.layouts.scenes import open_ade20k, open_camvid, open_cityscapes
from maskwright.data.layouts.voc import open_voc
from maskwright.errors import unknown

LAYOUTS: dict[str, Callable[[Path], Dataset]] = {
    "voc": open_voc,
    "cityscapes": partial(open_cityscapes, classes=19),
    "cityscapes27": partial(open_cityscapes, classes=27),
    "cocostuff27": open_cocostuff27,
    "camvid": partial(open_camvid, void_class=False),
    "camvid12": partial(open_camvid, void_class=True),
    "potsdam3": partial(open_potsdam, classes=3),
    "potsdam6": partial(open_potsdam, classes=6),
    "ade20k": open_ade20k,
    "imagenet_s": partial(open_imagenet_s, classes=None),
    "imagenet_s50": partial(open_imagenet_s, classes=50),
    "imagenet_s300": partial(open_imagenet_s, classes=300),
    "imagenet_s919": partial(open_imagenet_s, classes=919),
    **{name: partial(open_annotated, name) for name in FORMATS},
    "colours": open_colours,
}


def layout_of(spec: str | os.PathLike[str]) -> tuple[str, Path] | None:
    """(layout, path) of "LAYOUT:PATH"; None for an ordinary folder.

    Raises:
        MaskwrightError: an unknown layout (the known ones are listed).
    """
    text = os.fspath(spec)
    name, colon, path = text.partition(":")
    # A letter and a colon begin a path on Windows, and a folder may have a colon in its name.
    if not colon or len(name) == 1 or os.sep in name or "/" in name or os.path.exists(text):
        return None
    if name not in LAYOUTS:
        raise unknown("layout", name, LAYOUTS)
    return name, Path(path)


def open_data(spec: str | os.PathLike[str], reading: Reading | None = None) -> Dataset:
    """Opens "LAYOUT:PATH", or a dataset folder.

    Args:
        spec: for example "voc:data/VOCdevkit/VOC2012" or "photos".
        reading: what was said of the files' values; nothing if None.

    Raises:
        MaskwrightError: an unknown layout (the known ones are listed), or a folder that is not in that
        layout.
    """
    layout = layout_of(spec)
    if layout is None:
        return scan_folder(spec, None, reading)
    name, root = layout
    data = LAYOUTS[name](root).with_reading(reading or Reading())
    odd = odd_below(root)
    if not odd:
        return data
    return data.with_notices(f"{len(odd)} files are left aside: {some([f'{file} ({reason})' for file, reason in odd])}")
