"""Photographs and a table of what is in each of them: masks of these things, without a mask to learn from.

    python examples/tags.py photos --out runs/tags

DATA/tags.csv has lines `name,tags` with `;` between tags, DATA/classes.txt the names of the classes, the background
first. The masks of photographs that have tags show nothing that their tags do not name.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import maskwright as mw


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", help="folder with images/, tags.csv and classes.txt")
    parser.add_argument("--split", help="the images to train on; all by default")
    parser.add_argument("--method", default="cam", help="cam is the fastest; seam is better")
    parser.add_argument("--steps", type=int, help="fewer are faster and worse")
    parser.add_argument("--out", type=Path, default=Path("runs/tags"))
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="an option of the method")
    given = parser.parse_args(arguments)

    data = mw.open_folder(given.data)
    model = mw.train(
        data, given.method, out=given.out, split=given.split, steps=given.steps,
        settings=dict(word.split("=", 1) for word in given.set),
    )  # fmt: skip
    done = model.predict_folder(data, given.out / "predictions", tags=True)
    print(f"{done.written} masks in {done.out}; the tags of {done.tagged} photographs were kept to")
    for name, share in zip(model.classes.names, done.shares):
        print(f"{name:<24} {100 * share:5.1f} % of all pixels")


if __name__ == "__main__":
    main()
