"""The tables of the methods that read no label, on real photographs: `python -m benchmarks.unsupervised`.

Each entry trains, predicts and is judged in a run folder of its own; entries that are done are skipped, so the
script can be stopped and started at will and `--only` chooses among them. Photographs are looked for in
MASKWRIGHT_DATA, or in the data folder beside the project. `--keep FOLDER` copies each run's records (not its model)
with the data root written as DATA."""

from __future__ import annotations

import argparse
import fnmatch
import json
from collections import defaultdict
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.records import data_root, keep, spread
from maskwright import api
from maskwright.data.masking.masks import read_mask, write_mask
from maskwright.data.trust.files import write_json
from maskwright.engine.progress import Progress
from maskwright.evaluate.boxes import boxes_from_masks, corloc, mask_box
from maskwright.ops.graphs.objectness import otsu_threshold
from maskwright.ops.refinement.components import label_components, largest_component, remove_small

SEEDS = (0, 1, 2)


@dataclass(frozen=True)
class Entry:
    """One row of a table: a method on a dataset, for several seeds.

    Attributes:
        name: of the row and its run folders.
        data: the dataset.
        method: a method's name, or `otsu` or `box`.
        train: split that it learns from.
        test: split that it is judged on.
        classes: clusters.
        protocol: of the evaluation.
        settings: options of the method.
        objects: judge the object masks that the run made itself, not the predictions of its model.
        refine: refinement of the predictions; `auto` is the method's own.
        run_of: another row whose runs are judged, with this row's refinement.
        seeds: of the runs.
        weights: of the backbone.
    """

    name: str
    data: str
    method: str
    train: str = "train"
    test: str = "test"
    classes: int = 11
    protocol: str = "hungarian"
    settings: dict[str, Any] = field(default_factory=dict)
    objects: bool = False
    refine: str = "auto"
    run_of: str = ""
    seeds: tuple[int, ...] = SEEDS
    weights: str = "package"


