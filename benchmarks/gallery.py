"""The same photographs under each method: `python -m benchmarks.gallery --runs FOLDER --out FILE ROW ROW ...`.

FOLDER is that of `benchmarks.unsupervised`, whose rows are named; rows that have not been run are left out, which is
said. A row of the picture is a method, a column a photograph that no run learned from. A cluster has the colour of the
class that the evaluation matched it to, so equal colours mean equal classes over all rows; the matching looked at the
true masks, which the second row shows. A cluster that was matched to no class is grey."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from benchmarks.plot import save
from benchmarks.records import data_root
from maskwright import api
from maskwright.data.masking.classes import IGNORE8, ClassTable
from maskwright.data.masking.masks import read_mask
from maskwright.predict.writers import overlay

WIDTH, LABEL, GAP = 200, 118, 4
UNMATCHED = (128, 128, 128)


def matched(ids: np.ndarray, mapping: dict[str, int]) -> np.ndarray:
    """Cluster ids as the classes that they were matched to; IGNORE8 for the others, uint8 (H, W)."""
    table = np.full(256, IGNORE8, np.uint8)
    for cluster, class_id in mapping.items():
        table[int(cluster)] = class_id
    return table[ids]


def tinted(image: np.ndarray, ids: np.ndarray, classes: ClassTable) -> Image.Image:
    """A photograph under a mask, `WIDTH` along its longer side; pixels of no class are grey."""
    pixels = overlay(image, ids, classes, 0.65)
    grey = (0.35 * image + 0.65 * np.array(UNMATCHED)).astype(np.uint8)
    return small(np.where((ids >= len(classes))[..., None], grey, pixels))


def small(pixels: np.ndarray) -> Image.Image:
    """A picture uint8 (H, W, 3), `WIDTH` along its longer side."""
    picture = Image.fromarray(pixels)
    width, height = (max(1, round(n * WIDTH / max(picture.size))) for n in picture.size)
    return picture.resize((width, height), Image.Resampling.LANCZOS)


def sheet(rows: Sequence[tuple[str, Sequence[Image.Image]]], label: int = LABEL) -> Image.Image:
    """Rows of small pictures, each behind its title; a short row is filled with white."""
    height = max(p.height for _, pictures in rows for p in pictures)
    columns = max(len(pictures) for _, pictures in rows)
    drawn = Image.new("RGB", (label + columns * (WIDTH + GAP), len(rows) * (height + GAP)), (255, 255, 255))
    pen, font = ImageDraw.Draw(drawn), ImageFont.load_default(14)
    for r, (title, pictures) in enumerate(rows):
        pen.multiline_text((6, r * (height + GAP) + height // 2 - 14), title, (20, 20, 20), font)
        for c, picture in enumerate(pictures):
            drawn.paste(picture, (label + c * (WIDTH + GAP), r * (height + GAP)))
    return drawn


def spread_evenly(images: int, shown: int = 4) -> list[int]:
    """Places of so many of a list's images, neither the first nor the last."""
    return [round(i) for i in np.linspace(0, images - 1, shown + 2)[1:-1]]


def main() -> None:
    """Writes the picture."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("rows", nargs="+")
    parser.add_argument("--data", default="camvid")
    parser.add_argument("--split", default="test")
    parser.add_argument("--runs", type=Path, default=Path("runs/unsupervised"))
    parser.add_argument("--names", default="", help="of the photographs, by comma; else four spread evenly")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    data = api.open_folder(data_root() / options.data).split(options.split)
    assert data.classes is not None
    if options.names:
        chosen = [data.names.index(name) for name in options.names.split(",")]
    else:
        chosen = spread_evenly(len(data))
    images = [data.image(i) for i in chosen]
    rows = [("photograph", [small(i) for i in images])]
    rows.append(("true mask", [tinted(p, data.mask(i), data.classes) for p, i in zip(images, chosen)]))
    for name in options.rows:
        folder = options.runs / f"{name}-0"
        if not (folder / "scores.json").exists():
            print(f"{name}: not run, left out")
            continue
        scores = json.loads((folder / "scores.json").read_text())
        masks = [matched(read_mask(folder / "masks" / f"{data.names[i]}.png"), scores["mapping"]) for i in chosen]
        title = f"{name.partition('-')[2]}\n{100 * scores['miou']:.1f} mIoU"
        rows.append((title, [tinted(p, m, data.classes) for p, m in zip(images, masks)]))
    save(sheet(rows), options.out)


if __name__ == "__main__":
    main()
