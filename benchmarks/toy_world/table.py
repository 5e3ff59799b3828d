"""Names to masks in the toy world: `python -m benchmarks.toy_world.table --runs FOLDER`.

FOLDER holds `scenes` and `towers`, which `scenes.py` and `two_towers.py` make. Each row is a run on the names alone; it
predicts the held-out scenes, and those that settings are chosen on, and is judged by their exact masks. Done rows are
skipped."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.records import add_options, run_rows, weights_root
from benchmarks.toy_world.groups import GroupClusters, groups_a_picture
from benchmarks.toy_world.scenes import FILLINGS, GROUNDS, KINDS, SHAPES
from maskwright import api
from maskwright.data.masking.masks import read_mask
from maskwright.data.trust.files import write_json
from maskwright.evaluate.protocols import evaluate_arrays
from maskwright.predict.model import Model

FILLED = tuple(f"{filling} shape" for filling in FILLINGS)
VOCABULARIES = {"fillings": FILLED, "scene": (*FILLED, *GROUNDS), "kinds": KINDS}
"""Names, by what they are of: the eight fillings; these and the three grounds, every pixel of a scene; all 24 kinds."""


@dataclass(frozen=True)
class Row:
    """One row of the table.

    Attributes:
        method: its name.
        settings: options of the method.
        names: of `VOCABULARIES`.
        deranged: each name stands for another class than its own.
        inputs: second networks; RUNS stands for the folder of all runs.
        steps: of what trains.
        backbone, weights: of the run; RUNS as in `inputs`.
        split: the scenes that it sees.
        clusters: as many as there are names, matched one to one; the names are not read.
        groups_of: a row of `groupvit`; nothing is trained, and its groups are clustered.
    """

    method: str = "maskclip"
    settings: dict[str, Any] = field(default_factory=dict)
    names: str = "fillings"
    deranged: bool = False
    inputs: dict[str, str] = field(default_factory=dict)
    steps: int | None = None
    backbone: str = "clip"
    weights: str = "RUNS/towers"
    split: str = "few"
    clusters: bool = False
    groups_of: str = ""


GROUPS = "groupvit:image=64/patch=8/width=96/heads=3/depths=2+2+1/groups=16+8/embed=64/hidden=192/words=64/layers=2"
"""A GroupViT of about the size of the two towers."""
ONE_STAGE = "groupvit:image=64/patch=8/width=96/heads=3/depths=1+1/groups=8/embed=64/hidden=192/words=64/layers=2"
"""One that sorts patches into groups once, behind one block, while they still say what lies at their place."""
CAPTIONS = {
    "crops.batch": 128, "crops.scale_min": 0.6, "optimizer.lr": 1e-3, "contrast.words": 0, "precision": "fp32",
}  # fmt: skip
NEW = {"backbone": GROUPS, "weights": "random"}
VALUES = {"last_block.rest": False}
PLUS = VALUES | {
    "plus.train": True, "student.network.name": "unet", "student.crops.size": 64, "student.crops.batch": 16,
    "student.crops.scale_min": 0.75, "student.crops.scale_max": 1.5,
}  # fmt: skip
STUDENT = {"student": f"mobilenetv2_100@{weights_root() / 'mobilenetv2_100.safetensors'}"}
RECO = VALUES | {"archive.side": 64, "context": "sand,wood,stone", "crf": False}
SMALL = {"features.short_side": 64, "features.crop": 1}
"""Options of `kmeans` on whole pictures of this world."""
ROWS = {
    "maskclip": Row(),
    "maskclip-deranged": Row(deranged=True),
    "maskclip-denoise": Row(settings={"refinement.denoise": 0.5}),
    "maskclip-smooth": Row(settings={"refinement.smooth": 1.0}),
    "maskclip-both": Row(settings={"refinement.denoise": 0.5, "refinement.smooth": 1.0}),
    "maskclip-one_sentence": Row(settings={"words.prompts": "photo"}),
    "maskclip-values": Row(settings=VALUES),
    "maskclip-values-deranged": Row(settings=VALUES, deranged=True),
    "maskclip-values-denoise": Row(settings=VALUES | {"refinement.denoise": 0.5}),
    "maskclip-values-smooth": Row(settings=VALUES | {"refinement.smooth": 1.0}),
    "sclip": Row("clip_seg", {"variant": "sclip"}),
    "clearclip": Row("clip_seg", {"variant": "clearclip"}),
    "naclip": Row("clip_seg", {"variant": "naclip"}),
    "proxyclip-own_tower": Row("clip_seg", {"variant": "proxyclip"}, inputs={"proxy": "clip@RUNS/towers"}),
    "maskclip-plus": Row(settings=PLUS, inputs=STUDENT, steps=400),
    "proxyclip-student": Row("clip_seg", {"variant": "proxyclip"}, inputs={"proxy": "RUNS/maskclip-plus-0/run"}),
    "reco": Row("reco", RECO),
    "reco-without_context": Row("reco", RECO | {"context": ""}),
    "reco-as_released": Row("reco", RECO | {"archive.as_released": True}),
    "reco-crf": Row("reco", RECO | {"crf": True}),
    "scene-maskclip": Row(names="scene"),
    "scene-maskclip-values": Row(names="scene", settings=VALUES),
    "scene-maskclip-plus": Row(names="scene", settings=PLUS, inputs=STUDENT, steps=400),
    "scene-reco": Row("reco", RECO | {"context": ""}, names="scene"),
    "scene-naclip": Row("clip_seg", {"variant": "naclip"}, names="scene"),
    "groupvit": Row("groupvit", CAPTIONS, steps=700, split="train", **NEW),
    "groupvit-words": Row(
        "groupvit", {"crops.batch": 64, "crops.scale_min": 0.6, "optimizer.lr": 1e-3}, steps=1400, split="train", **NEW
    ),
    "groupvit-groups": Row("groupvit", clusters=True, groups_of="groupvit"),
    "groupvit-one_stage": Row("groupvit", CAPTIONS, steps=1600, split="train", backbone=ONE_STAGE, weights="random"),
    "groupvit-one_stage-groups": Row("groupvit", clusters=True, groups_of="groupvit-one_stage"),
    "groupvit-one_stage-start_kmeans": Row("kmeans", SMALL, clusters=True, backbone=ONE_STAGE, weights="random"),
    "groupvit-kmeans": Row("kmeans", SMALL, clusters=True, backbone="groupvit", weights="RUNS/groupvit-0/run/towers"),
    "groupvit-start_kmeans": Row("kmeans", SMALL, clusters=True, **NEW),
    "kinds-maskclip-values": Row(names="kinds", settings=VALUES),
    "kinds-maskclip-values-deranged": Row(names="kinds", settings=VALUES, deranged=True),
}


def shuffled(names: tuple[str, ...]) -> tuple[str, ...]:
    """The same names, each at the place of another; which is the same in all runs."""
    random = np.random.default_rng(0)
    while True:
        order = random.permutation(len(names))
        if not (order == np.arange(len(names))).any():
            return tuple(names[i] for i in order)


def truth_of(mask: np.ndarray, names: str) -> np.ndarray:
    """Ids of a vocabulary from those of the scene; 255 where no name of it is of what is there."""
    ground = mask >= len(KINDS)
    things = mask if names == "kinds" else mask // len(SHAPES)
    grounds = mask - len(KINDS) + len(FILLINGS) if names == "scene" else np.full_like(mask, 255)
    return np.where(ground, grounds, things).astype(np.uint8)


JUDGED = {"validation": ("validation-masks", "validation.json"), "test": ("masks", "scores.json")}
"""Splits, and where each run's masks and scores of them go; settings are chosen on `validation` alone."""