FIGURES = {
    "saliency": ("corloc", "f_measure", "iou", "mae"),
    "either_polarity": ("accuracy_either", "iou_either", "accuracy_one", "iou_one"),
}
"""What the table shows of a protocol; others show mIoU and pixel accuracy."""
FINE = {"crop": "1", "layers": "3"}
"""Only the stage of stride 16: block 4 of EfficientNet-Lite0."""
LAST = {"crop": "1", "keep": "last", "passes": "0"}
"""`stego` as its paper has it: all steps, and the last iterate of the head, whatever its clusters are."""
JOINED = {"crop": "1", "whiten": "false", "dim": "32", "fine": "2", "crf": "true"}
"""Twice as many clusters as classes, joined: the best combination for CamVid's validation split."""
WHOLE = {"crop": "1"}
"""Clusters of whole photographs, as `kmeans` had them before crops."""
CROPS = {"crop": "0.5"}
"""Learned from random crops of half of each side: what `kmeans` does by default, and what others may."""
MARGIN = {"crop": "1", "margin": "0.25"}
"""Clusters of what lies inside a margin of whole photographs: the best of k-means for CamVid's validation split."""
BOTH = {"crop": "0.5", "margin": "0.15", "crf": "true"}
"""Crops without their margin, and the CRF: the best of `python -m benchmarks.learned_from` on CamVid's `val`."""
PLAIN = {"stego": LAST, "kmeans": WHOLE, "primaps": WHOLE}
"""Settings of rows that bear a method's name alone."""
FROZEN = ("kmeans", "stego", "primaps", "deep_spectral")
"""Methods on features that nothing trains, which are cheap enough for every set."""
LEARNED = ("iic", "infoseg", "picie", "slotcon", "leopart", "looking_beyond", "segsort", "hsg")
"""Methods that train their encoder on scenes, by their presets `small`."""
BEST = ("slotcon", "looking_beyond", "maskcontrast")
"""Of those that train their encoder the best three of one seed, which get three seeds, and all sets."""
NORMS = {"norms.freeze": "false"}
"""Batch-norm statistics of each step's crops, where two methods keep those of the encoder's weights."""
ABLATIONS: dict[str, dict[str, dict[str, Any]]] = {
    "iic": {"without_over": {"over": "0"}, "without_displacement": {"displacement": "0"}},
    "infoseg": {"unbalanced": {"balance": "0"}, "detach": {"detach": "true"}, "classes": {"negatives": "classes"}},
    "picie": {
        "mdc": {"mdc": "true"}, "without_invariance": {"invariance": "false"},
        "without_equivariance": {"equivariance": "false"}, "within": {"terms": "within"}, "mse": {"mse": "true"},
        "over": {"over": "4"}, "frequency": {"balance": "frequency"},
    },
    "slotcon": {"without_slots": {"slots": "false"}, "without_centring": {"centring": "false"}, "norms": NORMS},
    "maskcontrast": {
        "without_contrast": {"contrast.weight": "0", "readout.of": "encoder"}, "without_queue": {"queue": "0"},
        "without_saliency": {"saliency.head": "false"}, "norms": NORMS,
    },
    "leopart": {
        "without_foreground": {"foreground.use": "false"}, "without_cbfe": {"cbfe.use": "false"},
        "without_communities": {"communities.use": "false"},
    },
    "looking_beyond": {
        "single": {"by": "superpixels"}, "without_vote": {"superpixels": "0"}, "across": {"across": "true"},
    },
    "segsort": {"superpixels": {"regions.by": "superpixels"}},
    "hsg": {"fine": {"levels.which": "fine"}, "without_levels": {"levels.which": "regions"}},
}  # fmt: skip
"""What each paper takes away, as rows on msrc_v2; MDC, PiCIE's baseline, among them."""
STARTED: tuple[tuple[str, str, dict[str, Any]], ...] = (
    ("picie", "", {}),
    ("segsort", "", {}),
    ("slotcon", "", {}),
    ("slotcon", "norms", NORMS),
)
"""Methods, their row and its settings whose start, the same clustering behind a single step, is a row on msrc_v2 as
well."""
SETS: dict[str, tuple[str, str, str, int]] = {
    "camvid": ("camvid", "train", "test", 11), "msrc": ("msrc_v2", "train", "test", 23),
    "dubai": ("dubai_aerial", "train", "test", 5), "voc": ("voc_part", "train_all", "val", 21),
    "ecssd": ("ecssd_part", "train", "test", 2),
}  # fmt: skip
"""What a row's name begins with -> data set, split that is learned from, split that is judged, clusters."""
THREE = ("camvid", "msrc", "dubai")
FOUR = (*THREE, "voc")


def on(short: str, method: str, row: str = "", **others: Any) -> Entry:
    """A row on one of `SETS`, named by it, the method, and what is particular."""
    data, train, test, classes = SETS[short]
    name = "-".join(filter(None, (short, method, row)))
    return Entry(name, data, method, **{"train": train, "test": test, "classes": classes, **others})


def objects(row: str, method: str = "deep_spectral", **others: Any) -> Entry:
    """A row on ECSSD by the protocol of salient objects, named by what is particular."""
    return replace(on("ecssd", method, protocol="saliency", seeds=(0,), **others), name=f"ecssd-{row}")


