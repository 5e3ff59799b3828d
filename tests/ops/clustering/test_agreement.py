"""Agreement of clusters with features against numpy's correlation over all pairs."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from maskwright.ops.clustering.agreement import pair_agreement


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000), st.integers(4, 40), st.integers(2, 5))
def test_it_is_the_correlation_over_all_pairs(seed, n, k):
    g = torch.Generator().manual_seed(seed)
    f, labels = torch.randn(n, 6, generator=g), torch.randint(k, (n,), generator=g)
    labels[:2] = torch.tensor([0, 1])
    unit = (f / f.norm(dim=1, keepdim=True)).double().numpy()
    same = (labels[:, None] == labels[None]).numpy()
    expected = np.corrcoef((unit @ unit.T).ravel(), same.ravel().astype(float))[0, 1]
    assert pair_agreement(f, labels) == pytest.approx(expected, abs=1e-6)
    assert pair_agreement(3 * f, labels) == pytest.approx(expected, abs=1e-6)


def test_clusters_that_are_those_of_the_features_agree_wholly_and_one_cluster_says_nothing():
    labels = torch.arange(12) % 3
    f = torch.eye(3)[labels]
    assert pair_agreement(f, labels) == pytest.approx(1)
    assert pair_agreement(f, torch.zeros(12, dtype=torch.int64)) == 0
    assert pair_agreement(f, torch.arange(12) // 4) < pair_agreement(f, labels)


def test_shapes_that_do_not_fit_are_refused():
    with pytest.raises(ValueError):
        pair_agreement(torch.ones(3, 2), torch.zeros(4, dtype=torch.int64))
