"""What a prediction is given: folders, files, patterns and pictures in memory, brought into one data set.

Names decide where masks lie. An image of a folder is called by its path below it, a file by its own name, what a
pattern finds by its path below the pattern's fixed part, a picture in memory by its file, its key or its place in the
list. Two that would have one mask are refused before anything is written. A file that two places give under two names
is taken once, under the first, and that is said.
"""

from __future__ import annotations

import glob
import hashlib
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from maskwright.data.examining.findings import some
from maskwright.data.folders.folder import Dataset, Item
from maskwright.data.folders.readers import Readers
from maskwright.data.folders.scan import is_regular, is_utf8
from maskwright.data.layouts import layout_of, open_data
from maskwright.data.pictures.deep import Range
from maskwright.data.pictures.images import IMAGE_SUFFIXES, picture_of, read_image, to_rgb
from maskwright.errors import MaskwrightError

Picture = str | os.PathLike[str] | np.ndarray | Image.Image
"""One image: a file, an array or a Pillow image."""
MAGIC = frozenset("*?[")


def as_picture(image: Picture, range: Range = None) -> np.ndarray:
    """uint8 (H, W, 3) of a file, a Pillow image or an array (grey and RGBA arrays are converted).

    Args:
        image: the picture; files and Pillow images are turned as their EXIF tag says.
        range: of files and Pillow images of more than 8 bits.

    Raises:
        MaskwrightError: it is no picture, or has more than 8 bits and nothing says which values are black and white.
    """
    if isinstance(image, str | os.PathLike):
        return read_image(image, range=range, sure=True)
    if isinstance(image, Image.Image):
        return picture_of(image, range=range, sure=True)
    if isinstance(image, np.ndarray) and image.dtype == np.uint8 and image.size:
        if image.ndim == 2:
            return np.repeat(image[..., None], 3, axis=2)
        if image.ndim == 3 and image.shape[2] == 3:
            return image
        if image.ndim == 3 and image.shape[2] in (1, 4):
            return to_rgb(Image.fromarray(image.squeeze(2) if image.shape[2] == 1 else image))
    found = f"an array {image.shape} of {image.dtype}" if isinstance(image, np.ndarray) else type(image).__name__
    raise MaskwrightError(
        f"the picture is {found}", "a file name, a Pillow image or a uint8 array (H, W, 3)",
        "scale floats by 255 and convert them with .astype('uint8')",
    )  # fmt: skip


def gather(given: Any, *, split: str | None = None, range: Range = None) -> list[Dataset]:
    """The data sets that stand for what was given, one for each folder, the files together.

    Args:
        given: a dataset; a folder, `layout:path`, a file or a pattern (`photos/*.jpg`, `**` over any depth); a list of
            these; a list of pictures in memory, files among them; or {name: picture}.
        split: only the images of this split, which each folder must have.
        range: of pictures in memory of more than 8 bits; those of folders and files are read by one range, as ever.

    Raises:
        MaskwrightError: nothing was given, a place or a pattern has no image, or a value is no picture.
    """
    if isinstance(given, Dataset):
        return [given if split is None else given.split(split)]
    if isinstance(given, Mapping):
        return [_held({str(name): picture for name, picture in given.items()}, range)]
    if isinstance(given, np.ndarray | Image.Image):
        given = [given]
    places = [given] if isinstance(given, str | os.PathLike) else list(given)
    if any(isinstance(p, np.ndarray | Image.Image) for p in places):
        return [_held(_named(places), range)]
    parts: list[Dataset] = []
    files: dict[str, Item] = {}
    again: list[tuple[str, str]] = []
    for place in places:
        found, items = _open(place, split)
        parts += found
        for item in _new(items, files.values(), again):
            if (other := files.setdefault(item.name, item)) is not item and not _same(other.image, item.image):
                one, two = other.image, item.image
                raise _one_mask(item.name, one, two, _pattern(one.parent, two.parent, f"*{two.suffix}"))
    if files:
        root = os.path.commonpath([os.path.abspath(item.image.parent) for item in files.values()])
        parts.append(Dataset(root, files.values(), notices=_once(again)))
        if split is not None:
            raise MaskwrightError(f"--split {split} of single files", "a folder, which has splits", "leave --split out")
    if not parts:
        raise MaskwrightError("no images were given", "folders, files or patterns", "name at least one")
    return parts


