"""Reading ahead changes nothing but the time: weights, ledger, errors and ends are those of a run that does not."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest
import torch
from tests.engine.toys import PlainFabric, Toy, equal, train

from maskwright.data.folders.folder import open_folder
from maskwright.data.masking.classes import ClassTable
from maskwright.engine import resuming
from maskwright.engine.ahead import Batches, read_ahead
from maskwright.engine.checkpoint import CHECKPOINT, load_checkpoint, save_checkpoint
from maskwright.engine.context import Context
from maskwright.engine.progress import Progress
from maskwright.engine.records import RunFolder
from maskwright.errors import MaskwrightError

STEPS = 7
WORKERS = [0, 1, 2, 5]


class Killed(BaseException):
    """Stands for a kill: nothing catches it."""


@pytest.fixture(autouse=True)
def _no_thread_is_left():
    yield
    assert not [t for t in threading.enumerate() if t.name.startswith("maskwright-batches")]


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    folder = tmp_path_factory.mktemp("plain")
    run = train(Toy(STEPS), folder, workers=0)
    return load_checkpoint(folder / "toy" / CHECKPOINT), run.metrics()


def slow_and_fast(place: str, step: int) -> None:
    """Batches that are ready in another order than they are drawn in."""
    if place == "batch" and step % 2 == 0:
        time.sleep(0.005)


@pytest.mark.parametrize("workers", WORKERS)
def test_every_state_and_every_loss_are_equal(tmp_path, plain, workers):
    run = train(Toy(STEPS, hook=slow_and_fast), tmp_path, workers=workers)
    assert equal(load_checkpoint(tmp_path / "toy" / CHECKPOINT), plain[0])
    assert run.metrics() == plain[1]


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("number", range(STEPS))
def test_killed_at_every_checkpoint_and_resumed_with_another_number(tmp_path, plain, monkeypatch, workers, number):
    """The checkpoint holds the sampler of the batch that was used, though later ones were drawn."""
    calls: list[int] = []

    def save(path: Path, state: dict) -> None:
        save_checkpoint(path, state)
        assert state["parts"]["sampler"]["position"] == state["step"]
        calls.append(state["step"])
        if len(calls) == number + 1:
            raise Killed

    monkeypatch.setattr(resuming, "save_checkpoint", save)
    with pytest.raises(Killed):
        train(Toy(STEPS), tmp_path, workers=workers, checkpoint_every=1)
    monkeypatch.undo()
    run = train(Toy(STEPS), tmp_path, workers=2 - workers)
    assert equal(load_checkpoint(tmp_path / "toy" / CHECKPOINT), plain[0])
    assert run.metrics() == plain[1]


@pytest.mark.parametrize("workers", [1, 2])
def test_an_error_of_a_worker_is_told_when_its_step_has_come(tmp_path, workers):
    def hook(place: str, step: int) -> None:
        if (place, step) == ("batch", 5):
            raise MaskwrightError("photo 5 is damaged", "one that is not")

    toy = Toy(STEPS, hook=hook)
    with pytest.raises(MaskwrightError, match="photo 5 is damaged; expected one that is not"):
        train(toy, tmp_path, workers=workers)
    assert toy.tally.seen == [0, 1, 2, 3, 4]
    assert load_checkpoint(tmp_path / "toy" / CHECKPOINT)["step"] == 4


@pytest.mark.parametrize("error", [KeyboardInterrupt, Killed])
def test_an_interrupt_ends_what_is_being_drawn_and_puts_the_sampler_back(tmp_path, error):
    def hook(place: str, step: int) -> None:
        if (place, step) == ("losses", 3):
            raise error

    toy = Toy(STEPS, hook=hook)
    with pytest.raises(error):
        train(toy, tmp_path, workers=2)
    assert toy.sampler.position == 4


@pytest.mark.parametrize("workers", [1, 2, 3])
def test_no_more_is_drawn_than_one_batch_beyond_the_threads(tmp_path, workers):
    begun, used, most = [0], [0], [0]

    def hook(place: str, step: int) -> None:
        if place == "batch":
            begun[0] += 1
            most[0] = max(most[0], begun[0] - used[0])
        if place == "losses":
            used[0] += 1
            time.sleep(0.01)

    train(Toy(20, hook=hook), tmp_path, 20, workers=workers)
    assert begun[0] == 20
    assert 2 <= most[0] <= workers + 2  # those that wait, and the one that the step is about to use


class Watched(Toy):
    """Notes in which threads its parts ran, and with how many torch threads."""

    def __init__(self) -> None:
        super().__init__(STEPS)
        self.threads: dict[str, set[tuple[str, int]]] = {}

    def note(self, part: str) -> None:
        here = (threading.current_thread().name.partition("_")[0], torch.get_num_threads())
        self.threads.setdefault(part, set()).add(here)

    def batch(self, indices, random):
        self.note("batch")
        return super().batch(indices, random)

    def on_device(self, batch):
        self.note("on_device")
        return tuple(part.clone() for part in batch)

    def losses(self, batch, step):
        self.note("losses")
        return super().losses(batch, step)


class Alone(Watched):
    reads_ahead = False


@pytest.mark.parametrize(
    ("toy", "workers", "where"),
    [(Watched, 2, "maskwright-batches"), (Watched, 0, "MainThread"), (Alone, 2, "MainThread")],
)
def test_who_does_what_with_how_many_threads(tmp_path, plain, toy, workers, where):
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        watched = toy()
        train(watched, tmp_path, workers=workers)
        assert watched.threads == {
            "batch": {(where, 1)}, "on_device": {("MainThread", 2)}, "losses": {("MainThread", 2)},
        }  # fmt: skip
        counts: list[int] = []
        later = threading.Thread(target=lambda: counts.append(torch.get_num_threads()))
        later.start()
        later.join()
        assert counts == [2], "threads that start later are not held to one"
    finally:
        torch.set_num_threads(before)


def context(data: Path, out: Path, resume: bool = False, **options) -> Context:
    return Context(
        data=open_folder(data), table=ClassTable.numbered(3), seed=0, steps=None, fabric=PlainFabric(),
        run=RunFolder.start(out, {"seed": 0}, resume=resume), cache=None, backbone=None,
        progress=Progress(quiet=True), **options,
    )  # fmt: skip


class Judged(Toy):
    """Reads a mask for each batch, and looks at held-out images after each step while the workers read on."""

    def __init__(self, given: Context, last: int) -> None:
        def hook(place: str, step: int) -> None:
            if place == "batch":
                given.data.mask(step)
            if (place, step) == ("losses", last):
                raise Killed

        super().__init__(STEPS, hook=hook)
        self.ledger = given.data.ledger

    def after_step(self, step: int) -> None:
        super().after_step(step)
        with self.ledger.purpose("select"):
            time.sleep(0.01)


@pytest.mark.parametrize("workers", [0, 2])
def test_the_ledger_counts_batches_that_were_used(tiny_folder, tmp_path, workers):
    def fit(given: Context, last: int) -> None:
        folder = given.run.stage_folder("toy")
        given.fit(Judged(given, last), "toy", folder, STEPS, checkpoint_every=2)

    names = [f"picture_{i:02d}" for i in range(STEPS)]
    first = context(tiny_folder, tmp_path / "run", workers=workers)
    with pytest.raises(Killed):
        fit(first, 4)
    assert first.data.ledger.names("train", "masks") == names[:5]
    saved = load_checkpoint(tmp_path / "run" / "toy" / CHECKPOINT)
    assert saved["parts"]["extra.ledger"]["train"]["masks"] == names[:4]
    second = context(tiny_folder, tmp_path / "run", resume=True, workers=workers)
    fit(second, -1)
    assert second.data.ledger.names("train", "masks") == names
    assert not second.data.ledger.names("select", "masks")


def test_how_many_threads(monkeypatch):
    monkeypatch.delenv("MASKWRIGHT_READ_AHEAD", raising=False)
    assert read_ahead() == 1 and read_ahead(0) == 0 and read_ahead(3) == 3
    monkeypatch.setenv("MASKWRIGHT_READ_AHEAD", "4")
    assert read_ahead() == 4 and read_ahead(0) == 0
    for said in ("-1", "two", "65", "1.5"):
        monkeypatch.setenv("MASKWRIGHT_READ_AHEAD", said)
        with pytest.raises(MaskwrightError, match=rf"MASKWRIGHT_READ_AHEAD={said}; expected 0 to 64"):
            read_ahead()
    with pytest.raises(MaskwrightError, match="workers=-1"):
        read_ahead(-1)


def test_a_stage_without_steps_starts_no_thread():
    toy = Toy(STEPS)
    with Batches(toy, range(0), lambda step: torch.Generator(), 2) as batches:
        assert batches._pool is None
    assert toy.sampler.position == 0
