"""Runs that are lengthened, finished as they stand, interrupted, or fitted into minutes; printed commands are run."""

from __future__ import annotations

import json
import shlex
import signal
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tests.conftest import write_tiny_folder
from tests.engine.toys import PlainFabric, Toy, equal

import maskwright as mw
from maskwright import cli
from maskwright.cli import program
from maskwright.data.folders.folder import open_folder
from maskwright.data.trust.ledger import Ledger
from maskwright.engine import loop, resuming
from maskwright.engine.checkpoint import CHECKPOINT, load_checkpoint
from maskwright.engine.config import configure
from maskwright.engine.config_file import read_config
from maskwright.engine.context import Context
from maskwright.engine.length import Length
from maskwright.engine.opening import open_run
from maskwright.engine.progress import Progress
from maskwright.engine.records import RunFolder
from maskwright.engine.request import RunRequest
from maskwright.engine.run import run_method
from maskwright.engine.schedules import Rates
from maskwright.errors import MaskwrightError
from maskwright.methods import METHODS

SMALL = {"crop": 32, "batch": 2, "precision": "fp32"}
BACKBONE = {"backbone": "mobilenetv3_small_050", "weights": "random", "device": "cpu"}


class Killed(BaseException):
    """Stands for a kill: nothing catches it."""


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("MASKWRIGHT_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return write_tiny_folder(tmp_path_factory.mktemp("length") / "tiny")


@pytest.fixture
def often(monkeypatch):
    """A checkpoint behind every second step."""
    monkeypatch.setattr(resuming, "every", lambda steps: 2)


@pytest.fixture
def stop(monkeypatch):
    """Raises an error in the middle of a step of a stage."""
    real = loop.seed_step

    def at(stage: str, step: int, error: BaseException | None) -> None:
        def seed(run_seed: int, now: int, *more: Any) -> None:
            real(run_seed, now, *more)
            if error is not None and (more[-1], now) == (stage, step):
                raise error

        monkeypatch.setattr(loop, "seed_step", seed)

    return at


def supervised(data: Path, out: Path, **more: Any) -> Any:
    given = {"report": False, "settings": SMALL, "progress": Progress(quiet=True), **BACKBONE, **more}
    return mw.train(data, given.pop("method", "supervised"), out=out, **given)


def record_of(out: Path) -> dict[str, Any]:
    return json.loads((out / "run.json").read_text())


def same(a: Path, b: Path) -> bool:
    x, y = (load_file(p / "model.safetensors") for p in (a, b))
    return x.keys() == y.keys() and all(torch.equal(x[k], y[k]) for k in x)


def command_line(monkeypatch, command: str) -> int:
    """Runs a printed command as it stands."""
    monkeypatch.setattr(sys, "argv", shlex.split(command))
    try:
        cli.main()
    except SystemExit as end:
        return int(end.code or 0)
    return 0


# ---------------------------------------------------------------------- the loop


def test_a_stage_ends_where_its_checkpoint_is(tmp_path):
    def kill(place: str, step: int) -> None:
        if (place, step) == ("losses", 5):
            raise Killed

    given = Context(
        data=SimpleNamespace(ledger=Ledger()), table=None, seed=1, steps=None, fabric=PlainFabric(),
        run=RunFolder(tmp_path), cache=None, backbone=None, progress=Progress(quiet=True),
    )  # fmt: skip
    folder = given.run.stage_folder("toy")
    with pytest.raises(Killed):
        given.fit(Toy(7, hook=kill), "toy", folder, 7, checkpoint_every=2)
    before = load_checkpoint(folder / CHECKPOINT)
    still = Toy(7)
    given.timing.as_it_stands = True
    given.fit(still, "toy", folder, 7)
    assert given.run.kept == ("toy", 4, 7) and before["step"] == 4 and given.timing.reached == {"toy": (4, 7)}
    assert equal(load_checkpoint(tmp_path / "toy" / CHECKPOINT), before)
    assert equal(still.body.state_dict(), before["parts"]["module.body"])


# ---------------------------------------------------------------------- longer


def test_a_longer_run_goes_on_by_the_longer_schedule(data, tmp_path, stop, often, capfd):
    """The rate of each further step is that of the longer schedule: read from the optimiser."""
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    supervised(data, whole, steps=4)
    rates: list[float] = []

    class Noted(Rates):
        def set(self, step: int) -> None:
            super().set(step)
            rates.append(self._training.optimizers["network"].param_groups[0]["lr"] / self._initial["network"][0])

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "Rates", Noted)
        supervised(data, whole, steps=8, resume=True, progress=Progress())
    assert rates == pytest.approx([(1 - t / 8) ** 0.9 for t in range(4, 8)])
    assert "Lengthened from 4 to 8 steps" in capfd.readouterr().err
    record = record_of(whole)
    assert (record["steps"], record["status"]) == (8, "finished")
    assert [(one["from"], one["to"]) for one in record["lengthened"]] == [(4, 8)]
    assert any(note.startswith("Lengthened from 4 to 8") for note in record["notes"])
    assert read_config(whole / "config.yaml", {"data", "method", "backbone", "weights", "device", "seed", "steps"})[0][
        "steps"
    ] == 8  # fmt: skip

    supervised(data, broken, steps=4)
    stop("train", 7, Killed())
    with pytest.raises(Killed):
        supervised(data, broken, steps=8, resume=True)
    stop("train", 7, None)
    supervised(data, broken, resume=True)  # as many steps as before, without saying so
    assert same(whole, broken)
    assert record_of(broken)["labels_read"] == record["labels_read"]


