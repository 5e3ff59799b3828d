"""What is told of time before it is spent, on clocks that the tests move."""

from __future__ import annotations

import re
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tests.engine.toys import Toy, train

from maskwright.app import montage, pictures
from maskwright.engine.config import configure
from maskwright.engine.contract import Stage
from maskwright.engine.forecast import SHOWN, SHOWN_OF_CLUSTERS, Forecast, Pace, fitted, not_timed
from maskwright.engine.progress import Progress, duration
from maskwright.engine.sizes import sizes
from maskwright.methods import METHODS
from maskwright.ops.clustering.kmeans import kmeans


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def told(seconds: list[float], steps: int, start: int = 0, later: tuple[Stage, ...] = (), config: Any = None):
    """What is said, and after how many steps, where each step takes so long."""
    clock, said = Clock(), []
    forecast = Forecast("train", steps, lambda line: said.append((done, line)), later, config, clock)
    for done, second in enumerate(seconds, start + 1):
        clock.now += second
        forecast.after(done)
    return said


def test_after_a_few_steps_the_stage_is_foretold_once():
    """The first step takes ten times as long and counts for nothing: (2000 - 4) x 1.5 s = 49.9 min."""
    (done, line), (later, corrected) = told([15.0, *[1.5] * 40], 2000)
    assert done == 1 and "about 8 h 20 min" in line, "a step of 15 s is told at once, of what is known then"
    assert later == 4 and corrected.startswith("Corrected, the first step was no measure: train: about 50 min for")
    ((done, _),) = told([15.0, *[12.0] * 40], 2000)
    assert done == 1, "as slow as the first: nothing to correct"
    (_, (later, corrected)) = told([15.0, *[0.1] * 80], 200)
    assert corrected == "Corrected, the first step was no measure: train: about 17 s are left." and later == 31
    ((done, line),) = told([5.0, *[1.5] * 40], 2000)
    assert done == 4
    assert line.startswith("train: about 50 min for the 1996 steps that are left, at 1.5 s a step; done about ")
    assert re.search(r"done about \d\d:\d\d\. Shorter: --minutes 12 or --steps in a new run\.$", line)
    ((_, line),) = told([5.0, *[0.25] * 40], 2000)
    assert "about 8 min for the 1987 steps that are left, at 4.0 steps/s" in line


def test_a_resumed_stage_is_foretold_from_where_it_stands():
    ((done, line),) = told([2.0] * 10, 1000, start=900)
    assert done == 904 and "about 3 min for the 96 steps that are left, at 2.0 s a step" in line


def test_slower_steps_are_said_with_what_is_left():
    """100 steps of 1 s, then of 3 s: a whole minute of the latter says so, once."""
    (_, foretold), (later, line) = told([1.0] * 100 + [3.0] * 300, 1000)
    assert "about 17 min for the 996 steps" in foretold
    assert 120 < later < 150
    left = 1000 - later
    pace = f"3.0 s a step: about {duration(3.0 * left)} for the {left} that are left, until "
    assert line.startswith(f"train: steps are slower than foretold, {pace}") and re.search(r"until \d\d:\d\d\.$", line)
    assert len(told([1.0] * 100 + [3.0] * 100 + [9.0] * 100, 1000)) == 3, "and again where they are slower still"
    assert len(told([1.0] * 100 + [1.3] * 300, 1000)) == 1, "a little slower is what happens"
    assert told([0.1] * 100 + [0.5] * 200, 300) == [], "less than a minute is left"
    ((_, line),) = told([0.01] * 1000 + [0.5] * 500, 1500)
    assert "2.0 steps/s" in line, "a stage that was too short to be foretold"
    assert len(told(([1.0] * 110 + [3.0] * 10) * 5, 1000)) == 1, "ten slow steps are no change of pace"


def test_what_the_first_steps_do_not_tell_stands_in_the_forecast():
    clock, said = Clock(), []
    forecast = Forecast("train", 500, said.append, clock=clock, untimed="steps from 75% on")
    for done in range(1, 9):
        clock.now += 2
        forecast.after(done)
    assert "; not timed: steps from 75% on; done about " in said[0]


def test_later_trainings_are_counted_and_other_stages_named():
    stages = (
        Stage("label", "label", print, ""),
        Stage("first", "train", print, "", 500),
        Stage("retrain", "train", print, "", 1000),
    )
    ((_, line),) = told([2.0] * 9, 504, later=stages)
    assert "about 17 min for the 500 steps that are left" in line
    assert "with the later trainings (first 500, retrain 1000), if they are as fast, 67 min" in line
    assert "not counted: label" in line


def test_short_stages_are_not_foretold():
    assert told([0.1] * 100, 100) == []


def test_the_options_that_make_it_shorter_are_those_of_the_method():
    config = configure(METHODS["supervised"].Config, {"crop": 192})
    assert sizes(config) == "crops.size=192, crops.batch=4, crops.long_side=1024, norms.images=64"
    ((_, line),) = told([5.0] * 9, 2000, config=config)
    wanted = "crops.size=192, crops.batch=4, crops.long_side=1024, norms.images=64"
    assert line.endswith(f"or smaller values by --set (now {wanted}).")
    for name in METHODS:  # each of them is an option that --set takes
        cls = METHODS[name]
        found = dict(pair.split("=") for pair in sizes(cls.Config()).split(", ") if pair)
        configure(cls.Config, found)


