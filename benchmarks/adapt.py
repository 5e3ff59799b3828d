"""How much adaptation lifts a network on another domain, at equal budget: `python -m benchmarks.adapt`.

All rows train DeepLabV3+ on MobileNetV2 for the same number of optimiser steps on crops of one size. The source is
CamVid's day drives with all masks, the target its drive at dusk, of which no mask is read but by `target`, the
ceiling. `source_only` is the floor; `source_only-norms` is the same training with batch-norm statistics of the
target's photographs, as most rows below it have, `source_only-frozen` keeps those of the encoder's own weights.
`histogram`, `fda` and `cyclegan` train on translated photographs, `align` aligns scores without translation, `cycada`
has both. Generators are a quarter as large as the paper's. The last iterate is judged on the target's test
photographs; nothing is chosen by them. Entries that are done are skipped; `--keep FOLDER` copies the runs' records."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from pathlib import Path

from benchmarks.records import (
    add_options,
    data_root,
    of_steps,
    other_of,
    run_rows,
    scores_in,
    spread,
    take_over,
    weights_root,
)
from maskwright import api
from maskwright.data.trust.files import write_json
from maskwright.predict.model import Model

DANNET = {"pairs": "features", "light.width": "16", "d_width": "16"}
GENERATORS = {"generators.width": "32", "generators.blocks": "6", "generators.side": "128"}
ENTRIES: Mapping[str, tuple[str, dict[str, str]]] = {
    "source_only": ("source_only", {}),
    "source_only-norms": ("source_only", {"norm_from": "all"}),
    "source_only-frozen": ("source_only", {"norms.freeze": "true"}),
    "dacs": ("dacs", {}),
    "advent": ("advent", {"d_width": "16"}),
    "cbst": ("cbst", {}),
    "crst": ("cbst", {"regulariser": "mrkld"}),
    "dacs-mic": ("dacs", {"masked.consistency": "1", "rare.temperature": "0.01"}),
    "dannet": ("dannet", DANNET),
    "dannet-without_static": ("dannet", {**DANNET, "static.weight": "0"}),
    "histogram": ("cycada", {"translation": "histogram", "align.weight": "0"}),
    "fda": ("cycada", {"translation": "fda", "align.weight": "0"}),
    "align": ("cycada", {"translation": "none"}),
    "cyclegan": ("cyclegan", GENERATORS),
    "cycada": ("cycada", GENERATORS),
    "target": ("supervised", {}),
}
"""Row -> method and its settings beyond its defaults."""
SAME_TRAINING = {"source_only-norms": "source_only"}
"""Rows that differ from another by what follows its training, whose stage they take over."""
STEPS = 2000
"""Of the published table."""
CEILING = "target"
WITH_TEACHER = ("dacs", "dacs-mic")
"""Rows whose teacher is judged beside the student that is kept: what `teacher.final=teacher` keeps."""
WITH_DAY = ("dannet", "dannet-without_static")
"""Rows that take unlabelled photographs of the target's places by day. DANNet's two side networks, and the
discriminators of AdvEnt, are narrower than in their papers (64 channels), where they cost many times what the segmenter
does."""


def run(name: str, seed: int, folder: Path, options: argparse.Namespace) -> None:
    """Trains, predicts and judges one entry, what is done left as it is."""
    method, settings = ENTRIES[name]
    data = data_root() / options.data
    if name in SAME_TRAINING:
        take_over(folder.parent / f"{SAME_TRAINING[name]}-{seed}" / "run", folder / "run", "train")
    sources = {} if name == CEILING else {"source": f"{data}@{options.source}"}
    if name in WITH_DAY:
        sources["day"] = f"{data}@{options.day}"
    budget = {"crop": str(options.crop), "batch": str(options.batch)}
    model = api.train(
        data, method, out=folder / "run", split=options.target, seed=seed, backbone=options.backbone,
        source=sources or None,
        weights=str(weights_root() / f"{options.backbone}.safetensors"), steps=options.steps,
        settings={**budget, **settings}, resume=True, report=False, device=options.device,
    )  # fmt: skip
    scores = {"test": judge(model, folder / "masks", data, options.test)}
    if name in WITH_TEACHER:
        other = other_of(model, folder / "run", api.open_folder(data).split(options.target))
        assert other is not None
        scores["other"] = judge(other, folder / "masks-other", data, options.test)
    record = json.loads((folder / "run" / "run.json").read_text())
    write_json(
        folder / "scores.json",
        {
            "entry": name, "seed": seed, "steps": options.steps, "crop": options.crop, "batch": options.batch,
            "seconds": sum(s["seconds"] for s in record["stages"]), "labels_read": record["labels_read"], **scores,
        },
    )  # fmt: skip


def judge(model: Model, folder: Path, data: Path, split: str) -> dict:
    """Scores from whole photographs without refinement."""
    model.predict_folder(api.open_folder(data).split(split), folder, refine="none")
    return api.evaluate(folder, data, protocol="direct", split=split).to_json()


def table(runs: Path) -> str:
    """Mean mIoU and accuracy, and spread over seeds, on the target's test photographs."""
    found: dict[str, list[dict]] = {}
    for scores in scores_in(runs):
        found.setdefault(scores["entry"], []).append(scores)
    lines = ["| row | test mIoU | test accuracy | its teacher | seeds | seconds |", "|---|---|---|---|---|---|"]
    for name in ENTRIES:
        if rows := found.get(name):
            cells = [spread([100 * s["test"][k] for s in rows]) for k in ("miou", "pixel_accuracy")]
            others = [100 * s["other"]["miou"] for s in rows if "other" in s]
            seconds = sum(s["seconds"] for s in rows) / len(rows)
            other = spread(others) if others else "-"
            lines.append(f"| {name} | {' | '.join(cells)} | {other} | {len(rows)} | {seconds:.0f} |")
    return "\n".join(lines)


def main() -> None:
    """Runs what is asked for and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", default="camvid")
    parser.add_argument("--source", default="day_train", help="split of the labelled source")
    parser.add_argument("--target", default="dusk_train", help="split of the unlabelled target")
    parser.add_argument("--day", default="val", help="split of unlabelled photographs by day")
    parser.add_argument("--test", default="dusk_test", help="split that all are judged on")
    parser.add_argument("--steps", type=int, default=STEPS)
    add_options(parser, "runs/adapt")
    options = parser.parse_args()
    runs = options.runs / f"{options.source}-{options.target}"
    run_rows(
        ENTRIES, tuple(ENTRIES), options, runs, f"adapt-{of_steps(options.steps, STEPS)}{options.target}",
        lambda name, seed, folder: run(name, seed, folder, options),
    )  # fmt: skip
    print(table(runs))


if __name__ == "__main__":
    main()
