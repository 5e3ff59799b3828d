"""How right are the labels that rounds of self-training believe? `python -m benchmarks.round_labels RUN --split SPLIT`.

RUN is of `cbst` or `uda_sod`, SPLIT the target's. For `cbst`: what share of the pixels each round labels, and what
percent of these are right, of all and of each class. For `uda_sod`: of the photographs that a round believed, of as
many by `relative_variance`, and of all that were not dropped, what percent of the pixels is labelled as object, what
percent is, and the mean IoU of both. RUN may be a folder of masks of objects too, of which it says the same. Masks are
looked at for these figures alone; it trains nothing and chooses nothing."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch

from benchmarks.class_shares import line
from benchmarks.records import data_root
from maskwright import api
from maskwright.data.folders.folder import Dataset
from maskwright.data.masking.masks import read_mask
from maskwright.data.training.proposals import Proposals
from maskwright.evaluate.confusion import ConfusionMatrix
from maskwright.methods.adapt.uda_sod.method import MASKS, SELECTION
from maskwright.methods.adapt.uda_sod.uncertainty import believed


def right(labels: np.ndarray, mask: np.ndarray, classes: int) -> np.ndarray:
    """Labelled pixels of each class: int64 (2, C), those that are right, and all whose class is known."""
    matrix = ConfusionMatrix(classes, classes, extra=True)
    matrix.update(labels, mask)
    counts = matrix.counts[:classes]  # the row behind them is of pixels without a label
    return np.stack([counts.diagonal(), counts.sum(1)])


def overlap(found: np.ndarray, true: np.ndarray) -> tuple[float, float, float]:
    """Percent of the pixels labelled as object, percent that are one, and the IoU of both, 1 where both are empty."""
    union = (found | true).sum()
    return 100 * found.mean(), 100 * true.mean(), (found & true).sum() / union if union else 1.0


def rows_of_classes(run: Path, data: Dataset) -> list[str]:
    """The table of a run of `cbst`."""
    assert data.classes is not None
    names = data.classes.names
    lines = [f"| round | labelled | right | {' | '.join(names)} |", "|---" * (len(names) + 3) + "|"]
    for folder in sorted(run.glob("label_*")):
        counts, pixels = np.zeros((2, len(names)), np.int64), 0
        for i, name in enumerate(data.names):
            labels, mask = read_mask(folder / "labels" / "masks" / f"{name}.png"), data.mask(i)
            counts += right(labels, mask, len(names))
            pixels += mask.size
        good, made = counts
        figures = [100 * made.sum() / pixels, 100 * good.sum() / made.sum(), *(100 * good / np.maximum(made, 1))]
        lines.append(line(folder.name, figures, ".1f"))
    return lines


HEAD = ["| photographs | labelled as object | are object | IoU |", "|---|---|---|---|"]


def row_of(what: str, judged: Sequence[tuple[float, float, float]]) -> str:
    """Means over photographs."""
    found, true, iou = np.mean(judged, axis=0)
    return line(f"{len(judged)} {what}", [found, true, 100 * iou], ".1f")


def rows_of_masks(folder: Path, data: Dataset) -> list[str]:
    """The table of a folder of masks."""
    judged = [overlap(read_mask(folder / f"{name}.png") == 1, data.mask(i) == 1) for i, name in enumerate(data.names)]
    return [*HEAD, row_of(folder.name, judged)]


def rows_of_objects(run: Path, data: Dataset) -> list[str]:
    """The table of a run of `uda_sod`."""
    lines = list(HEAD)
    for folder in sorted(run.glob("label_*")):
        record = json.loads((folder / SELECTION).read_text())
        store, judged = Proposals(folder / MASKS), {}
        for i, name in enumerate(data.names):
            p = store.soft(name).values[None, None].float()
            mask = data.mask(i)
            p = torch.nn.functional.interpolate(p, mask.shape, mode="bilinear", align_corners=False)
            judged[name] = overlap(p[0, 0].numpy() >= 0.5, mask == 1)
        variance: Mapping[str, float] = record["mean_variance"]
        share: Mapping[str, float] = record["salient_share"]
        asked = {"portion": record["portion"]}
        groups: dict[str, Sequence[str]] = {
            "believed": record["believed"],
            "by relative variance": believed(variance, share, relative=True, **asked).names,
            "all but the dropped": believed(variance, share, **asked).ranking,
        }
        for which, names in groups.items():
            lines.append(row_of(f"{which}, {folder.name}", [judged[n] for n in names]))
    return lines


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--data", default="camvid")
    parser.add_argument("--split", default="dusk_train", help="of the target")
    options = parser.parse_args()
    data = api.open_folder(data_root() / options.data).split(options.split)
    rounds = options.run / "label_1"
    rows = rows_of_objects if (rounds / SELECTION).exists() else rows_of_classes if rounds.exists() else rows_of_masks
    with data.ledger.purpose("evaluate"):
        print("\n".join(rows(options.run, data)))


if __name__ == "__main__":
    main()
