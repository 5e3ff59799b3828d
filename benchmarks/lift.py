"""How much unlabelled photographs lift a network over its few masks, at equal budget: `python -m benchmarks.lift`.

Every entry is one method with its settings; all train DeepLabV3+ on MobileNetV2 for the same number of optimiser steps
on crops of one size, on the photographs of CamVid's `train` of which only those of a list (`--labeled`) show their
mask. `supervised` on the same masks is the floor, `supervised` on all masks (`full`) the ceiling. The last iterate is
judged on `val` and `test`; nothing is chosen by either. `supervised-norms` shows the unlabelled photographs to the
floor in one way: it takes its batch-norm statistics from all photographs once training is over, as the semi-supervised
rows do, on the same training; `supervised-frozen` keeps those of the encoder's own weights. `full` is the same
whatever the list, so one list takes it over from another. Rows that end in `-whole` give every stage of a method the
steps that the others have in all, as its paper does; `supervised-norms-long` and `full-long` are floor and ceiling
with as many. They stand beside the table, not in its comparison. Entries that are done are skipped, so the script can
be stopped and started at will, `--only` chooses among them and `--seeds` says how often. It writes a run folder an
entry and prints the table; `--keep FOLDER` copies the runs' records."""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Mapping
from pathlib import Path

from benchmarks.records import add_options, data_root, other_of, run_rows, spread, take_over, weights_root
from maskwright import api
from maskwright.data.trust.files import write_json
from maskwright.predict.model import Model

ENTRIES: Mapping[str, tuple[str, dict[str, str]]] = {
    "supervised": ("supervised", {}),
    "supervised-norms": ("supervised", {"norm_from": "all"}),
    "supervised-frozen": ("supervised", {"norms.freeze": "true"}),
    "full": ("supervised", {}),
    "photometric": ("mean_teacher", {"perturb": "photometric"}),
    "cutout": ("mean_teacher", {"perturb": "cutout"}),
    "cutout_hole": ("mean_teacher", {"perturb": "cutout_hole"}),
    "cutmix": ("mean_teacher", {"perturb": "cutmix"}),
    "classmix": ("mean_teacher", {"perturb": "classmix"}),
    "complexmix": ("mean_teacher", {"perturb": "complexmix"}),
    "cct": ("cct", {}),
    "cac": ("cac", {}),
    "cps": ("cps", {"cutmix": "false"}),
    "cps-cutmix": ("cps", {"cutmix": "true"}),
    "st_plus_plus": ("st_plus_plus", {}),
    "adv_semi": ("adv_semi", {}),
    "s4gan": ("adv_semi", {"variant": "s4gan"}),
    "u2pl": ("u2pl", {}),
    "reco_semi": ("reco_semi", {}),
    "fixmatch": ("unimatch", {"version": "fixmatch"}),
    "unimatch-v1": ("unimatch", {"version": "v1"}),
    "unimatch": ("unimatch", {}),
    "fixmatch-teacher_train": ("unimatch", {"version": "fixmatch", "teacher_mode": "train"}),
    "unimatch-v1-teacher_train": ("unimatch", {"version": "v1", "teacher_mode": "train"}),
    "u2pl-authors": ("u2pl", {"teacher_mode": "eval", "ema_buffers": "own"}),
    "supervised-norms-long": ("supervised", {"norm_from": "all"}),
    "full-long": ("supervised", {}),
    "st_plus_plus-whole": ("st_plus_plus", {"teacher_share": "0.333333", "first_share": "0.333333"}),
}
"""Row -> method and its settings beyond its defaults."""
SAME_TRAINING = {"supervised-norms": "supervised"}
"""Rows that differ from another by what follows its training, whose stage they take over."""
TIMES = {"st_plus_plus-whole": 3, "supervised-norms-long": 3, "full-long": 3}
"""Rows with more steps than the others: a schedule for each of three trainings, and floor and ceiling with as many."""
CEILING = ("full", "full-long")
"""Rows that read all masks."""
SEVERAL = ("supervised", "supervised-norms", "full", "cutmix", "cac", "unimatch")
"""Rows that get all seeds; the others the first."""