def join(parts: Sequence[Dataset]) -> Dataset:
    """One data set of several, whose images are read by one range where they have more than 8 bits.

    Raises:
        MaskwrightError: two images would have one mask, or a layout with readers of its own stands beside others.
    """
    if len(parts) == 1:
        return parts[0]
    if any(part.readers.image is not None for part in parts):
        raise MaskwrightError(
            "a layout or pictures in memory beside other images", "one of them at a time", "predict each by itself"
        )
    items: dict[str, Item] = {}
    roots: dict[str, Path] = {}
    again: list[tuple[str, str]] = []
    for part in parts:
        for item in _new(part.items, items.values(), again):
            if (other := items.setdefault(item.name, item)) is not item and not _same(other.image, item.image):
                raise _one_mask(item.name, other.image, item.image, _pattern(roots[item.name], part.root))
            roots.setdefault(item.name, part.root)
    return Dataset(
        os.path.commonpath([os.path.abspath(part.root) for part in parts]),
        items.values(),
        skipped=[s for part in parts for s in part.skipped],
        known=dict.fromkeys(name for part in parts for name in part.known_names),
        notices=dict.fromkeys([*(n for part in parts for n in part.notices), *_once(again)]),
    )


def _new(items: Sequence[Item], known: Iterable[Item], again: list[tuple[str, str]]) -> list[Item]:
    """The items whose file no earlier place gave under another name; of the others (first name, name) go to `again`."""
    first = {os.path.realpath(item.image): item.name for item in known}
    new = []
    for item in items:
        name = first.get(os.path.realpath(item.image), item.name)
        if name == item.name:
            new.append(item)
        else:
            again.append((name, item.name))
    return new


def _once(again: Sequence[tuple[str, str]]) -> list[str]:
    """What to say of files that were given under two names."""
    if not again:
        return []
    told = some([f"{one} is {two}" for one, two in again])
    return [f"{len(again)} images were given twice, under two names, and are predicted once, under the first ({told})"]


def _same(one: Path, two: Path) -> bool:
    return os.path.realpath(one) == os.path.realpath(two)


def _one_mask(name: str, one: Path, two: Path, pattern: str) -> MaskwrightError:
    repair = f"give them by a pattern in quotes, '{pattern}', whose names hold the folders, or " if pattern else ""
    return MaskwrightError(
        f"{one} and {two} would both have the mask {name}.png",
        "images whose names differ",
        repair + "predict each into an --out of its own",
    )


def _pattern(one: Path, two: Path, file: str = "") -> str:
    """A pattern that finds both folders, or the files in them, under names that differ; empty where there is none."""
    above = os.path.commonpath([os.path.abspath(one), os.path.abspath(two)])
    beside = all(os.path.dirname(os.path.abspath(folder)) == above for folder in (one, two))
    return os.path.join(above, "*", file) if beside else ""  # behind the last "/": folders alone


def _open(place: Any, split: str | None) -> tuple[list[Dataset], list[Item]]:
    """Folders and single files that one place stands for."""
    if not isinstance(place, str | os.PathLike):
        raise MaskwrightError(
            f"{type(place).__name__} among the images", "folders, files, patterns, arrays or Pillow images",
            "give a list of one of these kinds",
        )  # fmt: skip
    text = os.fspath(place)
    if is_regular(text):
        return [], [_item(Path(text), Path(text).stem)]
    if not os.path.lexists(text) and MAGIC & set(text) and layout_of(text) is None:
        return _matching(text, split)
    opened = open_data(text)
    return [opened if split is None else opened.split(split)], []


