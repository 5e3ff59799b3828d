"""The ablation of PASS on real photographs: L_e; + P2P; + D2S; both; then without and with pixel attention.

    python -m benchmarks.pass_ablation --data msrc_v2 camvid --seeds 0 1 2 --out runs/pass

Every run has a folder of its own; runs that are finished are skipped and interrupted ones resumed, so that the script
can be stopped and started at will, and any subset of rows can be asked for. Each is judged fully unsupervised
(image-level matching on the test split, and pixel-level Hungarian matching beside it, because image-level matching has
nothing to go by where every photograph shows the same classes) and by distance matching on the pretrained encoder
(bank: the train split's masks, which the run itself never read). `moved` is how far pretraining took the backbone's
weights, in per cent of their length, where it began at a package's. Photographs are looked for in MASKWRIGHT_DATA, or
in the data folder beside the project. The table is printed and written as `table.md` and `table.json` beside the runs.
"""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from benchmarks.records import data_root, keep, spread, take_over
from maskwright import api
from maskwright.data.folders.folder import Dataset
from maskwright.data.trust.files import write_json, write_text
from maskwright.evaluate.scores import Scores
from maskwright.methods.unsupervised.pass_.options import PassConfig
from maskwright.models.backbones.build import build_backbone
from maskwright.models.parts.encoder import BackboneEncoder
from maskwright.models.preprocess import Preprocess
from maskwright.recipes.probing.luss_probe import SHORT_SIDE, distance_scores

ROWS: dict[str, dict[str, Any]] = {
    "le": {"p2p": False, "d2s": "", "attention": False},
    "p2p": {"p2p": True, "d2s": "", "attention": False},
    "d2s": {"p2p": False, "d2s": "3", "attention": False},
    "both": {"p2p": True, "d2s": "3", "attention": False},
    "attention": {"p2p": True, "d2s": "3", "attention": True},
}
TITLES = {
    "le": "L_e",
    "p2p": "L_e + P2P",
    "d2s": "L_e + D2S",
    "both": "L_e + both",
    "attention": "L_e + both + attention",
}
SAME_PRETRAINING = {"attention": "both"}
"""Rows that take over another's pretraining where it is done."""


def one(row: str, data: str, seed: int, args: argparse.Namespace) -> dict[str, float]:
    """Trains, predicts and judges one cell, or reads what was found before."""
    folder = args.out / f"{data}-{row}-{seed}"
    found = folder / "scores.json"
    if found.exists():
        return json.loads(found.read_text()) | one_to_one(folder, data) | moved(folder)
    if row in SAME_PRETRAINING:
        begins = args.out / f"{data}-{SAME_PRETRAINING[row]}-{seed}"
        if (begins / "pretrain" / "stage.json").exists():
            take_over(begins, folder, "pretrain")
    source = data_root() / data
    classes = len(api.open_folder(source).classes or ())
    settings = {"preset": args.preset, "instance": args.instance, **ROWS[row]}
    settings |= dict(s.split("=", 1) for s in args.set)
    model = api.train(
        source, "pass", out=folder, split="train", classes=classes, backbone=args.backbone, weights=args.weights,
        steps=args.steps, seed=seed, device=args.device, settings=settings, resume=True,
    )  # fmt: skip
    test = api.open_folder(source).split("test")
    model.predict_folder(test, folder / "predictions")
    luss = api.evaluate(folder / "predictions", test, protocol="luss")
    record = json.loads((folder / "run.json").read_text())
    side = int(record["config"]["short_side"]) if args.preset == "small" else SHORT_SIDE
    learned = str(folder / "pretrain" / "backbone.safetensors")
    bank = api.open_folder(source).split("train")
    distance = by_distance(bank, test, record["backbone"]["architecture"], learned, side, model.device)
    read = record["labels_read"]
    scores = {
        "unsupervised": 100 * luss.miou, "accuracy": 100 * luss.pixel_accuracy, "distance": 100 * distance.miou,
        "masks_read": sum(sum(kinds.values()) for kinds in read.values()),
    }  # fmt: skip
    write_json(folder / "luss.json", luss.to_json())
    write_json(folder / "distance.json", distance.to_json())
    write_json(found, scores)
    return scores | one_to_one(folder, data) | moved(folder)


