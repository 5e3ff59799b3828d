"""Adaptation in pictures: `python -m benchmarks.adapt_figure --runs FOLDER --out docs ROW ROW ...`.

FOLDER is that of one table of `benchmarks.adapt`, `RUNS/SOURCE-TARGET`, whose rows are named; rows that have not been
run are left out, which is said. Written are

    adapted.jpg     the same photographs of the target's test split: true masks, then each row's
    translated.jpg  the same photographs of the source as the rows that translate made them and as DANNet relights them
                    before it looks, then the same of the target as it relights these

where a row of the second kind is there. A class has its colour of the class table. Photographs are spread evenly; none
was chosen."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from benchmarks.gallery import sheet, small, spread_evenly, tinted
from benchmarks.plot import save
from benchmarks.records import data_root
from maskwright import api
from maskwright.data.folders.folder import Dataset
from maskwright.data.masking.masks import read_mask
from maskwright.models.parts.relighting import RelitEncoder
from maskwright.predict.model import Model

LABEL = 150
TRANSLATED = Path("run") / "translate" / "photographs"
"""Where a row that translates leaves the source's photographs."""


def masks(rows: list[str], runs: Path, data: Dataset, seed: int) -> Image.Image:
    """Photographs, true masks, and each row's masks of them."""
    assert data.classes is not None
    chosen = spread_evenly(len(data))
    images = [data.image(i) for i in chosen]
    lines = [("photograph", [small(i) for i in images])]
    lines.append(("true mask", [tinted(p, data.mask(i), data.classes) for p, i in zip(images, chosen)]))
    for row in rows:
        folder = runs / f"{row}-{seed}"
        if not (folder / "scores.json").exists():
            print(f"{row}: not run, left out")
            continue
        miou = json.loads((folder / "scores.json").read_text())["test"]["miou"]
        found = [read_mask(folder / "masks" / f"{data.names[i]}.png") for i in chosen]
        pictures = [tinted(p, m, data.classes) for p, m in zip(images, found)]
        lines.append((f"{row}\n{100 * miou:.1f} mIoU", pictures))
    return sheet(lines, LABEL)


def relit(model: Model, image: np.ndarray) -> np.ndarray:
    """A photograph as the model's encoder sees it, uint8 (h, w, 3), at the size that prediction takes it."""
    encoder, preprocess = model.segmenter.encoder, model.segmenter.preprocess
    assert isinstance(encoder, RelitEncoder)
    x = preprocess.apply(image)[None].to(model.device)
    with torch.inference_mode():
        seen = x + encoder.relighting(x)
    return preprocess.denormalise(seen[0].cpu()).permute(1, 2, 0).numpy()


def looks(rows: list[str], runs: Path, source: Dataset, target: Dataset, seed: int) -> Image.Image | None:
    """The source's photographs translated, the target's relit; None where no row does either."""
    chosen = spread_evenly(len(source))
    lines = []
    for row in rows:
        made = runs / f"{row}-{seed}" / TRANSLATED
        if made.is_dir():
            other = api.open_folder(made)
            lines.append((row, [small(other.image(other.names.index(source.names[i]))) for i in chosen]))
    models = {}
    for row in rows:
        run = runs / f"{row}-{seed}" / "run"
        model = api.load(run) if (run / "model.safetensors").exists() else None
        if model is not None and isinstance(model.segmenter.encoder, RelitEncoder):
            models[row] = model
            lines.append((f"{row}, relit", [small(relit(model, source.image(i))) for i in chosen]))
    if not lines:
        return None
    lines.insert(0, ("source", [small(source.image(i)) for i in chosen]))
    if models:
        images = [target.image(i) for i in spread_evenly(len(target))]
        lines.append(("target", [small(i) for i in images]))
        lines += [(f"{row}, relit", [small(relit(m, i)) for i in images]) for row, m in models.items()]
    return sheet(lines, LABEL)


def main() -> None:
    """Writes the pictures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rows", nargs="+")
    parser.add_argument("--runs", type=Path, required=True)
    parser.add_argument("--data", default="camvid")
    parser.add_argument("--source", default="day_train")
    parser.add_argument("--test", default="dusk_test")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("docs"))
    options = parser.parse_args()
    data = api.open_folder(data_root() / options.data)
    source, test = data.split(options.source), data.split(options.test)
    save(masks(options.rows, options.runs, test, options.seed), options.out / "adapted.jpg")
    pictures = looks(options.rows, options.runs, source, test, options.seed)
    if pictures is None:
        print("no row translates or relights: no translated.jpg")
    else:
        save(pictures, options.out / "translated.jpg")


if __name__ == "__main__":
    main()
