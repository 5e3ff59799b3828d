"""A mended copy of a dataset folder: masks become index PNG of class ids, turned as their images are.

Nothing is mended in place, and nothing is guessed: what is not certain is asked as the verbs ask it. What cannot be
mended is copied as it is and named.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from maskwright.data.folders.folder import Dataset, Item
from maskwright.data.folders.names import written
from maskwright.data.folders.scan import threaded
from maskwright.data.folders.tables import NameIndex
from maskwright.data.masking.classes import IGNORE8, IGNORE16, ClassTable
from maskwright.data.masking.label_check import FILE_KINDS, check_labels, is_unturned, unturned_by_edges
from maskwright.data.masking.label_rules import LabelRule, ignore_of, rgb
from maskwright.data.masking.masks import write_mask
from maskwright.data.masking.survey import Survey, survey_masks
from maskwright.data.pictures.images import IMAGE_SUFFIXES, orient
from maskwright.data.pictures.picture_facts import write_pages
from maskwright.data.trust.files import file_for, folder_beside, write_text
from maskwright.errors import MaskwrightError

CHANGES = "changes.txt"
"""The list of changes in the mended copy."""
_IDS = "The masks hold class ids, and 255 (65535 in 16 bits) where there is no class."
"""Its first line."""
_TABLES = ("classes.txt", "colors.txt", "tags.csv", "captions.csv")


def mend(data: Dataset, out: str | os.PathLike[str], progress: Callable[[int, int], object] | None = None) -> list[str]:
    """Writes a mended copy of a data set.

    Args:
        data: the images and masks, with what was said of their values.
        out: the new folder; it must not exist or be empty, and not lie in the old one.
        progress: called with (done, total) after each image.

    Returns:
        What was changed and what was left as it is, a line each; also written to `changes.txt` in the copy.

    Raises:
        MaskwrightError: what the masks' values mean is not certain, `out` is in use, or the disk is full.
    """
    target = Path(out)
    check_place(target, data.root)
    surveys = survey_masks(data)
    checked = check_labels(data, surveys)
    for found in checked.findings:
        if found.severity == "error" and found.kind not in FILE_KINDS:
            raise found.error()
    turned = unturned_by_edges(data, surveys)
    with folder_beside(target, f".{target.name[:60]}-") as work:
        lines: list[str] = []
        pages: dict[str, list[str]] = {}

        def one(i: int) -> list[str]:
            item = data.items[i]
            image = work / "images" / f"{item.name}{item.image.suffix}"
            if i not in surveys and _pages(data, i) > 1:
                made = [path.relative_to(work / "images") for path in write_pages(item.image, image.parent)]
                if made:
                    pages[item.name] = [path.with_suffix("").as_posix() for path in made]
                    return [f"images/{item.name}{item.image.suffix}: its {len(made)} pages are images: {made[0]}, ..."]
            copy_file(item.image, image)
            return _mask(data, item, surveys[i], checked.rule, item.name in turned, work) if i in surveys else []

        for done, said in enumerate(threaded(one, range(len(data))), 1):
            lines += said
            if progress is not None:
                progress(done, len(data))
        lines += copy_rest(data, work, pages)
        write_text(work / CHANGES, "".join(f"{line}\n" for line in (_IDS, *lines)))
    return lines


def is_mended(root: Path) -> bool:
    """Whether a folder is a mended copy, whose masks hold ids whatever they look like."""
    try:
        with open(root / CHANGES, encoding="utf-8", errors="replace") as file:
            return file.readline().rstrip("\n") == _IDS
    except OSError:
        return False


def check_place(out: Path, root: Path, what: str = "the mended copy", option: str = "--fix") -> None:
    """Raises `MaskwrightError` where a new folder would lie in the old one, or something is there already."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise MaskwrightError(f"{out} is not empty", f"a new folder for {what}", f"name another with {option}")
    inner, outer = out.resolve(), root.resolve()
    if inner == outer or outer in inner.parents:
        raise MaskwrightError(f"{out} lies in {root}", "a place outside it", f"name another with {option}")


def _pages(data: Dataset, i: int) -> int:
    """Pages or frames of an image file; 1 where its header cannot be read, or the layout has a reader of its own."""
    if data.readers.image is not None:
        return 1
    try:
        return data.header(i).pages
    except MaskwrightError:
        return 1


