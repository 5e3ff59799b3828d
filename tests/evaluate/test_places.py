"""How much of a clustering the place in the frame predicts: synthetic label maps."""

from __future__ import annotations

import numpy as np
import pytest

from maskwright.evaluate.places import GRID, cell_counts, place_share


def bands(h: int, w: int, k: int) -> np.ndarray:
    return np.broadcast_to((np.arange(h) * k // h)[:, None], (h, w)).copy()


def test_pure_place_is_all():
    """Also of photographs of other sizes."""
    found = place_share([bands(48, 64, 4), bands(96, 30, 4)] * 3, 4)
    assert found.accuracy == pytest.approx(1) and found.chance == pytest.approx(0.25) and found.photographs == 6
    assert found.explained == pytest.approx(1) and found.much
    assert "100 % of the pixels (the largest cluster alone 25 %)" in found.says() and "windows" in found.says()


def test_noise_is_chance():
    rng = np.random.default_rng(0)
    masks = [rng.choice(3, (60, 80), p=(0.5, 0.3, 0.2)) for _ in range(20)]
    found = place_share(masks, 3)
    assert found.accuracy == pytest.approx(0.5, abs=0.02) and found.chance == pytest.approx(0.5, abs=0.02)
    assert not found.much and found.says().endswith("not fitted to.")


def test_things_at_random_places_are_not_places_though_each_photograph_is_smooth():
    """Fitted and judged on the same photographs, position would seem to know."""
    rng = np.random.default_rng(1)
    masks = [np.roll(np.roll(bands(48, 64, 4), rng.integers(48), 0), rng.integers(64), 1) for _ in range(8)]
    found = place_share(masks, 4)
    assert not found.much and found.accuracy < 0.45
    same = sum(cell_counts(m, 4) for m in masks)
    assert same.max(1).sum() / same.sum() > found.accuracy + 0.05


def test_a_mixture_by_a_slow_count():
    rng = np.random.default_rng(2)
    masks = [np.where(rng.random((24, 32)) < 0.6, bands(24, 32, 3), rng.integers(0, 3, (24, 32))) for _ in range(6)]
    right = usual = 0
    for fitted, judged in ((0, 1), (1, 0)):
        counts: dict[tuple[int, int], np.ndarray] = {}
        for m in masks[fitted::2]:
            for y, x in np.ndindex(24, 32):
                counts.setdefault((y * GRID[0] // 24, x * GRID[1] // 32), np.zeros(3))[m[y, x]] += 1
        common = sum(counts.values()).argmax()
        for m in masks[judged::2]:
            for y, x in np.ndindex(24, 32):
                right += counts[y * GRID[0] // 24, x * GRID[1] // 32].argmax() == m[y, x]
                usual += common == m[y, x]
    found = place_share(masks, 3)
    assert found.accuracy == pytest.approx(right / (6 * 24 * 32))
    assert found.chance == pytest.approx(usual / (6 * 24 * 32))


def test_chance_is_no_worse_than_a_guess():
    """Two halves of other clusters: the most frequent one of each is rare in the other."""
    found = place_share([np.full((8, 8), k) for k in (0, 1, 0, 1)], 2)
    assert found.accuracy == 0 and found.chance == 0.5 and found.explained == 0


def test_what_cannot_be_told():
    assert place_share([bands(8, 8, 2)] * 3, 2) is None
    assert place_share([bands(8, 8, 1)] * 8, 1) is None
    assert place_share([np.full((4, 4), 255)] * 4, 2) is None, "no pixel has a cluster"
    void = bands(48, 64, 2).astype(np.int64)
    void[:, :32] = -1
    assert place_share([void] * 4, 2).accuracy == 1
    assert place_share([np.zeros((1, 1), np.uint8)] * 4, 2).explained == 0
