"""From what a format says to a data set that every verb reads: names of classes, ids, drawings in place of masks."""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from maskwright.data.annotations.images import Images
from maskwright.data.annotations.shapes import NO_CLASS, Note, drawing_text, keep_drawing
from maskwright.data.examining.findings import some
from maskwright.data.masking.classes import IGNORE_NAMES, ClassTable, default_palette
from maskwright.data.masking.label_rules import VOID
from maskwright.data.trust.files import file_for
from maskwright.data.trust.remembered import cache_root
from maskwright.errors import UNSHOWN, MaskwrightError

BACKGROUNDS = ("background", "_background_", "__background__")
"""What formats call what no shape covers."""
MOST_CLASSES = 65_534
"""Classes of one table at most: ids of 16 bits."""


@dataclass
class Annotations:
    """What the files of a format say.

    Attributes:
        notes: {name of the photograph: its shapes}.
        listed: names of the classes in the format's own order; () where it has no list.
        colours: colours of some of them.
        left_out: {what: how many} of shapes that are no masks.
        files: the annotation files that were read.
        whole: whether the list names what has no class too, so that it needs no background.
    """

    notes: dict[str, Note] = field(default_factory=dict)
    listed: tuple[str, ...] = ()
    colours: dict[str, tuple[int, int, int]] = field(default_factory=dict)
    left_out: Counter[str] = field(default_factory=Counter)
    files: list[Path] = field(default_factory=list)
    whole: bool = False


@dataclass(frozen=True)
class Names:
    """The class table of annotations.

    Attributes:
        table: names and colours in the order of the ids.
        ids: the id of each label, VOID for no class.
        outside: the id of what no shape covers.
        said: what was settled, in sentences.
    """

    table: ClassTable
    ids: dict[str, int]
    outside: int
    said: tuple[str, ...]


def settle_names(
    annotations: Annotations, given: Sequence[str] | None, outside: str | None = None, place: str = "classes.txt"
) -> Names:
    """Names, ids, and what the pixels are that no shape covers.

    A list that is given says all: its order is that of the ids, and what no shape covers is its background, or has no
    class where it names none; so does the format's own list where it names the label of no class. Otherwise the
    format's own list counts, or the labels in alphabetical order, with the background before them where there is none:
    in these formats an object stands for itself and the rest is ground.

    Args:
        annotations: what was read.
        given: names in the order of the ids.
        outside: "background" or "void": what is said of the pixels that no shape covers.
        place: where `given` stands, for the error.

    Raises:
        MaskwrightError: a label that is not among the names given, no class, or too many.
    """
    used = dict.fromkeys(shape.label for note in annotations.notes.values() for shape in note.shapes)
    names = list(given) if given is not None else list(annotations.listed)
    said: list[str] = []
    nothing: list[str] = []
    if given is None:
        if not names:
            names = sorted((name for name in used if name != NO_CLASS), key=str.casefold)
            names.sort(key=lambda name: name not in BACKGROUNDS)
        nothing = [n for n in (*names, *used) if "".join(c for c in n.casefold() if c.isalnum()) in IGNORE_NAMES]
        nothing = [n for n in dict.fromkeys(nothing) if n != NO_CLASS]
        names = [n for n in dict.fromkeys(map(_plain, names)) if n != NO_CLASS and n not in nothing]
        if nothing:
            said.append(f"what is called {some(nothing)} has no class; a classes.txt that names it makes it one")
    if odd := next((name for name in (*names, *used) if UNSHOWN.search(name)), None):
        raise MaskwrightError(
            f"the label {odd!r} of {annotations.files[0]}", "a name of one line that can be shown", "rename it"
        )
    if not names:
        raise MaskwrightError(
            f"{annotations.files[0] if annotations.files else 'the annotations'} has no shape with a class",
            "polygons or masks with labels",
            "export it with its annotations",
        )
    ground = "background" in names
    whole = given is not None or annotations.whole
    if outside == "background" and not ground and whole:
        raise MaskwrightError(
            f"{place} names no background", "a class background for what no shape covers", "add it, or say void"
        )
    if not whole and not ground and outside != "void":
        names.insert(0, "background")
        ground = True
        said.append("what no shape covers is class 0, background, which the annotations do not name")
    elif ground and outside != "void":
        said.append(f"what no shape covers is class {names.index('background')}, background")
    else:
        said.append("what no shape covers has no class")
    ids = {name: k for k, name in enumerate(names)}
    ids.update({other: ids["background"] for other in BACKGROUNDS if ground})
    ids.update(dict.fromkeys([*nothing, NO_CLASS], VOID))
    strange = [label for label in used if label not in ids]
    if strange:
        raise MaskwrightError(
            f"{len(strange)} labels of {annotations.files[0]} are no class of {place} ({some(strange)})",
            f"one of {', '.join(names[:20])}{', ...' if len(names) > 20 else ''}, or {NO_CLASS} for no class",
            f"add them to {place}, or rename them",
        )
    if len(names) > MOST_CLASSES:
        raise MaskwrightError(f"{len(names)} classes", f"at most {MOST_CLASSES}", "join some")
    colours = default_palette(len(names))
    for name, colour in annotations.colours.items():
        if _plain(name) in ids and ids[_plain(name)] != VOID:
            colours[ids[_plain(name)]] = colour
    if len(np.unique(colours, axis=0)) < len(colours):
        colours = default_palette(len(names))
    covered = ids["background"] if ground and outside != "void" else VOID
    return Names(ClassTable(tuple(names), colours), ids, covered, tuple(said))


