"""Where PASS's gate is open: `python -m benchmarks.attention_figure RUN --out docs/attention.jpg`.

Photographs of one set beside the mean gate of a run that was trained on another or the same. It also prints how well
the gate tells objects from background: the area under the ROC curve within each photograph that has both, mean over
photographs, beside that of the distance to the centre, which needs no network."""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from scipy.stats import rankdata

from benchmarks.plot import save
from benchmarks.records import data_root, spread
from maskwright import api
from maskwright.data.pictures.images import resize, resize_window
from maskwright.models.parts.attended_clusters import AttendedClusters
from maskwright.predict.sheet import heat_colors

WIDTH, HEIGHT, GAP = 200, 150, 6


def under_the_curve(score: np.ndarray, object_: np.ndarray) -> float:
    """Chance that an object's pixel has a higher score than a background pixel; both arguments flat."""
    n, ranks = int(object_.sum()), rankdata(score)
    return float((ranks[object_].sum() - n * (n + 1) / 2) / (n * (len(object_) - n)))


def area_on_objects(score: np.ndarray, mask: np.ndarray) -> float | None:
    """`under_the_curve` of a score (h, w) on a mask of any size, 255 left out; None without object or background."""
    truth = np.asarray(Image.fromarray(mask).resize(score.shape[::-1], Image.Resampling.NEAREST))
    known, object_ = truth != 255, (truth > 0) & (truth != 255)
    return under_the_curve(score[known], object_[known]) if 0 < object_.sum() < known.sum() else None


def from_the_centre(height: int, width: int) -> np.ndarray:
    """1 at the centre, falling with the distance in units of the sides."""
    y, x = (np.abs(np.linspace(-1, 1, side)) for side in (height, width))
    return 1 - np.hypot(y[:, None], x[None])


def tile(pixels: np.ndarray) -> np.ndarray:
    """The largest window of the figure's aspect in the middle, at its size, (HEIGHT, WIDTH, 3)."""
    h, w = pixels.shape[:2]
    scale = min(w / WIDTH, h / HEIGHT)
    height, width = HEIGHT * scale, WIDTH * scale
    return resize_window(pixels, ((h - height) / 2, (w - width) / 2, height, width), (HEIGHT, WIDTH))


def main() -> None:
    """Writes the figure and prints the numbers."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("--data", default="voc_part")
    parser.add_argument("--split", default="val")
    parser.add_argument("--most", type=int, default=120, help="photographs that are judged")
    parser.add_argument("--rows", type=int, default=5)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    model = api.load(options.run / "label" / "clusters.safetensors")
    segmenter, rule = model.segmenter, model.segmenter.classifier
    assert isinstance(rule, AttendedClusters)
    data = api.open_folder(data_root() / options.data).split(options.split)
    chosen = list(range(0, len(data), max(1, len(data) // options.most)))[: options.most]
    found: dict[str, list[float]] = {"gate": [], "centre": []}
    tiles: list[np.ndarray] = []
    shown = set(chosen[:: max(1, len(chosen) // (2 * options.rows))][: 2 * options.rows])
    for i in chosen:
        image, true = data.image(i), data.mask(i)
        with torch.inference_mode():
            _, gate = rule.attend(segmenter.encoder(segmenter.preprocess.apply(image)[None]))
        h, w = gate.shape[-2:]
        heat = gate[0].double().numpy()
        for name, score in (("gate", heat), ("centre", from_the_centre(h, w))):
            area = area_on_objects(score, true)
            found[name] += [] if area is None else [area]
        if i in shown:
            low, high = np.quantile(heat, [0.02, 0.98])
            tiles += [tile(image), tile(resize(heat_colors((heat - low) / max(high - low, 1e-6)), image.shape[:2]))]
    for name, values in found.items():
        print(f"{name}: area under the ROC curve {spread([100 * v for v in values])} over {len(values)} photographs")
    if options.out:
        lines = [np.concatenate(tiles[k : k + 4], axis=1) for k in range(0, len(tiles) - 3, 4)]
        between = np.full((GAP, lines[0].shape[1], 3), 255, np.uint8)
        picture = np.concatenate([part for line in lines for part in (line, between)][:-1])
        save(Image.fromarray(picture), options.out)


if __name__ == "__main__":
    main()
