"""Saliency measures against direct computations at each threshold, and closed forms."""

from __future__ import annotations

import numpy as np
import pytest

from maskwright.errors import MaskwrightError
from maskwright.evaluate import saliency
from maskwright.evaluate.saliency import BinaryForeground, SaliencyMeasures, f_from_counts, s_measure


def case(seed: int, size: tuple[int, int] = (37, 45)) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    yy, xx = np.mgrid[: size[0], : size[1]]
    truth = (yy - rng.integers(10, 25)) ** 2 + (xx - rng.integers(10, 30)) ** 2 < rng.integers(40, 150)
    return np.clip(0.6 * truth + rng.random(size) * 0.5, 0, 1), truth


def slow_e(binary: np.ndarray, truth: np.ndarray) -> float:
    p, t = binary.astype(float), truth.astype(float)
    if not truth.any():
        enhanced = 1 - p
    elif truth.all():
        enhanced = p
    else:
        a, b = p - p.mean(), t - t.mean()
        enhanced = (2 * a * b / (a * a + b * b + np.finfo(float).eps) + 1) ** 2 / 4
    return enhanced.sum() / (truth.size - 1)


def slow_f(binary: np.ndarray, truth: np.ndarray) -> float:
    both = (binary & truth).sum()
    if not both:
        return 0.0
    p, r = both / binary.sum(), both / truth.sum()
    return 1.3 * p * r / (0.3 * p + r)


def test_curves_against_each_threshold() -> None:
    measured = SaliencyMeasures(normalise=False)
    f, e, adaptive = [], [], []
    for seed in range(4):
        s, g = case(seed)
        s = np.round(s * 255) / 255
        measured.update(s, g)
        maps = [s >= t / 255 - 1e-12 for t in range(256)]
        f.append([slow_f(m, g) for m in maps])
        e.append([slow_e(m, g) for m in maps])
        adaptive.append(slow_f(s >= min(1, 2 * s.mean()), g))
    out = measured.compute()
    assert out["oracle_f_max"] == pytest.approx(np.mean(f, 0).max()) and out["f_mean"] == pytest.approx(np.mean(f))
    assert out["oracle_e_max"] == pytest.approx(np.mean(e, 0).max()) and out["e_mean"] == pytest.approx(np.mean(e))
    assert out["f_adaptive"] == pytest.approx(np.mean(adaptive))


def test_perfect_inverse_and_empty() -> None:
    _, g = case(0)
    perfect = SaliencyMeasures()
    perfect.update(g.astype(float), g)
    out = perfect.compute()
    assert out["mae"] == 0 and out["s_measure"] == pytest.approx(1) and out["f_fixed"] == pytest.approx(1)
    assert out["e_adaptive"] == pytest.approx(1, abs=1e-3)
    inverse = SaliencyMeasures()
    inverse.update(1 - g.astype(float), g)
    assert inverse.compute()["mae"] == 1 and inverse.compute()["f_fixed"] == 0
    assert s_measure(np.zeros((4, 4)), np.zeros((4, 4), bool)) == 1
    assert s_measure(np.full((4, 4), 0.25), np.ones((4, 4), bool)) == 0.25
    assert np.isnan(SaliencyMeasures().compute()["mae"])


def test_grey_truth_and_bytes_mean_the_same() -> None:
    s, g = case(3)
    grey = np.round(s * 255).astype(np.uint8)
    a, b = SaliencyMeasures(), SaliencyMeasures()
    a.update(grey, g)
    b.update(grey / 255, np.where(g, 255, 20).astype(np.uint8))
    assert a.compute() == pytest.approx(b.compute())
    with pytest.raises(MaskwrightError):
        a.update(s[:3], g)
    with pytest.raises(MaskwrightError, match="NaN"):
        a.update(np.full(g.shape, np.nan), g)
    with pytest.raises(MaskwrightError, match="0 to 1"):
        SaliencyMeasures(normalise=False).update(s * 3, g)


def test_s_measure_by_hand() -> None:
    # A truth of the left half and a constant map: objects and quadrants in closed form.
    g = np.zeros((4, 4), bool)
    g[:, :2] = True
    s = np.full((4, 4), 0.5)
    objects = 2 * 0.5 / (0.25 + 1)
    # Rows meet after round(1.5) + 1 = 3, columns after round(0.5) + 1 = 1. Quadrants that are constant in truth
    # and map have no variance and count 1; the others have no covariance and count 0.
    regions = (3 * 1 + 1 * 1) / 16
    assert s_measure(s, g) == pytest.approx(0.5 * objects + 0.5 * regions)


def test_normalise_map() -> None:
    assert saliency.normalise_map(np.array([[2.0, 4.0]])).tolist() == [[0, 1]]
    assert saliency.normalise_map(np.array([[3.0, 3.0]])).tolist() == [[1, 1]]


def test_binary_foreground() -> None:
    measured = BinaryForeground()
    p, t = np.array([1, 1, 0, 0, 1], bool), np.array([1, 0, 0, 1, 0], bool)
    valid = np.array([1, 1, 1, 1, 0], bool)
    measured.update(p, t, valid)
    measured.update(t, t)
    out = measured.compute()
    f = 1.3 * 0.25 / (0.3 * 0.5 + 0.5)
    assert out["f_measure"] == pytest.approx((f + 1) / 2) and out["iou"] == pytest.approx((1 / 3 + 1) / 2)
    assert out["mae"] == pytest.approx(0.25) and out["iou_pixels"] == pytest.approx(3 / 5)
    assert out["f_measure_pixels"] == pytest.approx(f_from_counts(3, 4, 4))
    assert f_from_counts(0, 0, 0) == 0
