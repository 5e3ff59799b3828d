"""Drawing of queries and negatives, and the contrast of regions, against loops and closed forms."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from maskwright.ops.losses import region_contrast as rc


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@given(st.integers(1, 30), st.integers(1, 30), st.integers(1, 30), st.integers(1, 30))
def test_nearest_takes_the_pixel_whose_centre_is_nearest(big_h, big_w, h, w):
    x = torch.arange(big_h * big_w).view(1, big_h, big_w)
    y = rc.nearest(x, (h, w))
    assert y.shape == (1, h, w) and y.dtype == x.dtype
    for i in range(h):
        for j in range(w):
            row, column = divmod(int(y[0, i, j]), big_w)
            assert abs(row + 0.5 - (i + 0.5) * big_h / h) <= 0.5 + 1e-9
            assert abs(column + 0.5 - (j + 0.5) * big_w / w) <= 0.5 + 1e-9


def test_rows_are_the_pixels_in_order():
    x = torch.randn(2, 5, 3, 4, generator=seeded())
    rows = rc.as_rows(x)
    assert torch.equal(rows[1 * 12 + 2 * 4 + 3], x[1, :, 2, 3])


def test_class_means_against_a_loop():
    rows, ids = torch.randn(40, 6, generator=seeded()), torch.randint(4, (40,), generator=seeded(1))
    ids[ids == 2] = 3
    means, counts = rc.class_means(rows, ids, 5)
    for c in range(5):
        mine = rows[ids == c]
        assert int(counts[c]) == len(mine)
        torch.testing.assert_close(means[c], mine.mean(0) if len(mine) else torch.zeros(6))


def test_queries_are_candidates_of_their_class_and_all_are_reached():
    ids = torch.randint(5, (60,), generator=seeded())
    candidates = (torch.rand(60, generator=seeded(1)) < 0.5) & (ids != 3)
    drawn = rc.draw_queries(ids, candidates, 6, 400, seeded(2))
    assert drawn.classes.tolist() == sorted(set(ids[candidates].tolist())) and 3 not in drawn.classes
    assert torch.equal(drawn.ids, ids[drawn.places]) and bool(candidates[drawn.places].all())
    assert torch.bincount(drawn.ids, minlength=6).unique().tolist() == [0, 400]
    assert set(drawn.places.tolist()) == set(candidates.nonzero().flatten().tolist())
    none = rc.draw_queries(ids, torch.zeros_like(candidates), 6, 7)
    assert len(none.places) == len(none.classes) == 0


def test_weights_are_a_softmax_over_the_other_classes_that_are_there():
    means, counts, tau = torch.randn(4, 6, generator=seeded()), torch.tensor([3, 1, 0, 9]), 0.5
    weights = rc.similarity_weights(means, counts, tau)
    for c in range(4):
        others = [j for j in (0, 1, 3) if j != c]
        e = [math.exp(float(F.cosine_similarity(means[c], means[j], dim=0)) / tau) for j in others]
        expected = torch.zeros(4)
        expected[others] = torch.tensor(e) / sum(e)
        torch.testing.assert_close(weights[c], expected)
    alone = rc.similarity_weights(means, torch.tensor([5, 0, 0, 0]), tau)
    assert float(alone[0].sum()) == 0 and not bool(alone.isnan().any())


def test_negatives_follow_the_weights_and_are_never_of_the_own_class():
    ids = torch.tensor([0] * 3 + [1] * 7 + [3] * 2)
    weights = torch.tensor([[0, 0.7, 0, 0.3], [0.5, 0, 0, 0.5], [0, 0, 0, 0], [0.2, 0.8, 0, 0]])
    queries = rc.draw_queries(ids, torch.ones(12, dtype=torch.bool), 4, 300, seeded())
    index = rc.draw_negatives(queries, weights, ids, 50, seeded(1))
    assert index.shape == (900, 50)
    found = ids[index]
    assert not bool((found == queries.ids[:, None]).any())
    for c in (0, 1, 3):
        shares = torch.bincount(found[queries.ids == c].flatten(), minlength=4) / 15000
        torch.testing.assert_close(shares, weights[c], atol=0.02, rtol=0)
    of_one = index[queries.ids == 0].flatten()
    rows = torch.bincount(of_one[(of_one >= 3) & (of_one < 10)] - 3)
    torch.testing.assert_close(rows / rows.sum(), torch.full((7,), 1 / 7), atol=0.02, rtol=0)


def test_negatives_refuse_what_cannot_be_drawn():
    ids = torch.tensor([0, 0, 1])
    queries = rc.draw_queries(ids, torch.ones(3, dtype=torch.bool), 3, 2)
    with pytest.raises(ValueError, match="weight above 0"):
        rc.draw_negatives(queries, torch.ones(3, 3), ids, 4)
    with pytest.raises(ValueError, match="ascend"):
        rc.draw_negatives(queries, torch.ones(3, 3), ids.flip(0), 4)
    with pytest.raises(ValueError, match="candidates"):
        rc.draw_queries(ids, torch.ones(2, dtype=torch.bool), 3, 2)


def test_contrast_against_a_loop():
    tau, classes, count = 0.5, 3, 4
    rows, ids = torch.randn(20, 6, generator=seeded()), torch.randint(classes, (20,), generator=seeded(1))
    ids[0] = 2
    hard = torch.rand(20, generator=seeded(2)) < 0.6
    hard[ids == 1] = False  # class 1 is there but has no query
    queries = rc.draw_queries(ids, hard, classes, count, seeded(3))
    means, counts = rc.class_means(rows, ids, classes)
    keys = F.normalize(torch.randn(11, 6, generator=seeded(4)), dim=1)
    index = torch.randint(11, (len(queries.ids), 5), generator=seeded(5))
    present = int((counts > 0).sum())
    total = 0.0
    for c in queries.classes.tolist():
        mine = []
        for q in (queries.ids == c).nonzero().flatten().tolist():
            r = F.normalize(rows[queries.places[q]], dim=0)
            positive = math.exp(float(r @ F.normalize(means[c], dim=0)) / tau)
            negative = sum(math.exp(float(r @ keys[k]) / tau) for k in index[q])
            mine.append(-math.log(positive / (positive + negative)))
        total += sum(mine) / len(mine)
    loss = rc.region_contrast(rows, queries, means, keys, index, temperature=tau, present=present)
    assert present == 3 and float(loss) == pytest.approx(total / 3, rel=1e-5)


def test_gradients_flow_through_queries_alone():
    rows = torch.randn(12, 4, generator=seeded()).requires_grad_()
    ids = torch.arange(12) % 2
    means, _ = rc.class_means(rows, ids, 2)
    keys = F.normalize(rows, dim=1)
    queries = rc.Queries(torch.tensor([0, 2, 1, 3]), torch.tensor([0, 0, 1, 1]), torch.tensor([0, 1]), 2)
    index = torch.randint(4, 12, (4, 3), generator=seeded())
    rc.region_contrast(rows, queries, means, keys, index, temperature=0.5, present=2).backward()
    assert rows.grad is not None
    assert bool((rows.grad[4:] == 0).all()) and bool((rows.grad[:4].abs().sum(1) > 0).all())


def test_without_queries_it_is_zero():
    rows = torch.randn(5, 4).requires_grad_()
    queries = rc.draw_queries(torch.zeros(5).long(), torch.zeros(5, dtype=torch.bool), 2, 3)
    loss = rc.region_contrast(
        rows, queries, torch.zeros(2, 4), torch.zeros(1, 4), torch.zeros(0, 6).long(), temperature=0.5, present=0
    )
    loss.backward()
    assert float(loss.detach()) == 0
