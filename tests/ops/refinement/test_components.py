"""Connected parts against a flood fill and scikit-image."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from skimage.measure import label

from maskwright.ops.refinement.components import (
    bounding_box,
    label_components,
    label_segments,
    largest_component,
    remove_small,
)

maps = arrays(np.uint8, array_shapes(min_dims=2, max_dims=2, max_side=9), elements=st.integers(0, 2))


@settings(max_examples=60, deadline=None)
@given(ids=maps, connectivity=st.sampled_from([4, 8]))
def test_parts_equal_scikit_image(ids: np.ndarray, connectivity: int):
    steps = 1 if connectivity == 4 else 2
    found, n = label_components(ids, connectivity)
    expected = label(ids > 0, connectivity=steps)
    assert np.array_equal(found, expected) and n == expected.max(initial=0)
    found, n = label_segments(ids, connectivity)
    expected = label(ids, background=-1, connectivity=steps) - 1
    assert np.array_equal(found, expected) and n == expected.max() + 1
    found, n = label_segments(ids, connectivity, ignore=0)
    expected = label(ids, background=0, connectivity=steps)
    assert np.array_equal(found, expected) and n == expected.max()


@settings(max_examples=40, deadline=None)
@given(ids=maps, connectivity=st.sampled_from([4, 8]), n=st.integers(0, 6))
def test_sizes(ids: np.ndarray, connectivity: int, n: int):
    mask = ids > 0
    labels, count = label_components(mask, connectivity)
    sizes = [(labels == i).sum() for i in range(1, count + 1)]
    large = largest_component(mask, connectivity)
    assert large.sum() == max(sizes, default=0)
    if count:
        assert np.array_equal(large, labels == 1 + int(np.argmax(sizes)))
    kept = remove_small(mask, n, connectivity)
    assert kept.dtype == np.bool_
    assert np.array_equal(kept, np.isin(labels, [i for i, s in enumerate(sizes, 1) if s >= n]))
    assert np.array_equal(remove_small(kept, n, connectivity), kept)


def test_bounding_box_is_half_open():
    mask = np.zeros((10, 12), bool)
    assert bounding_box(mask) is None and bounding_box(np.zeros((0, 3))) is None
    mask[3, 4] = True
    assert bounding_box(mask) == (3, 4, 4, 5)
    mask[7, 1] = True
    top, left, bottom, right = bounding_box(mask)
    assert (top, left, bottom, right) == (3, 1, 8, 5)
    assert mask[top:bottom, left:right].sum() == mask.sum()


def test_connectivity_of_a_diagonal():
    mask = np.eye(4, dtype=np.uint8) * 7
    assert label_components(mask, 4)[1] == 4 and label_components(mask, 8)[1] == 1
    assert label_segments(mask, 4)[1] == 6 and label_segments(mask, 8)[1] == 2


def test_empty_and_bad_input():
    assert not largest_component(np.zeros((3, 3))).any()
    assert label_segments(np.zeros((0, 4), int))[1] == 0
    assert label_segments(np.zeros((2, 2), int), ignore=0)[1] == 0
    for function in (label_components, label_segments, largest_component):
        with pytest.raises(ValueError, match="expected 4 or 8"):
            function(np.zeros((3, 3), int), connectivity=6)
        with pytest.raises(ValueError, match="expected \\(H, W\\)"):
            function(np.zeros((3, 3, 3), int))
