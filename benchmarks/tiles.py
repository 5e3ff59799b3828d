"""Photographs much larger than those trained on: seen whole or in tiles, where each way is right and where it is wrong.

    nice python -m benchmarks.tiles --work DIR

Trains `supervised` briefly on CamVid (480 x 360). Then two kinds of large picture are predicted whole and in the tiles
that `predict` would choose: mosaics of n x n test photographs (more things, each as large as in training) and test
photographs enlarged n times (the same things, each larger). Size alone does not tell the two apart: the table shows
what the choice gains and costs, and the mean confidence of both views."""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks.records import data_root, weights_root
from maskwright import api
from maskwright.data.folders.folder import Dataset
from maskwright.engine.progress import Progress
from maskwright.evaluate.confusion import ConfusionMatrix
from maskwright.evaluate.metrics import iou
from maskwright.predict.model import Model
from maskwright.predict.tiles import choose_tile

Picture = tuple[np.ndarray, np.ndarray]
"""A photograph uint8 (H, W, 3) and its ids (H, W)."""


def mosaic(data: Dataset, n: int) -> list[Picture]:
    """n x n photographs of a data set, spread over it, side by side."""
    places = np.linspace(0, len(data) - 1, n * n).round().astype(int).reshape(n, n)
    grids = [[[read(int(i)) for i in row] for row in places] for read in (data.image, data.mask)]
    image, ids = (np.concatenate([np.concatenate(row, 1) for row in grid], 0) for grid in grids)
    return [(image, ids)]


def enlarged(data: Dataset, n: int, count: int = 3) -> list[Picture]:
    """Photographs of a data set at n times their size."""
    pictures = []
    for i in np.linspace(0, len(data) - 1, count).round().astype(int):
        image, ids = data.image(int(i)), data.mask(int(i))
        size = (image.shape[1] * n, image.shape[0] * n)
        large = np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BICUBIC))
        pictures.append((large, ids.repeat(n, 0).repeat(n, 1)))
    return pictures


def judge(model: Model, pictures: list[Picture], tile: int) -> tuple[float, float]:
    """Mean IoU of the classes that occur, and mean confidence, both in percent."""
    matrix, sure = ConfusionMatrix(len(model.classes), len(model.classes), 255), []
    for image, ids in pictures:
        found = model.predict(image, tile=tile, refine="none")
        matrix.update(found.mask, ids)
        sure.append(float(found.confidence.mean()))
    return 100 * float(np.nanmean(iou(matrix.counts))), 100 * float(np.mean(sure))


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, help="where the run lies; a temporary folder if left out")
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--times", type=int, nargs="*", default=[4, 6])
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        run, data = (options.work or Path(scratch)) / "run", api.open_folder(data_root() / "camvid")
        if (run / "model.safetensors").exists():
            model = api.load(run)
        else:
            model = api.train(
                data, "supervised", split="train", out=run, backbone="mobilenetv2_100",
                weights=weights_root() / "mobilenetv2_100.safetensors", steps=options.steps, device="cpu",
                settings={"crop": 160}, report=False, progress=Progress(),
            )  # fmt: skip
    test = data.split("test")
    usual = [(test.image(i), test.mask(i)) for i in range(0, len(test), 20)]
    print(f"as they are, 480 x 360: mIoU {judge(model, usual, 0)[0]:.1f}")
    print("| picture | size | chosen | mIoU whole | mIoU tiles | confidence whole | confidence tiles |")
    print("|---|---|---|---|---|---|---|")
    for n in options.times:
        for kind, pictures in ((f"mosaic {n} x {n}", mosaic(test, n)), (f"enlarged {n} times", enlarged(test, n))):
            h, w = pictures[0][1].shape
            chosen = choose_tile(model.segmenter, (h, w))
            (whole, sure), (tiled, sure_tiled) = judge(model, pictures, 0), judge(model, pictures, chosen or 360)
            word = f"tiles of {chosen}" if chosen else "whole"
            print(
                f"| {kind} | {w} x {h} | {word} | {whole:.1f} | {tiled:.1f} | {sure:.1f} | {sure_tiled:.1f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
