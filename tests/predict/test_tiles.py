from __future__ import annotations

import numpy as np
import pytest
from fakes import ColorSegmenter
from hypothesis import given, settings
from hypothesis import strategies as st

from maskwright.errors import MaskwrightError
from maskwright.predict.tiles import Axis, choose_tile, make_plan


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 400), st.integers(8, 200), st.floats(0, 0.9))
def test_windows_cover_the_side_and_their_weights_sum_to_one(total, length, overlap):
    axis = Axis.cover(total, length, overlap)
    sums = np.zeros(total)
    for start, weights in zip(axis.starts, axis.weights):
        assert start >= 0 and start + axis.length <= total
        assert (weights > 0).all()
        sums[start : start + axis.length] += weights
    np.testing.assert_allclose(sums, 1, atol=1e-5)
    for low in range(0, total, 7):
        high = min(total, low + 5)
        touching = [i for i, s in enumerate(axis.starts) if s < high and s + axis.length > low]
        assert list(axis.touching(low, high)) == touching


def test_overlap_is_at_least_what_was_asked():
    axis = Axis.cover(1000, 128, 0.25)
    assert max(np.diff(axis.starts)) <= 128 * 0.75 + 1
    assert axis.starts[0] == 0 and axis.starts[-1] == 872


def test_a_tile_is_seen_as_a_photograph_of_its_size():
    segmenter = ColorSegmenter(short_side=64)
    plan = make_plan(segmenter, (1000, 500), tile=256, overlap=0.25, scales=(1.0,))
    assert plan.inputs == ((64, 64),)
    small = make_plan(segmenter, (128, 100), tile=256, overlap=0.25, scales=(1.0,))
    assert small.inputs == ((32, 24),)  # the same quarter scale, to whole cells
    whole = make_plan(segmenter, (1000, 500), tile=None, overlap=0.25, scales=(1.0, 2.0))
    assert whole.inputs == ((128, 64), (256, 128)) and len(whole.rows) == 1


def test_tiles_are_chosen_for_large_images_only():
    segmenter = ColorSegmenter(short_side=64)
    assert choose_tile(segmenter, (4000, 6000)) is None
    assert choose_tile(segmenter, (20000, 20000)) == 128
    segmenter.extra = {"image_size": [375, 500]}
    assert choose_tile(segmenter, (20000, 20000)) == 375
    assert choose_tile(ColorSegmenter(), (4000, 6000)) == 1024
    assert choose_tile(ColorSegmenter(size=(64, 96)), (20000, 20000)) == 128


@pytest.mark.parametrize(
    "change", [{"tile": 3}, {"overlap": 1.0}, {"overlap": -0.1}, {"scales": ()}, {"scales": (0.0,)}]
)
def test_arguments_out_of_range_are_refused(change):
    arguments = {"tile": 64, "overlap": 0.25, "scales": (1.0,)} | change
    with pytest.raises(MaskwrightError):
        make_plan(ColorSegmenter(), (100, 100), **arguments)
