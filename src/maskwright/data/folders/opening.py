"""Opening a dataset folder: what lies where, its tables, and what there is to say of them."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from maskwright.data.annotations.opening import open_annotated
from maskwright.data.annotations.recognising import attach, recognised
from maskwright.data.examining.reading import Reading
from maskwright.data.folders.folder import Dataset, Item
from maskwright.data.folders.recognise import recognise
from maskwright.data.folders.scan import check_folder, is_regular
from maskwright.data.folders.tables import NameIndex, read_captions, read_tags
from maskwright.data.masking.classes import ClassTable, read_classes
from maskwright.data.masking.label_rules import drawn_in
from maskwright.data.masking.masks import COLOURS_FILE
from maskwright.data.pictures.images import IMAGE_SUFFIXES
from maskwright.errors import MaskwrightError, shown


def scan_folder(
    path: str | os.PathLike[str],
    problems: list[MaskwrightError] | None,
    reading: Reading | None = None,
    *,
    annotations: bool = True,
) -> Dataset:
    """As `open_folder`; errors in tables are added to `problems` instead of raised if it is a list.

    Without `annotations` files of other programs (`data/annotations`) are left aside.
    """
    root = Path(path)
    check_folder(root)
    reading = reading or Reading()
    here = recognise(root)
    if not here.images and annotations and set(recognised(root, here)) == {"labelme"}:
        return open_annotated("labelme", root).with_reading(reading)  # photographs lie inside of its files
    if not here.images:
        aside = "; ".join(f"{file} ({reason})" for file, reason in here.aside[:3])
        raise MaskwrightError(
            f"{root} holds no images" + (f", but {len(here.aside)} other files or folders: {aside}" if aside else ""),
            f"images in {root / 'images'} or directly in it ({', '.join(sorted(IMAGE_SUFFIXES))})",
            "put some there or name another folder",
        )
    finder = NameIndex(here.images, IMAGE_SUFFIXES)
    notices = [f.said() for f in here.findings]
    tags = _labels(root / "tags.csv", read_tags, finder, problems, notices)
    captions = _labels(root / "captions.csv", read_captions, finder, problems, notices)
    classes: ClassTable | None = None
    if is_regular(root / "classes.txt"):
        try:
            classes = read_classes(root / "classes.txt", notices, reading.void or ())
        except MaskwrightError as error:
            if problems is None:
                raise
            problems.append(error)
    classes = drawn_in(classes, root / COLOURS_FILE)
    items = [Item(n, p, here.masks.get(n), tags.get(n), captions.get(n, ())) for n, p in here.images.items()]
    # A list that lies in splits/ says more than the name of a folder.
    splits = {s: n for s, n in here.splits.items() if not is_regular(root / "splits" / f"{s}.txt")}
    dataset = Dataset(
        root, items, classes=classes, splits=splits or None, skipped=here.skipped, reading=reading, notices=notices,
        aside=here.aside, lone=here.lone, findings=here.findings,
    )  # fmt: skip
    dataset._finder = finder
    if not annotations:
        return dataset
    try:
        return attach(dataset, here)
    except MaskwrightError as error:
        if problems is None:
            raise
        problems.append(error)
        return dataset


def _labels(
    path: Path,
    read: Callable[[Path], dict[str, tuple[str, ...]]],
    finder: NameIndex,
    problems: list[MaskwrightError] | None,
    notices: list[str],
) -> dict[str, tuple[str, ...]]:
    """{image: labels} of a table; rows of no image are left out, which is said (the doctor says it itself)."""
    if not is_regular(path):
        return {}
    try:
        rows = read(path)
    except MaskwrightError as error:
        if problems is None:
            raise
        problems.append(error)
        return {}
    joined: dict[str, tuple[str, ...]] = {}
    for line, labels in rows.items():
        name = finder.find(line)
        if name is not None:
            joined[name] = joined.get(name, ()) + labels
    lost = [line for line in rows if finder.find(line) is None]
    if lost and problems is None:
        first = ", ".join(shown(line) for line in lost[:3])
        notices.append(f"{path.name}: {len(lost)} of {len(rows)} photographs that it names are not here, as {first}.")
    return joined
