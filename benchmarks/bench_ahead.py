"""Steps of a training whose photographs are large, with 0, 1 and 2 threads that read ahead.

Eight JPEGs of 2000 x 1500 pixels in a temporary folder; a supervised step on four crops of 256 and Mean Teacher's on
four and four. Torch computes in one thread, so that a second core is free for a thread that reads, as the many cores
beside a GPU are. Each time is of eight steps through the loop's own `Batches`, its start included."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from benchmarks.bench_training import CLASSES, context_of
from benchmarks.common import Row, one_thread, side_by_side
from maskwright.data.training.sources import MaskLabels
from maskwright.engine.ahead import Batches
from maskwright.engine.config import configure
from maskwright.methods.semi.mean_teacher import MeanTeacherConfig, MeanTeacherTraining
from maskwright.methods.supervised import SupervisedConfig
from maskwright.recipes.training.training import NetworkTraining

PICTURES, SIZE, STEPS = 8, (1500, 2000), 8


def write_photographs(root: Path) -> None:
    """Photograph-like noise, large, with masks of large squares."""
    rng = np.random.default_rng(0)
    for sub in ("images", "masks"):
        (root / sub).mkdir(parents=True)
    for k in range(PICTURES):
        coarse = Image.fromarray(rng.integers(0, 256, (200, 300, 3), dtype=np.uint8))
        coarse.resize(SIZE[::-1], Image.Resampling.BICUBIC).save(root / "images" / f"{k:02d}.jpg", quality=92)
        ids = rng.integers(0, CLASSES, (3, 4), dtype=np.uint8).repeat(500, 0).repeat(500, 1)
        Image.fromarray(ids).save(root / "masks" / f"{k:02d}.png")
    (root / "classes.txt").write_text("\n".join(f"class {c}" for c in range(CLASSES)) + "\n")


def trainer(training: Any, workers: int) -> Any:
    """A function that trains eight steps."""

    def train() -> None:
        draws = Batches(training, range(STEPS), lambda step: torch.Generator().manual_seed(step), workers)
        with draws as batches:
            for step in range(STEPS):
                training.update(training.setup.context.fabric, batches.next(), step)
                training.after_step(step)

    return train


def rows() -> list[Row]:
    """Reading ahead against reading in between, an optimiser step each."""
    found = []
    with tempfile.TemporaryDirectory() as folder, one_thread():
        root = Path(folder)
        write_photographs(root / "data")
        context = context_of(root, "mobilenetv3_small_050", PICTURES // 2)
        labels = MaskLabels(context.data, CLASSES)
        config = {"crop": 256, "batch": 4, "steps": 100}
        trainings = {
            "supervised step, 4 x 256": NetworkTraining(context, configure(SupervisedConfig, config), labels, 100),
            "Mean Teacher step, 4 + 4 x 256": MeanTeacherTraining(
                context, configure(MeanTeacherConfig, config), labels, 100
            ),
        }
        for what, training in trainings.items():
            none, one, two = side_by_side(*(trainer(training, w) for w in (0, 1, 2)), repeats=3)
            for workers, seconds in ((1, one), (2, two)):
                says = f"{what}, {workers} thread{'s' * (workers > 1)} ahead"
                found.append(Row(says, seconds / STEPS, "read in between", none / STEPS, 0))
    return found
