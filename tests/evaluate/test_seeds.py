from __future__ import annotations

import math

import numpy as np
import pytest

from maskwright.evaluate.metrics import iou, miou
from maskwright.evaluate.seeds import ThresholdSweep, scale_consistency


def scene(seed: int = 0, classes: int = 4):
    rng = np.random.default_rng(seed)
    value = np.round(rng.random((20, 30)), 3)
    value[:3] = 0
    top = rng.integers(1, classes, (20, 30))
    true = np.where(value > 0.4 + 0.2 * rng.random((20, 30)), top, 0)
    true[rng.random((20, 30)) < 0.1] = 255
    return value, top, true


def direct(value, top, true, t, background, classes=4):
    """Counts by masks of pixels, one threshold."""
    rest = classes if background is None else background
    pred = np.where((value >= t) & (value > 0), top, rest)
    counts = np.zeros((classes + 1, classes), int)
    for p, y in zip(pred[true != 255], true[true != 255]):
        counts[p, y] += 1
    return counts


@pytest.mark.parametrize("background", [0, None])
def test_sweep_is_the_count_at_every_threshold(background):
    sweep = ThresholdSweep(4, background, bins=20)
    images = [scene(s) for s in range(2)]
    for value, top, true in images:
        sweep.update(value, top, true)
    for k in range(20):
        expected = sum(direct(*image, k / 20, background) for image in images)
        assert np.array_equal(sweep.counts(k), expected), k


def test_curve_and_best():
    sweep = ThresholdSweep(4, 0, bins=50)
    sweep.update(*scene())
    curve = sweep.curve()
    assert len(curve) == 50 and [p.threshold for p in curve] == sorted(p.threshold for p in curve)
    best = sweep.best()
    assert best.miou == max(p.miou for p in curve)
    assert 0.35 < best.threshold < 0.65
    point = curve[25]
    counts = direct(*scene(), 0.5, 0)
    assert point.miou == pytest.approx(miou(counts)) and point.labeled == 1
    # both figures by hand: over true positives in the paper, over the union in the code
    right = np.array([counts[c, c] for c in range(4)])
    missed, added = counts.sum(0) - right, counts[:4].sum(1) - right
    assert point.mfn == pytest.approx((missed / right)[1:].mean())
    assert point.mfp == pytest.approx((added / right)[1:].mean())
    union = right + missed + added
    assert point.mfn_code == pytest.approx((missed / union)[1:].mean())
    assert point.mfp_code == pytest.approx((added / union)[1:].mean())
    assert np.allclose(1 - iou(counts)[1:], ((missed + added) / union)[1:])


def test_without_background_pixels_below_count_as_missed():
    sweep = ThresholdSweep(4, None, bins=10)
    value, top, true = scene()
    sweep.update(value, top, np.where(true == 255, 255, top))
    curve = sweep.curve()
    assert curve[1].labeled > curve[8].labeled > 0
    assert curve[1].miou > curve[8].miou, "all labels are right, so fewer are worse"


def test_sweep_refuses():
    sweep = ThresholdSweep(3, 0)
    with pytest.raises(ValueError, match="shapes"):
        sweep.update(np.zeros((2, 2)), np.zeros((2, 3), int), np.zeros((2, 2), int))
    with pytest.raises(ValueError, match="top ids"):
        sweep.update(np.zeros((2, 2)), np.full((2, 2), 3), np.zeros((2, 2), int))


def test_scale_consistency():
    rng = np.random.default_rng(0)
    maps = [rng.random((2, 4, 5)) for _ in range(3)]
    out = scale_consistency(maps)
    assert np.array_equal(out, out.T) and not np.diag(out).any()
    assert out[0, 2] == pytest.approx(np.abs(maps[0] - maps[2]).mean())
    assert not scale_consistency([maps[0]] * 3).any()
    empty = scale_consistency([np.zeros((0, 4, 5))] * 2)
    assert math.isnan(empty[0, 1]) and empty[0, 0] == 0
    with pytest.raises(ValueError, match="sizes"):
        scale_consistency([maps[0], maps[1][:, :2]])


def test_the_point_nearest_to_a_threshold():
    sweep = ThresholdSweep(2, 0, 100)
    for threshold in (0.0, 0.294, 0.296, 1.0):
        at = sweep.curve()[sweep.nearest(threshold)].threshold
        assert abs(at - threshold) == min(abs(p.threshold - threshold) for p in sweep.curve())
