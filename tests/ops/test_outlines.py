"""Outlines of label maps, against filling them again and against what scikit-image says of the same pixels."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from skimage import measure

from maskwright.ops.outlines import MOST_CHANGED, outline, without_specks
from maskwright.ops.polygons import fill, keyhole, ring_area

MAPS = arrays(np.uint8, st.tuples(st.integers(1, 9), st.integers(1, 9)), elements=st.integers(0, 2))


def drawn(regions, size) -> np.ndarray:
    out = np.full(size, 99)
    for region in regions:
        mask, top, left = fill([region.outer, *region.holes], size)
        part = out[top : top + mask.shape[0], left : left + mask.shape[1]]
        assert (part[mask] == 99).all(), "regions overlap"
        part[mask] = region.label
    return out


@settings(max_examples=40)
@given(MAPS)
def test_outlines_fill_to_the_map(ids):
    regions = outline(ids)
    assert np.array_equal(drawn(regions, ids.shape), ids)
    counts = [[measure.label(ids == k, connectivity=c).max() for k in range(3)] for c in (2, 1)]
    assert sum(counts[0]) <= len(regions) <= sum(counts[1])
    assert sum(r.label == 2 for r in regions) == counts[0][2], "the highest label holds at every corner"
    for region in regions:
        area = ring_area(region.outer) + sum(map(ring_area, region.holes))
        assert area == region.pixels and ring_area(region.outer) > 0


@settings(max_examples=40)
@given(MAPS)
def test_a_ring_with_cuts_fills_as_its_outline_and_holes(ids):
    for region in outline(ids):
        one, several = (
            fill([keyhole(region.outer, region.holes)], ids.shape),
            fill([region.outer, *region.holes], ids.shape),
        )
        assert one[1:] == several[1:] and np.array_equal(one[0], several[0])


def scene() -> np.ndarray:
    """Discs, a ring, a wave two pixels wide and a wedge, 60x80."""
    y, x = np.mgrid[:60, :80] + 0.5
    ids = np.where((x + 2 * y) % 70 < 20, 4, 0)
    ids[(x - 20) ** 2 + (y - 20) ** 2 < 196] = 1
    ids[(x - 20) ** 2 + (y - 20) ** 2 < 49] = 0
    ids[(x - 60) ** 2 + (y - 30) ** 2 < 250] = 2
    ids[np.abs(45 + 6 * np.sin(x / 6) - y) < 1] = 3
    return ids


@pytest.mark.parametrize("tolerance", [0.75, 1, 2, 4])
def test_simplified_outlines_leave_no_gap_and_no_thin_region_is_lost(tolerance):
    ids = scene()
    exact, simple = outline(ids), outline(ids, tolerance)
    after = drawn(simple, ids.shape)
    assert (after != 99).all() and len(simple) == len(exact)
    assert sum(len(r.outer) for r in simple) < sum(len(r.outer) for r in exact)
    for label in range(5):
        changed = int(((after == label) != (ids == label)).sum())
        assert changed <= (1 + MOST_CHANGED) * MOST_CHANGED * int((ids == label).sum())


def test_no_point_that_is_left_out_is_further_away_than_the_tolerance():
    square = np.zeros((40, 40), int)
    y, x = np.mgrid[:40, :40]
    square[(x - 20) ** 2 + (y - 19) ** 2 < 230] = 1
    (disc,) = [r for r in outline(square) if r.label == 1]
    (simple,) = [r for r in outline(square, 1.0) if r.label == 1]
    ends = np.roll(simple.outer, -1, axis=0)
    for point in disc.outer:
        along = ends - simple.outer
        t = (((point - simple.outer) * along).sum(1) / (along**2).sum(1)).clip(0, 1)
        assert np.hypot(*(simple.outer + t[:, None] * along - point).T).min() <= 1.0


def test_specks_take_the_label_around_them():
    ids = np.zeros((10, 10), np.uint8)
    ids[:, 5:] = 2
    ids[2, 2], ids[7, 7] = 1, 1
    clean = without_specks(ids, 3)
    assert set(np.unique(clean)) == {0, 2} and clean[2, 2] == 0 and clean[7, 7] == 2
    assert without_specks(ids, 1) is ids and without_specks(np.zeros((2, 2), int), 9).sum() == 0


@pytest.mark.parametrize("bad", [np.zeros((0, 3), int), np.zeros(3, int), np.zeros((2, 2)), np.full((2, 2), -1)])
def test_what_is_no_label_map(bad):
    with pytest.raises(ValueError, match="expected whole numbers"):
        outline(bad)
