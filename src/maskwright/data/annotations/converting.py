"""`maskwright convert`: labels of one format in, labels of another out; or corrected ones back into a folder."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from maskwright.data.annotations.adding import LIST, add_masks, ids_of
from maskwright.data.annotations.archives import is_archive, unpacked
from maskwright.data.annotations.checks import head_of
from maskwright.data.annotations.opening import FORMATS, annotation_files, open_annotated, open_colours
from maskwright.data.annotations.recognising import recognised
from maskwright.data.annotations.writing import OUTLINES, TARGETS, Writer
from maskwright.data.examining.mending import check_place, copy_rest
from maskwright.data.examining.reading import Reading
from maskwright.data.examining.understanding import understand
from maskwright.data.folders.folder import Dataset
from maskwright.data.folders.opening import scan_folder
from maskwright.data.folders.recognise import recognise
from maskwright.data.folders.scan import is_regular
from maskwright.data.layouts import LAYOUTS, layout_of, open_data
from maskwright.data.masking.classes import ClassTable, read_classes
from maskwright.data.trust.files import folder_beside
from maskwright.errors import MaskwrightError, unknown


@dataclass(frozen=True)
class Converted:
    """What was converted.

    Attributes:
        images: photographs.
        masks: those with a mask.
        said: what there is to say: what was read how, what changed, and what to do next.
    """

    images: int
    masks: int
    said: tuple[str, ...]


def open_source(
    source: str,
    kind: str | None = None,
    *,
    images: Path | None = None,
    otherwise: Path | None = None,
    names: Sequence[str] | None = None,
    colors: Path | None = None,
    outside: str | None = None,
    empty: str | None = None,
    reading: Reading | None = None,
) -> Dataset:
    """The data set that is to be converted; arguments as for `convert`, `otherwise` as for `open_annotated`.

    Raises:
        MaskwrightError: no such format, or the files are not as it has them.
    """
    kinds = ("masks", "colours", *FORMATS, *(name for name in LAYOUTS if name not in FORMATS))
    named = layout_of(source)
    if named is not None and named[0] in kinds:
        kind, source = named[0], os.fspath(named[1])
    if kind is not None and kind not in kinds:
        raise unknown("format to read", kind, kinds)
    place = Path(source)
    if kind is None and colors is not None:
        kind = "colours"
    if kind is None and is_regular(place) and not is_archive(place):
        head = head_of(place)
        kind = next((k for k, f in FORMATS.items() if place.suffix.lower() in f.suffixes and f.looks(head)), None)
        kind = "yolo" if place.suffix.lower() in (".yaml", ".yml") else kind
        if kind is None:
            raise MaskwrightError(
                f"{place} is a file of no format that is known", f"one of {', '.join(FORMATS)}", "say it with --from"
            )
    if kind is None and is_archive(place):
        folder = unpacked(place)
        kind = next((k for k in FORMATS if k != "yolo" and _holds(folder, k)), None)
        place = place if kind else folder
        kind = kind or ("colours" if any(folder.glob("labelmap.txt")) else None)
    if kind is None and place.is_dir():
        kind = _recognised(place)
    if kind in FORMATS:
        return open_annotated(
            kind, place, images=images, otherwise=otherwise, names=names, outside=outside, empty=empty
        )
    _only_for_outlines(outside, empty)
    if kind == "colours":
        return open_colours(place, images or otherwise, colors)
    if images is not None:
        raise MaskwrightError("--images for a folder of masks", "annotations", "name the folder that holds both")
    if kind == "masks":
        return scan_folder(place, None, reading, annotations=False)
    return open_data(f"{kind}:{place}" if kind else str(place), reading)


def _recognised(place: Path) -> str | None:
    """The one format of outlines that a folder without masks holds; None where it has masks, none, or several."""
    try:
        here = recognise(place)
    except MaskwrightError:  # two readings of what are masks, which opening it tells
        return None
    found = recognised(place, here)
    return next(iter(found)) if len(found) == 1 and not here.masks else None


def _holds(folder: Path, kind: str) -> bool:
    return bool(annotation_files(folder, kind))


def _only_for_outlines(outside: str | None, empty: str | None) -> None:
    for name, value in (("--outside", outside), ("--empty", empty)):
        if value is not None:
            raise MaskwrightError(f"{name} {value} for masks", f"--from {', '.join(FORMATS)}", "leave it out")


def convert(
    source: str,
    out: Path,
    to: str,
    *,
    kind: str | None = None,
    split: str | None = None,
    images: Path | None = None,
    names: Sequence[str] | None = None,
    colors: Path | None = None,
    outside: str | None = None,
    empty: str | None = None,
    reading: Reading | None = None,
    tolerance: float = 1.0,
    photographs: bool = True,
    add: bool = False,
    replace_masks: bool = False,
    progress: Callable[[int, int], object] | None = None,
) -> Converted:
    """Converts labels.

    Args:
        source: a folder, a file of annotations, a ZIP archive, or `layout:path`.
        out: the new folder; with `add` one that is there.
        to: a name of `TARGETS`.
        kind: the format that is read; None: what the folder holds is recognised.
        split: only these images.
        images: the folder of the photographs, where annotations lie elsewhere.
        names: names of the classes in the order of their ids.
        colors: a table name,r,g,b of the colours that masks are drawn in.
        outside: "background" or "void", what no shape covers; None: as `presenting.settle_names` says.
        empty: "background": photographs that a list names without a shape hold nothing; None: they have no mask.
        reading: what is said of the values of masks.
        tolerance: pixels by which outlines may leave the edges of pixels; 0: none is simplified.
        photographs: copy the photographs too.
        add: put the masks into the folder `out`, which holds the same photographs.
        replace_masks: with `add`, masks that are there already are replaced.
        progress: called with (done, total) after each image.

    Raises:
        MaskwrightError: the labels are not as their format has them, are not certain, or cannot be written so.
    """
    for name, value, choices in (("--outside", outside, ("background", "void")), ("--empty", empty, ("background",))):
        if value is not None and value not in choices:
            raise MaskwrightError(f"{name} {value}", " or ".join(choices))
    if to not in TARGETS:
        raise unknown("format", to, TARGETS)
    if add and to != "masks":
        raise MaskwrightError(f"--add with --to {to}", "--to masks", "corrected masks are added as masks")
    order = names
    if add and names is None and is_regular(out / "classes.txt"):
        order = read_classes(out / "classes.txt").names
    data = open_source(
        source, kind, images=images, otherwise=out if add else None, names=order, colors=colors, outside=outside,
        empty=empty, reading=reading,
    )  # fmt: skip
    data = data.with_reading(reading) if reading is not None and reading != data.reading else data
    if names is not None and (data.classes is None or data.classes.names != tuple(names)):
        data = _named(data, names)
    data = understand(data if split is None else data.split(split), masks=True, images=False)
    table, more = _table(data)
    said = [*data.notices, *more]
    if not data.labels_present()["masks"]:
        raise MaskwrightError(
            f"{source} has no mask for any of its {len(data)} photographs",
            "at least one",
            f"maskwright doctor {source}",
        )
    if add:
        count = add_masks(data, table, out, replace_masks, progress)
        said.append(f"masks added to {out}: {count}; splits/{LIST}.txt lists the photographs that have one")
        return Converted(len(data), count, tuple(dict.fromkeys(said)))
    check_place(out, data.root, "what is converted", "another TO")
    with folder_beside(out, f".{out.name[:60]}-") as work:
        writer = Writer(work, to, table, tolerance=tolerance, photographs=photographs)
        for i, item in enumerate(data.items):
            ids = ids_of(data, i, table) if data.has_mask(i) else None
            size = ids.shape if ids is not None else data.size(i)
            writer.add(item.name, item.image, ids, (size[0], size[1]))
            if progress is not None:
                progress(i + 1, len(data))
        if to == "masks":
            copy_rest(data, work, {})
        writer.close(LIST)
    said += _after(writer, to, out)
    return Converted(len(data), writer.masks, tuple(dict.fromkeys(said)))


def _named(data: Dataset, names: Sequence[str]) -> Dataset:
    if data.classes is not None and len(data.classes) != len(names):
        raise MaskwrightError(
            f"--names of {len(names)} classes", f"{len(data.classes)}, as {data.root} has", "name each of them"
        )
    return data.with_classes(ClassTable(tuple(names), data.classes.colors if data.classes is not None else np.zeros(0)))


def _table(data: Dataset) -> tuple[ClassTable, list[str]]:
    """The classes; those of masks of 0 and 255 have names without being told."""
    if data.classes is not None:
        return data.classes, []
    if data.rule is not None and data.rule.labels == "binary255":
        return ClassTable(("background", "object")), ["masks of 0 and 255: the classes are background and object"]
    raise MaskwrightError(
        f"{data.root} does not name its classes",
        "classes.txt, one name a line",
        "write it, or add --names with the names in the order of the ids",
    )


def _after(writer: Writer, to: str, out: Path) -> list[str]:
    said = [f"{writer.masks} masks in {out}: {TARGETS[to]}"]
    if to in OUTLINES and writer.pixels:
        share = writer.changed / writer.pixels
        exact = "" if not writer.tolerance else "; --tolerance 0 keeps every pixel"
        said.append(f"outlines within {writer.tolerance:g} pixels change {share:.2%} of the masks' pixels{exact}")
    if to == "binary":
        said.append("verbs read them with --labels binary255")
    return said