def test_what_stands_on_a_longer_training_is_made_anew(data, tmp_path):
    small = {"short_side": 64, "pairs.batch": 4, "restarts": 1, "precision": "fp32", "iterate.keep": "last"}
    given: dict[str, Any] = {"method": "stego", "settings": small, "classes": 3}
    supervised(data, tmp_path / "run", steps=2, **given)
    before = load_file(tmp_path / "run" / "model.safetensors")
    (tmp_path / "run" / "cluster" / "of before").touch()
    supervised(data, tmp_path / "run", steps=4, resume=True, **given)
    after = load_file(tmp_path / "run" / "model.safetensors")
    assert not torch.equal(before["classifier.centers"], after["classifier.centers"])
    assert not (tmp_path / "run" / "cluster" / "of before").exists()
    prepared = [s["seconds"] for s in record_of(tmp_path / "run")["stages"] if s["name"] == "prepare"]
    assert len(prepared) == 1
    assert json.loads((tmp_path / "run" / "distill" / "stage.json").read_text())["steps"] == 4


def test_which_numbers_of_steps_a_resumed_run_may_have(tmp_path):
    path = tmp_path / "run"
    free, fixed = Length(2000), Length(2000, "its trainings follow one another")
    assert free.settle(path, {"steps": None}, None) is None
    assert free.settle(path, {"steps": None}, 2000) is None, "the method's own number, said"
    assert free.settle(path, {"steps": 40}, None) == 40
    assert free.settle(path, {"steps": None}, 4000) == 4000
    assert fixed.settle(path, {"steps": 40}, 40) == 40
    with pytest.raises(MaskwrightError, match=r"made with steps = 40, not 30.*maskwright finish"):
        free.settle(path, {"steps": 40}, 30)
    with pytest.raises(MaskwrightError, match="cannot be lengthened to 60: its trainings follow one another"):
        fixed.settle(path, {"steps": 40}, 60)


def test_methods_of_several_trainings_say_that_they_cannot_be_lengthened(data, tmp_path):
    """The method table is asked, and the stages of each are counted."""
    for name in METHODS:
        cls = METHODS[name]
        config = cls.Config()
        none = name in ("kmeans", "maskclip", "clip_seg", "reco")
        assert (cls.terms(config, 8).steps > 0) == (not none), name
        several = cls.family == "weak" or name in ("st_plus_plus", "pass", "cbst", "cyclegan", "cycada", "uda_sod")
        assert bool(cls.terms(config, 8).fixed_length) == (several or none), name


