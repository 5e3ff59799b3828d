"""Collapse of a clustering: its two figures, the bounds, and that it is said once."""

from __future__ import annotations

import math

import pytest
import torch

from maskwright.recipes.clustering_health import (
    EVERY,
    ClusteringHealth,
    cluster_shares,
    clustering_health,
    collapse,
)


def test_figures_of_ids_probabilities_and_masks():
    ids = torch.tensor([[0, 0, 1, 1], [0, 0, 3, -1]])
    assert cluster_shares(ids, 4).tolist() == pytest.approx([4 / 7, 2 / 7, 0, 1 / 7])
    health = clustering_health(ids, 4)
    h = -sum(s * math.log(s) for s in (4 / 7, 2 / 7, 1 / 7))
    assert float(health["entropy"]) == pytest.approx(h / math.log(4))
    assert float(health["largest_share"]) == pytest.approx(4 / 7)
    maps = torch.nn.functional.one_hot(ids[None].clamp(min=0), 4).permute(0, 3, 1, 2).float()
    valid = ids[None] >= 0
    assert torch.equal(cluster_shares(maps, valid=valid), cluster_shares(ids, 4))
    assert torch.equal(cluster_shares(maps.log(), valid=valid), cluster_shares(ids, 4)), "logits will do"
    assert not cluster_shares(ids, 4, ids > 9).any()
    with pytest.raises(ValueError, match="number of clusters"):
        cluster_shares(ids)


def test_bounds():
    def said(ids: list[int], clusters: int) -> str | None:
        return collapse(clustering_health(torch.tensor(ids), clusters), clusters)

    assert said(list(range(11)), 11) is None
    assert said([0] * 90 + [1] * 10, 2) is None, "an object of a tenth of the photograph is one"
    assert said([0, 0, 0], 1) is None, "one cluster cannot fall together"
    assert "1.0 of 11 are in use, and the largest has 100 %" in str(said([3] * 50, 11))
    assert "2.0 of 11" in str(said([3, 7] * 50, 11))
    assert "97 %" in str(said([0] * 97 + [1] * 3, 2))


def test_a_training_says_it_once_and_not_at_its_start():
    lines: list[str] = []
    watched = ClusteringHealth(3, 4 * EVERY, lines.append)
    for step in range(4 * EVERY):
        terms = watched(torch.zeros(1, 3, 2, 2))
        assert set(terms) == {"entropy", "largest_share"} and float(terms["largest_share"]) == 1
        watched.after_step(step)
        if step < EVERY - 2:
            assert not lines
    assert len(lines) == 1 and lines[0].startswith(f"Step {EVERY} of {4 * EVERY}: the clusters fall together")
    fine: list[str] = []
    watched = ClusteringHealth(3, 2, fine.append)
    for step in range(2):
        watched(torch.eye(3)[None, :, :, None])
        watched.after_step(step)
    assert not fine
    short: list[str] = []
    watched = ClusteringHealth(3, 2, short.append)
    watched(torch.zeros(1, 3, 2, 2))
    watched.after_step(1)
    assert len(short) == 1, "the last step is looked at, however few there are"
