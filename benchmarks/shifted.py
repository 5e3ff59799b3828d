"""A second pair of domains, made from one data set: `python -m benchmarks.shifted camera OUT` or `drawn OUT`.

The photographs of one split are halved, every other one; one half is the labelled source, the other the target,
whose masks are the truth and the ceiling's. `camera` changes the target and the test photographs as another camera
would: gamma, colour cast, blur, noise. `drawn` changes the source: superpixels filled with few colours and dark
outlines, as in a drawing, while target and test stay photographs. How strong is an option each, and how far the pixels
move is printed.

OUT is an ordinary data set with the splits KIND_source, KIND_target and KIND_test; `python -m benchmarks.adapt --data
OUT --source KIND_source --target KIND_target --test KIND_test` makes the table. What is drawn at random is a function
of the photograph's place in its split alone."""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

import numpy as np
from PIL import Image
from scipy import ndimage

from benchmarks.records import data_root
from maskwright import api
from maskwright.data.folders.folder import Dataset
from maskwright.data.trust.files import write_text
from maskwright.ops.refinement.superpixels import slic

KINDS = ("camera", "drawn")


def camera(
    image: np.ndarray, number: int, gamma: float = 1.6, cast: float = 0.25, blur: float = 1.0, noise: float = 10.0
) -> np.ndarray:
    """A photograph as another camera might have taken it.

    Args:
        image: uint8 (H, W, 3).
        number: what the noise is drawn by.
        gamma: exponent of the values in [0, 1]; above 1 darker.
        cast: red is multiplied by 1 + cast / 2, blue by 1 - cast.
        blur: standard deviation of a Gaussian, pixels.
        noise: standard deviation of noise that all channels have of their own, grey levels of 255.

    Returns:
        uint8 (H, W, 3).
    """
    x = (image / 255.0) ** gamma * np.array((1 + cast / 2, 1.0, 1 - cast))
    if blur:
        x = ndimage.gaussian_filter(x, (blur, blur, 0))
    x = 255 * x + np.random.default_rng(number).normal(0, noise, x.shape)
    return x.round().clip(0, 255).astype(np.uint8)


def drawn(image: np.ndarray, segments: int = 600, levels: int = 6, outline: float = 12.0) -> np.ndarray:
    """A photograph as a flat drawing.

    Args:
        image: uint8 (H, W, 3).
        segments: superpixels, each filled with its mean colour.
        levels: values that each channel of a colour may have.
        outline: least difference of neighbouring colours, mean over the channels in grey levels, that gets a line.

    Returns:
        uint8 (H, W, 3).
    """
    ids = slic(image, segments).astype(np.int64)
    count = np.bincount(ids.ravel())
    means = np.stack([np.bincount(ids.ravel(), image[..., c].ravel()) / count for c in range(3)], axis=1)
    flat = ((means / 255 * (levels - 1)).round() / (levels - 1) * 255)[ids]
    line = np.zeros(ids.shape, bool)
    line[:, 1:] |= np.abs(flat[:, 1:] - flat[:, :-1]).mean(2) >= outline
    line[1:] |= np.abs(flat[1:] - flat[:-1]).mean(2) >= outline
    flat[line] *= 0.25
    return flat.round().astype(np.uint8)


def write(data: Dataset, kind: str, role: str, out: Path, options: argparse.Namespace) -> list[float]:
    """Writes the photographs of one part and their masks; gives by how many grey levels each changed, in the mean."""
    moved = []
    for i, name in enumerate(data.names):
        image = data.image(i)
        if kind == "camera" and role != "source":
            made = camera(image, i, options.gamma, options.cast, options.blur, options.noise)
        elif kind == "drawn" and role == "source":
            made = drawn(image, options.segments, options.levels, options.outline)
        else:
            made = image
        moved.append(float(np.abs(made.astype(int) - image).mean()))
        Image.fromarray(made).save(out / "images" / f"{name}.png")
        Image.fromarray(data.mask(i).astype(np.uint8)).save(out / "masks" / f"{name}.png")
    write_text(out / "splits" / f"{kind}_{role}.txt", "\n".join(data.names) + "\n")
    return moved


def main() -> None:
    """Writes the data set and says how far its domains lie apart."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kind", choices=KINDS)
    parser.add_argument("out", type=Path)
    parser.add_argument("--data", default="msrc_v2")
    parser.add_argument("--split", default="train", help="halved into source and target")
    parser.add_argument("--test", default="test")
    parser.add_argument("--gamma", type=float, default=1.6)
    parser.add_argument("--cast", type=float, default=0.25)
    parser.add_argument("--blur", type=float, default=1.0)
    parser.add_argument("--noise", type=float, default=10.0)
    parser.add_argument("--segments", type=int, default=600)
    parser.add_argument("--levels", type=int, default=6)
    parser.add_argument("--outline", type=float, default=12.0)
    options = parser.parse_args()
    if options.out.exists():
        raise SystemExit(f"{options.out} exists: choose another folder, or remove it first")
    beside = options.out.with_name(f".{options.out.name}.part")
    shutil.rmtree(beside, ignore_errors=True)
    for sub in ("images", "masks", "splits"):
        (beside / sub).mkdir(parents=True)
    whole = api.open_folder(data_root() / options.data)
    assert whole.classes is not None
    write_text(beside / "classes.txt", "\n".join(whole.classes.names) + "\n")
    halved = whole.split(options.split)
    parts = {
        "source": halved.subset(range(0, len(halved), 2)),
        "target": halved.subset(range(1, len(halved), 2)),
        "test": whole.split(options.test),
    }
    for role, part in parts.items():
        moved = write(part, options.kind, role, beside, options)
        print(f"{options.kind}_{role}: {len(part)} photographs, moved by {np.mean(moved):.1f} grey levels")
    beside.rename(options.out)


if __name__ == "__main__":
    main()
