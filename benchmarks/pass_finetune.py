"""How fast may PASS's last stage train the network on its own labels? `python -m benchmarks.pass_finetune RUN`.

Takes a run of `benchmarks.pass_ablation` that is done up to its labels, fine-tunes from there with each setting
(`--rows`, options joined by commas) and judges on the training photographs alone, by the benchmark's image-level
matching, so that a default may be chosen without a look at what tables report. The labelling rule itself, what the
network is trained on, stands beside. Rows that are done are kept."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from benchmarks.records import data_root, take_over
from maskwright import api
from maskwright.data.folders.folder import Dataset
from maskwright.data.trust.files import write_json

ROWS = (
    "finetune_lr=0.6,finetune_share=1,freeze_norm=false",
    "finetune_lr=0.6,finetune_share=0.3",
    "finetune_lr=0.6,finetune_share=0.05",
    "finetune_lr=2,finetune_share=0.05",
)


def judge(masks: Path, data: Dataset) -> dict[str, float]:
    """mIoU and pixel accuracy by image-level matching, per cent."""
    scores = api.evaluate(masks, data, protocol="luss")
    return {"miou": 100 * scores.miou, "accuracy": 100 * scores.pixel_accuracy}


def one(source: Path, row: str, out: Path) -> dict[str, dict[str, float]]:
    """Fine-tunes with a row's settings; the scores of network and rule on the training photographs."""
    record = json.loads((source / "run.json").read_text())
    name = source.name.split("-")[0]
    data = api.open_folder(data_root() / name)
    for stage in ("pretrain", "attention", "cluster", "label"):
        if (source / stage).exists():
            take_over(source, out, stage)
    settings = {k: record["config"][k] for k in ("preset", "instance", "attention", "p2p", "d2s")}
    model = api.train(
        data_root() / name, "pass", out=out, split="train", classes=len(data.classes or ()), seed=record["seed"],
        settings={**settings, **dict(s.split("=", 1) for s in row.split(","))}, resume=True, report=False,
    )  # fmt: skip
    train = data.split("train")
    model.predict_folder(train, out / "train")
    found = {"network": judge(out / "train", train), "rule": judge(out / "label" / "labels" / "masks", train)}
    write_json(out / "scores.json", found)
    return found


def main() -> None:
    """Runs what is asked for and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path, help="DATA-ROW-SEED of pass_ablation, done up to its labels")
    parser.add_argument("--rows", nargs="+", default=ROWS)
    parser.add_argument("--out", type=Path, default=Path("runs/pass-finetune"))
    args = parser.parse_args()
    print("| fine-tuning | network mIoU | accuracy | rule mIoU | accuracy |\n|---|---|---|---|---|")
    for row in args.rows:
        out = args.out / f"{args.run.name}-{row.replace(',', '-').replace('finetune_', '')}"
        done = out / "scores.json"
        found = json.loads(done.read_text()) if done.exists() else one(args.run, row, out)
        cells = " | ".join(f"{found[k][m]:.2f}" for k in ("network", "rule") for m in ("miou", "accuracy"))
        print(f"| {row} | {cells} |", flush=True)


if __name__ == "__main__":
    main()
