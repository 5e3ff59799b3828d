from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from tests.engine.toys import PlainFabric, Toy, equal, train
from torch import nn

from maskwright.engine import resuming
from maskwright.engine.checkpoint import CHECKPOINT, load_checkpoint, save_checkpoint
from maskwright.engine.loop import Training
from maskwright.engine.schedules import cosine, poly
from maskwright.engine.updating import parameters_of
from maskwright.errors import MaskwrightError, ask_to_stop, may_wait

REPOSITORY = Path(__file__).resolve().parents[2]
STEPS = 7


class Killed(BaseException):
    """Stands for a kill: nothing catches it."""


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    run = train(Toy(STEPS), folder)
    return load_checkpoint(folder / "toy" / CHECKPOINT), run.metrics()


def killer(place: str, step: int):
    def hook(where: str, now: int) -> None:
        if (where, now) == (place, step):
            raise Killed

    return hook


def resume_and_compare(folder: Path, uninterrupted) -> None:
    state, metrics = uninterrupted
    run = train(Toy(STEPS), folder)
    resumed = load_checkpoint(folder / "toy" / CHECKPOINT)
    assert resumed["step"] == STEPS
    for name in state["parts"]:
        assert equal(state["parts"][name], resumed["parts"][name]), name
    assert run.metrics() == metrics
    assert [m["step"] for m in metrics] == list(range(STEPS))


def test_the_checkpoint_holds_everything(uninterrupted):
    parts = uninterrupted[0]["parts"]
    assert set(parts) == {
        "sampler", "module.body", "module.head", "module.teacher", "module.bank",
        "optimizer.body", "optimizer.head", "extra.tally",
    }  # fmt: skip
    assert int(parts["module.teacher"]["_extra_state"]) == STEPS
    assert parts["sampler"]["position"] == STEPS
    assert int(parts["module.bank"]["count"]) == 11
    assert "running_mean" in "".join(parts["module.body"])


@pytest.mark.parametrize("place", ["losses", "stepped"])
def test_asked_to_end_in_a_step_it_saves_behind_it(tmp_path, uninterrupted, place):
    def ask(where: str, now: int) -> None:
        if (where, now) == (place, 4):
            assert may_wait()
            ask_to_stop(2)

    with pytest.raises(KeyboardInterrupt):
        train(Toy(STEPS, hook=ask), tmp_path, checkpoint_every=100)
    assert load_checkpoint(tmp_path / "toy" / CHECKPOINT)["step"] == 5 and not may_wait()
    resume_and_compare(tmp_path, uninterrupted)


@pytest.mark.parametrize("place", ["batch", "losses", "updated", "teacher", "stepped"])
@pytest.mark.parametrize("step", range(STEPS))
def test_killed_at_every_step_and_resumed(tmp_path, uninterrupted, place, step):
    with pytest.raises(Killed):
        train(Toy(STEPS, hook=killer(place, step)), tmp_path)
    resume_and_compare(tmp_path, uninterrupted)


@pytest.mark.parametrize("when", ["before the checkpoint", "after the checkpoint"])
@pytest.mark.parametrize("number", range(4))
def test_killed_around_a_checkpoint(tmp_path, uninterrupted, monkeypatch, when, number):
    calls = []

    def save(path, state):
        calls.append(state["step"])
        if len(calls) == number + 1 and when == "before the checkpoint":
            raise Killed
        save_checkpoint(path, state)
        if len(calls) == number + 1:
            raise Killed

    monkeypatch.setattr(resuming, "save_checkpoint", save)
    with pytest.raises(Killed):
        train(Toy(STEPS), tmp_path)
    monkeypatch.undo()
    resume_and_compare(tmp_path, uninterrupted)


def test_killed_again_and_again(tmp_path, uninterrupted):
    """A line of metrics cut off by the kill as well."""
    for step, place in ((3, "teacher"), (2, "updated"), (5, "losses"), (6, "stepped")):
        with pytest.raises(Killed):
            train(Toy(STEPS, hook=killer(place, step)), tmp_path)
        with (tmp_path / "metrics.jsonl").open("a") as out:
            out.write('{"stage": "toy", "st')
    resume_and_compare(tmp_path, uninterrupted)


def test_a_finished_stage_is_left_as_it_is(tmp_path, uninterrupted):
    train(Toy(STEPS), tmp_path)
    again = Toy(STEPS, hook=killer("batch", 0))
    train(again, tmp_path)
    assert again.sampler.position == STEPS
    resume_and_compare(tmp_path, uninterrupted)


def test_the_random_state_before_does_not_matter(tmp_path, uninterrupted):
    torch.rand(1000)
    train(Toy(STEPS), tmp_path)
    assert equal(load_checkpoint(tmp_path / "toy" / CHECKPOINT), uninterrupted[0])


def test_another_seed_is_another_run(tmp_path, uninterrupted):
    train(Toy(STEPS), tmp_path, seed=2)
    state = load_checkpoint(tmp_path / "toy" / CHECKPOINT)
    assert not equal(state["parts"]["module.body"], uninterrupted[0]["parts"]["module.body"])


