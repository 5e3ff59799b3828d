"""What each rung of the ladder is worth, from no label to twelve corrected masks: `python -m benchmarks.rungs`.

A simulated person climbs it. `kmeans` clusters the photographs of `train`; the person names each cluster, as one who
looks at the montage would: by the class that most of its pixels have (here in the masks of `train`). Then `suggest`
asks for photographs, their masks are revealed (a corrected mask is the truth), and a network trains on all masks so
far: once from the person's own model of the rung below (`own`), once from the ImageNet weights of the first rung
(`anew`). Both rows of a rung read the same masks and take equal steps on equal crops; which photographs are asked for
follows the own model. The last iterate is judged on `test`, from whole photographs without refinement. What is done
is skipped. `--keep FOLDER` copies the records."""

from __future__ import annotations

import argparse
import json
from fnmatch import fnmatch
from pathlib import Path

from benchmarks.records import add_training_options, begun, data_root, keep
from maskwright import api
from maskwright.data.trust.files import write_json, write_text

SETS = {"camvid": 27, "dubai_aerial": 15}
"""Data set -> clusters of the lowest rung."""
RUNGS = (3, 6, 12)
"""Corrected masks in all."""
NAMED = "named"


def judge(run: Path, data: Path, folder: Path, device: str, **facts: object) -> None:
    """Predicts the test photographs of a run's model, and writes the scores beside it."""
    model = api.load(run, device=device)
    model.predict_folder(api.open_folder(data).split("test"), folder / "masks", refine="none")
    scores = api.evaluate(folder / "masks", data, protocol="direct", split="test").to_json()
    record = json.loads((run / "run.json").read_text())
    write_json(folder / "scores.json", {**facts, "labels_read": record["labels_read"], "test": scores})


def lowest(data: Path, clusters: int, folder: Path, options: argparse.Namespace) -> None:
    """The rung without masks: clusters, and their names."""
    run = folder / "clusters"
    api.train(
        data, "kmeans", out=run, split="train", classes=clusters, seed=options.seed, backbone=options.backbone,
        weights="package", settings={"crop": "1"}, resume=True, report=False, device=options.device,
    )  # fmt: skip
    if not (folder / "run" / "model.safetensors").exists():
        api.name(run, from_masks="train", out=folder / "run", masks=False, device=options.device)
    judge(folder / "run", data, folder, options.device, row=NAMED, masks=0, seed=options.seed)


def asked(runs: Path, data: Path, count: int, options: argparse.Namespace) -> list[str]:
    """The photographs whose masks a rung reads: those of the rung below, and what its model asks for."""
    below = [n for n in RUNGS if n < count]
    before = runs / (f"own-{below[-1]}" if below else NAMED)
    known = (before / "labeled.txt").read_text().split("\n")[:-1] if below else []
    place = before / "asked"
    if not (place / "names.txt").exists():
        photographs = data if below else api.open_folder(data).only_labels(set())
        api.suggest(
            before / "run", photographs, count - len(known), split="train", out=place, seed=options.seed,
            labeled=before / "labeled.txt" if below else None, device=options.device,
        )  # fmt: skip
    return known + (place / "names.txt").read_text().split("\n")[:-1]


def rung(runs: Path, data: Path, row: str, count: int, options: argparse.Namespace) -> None:
    """Trains and judges one row of a rung."""
    folder = runs / f"{row}-{count}"
    write_text(folder / "labeled.txt", "".join(f"{n}\n" for n in asked(runs, data, count, options)))
    below = [n for n in RUNGS if n < count]
    start = runs / (f"own-{below[-1]}" if below else NAMED) / "run" if row == "own" else "package"
    settings = {"crop": str(options.crop), "batch": str(options.batch)}
    api.train(
        data, "supervised", out=folder / "run", split="train", labeled=folder / "labeled.txt", seed=options.seed,
        backbone=options.backbone, weights=str(start), steps=options.steps, settings=settings, resume=True,
        report=False, device=options.device,
    )  # fmt: skip
    facts = {"steps": options.steps, "crop": options.crop, "batch": options.batch}
    judge(folder / "run", data, folder, options.device, row=row, masks=count, seed=options.seed, **facts)


def table(runs: Path) -> str:
    """Test mIoU of each rung of each data set, from one's own model and anew."""
    lines = [
        f"| data set | named | {' | '.join(f'{n} masks, own / anew' for n in RUNGS)} |",
        "|---" * (len(RUNGS) + 2) + "|",
    ]
    for name in SETS:
        cells = []
        for rows in ((NAMED,), *((f"own-{n}", f"anew-{n}") for n in RUNGS)):
            files = [runs / name / row / "scores.json" for row in rows]
            found = [f"{100 * json.loads(f.read_text())['test']['miou']:.2f}" if f.exists() else "-" for f in files]
            cells.append(" / ".join(found))
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    """Climbs the ladder on each data set and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", default=",".join(SETS), help="data sets, joined by commas")
    parser.add_argument("--only", default="*", help="rows, as patterns joined by commas: named, own-3, anew-3, ...")
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    add_training_options(parser, "runs/rungs", crop=128, backbone="tf_efficientnet_lite0")
    options = parser.parse_args()
    progress = begun(options)
    for name in options.data.split(","):
        runs, data = options.runs / name, data_root() / name
        rows = [(NAMED, 0), *((row, n) for n in RUNGS for row in ("own", "anew"))]
        for row, count in rows:
            folder = runs / (f"{row}-{count}" if count else row)
            if not any(fnmatch(folder.name, pattern) for pattern in options.only.split(",")):
                continue
            if not (folder / "scores.json").exists():
                progress.say(f"== {name}, {folder.name}")
                if count:
                    rung(runs, data, row, count, options)
                else:
                    lowest(data, SETS[name], folder, options)
            if options.keep:
                keep(folder, options.keep / f"rungs-{name}-{folder.name}")
    print(table(options.runs))


if __name__ == "__main__":
    main()
