"""Samplers: shares of a batch, exact positions, epochs as permutations."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from maskwright.data.training.sampler import PairSampler, Sampler
from maskwright.errors import MaskwrightError

CASES = settings(max_examples=60, deadline=None)


@CASES
@given(st.integers(1, 40), st.integers(1, 60), st.integers(0, 5), st.integers(1, 4), st.booleans())
def test_shares_in_order_of_rank_are_the_single_process_batch(n, batch, seed, world, drop_last):
    world = min(world, batch)
    alone = Sampler(n, batch, seed, drop_last=drop_last)
    ranks = [Sampler(n, batch, seed, world, r, drop_last=drop_last) for r in range(world)]
    for _ in range(6):
        shares = [s.next() for s in ranks]
        assert np.array_equal(np.concatenate(shares), alone.next())
        assert max(map(len, shares)) - min(map(len, shares)) <= 1


@CASES
@given(st.integers(1, 40), st.integers(1, 60), st.integers(0, 30), st.booleans(), st.integers(1, 3))
def test_position_is_restored_exactly_on_any_number_of_processes(n, batch, steps, drop_last, world):
    first = Sampler(n, batch, 7, drop_last=drop_last)
    for _ in range(steps):
        first.next()
    state = first.state_dict()
    world = min(world, batch)
    resumed = [Sampler(n, batch, 7, world, r, drop_last=drop_last) for r in range(world)]
    for sampler in resumed:
        sampler.load_state_dict(state)
    for _ in range(5):
        assert np.array_equal(np.concatenate([s.next() for s in resumed]), first.next())
    assert first.position == steps + 5


@CASES
@given(st.integers(1, 30), st.integers(1, 50), st.integers(0, 9))
def test_wrapped_batches_are_the_epochs_end_to_end(n, batch, seed):
    sampler = Sampler(n, batch, seed)
    stream = np.concatenate([sampler.next() for _ in range(3 * n)])
    assert len(stream) == 3 * n * batch
    for epoch in range(3):
        assert sorted(stream[epoch * n : (epoch + 1) * n]) == list(range(n))
        assert np.array_equal(stream[epoch * n : (epoch + 1) * n], Sampler(n, batch, seed).order(epoch))


def test_drop_last_leaves_out_the_rest_of_each_epoch():
    sampler = Sampler(10, 4, 1, drop_last=True)
    for epoch in range(3):
        assert sampler.epoch == epoch
        drawn = np.concatenate([sampler.next(), sampler.next()])
        assert np.array_equal(drawn, sampler.order(epoch)[:8]) and len(set(drawn)) == 8


def test_order_depends_on_seed_and_epoch_alone():
    a, b = Sampler(50, 8, 3), Sampler(50, 16, 3)
    assert np.array_equal(a.order(4), b.order(4))
    assert not np.array_equal(a.order(0), a.order(1))
    assert not np.array_equal(a.order(0), Sampler(50, 8, 4).order(0))
    assert np.array_equal(Sampler(5, 2, shuffle=False).next(), [0, 1])


def test_weights_are_the_frequencies():
    sampler = Sampler(4, 1000, 0, weights=[1, 2, 0, 1])
    drawn = np.concatenate([sampler.next() for _ in range(40)])
    assert np.allclose(np.bincount(drawn, minlength=4) / len(drawn), [0.25, 0.5, 0, 0.25], atol=0.01)


def test_pairs_cycle_each_list_and_resume():
    labeled, unlabeled = [3, 5, 8], list(range(10, 21))
    sampler = PairSampler(labeled, unlabeled, 2, 4, seed=1)
    drawn = [sampler.next() for _ in range(33)]
    assert set(np.concatenate([l for l, _ in drawn])) == set(labeled)
    counts = np.bincount(np.concatenate([u for _, u in drawn]))[10:]
    assert (counts == 12).all()
    resumed = PairSampler(labeled, unlabeled, 2, 4, seed=1)
    resumed.load_state_dict(sampler.state_dict())
    for x, y in zip(sampler.next(), resumed.next()):
        assert np.array_equal(x, y)
    assert resumed.position == 34


def test_mistakes_are_told():
    with pytest.raises(MaskwrightError, match="no images"):
        Sampler(0, 4)
    with pytest.raises(MaskwrightError, match="batch of 2"):
        Sampler(10, 2, world=4)
    with pytest.raises(MaskwrightError, match="n 10"):
        Sampler(11, 2).load_state_dict(Sampler(10, 2).state_dict())
