from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from maskwright.ops.losses.thresholds import (
    BINS,
    ClassHistogram,
    class_balanced_labels,
    entropy,
    entropy_masks,
    kth_smallest,
    lrent_labels,
    mrkld,
    percentile,
)


def draw(b=3, c=5, h=20, w=25, seed=0, sharp=2.0):
    g = torch.Generator().manual_seed(seed)
    z = torch.randn(b, c, h, w, generator=g) * sharp + torch.arange(c).flip(0)[:, None, None] * 0.5
    return z.softmax(1)


def exact_thresholds(probs, classes, portion):
    """Sorts all confidences of each class."""
    confidence, ids = probs.max(1)
    lam = []
    for c in range(classes):
        of_class = confidence[ids == c].sort(descending=True).values
        n = math.floor(portion * len(of_class) + 1e-9)
        lam.append(float(of_class[n - 1]) if n else 1.0)
    return torch.tensor(lam, dtype=torch.float64)


@given(st.integers(0, 50), st.floats(0, 1))
@settings(max_examples=25)
def test_thresholds_are_those_of_sorting_within_a_bin(seed, portion):
    probs, histogram = draw(seed=seed), ClassHistogram(5)
    histogram.update(probs)
    lam, exact = histogram.thresholds(portion), exact_thresholds(probs, 5, portion)
    assert ((lam <= exact) & (exact < lam + 1 / BINS) | (exact == 1) & (lam >= 1 - 1 / BINS)).all()


def test_the_portion_of_each_predicted_class_is_kept():
    probs, histogram = draw(), ClassHistogram(5, bins=1 << 20)  # no two confidences in a bin
    histogram.update(probs)
    confidence, ids = probs.max(1)
    for portion in (0.0, 0.2, 0.37, 0.5, 1.0):
        kept = confidence >= histogram.thresholds(portion)[ids]
        for c in range(5):
            n = int((ids == c).sum())
            assert abs(int(kept[ids == c].sum()) - portion * n) <= 1, (portion, c)


def test_portion_is_monotone_and_its_ends():
    probs, histogram = draw(), ClassHistogram(5)
    histogram.update(probs)
    lams = torch.stack([histogram.thresholds(p) for p in np.linspace(0, 1, 21)])
    assert (lams.diff(dim=0) <= 0).all()
    assert (lams[0] == 1).all() and (class_balanced_labels(probs, lams[0]) == 255).all()
    assert (class_balanced_labels(probs, lams[-1]) != 255).all()
    kept = [int((class_balanced_labels(probs, lam) != 255).sum()) for lam in lams]
    assert kept == sorted(kept)


def test_shards_merge_to_one_pass():
    probs = draw()
    whole, parts = ClassHistogram(5), [ClassHistogram(5) for _ in range(3)]
    whole.update(probs)
    for part, image in zip(parts, probs):
        part.update(image)
    merged = parts[0].merge(parts[1]).merge(parts[2])
    assert torch.equal(merged.counts, whole.counts) and int(whole.counts.sum()) == 3 * 20 * 25
    with pytest.raises(ValueError, match="histograms"):
        merged.merge(ClassHistogram(5, bins=7))


def test_update_forms_agree():
    probs, valid = draw(), torch.rand(3, 20, 25, generator=torch.Generator().manual_seed(0)) > 0.5
    confidence, ids = probs.max(1)
    for every in (1, 4):
        a, b, c = (ClassHistogram(5) for _ in range(3))
        a.update(probs, valid=valid, every=every)
        b.update(confidence, ids, valid=valid, every=every)
        for image in range(3):  # each class's list of each image, cut by hand
            for k in range(5):
                values = confidence[image][valid[image] & (ids[image] == k)][::every]
                c.update(values, torch.full_like(values, k, dtype=torch.int64))
        assert torch.equal(a.counts, b.counts) and torch.equal(a.counts, c.counts) and int(a.counts.sum())
    before = a.counts.clone()
    for every in (1, 3):
        a.update(probs, valid=torch.zeros_like(valid), every=every)
    assert torch.equal(a.counts, before)