def test_kill_9(tmp_path):
    """A process that trains is killed with SIGKILL; a second one continues to the same bits."""
    steps, broken, whole = 160, tmp_path / "broken", tmp_path / "whole"
    environment = os.environ | {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}

    def command(folder: Path, pause: float) -> list[str]:
        return [sys.executable, "-m", "tests.engine.toys", str(folder), str(steps), str(pause)]

    process = subprocess.Popen(command(broken, 0.02), cwd=REPOSITORY, env=environment)
    metrics, deadline = broken / "metrics.jsonl", time.monotonic() + 120
    try:
        while not (metrics.exists() and metrics.read_bytes().count(b"\n") >= 25):
            assert process.poll() is None, "ended before it could be killed"
            assert time.monotonic() < deadline
            time.sleep(0.01)
    finally:
        process.send_signal(signal.SIGKILL)
    assert process.wait(30) == -signal.SIGKILL
    stood_at = load_checkpoint(broken / "toy" / CHECKPOINT)["step"]
    assert 20 <= stood_at < steps and stood_at % 10 == 0

    subprocess.run(command(broken, 0), cwd=REPOSITORY, env=environment, check=True, timeout=120)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        run = train(Toy(steps), whole, steps, checkpoint_every=10)
    finally:
        torch.set_num_threads(threads)
    assert equal(load_checkpoint(broken / "toy" / CHECKPOINT), load_checkpoint(whole / "toy" / CHECKPOINT))
    lines = [json.loads(line) for line in metrics.read_text().splitlines()]
    assert lines == run.metrics() and len(lines) == steps


def test_the_loss_falls(tmp_path):
    metrics = train(Toy(120), tmp_path, 120, checkpoint_every=None).metrics()
    losses = [m["loss"] for m in metrics]
    assert sum(losses[-20:]) < 0.6 * sum(losses[:20])


def test_by_default_few_lines_and_few_checkpoints(tmp_path, monkeypatch):
    saved = []
    monkeypatch.setattr(resuming, "save_checkpoint", lambda path, state: saved.append(state["step"]))
    run = train(Toy(430), tmp_path, 430, checkpoint_every=None, log_every=None)
    assert saved == [50, 100, 150, 200, 250, 300, 350, 400, 430]
    assert [m["step"] for m in run.metrics()] == [*range(0, 430, 2), 429]


def test_slow_steps_are_saved_by_the_clock(tmp_path, uninterrupted, monkeypatch):
    class Clock:
        now = 0.0

        @classmethod
        def monotonic(cls) -> float:
            return cls.now

    def tick(place: str, step: int) -> None:
        if place == "losses":
            Clock.now += 25.0

    saved = []
    monkeypatch.setattr(resuming, "time", Clock)

    def save(path, state):
        saved.append(state["step"])
        save_checkpoint(path, state)

    monkeypatch.setattr(resuming, "save_checkpoint", save)
    train(Toy(STEPS, hook=tick), tmp_path, checkpoint_every=100)
    assert saved == [3, 6, 7]
    assert equal(load_checkpoint(tmp_path / "toy" / CHECKPOINT), uninterrupted[0])


class Poisoned(Toy):
    """Its loss stops being a number at a step."""

    def __init__(self, at: int, value: float) -> None:
        super().__init__()
        self.at, self.value = at, value

    def losses(self, batch, step):
        terms = super().losses(batch, step)
        return terms | {"loss": terms["loss"] * self.value} if step == self.at else terms


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_loss_that_is_no_number_ends_the_run(tmp_path, value):
    with pytest.raises(MaskwrightError, match=r"loss of stage toy is (nan|inf) at step 3; expected a finite number"):
        train(Poisoned(3, value), tmp_path)
    assert load_checkpoint(tmp_path / "toy" / CHECKPOINT)["step"] == 2


def test_a_loss_that_is_no_number_is_never_saved(tmp_path):
    """Also where no line of metrics is due: a resumed run must not start from such weights."""
    with pytest.raises(MaskwrightError, match="at step 3"):
        train(Poisoned(3, math.nan), tmp_path, log_every=100)
    state = load_checkpoint(tmp_path / "toy" / CHECKPOINT)
    assert state["step"] == 2
    assert all(torch.isfinite(v).all() for v in state["parts"]["module.body"].values())
    train(Toy(STEPS), tmp_path)


def test_other_terms_that_are_no_numbers_are_null(tmp_path):
    class Empty(Toy):
        def losses(self, batch, step):
            return super().losses(batch, step) | {"empty": torch.tensor(math.nan)}

    run = train(Empty(), tmp_path)
    assert "NaN" not in (tmp_path / "metrics.jsonl").read_text()
    assert all(m["empty"] is None for m in run.metrics())


def test_a_checkpoint_of_another_stage_is_told(tmp_path):
    train(Toy(STEPS), tmp_path)
    other = Toy(STEPS)
    other.modules["head"] = nn.Linear(8, 5)
    with pytest.raises(MaskwrightError, match=r"does not fit its stage.*delete it"):
        train(other, tmp_path)
    save_checkpoint(tmp_path / "toy" / CHECKPOINT, {"something": 1})
    with pytest.raises(MaskwrightError, match="does not fit its stage"):
        train(Toy(STEPS), tmp_path)


