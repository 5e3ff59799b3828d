"""Masks of one kind of photographs, none of another: does adapting to the other kind help?

    python examples/two_domains.py night --source day --test test --out runs/night

Trains once on the labelled photographs alone (`source_only`) and once with those without labels too (`dacs`), judges
both by the masks of a split that neither learned from, and writes both to one page.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import maskwright as mw


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", help="folder of the photographs to adapt to")
    parser.add_argument("--source", required=True, help="folder with masks, or FOLDER@SPLIT")
    parser.add_argument("--split", help="of the photographs to adapt to; all by default")
    parser.add_argument("--test", required=True, help="split with masks to judge by")
    parser.add_argument("--steps", type=int, help="fewer are faster and worse")
    parser.add_argument("--out", type=Path, default=Path("runs/two_domains"))
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="an option of both methods")
    given = parser.parse_args(arguments)

    for method in ("source_only", "dacs"):
        run = given.out / method
        model = mw.train(
            given.data, method, out=run, source=given.source, split=given.split, steps=given.steps,
            settings=dict(word.split("=", 1) for word in given.set),
        )  # fmt: skip
        judged = mw.open_folder(given.data).split(given.test)
        model.predict_folder(judged, run / "predictions")
        scores = mw.evaluate(run / "predictions", given.data, split=given.test)
        scores.save(run / "scores.json")  # where `compare` looks for it
    print(mw.compare(given.out, out=given.out / "compare.html"))


if __name__ == "__main__":
    main()
