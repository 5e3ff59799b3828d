"""Photographs, a few of which have masks: masks for all of them, and how good these are.

    python examples/few_masks.py camvid --labeled labeled_1_30 --test test --out runs/few

The method is chosen by what labels there are. `--labeled` names a list in DATA/splits, or a file with one name a line;
without it every mask in DATA/masks is learned from. `--test` names a split with masks that is judged by and not learned
from.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import maskwright as mw


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", help="folder with images/ and masks/")
    parser.add_argument("--labeled", help="the images whose masks may be read")
    parser.add_argument("--split", help="the images to train on; all by default")
    parser.add_argument("--test", help="split to judge by")
    parser.add_argument("--method", default="auto")
    parser.add_argument("--steps", type=int, help="fewer are faster and worse")
    parser.add_argument("--out", type=Path, default=Path("runs/few_masks"))
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="an option of the method")
    given = parser.parse_args(arguments)

    settings = dict(word.split("=", 1) for word in given.set)
    model = mw.train(
        given.data, given.method, out=given.out, split=given.split, labeled=given.labeled, steps=given.steps,
        settings=settings,
    )  # fmt: skip
    data = mw.open_folder(given.data)
    chosen = data.split(given.test) if given.test else data
    done = model.predict_folder(chosen, given.out / "predictions", overlays=True)
    print(f"{done.written} masks in {done.out}, {len(done.skipped)} images could not be read")
    if given.test:
        scores = mw.evaluate(done.out, data, split=given.test)
        print(scores.table())


if __name__ == "__main__":
    main()
