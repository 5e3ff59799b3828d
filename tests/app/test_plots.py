from __future__ import annotations

import math
import re
import xml.etree.ElementTree as ET

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from maskwright.app.plots import (
    MAX_POINTS,
    bar,
    curve,
    curves,
    format_number,
    line_class,
    mean_curve,
    nice_ticks,
    smooth,
    spread_bar,
    thin,
)


@settings(max_examples=80, deadline=None)
@given(st.floats(-1e6, 1e6), st.floats(1e-6, 1e6))
def test_ticks_are_few_round_and_inside(low, span):
    ticks = nice_ticks(low, low + span)
    assert len(ticks) <= 6
    if span > 1e-8 * max(1, abs(low)):
        assert all(low - 1e-6 * span <= t <= low + span * (1 + 1e-6) for t in ticks)
        assert len(ticks) >= 2


def test_ticks_closed_form():
    assert nice_ticks(0, 1) == [0, 0.25, 0.5, 0.75, 1.0]
    assert nice_ticks(0, 2000) == [0, 500, 1000, 1500, 2000]
    assert nice_ticks(3, 3) == [3] and nice_ticks(math.nan, 1) == []


def test_numbers_for_readers():
    assert [format_number(v) for v in (0, 0.5, 1234.56, 12345.6, 2.5e6, 5e-5, math.nan)] == [
        "0", "0.5", "1235", "12.35k", "2.5M", "5.00e-05", "–",
    ]  # fmt: skip


def test_smoothing_keeps_constants_and_averages():
    np.testing.assert_allclose(smooth(np.full(50, 3.0), 10), 3)
    np.testing.assert_array_equal(smooth(np.array([1.0, 2.0]), 1), [1, 2])
    noise = np.random.default_rng(0).normal(size=1000)
    assert smooth(noise, 50).std() < 0.3


def test_thinning_keeps_extremes():
    x = np.arange(5000.0)
    y = np.sin(x / 50)
    y[1234] = 9
    tx, ty = thin(x, y)
    assert len(tx) <= MAX_POINTS + 2 and 9 in ty and tx[0] == 0 and tx[-1] == 4999
    assert (np.diff(tx) > 0).all()


@pytest.mark.parametrize("values", [[1, 2], [3, 3, 3], [0, math.nan, 1], list(range(900)), [1e-9, -1e9, 5], [7]])
def test_curves_are_wellformed_and_stay_in_their_frame(values):
    svg = curve(range(len(values)), values, "loss <b>&")
    root = ET.fromstring(svg)
    assert root.get("role") == "img" and "loss <b>&" in root.get("aria-label")
    for line in root.iter("polyline"):
        for pair in line.get("points").split():
            x, y = map(float, pair.split(","))
            assert 0 <= x <= 360 and 0 <= y <= 190


def test_a_wild_first_value_does_not_flatten_the_curve():
    values = [1e6, *np.linspace(2, 1, 400)]
    root = ET.fromstring(curve(range(401), values, "loss"))
    ys = [float(p.split(",")[1]) for p in next(root.iter("polyline")).get("points").split()][5:]
    assert max(ys) - min(ys) > 30


def test_a_curve_that_is_no_course_of_training_is_drawn_as_it_is_and_its_choice_marked():
    x, y = [k / 40 for k in range(41)], [(k % 2) * 1.0 for k in range(41)]
    plain, soft = curve(x, y, "a", "threshold", smoothed=False, mark=0.25), curve(x, y, "a", "threshold")
    thin_line, thick_line = re.findall(r'class="(?:raw|smooth)" points="([^"]*)"', plain)
    assert thin_line == thick_line and len(set(re.findall(r'points="([^"]*)"', soft))) == 2
    (at,) = re.findall(r'class="mark" x1="([\d.]+)" x2="\1"', plain)
    assert float(at) == pytest.approx(52 + 0.25 * (360 - 52 - 10), abs=0.1) and "chosen at 0.25" in plain
    assert "mark" not in soft and 'class="mark"' not in curve(x, y, "a", mark=7.0)


def test_nothing_finite_gives_nothing():
    assert curve([0, 1], [math.nan, math.inf], "loss") == ""
    assert "1 values are not finite" in curve([0, 1, 2], [1, math.nan, 2], "loss")


def test_bars():
    root = ET.fromstring(bar(0.5, 'red"', "half <", full=2.0))
    assert root.findall("rect")[1].get("width") == "25.00"
    assert ET.fromstring(bar(math.nan, "red", "x")).findall("rect")[1].get("width") == "0.00"


def test_the_mean_of_runs_is_taken_at_the_steps_that_all_have():
    runs = [(np.array([0.0, 1, 2, 4]), np.array([1.0, 2, 3, 9])), (np.array([0.0, 2, 3, 4]), np.array([3.0, 5, 7, 1]))]
    x, y = mean_curve(runs)
    assert x.tolist() == [0, 2, 4] and y.tolist() == [2, 4, 5]
    x, y = mean_curve([runs[0], (np.array([9.0]), np.array([0.0]))])
    assert x.tolist() == [0, 1, 2, 4], "they share none"


def test_curves_of_several_settings_share_their_axes():
    steps = list(range(10))
    picture = curves([(0, [steps, [1.0] * 10, steps, [3.0] * 10]), (9, [steps, [5.0] * 9 + [math.nan]])], "loss <x>")
    lines = {p.get("class"): p.get("points") for p in ET.fromstring(picture).iter() if p.tag.endswith("polyline")}
    assert set(lines) == {"each c0", "mean c0", "mean c1 again"} and line_class(9) == "c1 again"

    def height(points: str) -> float:
        return float(points.split()[0].split(",")[1])

    # Mean 2 lies as far below 5 as three quarters of the way from 1 to 5.
    low = height(lines["each c0"])  # of the second run, 3
    assert height(lines["mean c1 again"]) < low < height(lines["mean c0"])
    assert height(lines["mean c0"]) - low == pytest.approx((low - height(lines["mean c1 again"])) / 2, abs=0.2)
    assert "loss &lt;x&gt; over step 0 to 9, 2 settings" in picture
    assert curves([], "x") == "" and curves([(0, [[0], [math.inf]])], "x") == ""


def test_a_bar_of_several_values_is_as_long_as_their_mean():
    rects = [r.attrib for r in ET.fromstring(spread_bar([0.2, 0.4], "c3", "x", 0.8)).iter() if r.tag.endswith("rect")]
    assert [r["class"] for r in rects] == ["track", "of c3", "tick", "tick"]
    assert float(rects[1]["width"]) == pytest.approx(37.5)
    assert [float(r["x"]) + 0.35 for r in rects[2:]] == pytest.approx([25, 50])
    assert spread_bar([0.5], "c0", "x").count("<rect") == 2
