"""From maps to masks in pictures: `python -m benchmarks.walk_figure RUN RUN --out docs/walk.jpg`.

Each RUN is a run folder of the tag pipeline (`benchmarks.tags` leaves them as ROW-SEED/run). A line of the figure is a
photograph, for each run the largest of the maps that its seeds were made of, walked or not, and the pseudo mask of the
last run. Photographs are spread evenly over the split; no mask but the pseudo masks is opened."""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks.cam_figures import tile
from benchmarks.plot import save
from benchmarks.records import data_root
from benchmarks.tags import seed_maps
from maskwright import api
from maskwright.data.masking.masks import read_mask
from maskwright.predict.sheet import heat_colors
from maskwright.predict.writers import overlay


def main() -> None:
    """Draws the figure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("runs", nargs="+", type=Path)
    parser.add_argument("--data", default="voc_part")
    parser.add_argument("--split", default="train")
    parser.add_argument("--shown", type=int, default=6)
    parser.add_argument("--out", type=Path, default=Path("docs/walk.jpg"))
    options = parser.parse_args()
    data = api.open_folder(data_root() / options.data).split(options.split)
    assert data.classes is not None
    stores = [seed_maps(run) for run in options.runs]
    drawn = [i for i, name in enumerate(data.names) if all(name in store for store in stores)]
    lines = []
    for i in drawn[:: max(1, len(drawn) // options.shown)][: options.shown]:
        name, image = data.names[i], data.image(i)
        maps = [store.read(name).top()[0].numpy() for store in stores]
        ids = read_mask(options.runs[-1] / "seeds" / "masks" / f"{name}.png")
        cells = [image, *(heat_colors(m) for m in maps), overlay(image, ids, data.classes, strength=0.6)]
        lines.append(np.concatenate([tile(cell) for cell in cells], axis=1))
    save(Image.fromarray(np.concatenate(lines)), options.out)


if __name__ == "__main__":
    main()
