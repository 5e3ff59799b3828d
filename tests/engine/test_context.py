"""What a context does for every stage: initial weights, samplers, the pass over images, what a stage left."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from maskwright.data.training.sampler import Sampler
from maskwright.engine import context as C
from maskwright.engine.checkpoint import CHECKPOINT, save_checkpoint
from maskwright.engine.progress import Progress
from maskwright.engine.seeding import seed_step
from maskwright.errors import MaskwrightError


def context(path=None, seed: int = 3) -> C.Context:
    return C.Context(
        data=None, table=None, seed=seed, steps=None, fabric=None, run=SimpleNamespace(path=path), cache=None,
        backbone=None, progress=Progress(quiet=True),
    )  # fmt: skip


def test_initial_draws_are_a_function_of_seed_and_stage():
    draws = []
    for stage, seed in (("a", 3), ("b", 3), ("a", 4), ("a", 3)):
        torch.rand(5)
        context(seed=seed).initialise(stage)
        draws.append(torch.rand(4))
    assert torch.equal(draws[0], draws[3])
    assert not torch.equal(draws[0], draws[1]) and not torch.equal(draws[0], draws[2])
    seed_step(3, -1, stage="a")
    assert torch.equal(draws[0], torch.rand(4)), "what runs of before drew"


def test_a_sampler_has_the_runs_seed_and_another_stream_another_order():
    one, same, other = context().sampler(50, 8), Sampler(50, 8, seed=3), context().sampler(50, 8, seed=9)
    first = one.next()
    assert (first == same.next()).all() and (first != other.next()).any()
    assert len(context(seed=2**63).sampler(5, 2, seed=2**64 - 1).next()) == 2, "sums beyond 64 bits wrap around"


def test_the_pass_over_images_leaves_out_what_a_killed_run_made():
    made = {1, 4}
    assert list(context().each(range(6), "pass", done=made.__contains__)) == [0, 2, 3, 5]
    assert list(context().each([7, 5], "pass")) == [7, 5]


@pytest.mark.parametrize("world", [2, 3])
def test_processes_share_the_images_and_wait_for_each_other(world, monkeypatch):
    seen, waits = [], []
    monkeypatch.setattr(C, "barrier", lambda: waits.append(len(seen)))
    for rank in range(world):
        part = slice(rank * 7 // world, (rank + 1) * 7 // world)
        monkeypatch.setattr(C, "share", lambda items, part=part: items[part])
        seen += context().each(range(7), "pass")
    assert seen == list(range(7)) and len(waits) == world


def test_what_a_stage_left_is_loaded_in_evaluation_mode_and_another_build_is_refused(tmp_path):
    torch.manual_seed(0)
    left = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))
    (tmp_path / "first").mkdir()
    save_checkpoint(tmp_path / "first" / CHECKPOINT, {"step": 1, "parts": {"module.head": left.state_dict()}})
    run = context(tmp_path)
    found = run.trained("first", "head", nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3)))
    assert torch.equal(found[0].weight, left[0].weight) and not found.training
    assert set(run.left("first")) == {"module.head"}
    for part, module in (("head", nn.Linear(2, 3)), ("tail", left)):
        with pytest.raises(MaskwrightError, match="another network"):
            run.trained("first", part, module)
    with pytest.raises(MaskwrightError, match="second stage left no"):
        run.trained("second", "head", left)
