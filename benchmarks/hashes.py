"""Does a change leave every weight as it was?

    python -m benchmarks.hashes > before.txt        # then the change, then
    python -m benchmarks.hashes --against before.txt

Trains every method of the table on a tiny folder that it draws itself, one thread, and prints a line a method: its name
and the SHA-256 over the names, types, shapes and bytes of the tensors of its bundle. `--against` compares with an
earlier output and exits with 1 where a line differs; the methods are then those of that output. Methods on words train
nothing and need a tower, which cannot be drawn: they are left out. Hashes hold for one machine and one version of
torch."""

from __future__ import annotations

import argparse
import hashlib
import os
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file

import maskwright as mw
from maskwright.engine.config import describe
from maskwright.engine.progress import Progress
from maskwright.methods import TABLE

SMALL = {
    "short_side": 64, "restarts": 2, "batch": 4, "segments": 4, "hidden": 16, "crop": 32, "start": 0.0, "er_ramp": 0.0,
    "representation": 32, "queries": 64, "precision": "fp32", "tag_crop": 32, "tag_batch": 4, "local_side": 16,
    "decoder_width": 32, "scales": (0.5, 1.0), "local_crop": 32, "prototypes": 4,
}  # fmt: skip
"""Options that make a run small, for methods that have them."""


def draw_folder(root: Path, count: int = 10, size: tuple[int, int] = (48, 64), seed: int = 0) -> Path:
    """A dataset folder: a textured disc (class 1) or square (class 2) on a plain ground, with masks and tags."""
    random = np.random.default_rng(seed)
    for part in ("images", "masks"):
        (root / part).mkdir(parents=True)
    (root / "classes.txt").write_text("ground\ndisc\nsquare\n")
    rows, columns = np.mgrid[: size[0], : size[1]]
    tags = ["name,tags"]
    for i in range(count):
        kind, name = 1 + i % 2, f"picture_{i:02d}"
        y, x = (int(random.integers(n // 3, 2 * n // 3)) for n in size)
        far = np.hypot(rows - y, columns - x) if kind == 1 else np.maximum(abs(rows - y), abs(columns - x))
        inside = far < size[0] // 4
        image = np.full((*size, 3), (90, 140, 90)) + random.normal(0, 6, (*size, 3))
        image[inside] = ((220, 60, 40), (40, 70, 220))[kind - 1] + random.normal(0, 12, (int(inside.sum()), 3))
        Image.fromarray(image.clip(0, 255).astype(np.uint8)).save(root / "images" / f"{name}.png")
        Image.fromarray((inside * kind).astype(np.uint8)).save(root / "masks" / f"{name}.png")
        tags.append(f"{name},{('disc', 'square')[kind - 1]}")
    (root / "tags.csv").write_text("\n".join(tags) + "\n")
    return root


def hash_of(model: Path) -> str:
    """SHA-256 over the tensors of a bundle, in the order of their names."""
    digest = hashlib.sha256()
    for name, tensor in sorted(load_file(model).items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def train(name: str, data: Path, out: Path, steps: int) -> str:
    """Trains one method; the hash of its model."""
    method = mw.METHODS[name]
    known = {o["old"] for o in describe(method.Config)}
    vit, learns = method.backbones == "vit", "network" in known
    backbone = "test_vit" if vit else "mobilenetv3_small_050" if learns else "tf_efficientnet_lite0"
    beside = {name: str(data.with_name("beside")) for name in method.streams_taken(method.Config())}
    classes = 2 if method.classes_from == "objects" else 3
    mw.train(
        data, name, out=out, source=beside or None, classes=classes, backbone=backbone, weights="random", steps=steps,
        device="cpu", report=False,
        settings={k: v for k, v in SMALL.items() if k in known}, progress=Progress(quiet=True),
    )  # fmt: skip
    return hash_of(out / "model.safetensors")


def main() -> int:
    """Prints the hashes, or what differs from an earlier output."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", nargs="+")
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--against", type=Path, help="an earlier output")
    options = parser.parse_args()
    torch.set_num_threads(1)
    before = {}
    if options.against is not None:
        before = dict(line.split() for line in options.against.read_text().splitlines())
    everything = sorted(before) or [name for name in sorted(TABLE) if mw.METHODS[name].backbones != "joint"]
    methods, changed = options.methods or everything, []
    with tempfile.TemporaryDirectory() as scratch:
        os.environ["MASKWRIGHT_CACHE"] = str(Path(scratch, "cache"))
        data = draw_folder(Path(scratch, "data"))
        draw_folder(Path(scratch, "beside"), seed=1)  # for methods that take a source
        for name in methods:
            found = train(name, data, Path(scratch, name), options.steps)
            differs = name in before and before[name] != found
            changed += [name] if differs else []
            print(f"{name} {found}", flush=True)
            if differs:
                print(f"{name} was {before[name]}", file=sys.stderr, flush=True)
    if before:
        print(f"{len(methods) - len(changed)} of {len(methods)} are as before", file=sys.stderr)
    return 1 if changed else 0


if __name__ == "__main__":
    sys.exit(main())
