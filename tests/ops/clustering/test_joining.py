"""Ward's criterion against a slow version that says what it means."""

from __future__ import annotations

import itertools

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from maskwright.ops.clustering.joining import ward_groups


def slow(centers: torch.Tensor, k: int) -> list[set[int]]:
    """Of all pairs of groups the one whose union adds least to the sum of squared distances to the means."""
    x = F.normalize(centers.double(), dim=1)
    groups = [{i} for i in range(len(x))]

    def spread(own: set[int]) -> float:
        rows = x[sorted(own)]
        return float((rows - rows.mean(0)).square().sum())

    while len(groups) > k:
        a, b = min(
            itertools.combinations(groups, 2), key=lambda ab: spread(ab[0] | ab[1]) - spread(ab[0]) - spread(ab[1])
        )
        groups = [g for g in groups if g not in (a, b)] + [a | b]
    return sorted(groups, key=min)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000), st.integers(2, 14), st.integers(1, 6))
def test_it_joins_what_the_slow_version_joins(seed, count, k):
    centers = torch.randn(count, 5, generator=torch.Generator().manual_seed(seed))
    k = min(k, count)
    found = ward_groups(centers, k)
    assert [set(torch.nonzero(found == g)[:, 0].tolist()) for g in range(k)] == slow(centers, k)


def test_a_rare_kind_keeps_a_group_beside_a_frequent_one_of_many_centres():
    angles = torch.tensor([0.0, 0.02, 0.04, 0.06, 0.08, 1.5])
    assert ward_groups(torch.stack([angles.cos(), angles.sin()], 1), 2).tolist() == [0, 0, 0, 0, 0, 1]


def test_lengths_do_not_matter_and_as_many_groups_as_centres_join_none():
    centers = torch.randn(7, 4, generator=torch.Generator().manual_seed(1))
    scaled = centers * torch.arange(1.0, 8.0)[:, None]
    assert torch.equal(ward_groups(centers, 3), ward_groups(scaled, 3))
    assert ward_groups(centers, 7).tolist() == list(range(7))


@pytest.mark.parametrize(
    "centers, k", [(torch.eye(3), 4), (torch.eye(3), 0), (torch.full((3, 2), float("nan")), 2), (torch.ones(3), 1)]
)
def test_what_cannot_be_joined_is_refused(centers, k):
    with pytest.raises(ValueError):
        ward_groups(centers, k)
