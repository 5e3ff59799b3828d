"""The demo: photographs that come inside installed packages, segmented without a label."""

from __future__ import annotations

import importlib.util
import shutil
import time
from pathlib import Path

from maskwright.errors import MaskwrightError

PHOTOGRAPHS = {
    "skimage": tuple(
        f"data/{name}"
        for name in (
            "astronaut.png", "camera.png", "chelsea.png", "coffee.png", "coins.png", "motorcycle_left.png",
            "motorcycle_right.png", "rocket.jpg",
        )
    ),
    "sklearn": ("datasets/images/china.jpg", "datasets/images/flower.jpg"),
}  # fmt: skip
"""Photographs in scikit-image's and scikit-learn's wheels, below the package's folder."""

METHOD, CLUSTERS, STEPS = "stego", 8, 200


def collect_photographs(folder: Path) -> list[Path]:
    """Copies the photographs of the installed packages into a dataset folder.

    Args:
        folder: the dataset folder to make.

    Returns:
        The files written.

    Raises:
        MaskwrightError: when none of the packages is installed.
    """
    images = folder / "images"
    images.mkdir(parents=True, exist_ok=True)
    written = []
    for package, names in PHOTOGRAPHS.items():
        spec = importlib.util.find_spec(package)
        if spec is None or spec.origin is None:
            continue
        for name in names:
            source = Path(spec.origin).parent / name
            if source.is_file():
                target = images / source.name
                shutil.copyfile(source, target)
                written.append(target)
    if not written:
        raise MaskwrightError(
            "neither scikit-image nor scikit-learn is installed",
            "their photographs",
            "pip install 'maskwright[demo,offline]'",
        )
    return written


def run_demo(out: Path) -> Path:
    """Trains on the packages' photographs, writes their masks and overlays, and says what it did.

    Args:
        out: the run folder; an earlier demo there is replaced, anything else is left alone.

    Returns:
        The run folder.

    Raises:
        MaskwrightError: when the folder holds something else, or there are no photographs or weights.
    """
    from maskwright import api
    from maskwright.engine.records import RECORD, RunFolder

    start = time.perf_counter()
    out = Path(out)
    if (out / RECORD).exists() and (out / "photographs").is_dir():
        shutil.rmtree(out)
    elif out.exists() and any(out.iterdir()):
        raise MaskwrightError(f"{out} is not empty and holds no demo", "a new folder", "choose another --out")
    photographs = out.parent / f".{out.name}-photographs"
    shutil.rmtree(photographs, ignore_errors=True)
    try:
        collect_photographs(photographs)
        data = api.open_folder(photographs)
        model = api.train(data, METHOD, out=out / "run", classes=CLUSTERS, steps=STEPS)
        model.predict_folder(data, out / "masks", overlays=True)
        (out / "photographs").mkdir(exist_ok=True)
        for path in sorted((photographs / "images").iterdir()):
            shutil.copyfile(path, out / "photographs" / path.name)
    finally:
        shutil.rmtree(photographs, ignore_errors=True)
    record = RunFolder(out / "run")._read(out / "run" / RECORD)
    print(summary(record, out, time.perf_counter() - start))
    return out


def summary(record: dict, out: Path, seconds: float) -> str:
    """What the demo did, with which backbone, how many labels it read, and where to look."""
    backbone = record["backbone"]
    read = {k: sum(v.values()) for k, v in record["labels_read"].items()}
    return "\n".join(
        [
            "",
            f"Segmented {record['data']['images']} photographs with {record['method']['name']} in {seconds:.0f} s.",
            f"Backbone: {backbone['architecture']} ({backbone['source']}, {backbone['license']}).",
            f"Labels its weights saw: {backbone['labels_seen']}.",
            f"Labels read in this run: {read.get('train', 0)} for training, {read.get('select', 0)} for selection.",
            f"Report:   {out / 'run' / 'report.html'}",
            f"Masks:    {out / 'masks'}/*.png, overlays in {out / 'masks' / 'overlays'}",
            f"Model:    {out / 'run' / 'model.safetensors'}",
            f"Next:     maskwright predict {out / 'run'} YOUR_PHOTOGRAPHS --out masks",
        ]
    )
