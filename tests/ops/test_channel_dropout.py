"""Dropped channels: whole channels, the right expectation, and pairs that complete each other."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from maskwright.ops.channel_dropout import channel_dropout, complementary_dropout, complementary_masks


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_whole_channels_are_dropped_and_the_rest_is_rescaled():
    maps = [torch.rand(3, 64, 5, 4) + 0.1, torch.rand(3, 200, 2, 2) + 0.1]
    before = [m.clone() for m in maps]
    for x, y in zip(maps, channel_dropout(maps, 0.25, generator())):
        ratio = (y / x).flatten(2)
        assert torch.equal(ratio.amin(2) > 0, ratio.amax(2) > 0)
        kept = ratio.amax(2) > 0
        torch.testing.assert_close(ratio[kept], torch.full_like(ratio[kept], 4 / 3))
        assert 0.6 < kept.float().mean() < 0.9
    assert all(torch.equal(a, b) for a, b in zip(maps, before))


def test_nothing_is_dropped_at_zero_and_one_is_refused():
    x = torch.randn(2, 8, 3, 3)
    assert torch.equal(channel_dropout([x], 0.0)[0], x)
    for p in (1.0, -0.1):
        with pytest.raises(ValueError, match="expected at least 0"):
            channel_dropout([x], p)


def test_expectation_is_the_map_itself():
    x = torch.ones(4, 20_000, 1, 1)
    assert abs(float(channel_dropout([x], 0.5, generator())[0].mean()) - 1) < 0.02
    m1, _ = complementary_masks(4, [20_000], generator=generator())[0]
    assert abs(float(m1.mean()) - 1) < 0.02


@settings(max_examples=25)
@given(pairs=st.integers(1, 9), kept=st.floats(0, 1), seed=st.integers(0, 99))
def test_pairs_complete_each_other(pairs, kept, seed):
    masks = complementary_masks(pairs, [6, 6, 10, 6], kept=kept, generator=generator(seed))
    for m1, m2 in masks:
        assert torch.equal(m1 + m2, torch.full_like(m1, 2))
        assert set(m1.unique().tolist()) <= {0.0, 1.0, 2.0}
    assert torch.equal(masks[0][0], masks[1][0]) and torch.equal(masks[0][0], masks[3][0])
    whole = [(m1 == 1).all(1) for m1, _ in masks]
    assert int(whole[0].sum()) == int(kept * pairs)
    assert all(torch.equal(w, whole[0]) for w in whole), "a pair is whole in all maps or in none"


def test_a_single_pair_keeps_no_channel_whole_by_default():
    m1, _ = complementary_masks(1, [32], generator=generator())[0]
    assert not (m1 == 1).any()


def test_views_of_a_pair_lose_different_channels_of_all_maps():
    x = torch.ones(4, 16, 2, 3)
    maps = complementary_dropout([x, 3 * x], kept=0.5, generator=generator(1))
    first, second = maps[0][:2], maps[0][2:]
    assert torch.equal(first + second, torch.full_like(first, 2))
    assert torch.equal(maps[1], 3 * maps[0])
    whole = (first == 1).flatten(1).all(1)
    assert int(whole.sum()) == 1


def test_an_odd_number_of_views_is_refused():
    with pytest.raises(ValueError, match="even"):
        complementary_dropout([torch.ones(3, 4, 1, 1)])
