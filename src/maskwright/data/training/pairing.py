"""Pairs of images of two data sets, say of one place by day and by night: for each image of the first, which of the
second.

What comes back is int64 (N,), for N images of the first data set: places in the second, -1 where an image has no
partner. Two images may have the same partner. `paired` lists the places that have one.
"""

from __future__ import annotations

import csv
import os
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from torch import Tensor

from maskwright.data.folders.folder import Dataset
from maskwright.data.folders.scan import nearest, same_form
from maskwright.data.folders.tables import NameIndex, read_lines
from maskwright.data.pictures.images import IMAGE_SUFFIXES
from maskwright.errors import MaskwrightError
from maskwright.ops.clustering.kmeans import assign

NO_PARTNER = -1


def pairs_from_file(path: str | os.PathLike[str], first: Dataset, second: Dataset) -> np.ndarray:
    """Pairs that a CSV file lists: a header line of two cells, say `night,day`, then one pair a line, an image of the
    first data set and one of the second.

    Names may carry suffixes, as in split files. A line whose images are known but were left out by a split, or could
    not be read, is passed over.

    Args:
        path: the file.
        first: N images.
        second: where the partners are.

    Returns:
        int64 (N,).

    Raises:
        MaskwrightError: the file cannot be read or has no header, a line has fewer than two cells or names what is no
            image, an image of the first has two partners, or no pair is left.
    """
    path = Path(path)
    expected = "a header line, then lines of two image names with a comma between"
    try:
        cells = [[c.strip() for c in row] for row in csv.reader(read_lines(path), skipinitialspace=True)]
    except csv.Error as error:
        raise MaskwrightError(f"{path} is not a table: {error}", expected, "save it again as CSV") from error
    rows = [(number, row) for number, row in enumerate(cells, 1) if any(row)]
    known = [_finder(data) for data in (first, second)]
    if any(index.find(cell) for index, cell in zip(known, rows[0][1] if rows else [])):
        raise MaskwrightError(
            f"{path} begins with an image, {','.join(rows[0][1])!r}",
            expected,
            "add a first line, for example night,day",
        )
    partner: dict[str, str] = {}
    for number, row in rows[1:]:
        if len(row) < 2 or not all(row[:2]):
            raise MaskwrightError(f"line {number} of {path} is {','.join(row)!r}", expected, "fill it in or delete it")
        names = [index.find(cell) for index, cell in zip(known, row)]
        for name, cell, data in zip(names, row, (first, second)):
            if name is None:
                close = nearest(cell, data.known_names)
                raise MaskwrightError(
                    f"line {number} of {path} names {cell!r}, which is no image of {data.root}",
                    expected,
                    f"the nearest is {close!r}" if close else "",
                )
        a, b = str(names[0]), str(names[1])
        if partner.setdefault(a, b) != b:
            raise MaskwrightError(
                f"line {number} of {path} gives {a!r} a second partner, {b!r} beside {partner[a]!r}",
                "one partner an image",
                "delete one of the two lines",
            )
    found = [second.index(partner[n]) if partner.get(n, "") in second else NO_PARTNER for n in first.names]
    return _some(found, first, second, f"no line of {path} pairs")


def pairs_by_name(first: Dataset, second: Dataset, key: Callable[[str], str] = str) -> np.ndarray:
    """Pairs of images whose names are equal.

    Args:
        first: N images.
        second: where the partners are.
        key: what of a name counts, for example a function that drops a suffix like "_night".

    Returns:
        int64 (N,).

    Raises:
        MaskwrightError: two images of the second data set have one key, or no image has a partner.
    """
    place: dict[str, int] = {}
    for i, name in enumerate(second.names):
        k = place.setdefault(same_form(key(name)), i)
        if k != i:
            raise MaskwrightError(
                f"{second.names[k]!r} and {name!r} of {second.root} count as one name",
                "one image a name",
                "pair them by a file",
            )
    found = [place.get(same_form(key(name)), NO_PARTNER) for name in first.names]
    return _some(found, first, second, "no equal names pair")


def pairs_by_features(first: Tensor, second: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Pairs of each image with the one whose feature vector is nearest by cosine.

    Args:
        first: (N, D), one row an image; of any length, and not all zero.
        second: (M, D), on the same device.

    Returns:
        int64 (N,), ties to the lower place, and float32 (N,), the cosine in [-1, 1].

    Raises:
        ValueError: shapes do not fit, there is no row in `second`, or values are not finite.
    """
    index, cosine = assign(first, second, "cosine")
    return index.cpu().numpy(), cosine.float().cpu().numpy()


def paired(pairs: np.ndarray | Sequence[int]) -> np.ndarray:
    """Places of the first data set's images that have a partner, int64 (P,), ascending."""
    return np.flatnonzero(np.asarray(pairs) != NO_PARTNER)


def _finder(data: Dataset) -> NameIndex:
    """Finds images of the whole folder, also those that a split left out or that cannot be read."""
    return NameIndex([*data.known_names, *(name for name, _ in data.skipped)], IMAGE_SUFFIXES)


def _some(found: list[int], first: Dataset, second: Dataset, none: str) -> np.ndarray:
    pairs = np.asarray(found, np.int64)
    if not len(paired(pairs)):
        raise MaskwrightError(
            f"{none} an image of {first.root} with one of {second.root}",
            "at least one pair",
            "compare the names: " + ", ".join(repr(n) for n in (*first.names[:1], *second.names[:1])),
        )
    return pairs
