"""Rounds: a training whose labels are clustered anew every so often, killed anywhere, ends in the same bits."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from tests.engine.toys import equal, train
from torch import Tensor, nn

from maskwright.data.training.sampler import Sampler
from maskwright.engine import resuming
from maskwright.engine.checkpoint import CHECKPOINT, load_checkpoint, save_checkpoint
from maskwright.engine.loop import Training
from maskwright.engine.seeding import generator, seed_step
from maskwright.errors import MaskwrightError
from maskwright.models.parts.encoder import BackboneEncoder
from maskwright.models.preprocess import Preprocess
from maskwright.recipes.self_training.rounds import Rounds, as_it_stands, live_rows

STEPS, EVERY, POINTS, CLUSTERS = 8, 3, 20, 3


class Killed(BaseException):
    """Stands for a kill: nothing catches it."""


Hook = Callable[[str, int], None]


def nothing(place: str, step: int) -> None:
    """Goes on."""


def killer(place: str, step: int) -> Hook:
    def hook(where: str, now: int) -> None:
        if (where, now) == (place, step):
            raise Killed

    return hook


class Clusters(Training):
    """In rounds: cluster all points by the network as it stands, forget the head, learn the clusters.

    Batches are points with their numbers; which cluster they belong to is looked up in `losses`.
    """

    def __init__(self, hook: Hook = nothing, when: Any = EVERY) -> None:
        draw = torch.Generator().manual_seed(5)
        self.x = (
            torch.randn(POINTS, 6, generator=draw) + 3 * torch.randn(4, 6, generator=draw)[torch.arange(POINTS) % 4]
        )
        torch.manual_seed(11)
        self.body = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.3))
        self.head = nn.Linear(8, CLUSTERS)
        self.modules = {"body": self.body, "head": self.head}
        self.optimizers = {
            name: torch.optim.SGD(m.parameters(), lr=0.1, momentum=0.9) for name, m in self.modules.items()
        }
        self.sampler = Sampler(POINTS, 6, 3)
        self.rounds = Rounds(when, self.cluster)
        self.extra = {"rounds": self.rounds}
        self.hook = hook

    def cluster(self, number: int) -> dict[str, Any]:
        """Two steps of k-means from random rows, by torch's and by numpy's global generator."""
        with as_it_stands(self.body):
            rows = self.body(self.x)
        centers = rows[torch.randperm(POINTS)[:CLUSTERS]]
        self.hook("round", number)
        for _ in range(2):
            ids = torch.cdist(rows, centers).argmin(1)
            centers = torch.stack(
                [rows[ids == k].mean(0) if bool((ids == k).any()) else centers[k] for k in range(CLUSTERS)]
            )
        with torch.no_grad():
            for p in self.head.parameters():
                p.copy_(torch.from_numpy(np.random.randn(*p.shape)) * 0.1)  # noqa: NPY002 - the state under test
        self.optimizers["head"].state.clear()
        return {"ids": ids, "centers": centers, "number": number}

    def before_step(self, step: int) -> None:
        self.rounds.before_step(step)
        self.hook("before", step)

    def batch(self, indices: Any, random: torch.Generator) -> tuple[Tensor, Tensor]:
        chosen = torch.as_tensor(indices)
        return self.x[chosen] + 0.1 * torch.randn(len(chosen), 6, generator=random), chosen

    def losses(self, batch: tuple[Tensor, Tensor], step: int) -> dict[str, Tensor]:
        x, chosen = batch
        self.hook("losses", step)
        return {"loss": F.cross_entropy(self.head(self.body(x)), self.rounds.result["ids"][chosen])}

    def after_step(self, step: int) -> None:
        self.hook("stepped", step)


class Drawn(Clusters):
    """Its batches depend on the round: each draws as many points of every cluster."""

    reads_ahead: ClassVar[bool] = False

    def batch(self, indices: Any, random: torch.Generator) -> tuple[Tensor, Tensor]:
        ids = self.rounds.result["ids"]
        chances = 1 / torch.bincount(ids, minlength=CLUSTERS).clamp(min=1)[ids].float()
        return super().batch(torch.multinomial(chances, 6, generator=random).numpy(), random)


KINDS = [Clusters, Drawn]


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    """The last checkpoint of each kind, left alone, with nothing read ahead."""
    found = {}
    for kind in KINDS:
        folder = tmp_path_factory.mktemp(kind.__name__)
        train(kind(), folder, STEPS, checkpoint_every=1, workers=0)
        found[kind] = load_checkpoint(folder / "toy" / CHECKPOINT)
    return found


def resume_and_compare(kind: type[Clusters], folder: Path, expected: dict[str, Any], **options: Any) -> None:
    training = kind()
    train(training, folder, STEPS, **({"checkpoint_every": 1} | options))
    resumed = load_checkpoint(folder / "toy" / CHECKPOINT)
    assert equal(resumed["parts"], expected["parts"]) and resumed["step"] == STEPS
    assert (training.rounds.number, training.rounds.step) == (3, 6)


@pytest.mark.parametrize("kind", KINDS)
def test_a_loop_written_by_hand_gives_the_same(uninterrupted, kind):
    slow = kind()
    ids = None
    for step in range(STEPS):
        seed_step(1, step, 0, "toy")
        if step in (0, 3, 6):
            slow.rounds._result = slow.cluster(step // 3)
            ids = slow.rounds.result["ids"]
        x, chosen = slow.batch(slow.sampler.next(), generator(1, "toy", "batch", step, 0))
        loss = F.cross_entropy(slow.head(slow.body(x)), ids[chosen])
        for optimizer in slow.optimizers.values():
            optimizer.zero_grad()
        loss.backward()
        for optimizer in slow.optimizers.values():
            optimizer.step()
    parts = uninterrupted[kind]["parts"]
    for name, module in slow.modules.items():
        assert equal(dict(module.state_dict()), dict(parts[f"module.{name}"])), name
    assert equal(parts["extra.rounds"], {"number": 3, "step": 6, "result": slow.rounds.result})
    assert len(slow.rounds.result["ids"].unique()) > 1, "clusters worth learning"


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("number", range(STEPS))
def test_killed_at_every_checkpoint(tmp_path, monkeypatch, uninterrupted, kind, number):
    calls: list[int] = []

    def save(path, state):
        save_checkpoint(path, state)
        calls.append(state["step"])
        if len(calls) == number + 1:
            raise Killed

    monkeypatch.setattr(resuming, "save_checkpoint", save)
    with pytest.raises(Killed):
        train(kind(), tmp_path, STEPS, checkpoint_every=1)
    monkeypatch.undo()
    resume_and_compare(kind, tmp_path, uninterrupted[kind])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("every", [1, 4])
@pytest.mark.parametrize(
    ("place", "step"),
    [("round", 0), ("round", 1), ("round", 2), ("before", 3), ("losses", 3), ("losses", 5), ("stepped", 6)],
)
def test_killed_in_a_round_and_around_it(tmp_path, uninterrupted, kind, every, place, step):
    with pytest.raises(Killed):
        train(kind(killer(place, step)), tmp_path, STEPS, checkpoint_every=every)
    resume_and_compare(kind, tmp_path, uninterrupted[kind], checkpoint_every=every, workers=step % 3)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("workers", [1, 3])
def test_reading_ahead_changes_nothing(tmp_path, uninterrupted, kind, workers):
    resume_and_compare(kind, tmp_path, uninterrupted[kind], workers=workers)


def test_a_round_in_a_batch_that_is_drawn_ahead_is_an_error(tmp_path):
    class Stale(Drawn):
        reads_ahead: ClassVar[bool] = True

    with pytest.raises(RuntimeError, match="reads_ahead = False"):
        train(Stale(), tmp_path, STEPS, workers=1)


def test_given_steps():
    ran: list[tuple[int, int]] = []
    rounds = Rounds([5, 2], lambda number: ran.append((number, step)))
    assert rounds.result is None and rounds.step == -1
    for step in range(8):
        assert rounds.before_step(step) == (step in (2, 5))
    assert ran == [(0, 2), (1, 5)] and (rounds.number, rounds.step) == (2, 5)


@pytest.mark.parametrize("when", [0, -3, [-1, 2]])
def test_impossible_steps(when):
    with pytest.raises(ValueError, match="expected at least 1 step"):
        Rounds(when, lambda number: None)


def test_a_checkpoint_with_rounds_at_other_steps_does_not_fit(tmp_path):
    train(Clusters(), tmp_path, 5, checkpoint_every=5)
    for when in (2, [0, 4]):
        with pytest.raises(MaskwrightError, match="2 rounds, the last before step 3"):
            train(Clusters(when=when), tmp_path, STEPS)


def test_the_mode_of_each_layer_is_back():
    module = nn.Sequential(nn.BatchNorm1d(2), nn.Dropout(), nn.Linear(2, 2))
    module[0].eval()
    for error in (None, KeyError):
        try:
            with as_it_stands(module):
                assert not any(m.training for m in module.modules())
                assert not module(torch.zeros(3, 2)).requires_grad
                if error:
                    raise error
        except KeyError:
            pass
        assert [m.training for m in module] == [False, True, True] and module.training
    assert module(torch.zeros(3, 2)).requires_grad


def test_rows_of_the_live_network(semi_context):
    encoder = BackboneEncoder(semi_context.backbone).eval()
    provenance = semi_context.backbone.provenance
    preprocess = Preprocess(provenance.mean, provenance.std, multiple_of=32)
    with as_it_stands(encoder):
        rows, again, next_round, every = (
            live_rows(semi_context, encoder, preprocess, number, count)
            for number, count in ((0, 3), (0, 3), (1, 3), (0, 99))
        )
        maps = [encoder(preprocess.apply(semi_context.data.image(i))[None])[0] for i in range(8)]
    places = maps[0].shape[1] * maps[0].shape[2]
    assert rows.shape == (8 * min(3, places), maps[0].shape[0]) and torch.equal(rows, again)
    assert every.shape[0] == 8 * places and (places <= 3 or not torch.equal(rows, next_round))
    for k, row in enumerate(rows):
        own = maps[k * len(maps) // len(rows)].flatten(1).T
        assert any(torch.equal(row, candidate) for candidate in own)
