"""The sweep of thresholds against judging each threshold on its own."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from maskwright.errors import MaskwrightError
from maskwright.evaluate.luss_sweep import ThresholdSweep
from maskwright.evaluate.protocols import evaluate_arrays


@settings(max_examples=10)
@given(st.integers(0, 10_000))
def test_each_threshold_is_judged_as_luss_judges_it(seed):
    rng = np.random.default_rng(seed)
    classes, thresholds = 3, (0.0, 0.2, 0.5, 0.9)
    names = ["other", "a", "b", "c"]
    images = []
    for _ in range(4):
        true = rng.integers(0, classes + 1, (6, 7)).astype(np.uint16)
        true[rng.random((6, 7)) < 0.1] = 65535
        images.append((rng.integers(1, classes + 1, (6, 7)), rng.random((6, 7)), true))
    sweep = ThresholdSweep(classes, classes, thresholds)
    for image in images:
        sweep.update(*image)
    for t, score in zip(thresholds, sweep.scores()):
        pairs = [(np.where(a < t, 0, p).astype(np.uint16), y) for p, a, y in images]
        assert score == pytest.approx(evaluate_arrays(pairs, names, "luss", other=True).miou, abs=1e-9)
    best, miou = sweep.best()
    assert miou == sweep.scores().max() and best in thresholds


def test_an_object_brighter_than_its_ground_is_found():
    true = np.zeros((10, 10), np.uint16)
    true[2:6, 2:6] = 1
    attention = np.where(true == 1, 0.7, 0.3)
    sweep = ThresholdSweep(1, 1)
    sweep.update(np.ones((10, 10), int), attention, true)
    t, miou = sweep.best()
    assert 0.3 < t <= 0.7 and miou == pytest.approx(1)


def test_bad_input_is_told():
    with pytest.raises(MaskwrightError, match="no image"):
        ThresholdSweep(2, 2).scores()
    with pytest.raises(MaskwrightError, match="ascending"):
        ThresholdSweep(2, 2, (0.5, 0.5))
    with pytest.raises(MaskwrightError, match="predicted id 3"):
        ThresholdSweep(2, 2).update(np.full((2, 2), 3), np.ones((2, 2)), np.zeros((2, 2), np.uint16))