def test_options_that_others_leave_without_a_use_make_nothing_shorter():
    cls = METHODS["maskclip"].Config
    assert "student." not in sizes(cls())
    assert "student.crops.size=" in sizes(configure(cls, {"plus.train": True}))
    groups = METHODS["groupvit"].Config
    assert "crops.batch=" in sizes(groups()) and "crops" not in sizes(configure(groups, {"preset": "zero_shot"}))


def paced(seconds: list[float], budget: float, count: int | None = None) -> Pace:
    clock = Clock()
    pace = Pace(clock, budget, count)
    for done, second in enumerate(seconds, 1):
        clock.now += second
        if pace.enough(done):
            break
    return pace


def test_the_pace_is_that_of_the_steps_behind_the_first():
    pace = paced([20.0, *[2.0] * 50], 120)
    assert (pace.each, pace.timed) == (2.0, 3)
    assert paced([0.5, *[0.1] * 500], 120).timed == 40, "four seconds of them"
    assert paced([20.0, *[2.0] * 50], 12).timed == 1, "little time: one is enough"
    assert paced([40.0, *[2.0] * 50], 12).each == 40.0, "or none"
    assert paced([20.0, *[2.0] * 50], 1, count=6).timed == 5, "several processes make the same number"


@pytest.mark.parametrize(
    ("name", "options", "first", "said"),
    [
        ("cycada", {}, "judge", "generators, train, align (taken to be as fast); translate (not counted)"),
        ("cbst", {"rounds": 2}, "source", "round_1, round_2 (taken to be as fast); label_1, label_2 (not counted)"),
        ("uda_sod", {"rounds": 1}, "warm_up", "round_1 (taken to be as fast); label_1 (not counted)"),
        ("dannet", {}, "train", "steps from 75% on, which learn from day and night too"),
        ("dannet", {"ramp.start": 0}, "train", ""),
        ("hsg", {}, "train", "steps from 25% on, which learn levels and smaller segments too"),
        ("hsg", {"levels.which": "fine", "segments.grid": 1}, "train", "steps from 25% on, which learn levels too"),
        ("hsg", {"levels.which": "regions", "segments.grid": 1}, "train", ""),
        ("hsg", {"preset": "paper"}, "train", ""),
        ("source_only", {}, "train", ""),
    ],
)
def test_what_the_first_steps_do_not_tell_is_named(name, options, first, said):
    """Beside the number of steps that fit, since trainings and labelling behind the timed steps may cost more."""
    cls = METHODS[name]
    config = configure(cls.Config, options)
    method = cls.__new__(cls)
    method.config, method.context = config, SimpleNamespace(steps=100, inputs={})
    stages = method.stages()
    begun = [s.name for s in stages].index(first)
    left = [s.name for s in stages[begun:]]
    assert not_timed(method, stages[begun], left) == said
    told = fitted(10, 0, paced([1.0] * 50, 12), 1.0, untimed=said).says
    assert told.endswith(f"; not timed, so that the run may take longer: {said}." if said else ".")


@pytest.mark.parametrize(
    ("minutes", "spent", "share", "most", "steps"),
    [
        (20, 100, 1.0, None, 490),  # (1200 x 0.9 - 100) / 2
        (20, 100, 2.0, None, 245),  # two trainings of as many steps
        (20, 100, 1.0, 300, 300),
        (1, 100, 1.0, None, 10),  # the time is over: a few are made
    ],
)
def test_how_many_steps_fit(minutes, spent, share, most, steps):
    pace = paced([20.0, *[2.0] * 50], 120)
    found = fitted(minutes, spent, pace, share, most)
    assert found.steps == steps and found.record()["seconds_a_step"] == 2.0
    assert found.says.startswith(
        f"--minutes {minutes}: {steps} steps, at 2.0 s a step over 3; 100 s were spent before"[:50]
    )
    assert ("too few to learn anything: the run takes 2 min in all" in found.says) == (minutes == 1)
    assert ("more are of no use" in found.says) == (most is not None)


def test_lengths_of_time_are_said_as_people_do():
    said = [duration(s) for s in (0.2, 45, 119, 120, 1010, 5390, 5400, 30600)]
    assert said == ["1 s", "45 s", "119 s", "2 min", "17 min", "1 h 30 min", "1 h 30 min", "8 h 30 min"]


def test_work_without_gradients_is_foretold_too(capsys, monkeypatch):
    clock = Clock()
    monkeypatch.setattr("maskwright.engine.progress.time.perf_counter", clock)
    progress = Progress(every=1e9)
    progress.shorter = "Shorter: smaller values by --set (now features.short_side=448), or fewer photographs."
    with progress.task("features", 3000) as task:
        for done in range(1, 40):
            clock.now += 0.25
            task.advance_to(done)
    lines = [line for line in capsys.readouterr().err.splitlines() if "about" in line]
    assert lines == [
        "features: about 12 min more for 2980 of 3000, at 4.0/s. "
        "Shorter: smaller values by --set (now features.short_side=448), or fewer photographs."
    ]


