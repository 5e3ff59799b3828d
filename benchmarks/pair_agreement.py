"""Do photographs by day show what their partners by night show? `python -m benchmarks.pair_agreement PAIRS`.

PAIRS is the `pair/pairs.csv` of a run of `dannet`, or any file of lines `night,day`. Of the pixels that the day's mask
gives to a class that stands still, how many have that class in the night's mask at the same place or at one of its
eight neighbours, as DANNet's static loss forgives? Beside it stands the same of partners drawn by lot. Masks are looked
at for this figure alone; it trains nothing and chooses nothing."""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from scipy import ndimage

from benchmarks.class_shares import line
from benchmarks.records import data_root
from maskwright import api
from maskwright.data.folders.folder import Dataset
from maskwright.data.training.pairing import pairs_from_file
from maskwright.methods.adapt.dannet.pairs import static_classes


def agreeing(night: np.ndarray, day: np.ndarray, static: Iterable[int], classes: int) -> np.ndarray:
    """Pixels of each class by day, and those that agree.

    Args:
        night: ids (H, W); those from `classes` on are void.
        day: ids (H, W) likewise.
        static: classes that are looked at.
        classes: C.

    Returns:
        int64 (2, C): pixels that agree, and all that count.
    """
    counts = np.zeros((2, classes), np.int64)
    for c in static:
        asked = (day == c) & (night < classes)
        near = ndimage.binary_dilation(night == c, np.ones((3, 3), bool))
        counts[:, c] = (asked & near).sum(), asked.sum()
    return counts


def row(name: str, pairs: Iterable[tuple[int, int]], night: Dataset, day: Dataset, static: list[int]) -> str:
    """Percent that agree, of all pixels and of those of each class."""
    assert night.classes is not None
    classes = len(night.classes.names)
    counts = np.sum([agreeing(night.mask(i), day.mask(j), static, classes) for i, j in pairs], axis=0)
    hit, asked = counts[:, static]
    return line(name, [100 * hit.sum() / asked.sum(), *(100 * hit / np.maximum(asked, 1))], ".1f")


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pairs", type=Path)
    parser.add_argument("--data", default="camvid")
    parser.add_argument("--night", default="dusk_train", help="split of the photographs by night")
    parser.add_argument("--day", default="val", help="split of those by day")
    parser.add_argument("--static", default="", help="classes that stand still, as `static.classes` of `dannet`")
    options = parser.parse_args()
    data = api.open_folder(data_root() / options.data)
    night, day = data.split(options.night), data.split(options.day)
    assert data.classes is not None
    names = data.classes.names
    static = static_classes(options.static, names)
    pairs = [(i, j) for i, j in enumerate(pairs_from_file(options.pairs, night, day)) if j >= 0]
    lot = np.random.default_rng(0).integers(len(day), size=len(pairs))
    print("\n".join((f"| partners | all | {' | '.join(names[c] for c in static)} |", "|---" * (len(static) + 2) + "|")))
    with night.ledger.purpose("evaluate"), day.ledger.purpose("evaluate"):
        print(row(f"{len(pairs)} of the file", pairs, night, day, static))
        print(row("by lot", [(i, int(j)) for (i, _), j in zip(pairs, lot)], night, day, static))


if __name__ == "__main__":
    main()