def copy_rest(data: Dataset, work: Path, pages: Mapping[str, list[str]]) -> list[str]:
    """Tables and lists, in which the pages of an image stand for it; says what is not copied."""
    for table in _TABLES:
        if (data.root / table).is_file():
            copy_file(data.root / table, work / table)
    if data.classes is not None and not (work / "classes.txt").exists():
        write_text(work / "classes.txt", "".join(f"{name}\n" for name in data.classes.names))
    finder = NameIndex(data.known_names, IMAGE_SUFFIXES)
    for split in data.split_names:
        lines_of, _ = data.list_names(split)
        names = [name for line in lines_of for name in pages.get(finder.find(line) or "", [line])]
        write_text(work / "splits" / f"{split}.txt", "".join(f"{written(name)}\n" for name in names))
    lines = [f"not copied: {file} (no image of its name)" for file in data.lone]
    return lines + [f"not copied: {name} ({reason})" for name, reason in (*data.skipped, *data.aside)]


def copy_file(source: Path, target: Path) -> None:
    """Copies a file into a folder that is made where it is missing."""
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        shutil.copyfile(source, target)
    except OSError as error:
        raise MaskwrightError(
            f"cannot copy {source}: {error.strerror or error}", "a readable file and room on the disk", "make room"
        ) from error


def _mask(data: Dataset, item: Item, seen: Survey, rule: LabelRule | None, turn: bool, work: Path) -> list[str]:
    """Writes one mask; says what changed."""
    assert item.mask is not None
    target = file_for(work / "masks", item.name, ".png")
    if seen.problem is not None:
        copy_file(item.mask, target.with_name(f"{target.stem}{item.mask.suffix}"))
        return [f"left as it is: masks/{item.name}{item.mask.suffix} ({seen.problem.found})"]
    ids = rule.read(item.mask) if rule is not None else data.readers.mask(item.mask)
    changes = []
    if turn or is_unturned(seen):
        ids = orient(ids, seen.orientation)
        changes.append(f"turned as its image (EXIF orientation {seen.orientation})")
    elif seen.image_size is not None and seen.size != seen.image_size:
        changes.append(f"size left as it is, {_size(seen.size)} for an image of {_size(seen.image_size)}")
    target.parent.mkdir(parents=True, exist_ok=True)
    write_mask(target, *_depth(ids, data.classes, rule))
    if item.mask.suffix.lower() != ".png" or seen.kind == "colour":
        changes.append(f"written as index PNG ({seen.kind}{' in equal channels' if seen.equal else ''} before)")
    moved = [(v, i) for v, i in seen.meaning(rule).items() if v != i and not (i < 0 and v == ignore_of(ids))]
    if moved and seen.kind != "ids":
        shown = ", ".join(f"{_value(v, seen)} to {i if i >= 0 else 'no class'}" for v, i in moved[:6])
        changes.append(f"values {shown}{', ...' if len(moved) > 6 else ''}")
    return [f"masks/{item.name}.png: {'; '.join(changes)}"] if changes else []


def _value(value: int, seen: Survey) -> str:
    return f"({rgb(value)})" if seen.coloured else str(value)


def _size(size: tuple[int, int] | None) -> str:
    return "x".join(map(str, size or ()))


def _depth(ids: np.ndarray, classes: ClassTable | None, rule: LabelRule | None) -> tuple[np.ndarray, ClassTable | None]:
    """Ids and table for `write_mask`: 16 bits where 255 is a class, else 8 with 255 for no class."""
    if classes is not None and len(classes) > IGNORE8:
        return (np.where(ids == IGNORE8, IGNORE16, ids.astype(np.uint16)) if ids.dtype == np.uint8 else ids), classes
    if rule is not None and rule.wide:
        return ids, ClassTable.numbered(IGNORE8 + 1)  # for its depth; the palette of 16 bits is none
    if ids.dtype != np.uint8 and int(ids[ids != IGNORE16].max(initial=0)) < IGNORE8:
        ids = np.where(ids == IGNORE16, IGNORE8, ids).astype(np.uint8)
    return ids, classes
