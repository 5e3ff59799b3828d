"""Regions between contours: borders against a loop, closed forms, thresholds."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage

from maskwright.ops.refinement.regions import gradient_contours, merge_regions
from maskwright.ops.refinement.superpixels import slic


def by_loops(ids: np.ndarray, contours: np.ndarray, threshold: float, most: int) -> np.ndarray:
    """Looks at all borders again after each joining."""
    ids = ids.astype(int).copy()
    while True:
        borders: dict[tuple[int, int], list[float]] = {}
        for y, x in np.ndindex(*ids.shape):
            for v, u in ((y, x + 1), (y + 1, x)):
                if v < ids.shape[0] and u < ids.shape[1] and ids[v, u] != ids[y, x]:
                    pair = (min(ids[y, x], ids[v, u]), max(ids[y, x], ids[v, u]))
                    borders.setdefault(pair, []).append((contours[y, x] + contours[v, u]) / 2)
        if not borders:
            return ids
        few, size = len(np.unique(ids)) <= most, np.bincount(ids.ravel())
        costs = [
            (np.mean(values) * (size[i] * size[j] / (size[i] + size[j])) ** 0.5, i, j)
            for (i, j), values in borders.items()
            if not few or np.mean(values) < threshold
        ]
        if not costs:
            return ids
        _, i, j = min(costs)
        ids[ids == j] = i


@pytest.mark.parametrize("threshold, most", [(0.0, 1), (0.5, 100), (0.5, 4), (2.0, 3), (0.45, 12)])
def test_cheapest_borders_go_first(threshold, most):
    rng = np.random.default_rng(0)
    ids = (np.arange(12)[:, None] // 3 * 5 + np.arange(15)[None] // 3).astype(np.uint16)
    contours = rng.random((12, 15)).astype(np.float32)
    found, slow = merge_regions(ids, contours, threshold, most), by_loops(ids, contours, threshold, most)
    pairs = set(zip(found.flatten().tolist(), slow.flatten().tolist()))
    assert len(pairs) == len(np.unique(found)) == len(np.unique(slow)), "the same partition"
    first = [int(np.argmax(found.ravel() == k)) for k in range(found.max() + 1)]
    assert found.dtype == np.uint16 and first == sorted(first)
    for k in np.unique(found):
        assert ndimage.label(found == k)[1] == 1


def test_a_disc_on_a_ground_gives_two_regions():
    y, x = np.mgrid[:60, :80]
    disc = (y - 30) ** 2 + (x - 40) ** 2 < 18**2
    image = np.where(disc[..., None], np.uint8([200, 40, 40]), np.uint8([40, 90, 60])).astype(np.uint8)
    contours = gradient_contours(image)
    assert contours.shape == disc.shape and contours.min() >= 0 and contours.max() == 1
    found = merge_regions(slic(image, 60), contours, 0.0, 2)
    assert len(np.unique(found)) == 2
    assert (found[30, 40] == found[disc]).mean() > 0.97 and (found[0, 0] == found[~disc]).mean() > 0.97


def test_weak_borders_do_not_chain():
    """A slow ramp has no strong border anywhere, and falls into regions of like size."""
    ramp = np.linspace(60, 190, 120)[None].repeat(90, 0) + np.random.default_rng(0).normal(0, 4, (90, 120))
    image = np.repeat(ramp[..., None], 3, 2).clip(0, 255).astype(np.uint8)
    sizes = np.bincount(merge_regions(slic(image, 100), gradient_contours(image), 0.0, 10).ravel())
    assert len(sizes) == 10 and sizes.max() < 0.3 * sizes.sum()


def test_a_flat_image_is_one_region_and_has_no_contours():
    image = np.full((20, 30, 3), 90, np.uint8)
    assert not gradient_contours(image).any()
    assert not merge_regions(slic(image, 12), gradient_contours(image), 0.25, 48).any()
    assert merge_regions(slic(image, 12), gradient_contours(image), 0.0, 48).max() > 3, "nothing is below 0"


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="one shape"):
        merge_regions(np.zeros((3, 4), int), np.zeros((4, 3)), 0.5, 4)
    with pytest.raises(ValueError, match="most 0"):
        merge_regions(np.zeros((3, 4), int), np.zeros((3, 4)), 0.5, 0)
