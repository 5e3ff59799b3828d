"""What a context does for every stage: initial weights, samplers."""

from __future__ import annotations

from types import SimpleNamespace

import torch

from maskwright.data.training.sampler import Sampler
from maskwright.engine import context as C
from maskwright.engine.progress import Progress
from maskwright.engine.seeding import seed_step


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
