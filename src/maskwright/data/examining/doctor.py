"""The doctor: what labels a folder holds, and what is wrong with it, each finding with its repair.

Every image and mask is read once. The reading is for the person at the screen and goes to no run: it bypasses
the dataset's ledger, and nothing but this report comes out.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from maskwright.data.examining.findings import SEVERITIES, Diagnosis, Finding, finding
from maskwright.data.examining.leaks import duplicate_findings, leak_findings, read_splits
from maskwright.data.examining.looks import Look, look_at, look_closer
from maskwright.data.examining.phash import find_alike
from maskwright.data.examining.reading import Reading
from maskwright.data.folders.folder import Dataset
from maskwright.data.folders.folder_names import plain_stem
from maskwright.data.folders.opening import scan_folder
from maskwright.data.folders.scan import threaded
from maskwright.data.folders.tables import NameIndex, read_captions, read_tags
from maskwright.data.layouts import layout_of, open_data
from maskwright.data.masking.label_check import check_labels
from maskwright.data.masking.label_rules import LabelRule
from maskwright.data.masking.survey import Survey, Surveyor
from maskwright.data.pictures.images import IMAGE_SUFFIXES, TooLargeError
from maskwright.data.pictures.picture_facts import alpha_findings, examine_pictures
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
    dataset, of_headers = examine_pictures(dataset)
    looks: list[Look] = []
    with Surveyor(dataset, fresh=True) as surveyor:  # a person asks: what is remembered of masks is looked at anew
        for look in threaded(lambda i: look_at(dataset, i, surveyor), range(len(dataset))):
            looks.append(look)
            if progress is not None:
                progress(len(looks), len(dataset))
    checked = check_labels(dataset, {i: _mask_of(look) for i, look in enumerate(looks) if look.mask is not None})
    likeness = find_alike([look.print for look in looks], detail=partial(look_closer, dataset))
    splits, split_findings = read_splits(dataset)
    found = [
        *(
            finding("bad-table", "error", [], p.found, "; ".join(x for x in (p.expected, p.repair) if x))
            for p in problems
        ),
        *_image_findings(dataset, looks),
        *of_headers,
        *alpha_findings([(look.name, look.alpha) for look in looks]),
        *_pair_findings(dataset),
        *checked.findings,
        *_table_findings(dataset),
        *split_findings,
        *duplicate_findings(looks, likeness),
        *leak_findings(looks, likeness, splits),
    ]
    found += _opening_findings(dataset, found)
    found.sort(key=lambda f: SEVERITIES.index(f.severity))
    return Diagnosis(str(dataset.root), _labels(dataset, looks, splits, checked.rule), tuple(found))


def _mask_of(look: Look) -> Survey:
    """What was seen of a mask; beside an image that cannot be read its size says nothing."""
    assert look.mask is not None
    return look.mask if look.image_problem is None else replace(look.mask, image_size=None)


# ---------------------------------------------------------------------- what opening the folder found


def _opening_findings(dataset: Dataset, found: Sequence[Finding]) -> list[Finding]:
    """What opening said, unless a finding says it already: its own findings, and other notices as such."""
    said = {f.kind for f in found}
    opening = [f for f in dataset.findings if f.kind not in said]
    told = {f.said() for f in (*found, *dataset.findings)} | {f.message for f in (*found, *dataset.findings)}
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


def _pair_findings(dataset: Dataset) -> list[Finding]:
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


def _labels(
    dataset: Dataset, looks: Sequence[Look], splits: dict[str, list[str]], rule: LabelRule | None
) -> dict[str, Any]:
    sizes = sorted((k.size for k in looks if k.size is not None), key=lambda s: s[0] * s[1])
    pixels: Counter[int] = Counter()
    images: Counter[int] = Counter()
    ignored = total = 0
    for look in looks:
        for value, n in look.mask.counts(rule).items() if look.mask is not None else ():
            total += n
            if value < 0:
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