@pytest.mark.parametrize(
    ("paces", "said"),
    [
        ([36.0, 2.0], []),
        ([36.0, 6.0], ["predict: about 78 s more for 13 of 15, at 6.0 s each."]),
        ([40.0, *[0.02] * 7, 80.0], ["predict: about 60 s more for 6 of 15, at 10.0 s each."]),  # batches of eight
        ([70.0], ["predict: about 16 min more for 14 of 15, at 70.0 s each."]),
    ],
)
def test_the_first_item_foretells_nothing_unless_it_takes_a_minute(capsys, monkeypatch, paces, said):
    """It compiles what the others find compiled."""
    clock = Clock()
    monkeypatch.setattr("maskwright.engine.progress.time.perf_counter", clock)
    with Progress(every=1e9).task("predict", 15) as task:
        for done, seconds in enumerate(paces, 1):
            clock.now += seconds
            task.advance_to(done)
    assert [line for line in capsys.readouterr().err.splitlines() if "about" in line] == said


def test_work_of_which_nothing_was_left_names_no_time(capsys):
    with Progress(every=1e9).task("predict", 280):
        pass
    assert capsys.readouterr().err == "predict: 0/280\n"


def test_k_means_tells_each_start():
    """So that its progress can be foretold; the clusters do not change by it."""
    x, seen = torch.randn(60, 4, generator=torch.Generator().manual_seed(0)), []
    with_it = kmeans(x, 3, restarts=4, seed=1, after=seen.append)
    assert seen == [1, 2, 3, 4]
    assert torch.equal(with_it.centers, kmeans(x, 3, restarts=4, seed=1).centers)


def test_the_progress_moves_at_each_step(tmp_path, monkeypatch):
    """A bar that stands for ten steps of five seconds says nothing for 50 s."""
    moves: list[tuple[int, bool]] = []
    monkeypatch.setattr(
        "maskwright.engine.progress.Task.advance_to",
        lambda self, done, loss=None: moves.append((done, loss is not None)),
    )
    train(Toy(7), tmp_path, log_every=3)
    assert [done for done, _ in moves] == [1, 2, 3, 4, 5, 6, 7]
    assert [done for done, with_loss in moves if with_loss] == [1, 4, 7]


def test_what_follows_the_steps_is_left_room_for():
    """64 + 48 photographs of 720 x 960 against 4 crops of 256 x 256 that are passed forward and back: 98.4 steps."""
    pace = paced([20.0, *[2.0] * 50], 120)
    assert fitted(20, 100, pace, 1.0, None, 98.4).steps == int((1080 - 100 - 196.8) / 2)
    besides = fitted(20, 100, pace, 1.0, None, 98.4, 60.0)
    assert besides.steps == int((1080 - 100 - 196.8 - 60) / 2) and "4 min are needed for what follows" in besides.says

    class Photographs(list):
        def size(self, i: int) -> tuple[int, int]:
            return self[i]

    method = object.__new__(METHODS["supervised"])
    method.config = METHODS["supervised"].Config()
    method.context = SimpleNamespace(data=Photographs([(720, 960)] * 367), steps=None)
    assert method.tail() == pytest.approx(112 * 720 * 960 / (3 * 4 * 256 * 256))
    method.context = SimpleNamespace(data=Photographs([(2048, 1024)] * 5), steps=None)  # half as large, and only five
    assert method.tail() == pytest.approx(10 * 1024 * 512 / (3 * 4 * 256 * 256))
    method = object.__new__(METHODS["iic"])
    method.config = METHODS["supervised"].Config()
    method.context = SimpleNamespace(data=Photographs([(720, 960)] * 80), steps=None)  # 80 more show clusters
    assert method.tail() == pytest.approx((64 + 48 + 80) * 720 * 960 / (3 * 4 * 256 * 256))
    for name, settings, passes in (  # photographs that pass behind the last step, for each of its crops
        ("slotcon", {}, 64 + 48 + 80), ("slotcon", {"readout.by": "clusters"}, 64 + 48 + 80 + 64 + 80),
        ("picie", {}, 64 + 48 + 80 + 64 + 80), ("redo", {}, 80 + 48 + 80), ("leopart", {}, 3 * (80 + 48 + 80)),
    ):  # fmt: skip
        method = object.__new__(METHODS[name])
        method.config = configure(METHODS[name].Config, settings)
        method.by = method.searcher = ""
        side = method.config.crops.size
        method.context = SimpleNamespace(data=Photographs([(side, side)] * 80), steps=None, classes=2)
        assert method.tail() == pytest.approx(passes / (3 * method.config.crops.batch)), name
    assert (SHOWN, SHOWN_OF_CLUSTERS) == (pictures.COUNT, montage.COUNT), "as the report has them"
    clock, said = Clock(), []
    forecast = Forecast("train", 100, said.append, clock=clock, tail=50)
    for done in range(1, 9):
        clock.now += 2
        forecast.after(done)
    assert "with statistics and pictures of whole photographs after it 5 min" in said[0]