def _plain(name: str) -> str:
    return "background" if name in BACKGROUNDS else name


def keep_drawings(
    root: Path, kind: str, annotations: Annotations, names: Names, *, empty: str | None = None
) -> tuple[dict[str, Path], list[str]]:
    """Writes the drawings where facts about files are kept, and says what became of photographs without shapes.

    Args:
        root: the folder of the annotations, which keeps the drawings of one folder apart from those of another.
        kind: the format.
        annotations: what was read.
        names: what it means.
        empty: "background": photographs that a list names without a shape hold nothing; else they have no mask.

    Returns:
        {name of the photograph: drawing}, and sentences.
    """
    # What the labels mean belongs to the key: a run that reads drawings is not given others by a verb beside it.
    meaning = [*names.table.names, str(names.outside), str(empty)]
    key = "\0".join([os.path.realpath(root), kind, *map(os.path.realpath, annotations.files[:1]), *meaning])
    folder = cache_root() / "drawings" / hashlib.blake2b(os.fsencode(key), digest_size=12).hexdigest()
    masks: dict[str, Path] = {}
    bare: list[str] = []
    for name, note in annotations.notes.items():
        if not note.shapes and (names.outside == VOID or (not note.stated and empty != "background")):
            bare.append(name)
            continue
        path = file_for(folder, name, ".drawing")
        keep_drawing(path, drawing_text(note, names.ids, names.outside, len(names.table)))
        masks[name] = path
    said = []
    if bare:
        count = f"{len(bare)} photographs have no shape and count as unlabelled ({some(bare)})"
        more = "; maskwright convert --empty background takes them as background alone" if names.outside != VOID else ""
        said.append(count + more)
    return masks, said


def told(kind: str, annotations: Annotations, images: Images) -> list[str]:
    """What there is to say of annotations: how many were read, what is missing, which shapes are left out.

    Raises:
        MaskwrightError: none of the photographs that the annotations name is there.
    """
    noted = len(annotations.notes)
    file = some([path.name for path in annotations.files], 1)
    said = [f"masks are drawn from {kind} annotations of {noted} photograph{'' if noted == 1 else 's'} ({file})"]
    if images.missing:
        if not noted:
            raise MaskwrightError(
                f"none of the {len(images.missing)} images of {file} is there (the first: {images.missing[0]!r})",
                "the photographs beside the annotations, or in images/",
                "put them there, or name their folder with maskwright convert --images FOLDER",
            )
        count = len(images.missing)
        said.append(f"{count} images that the annotations name are not there ({some(images.missing)})")
    for what, count in annotations.left_out.items():
        said.append(f"{count} {what} are left out")
    return said


def check_once(notes: Mapping[str, Note], name: str, where: str) -> None:
    """Raises `MaskwrightError` where a photograph is annotated a second time."""
    if name in notes:
        raise MaskwrightError(
            f"{where} annotates the image {name!r} a second time",
            "each photograph once",
            "name one annotation file instead of the folder, or give each image a name of its own",
        )