def run(name: str, seed: int, labeled: str, folder: Path, options: argparse.Namespace) -> None:
    """Trains, predicts and judges one entry, what is done left as it is."""
    method, settings = ENTRIES[name]
    steps = options.steps * TIMES.get(name, 1)
    data = data_root() / options.data
    if name in CEILING:
        known = [f.parent for f in sorted(folder.parent.parent.glob(f"*/{name}-{seed}/scores.json"))]
        if known:  # trained for another list of masks, none of which it looks at
            shutil.copytree(known[0], folder, dirs_exist_ok=True)
            return
    if name in SAME_TRAINING:
        take_over(folder.parent / f"{SAME_TRAINING[name]}-{seed}" / "run", folder / "run", "train")
    budget = {"crop": str(options.crop), "batch": str(options.batch)}
    model = api.train(
        data, method, out=folder / "run", split="train", labeled=None if name in CEILING else labeled, seed=seed,
        backbone=options.backbone, weights=str(weights_root() / f"{options.backbone}.safetensors"),
        steps=steps, settings={**budget, **settings}, resume=True, report=False, device=options.device,
    )  # fmt: skip
    scores = judge(model, folder / "masks", data)
    other = other_of(model, folder / "run", api.open_folder(data).split("train"))
    if other is not None:  # of student and teacher the one that is not kept
        scores["other"] = judge(other, folder / "masks-other", data)
    record = json.loads((folder / "run" / "run.json").read_text())
    write_json(
        folder / "scores.json",
        {
            "entry": name, "seed": seed, "labeled": labeled, "labeled_hash": record["labeled_hash"],
            "steps": steps, "crop": options.crop, "batch": options.batch,
            "seconds": sum(s["seconds"] for s in record["stages"]), "labels_read": record["labels_read"], **scores,
        },
    )  # fmt: skip


def judge(model: Model, folder: Path, data: Path) -> dict[str, dict]:
    """Scores on both splits, from whole photographs without refinement."""
    scores = {}
    for split in ("val", "test"):
        model.predict_folder(api.open_folder(data).split(split), folder / split, refine="none")
        scores[split] = api.evaluate(folder / split, data, protocol="direct", split=split).to_json()
    return scores


def table(runs: Path) -> str:
    """Mean mIoU (and spread over seeds) on test and val, the share of the gap that a row closes, and its seconds."""
    found: dict[str, list[dict]] = {}
    for file in sorted(runs.glob("*/scores.json")):
        scores = json.loads(file.read_text())
        found.setdefault(scores["entry"], []).append(scores)
    mean = {k: sum(s["test"]["miou"] for s in v) / len(v) for k, v in found.items()}
    lines = [
        "| row | test mIoU | val mIoU | test accuracy | gap closed | seeds | seconds |",
        "|---|---|---|---|---|---|---|",
    ]
    for name in ENTRIES:
        if name not in found:
            continue
        rows = found[name]
        cells = [spread([100 * s[split][k] for s in rows]) for split, k in
                 (("test", "miou"), ("val", "miou"), ("test", "pixel_accuracy"))]  # fmt: skip
        closed = "-"
        if {"supervised", "full"} <= set(mean) and name not in ("supervised", "full", *TIMES):
            closed = f"{100 * (mean[name] - mean['supervised']) / (mean['full'] - mean['supervised']):.0f} %"
        seconds = sum(s["seconds"] for s in rows) / len(rows)
        lines.append(f"| {name} | {' | '.join(cells)} | {closed} | {len(rows)} | {seconds:.0f} |")
    return "\n".join(lines)


def main() -> None:
    """Runs what is asked for and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", default="camvid")
    parser.add_argument("--labeled", default="labeled_1_30")
    parser.add_argument("--steps", type=int, default=800)
    add_options(parser, "runs/lift")
    options = parser.parse_args()
    runs = options.runs / options.labeled
    run_rows(
        ENTRIES, SEVERAL, options, runs, f"lift-{options.labeled}",
        lambda name, seed, folder: run(name, seed, options.labeled, folder, options),
    )  # fmt: skip
    print(table(runs))


if __name__ == "__main__":
    main()