# ---------------------------------------------------------------------- finished as it stands


def test_finish_after_a_kill_and_resume_after_finish(data, tmp_path, stop, often, monkeypatch, capfd):
    whole, run = tmp_path / "whole", tmp_path / "run"
    supervised(data, whole, steps=6)
    stop("train", 5, Killed())
    with pytest.raises(Killed):
        supervised(data, run, steps=6)
    with pytest.raises(MaskwrightError, match=rf"maskwright finish {run}") as raised:
        mw.load(run)
    stop("train", 5, None)
    assert command_line(monkeypatch, raised.value.repair[raised.value.repair.index("maskwright finish") :]) == 0
    assert "As it stands: stage train ended at step 4 of 6." in capfd.readouterr().err

    record = record_of(run)
    assert record["status"] == "finished" and record["as_it_stands"] == {"stage": "train", "step": 4, "of": 6}
    checkpoint = load_checkpoint(run / "train" / CHECKPOINT)
    assert checkpoint["step"] == 4
    kept, mine = checkpoint["parts"]["module.network"], load_file(run / "model.safetensors")
    trained = [k for k in mine if "running" not in k and "num_batches" not in k]
    assert trained and all(torch.equal(mine[k], kept[k].contiguous()) for k in trained)
    assert (run / "report.html").exists() and "step 4 of 6" in (run / "report.html").read_text()
    with pytest.raises(MaskwrightError, match="is finished; expected a run that was stopped"):
        mw.finish(run)

    supervised(data, run, steps=6, resume=True)
    assert same(run, whole), "what finish did is no part of the training"
    record = record_of(run)
    assert "as_it_stands" not in record and not any(note.startswith("As it stands") for note in record["notes"])
    assert record["labels_read"] == record_of(whole)["labels_read"]


def test_what_cannot_be_finished_says_how_to_go_on(data, tmp_path, stop, monkeypatch):
    run = tmp_path / "run"
    stop("train", 0, Killed())
    with pytest.raises(Killed):
        supervised(data, run, steps=2)
    stop("train", 0, None)
    with pytest.raises(MaskwrightError, match="was stopped before stage train saved anything") as raised:
        mw.finish(run, report=False, progress=Progress(quiet=True))
    assert command_line(monkeypatch, raised.value.repair.removeprefix("go on with: ")) == 0
    assert record_of(run)["status"] == "finished"
    with pytest.raises(MaskwrightError, match="holds no run"):
        mw.finish(data)


# ---------------------------------------------------------------------- Ctrl-C


def test_ctrl_c_says_what_is_kept_and_both_commands_hold(data, tmp_path, stop, often, monkeypatch, capfd):
    """KeyboardInterrupt in the middle of a step; the folder's name needs quoting."""
    run = tmp_path / "a run"
    start = shlex.join(
        ["maskwright", "train", str(data), "--method", "supervised", "--out", str(run), "--steps", "6",
         "--device", "cpu", "--backbone", "mobilenetv3_small_050", "--weights", "random", "--set", "crop=32",
         "--set", "batch=2"]
    )  # fmt: skip
    stop("train", 5, KeyboardInterrupt())
    assert command_line(monkeypatch, start) == 2
    said = capfd.readouterr().err.splitlines()
    assert record_of(run)["status"] == "interrupted"
    assert "interrupted in stage train at step 5 of 6; kept: step 4 of 6 in stage train" in said
    commands = {line.partition(": ")[0]: line.partition(": ")[2] for line in said if ": maskwright " in line}
    assert set(commands) == {"go on", "its model as it stands"}
    stop("train", 5, None)
    assert command_line(monkeypatch, commands["its model as it stands"]) == 0
    assert record_of(run)["as_it_stands"]["step"] == 4
    assert command_line(monkeypatch, commands["go on"]) == 0
    record = record_of(run)
    assert record["status"] == "finished" and record["stages"][0]["steps"] == 6