def moved(folder: Path) -> dict[str, float]:
    """How far pretraining took the backbone's weights, per cent of their length; not a number from random ones."""
    backbone = json.loads((folder / "run.json").read_text())["backbone"]
    if not backbone["source"].startswith("package"):
        return {"moved": math.nan}
    began = build_backbone(backbone["architecture"], "package").model
    ended = load_file(folder / "pretrain" / "backbone.safetensors")
    pairs = [(p.detach(), ended[name]) for name, p in began.named_parameters()]
    way, length = (math.sqrt(sum(float(v.square().sum()) for v in vs))
                   for vs in ((b - a for a, b in pairs), (a for a, _ in pairs)))  # fmt: skip
    return {"moved": 100 * way / length}


def one_to_one(folder: Path, data: str) -> dict[str, float]:
    """The Hungarian protocol on a run's predictions, made once."""
    found = folder / "hungarian.json"
    if not found.exists():
        test = api.open_folder(data_root() / data).split("test")
        write_json(found, api.evaluate(folder / "predictions", test, protocol="hungarian").to_json())
    scores = json.loads(found.read_text())
    return {"hungarian": 100 * scores["miou"], "hungarian_accuracy": 100 * scores["pixel_accuracy"]}


def by_distance(
    bank: Dataset, test: Dataset, architecture: str, weights: str, side: int, device: torch.device | str = "cpu"
) -> Scores:
    """Distance matching of a backbone's deepest stage: the masks of `bank` name the pixels of `test`."""
    backbone = build_backbone(architecture, weights).to(device)
    encoder = BackboneEncoder(backbone, layers=backbone.stage_layers[-1]).eval()
    preprocess = Preprocess.for_backbone(backbone.provenance, short_side=side, multiple_of=encoder.multiple_of)
    with torch.inference_mode():
        return distance_scores(encoder, preprocess, bank, test, device=device)


def main() -> None:
    """Runs what is asked for and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else "")
    parser.add_argument("--data", nargs="+", default=["msrc_v2", "camvid"])
    parser.add_argument("--rows", nargs="+", default=list(ROWS), choices=list(ROWS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--out", type=Path, default=Path("runs/pass"))
    parser.add_argument("--preset", default="small")
    parser.add_argument("--instance", default="swav", choices=("swav", "simsiam", "moco"))
    parser.add_argument("--backbone", default="auto")
    parser.add_argument("--weights", default=None, help="random for the paper's start from nothing")
    parser.add_argument("--steps", type=int, default=None, help="of pretraining; the other stages keep their share")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--keep", type=Path, help="copies the runs' records there")
    parser.add_argument("--set", nargs="*", default=[], help="further options, key=value, for all rows")
    parser.add_argument("--start", metavar="NAME", help="only judges the weights of a package by distance matching")
    args = parser.parse_args()
    if args.start:
        for data in args.data:
            side = PassConfig(preset=args.preset).labels.short_side
            folder = api.open_folder(data_root() / data)
            found = by_distance(folder.split("train"), folder.split("test"), args.start, "package", side)
            print(f"{data}, {args.start} at {side} pixels: distance matching mIoU {100 * found.miou:.2f}")
        return
    lines, cells = [], []
    for data in args.data:
        lines += [f"## {data}", "", "| | fully unsupervised mIoU | Hungarian | distance matching | moved | seeds |"]
        lines.append("|---|---|---|---|---|---|")
        for row in args.rows:
            found = [one(row, data, seed, args) for seed in args.seeds]
            for seed in args.seeds if args.keep else ():
                keep(args.out / f"{data}-{row}-{seed}", args.keep / f"pass-{data}-{row}-{seed}")
            figures = {key: [f[key] for f in found] for key in ("unsupervised", "hungarian", "distance", "moved")}
            lines.append(f"| {TITLES[row]} | {' | '.join(spread(v) for v in figures.values())} | {len(found)} |")
            cells.append({"data": data, "row": row, "seeds": args.seeds, **figures})
            args.out.mkdir(parents=True, exist_ok=True)
            write_text(args.out / "table.md", "\n".join(lines) + "\n")
            write_json(args.out / "table.json", cells)
        lines.append("")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
