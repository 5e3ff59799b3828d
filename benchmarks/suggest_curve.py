"""Does labelling what `maskwright suggest` asks for beat labelling at random? `python -m benchmarks.suggest_curve`.

A simulated annotator: training starts from the masks of a list (`--labeled`), the model suggests `--count` of the
other photographs of `train`, their masks are revealed, and a new network is trained from the start on all masks so
far, for `--rounds` rounds. All strategies share round 0 of a seed and differ by what they ask for alone. The last
iterate is judged on `val` and `test`, which no strategy sees. Rounds that are done are skipped, so the script can be
stopped and started at will. It writes RUNS/curve.csv and RUNS/curve.png and prints the table: mIoU against the number
of labelled photographs, with the area under the curve as one number a strategy.
"""

from __future__ import annotations

import argparse
import csv
import io
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.plot import deviation, draw, save
from benchmarks.records import add_training_options, begun, data_root, keep, scores_in, spread, weights_root
from maskwright import api
from maskwright.data.trust.files import write_json, write_text

STRATEGIES = ("random", "entropy", "margin", "coreset", "mixed", "disagreement")
Curve = dict[int, list[float]]
"""Labelled photographs -> mIoU of each seed."""


def place(runs: Path, strategy: str, seed: int, number: int) -> Path:
    """The folder of a round; round 0 belongs to all strategies of its seed."""
    return runs / (f"start-{seed}" if number == 0 else f"{strategy}-{seed}-{number}")


def play(strategy: str, seed: int, number: int, options: argparse.Namespace) -> None:
    """One round: reveal what the round before asked for, train, judge."""
    folder, data = place(options.runs, strategy, seed, number), data_root() / options.data
    names = revealed(strategy, seed, number, options)
    write_text(folder / "labeled.txt", "".join(f"{n}\n" for n in names))
    settings = {"crop": str(options.crop), "batch": str(options.batch), **dict(s.split("=", 1) for s in options.set)}
    model = api.train(
        data, options.method, out=folder / "run", split="train", labeled=folder / "labeled.txt", seed=seed,
        backbone=options.backbone, weights=str(weights_root() / f"{options.backbone}.safetensors"),
        steps=options.steps, settings=settings, resume=True, report=False, device=options.device,
    )  # fmt: skip
    scores = {}
    for split in ("val", "test"):
        masks = folder / "masks" / split
        model.predict_folder(api.open_folder(data).split(split), masks, refine="none")
        scores[split] = api.evaluate(masks, data, protocol="direct", split=split).to_json()
    write_json(
        folder / "scores.json",
        {
            "strategy": strategy if number else "start", "seed": seed, "round": number, "labeled": len(names),
            "method": options.method, "steps": options.steps, "crop": options.crop, "batch": options.batch,
            "settings": settings, **scores,
        },
    )  # fmt: skip


def revealed(strategy: str, seed: int, number: int, options: argparse.Namespace) -> list[str]:
    """The photographs whose masks a round may read: the list's, and all that was asked for since."""
    data = data_root() / options.data
    if number == 0:
        return api.open_folder(data).list_names(options.labeled)[0]
    before = place(options.runs, strategy, seed, number - 1)
    known = (before / "labeled.txt").read_text().split("\n")[:-1]
    asked = before / f"asked-{strategy}"  # the start's model is asked by every strategy
    if not (asked / "names.txt").exists():
        api.suggest(
            before / "run", data, options.count, by=strategy, split="train", labeled=before / "labeled.txt", out=asked,
            seed=1000 * seed + number, device=options.device, regions=options.regions,
        )  # fmt: skip
    return known + (asked / "names.txt").read_text().split("\n")[:-1]


# ---------------------------------------------------------------------- the curve


