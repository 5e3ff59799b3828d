"""Opening and examining a folder of photographs without masks, and the same by another checkout in the same run.

    python -m benchmarks.examine --count 2000 --old ../other/src

Both take turns, each in a process of its own, so that they share the machine's moods; printed are the times, their
medians and the ratio. The pictures are small JPEGs and PNGs, where what is done for each file counts most.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

SIDE = (160, 213)
RUN = """
import json, sys, time
from maskwright.api import open_folder
from maskwright.data.examining.doctor import examine
begin = time.perf_counter()
data = open_folder(sys.argv[1])
opened = time.perf_counter()
examine(data)
print(json.dumps([opened - begin, time.perf_counter() - opened]))
"""


def make_folder(folder: Path, count: int) -> None:
    """Writes smooth pictures with some noise, all different: two JPEGs for each PNG."""
    (folder / "images").mkdir(parents=True)
    rng = np.random.default_rng(0)
    grain = rng.normal(0, 4, (*SIDE, 3))
    for i in range(count):
        small = Image.fromarray(rng.integers(0, 256, (8, 10, 3), dtype=np.uint8))
        smooth = np.asarray(small.resize(SIDE[::-1], Image.Resampling.BICUBIC), float)
        picture = Image.fromarray(np.clip(smooth + np.roll(grain, i, 0), 0, 255).astype(np.uint8))
        if i % 3:
            picture.save(folder / "images" / f"{i:06d}.jpg", quality=88)
        else:
            picture.save(folder / "images" / f"{i:06d}.png", compress_level=1)


def seconds(source: Path, folder: Path) -> tuple[float, float]:
    """(open, examine) of the package in `source`."""
    environment = {**os.environ, "PYTHONPATH": str(source)}
    command = [sys.executable, "-c", RUN, str(folder)]
    out = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout
    opened, examined = json.loads(out.strip().splitlines()[-1])
    return opened, examined


def main() -> None:
    """Prints the times and the ratio."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=20_000, help="pictures in the folder")
    parser.add_argument("--old", type=Path, help="src/ of another checkout to compare with")
    parser.add_argument("--rounds", type=int, default=3, help="turns of each")
    options = parser.parse_args()
    sides = {"new": Path(__file__).resolve().parents[1] / "src"} | ({"old": options.old} if options.old else {})
    totals: dict[str, list[float]] = {name: [] for name in sides}
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "data"
        make_folder(folder, options.count)
        for name, source in sides.items():  # once unmeasured, so that all find the files in memory
            seconds(source, folder)
            print(f"{name}: warmed up", flush=True)
        for turn in range(options.rounds):
            for name, source in sorted(sides.items(), reverse=bool(turn % 2)):
                opened, examined = seconds(source, folder)
                totals[name].append(opened + examined)
                print(f"{name}: open {opened:.2f} s, examine {examined:.2f} s", flush=True)
    medians = {name: statistics.median(times) for name, times in totals.items()}
    for name, value in medians.items():
        print(f"{name}: median {value:.2f} s, {1000 * value / options.count:.3f} ms an image")
    if "old" in medians:
        print(f"ratio new / old: {medians['new'] / medians['old']:.2f}")


if __name__ == "__main__":
    main()