def run(name: str, seed: int, folder: Path) -> None:
    """Trains, predicts and judges a row."""
    row, place = ROWS[name], folder.parent
    scenes, names = api.open_folder(place / "scenes"), VOCABULARIES[row.names]
    model: Model | GroupClusters
    if row.groups_of:
        own = api.load(place / f"{row.groups_of}-{seed}" / "run")
        model = GroupClusters.fitted(own.segmenter, scenes.split(row.split), len(names), seed)
        used = groups_a_picture(own.segmenter, scenes.split("test"))
        write_json(folder / "groups.json", {"groups_a_picture": round(used, 3)})
    else:
        model = train(row, seed, folder)
    for split, (masks, scores) in JUDGED.items():
        held = scenes.split(split)
        model.predict_folder(held, folder / masks)
        pairs = [
            (read_mask(folder / masks / f"{n}.png"), truth_of(held.mask(i), row.names))
            for i, n in enumerate(held.names)
        ]
        found = evaluate_arrays(pairs, names, "hungarian" if row.clusters else "direct", ignore=255)
        write_json(folder / scores, found.to_json())


def train(row: Row, seed: int, folder: Path) -> Model:
    """The row's run, in `folder`/run."""
    place, names = folder.parent, VOCABULARIES[row.names]
    given = shuffled(names) if row.deranged else names
    short = {} if row.clusters else {"words.short_side": 64}
    inputs = {k: v.replace("RUNS", str(place)) for k, v in row.inputs.items()}
    return api.train(
        place / "scenes", row.method, names=None if row.clusters else given, split=row.split,
        classes=len(names) if row.clusters else None, backbone=row.backbone,
        weights=row.weights.replace("RUNS", str(place)), out=folder / "run", seed=seed,
        settings=short | row.settings, inputs=inputs or None, steps=row.steps, device="cpu", resume=True,
        report=False,
    )  # fmt: skip


def lines(runs: Path, seed: int) -> Iterator[str]:
    """The table in Markdown."""
    yield "| row | names | mIoU | pixels right |"
    yield "|---|---|---|---|"
    for name, row in ROWS.items():
        file = runs / f"{name}-{seed}" / "scores.json"
        if file.exists():
            s = json.loads(file.read_text())
            told = f"{len(VOCABULARIES[row.names])} {row.names}"
            yield f"| {name} | {told} | {100 * s['miou']:.1f} | {100 * s['pixel_accuracy']:.1f} |"


def main() -> None:
    """Runs what is asked for and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    add_options(parser, "runs/toy")
    parser.add_argument("--called", default="toy", help="what the folders of kept records begin with")
    options = parser.parse_args()
    run_rows(ROWS, (), options, options.runs, options.called, run)
    print("\n".join(lines(options.runs, int(options.seeds.split(",")[0]))))


if __name__ == "__main__":
    main()
