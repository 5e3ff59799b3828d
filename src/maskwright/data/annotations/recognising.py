"""Folders of photographs whose annotations are recognised: what they hold is read as masks, and this is said."""

from __future__ import annotations

import os
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from maskwright.data.annotations import yolo
from maskwright.data.annotations.checks import head_of
from maskwright.data.annotations.colours import ColourTable, table_of
from maskwright.data.annotations.images import Images
from maskwright.data.annotations.opening import FORMATS, OTHERS, annotation_files, names_given, read_format
from maskwright.data.annotations.presenting import keep_drawings, settle_names, told
from maskwright.data.annotations.shapes import read_drawing
from maskwright.data.examining.findings import finding, some
from maskwright.data.folders.aside import aside_findings
from maskwright.data.folders.folder import Dataset, Item, Readers
from maskwright.data.folders.recognise import Found
from maskwright.data.folders.scan import is_regular
from maskwright.data.masking.masks import read_stored
from maskwright.errors import MaskwrightError

_WORDS = ("JSON", "XML", "TXT")
_COMPANIONS = frozenset({"labels.txt", "labels.json", *yolo.TABLES})
"""Tables that formats put beside their files."""


def recognised(root: Path, here: Found) -> dict[str, list[Path]]:
    """{format: files} of the annotations in a folder. No more is read than what was left aside, and its beginnings."""
    loose = [root / file for file, _ in here.aside if not file.endswith("/")]
    folders = [root / file for file, why in here.aside if file.endswith("/") and any(w in why for w in _WORDS)]
    found: dict[str, list[Path]] = {}
    for kind, form in FORMATS.items():
        files = [p for p in loose if p.suffix.lower() in form.suffixes and p.name not in OTHERS and is_regular(p)]
        files = [path for path in files if form.looks(head_of(path))]
        for folder in folders:
            files += annotation_files(folder, kind)
        if kind == "yolo" and files and not any(is_regular(root / name) for name in yolo.TABLES):
            files = []
        if files:
            found[kind] = sorted(dict.fromkeys(files))
    return found


def attach(data: Dataset, here: Found) -> Dataset:
    """A folder's data set with what its annotations say: masks are drawn from them where it has none.

    Where it has masks the annotations are left alone, and this is said.

    Raises:
        MaskwrightError: annotations of two formats, or such as are not as their format has them.
    """
    root = data.root
    found = recognised(root, here)
    if data.labels_present()["masks"]:
        return _by_colours(_beside_masks(data, found))
    if not found:
        return data
    if len(found) > 1:
        told_of = "; ".join(f"{FORMATS[k].title} ({some([p.name for p in files], 1)})" for k, files in found.items())
        raise MaskwrightError(
            f"{root} holds annotations of {len(found)} formats: {told_of}", "one",
            f"name it: {' or '.join(f'{kind}:{root}' for kind in found)}",
        )  # fmt: skip
    kind, files = next(iter(found.items()))
    known = Images({item.name: item.image for item in data.items})
    annotations = read_format(kind, files if kind != "yolo" else [], known, root)
    said = told(FORMATS[kind].title, annotations, known)
    settled = settle_names(annotations, names_given(kind, root, None, []))
    masks, more = keep_drawings(root, kind, annotations, settled)
    read = {os.path.relpath(path, root) for path in (*files, *annotations.files)}
    aside = [
        (file, why)
        for file, why in here.aside
        if file not in read
        and file not in _COMPANIONS
        and not (file.endswith("/") and any(path.startswith(file) for path in read))
    ]
    sentences = [*said, *settled.said, *more]
    note = finding(
        "annotations", "note", sorted(read), sentences[0],
        f"maskwright convert {shlex.quote(os.fspath(root))} OUT --from {kind} --to masks writes them as masks",
    )  # fmt: skip
    findings = [*(f for f in data.findings if f.kind != "left-aside"), *aside_findings(aside)]
    notes = [note, *(finding("annotations", "note", [], s) for s in sentences[1:])]
    items = [replace(item, mask=masks.get(item.name)) for item in data.items]
    items += [Item(n, p, masks.get(n)) for n, p in known.found.items() if n not in {i.name for i in data.items}]
    return Dataset(
        root, items, classes=settled.table, splits=data._splits, readers=Readers(mask=read_drawing),
        skipped=data.skipped, reading=data.reading,
        notices=[*(f.said() for f in findings), *sentences], aside=aside, lone=data.lone, findings=[*findings, *notes],
    )  # fmt: skip


def _beside_masks(data: Dataset, found: Mapping[str, Sequence[Path]]) -> Dataset:
    """Says that annotations lie beside masks, and how they are read."""
    if not found:
        return data
    kind, files = next(iter(found.items()))
    note = finding(
        "annotations", "note", [path.name for path in files],
        f"annotations of {FORMATS[kind].title} lie beside the masks and are not read",
        f"name {kind}:{data.root} to read them instead of the masks",
    )  # fmt: skip
    derived = data.with_notices(note.said())
    derived.findings = (*derived.findings, note)
    return derived


def _by_colours(data: Dataset) -> Dataset:
    """The same data set, its masks read by the table of colours that lies in the folder, where they are in colours."""
    path = table_of(data.root)
    if path is None or data.reading.how not in ("auto", "colours"):
        return data
    first = next(item.mask for item in data.items if item.mask is not None)
    try:
        stored = read_stored(first)
    except MaskwrightError:
        return data
    if stored.kind != "palette" and (stored.kind != "colour" or stored.equal):
        return data
    colours = ColourTable(path)
    if data.classes is not None and data.classes.names != colours.classes.names:
        return data
    aside = [(file, why) for file, why in data.aside if file != path.name]
    findings = [*(f for f in data.findings if f.kind != "left-aside"), *aside_findings(aside)]
    return Dataset(
        data.root, data.items, classes=colours.classes, readers=colours.readers(), skipped=data.skipped,
        splits=data._splits, reading=replace(data.reading, labels="auto"),
        notices=[*(f.said() for f in findings), *colours.said], aside=aside, lone=data.lone, findings=findings,
    )  # fmt: skip
