"""Pseudo masks from image tags, stage by stage, at equal budget: `python -m benchmarks.tags`.

Every row is one method with its settings, on one network, trained on the tags of a split that shows no mask. Judged
are the class maps at the threshold that the run found without masks and at the best one (the oracle of the literature),
before any CRF; the pseudo masks after it; and the segmenter retrained on them, on the photographs that the pseudo masks
were judged on, without and with their tags, and on photographs that no stage saw. `supervised` is the
ceiling: the same network and steps on the true masks of the same photographs. Rows that differ behind the class
maps alone share the classifier and the maps: their stage folders are copied from the row they begin with. Rows that are
done are skipped, `--only` chooses among them. It writes a run folder a row and prints the table; `--keep FOLDER` copies
the runs' records and the curve of each over the threshold."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.records import add_options, data_root, run_rows, spread, take_over, weights_root
from maskwright import api
from maskwright.data.folders.folder import Dataset
from maskwright.data.training.tag_targets import TagTargets
from maskwright.data.trust.files import write_json
from maskwright.recipes.tags.maps import MAPS, CamStore
from maskwright.recipes.tags.seeding import read_threshold
from maskwright.recipes.tags.thresholds import sweep_thresholds


class Row(NamedTuple):
    """A row of the table.

    Attributes:
        method: its name.
        settings: beyond its defaults.
        begins: the row whose first stages it takes over, or "".
        stages: these stages.
    """

    method: str
    settings: dict[str, str]
    begins: str = ""
    stages: tuple[str, ...] = ()


MAPS_SHARED = ("classify", "cams")
CEILING = "supervised"
"""The row that reads masks, not tags; it has no maps."""
ROWS: Mapping[str, Row] = {
    "cam": Row("cam", {}),
    "grad_cam": Row("grad_cam", {}, "cam", ("classify",)),
    "grad_cam_pp": Row("grad_cam_pp", {}, "cam", ("classify",)),
    "cam+psa": Row("affinity", {"variant": "psa"}, "cam", MAPS_SHARED),
    "cam+irn": Row("affinity", {"variant": "irn"}, "cam", MAPS_SHARED),
    "seam": Row("seam", {}),
    "seam+psa": Row("seam", {"walk": "psa"}, "seam", MAPS_SHARED),
    "seam+irn": Row("seam", {"walk": "irn"}, "seam", MAPS_SHARED),
    CEILING: Row("supervised", {}),
}
SEVERAL = ("cam", "seam")
"""Rows that get all seeds; the others the first."""
CURVE = "curve.json"


def run(name: str, seed: int, folder: Path, options: argparse.Namespace) -> None:
    """Trains and judges one row, what is done left as it is."""
    row, data = ROWS[name], data_root() / options.data
    place = folder / "run"
    for stage in row.stages:
        take_over(folder.parent / f"{row.begins}-{seed}" / "run", place, stage)
    budget = {"crop": str(options.crop), "batch": str(options.batch)}
    extra = {} if name == CEILING else dict(s.split("=", 1) for s in options.set)
    model = api.train(
        data, row.method, out=place, split=options.split, seed=seed, backbone=options.backbone,
        weights=str(weights_root() / f"{options.backbone}.safetensors"), steps=options.steps,
        settings={**budget, **row.settings, **extra}, resume=True, report=False, device=options.device,
    )  # fmt: skip
    truth = api.open_folder(data)
    judged = truth.split(options.judge)
    record = json.loads((place / "run.json").read_text())
    scores: dict[str, Any] = {}
    shown = [("again", options.judge), ("final", options.final)]
    if name != CEILING:
        scores["maps"] = judge_maps(place, judged, folder / CURVE)
        scores["masks"] = api.evaluate(place / "seeds" / "masks", judged, protocol="direct").to_json()
        shown.insert(1, ("tagged", options.judge))
    for key, split in shown:
        model.predict_folder(truth.split(split), folder / key, refine="none", tags=key == "tagged")
        scores[key] = api.evaluate(folder / key, truth.split(split), protocol="direct").to_json()
    write_json(
        folder / "scores.json",
        {
            "row": name, "seed": seed, "data": options.data, "split": options.split, "steps": options.steps,
            "crop": options.crop, "batch": options.batch, "begins": row.begins,
            "seconds": {s["name"]: s["seconds"] for s in record["stages"]}, "labels_read": record["labels_read"],
            **scores,
        },
    )  # fmt: skip


def judge_maps(place: Path, judged: Dataset, curve: Path) -> dict[str, Any]:
    """Scores of the maps that seeds were made of, at the found threshold and at the best; writes the whole curve."""
    store = seed_maps(place)
    targets = TagTargets.load(place / "classify")
    sweep = sweep_thresholds(store, judged, targets, len(judged.classes or ()), "evaluate")
    points = sweep.records()
    write_json(curve, points)
    return {"found": points[sweep.nearest(read_threshold(place / "seeds"))], "oracle": asdict(sweep.best())}


def seed_maps(place: Path) -> CamStore:
    """The maps that a run's seeds were made of: walked where there was a walk."""
    walked = place / "walk" / MAPS
    return CamStore(walked if walked.is_dir() else place / "cams" / MAPS)


def table(runs: Path) -> str:
    """Means (and spread over seeds), in percent."""
    done: dict[str, list[dict]] = {}
    for file in sorted(runs.glob("*/scores.json")):
        scores = json.loads(file.read_text())
        done.setdefault(scores["row"], []).append(scores)
    lines = [
        "| row | maps | oracle | thresholds | mFN / mFP | masks (CRF) | retrained, again | again, with tags "
        "| retrained, new | seeds |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for name in ROWS:
        if name not in done:
            continue
        rows = done[name]

        def cell(*path: str, rows: list[dict] = rows, factor: float = 100) -> str:
            values = []
            for value in rows:
                for key in path:
                    if key not in value:
                        return "-"
                    value = value[key]
                values.append(factor * value)  # type: ignore[operator]
            return spread(values)

        thresholds = " / ".join(cell("maps", k, "threshold") for k in ("found", "oracle"))
        rates = " / ".join(cell("maps", "found", k, factor=1) for k in ("mfn", "mfp"))
        cells = [
            cell("maps", "found", "miou"), cell("maps", "oracle", "miou"), thresholds, rates,
            cell("masks", "miou"), cell("again", "miou"), cell("tagged", "miou"), cell("final", "miou"),
            str(len(rows)),
        ]  # fmt: skip
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    """Runs what is asked for and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", default="voc_part")
    parser.add_argument("--split", default="train_all", help="photographs whose tags are read")
    parser.add_argument("--judge", default="train", help="split whose masks judge maps and pseudo masks")
    parser.add_argument("--final", default="val", help="split that the retrained network is judged on")
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--set", nargs="*", default=[], help="further options, key=value, for all rows")
    add_options(parser, "runs/tags")
    options = parser.parse_args()
    runs = options.runs / options.data
    run_rows(
        ROWS, SEVERAL, options, runs, f"tags-{options.data}",
        lambda name, seed, folder: run(name, seed, folder, options),
    )  # fmt: skip
    print(table(runs))


if __name__ == "__main__":
    main()
