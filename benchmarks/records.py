"""What the table scripts share: where the photographs lie, and the records of runs behind a published number."""

from __future__ import annotations

import argparse
import fnmatch
import json
import os
import shutil
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from maskwright import api
from maskwright.data.folders.folder import Dataset
from maskwright.engine.progress import Progress
from maskwright.engine.records import LEDGER
from maskwright.predict.model import Model
from maskwright.recipes.training.norm_statistics import retake_as_recorded


def data_root() -> Path:
    """The folder of the datasets: MASKWRIGHT_DATA, or the data folder beside the project."""
    named = os.environ.get("MASKWRIGHT_DATA")
    return Path(named) if named else Path(__file__).resolve().parents[2] / "shared" / "data"


def weights_root() -> Path:
    """The folder of small pretrained networks beside the datasets."""
    return data_root().parent / "weights"


def keep(folder: Path, to: Path) -> None:
    """Copies a run's records, without its model, with the data root written as DATA and the runs' folder as RUNS.

    Args:
        folder: with `scores.json` and what else judged the run; the run is it or lies in it as `run`.
        to: where they go.
    """
    root = data_root()
    judged = ("scores.json", "validation.json", "groups.json", "hungarian.json", "curve.json")
    names = (*judged, "run.json", "metrics.jsonl")
    for source in (place / name for name in names for place in (folder, folder / "run")):
        if source.exists():
            to.mkdir(parents=True, exist_ok=True)
            text = source.read_text()
            for path, name in ((root, "DATA"), (root.parent, "DATA/.."), (folder.resolve().parent, "RUNS")):
                text = text.replace(str(path), name)
            (to / source.name).write_text(text)


def take_over(source: Path, place: Path, stage: str) -> None:
    """Copies a stage that another run has done, and what that run read of labels."""
    if (place / stage).exists():
        return
    if not (source / stage / "stage.json").exists():
        raise SystemExit(f"{source / stage}: not done; run the row it belongs to first")
    place.mkdir(parents=True, exist_ok=True)
    beside = place / f".{stage}.copy"
    shutil.rmtree(beside, ignore_errors=True)
    shutil.copytree(source / stage, beside)
    beside.rename(place / stage)
    if not (place / LEDGER).exists():
        shutil.copy(source / LEDGER, place / LEDGER)


def other_of(model: Model, run: Path, seen: Dataset) -> Model | None:
    """The network of a run beside the kept one, as `teacher.final` would have kept it; None where there is none.

    Args:
        model: what the run left.
        run: its folder.
        seen: the photographs whose batch-norm statistics it gets, where the kept one got some.
    """
    other = api.other_network(model, run)
    if other is None:
        return None
    retake_as_recorded(other.to(model.device), run, seen, torch.device(model.device))
    return Model(other, model.segmenter.extra, device=model.device)


def spread(values: Sequence[float]) -> str:
    """Mean, and the sample standard deviation where there is more than one value."""
    mean = f"{np.mean(values):.2f}"
    return f"{mean} ± {np.std(values, ddof=1):.2f}" if len(values) > 1 else mean


def add_options(parser: argparse.ArgumentParser, runs: str) -> None:
    """Which rows and seeds of a table are run, on what, and where they go; `runs` is the default folder."""
    parser.add_argument("--only", default="*", help="rows, as patterns joined by commas")
    parser.add_argument("--seeds", default="0", help="seeds of the rows that get several; the others get the first")
    add_training_options(parser, runs)


def add_training_options(
    parser: argparse.ArgumentParser, runs: str, crop: int = 192, backbone: str = "mobilenetv2_100"
) -> None:
    """How a segmentation network is trained, where the runs go and what is kept of them, with their defaults."""
    parser.add_argument("--crop", type=int, default=crop, help="of the segmentation network's training")
    parser.add_argument("--batch", type=int, default=4, help="of the segmentation network's training")
    parser.add_argument("--backbone", default=backbone)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--threads", type=int, default=0, help="of torch; 0: its own choice")
    parser.add_argument("--runs", type=Path, default=Path(runs))
    parser.add_argument("--keep", type=Path, help="copies the runs' records there, and what is made of them")


def begun(options: argparse.Namespace) -> Progress:
    """Sets torch's threads as `add_training_options` was told, and shows what comes."""
    if options.threads:
        torch.set_num_threads(options.threads)
    return Progress()


def scores_in(runs: Path) -> list[dict[str, Any]]:
    """What judged the rows' runs in this folder, by the names of theirs."""
    return [json.loads(file.read_text()) for file in sorted(runs.glob("*/scores.json"))]


def of_steps(steps: int, published: int) -> str:
    """What the names of kept records have where a table's rows had other steps than the published one's."""
    return "" if steps == published else f"{steps}-"


def run_rows(
    rows: Iterable[str], several: Sequence[str], options: argparse.Namespace, runs: Path, kept: str,
    run: Callable[[str, int, Path], None],
) -> None:  # fmt: skip
    """Runs what `add_options` asks for and is not done; done is a row whose folder holds `scores.json`.

    Args:
        rows: all names.
        several: those that get all seeds; the others get the first.
        options: parsed.
        runs: folder of the rows' folders, ROW-SEED.
        kept: what the folders of kept records begin with.
        run: trains and judges a row with a seed in a folder.
    """
    progress, seeds = begun(options), [int(s) for s in options.seeds.split(",")]
    for name in rows:
        if not any(fnmatch.fnmatch(name, p) for p in options.only.split(",")):
            continue
        for seed in seeds if name in several else seeds[:1]:
            folder = runs / f"{name}-{seed}"
            if not (folder / "scores.json").exists():
                progress.say(f"== {name}, seed {seed}")
                run(name, seed, folder)
            if options.keep:
                keep(folder, options.keep / f"{kept}-{folder.name}")