class Line(Training):
    """One weight that is pulled down by 1 a step at a rate of 1: it is minus the sum of the rates."""

    def __init__(self, schedule) -> None:
        self.weight = nn.Parameter(torch.zeros((), dtype=torch.float64))
        self.module = nn.Module()
        self.module.weight = self.weight
        self.modules = {"line": self.module}
        self.optimizers = {"sgd": torch.optim.SGD([self.weight], lr=0.5)}
        self.sampler = Toy().sampler
        self.schedule = schedule

    def batch(self, indices, random):
        return None

    def losses(self, batch, step):
        return {"loss": self.weight * 1.0}


@pytest.mark.parametrize("schedule", [None, cosine(10), cosine(10, 0.1, warmup=3), poly(10)])
def test_rates_follow_the_schedule_over_a_kill(tmp_path, schedule):
    rates = [0.5 * (schedule(t) if schedule else 1.0) for t in range(10)]
    train(Line(schedule), tmp_path, 10, checkpoint_every=100)
    whole = load_checkpoint(tmp_path / "toy" / CHECKPOINT)["parts"]["module.line"]["weight"]
    assert float(whole) == pytest.approx(-sum(rates), rel=1e-12)

    half = Line(schedule)
    half.after_step = lambda step: killer("x", 5)("x", step)
    with pytest.raises(Killed):
        train(half, tmp_path / "half", 10, checkpoint_every=3)
    resumed = Line(schedule)
    train(resumed, tmp_path / "half", 10, checkpoint_every=3)
    assert torch.equal(resumed.weight.detach(), whole)


def test_schedules_in_closed_form():
    f = cosine(100)
    assert f(0) == 1 and f(50) == pytest.approx(0.5) and f(100) == pytest.approx(0, abs=1e-12)
    assert f(25) == pytest.approx(math.cos(math.pi / 8) ** 2)
    f = cosine(110, final=0.2, warmup=10)
    assert [f(t) for t in (0, 4, 9, 10)] == pytest.approx([0.1, 0.5, 1.0, 1.0])
    assert f(60) == pytest.approx(0.6) and f(110) == pytest.approx(0.2) and f(500) == pytest.approx(0.2)
    assert cosine(5, warmup=5)(4) == 1 and math.isfinite(cosine(5, warmup=5)(5))
    f = poly(200, 0.9)
    assert f(0) == 1 and f(100) == pytest.approx(0.5**0.9) and 0 < f(199) == f(1000)


def test_methods_may_own_their_update(tmp_path):
    class Two(Toy):
        def update(self, fabric, batch, step):
            name = ("body", "head")[step % 2]
            terms = self.losses(batch, step)
            self.optimizers[name].zero_grad()
            fabric.backward(terms["loss"])
            self.optimizers[name].step()
            return terms

    before = Toy().head.weight.detach().clone()
    training = Two()
    train(training, tmp_path, 1)
    assert torch.equal(training.head.weight, before)
    train(training, tmp_path, 2)
    assert not torch.equal(training.head.weight, before)


def test_no_gradient_is_left_from_the_step_before(tmp_path):
    training = Line(None)
    train(training, tmp_path, 4)
    assert float(training.weight.grad) == 1.0


def test_the_stand_in_for_fabric_is_like_fabric(tmp_path, uninterrupted):
    from maskwright.engine.devices import make_fabric

    fabric = make_fabric("cpu")
    assert fabric.device == PlainFabric.device and fabric.world_size == 1 and fabric.is_global_zero
    train(Toy(STEPS), tmp_path, fabric=fabric)
    assert equal(load_checkpoint(tmp_path / "toy" / CHECKPOINT), uninterrupted[0])


class Two(Toy):
    """The toy with a schedule for one of its optimisers, and short gradients."""

    def __init__(self, steps: int) -> None:
        super().__init__(steps)
        self.schedule = {"body": lambda step: 1 / (1 + step)}
        self.clip = 1e-3
        self.rates: list[tuple[float, float]] = []
        self.norms: list[float] = []

    def after_step(self, step: int) -> None:
        body, head = (self.optimizers[n].param_groups[0]["lr"] for n in ("body", "head"))
        self.rates.append((body, head))
        gradients = [p.grad for p in parameters_of(self.optimizers["body"]) if p.grad is not None]
        self.norms.append(float(torch.stack([g.norm() for g in gradients]).norm()))
        super().after_step(step)


def test_a_schedule_an_optimiser_and_clipped_gradients(tmp_path):
    toy = Two(STEPS)
    first = {n: toy.optimizers[n].param_groups[0]["lr"] for n in ("body", "head")}
    train(toy, tmp_path)
    assert [r[0] for r in toy.rates] == [pytest.approx(first["body"] / (1 + k)) for k in range(STEPS)]
    assert {r[1] for r in toy.rates} == {first["head"]}, "an optimiser without a schedule keeps its rate"
    assert max(toy.norms) <= 1e-3 * 1.001 and min(toy.norms) > 0
