"""Photographs and no label at all: clusters of what looks alike, and what each of them is largest in.

    python examples/no_labels.py photos --clusters 12 --out runs/clusters

Clusters have no names. The pictures in OUT/largest show, for each of them, the photograph that it covers most of.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

import maskwright as mw


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", help="folder of photographs")
    parser.add_argument("--clusters", type=int, default=12)
    parser.add_argument("--method", default="stego")
    parser.add_argument("--steps", type=int, help="fewer are faster and worse")
    parser.add_argument("--out", type=Path, default=Path("runs/no_labels"))
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="an option of the method")
    given = parser.parse_args(arguments)

    data = mw.open_folder(given.data)
    model = mw.train(
        data, given.method, out=given.out, classes=given.clusters, steps=given.steps,
        settings=dict(word.split("=", 1) for word in given.set),
    )  # fmt: skip

    best = np.zeros(len(model.classes))
    largest = given.out / "largest"
    largest.mkdir(exist_ok=True)
    for i, name in enumerate(data.names):
        image = data.image(i)
        result = model.predict(image)
        for cluster in np.flatnonzero(result.shares() > best):
            best[cluster] = result.shares()[cluster]
            Image.fromarray(result.overlay(image)).save(largest / f"{cluster:02d}.jpg")
            print(f"{model.classes.names[cluster]}: {100 * best[cluster]:.0f} % of {name}")


if __name__ == "__main__":
    main()