def _item(path: Path, name: str) -> Item:
    if not is_utf8(path.name):
        raise MaskwrightError(f"the name of {path} is not UTF-8 text", "a name that can be written", "rename it")
    return Item(name, path)


def _matching(pattern: str, split: str | None) -> tuple[list[Dataset], list[Item]]:
    """What a pattern finds: its images, called by their path below the part of the pattern without a wildcard; folders
    only where it finds no image itself."""
    fixed = Path(*(p := Path(pattern).parts)[: next(i for i, part in enumerate(p) if MAGIC & set(part))])
    found = sorted(glob.glob(pattern, recursive=True))
    files = [Path(f) for f in found if is_regular(f) and is_utf8(f) and Path(f).suffix.lower() in IMAGE_SUFFIXES]
    if files:
        return [], [_item(f, f.relative_to(fixed).with_suffix("").as_posix()) for f in files]
    folders = [Path(f) for f in found if Path(f).is_dir()]
    if not folders:
        others = f", only files of other kinds ({some([Path(f).name for f in found])})" if found else ""
        raise MaskwrightError(
            f"the pattern {pattern} finds no image{others}", "files or folders of images",
            "check it with ls; in quotes, ** stands for folders of any depth",
        )  # fmt: skip
    parts, empty = [], []
    for folder in folders:
        try:
            opened = open_data(folder)
        except MaskwrightError:
            empty.append(folder.name)
            continue
        opened = opened if split is None else opened.split(split)
        above = folder.relative_to(fixed).as_posix()
        items = (replace(item, name=f"{above}/{item.name}") for item in opened.items)
        parts.append(opened.with_items(items, [(f"{above}/{name}", why) for name, why in opened.skipped]))
    if not parts:
        raise MaskwrightError(
            f"the pattern {pattern} finds folders without an image ({some(empty)})", "folders of images",
            "check it with ls; in quotes, ** stands for folders of any depth",
        )  # fmt: skip
    if empty:
        parts[0] = parts[0].with_notices(f"{len(empty)} folders of {pattern} cannot be read as images ({some(empty)})")
    return parts, []


# ---------------------------------------------------------------------------------------------- pictures in memory


class _Held:
    """Reads pictures that a caller holds, by the path that stands for each."""

    def __init__(self, pictures: Mapping[Path, Picture], range: Range) -> None:
        self.pictures, self.range = pictures, range

    def image(self, path: Path) -> np.ndarray:
        return as_picture(self.pictures[path], self.range)

    def size(self, path: Path) -> tuple[int, int]:
        height, width = self.image(path).shape[:2]
        return height, width

    def digest(self, path: Path) -> str:
        pixels = self.image(path)
        told = f"{pixels.shape}\0".encode()
        return hashlib.blake2b(told + np.ascontiguousarray(pixels).tobytes(), digest_size=16).hexdigest()


def _held(pictures: Mapping[str, Picture], range: Range) -> Dataset:
    places = {Path("in memory", name): picture for name, picture in pictures.items()}
    held = _Held(places, range)
    items = [Item(name, path) for name, path in zip(pictures, places)]
    return Dataset(".", items, readers=Readers(image=held.image, size=held.size, verify=held.image, digest=held.digest))


def _named(pictures: Sequence[Picture]) -> dict[str, Picture]:
    """Pictures of a list by their names: those of their files, else `picture_007` by the place in the list."""
    named: dict[str, Picture] = {}
    for place, picture in enumerate(pictures):
        file = picture if isinstance(picture, str | os.PathLike) else getattr(picture, "filename", "")
        name = Path(os.fsdecode(file)).stem if file else f"picture_{place:0{len(str(len(pictures) - 1))}d}"
        if name in named:
            raise MaskwrightError(
                f"two pictures of the list are called {name}", "names that differ", "give {name: picture}"
            )
        named[name] = picture
    return named
