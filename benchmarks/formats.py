"""What label formats change: masks to each format and back, for several tolerances.

    python -m benchmarks.formats --data DATA --split val --out runs/formats

Prints a table for docs/data.md: pixels that differ, the mean and the lowest IoU of a class over all masks, points or
bytes a mask, seconds a mask for writing and for reading. `thin` are drawn curves of 1 to 5 pixels.
"""

from __future__ import annotations

import argparse
import shutil
import time
from pathlib import Path

import numpy as np
from PIL import Image

from maskwright.data.annotations.converting import convert
from maskwright.data.annotations.writing import OUTLINES, TARGETS
from maskwright.data.folders.folder import open_folder
from maskwright.data.masking.label_rules import ignore_of
from maskwright.evaluate.confusion import ConfusionMatrix


def thin_structures(root: Path, count: int = 4, side: int = 256) -> Path:
    """Curves that cross one another, 1 to 5 pixels wide, a class for each width, and photographs without content."""
    (root / "images").mkdir(parents=True)
    (root / "masks").mkdir()
    y, x = np.mgrid[:side, :side] + 0.5
    for k in range(count):
        ids = np.zeros((side, side), np.uint8)
        rng = np.random.default_rng(k)
        for width in range(5, 0, -1):
            angle, phase = rng.uniform(0, np.pi), rng.uniform(0, 6)
            u, v = x * np.cos(angle) + y * np.sin(angle), y * np.cos(angle) - x * np.sin(angle)
            wave = 20 * np.sin(u / 18 + phase)
            slope = np.sqrt(1 + (20 / 18 * np.cos(u / 18 + phase)) ** 2)
            middle = side / 2 * (np.cos(angle) - np.sin(angle)) + rng.uniform(-60, 60)
            ids[np.abs(v - middle - wave) < slope * width / 2] = width
        Image.fromarray(ids).save(root / "masks" / f"{k}.png")
        Image.fromarray(np.full((side, side, 3), 120, np.uint8)).save(root / "images" / f"{k}.png")
    names = ["background", *(f"{w} pixels" for w in range(1, 6))]
    (root / "classes.txt").write_text("".join(f"{name}\n" for name in names))
    return root


def there_and_back(data: str, split: str | None, to: str, tolerance: float, work: Path) -> list[str]:
    """A row of the table."""
    shutil.rmtree(work, ignore_errors=True)
    start = time.perf_counter()
    done = convert(data, work, to, split=split, tolerance=tolerance)
    wrote = (time.perf_counter() - start) / done.masks
    before, after = open_folder(data), open_folder(work)
    start = time.perf_counter()
    found = {item.name: after.mask(i) for i, item in enumerate(after.items) if item.mask is not None}
    read = (time.perf_counter() - start) / done.masks
    classes = len(before.classes or ())
    matrix = ConfusionMatrix(classes + 1, classes + 1)
    changed = pixels = 0
    for name, ids in found.items():
        truth = before.mask(before.index(name))
        pair = [np.where(v == ignore_of(v), classes, v).astype(np.int64) for v in (ids, truth)]
        matrix.update(*pair)
        changed += int((pair[0] != pair[1]).sum())
        pixels += truth.size
    counts = matrix.counts
    union = counts.sum(0) + counts.sum(1) - np.diag(counts)
    iou = np.diag(counts)[union > 0] / union[union > 0]
    files = (p for p in work.rglob("*") if p.suffix in (".json", ".xml", ".txt"))
    size = sum(p.stat().st_size for p in files if p.parent.name != "splits") / done.masks / 1024
    return [
        to, f"{tolerance:g}" if to in OUTLINES else "", f"{changed / pixels:.2%}", f"{100 * iou.mean():.1f}",
        f"{100 * iou.min():.1f}", f"{size:.0f}" if to in OUTLINES else "", f"{1000 * wrote:.0f}", f"{1000 * read:.0f}",
    ]  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", required=True)
    parser.add_argument("--split", default=None)
    parser.add_argument("--out", type=Path, default=Path("runs/formats"))
    parser.add_argument("--tolerances", default="0,1,2")
    options = parser.parse_args()
    shutil.rmtree(options.out, ignore_errors=True)
    sets = {"photographs": (options.data, options.split), "thin": (str(thin_structures(options.out / "thin")), None)}
    for title, (data, split) in sets.items():
        print(f"\n| {title} | tolerance | pixels changed | mean IoU | lowest IoU | KiB a mask | ms written | ms read |")
        print("|---|---|---|---|---|---|---|---|")
        for to in TARGETS:
            if to == "binary":
                continue
            for tolerance in map(float, options.tolerances.split(",")) if to in OUTLINES else (0.0,):
                print(f"| {' | '.join(there_and_back(data, split, to, tolerance, options.out / 'work'))} |", flush=True)


if __name__ == "__main__":
    main()