SPECTRAL = {"train": "test", "objects": True}
"""The objects that `deep_spectral` finds in the judged photographs themselves."""
UNWHITENED = {"whiten": "false", "dim": "64"}
CELLS = {**LAST, "sampling": "cells"}
ENTRIES = (
    on("camvid", "kmeans", settings=WHOLE),
    on("camvid", "kmeans", "crf", settings={**WHOLE, "crf": "true"}, seeds=(0,)),
    on("camvid", "kmeans", "unwhitened", settings={**WHOLE, **UNWHITENED}),
    on("camvid", "primaps", settings=WHOLE),
    on("camvid", "primaps", "psi0.4", settings={**WHOLE, "threshold": "0.4"}, seeds=(0,)),
    on("camvid", "deep_spectral"),
    on("camvid", "kmeans", "joined", settings=JOINED),
    on("camvid", "kmeans", "joined-without_crf", settings=JOINED, run_of="camvid-kmeans-joined", refine="none"),
    on("camvid", "stego", settings=LAST),
    on("camvid", "stego", "agreeing", settings=WHOLE, seeds=(0,)),
    on("camvid", "stego", "agreeing-without_crf", settings=WHOLE, run_of="camvid-stego-agreeing", refine="none",
       seeds=(0,)),
    on("camvid", "stego", "without_crf", settings=LAST, run_of="camvid-stego", refine="none"),
    on("camvid", "stego", "cells", settings=CELLS),
    on("camvid", "stego", "cells-without_crf", settings=CELLS, run_of="camvid-stego-cells", refine="none"),
    on("camvid", "stego", "fixed_shifts", settings={**LAST, "auto_shift": "false"}, refine="none", seeds=(0,)),
    on("camvid", "kmeans", "block4", settings=FINE),
    on("camvid", "stego", "block4", settings={**LAST, **FINE}, refine="none", seeds=(0,)),
    *(on(short, "kmeans", "random", settings=WHOLE, weights="random", seeds=(0,)) for short in ("camvid", "msrc")),
    *(on("camvid", name, seeds=SEEDS if name in BEST else (0,)) for name in (*LEARNED, "maskcontrast")),
    *(on("msrc", name, settings=PLAIN.get(name, {}), seeds=SEEDS if name in ("kmeans", *BEST) else (0,))
      for name in (*FROZEN, *LEARNED, "maskcontrast")),
    *(on("msrc", name, part, settings=settings, seeds=(0,))
      for name, parts in ABLATIONS.items() for part, settings in parts.items()),
    *(on("msrc", name, f"{row}-start".lstrip("-"), settings={"steps": "1", **settings}, seeds=(0,))
      for name, row, settings in STARTED),
    *(on("msrc", name, "frozen", settings={"norms.freeze": "true"}, seeds=(0,))
      for name in ("picie", "looking_beyond", "segsort")),
    on("camvid", "looking_beyond", "frozen", settings={"norms.freeze": "true"}, seeds=(0,)),
    *(on(short, "looking_beyond", "crops", settings={"features.crop": "0.5"}, seeds=(0,))
      for short in ("camvid", "msrc")),
    on("camvid", "slotcon", "norms", settings=NORMS, seeds=(0,)),
    *(on(short, name, settings=PLAIN.get(name, {}), seeds=(0,))
      for short in ("dubai", "voc") for name in (*FROZEN, *BEST)),
    *(on(short, method, row, settings=settings, refine="none", seeds=(0,)) for short in ("msrc", "dubai")
      for method, row, settings in (("kmeans", "joined", JOINED), ("stego", "agreeing", WHOLE))),
    *(on(short, "kmeans", row, settings=settings, seeds=SEEDS if short in ("camvid", "msrc") else (0,))
      for row, settings in (("crops", CROPS), ("margin", MARGIN)) for short in FOUR),
    on("camvid", "kmeans", "crops-crf", settings=CROPS, run_of="camvid-kmeans-crops", refine="crf"),
    *(on(short, "kmeans", "crops-unwhitened", settings={**CROPS, **UNWHITENED}, seeds=(0,)) for short in THREE),
    *(on(short, method, "crops", settings=CROPS, refine="none") for method in ("stego", "primaps") for short in THREE),
    *(on(short, method, "crops-crf", settings=CROPS, run_of=f"{short}-{method}-crops", refine="crf")
      for method in ("stego", "primaps") for short in ("camvid", "msrc")),
    *(on(short, "kmeans", "crops-margin", settings=BOTH, seeds=(0,)) for short in THREE),
    on("camvid", "stego", "crops-last", settings={**LAST, **CROPS}, refine="none", seeds=(0,)),
    on("ecssd", "redo", protocol="either_polarity", seeds=(0,)),
    *(objects(name, name) for name in ("maskcontrast", "leopart", "otsu", "box")),
    objects("fiedler", settings={"object": "fiedler", "self_train": "false"}, **SPECTRAL),
    objects("fiedler_border", settings={"object": "fiedler_border", "self_train": "false"}, **SPECTRAL),
    objects("border", settings={"self_train": "false"}, **SPECTRAL),
    objects("border-unrefined", settings={"self_train": "false", "refine": "false"}, **SPECTRAL),
    objects("self_trained"),
)  # fmt: skip