def test_certainty_and_rounding_above_it_fall_in_the_last_bin():
    histogram = ClassHistogram(2, bins=4)
    histogram.update(torch.tensor([0.0, 0.25, 0.74, 1.0, 1.0 + 1e-6]), torch.tensor([0, 0, 1, 1, 1]))
    assert histogram.counts.tolist() == [[1, 1, 0, 0], [0, 0, 1, 2]]
    assert histogram.thresholds(0.5).tolist() == [0.25, 0.75]
    assert histogram.thresholds(0.67).tolist() == [0.25, 0.75]
    assert histogram.thresholds(1.0).tolist() == [0.0, 0.5]


def test_a_class_never_predicted_gets_no_labels():
    probs = draw()
    probs[:, 4] = 0.0
    histogram = ClassHistogram(5)
    histogram.update(probs)
    lam = histogram.thresholds(0.5)
    assert lam[4] == 1 and not (class_balanced_labels(probs, lam) == 4).any()


def test_labels_are_reweighted():
    p = torch.tensor([[0.6, 0.4], [0.5, 0.5], [0.3, 0.7], [0.45, 0.55]]).T[:, None]  # (C, 1, 4)
    lam = torch.tensor([0.9, 0.5])
    assert class_balanced_labels(p, lam).tolist() == [[255, 1, 1, 1]]
    assert class_balanced_labels(p, torch.tensor([0.3, 0.9]), ignore=-1).tolist() == [[0, 0, 0, 0]]
    assert class_balanced_labels(p, torch.ones(2)).tolist() == [[255] * 4], "below certainty"
    assert class_balanced_labels(torch.tensor([1.0, 0.0])[:, None, None], torch.ones(2)).tolist() == [[0]]
    equal = torch.full((2,), 0.55)
    labels = class_balanced_labels(p, equal)
    assert torch.equal(labels, torch.where(p.amax(0) >= 0.55, p.argmax(0), 255))


def test_lrent_against_its_formula():
    probs, lam, alpha = draw().double(), torch.tensor([0.9, 0.5, 0.7, 0.4, 0.3]).double(), 0.25
    y, kept = lrent_labels(probs, lam, alpha)
    ratio = (probs / lam[:, None, None]) ** (1 / alpha)
    expected = ratio / ratio.sum(1, keepdim=True)
    assert torch.allclose(y, expected) and torch.allclose(y.sum(1), torch.ones(()).double())
    left = (-y * probs.log() + alpha * y * y.log()).sum(1)
    right = -(y * lam[:, None, None].log()).sum(1)
    assert torch.equal(kept, left < right) and 0 < kept.float().mean() < 1
    hard, sharp = class_balanced_labels(probs, lam), lrent_labels(probs, lam, 1e-3)
    assert torch.equal(sharp[1], hard != 255) and torch.equal(sharp[0].argmax(1)[hard != 255], hard[hard != 255])
    zero = torch.tensor([1.0, 0.0])[:, None, None]
    assert lrent_labels(zero, torch.tensor([0.5, 1.0]))[0].isfinite().all()


def test_mrkld():
    logits = torch.zeros(2, 5, 3, 4, dtype=torch.float64, requires_grad=True)
    loss = mrkld(logits)
    assert math.isclose(loss.item(), math.log(5)) and torch.autograd.grad(loss, logits)[0].abs().max() < 1e-15
    z = torch.randn(2, 5, 3, 4, dtype=torch.float64, requires_grad=True)
    valid = torch.rand(2, 3, 4) > 0.5
    expected = -z.log_softmax(1).mean(1)[valid].mean()
    assert torch.allclose(mrkld(z, valid), expected) and mrkld(z) > math.log(5)
    assert torch.autograd.gradcheck(lambda z: mrkld(z, valid), z)
    nothing = mrkld(z, torch.zeros_like(valid))
    assert nothing.item() == 0 and not torch.autograd.grad(nothing, z)[0].any()


@given(st.lists(st.floats(-5, 5, width=32), min_size=1, max_size=40), st.floats(0, 100))
@settings(max_examples=100)
def test_percentile_is_numpys(values, q):
    x = torch.tensor(values)
    assert math.isclose(percentile(x, q).item(), np.percentile(values, q), rel_tol=1e-5, abs_tol=1e-5)


