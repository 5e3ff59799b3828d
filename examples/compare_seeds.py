"""Two methods over several seeds: means, spreads and one page, so that luck is not taken for a result.

    python examples/compare_seeds.py camvid --methods supervised unimatch --labeled labeled_1_30 --test test

What is interrupted goes on where it stopped when the command is repeated.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import maskwright as mw


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", help="folder with images/ and masks/")
    parser.add_argument("--methods", nargs="+", default=["supervised", "unimatch"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--split", help="the images to train on; all by default")
    parser.add_argument("--labeled", help="the images whose masks may be read")
    parser.add_argument("--test", required=True, help="split with masks to judge by")
    parser.add_argument("--protocol", default="direct", help="hungarian for methods that make clusters")
    parser.add_argument("--steps", type=int, help="fewer are faster and worse")
    parser.add_argument("--out", type=Path, default=Path("runs/compare_seeds"))
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="an option of all methods")
    given = parser.parse_args(arguments)

    for method in given.methods:
        made = mw.train_seeds(
            given.data, method, seeds=given.seeds, out=given.out / method, resume=True, split=given.split,
            labeled=given.labeled, steps=given.steps, settings=dict(word.split("=", 1) for word in given.set),
        )  # fmt: skip
        for run in made.runs:
            judged = mw.open_folder(given.data).split(given.test)
            mw.load(run.path).predict_folder(judged, run.path / "predictions")
            scores = mw.evaluate(run.path / "predictions", given.data, given.protocol, split=given.test)
            scores.save(run.path / "scores.json")  # where `compare` looks for it
    print(mw.compare(given.out, out=given.out / "compare.html"))


if __name__ == "__main__":
    main()