def by_rule(method: str, data: Any, out: Path) -> None:
    """The baselines that learn nothing: Otsu's threshold of the grey value, and a centred box of half the size."""
    for i, name in enumerate(data.names):
        image = data.image(i)
        h, w = image.shape[:2]
        mask = np.zeros((h, w), bool)
        if method == "box":
            mask[h // 4 : h - h // 4, w // 4 : w - w // 4] = True
        else:
            grey = image @ np.array([0.299, 0.587, 0.114])
            mask = grey > otsu_threshold(grey)
            edge = np.concatenate([mask[0], mask[-1], mask[:, 0], mask[:, -1]])
            mask = ~mask if edge.mean() > 0.5 else mask
        write_mask(out / f"{name}.png", mask.astype(np.uint8))


def run(entry: Entry, seed: int, folder: Path) -> None:
    """Trains, predicts and judges one entry, what is done left as it is."""
    data = api.open_folder(data_root() / entry.data)
    masks = folder / "masks"
    if entry.method in ("otsu", "box"):
        by_rule(entry.method, data.split(entry.test), masks)
    else:
        out = (folder.parent / f"{entry.run_of}-{seed}" if entry.run_of else folder) / "run"
        model = api.train(
            data, entry.method, out=out, split=entry.train, classes=entry.classes, seed=seed,
            weights=entry.weights, settings=entry.settings, resume=True,
        )  # fmt: skip
        if entry.objects:
            masks = folder / "run" / "segments" / "objects"
        else:
            shown = api.open_folder(data_root() / entry.data).split(entry.test)
            model.predict_folder(shown, masks, refine=entry.refine)
    scores = api.evaluate(masks, data_root() / entry.data, protocol=entry.protocol, split=entry.test).to_json()
    if entry.protocol == "saliency":
        scores["extra"]["corloc"] = localisation(masks, data_root() / entry.data, entry.test)
    write_json(folder / "scores.json", scores)


def localisation(masks: Path, truth: Path, split: str) -> float:
    """CorLoc of the box around the largest component of each mask.

    The true boxes are those around the components of the true mask that cover at least half a percent of the image.
    """
    data = api.open_folder(truth).split(split)
    predicted, true = [], []
    for i, name in enumerate(data.names):
        predicted.append(mask_box(largest_component(read_mask(masks / f"{name}.png") > 0)))
        mask = data.mask(i)
        parts, _ = label_components(remove_small(mask == 1, max(1, mask.size // 200)))
        true.append(list(boxes_from_masks(parts).values()))
    return corloc(predicted, true)


def table(runs: Path, entries: tuple[Entry, ...]) -> str:
    """Means and sample standard deviations over seeds, as Markdown."""
    lines = ["| row | protocol | seeds | figures |", "|---|---|---|---|"]
    for entry in entries:
        found = defaultdict(list)
        for seed in entry.seeds:
            file = runs / f"{entry.name}-{seed}" / "scores.json"
            if not file.exists():
                continue
            scores = json.loads(file.read_text())
            for name in FIGURES.get(entry.protocol, ("miou", "pixel_accuracy")):
                value = scores.get(name, scores.get("extra", {}).get(name))
                if value is not None:
                    found[name].append(100 * value)
        if found:
            cells = [f"{k} {spread(v)}" for k, v in found.items()]
            count = max(len(v) for v in found.values())
            lines.append(f"| {entry.name} | {entry.protocol} | {count} | {', '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    """Runs what is asked for and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default="*", help="rows, as a pattern")
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--runs", type=Path, default=Path("runs/unsupervised"))
    parser.add_argument("--keep", type=Path)
    options = parser.parse_args()
    progress = Progress()
    seeds = {int(s) for s in options.seeds.split(",")}
    for entry in ENTRIES:
        if not any(fnmatch.fnmatch(entry.name, p) for p in options.only.split(",")):
            continue
        for seed in entry.seeds:
            folder = options.runs / f"{entry.name}-{seed}"
            if seed in seeds and not (folder / "scores.json").exists():
                progress.say(f"== {entry.name}, seed {seed}")
                run(entry, seed, folder)
            if options.keep and (folder / "scores.json").exists():
                keep(folder, options.keep / folder.name)
    print(table(options.runs, ENTRIES))


if __name__ == "__main__":
    main()
