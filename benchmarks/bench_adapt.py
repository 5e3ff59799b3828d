"""Steps on two domains: DACS beside a supervised step on as many crops."""

from __future__ import annotations

import tempfile
from pathlib import Path

from benchmarks.bench_training import CLASSES, context_of, stepper, write_folder
from benchmarks.common import Row, one_thread, side_by_side
from maskwright.data.training.sources import MaskLabels
from maskwright.engine.config import configure
from maskwright.methods.adapt.dacs import DACSConfig, DACSTraining
from maskwright.methods.supervised import SupervisedConfig
from maskwright.recipes.training.training import NetworkTraining

ASKED = 1 / 1.7


def rows() -> list[Row]:
    """DACS on batches that lie ready, and with loading and views, as training meets them."""
    with tempfile.TemporaryDirectory() as folder, one_thread():
        root = Path(folder)
        write_folder(root / "data")
        context = context_of(root, "mobilenetv2_100", 6)
        labels = MaskLabels(context.data, CLASSES)
        dacs = DACSTraining(context, configure(DACSConfig, {"crop": 192, "batch": 4}), labels, 100)
        config = configure(SupervisedConfig, {"crop": 192, "batch": 8})
        supervised = NetworkTraining(context, config, labels, 100)
        found = []
        for fixed, what in ((True, "DACS step, 4 + 4 crops"), (False, "the same, loading and views included")):
            a, b = side_by_side(stepper(dacs, fixed), stepper(supervised, fixed), repeats=5)
            found.append(Row(what, a, "supervised step, 8 crops", b, ASKED))
    return found