def gather(runs: Path, split: str) -> dict[str, Curve]:
    """mIoU in per cent by strategy and number of labelled photographs; every curve begins at the start of its seeds."""
    found = scores_in(runs)
    curves: dict[str, Curve] = defaultdict(lambda: defaultdict(list))
    seeds: dict[str, set[int]] = defaultdict(set)
    for s in found:
        if s["round"]:
            curves[s["strategy"]][s["labeled"]].append(100 * s[split]["miou"])
            seeds[s["strategy"]].add(s["seed"])
    for s in found:
        if not s["round"]:
            for strategy in list(curves):
                if s["seed"] in seeds[strategy]:
                    curves[strategy][s["labeled"]].append(100 * s[split]["miou"])
    return {k: dict(sorted(curves[k].items())) for k in STRATEGIES if k in curves}


def area(curve: Curve) -> float:
    """Mean height of the curve of means: its area over its length in photographs."""
    x, y = np.array(list(curve)), np.array([np.mean(v) for v in curve.values()])
    return float(np.trapezoid(y, x) / (x[-1] - x[0])) if len(x) > 1 else float(y[0])


def table(curves: Mapping[str, Curve]) -> str:
    """Markdown: a row a strategy, a column a number of labelled photographs."""
    counts = sorted({n for c in curves.values() for n in c})
    lines = [f"| strategy | {' | '.join(map(str, counts))} | mean height |", "|---" * (len(counts) + 2) + "|"]
    for name, curve in curves.items():
        cells = [spread(curve[n]) if n in curve else "-" for n in counts]
        lines.append(f"| {name} | {' | '.join(cells)} | {area(curve):.2f} |")
    return "\n".join(lines)


def as_csv(curves: Mapping[str, Mapping[str, Curve]]) -> str:
    """strategy, split, labeled, seeds, mean and sample standard deviation of mIoU, per cent."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("strategy", "split", "labeled", "seeds", "miou", "deviation"))
    for split, of_split in curves.items():
        for name, curve in of_split.items():
            for n, values in curve.items():
                writer.writerow((name, split, n, len(values), f"{np.mean(values):.3f}", f"{deviation(values):.3f}"))
    return text.getvalue()


def publish(runs: Path, title: str) -> str:
    """Writes curve.csv and curve.png of what is there, and gives the table."""
    curves: dict[str, Any] = {split: gather(runs, split) for split in ("test", "val")}
    if not curves["test"]:
        return "no round after the first is done"
    write_text(runs / "curve.csv", as_csv(curves))
    save(draw(curves["test"], title, "labelled photographs"), runs / "curve.png")
    return table(curves["test"])


def main() -> None:
    """Plays the rounds that are asked for and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--by", default="random,entropy,margin,coreset,mixed", help="strategies, joined by commas")
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--rounds", type=int, default=4, help="rounds after the start")
    parser.add_argument("--count", type=int, default=12, help="photographs a round")
    parser.add_argument("--regions", type=int, default=3, help="regions on the picture sheets")
    parser.add_argument("--data", default="camvid")
    parser.add_argument("--labeled", default="labeled_1_30")
    parser.add_argument("--method", default="supervised")
    parser.add_argument("--set", action="append", default=[], help="an option of the method, key=value")
    parser.add_argument("--steps", type=int, default=400)
    add_training_options(parser, "runs/suggest")
    options = parser.parse_args()
    strategies = options.by.split(",")
    if odd := [s for s in strategies if s not in STRATEGIES]:
        parser.error(f"unknown strategy {odd[0]!r}; one of {', '.join(STRATEGIES)}")
    title = f"test mIoU, {options.method}, {options.steps} steps, {options.count} photographs a round"
    progress = begun(options)
    for seed in (int(s) for s in options.seeds.split(",")):
        for number in range(options.rounds + 1):
            for strategy in strategies:
                folder = place(options.runs, strategy, seed, number)
                if not (folder / "scores.json").exists():
                    progress.say(f"== {strategy}, seed {seed}, round {number}")
                    play(strategy, seed, number, options)
                if options.keep:
                    keep(folder, options.keep / f"suggest-{folder.name}")
        progress.say(publish(options.runs, title))
    if options.keep:
        for name in ("curve.csv", "curve.png"):
            if (options.runs / name).exists():
                (options.keep / f"suggest-{name}").write_bytes((options.runs / name).read_bytes())
    print(publish(options.runs, title))


if __name__ == "__main__":
    main()