@pytest.mark.slow
def test_ctrl_c_waits_for_the_step_and_saves_behind_it(data, tmp_path, monkeypatch, capfd):
    """The signal comes in the middle of step 3; no checkpoint is due before the last step."""
    whole, run = tmp_path / "whole", tmp_path / "run"
    before = {n: signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM, signal.SIGALRM)}
    start = shlex.join(
        ["maskwright", "train", str(data), "--method", "supervised", "--steps", "6", "--device", "cpu", "--backbone",
         "mobilenetv3_small_050", "--weights", "random", *(f"--set={k}={v}" for k, v in SMALL.items()), "--out"]
    )  # fmt: skip
    try:
        assert command_line(monkeypatch, f"{start} {whole}") == 0
        with monkeypatch.context() as patch:
            asked = loop.Training.update

            def ask(self: Any, fabric: Any, batch: Any, step: int) -> Any:
                if step == 3:
                    signal.raise_signal(signal.SIGINT)
                return asked(self, fabric, batch, step)

            patch.setattr(loop.Training, "update", ask)
            assert command_line(patch, f"{start} {run}") == 2
        said = capfd.readouterr().err.splitlines()
        assert "interrupted in stage train at step 4 of 6; kept: step 4 of 6 in stage train" in said
        assert command_line(monkeypatch, shlex.join(["maskwright", "finish", str(run)])) == 0
        assert record_of(run)["as_it_stands"] == {"stage": "train", "step": 4, "of": 6}
        supervised(data, run, steps=6, resume=True)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    assert same(run, whole)


@pytest.mark.slow
def test_a_step_that_does_not_end_is_interrupted_all_the_same(data, tmp_path, monkeypatch):
    before = {n: signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM, signal.SIGALRM)}
    monkeypatch.setattr(program, "PATIENCE", 0.05)

    def stands(self: Any, fabric: Any, batch: Any, step: int) -> Any:
        signal.raise_signal(signal.SIGTERM)
        time.sleep(60)

    monkeypatch.setattr(loop.Training, "update", stands)
    began = time.monotonic()
    try:
        words = ["--steps", "6", "--device", "cpu", "--backbone", "mobilenetv3_small_050", "--weights", "random"]
        sizes = [f"--set={k}={v}" for k, v in SMALL.items()]
        out = ["--out", str(tmp_path / "run")]
        command = ["maskwright", "train", str(data), "--method", "supervised", *words, *sizes, *out]
        assert command_line(monkeypatch, shlex.join(command)) == 2
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    assert time.monotonic() - began < 50 and record_of(tmp_path / "run")["status"] == "interrupted"


# ---------------------------------------------------------------------- minutes


