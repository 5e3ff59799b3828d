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


def trained_on(size: list[int], largest: list[int] | None = None, /, **sizes: object) -> ColorSegmenter:
    segmenter = ColorSegmenter(**sizes)
    segmenter.extra = {"image_size": size} | ({} if largest is None else {"largest_size": largest})
    return segmenter


def test_photographs_much_larger_than_those_trained_on_are_tiled_at_the_scale_of_training():
    segmenter = trained_on([360, 480], short_side=320)
    assert choose_tile(segmenter, (360, 480)) is None
    assert choose_tile(segmenter, (719, 960)) is None, "seen at just over half of the scale of training"
    assert choose_tile(segmenter, (760, 1000)) == 360
    assert choose_tile(segmenter, (360, 4000)) is None, "a panorama of the same height is seen at the same scale"
    assert choose_tile(segmenter, (40, 60)) is None
    whole = make_plan(segmenter, (1440, 1920), tile=0, overlap=0.25, scales=(1.0,))
    assert whole.tile is None and whole.inputs == ((320, 428),) and len(whole.rows) == 1
    plan = make_plan(segmenter, (1440, 1920), tile=None, overlap=0.25, scales=(1.0,))
    assert plan.tile == 360 and plan.inputs == ((320, 320),) and plan.rows.length == 360


@pytest.mark.parametrize(
    ("size", "sizes", "tile"),
    [
        ([360, 480], {"short_side": 320}, 360),  # 320/360
        ([360, 480], {"long_side": 1024}, 360),  # never shrunk: all sides alike
        ([1500, 2000], {"long_side": 1024}, 2000),  # 1024/2000
        ([360, 480], {"size": (256, 256)}, 415),  # 256/sqrt(360 * 480)
    ],
)
def test_a_tile_is_seen_at_the_scale_of_a_training_photograph(size, sizes, tile):
    segmenter = trained_on(size, **sizes)
    h, w = segmenter.preprocess.target_size(tuple(size))
    scale = (h * w / (size[0] * size[1])) ** 0.5
    large = (8 * size[0], 8 * size[1])
    assert choose_tile(segmenter, large) == tile
    plan = make_plan(segmenter, large, tile=None, overlap=0.25, scales=(1.0,))
    assert plan.inputs[0][0] / plan.rows.length == pytest.approx(scale, rel=0.02)


def test_photographs_as_large_as_the_largest_of_training_were_seen_whole_there_and_are_seen_whole():
    segmenter = trained_on([360, 480], [3000, 4000], short_side=320)
    assert choose_tile(segmenter, (3000, 4000)) is None
    assert choose_tile(segmenter, (3100, 4100)) == 360
    assert choose_tile(trained_on([360, 480], [400, 500], short_side=320), (3000, 4000)) == 360


@pytest.mark.parametrize(
    "size", [None, "360", [360], [360, 0], [360, -1], [True, True], [1.5, 2], [10**400, 1], [[1], [2]]]
)
def test_sizes_of_damaged_bundles_say_nothing(size):
    segmenter = trained_on(size, short_side=64)
    assert choose_tile(segmenter, (4000, 6000)) is None and choose_tile(segmenter, (20000, 20000)) == 128


@pytest.mark.parametrize(
    "change", [{"tile": -1}, {"tile": 3}, {"overlap": 1.0}, {"overlap": -0.1}, {"scales": ()}, {"scales": (0.0,)}]
)
def test_arguments_out_of_range_are_refused(change):
    arguments = {"tile": 64, "overlap": 0.25, "scales": (1.0,)} | change
    with pytest.raises(MaskwrightError):
        make_plan(ColorSegmenter(), (100, 100), **arguments)
