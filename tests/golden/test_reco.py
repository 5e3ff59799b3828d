"""ReCo (Liu et al., ICLR 2022): regional contrast of hard pixels."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from tests.golden.formulas import as64, draw, generator, labels, nll, pixels, unit

from maskwright.data.training.labels import LabelMap
from maskwright.methods.semi.reco_semi import reco_loss, weighted_consistency
from maskwright.ops.losses.region_contrast import Queries, region_contrast, similarity_weights


def test_consistency_is_weighed_by_the_share_of_sure_pixels():
    y, logits, t = labels(3, 4), draw(3, 4, 5, 5, seed=1), 0.7
    losses = nll(logits, y)
    share = [np.mean([float(y.confidence[x]) >= t for x in pixels(y) if x[0] == n]) for n in range(3)]
    expected = sum(share[x[0]] * v for x, v in losses.items()) / len(losses)
    assert float(weighted_consistency(logits, y, t)) == pytest.approx(expected, rel=1e-5)


def test_classes_are_contrasted_by_their_likeness():
    means, counts, t = draw(4, 6), torch.tensor([3, 0, 5, 1]), 0.5
    mu = unit(as64(means))
    found = similarity_weights(means, counts, t)
    for c in range(4):
        e = [math.exp(mu[c] @ mu[k] / t) if k != c and counts[k] else 0.0 for k in range(4)]
        assert found[c].tolist() == pytest.approx([x / sum(e) for x in e], rel=1e-5)


def test_contrast_with_given_negatives():
    """-log(e(r, mu_c) / (e(r, mu_c) + sum_k e(r, r_k))), the mean over queries of a class, then over classes."""
    rows, means, keys, t = draw(8, 5), draw(3, 5, seed=1), draw(7, 5, seed=2), 0.4
    places, ids = torch.tensor([0, 3, 5, 6]), torch.tensor([0, 0, 2, 2])
    index = torch.randint(0, 7, (4, 3), generator=generator(0))
    r, mu, k = unit(as64(rows)), unit(as64(means)), unit(as64(keys))
    total = 0.0
    for n, (place, c) in enumerate(zip(places.tolist(), ids.tolist())):
        own = math.exp(r[place] @ mu[c] / t)
        total += -math.log(own / (own + sum(math.exp(r[place] @ k[j] / t) for j in index[n].tolist()))) / 2
    queries = Queries(places, ids, torch.tensor([0, 2]), 2)
    unit_keys = torch.nn.functional.normalize(keys, dim=1)
    found = region_contrast(rows, queries, means, unit_keys, index, temperature=t, present=3)
    assert float(found) == pytest.approx(total / 3, rel=1e-5)


def test_the_whole_loss_where_every_draw_gives_the_same():
    """Two classes, each of equal rows: the mean of a class is its row, and negatives are the other class's."""
    a, b, t, k = unit(as64(draw(5))), unit(as64(draw(5, seed=1))), 0.5, 6
    ids = torch.tensor([[[0, 0, 1], [1, 0, 1]]])
    y = LabelMap(ids, torch.ones(1, 2, 3), torch.ones(1, 2, 3, dtype=torch.bool))
    rows = torch.tensor(np.stack([a if i == 0 else b for i in ids.flatten()]), dtype=torch.float32)
    own, other = math.exp(1 / t), math.exp(a @ b / t)
    expected = -math.log(own / (own + k * other))
    p = torch.full((6, 2), 0.5)
    found = reco_loss(3 * rows, p, y, threshold=0.97, temperature=t, queries=4, negatives=k)
    assert float(found) == pytest.approx(expected, rel=1e-5)
    sure = torch.nn.functional.one_hot(ids.flatten(), 2).float()
    assert float(reco_loss(rows, sure, y, threshold=0.97, temperature=t, queries=4, negatives=k)) == 0
