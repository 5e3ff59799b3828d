"""How fast may PASS's pretraining go on from weights that are trained already? `python -m benchmarks.pass_rate`.

Pretrains with several shares of the rate for the backbone (`--shares`; 0 stands for the weights that it starts from),
the heads always at the whole rate, and judges on the
training photographs alone, so that a default may be chosen by it without a look at what tables report: distance
matching, where the masks of every second photograph name the pixels of the others, and the labelling rule (k-means
of the photographs, each pixel its nearest centroid) by the benchmark's image-level matching. Runs that are done are
kept."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from benchmarks.pass_ablation import by_distance
from benchmarks.records import data_root
from maskwright import api
from maskwright.data.folders.folder import Dataset
from maskwright.data.trust.files import write_json


def judge(run: Path, share: float, data: Dataset, side: int) -> dict[str, float]:
    """Distance matching between the halves of `data`, and the labelling rule on all of it, per cent."""
    record = json.loads((run / "run.json").read_text())
    weights = None if share == 0 else str(run / "pretrain" / "backbone.safetensors")
    bank, asked = (data.subset(range(start, len(data), 2)) for start in (0, 1))
    distance = by_distance(bank, asked, record["backbone"]["architecture"], weights or "package", side)
    rule = api.evaluate(run / "label" / "labels" / "masks", data, protocol="luss")
    return {"distance": 100 * distance.miou, "rule": 100 * rule.miou, "rule_accuracy": 100 * rule.pixel_accuracy}


def main() -> None:
    """Runs what is asked for and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", default="msrc_v2")
    parser.add_argument("--shares", nargs="+", type=float, default=[0, 0.02, 0.1, 1.0])
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("runs/pass-rate"))
    parser.add_argument("--set", nargs="*", default=[], help="further options, key=value")
    args = parser.parse_args()
    data = api.open_folder(data_root() / args.data).split("train")
    print("| share | distance matching between halves | rule mIoU | rule accuracy |\n|---|---|---|---|")
    for share in args.shares:
        run = args.out / f"{args.data}-{share:g}-{args.seed}"
        found = run / "scores.json"
        if not found.exists():
            settings = {
                "preset": "small", "backbone_share": str(share), "attention": "false", "finetune_epochs": "0",
                **dict(s.split("=", 1) for s in args.set),
            }  # fmt: skip
            api.train(
                data_root() / args.data, "pass", out=run, split="train", classes=len(data.classes or ()),
                steps=args.steps if share else 1, seed=args.seed, settings=settings, resume=True, report=False,
            )  # fmt: skip
            side = int(json.loads((run / "run.json").read_text())["config"]["short_side"])
            write_json(found, judge(run, share, data, side))
        s = json.loads(found.read_text())
        print(f"| {share:g} | {s['distance']:.2f} | {s['rule']:.2f} | {s['rule_accuracy']:.2f} |", flush=True)


if __name__ == "__main__":
    main()
