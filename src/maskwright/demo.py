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
    """Copies the photographs of the installed packages into a folder.

    Args:
        folder: the folder to make; it is a dataset, of images alone.

    Returns:
        The files written.

    Raises:
        MaskwrightError: when none of the packages is installed.
    """
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for package, names in PHOTOGRAPHS.items():
        spec = importlib.util.find_spec(package)
        if spec is None or spec.origin is None:
            continue
        for name in names:
            source = Path(spec.origin).parent / name
            if source.is_file():
                target = folder / source.name
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
        out: the run folder; an earlier demo there is replaced, a folder with anything else is refused.

    Returns:
        The run folder.

    Raises:
        MaskwrightError: when the folder holds something else, or there are no photographs or weights.
    """
    from maskwright import api
    from maskwright.data.trust.artefacts import read_record
    from maskwright.engine.records import RECORD, SHAPE

    start = time.perf_counter()
    out = Path(out)
    photographs, run, masks = out / "photographs", out / "run", out / "masks"
    if out.exists() and not out.is_dir():
        raise MaskwrightError(f"{out} is a file", "a folder for the demo", "choose another --out")
    if out.is_dir() and any(out.iterdir()) and not _is_demo(out):
        raise MaskwrightError(f"{out} holds other files", "a new folder or an earlier demo", "choose another --out")
    for part in (photographs, run, masks):
        shutil.rmtree(part, ignore_errors=True)
    collect_photographs(photographs)
    data = api.open_folder(photographs)
    model = api.train(data, METHOD, out=run, classes=CLUSTERS, steps=STEPS)
    model.predict_folder(data, masks, overlays=True)
    record = read_record(run / RECORD, SHAPE, what="the record of the demo's run", repair="repeat the demo")
    print(summary(record, out, time.perf_counter() - start))
    return out


def _is_demo(out: Path) -> bool:
    """Whether a folder holds what a demo left and nothing else."""
    known = {Path(name).name for names in PHOTOGRAPHS.values() for name in names}
    photographs = out / "photographs"
    if not photographs.is_dir() or {p.name for p in out.iterdir()} - {"photographs", "run", "masks"}:
        return False
    return {p.name for p in photographs.iterdir()} <= known


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
