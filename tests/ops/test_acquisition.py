"""Acquisition scores against closed forms and slow versions; greedy choices against brute force."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.distance import jensenshannon
from scipy.stats import entropy as scipy_entropy
from scipy.stats import rankdata

from maskwright.ops import acquisition as aq


def probabilities(c: int = 4, h: int = 9, w: int = 11, seed: int = 0) -> torch.Tensor:
    g = torch.Generator().manual_seed(seed)
    return (3 * torch.randn(c, h, w, generator=g, dtype=torch.float64)).softmax(0)


PIXEL = {"entropy": aq.entropy, "margin": aq.margin, "confidence": aq.least_confidence}


def test_uniform_is_the_most_and_certain_the_least_uncertain():
    uniform, sure = torch.full((5, 2, 3), 0.2), torch.zeros(5, 2, 3)
    sure[3] = 1
    one = torch.ones(2, 3)
    torch.testing.assert_close(aq.entropy(uniform), one)
    torch.testing.assert_close(aq.margin(uniform), one)
    torch.testing.assert_close(aq.least_confidence(uniform), 0.8 * one)
    for score in PIXEL.values():
        torch.testing.assert_close(score(sure), 0 * one)
        assert torch.equal(score(torch.ones(1, 2, 3)), 0 * one)


def test_entropy_and_divergences_against_scipy():
    p, q = probabilities(), probabilities(seed=1)
    np.testing.assert_allclose(aq.entropy(p), scipy_entropy(p.numpy(), base=4), rtol=1e-9)
    np.testing.assert_allclose(aq.disagreement(p, q, "kl"), scipy_entropy(q.numpy(), p.numpy()), rtol=1e-8)
    np.testing.assert_allclose(aq.disagreement(p, q), jensenshannon(p.numpy(), q.numpy(), base=2) ** 2, atol=1e-9)


def test_disagreement_is_symmetric_and_bounded():
    p, q = probabilities(), probabilities(seed=1)
    torch.testing.assert_close(aq.disagreement(p, q), aq.disagreement(q, p))
    assert float(aq.disagreement(p, p).abs().max()) < 1e-9
    a, b = torch.zeros(2, 1, 1), torch.zeros(2, 1, 1)
    a[0], b[1] = 1, 1
    torch.testing.assert_close(aq.disagreement(a, b), torch.ones(1, 1))
    with pytest.raises(ValueError, match="expected one"):
        aq.disagreement(p, q[:2])
    with pytest.raises(ValueError, match="js or kl"):
        aq.disagreement(p, q, "l1")  # type: ignore[arg-type]


@pytest.mark.parametrize("score", [*PIXEL.values(), lambda p: aq.region_scores(p, (3, 3), "clip")])
def test_shifted_logits_other_class_order_and_mirrors(score):
    logits = torch.randn(4, 7, 9, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    p = logits.softmax(0)
    torch.testing.assert_close(score((logits + 5).softmax(0)), score(p))
    torch.testing.assert_close(score(p[[2, 0, 3, 1]]), score(p))
    torch.testing.assert_close(score(p.flip(-1)), score(p).flip(-1))
    torch.testing.assert_close(score(p.flip(-2)), score(p).flip(-2))


# ---------------------------------------------------------------------- regions


@settings(max_examples=30)
@given(h=st.integers(1, 8), w=st.integers(1, 8), a=st.integers(1, 8), b=st.integers(1, 8), seed=st.integers(0, 99))
def test_window_means_against_loops(h, w, a, b, seed):
    x = torch.rand(h, w, generator=torch.Generator().manual_seed(seed))
    if a <= h and b <= w:
        found = aq.window_means(x, (a, b))
        assert found.shape == (h - a + 1, w - b + 1)
        for i, j in itertools.product(range(h - a + 1), range(w - b + 1)):
            assert math.isclose(float(found[i, j]), float(x[i : i + a, j : j + b].mean()), rel_tol=1e-5)
    else:
        with pytest.raises(ValueError, match="window"):
            aq.window_means(x, (a, b))
    a, b = 2 * (a // 2) + 1, 2 * (b // 2) + 1
    found = aq.window_means(x, (a, b), "clip")
    for i, j in itertools.product(range(h), range(w)):
        part = x[max(0, i - a // 2) : i + a // 2 + 1, max(0, j - b // 2) : j + b // 2 + 1]
        assert math.isclose(float(found[i, j]), float(part.mean()), rel_tol=1e-5)


def test_a_centred_window_needs_odd_sides():
    with pytest.raises(ValueError, match="odd"):
        aq.window_sums(torch.ones(4, 4), (2, 3), "clip")


def test_impurity_against_histograms():
    ids = torch.randint(0, 5, (8, 10), generator=torch.Generator().manual_seed(0))
    found = aq.impurity(ids, 5, (3, 5), "clip")
    for i, j in itertools.product(range(8), range(10)):
        part = ids[max(0, i - 1) : i + 2, max(0, j - 2) : j + 3].flatten().numpy()
        assert math.isclose(float(found[i, j]), scipy_entropy(np.bincount(part, minlength=5), base=5), abs_tol=1e-9)
    assert float(aq.impurity(torch.full((4, 4), 2), 5, (3, 3)).max()) == 0


def test_region_score_is_impurity_times_uncertainty():
    p = probabilities()
    size = (3, 3)
    expected = aq.impurity(p.argmax(0), 4, size) * aq.window_means(aq.entropy(p), size)
    torch.testing.assert_close(aq.region_scores(p, size), expected)
    torch.testing.assert_close(
        aq.region_scores(p, size, uncertainty=aq.margin(p)),
        aq.impurity(p.argmax(0), 4, size) * aq.window_means(aq.margin(p), size),
    )


@settings(max_examples=40)
@given(
    h=st.integers(1, 4), w=st.integers(1, 4), count=st.integers(0, 8), gap=st.integers(0, 3), seed=st.integers(0, 99)
)
def test_regions_do_not_overlap_and_fall_in_score(h, w, count, gap, seed):
    scores = torch.rand(12 - h + 1, 15 - w + 1, generator=torch.Generator().manual_seed(seed))
    boxes = aq.choose_regions(scores, (h, w), count, gap)
    assert len(boxes) <= count
    assert [b.score for b in boxes] == sorted((b.score for b in boxes), reverse=True)
    if boxes:
        assert math.isclose(boxes[0].score, float(scores.max()), rel_tol=1e-6)
    for b in boxes:
        assert b.top >= 0 and b.left >= 0 and b.top + b.height <= 12 and b.left + b.width <= 15
    for a, b in itertools.combinations(boxes, 2):
        assert abs(a.top - b.top) >= h + gap or abs(a.left - b.left) >= w + gap
    if len(boxes) < count:  # nothing more would have fitted
        for i, j in itertools.product(range(scores.shape[0]), range(scores.shape[1])):
            assert any(abs(b.top - i) < h + gap and abs(b.left - j) < w + gap for b in boxes)


def test_suppression_is_that_of_ripu():
    """Windows of (2r + 1)^2 whose centres lie within 2r of each other on both axes exclude one another."""
    r, scores = 1, torch.zeros(9, 9)
    scores[4, 4], scores[4, 6], scores[4, 7] = 3, 2, 1
    first, second = aq.choose_regions(scores, (2 * r + 1, 2 * r + 1), 2)
    assert (first.top, first.left) == (4, 4) and (second.top, second.left) == (4, 7)


def test_of_equal_windows_the_one_with_the_greatest_tie_comes_first():
    scores, ties = torch.zeros(4, 4), torch.zeros(4, 4)
    scores[0, 0], ties[3, 3], ties[0, 3] = 1, 2, 1
    found = [(b.top, b.left, b.score) for b in aq.choose_regions(scores, (2, 2), 3, ties=ties)]
    assert found == [(0, 0, 1), (3, 3, 0), (0, 3, 0)]


# ---------------------------------------------------------------------- images


def test_k_center_on_a_line():
    x = torch.tensor([[0.0], [1.0], [10.0], [11.0], [5.0]])
    order, reach = aq.k_center_greedy(x, 3, taken=torch.tensor([[0.0]]))
    assert order == [3, 4, 1] and reach == [11, 5, 1]
    order, reach = aq.k_center_greedy(x, 9)
    assert sorted(order) == [0, 1, 2, 3, 4] and order[0] == 4 and reach[0] == math.inf


@settings(max_examples=20)
@given(seed=st.integers(0, 999), k=st.integers(1, 4))
def test_k_center_is_within_twice_the_optimum(seed, k):
    x = torch.rand(9, 2, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    order, reach = aq.k_center_greedy(x, k)
    assert len(set(order)) == k and all(a >= b - 1e-12 for a, b in itertools.pairwise(reach))

    def radius(centres) -> float:
        return float(aq.distances(x, x[list(centres)]).max())

    best = min(radius(c) for c in itertools.combinations(range(9), k))
    assert radius(order) <= 2 * best + 1e-9


def test_equal_rows_are_still_chosen_once_each():
    order, _ = aq.k_center_greedy(torch.ones(4, 3), 4, taken=torch.ones(1, 3))
    assert sorted(order) == [0, 1, 2, 3]


@settings(max_examples=30)
@given(st.lists(st.integers(-3, 3), min_size=2, max_size=12))
def test_ranks_against_scipy(values):
    found = aq.rank_normalize(torch.tensor(values, dtype=torch.float64))
    np.testing.assert_allclose(found, (rankdata(values) - 1) / (len(values) - 1))


def test_ranks_take_infinities_and_single_scores():
    assert aq.rank_normalize(torch.tensor([math.inf, 1.0, math.inf])).tolist() == [0.75, 0.0, 0.75]
    assert aq.rank_normalize(torch.tensor([3.0])).tolist() == [0.5]


def test_mixture_weighs_ranks():
    a, b = torch.tensor([1.0, 2.0, 3.0]), torch.tensor([30.0, 20.0, 10.0])
    assert torch.equal(aq.mixture([a, b]), torch.full((3,), 0.5, dtype=torch.float64))
    assert aq.mixture([a, b], [1, 0]).tolist() == [0, 0.5, 1]
    for weights in ([1.0], [0.0, 0.0], [-1.0, 2.0]):
        with pytest.raises(ValueError, match="weight"):
            aq.mixture([a, b], weights)


def test_uncertain_and_diverse_between_its_extremes():
    g = torch.Generator().manual_seed(0)
    u, x = torch.rand(12, generator=g), torch.rand(12, 3, generator=g)
    taken = torch.rand(2, 3, generator=g)
    assert aq.uncertain_and_diverse(u, x, 5, taken, 0.0)[0] == u.argsort(descending=True)[:5].tolist()
    assert aq.uncertain_and_diverse(u, x, 5, taken, 1.0)[0] == aq.k_center_greedy(x, 5, taken)[0]
    order, scores = aq.uncertain_and_diverse(u, x, 40, taken)
    assert sorted(order) == list(range(12)) and all(0 <= s <= 1 for s in scores)


def test_a_duplicate_of_what_was_chosen_comes_late():
    x = torch.tensor([[0.0, 0], [0, 0], [5, 5], [9, 1]])
    u = torch.tensor([1.0, 0.99, 0.5, 0.4])
    assert aq.uncertain_and_diverse(u, x, 4, diversity=0.6)[0] == [0, 3, 2, 1]
