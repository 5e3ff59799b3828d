"""How much rounds on the target lift a network that learned salient objects from composites alone:
`python -m benchmarks.saliency`.

Composites are objects of MSRC v2's training photographs, pasted onto windows of these that show none; the target is
ECSSD's training photographs, of which no mask is read. Rows train one network for the same number of optimiser steps:
`uda_sod` with its rounds, `uda_sod-relative` with rounds that judge a photograph's variance by its object's size,
`composites` the same training that believes no photograph, `source_only` the floor of all adaptation on the same
composites, with batch-norm statistics of the target. All are judged on ECSSD's test photographs by the protocol
`saliency`, the last iterate; nothing is chosen by them. Entries that are done are skipped; `--keep FOLDER` copies the
runs' records."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from benchmarks.records import add_options, data_root, of_steps, run_rows, scores_in, spread, take_over, weights_root
from maskwright import api
from maskwright.data.trust.files import write_json

OBJECTS = "cow,horse,sheep,aeroplane,face,car,bicycle,flower,sign,bird,book,chair,cat,dog,body,boat"
"""Classes of MSRC v2 that are things."""
ALONE = {"pseudo.portion": "0", "pseudo.composites": "1", "pseudo.decay": "1"}
ROWS = {
    "uda_sod": ("uda_sod", {}),
    "uda_sod-relative": ("uda_sod", {"pseudo.relative": "true"}),
    "composites": ("uda_sod", ALONE),
    "source_only": ("source_only", {}),
}
"""Row -> method and its settings beyond those of all."""
FIRST = "uda_sod"
"""The row whose composites the others take over."""
STEPS = 1200
"""Of the published table."""
FIGURES = ("f_measure", "iou", "mae")


def run(name: str, seed: int, folder: Path, options: argparse.Namespace) -> None:
    """Trains, predicts and judges one row, what is done left as it is."""
    method, settings = ROWS[name]
    target, made = data_root() / options.data, folder.parent / f"{FIRST}-{seed}" / "run"
    side = str(options.crop)
    budget = {"crops.size": side, "crops.batch": str(options.batch), "crops.long_side": side}
    source = f"{data_root() / options.source}@train"
    if method == "uda_sod":
        budget |= {"objects.classes": OBJECTS, "composites.count": str(options.count), "rounds": str(options.rounds)}
        if name != FIRST:
            take_over(made, folder / "run", "compose")
    else:
        budget |= {"crops.scale_min": str(224 / 352), "crops.scale_max": "1", "norms.photographs": "all"}
        source = str(made / "compose" / "composites")
    model = api.train(
        target, method, out=folder / "run", split="train", seed=seed, source=source, backbone=options.backbone,
        weights=str(weights_root() / f"{options.backbone}.safetensors"), steps=options.steps,
        settings={**budget, **settings}, resume=True, report=False, device=options.device,
    )  # fmt: skip
    model.predict_folder(api.open_folder(target).split("test"), folder / "masks", refine="none")
    test = api.evaluate(folder / "masks", target, protocol="saliency", split="test").to_json()
    record = json.loads((folder / "run" / "run.json").read_text())
    write_json(
        folder / "scores.json",
        {
            "entry": name, "seed": seed, "steps": options.steps, "crop": options.crop, "batch": options.batch,
            "seconds": sum(s["seconds"] for s in record["stages"]), "labels_read": record["labels_read"], "test": test,
        },
    )  # fmt: skip


def table(runs: Path) -> str:
    """Means and spreads over seeds of the figures on the test photographs."""
    lines = ["| row | F | IoU | MAE | seeds | seconds |", "|---|---|---|---|---|---|"]
    found = scores_in(runs)
    for name in ROWS:
        if rows := [scores for scores in found if scores["entry"] == name]:
            cells = [spread([100 * (s["test"] | s["test"].get("extra", {}))[k] for s in rows]) for k in FIGURES]
            seconds = sum(s["seconds"] for s in rows) / len(rows)
            lines.append(f"| {name} | {' | '.join(cells)} | {len(rows)} | {seconds:.0f} |")
    return "\n".join(lines)


def main() -> None:
    """Runs what is asked for and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", default="ecssd_part", help="the target")
    parser.add_argument("--source", default="msrc_v2", help="whose objects are pasted")
    parser.add_argument("--count", type=int, default=1000, help="composites")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=STEPS)
    add_options(parser, "runs/saliency")
    options = parser.parse_args()
    run_rows(
        ROWS, tuple(ROWS), options, options.runs, f"saliency-{of_steps(options.steps, STEPS)}{options.data}",
        lambda name, seed, folder: run(name, seed, folder, options),
    )  # fmt: skip
    print(table(options.runs))


if __name__ == "__main__":
    main()
