"""Opening annotations as a data set: which format a folder holds, its files, its photographs.

`open_annotated("coco", place)` reads a format that was named; `recognising` adds what lies in a folder of photographs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from maskwright.data.annotations import coco, cvat, labelme, yolo
from maskwright.data.annotations.archives import is_archive, unpacked
from maskwright.data.annotations.checks import Source, head_of
from maskwright.data.annotations.colours import ColourTable, masks_of, table_of
from maskwright.data.annotations.images import Images
from maskwright.data.annotations.presenting import Annotations, keep_drawings, settle_names, told
from maskwright.data.annotations.shapes import read_drawing
from maskwright.data.examining.findings import finding
from maskwright.data.folders.folder import Dataset, Item, Readers
from maskwright.data.folders.recognise import recognise
from maskwright.data.folders.scan import Folder, check_folder, is_regular, names_below
from maskwright.data.masking.classes import read_classes
from maskwright.data.pictures.images import IMAGE_SUFFIXES
from maskwright.errors import MaskwrightError


@dataclass(frozen=True)
class Format:
    """A label format that is read.

    Attributes:
        title: what people call it.
        suffixes: of its files.
        looks: whether the beginning of such a file, as text, is that of one.
        many: whether it has a file for each photograph.
    """

    title: str
    suffixes: frozenset[str]
    looks: Callable[[str], bool]
    many: bool


FORMATS: dict[str, Format] = {
    "coco": Format("COCO", frozenset({".json"}), coco.looks, False),
    "labelme": Format("LabelMe", frozenset({".json"}), labelme.looks, True),
    "cvat": Format("CVAT", frozenset({".xml"}), cvat.looks, False),
    "yolo": Format("YOLO", frozenset({".txt"}), yolo.looks, True),
}
"""Formats of outlines by name; `colours` are masks, and are read by a table."""
OTHERS = frozenset({"classes.txt", "labels.txt", "labelmap.txt", "names.txt", "train.txt", "val.txt", "test.txt"})
"""Text files that are no annotations of one photograph."""


def annotation_files(root: Path, kind: str, folder: Folder | None = None) -> list[Path]:
    """The files of a format below a folder, sorted."""
    form = FORMATS[kind]
    found = names_below(folder or Folder(root), form.suffixes).found.values()
    return [path for path in found if path.name not in OTHERS and form.looks(head_of(path))]


def read_format(kind: str, files: Sequence[Path], images: Images, root: Path) -> Annotations:
    """What the files of a format say. Raises `MaskwrightError` as the readers of the formats."""
    if kind == "coco":
        return coco.read_coco(files, images)
    if kind == "labelme":
        return labelme.read_labelme(files, images, root)
    if kind == "cvat":
        return cvat.read_cvat(files, images)
    tables = [path for path in files if path.suffix.lower() in (".yaml", ".yml") or path.name in yolo.TABLES]
    return yolo.read_yolo(tables, images, root)


def open_annotated(
    kind: str,
    place: Path,
    *,
    images: Path | None = None,
    otherwise: Path | None = None,
    names: Sequence[str] | None = None,
    outside: str | None = None,
    empty: str | None = None,
) -> Dataset:
    """Opens annotations and their photographs.

    Args:
        kind: a name of `FORMATS`.
        place: a folder, one file of annotations, or a ZIP archive of either.
        images: the folder of the photographs, where it is another.
        otherwise: the folder of the photographs where none lie with the annotations.
        names: of the classes in the order of their ids; None: those of classes.txt, else what the format says.
        outside, empty: as for `settle_names` and `keep_drawings`.

    Raises:
        MaskwrightError: nothing of that format is there, or it is not as the format has it.
    """
    root, files = _place(kind, place, images)
    photographs, splits, skipped = _photographs(images or root)
    if images is None and not photographs and otherwise is not None:
        images = otherwise
        photographs, splits, skipped = _photographs(images)
    if kind == "cvat" and not files and table_of(root) is not None:
        return _open_colours(root, photographs, splits, None)
    if kind != "labelme" and not photographs:
        raise MaskwrightError(
            f"{images or root} holds no images", "the photographs beside the annotations, or in images/",
            "put them there, or name their folder with maskwright convert --images FOLDER",
        )  # fmt: skip
    if not files and kind != "yolo":
        raise MaskwrightError(
            f"{root} holds no annotations of {FORMATS[kind].title}",
            f"{' or '.join(FORMATS[kind].suffixes)} files of it", _advice(root),
        )  # fmt: skip
    known = Images(photographs)
    found = read_format(kind, files, known, root)
    said = told(FORMATS[kind].title, found, known)
    settled = settle_names(found, names_given(kind, root, names, said), outside)
    masks, more = keep_drawings(root, kind, found, settled, empty=empty)
    items = [Item(name, path, masks.get(name)) for name, path in sorted(known.found.items())]
    sentences = [*said, *settled.said, *more]
    return Dataset(
        images or root, items, classes=settled.table, splits=splits, readers=Readers(mask=read_drawing),
        skipped=skipped, notices=sentences, findings=[finding("annotations", "note", [], s) for s in sentences],
    )  # fmt: skip


def open_colours(place: Path, images: Path | None = None, table: Path | None = None) -> Dataset:
    """Opens masks that are drawn in the colours of a table.

    Args:
        place: the folder, or a ZIP archive of it.
        images: the folder of the photographs, where it is another.
        table: names and colours; None: the one that lies in the folder.

    Raises:
        MaskwrightError: no table, or no masks.
    """
    root = unpacked(place) if is_archive(place) else place
    check_folder(root)
    photographs, splits, _ = _photographs(images or root)
    return _open_colours(root, photographs, splits, table)


def _open_colours(
    root: Path, photographs: dict[str, Path], splits: dict[str, list[str]], table: Path | None
) -> Dataset:
    path = table or table_of(root)
    if path is None:
        raise MaskwrightError(
            f"{root} has no table of colours", "labelmap.txt, or class_dict.csv with lines name,r,g,b", "--colors TABLE"
        )
    colours = ColourTable(path)
    masks = recognise(root).masks
    if not masks:
        known = Images(photographs)
        for name, file in masks_of(root).items():
            image = known.find(name, Source(file, "a mask named as its photograph"))
            if image is not None and photographs[image] != file:
                masks[image] = file
    if not masks:
        raise MaskwrightError(
            f"{root} has no mask of any of the {len(photographs)} photographs",
            "masks in masks/ or SegmentationClass/, named as the photographs",
            "name the folder of the photographs with maskwright convert --images FOLDER",
        )
    inner = set(masks.values())
    items = [Item(n, p, masks.get(n)) for n, p in photographs.items() if p not in inner]
    return Dataset(root, items, classes=colours.classes, splits=splits, readers=colours.readers(), notices=colours.said)


def _place(kind: str, place: Path, images: Path | None) -> tuple[Path, list[Path]]:
    """The folder of annotations and their files."""
    if is_archive(place):
        place = unpacked(place)
    if is_regular(place):
        root = place.parent
        if images is None and not _photographs(root)[0] and root.name and _photographs(root.parent)[0]:
            root = root.parent  # as in COCO's own folders: annotations/ beside the photographs
        return root, [place]
    check_folder(place)
    return place, annotation_files(place, kind) if kind != "yolo" else []


def _photographs(root: Path) -> tuple[dict[str, Path], dict[str, list[str]], list[tuple[str, str]]]:
    """The photographs of a folder, splits that its folders say, and what was skipped."""
    check_folder(root)
    try:
        here = recognise(root)
    except MaskwrightError:  # two readings of what are masks; none is read here
        return names_below(Folder(root), IMAGE_SUFFIXES).found, {}, []
    return dict(here.images), here.splits, here.skipped


def names_given(kind: str, root: Path, names: Sequence[str] | None, said: list[str]) -> Sequence[str] | None:
    """Names that say all: those given, else those of classes.txt, unless that is the format's own list."""
    if names is not None:
        return names
    path = root / "classes.txt"
    own = kind == "yolo" and not any(is_regular(root / name) for name in yolo.TABLES[:3])
    if own or not is_regular(path):
        return None
    return read_classes(path, said).names


def _advice(root: Path) -> str:
    others = [kind for kind in FORMATS if annotation_files(root, kind)]
    return f"it looks like {others[0]}:{root}" if others else "name the folder or the file that holds them"
