"""Whether an image file looks like a label map: few values, in flat areas. Photographs never do, drawings may."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from maskwright.data.examining.findings import Finding, finding
from maskwright.data.masking.masks import codes_of
from maskwright.data.pictures.headers import open_pillow
from maskwright.data.pictures.images import DECODER_ERRORS
from maskwright.errors import shown

MOST_VALUES = 64
"""Distinct values that a label map has at most; smooth edges may add more between two values."""
FLAT = 0.85
"""Share of neighbouring pixels with the same value in a label map, at least. Photographs have 0.1 to 0.4."""
MOST_PIXELS = 1 << 26
"""Larger files are not decoded for this question."""
SAMPLE = 8
"""Files that are looked at, at most."""

_INDEX_MODES = ("1", "L", "P", "I", "I;16", "I;16B")


def looks_like_labels(path: Path, *, colours: bool) -> bool:
    """Whether an image looks like a label map.

    Args:
        path: the file.
        colours: decode colour images too. Without, they count as photographs at the cost of a header.
    """
    try:
        with open(path, "rb") as file:
            image = open_pillow(file)
            if image.width * image.height > MOST_PIXELS or not (colours or image.mode in _INDEX_MODES):
                return False
            lossy = image.format in ("JPEG", "MPO")
            values = np.asarray(image.convert("L")) if lossy else _values(image)
    except DECODER_ERRORS:
        return False
    if lossy:
        return _flat_but_blurred(values)
    same = float((values[:, 1:] == values[:, :-1]).mean()) if values.shape[1] > 1 else 1.0
    if same < FLAT:
        return False
    _, counts = np.unique(values, return_counts=True)
    if image.mode not in _INDEX_MODES and len(counts) == 1:
        return False  # a sheet of one colour says nothing
    smooth = len(counts) <= 256 and np.sort(counts)[-2:].sum() >= 0.95 * values.size
    return len(counts) <= MOST_VALUES or bool(smooth)


def _values(image: Image.Image) -> np.ndarray:
    """(H, W) one number for each value or colour."""
    if image.mode in _INDEX_MODES:
        return np.asarray(image)
    if image.mode == "LA":
        return np.asarray(image)[..., 0]
    return codes_of(np.asarray(image.convert("RGB")))


def _flat_but_blurred(values: np.ndarray) -> bool:
    """As label maps look after JPEG: nearly all pixels near one of a few values."""
    if int(values.max(initial=0)) - int(values.min(initial=255)) < 16:
        return False  # a sheet of one colour says nothing
    near = np.abs(np.diff(values.astype(np.int16), axis=1)) <= 2
    bins = np.sort(np.bincount((values >> 3).ravel().astype(np.int64), minlength=32))
    return values.size > 0 and float(near.mean()) >= FLAT and int(bins[-8:].sum()) >= 0.97 * values.size


def share_of_label_maps(paths: Sequence[Path], *, colours: bool, most: int = SAMPLE) -> tuple[int, int]:
    """How many of a few files, spread evenly over `paths`, look like label maps, and how many were looked at."""
    step = max(1, -(-len(paths) // most))
    chosen = paths[::step]
    return sum(looks_like_labels(path, colours=colours) for path in chosen), len(chosen)


def paired_folders(images: Iterable[str], suspects: Mapping[str, Path]) -> list[tuple[str, str, list[str]]]:
    """(folder, folder of the images of the same names, names of its files) of folders of label maps.

    Args:
        images: names of all images.
        suspects: {name: file} of those that may be label maps.
    """
    members: dict[str, dict[str, str]] = defaultdict(dict)
    for name in images:
        folder, _, last = name.rpartition("/")
        members[folder][last] = name
    if len(members) < 2:
        return []
    where: dict[str, list[str]] = defaultdict(list)
    for folder, lasts in members.items():
        for last in lasts:
            where[last].append(folder)
    found: list[tuple[str, str, list[str]]] = []
    looks = 0
    for folder, lasts in members.items():
        if looks >= SAMPLE:
            break
        if not folder or not all(n in suspects for n in lasts.values()):
            continue
        others = Counter(f for last in lasts for f in where[last] if f != folder)
        others = Counter({f: n for f, n in others.items() if f not in {g for g, _, _ in found}})
        if not others or 2 * others.most_common(1)[0][1] < len(lasts):
            continue
        paths = [suspects[n] for n in lasts.values()]
        alike, looked = share_of_label_maps(paths, colours=True, most=2)
        looks += looked
        if 2 * alike > looked:
            found.append((folder, others.most_common(1)[0][0], list(lasts.values())))
    return found


def label_map_findings(suspects: Mapping[str, Path]) -> list[Finding]:
    """Whether images without a mask look like label maps; a few of each of a few folders are looked at.

    Args:
        suspects: {name: file}.
    """
    by_folder: dict[str, list[str]] = defaultdict(list)
    for name in suspects:
        by_folder[name.rpartition("/")[0]].append(name)
    folders = list(by_folder)[:: max(1, -(-len(by_folder) // SAMPLE))]
    looked, maps = 0, []
    for folder in folders:
        names = by_folder[folder]
        for name in names[:: max(1, -(-len(names) * len(folders) // SAMPLE))]:
            looked += 1
            if share_of_label_maps([suspects[name]], colours=False)[0]:
                maps.append(name)
    if maps:
        message = (
            f"{len(maps)} of {looked} images without a mask that were looked at look like label maps "
            f"(few values in flat areas), the first {shown(maps[0])}; they are read as photographs"
        )
        repair = "if they are masks, put them into masks/, named as their images, and the photographs into images/"
        return [finding("looks-like-labels", "warning", maps, message, repair)]
    return []
