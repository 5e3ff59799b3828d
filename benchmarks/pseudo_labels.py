"""How right are the pseudo-labels that ST++ trained on? `python -m benchmarks.pseudo_labels --beside supervised-0`.

For each of its two labelled halves (`label`: the stable photographs, by the teacher; `relabel`: the rest, by the first
student): mIoU of the pseudo-labels against the hidden masks, and beside it what another row's kept network says of the
same photographs. Pixels that a threshold left out count for neither. It trains nothing and chooses nothing."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

import numpy as np

from benchmarks.records import data_root
from maskwright import api
from maskwright.data.folders.folder import Dataset
from maskwright.evaluate.confusion import ConfusionMatrix
from maskwright.evaluate.metrics import miou


def against_truth(images: Dataset, labels: dict[str, np.ndarray], say: Callable[[int], np.ndarray]) -> float:
    """mIoU in percent of what `say` gives for an image's number, at the pixels that the pseudo-labels label."""
    count = len(images.classes.names)
    matrix = ConfusionMatrix(count, count)
    with images.ledger.purpose("evaluate"):
        for i, name in enumerate(images.names):
            if name in labels:
                left_out = labels[name] >= count
                matrix.update(np.where(left_out, 0, say(i)), np.where(left_out, 255, images.mask(i)))
    return 100 * miou(matrix.counts)


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", default="camvid")
    parser.add_argument("--labeled", default="labeled_1_30")
    parser.add_argument("--row", default="st_plus_plus-0", help="folder of the run")
    parser.add_argument("--beside", default="supervised-0", help="folder of the run that it is compared with")
    parser.add_argument("--runs", type=Path, default=Path("runs/lift"))
    options = parser.parse_args()
    images = api.open_folder(data_root() / options.data).split("train")
    runs = options.runs / options.labeled
    other = api.load(runs / options.beside / "run")
    print(f"| labels of | photographs | {options.row} | {options.beside} |\n|---|---|---|---|")
    for stage in ("label", "relabel"):
        store = api.open_folder(runs / options.row / "run" / stage / "labels")
        labels = {name: store.mask(i) for i, name in enumerate(store.names)}
        own = against_truth(images, labels, lambda i, labels=labels: labels[images.names[i]])
        beside = against_truth(images, labels, lambda i: other.predict(images.image(i), refine="none").mask)
        print(f"| {stage} | {len(labels)} | {own:.1f} | {beside:.1f} |", flush=True)


if __name__ == "__main__":
    main()
