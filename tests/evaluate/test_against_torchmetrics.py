"""The same counts and figures as torchmetrics; one module only, because its import takes seconds."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from maskwright.evaluate import metrics
from maskwright.evaluate.confusion import ConfusionMatrix

torchmetrics = pytest.importorskip("torchmetrics")


def test_counts_iou_and_accuracy() -> None:
    rng = np.random.default_rng(0)
    c = 21
    ours = ConfusionMatrix(c, c)
    theirs = torchmetrics.classification.MulticlassConfusionMatrix(c, ignore_index=255)
    jaccard = torchmetrics.classification.MulticlassJaccardIndex(c, average="none", ignore_index=255)
    accuracy = torchmetrics.classification.MulticlassAccuracy(c, average="micro", ignore_index=255)
    for _ in range(3):
        true = np.kron(rng.integers(0, c, (9, 12)), np.ones((8, 8), int)).astype(np.uint8)
        pred = np.where(rng.random(true.shape) < 0.2, rng.integers(0, c, true.shape), true).astype(np.uint8)
        true[rng.random(true.shape) < 0.1] = 255
        ours.update(pred, true)
        p, t = torch.from_numpy(pred).long(), torch.from_numpy(true).long()
        for metric in (theirs, jaccard, accuracy):
            metric.update(p, t)
    assert np.array_equal(ours.counts, theirs.compute().numpy().T)
    assert np.allclose(metrics.iou(ours.counts), jaccard.compute().numpy(), atol=1e-6)
    assert metrics.pixel_accuracy(ours.counts) == pytest.approx(float(accuracy.compute()), abs=1e-6)
