"""The doctor: what labels a folder holds, and what is wrong with it, each finding with its repair.

Every image and mask is read once. The reading is for the person at the screen and goes to no run: it bypasses
the dataset's ledger, and nothing but this report comes out.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from maskwright.data.classes import ClassTable
from maskwright.data.findings import SEVERITIES, Diagnosis, Finding, finding
from maskwright.data.folder import Dataset, ignore_of
from maskwright.data.folder_names import plain_stem
from maskwright.data.images import IMAGE_SUFFIXES, TooLargeError
from maskwright.data.layouts import layout_of, open_data
from maskwright.data.leaks import duplicate_findings, leak_findings, read_splits
from maskwright.data.looks import Look, look_at
from maskwright.data.masks import ColourMaskError, LossyMaskError
from maskwright.data.opening import scan_folder
from maskwright.data.phash import find_alike
from maskwright.data.reading import Reading
from maskwright.data.scan import threaded
from maskwright.data.tables import NameIndex, read_captions, read_tags
from maskwright.errors import MaskwrightError


def examine(
    data: str | os.PathLike[str] | Dataset,
    progress: Callable[[int, int], object] | None = None,
    reading: Reading | None = None,
) -> Diagnosis:
    """Examines a folder.

    Args:
        data: the folder, or a dataset of any layout.
        progress: called with (done, total) after each image.
        reading: what was said of its values; nothing if None.

    Raises:
        MaskwrightError: the folder is missing, unreadable or holds no images.
    """
    problems: list[MaskwrightError] = []
    if isinstance(data, Dataset):
        dataset = data if reading is None else data.with_reading(reading)
    elif layout_of(data) is not None:
        dataset = open_data(data, reading)
    else:
        dataset = scan_folder(data, problems, reading)
    looks: list[Look] = []
    for look in threaded(lambda i: look_at(dataset, i), range(len(dataset))):
        looks.append(look)
        if progress is not None:
            progress(len(looks), len(dataset))
    likeness = find_alike([look.print for look in looks])
    splits, split_findings = read_splits(dataset)
    found = [
        *(
            finding("bad-table", "error", [], p.found, "; ".join(x for x in (p.expected, p.repair) if x))
            for p in problems
        ),
        *_image_findings(dataset, looks),
        *_mask_findings(dataset, looks),
        *_id_findings(dataset, looks),
        *_table_findings(dataset),
        *split_findings,
        *duplicate_findings(looks, likeness),
        *leak_findings(looks, likeness, splits),
    ]
    found += _opening_findings(dataset, found)
    found.sort(key=lambda f: SEVERITIES.index(f.severity))
    return Diagnosis(str(dataset.root), _labels(dataset, looks, splits), tuple(found))


# ---------------------------------------------------------------------- what opening the folder found


def _opening_findings(dataset: Dataset, found: Sequence[Finding]) -> list[Finding]:
    """What opening said, unless a finding says it already: its own findings, and other notices as such."""
    said = {f.kind for f in found}
    opening = [f for f in dataset.findings if f.kind not in said]
    told = {f.sentence for f in (*found, *dataset.findings)} | {f.message for f in found}
    return opening + [Finding("notice", "warning", 0, (), n) for n in dataset.notices if n not in told]


# ---------------------------------------------------------------------- findings on images


def _told(problem: MaskwrightError | None) -> str:
    return problem.found if problem is not None else ""


def _image_findings(dataset: Dataset, looks: Sequence[Look]) -> list[Finding]:
    found = []
    large = [k for k in looks if isinstance(k.image_problem, TooLargeError)]
    broken = [k for k in looks if k.image_problem is not None and not isinstance(k.image_problem, TooLargeError)]
    if broken:
        message = f"{len(broken)} images cannot be read; the first: {_told(broken[0].image_problem)}"
        repair = "delete them or export them again; training and prediction skip them and say so"
        found.append(finding("unreadable-image", "error", [k.name for k in broken], message, repair))
    if large:
        message = (
            f"{len(large)} images claim so many pixels that they are not decoded "
            "(a decompression bomb, or too large); "
            f"the first: {_told(large[0].image_problem)}"
        )
        found.append(finding("image-too-large", "error", [k.name for k in large], message, "cut them into tiles"))
    if dataset.skipped:
        message = f"{len(dataset.skipped)} files are left out; the first: {': '.join(dataset.skipped[0])}"
        names = [name for name, _ in dataset.skipped]
        found.append(finding("left-out", "warning", names, message, "give each image a name of its own"))
    return found


# ---------------------------------------------------------------------- findings on masks


def _mask_findings(dataset: Dataset, looks: Sequence[Look]) -> list[Finding]:
    found: list[Finding] = []
    images = set(dataset.known_names) | {name for name, _ in dataset.skipped}
    lone = [os.path.basename(file) for file in dataset.lone]
    if lone:
        known = {os.path.splitext(os.path.basename(name))[0].lower() for name in images}
        alike = sum(plain_stem(name) in known for name in lone)
        hint = f"; {alike} would match without their ending (_mask, _gt, ...) or in lower case" if alike else ""
        message = f"{len(lone)} masks have no image of the same name and are not used{hint}"
        found.append(finding("mask-without-image", "warning", lone, message, "rename them as their images"))
    bare = [item.name for item in dataset.items if item.mask is None]
    if bare and len(bare) < len(dataset):
        message = f"{len(bare)} of {len(dataset)} images have no mask: they are unlabelled, which is fine"
        found.append(finding("image-without-mask", "note", bare, message))
    colour = [k for k in looks if isinstance(k.mask_problem, ColourMaskError)]
    if colour:
        message = f"{len(colour)} masks are colour images, not index images, so their class ids are unknown"
        if all(k.palette_colours for k in colour):
            message += "; all their colours are of the PASCAL VOC palette"
        repair = (
            "read each as an array and write it back: masks.write_mask(path, masks.colour_mask_to_ids(array, "
            "ClassTable(names, colors)), table), from maskwright.data"
        )
        found.append(finding("colour-mask", "error", [k.name for k in colour], message, repair))
    lossy = [k.name for k in looks if isinstance(k.mask_problem, LossyMaskError)]
    if lossy:
        message = f"{len(lossy)} masks are JPEG, which blurs class ids at every edge"
        found.append(finding("lossy-mask", "error", lossy, message, "export them as PNG"))
    known_kinds = (ColourMaskError, LossyMaskError)
    broken = [k for k in looks if k.mask_problem is not None and not isinstance(k.mask_problem, known_kinds)]
    if broken:
        message = f"{len(broken)} masks cannot be read; the first: {_told(broken[0].mask_problem)}"
        found.append(finding("unreadable-mask", "error", [k.name for k in broken], message, "export them again"))
    return found + _size_findings(looks)


def _size_findings(looks: Sequence[Look]) -> list[Finding]:
    found = []
    whole = [k for k in looks if k.image_problem is None and k.mask_shape is not None]
    wrong = [k for k in whole if k.mask_shape != k.size]
    unturned = [k for k in wrong if k.turned and k.mask_shape == k.stored]
    other = [k for k in wrong if k not in unturned]
    if unturned:
        message = (
            f"{len(unturned)} masks fit their image as it is stored, not as its EXIF tag turns it: "
            "they were drawn on the unturned picture"
        )
        repair = "turn those masks as the tag says, or take the tag out of their images (exiftool -Orientation=)"
        found.append(finding("mask-not-turned", "error", [k.name for k in unturned], message, repair))
    if other:
        first = other[0]
        assert first.mask_shape is not None and first.size is not None
        message = (
            f"{len(other)} masks have another size than their image; the first is "
            f"{first.mask_shape[0]}x{first.mask_shape[1]} for an image of {first.size[0]}x{first.size[1]}"
        )
        if all(k.mask_shape == (k.size[1], k.size[0]) for k in other if k.size):
            message += " (height and width swapped)"
        repair = "resize the masks to their images with nearest neighbour, or use the images they were drawn on"
        found.append(finding("size-mismatch", "error", [k.name for k in other], message, repair))
    return found


def _id_findings(dataset: Dataset, looks: Sequence[Look]) -> list[Finding]:
    seen = [k for k in looks if k.mask_shape is not None]
    if not seen:
        return []
    found: list[Finding] = []
    void = [k.name for k in seen if set(k.counts) <= {_ignore(k)}]
    values = {v for k in seen for v in k.counts}
    names = dataset.classes.names if dataset.classes is not None else None
    if values <= {0, 255} and 255 in values and not any(k.wide for k in seen):
        have = [k.name for k in seen if 255 in k.counts]
        message = f"all {len(seen)} masks hold only 0 and 255, and 255 means ignore: class 1 is never seen"
        repair = "write them with 0 and 1: masks.write_mask(path, masks.read_mask(path) // 255)"
        found.append(finding("binary-mask", "error", have, message, repair))
    elif void:
        message = f"{len(void)} masks hold nothing but the ignore id"
        found.append(finding("void-mask", "warning", void, message, "delete them or draw them"))
    if names is None:
        top = max((v for k in seen for v in k.counts if v != _ignore(k)), default=0)
        message = f"there are masks but no classes.txt, so their ids up to {top} have no names"
        if 0 not in values and top:
            message += "; id 0 never occurs: if they are counted from 1, give id 0 a name too or subtract 1"
        found.append(
            finding("no-classes", "warning", [], message, f"write {dataset.root / 'classes.txt'}, one name a line")
        )
        return found
    return found + _table_range_findings(dataset, seen, names)


def _ignore(look: Look) -> int:
    return ignore_of(np.zeros(0, np.uint16 if look.wide else np.uint8))


def _table_range_findings(dataset: Dataset, seen: Sequence[Look], names: tuple[str, ...]) -> list[Finding]:
    found: list[Finding] = []
    count = len(names)
    ignore = ClassTable(names).ignore
    ids = {v for k in seen for v in k.counts if v != _ignore(k)}
    outside = sorted(v for v in ids if v >= count)
    holders = [k.name for k in seen if any(v >= count and v != _ignore(k) for v in k.counts)]
    if outside == [count]:
        if 0 in ids:
            message = f"id {count} occurs, one beyond the {count} classes of classes.txt: a class name is missing"
            repair = "add the missing name to classes.txt (often background, as its first line)"
        else:
            message = f"ids run from {min(ids)} to {count} and 0 never occurs: they are counted from 1, not from 0"
            repair = "subtract 1 from all ids except ignore, or put a name for id 0 first in classes.txt"
        found.append(finding("off-by-one", "error", holders, message, repair))
    elif outside:
        shown = ", ".join(map(str, outside[:8])) + (", ..." if len(outside) > 8 else "")
        message = f"{len(holders)} masks have ids outside the class table of {count}: {shown}"
        if outside == [255]:
            message += " (255 is ignore in 8-bit masks only; in 16-bit masks it is 65535)"
        repair = f"add the classes to classes.txt, or set those pixels to {ignore}"
        found.append(finding("id-outside-table", "error", holders, message, repair))
    absent = [name for i, name in enumerate(names) if i not in ids]
    if absent and ids:
        message = f"{len(absent)} of {count} classes occur in no mask"
        found.append(finding("absent-class", "note", absent, message))
    return found


# ---------------------------------------------------------------------- findings on tables and splits


def _table_findings(dataset: Dataset) -> list[Finding]:
    found: list[Finding] = []
    finder = NameIndex(dataset.known_names, IMAGE_SUFFIXES)
    for file, kind, read in (("tags.csv", "tags", read_tags), ("captions.csv", "captions", read_captions)):
        path = dataset.root / file
        if not path.is_file():
            continue
        try:
            rows = read(path)
        except MaskwrightError:
            continue  # told as a bad table already
        lost = [line for line in rows if finder.find(line) is None]
        if lost:
            message = f"{len(lost)} of {len(rows)} images named in {file} do not exist"
            repair = "correct the names or delete the rows"
            found.append(finding(f"{kind}-without-image", "warning", lost, message, repair))
    if dataset.classes is not None:
        known = set(dataset.classes.names)
        strange = Counter(tag for item in dataset.items for tag in item.tags or () if tag not in known)
        if strange:
            tags = [tag for tag, _ in strange.most_common()]
            folded = {name.casefold(): name for name in known}
            near = [f"{t!r} to {folded[t.casefold()]!r}" for t in tags if t.casefold() in folded]
            message = f"{len(tags)} tags of {sum(strange.values())} rows are not in classes.txt"
            repair = f"change {', '.join(near[:3])}" if near else "correct them, or add them to classes.txt"
            found.append(finding("unknown-tag", "error", tags, message, repair))
    return found


# ---------------------------------------------------------------------- what there is


def _labels(dataset: Dataset, looks: Sequence[Look], splits: dict[str, list[str]]) -> dict[str, Any]:
    sizes = sorted((k.size for k in looks if k.size is not None), key=lambda s: s[0] * s[1])
    pixels: Counter[int] = Counter()
    images: Counter[int] = Counter()
    ignored = total = 0
    for look in looks:
        for value, n in look.counts.items():
            total += n
            if value == _ignore(look):
                ignored += n
            else:
                pixels[value] += n
                images[value] += 1
    names = dataset.classes.names if dataset.classes is not None else ()
    valid = sum(pixels.values())
    listed = sorted(set(pixels) | (set(range(len(names))) if total else set()))
    return {
        "images": len(dataset),
        **dataset.labels_present(),
        "classes": list(names) if dataset.classes is not None else None,
        "splits": {split: len(members) for split, members in splits.items()},
        "sizes": {
            "smallest": list(sizes[0]),
            "median": list(sizes[len(sizes) // 2]),
            "largest": list(sizes[-1]),
        }
        if sizes
        else None,
        "histogram": [
            {
                "id": v,
                "name": names[v] if v < len(names) else f"id {v}",
                "pixels": pixels[v],
                "share": pixels[v] / valid if valid else 0.0,
                "images": images[v],
            }
            for v in listed
        ],
        "ignored": ignored / total if total else 0.0,
    }