@given(st.lists(st.floats(-5, 5, width=16), min_size=1, max_size=30), st.data())
@settings(max_examples=40)
def test_kth_smallest_sorts(values, data):
    k = data.draw(st.lists(st.integers(1, len(values)), min_size=1, max_size=3))
    for dtype in (torch.float32, torch.float64, torch.float16, torch.bfloat16):
        x = torch.tensor(values).to(dtype)
        found = kth_smallest(x.view(1, -1), *k)
        assert [v.item() for v in found] == [x.sort().values[n - 1].item() for n in k] and found[0].dtype == dtype


def test_percentile_of_many_values_and_of_none():
    n = (1 << 24) + 5  # torch.quantile refuses so many
    x = torch.arange(n, dtype=torch.float64).flip(0)
    assert percentile(x, 25.0).item() == (n - 1) / 4
    assert percentile(x, 50.0, x < 101).item() == 50
    none = percentile(x, 50.0, x < 0)
    assert none.isnan() and not (x <= none).any()


def test_entropy_masks():
    probs = draw(sharp=4.0)
    probs[0, :, 0, 0] = torch.tensor([1.0, 0, 0, 0, 0])
    valid = torch.rand(3, 20, 25, generator=torch.Generator().manual_seed(0)) > 0.3
    valid[0, 0, 0] = True
    reliable, unreliable, h = entropy_masks(probs, 30, 80, valid)
    assert torch.equal(h, entropy(probs)) and h[0, 0, 0] == 0 and h.max() <= math.log(5) + 1e-6
    bounds = np.percentile(h[valid].numpy(), [30, 80])
    assert torch.equal(reliable, valid & (h <= float(bounds[0])))
    assert torch.equal(unreliable, valid & (h >= float(bounds[1])))
    n = int(valid.sum())
    assert abs(int(reliable.sum()) - 0.3 * n) <= 1 and abs(int(unreliable.sum()) - 0.2 * n) <= 1
    assert not (reliable & unreliable).any()
    all_of_it = entropy_masks(probs, 100, 0)
    assert all_of_it.reliable.all() and all_of_it.unreliable.all()
    least = entropy_masks(probs, 0, 100, valid)
    assert least.reliable[0, 0, 0] and least.unreliable.sum() == 1 and h[least.unreliable] == h[valid].max()
    nothing = entropy_masks(probs, 30, 80, torch.zeros_like(valid))
    assert not nothing.reliable.any() and not nothing.unreliable.any()


def test_what_does_not_fit_is_refused():
    probs, histogram = draw(), ClassHistogram(5)
    for call, words in (
        (lambda: ClassHistogram(0), "classes"),
        (lambda: histogram.update(draw(c=4)), "probabilities are"),
        (lambda: histogram.update(probs[:, 0], torch.zeros(2).long()), "one shape"),
        (lambda: histogram.update(probs, valid=torch.ones(3, 20, 24)), "valid is"),
        (lambda: histogram.update(torch.tensor([0.5]), torch.tensor([5])), "ids from"),
        (lambda: histogram.update(torch.tensor([0.5]), torch.tensor([-1])), "ids from"),
        (lambda: histogram.update(torch.tensor([1.5]), torch.tensor([0])), "confidences from"),
        (lambda: histogram.update(torch.tensor([0.5, math.nan]), torch.tensor([0, 0])), "confidences from"),
        (lambda: histogram.thresholds(1.1), "portion"),
        (lambda: class_balanced_labels(probs, torch.ones(4)), "thresholds"),
        (lambda: lrent_labels(probs, torch.ones(5), 0.0), "alpha"),
        (lambda: mrkld(probs, torch.ones(3, 4, 4).bool()), "valid"),
        (lambda: percentile(probs, 101), "q is"),
        (lambda: percentile(probs, 50, torch.ones(3).bool()), "mask is"),
    ):
        with pytest.raises(ValueError, match=words):
            call()
    assert not histogram.counts.any()
