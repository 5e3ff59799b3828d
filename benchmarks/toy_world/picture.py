"""The picture of the toy world in docs/language.md: `python -m benchmarks.toy_world.picture --runs FOLDER --out FILE`.

A column a held-out scene: the scene, its true mask, and the masks of some rows of `table.py`."""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks.toy_world.scenes import CLASSES, COLOURS, FILLINGS, GROUNDS, SIDE
from benchmarks.toy_world.table import truth_of
from maskwright import api
from maskwright.data.masking.masks import read_mask

SHOWN = ("scene-maskclip-values", "scene-naclip", "scene-reco")
PALETTE = np.array([*COLOURS.values(), (230, 130, 40), (60, 200, 210), *GROUNDS.values()], np.uint8)
"""Striped things orange, spotted ones turquoise, all others in their own colours."""


def main() -> None:
    """Writes the picture."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=Path, default=Path("runs/toy"))
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--scenes", type=int, default=12)
    options = parser.parse_args()
    assert len(PALETTE) == len(FILLINGS) + len(GROUNDS) < len(CLASSES)
    held = api.open_folder(options.runs / "scenes").split("test")
    rows = [[held.image(i) for i in range(options.scenes)]]
    rows.append([PALETTE[truth_of(held.mask(i), "scene")] for i in range(options.scenes)])
    for name in SHOWN:
        masks = options.runs / f"{name}-0" / "masks"
        rows.append([PALETTE[read_mask(masks / f"{n}.png")] for n in held.names[: options.scenes]])
    framed = [
        np.concatenate([np.pad(p, ((2, 2), (2, 2), (0, 0)), constant_values=255) for p in row], 1) for row in rows
    ]
    whole = Image.fromarray(np.concatenate(framed, 0))
    whole.resize((whole.width * 80 // SIDE, whole.height * 80 // SIDE), Image.Resampling.NEAREST).save(options.out)


if __name__ == "__main__":
    main()
