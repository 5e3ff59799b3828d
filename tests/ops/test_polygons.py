"""Filled polygons against scikit-image's test of points, against COCO's own code, and against areas."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools import mask as coco
from skimage.measure import grid_points_in_poly

from maskwright.ops.polygons import fill, ring_area

SIZE = (20, 30)
POINTS = st.lists(st.tuples(st.floats(-3, 33, width=32), st.floats(-3, 23, width=32)), min_size=3, max_size=8)


def whole(rings, size=SIZE) -> np.ndarray:
    mask, top, left = fill(rings, size)
    out = np.zeros(size, bool)
    out[top : top + mask.shape[0], left : left + mask.shape[1]] = mask
    return out


@settings(max_examples=50)
@given(POINTS)
def test_pixels_whose_centre_lies_inside(points):
    ring = np.array(points, np.float64) + np.array([0.01234, 0.00567])  # no centre lies on an edge
    expected = grid_points_in_poly(SIZE, ring[:, ::-1] - 0.5, binarize=True)
    assert np.array_equal(whole([ring]), expected)


def test_neighbours_share_no_pixel_and_leave_none():
    rng = np.random.default_rng(0)
    for _ in range(50):
        hub = rng.uniform(2, 18, 2)
        corners = np.array([(0, 0), (30, 0), (30, 20), (0, 20)], float)
        parts = [whole([np.array([corners[k], corners[(k + 1) % 4], hub])]) for k in range(4)]
        assert (np.sum(parts, axis=0) == 1).all()


@pytest.mark.parametrize("ring", [[(2, 3), (9, 3), (9, 11), (2, 11)], [(0, 0), (30, 0), (30, 20), (0, 20)],
                                  [(1, 1), (10, 1), (10, 5), (5, 5), (5, 9), (1, 9)]])  # fmt: skip
def test_corners_of_pixels_mean_what_coco_means(ring):
    runs = coco.frPyObjects([np.array(ring, float).ravel().tolist()], *SIZE)
    assert np.array_equal(whole([np.array(ring, float)]), coco.decode(runs)[..., 0].astype(bool))
    assert whole([np.array(ring, float)]).sum() == abs(ring_area(np.array(ring, float)))


def test_nothing_inside():
    for ring in ([(40, 2), (50, 2), (50, 9)], [(2, 2), (3, 3)], [(5.1, 5.1), (5.2, 5.1), (5.2, 5.2)]):
        assert not whole([np.array(ring, float)]).any()