class Clock:
    """Seconds that pass only when a step is made."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def minutes_run(data: Path, out: Path, seconds_a_step: float, monkeypatch, **more: Any) -> Any:
    """A run whose steps take so long on its own clock, the first one five times as long."""
    clock, real = Clock(), loop.Training.update
    cls = METHODS["supervised"]
    config = configure(cls.Config, SMALL)
    request = RunRequest(
        data=open_folder(data), method=cls, config=config, out=out, progress=Progress(quiet=True), **BACKBONE, **more
    )

    def slow(self: Any, fabric: Any, batch: Any, step: int) -> Any:
        clock.now += seconds_a_step * (5 if step == 0 else 1)
        return real(self, fabric, batch, step)

    with monkeypatch.context() as patch:
        patch.setattr(loop.Training, "update", slow)
        context = open_run(request)
        context.timing.clock, context.timing.began = clock, clock.now
        try:
            run_method(cls, config, context)
        finally:
            context.run.release()
    return context


def test_minutes_choose_the_steps_and_the_run_is_that_of_as_many(data, tmp_path, monkeypatch):
    """(1.5 min x 0.9 - what the timed steps took) / 3 s, of a first step of 15 s and steps of 3 s, less what the 16
    photographs of statistics and report cost, as steps of two crops of 32 x 32 forward and back."""
    context = minutes_run(data, tmp_path / "run", 3.0, monkeypatch, minutes=1.5)
    record = record_of(tmp_path / "run")
    timed, spent = record["minutes"]["timed"], record["minutes"]["spent"]
    assert record["minutes"]["seconds_a_step"] == pytest.approx(3.0) and spent == 15 + 3 * timed
    assert record["steps"] == context.steps == int((81 - spent) / 3 - 16 * 48 * 64 / (3 * 2 * 32 * 32))
    assert record["minutes"]["asked"] == 1.5 and timed >= 1
    assert any(f"--minutes 1.5: {record['steps']} steps, at 3.0 s a step" in note for note in record["notes"])
    supervised(data, tmp_path / "number", steps=record["steps"])
    assert same(tmp_path / "run", tmp_path / "number"), "the timed steps leave no trace"
    assert record["labels_read"] == record_of(tmp_path / "number")["labels_read"]


@pytest.mark.slow
def test_a_run_of_minutes_is_resumed_with_the_steps_it_was_given(data, tmp_path, stop, often, monkeypatch):
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    minutes_run(data, whole, 3.0, monkeypatch, minutes=1.5)
    steps = record_of(whole)["steps"]
    stop("train", 5, Killed())
    with pytest.raises(Killed):
        minutes_run(data, broken, 3.0, monkeypatch, minutes=1.5)
    stop("train", 5, None)
    minutes_run(data, broken, 0.5, monkeypatch, minutes=1.5, resume=True)  # a machine six times as fast now
    assert record_of(broken)["steps"] == steps and same(whole, broken)


def test_minutes_that_cannot_be(data, tmp_path):
    with pytest.raises(MaskwrightError, match="--steps 5 and --minutes 2"):
        supervised(data, tmp_path / "run", steps=5, minutes=2)
    with pytest.raises(MaskwrightError, match="--minutes and kmeans, which trains nothing"):
        supervised(data, tmp_path / "run", method="kmeans", minutes=2, settings={})
    with pytest.raises(MaskwrightError, match="--minutes 0"):
        supervised(data, tmp_path / "run", minutes=0)
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_of_trainings_in_a_row_the_last_decides(data, tmp_path, stop, often, monkeypatch, capfd):
    """Stopped in the first of two: no command that would fail is printed; in the second: it can be finished."""
    run = tmp_path / "run"
    small = {**SMALL, "plus": False, "teacher_share": 0.5, "norm_images": 1}
    given: dict[str, Any] = {"method": "st_plus_plus", "settings": small, "steps": 8, "labeled": "train"}
    stop("teacher", 3, KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        supervised(data, run, progress=Progress(), **given)
    said = capfd.readouterr().err
    assert "kept: step 2 of 4 in stage teacher" in said and "go on: " in said and "maskwright finish" not in said
    with pytest.raises(MaskwrightError, match="was stopped before stage retrain saved anything"):
        mw.finish(run, report=False, progress=Progress(quiet=True))
    assert not (run / "teacher" / "stage.json").exists(), "nothing was changed"
    stop("retrain", 3, KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        supervised(data, run, progress=Progress(), resume=True, **given)
    (command,) = [line for line in capfd.readouterr().err.splitlines() if "maskwright finish" in line]
    stop("retrain", 3, None)
    assert command_line(monkeypatch, command.partition(": ")[2]) == 0
    assert record_of(run)["as_it_stands"] == {"stage": "retrain", "step": 2, "of": 4}
    with pytest.raises(MaskwrightError, match="cannot be lengthened to 9: its trainings follow") as raised:
        supervised(data, run, resume=True, **(given | {"steps": 9}))
    anew = raised.value.repair.partition(" trains anew")[0].replace("NEW", str(tmp_path / "new"))
    command_line(monkeypatch, anew.replace("--steps 9", "--steps 2"))
    assert record_of(tmp_path / "new")["status"] == "finished"
