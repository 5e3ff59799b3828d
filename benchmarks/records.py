"""What the table scripts share: where the photographs lie, and the records of runs behind a published number."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np


def data_root() -> Path:
    """The folder of the datasets: MASKWRIGHT_DATA, or the data folder beside the project."""
    named = os.environ.get("MASKWRIGHT_DATA")
    return Path(named) if named else Path(__file__).resolve().parents[2] / "shared" / "data"


def weights_root() -> Path:
    """The folder of small pretrained networks beside the datasets."""
    return data_root().parent / "weights"


def keep(folder: Path, to: Path) -> None:
    """Copies a run's records, without its model, with the data root written as DATA.

    Args:
        folder: with `scores.json` and what else judged the run; the run is it or lies in it as `run`.
        to: where they go.
    """
    root = data_root()
    names = ("scores.json", "curve.json", "run.json", "metrics.jsonl")
    for source in (place / name for name in names for place in (folder, folder / "run")):
        if source.exists():
            to.mkdir(parents=True, exist_ok=True)
            text = source.read_text().replace(str(root), "DATA").replace(str(root.parent), "DATA/..")
            (to / source.name).write_text(text)


def spread(values: Sequence[float]) -> str:
    """Mean, and the sample standard deviation where there is more than one value."""
    mean = f"{np.mean(values):.2f}"
    return f"{mean} ± {np.std(values, ddof=1):.2f}" if len(values) > 1 else mean
