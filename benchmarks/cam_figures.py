"""What class maps look like across scales and thresholds: `python -m benchmarks.cam_figures RUN RUN --out docs`.

Each RUN is a run folder of the tag pipeline (`benchmarks.tags` leaves them as ROW-SEED/run). Written are

    cam_scales.jpg       photographs with the map of their first tag at four scales, a line of maps a run
    cam_consistency.png  how far maps at each scale lie from those at scale 1, mean absolute difference, 0 to 1
    cam_threshold.png    mIoU of the maps over the background threshold, from the curve.json beside each run

and the numbers behind the second are printed. No map is judged by a mask in the first two."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from benchmarks.plot import draw, save
from benchmarks.records import data_root, weights_root
from maskwright import api
from maskwright.data.folders.folder import Dataset
from maskwright.data.pictures.images import resize
from maskwright.data.training.tag_targets import TagTargets
from maskwright.engine.config import configure
from maskwright.evaluate.seeds import scale_consistency
from maskwright.methods import find_method
from maskwright.models.backbones.build import build_backbone
from maskwright.ops.cam import normalize_cam, resize_maps
from maskwright.predict.sheet import heat_colors
from maskwright.recipes.tags.maps import MultiScale

SCALES = (0.5, 1.0, 1.5, 2.0)
WIDTH, HEIGHT, GAP = 150, 112, 4


def opened(run: Path, **settings: Any) -> Any:
    """The method of a run of the tag pipeline, with other settings where given; its trained parts lie in the run."""
    record = json.loads((run / "run.json").read_text())
    kind = find_method(record["method"]["name"])
    architecture = record["backbone"]["architecture"]
    context: Any = SimpleNamespace(
        backbone=build_backbone(architecture, str(weights_root() / f"{architecture}.safetensors")),
        device=torch.device("cpu"), run=SimpleNamespace(path=run),
    )  # fmt: skip
    return kind(configure(kind.Config, {**record["config"], **settings}), context)


def at_scales(inference: MultiScale, targets: TagTargets, data: Dataset, i: int) -> list[Tensor]:
    """Maps (K, h, w) of image `i` at each scale, in the range that the run gives them, on the largest grid."""
    image = data.image(i)
    base = inference.preprocess.target_size(data.size(i))
    tags = targets.multi_hot(data.items[i].name)[None]
    found = [inference.at_scale([image], tags, base, s)[0] for s in SCALES]
    grid = (int(found[-1].shape[-2]), int(found[-1].shape[-1]))
    return [normalize_cam(resize_maps(m, grid), inference.norm) for m in found]


def tile(pixels: np.ndarray) -> np.ndarray:
    """One cell of the figure."""
    return resize(pixels, (HEIGHT, WIDTH))


def scales_figure(runs: Mapping[str, tuple[MultiScale, TagTargets]], data: Dataset, chosen: list[int]) -> Image.Image:
    """A photograph, then a line of its maps for each run."""
    lines = []
    for i in chosen:
        rows = []
        for k, (inference, targets) in enumerate(runs.values()):
            maps = [m[0].numpy() for m in at_scales(inference, targets, data, i)]
            first = tile(data.image(i)) if k == 0 else np.full((HEIGHT, WIDTH, 3), 255, np.uint8)
            rows.append(np.concatenate([first, *(tile(heat_colors(m)) for m in maps)], axis=1))
        lines += [*rows, np.full((GAP, rows[0].shape[1], 3), 255, np.uint8)]
    return Image.fromarray(np.concatenate(lines[:-1]))


def main() -> None:
    """Draws what is asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("runs", nargs="+", type=Path)
    parser.add_argument("--data", default="voc_part")
    parser.add_argument("--split", default="train")
    parser.add_argument("--most", type=int, default=60, help="photographs that consistency is measured on")
    parser.add_argument("--shown", type=int, default=4)
    parser.add_argument("--out", type=Path, default=Path("docs"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    data = api.open_folder(data_root() / options.data).split(options.split)
    runs, thresholds = {}, {}
    for run in options.runs:
        method = opened(run, scales=SCALES)
        name, targets = method.name, method.targets
        runs[name] = (method.inference(method.trained()), targets)
        points = json.loads((run.parent / "curve.json").read_text()) if (run.parent / "curve.json").exists() else []
        thresholds[name] = {p["threshold"]: [100 * p["miou"]] for p in points if p["miou"] is not None}
    tagged = [i for i in range(len(data)) if all(t.tagged.get(data.items[i].name) for _, t in runs.values())]
    chosen = tagged[:: max(1, len(tagged) // options.most)][: options.most]
    gaps = {}
    for name, (inference, targets) in runs.items():
        found = np.mean([scale_consistency(at_scales(inference, targets, data, i)) for i in chosen], axis=0)
        gaps[name] = {s: [float(g)] for s, g in zip(SCALES, found[SCALES.index(1.0)])}
        print(f"{name}: " + ", ".join(f"{s:g}: {g[0]:.4f}" for s, g in gaps[name].items()))
    save(scales_figure(runs, data, chosen[:: max(1, len(chosen) // options.shown)][: options.shown]),
         options.out / "cam_scales.jpg")  # fmt: skip
    save(draw(gaps, "mean difference from the map at scale 1", "scale"), options.out / "cam_consistency.png")
    if all(thresholds.values()):
        title = f"mIoU of the maps on {options.split}, percent"
        save(draw(thresholds, title, "background threshold"), options.out / "cam_threshold.png")


if __name__ == "__main__":
    main()
