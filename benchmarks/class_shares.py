"""Which classes do rows of the lift table lose? `python -m benchmarks.class_shares --labeled labeled_1_8`.

For each row and seed whose masks are in the runs folder: how many pixels of a split it gives to each class, as a
multiple of those that the class has, and how many of the class's pixels it finds (recall). 0.05 means that a class is
next to never predicted. It trains nothing and chooses nothing."""

from __future__ import annotations

import argparse
import fnmatch
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from benchmarks.records import data_root
from maskwright import api
from maskwright.data.masking.masks import read_mask
from maskwright.evaluate.confusion import ConfusionMatrix


def line(name: str, values: Iterable[float], form: str = ".2f") -> str:
    """A row of the table."""
    return f"| {name} | " + " | ".join(format(v, form) for v in values) + " |"


def main() -> None:
    """Prints the two tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", default="camvid")
    parser.add_argument("--split", default="test")
    parser.add_argument("--labeled", default="labeled_1_30")
    parser.add_argument("--only", default="*", help="rows, as patterns joined by commas")
    parser.add_argument("--runs", type=Path, default=Path("runs/lift"))
    options = parser.parse_args()
    images = api.open_folder(data_root() / options.data).split(options.split)
    with images.ledger.purpose("evaluate"):
        truth = {name: images.mask(i) for i, name in enumerate(images.names)}
    names = images.classes.names
    shares, recalls = [], []
    for masks in sorted((options.runs / options.labeled).glob(f"*/masks/{options.split}")):
        row = masks.parents[1].name
        if not any(fnmatch.fnmatch(row, f"{p}-*") for p in options.only.split(",")):
            continue
        matrix = ConfusionMatrix(len(names), len(names))
        for name, ids in truth.items():
            matrix.update(read_mask(masks / f"{name}.png"), ids)
        there = matrix.counts.sum(0)
        if not shares:
            shares.append(line("percent of the pixels", 100 * there / there.sum()))
        shares.append(line(row, matrix.counts.sum(1) / there))
        recalls.append(line(row, np.diag(matrix.counts) / there))
    rule = "|---" * (len(names) + 1) + "|"
    for title, rows in (("predicted / there", shares), ("recall", recalls)):
        print("\n".join([f"| {title} | {' | '.join(names)} |", rule, *rows, ""]))


if __name__ == "__main__":
    main()
