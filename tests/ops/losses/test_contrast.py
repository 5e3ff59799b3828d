from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from maskwright.ops.losses.contrast import contrastive_loss, directional_mask, masked_logsumexp

SEED = 0


def draw(*shape, seed=SEED, unit=False):
    x = torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return F.normalize(x, dim=-1) if unit else x


def ids(n, classes, seed=SEED):
    return torch.randint(classes, (n,), generator=torch.Generator().manual_seed(seed))


def slow(anchors, positives, negatives, temperature, keep):
    """One anchor, one positive, one negative at a time; (N,)."""
    losses = []
    for i, a in enumerate(anchors):
        top = torch.exp(a @ positives[i] / temperature)
        rest = [
            torch.exp(a @ n / temperature)
            for j, n in enumerate(negatives if negatives.ndim == 2 else negatives[i])
            if keep[i, j]
        ]
        losses.append(-torch.log(top / (top + sum(rest))))
    return torch.stack(losses)


@given(
    st.integers(0, 30), st.integers(0, 40), st.integers(1, 6), st.integers(1, 5),
    st.sampled_from([1, 2, 7, 64, 500, None]), st.booleans(),
)  # fmt: skip
@settings(max_examples=60)
def test_labels_against_the_definition(n, m, d, classes, chunk, weighted):
    a, p, k = draw(n, d), draw(n, d, seed=1), draw(m, d, seed=2)
    ai, ki = ids(n, classes), ids(m, classes, seed=1) * 3 - 5
    ai = ai * 3 - 5
    for x in (a, p, k):
        x.requires_grad_()
    w = (torch.arange(n) % 3).double() if weighted else torch.ones(n)
    expected = slow(a, p, k, 0.5, ai[:, None] != ki[None]) * w if n else a.sum() + a.new_zeros(0)
    found = contrastive_loss(
        a, p, k, temperature=0.5, anchor_ids=ai, negative_ids=ki, chunk=chunk, reduction="none",
        weights=w if weighted else None,
    )  # fmt: skip
    assert found.shape == (n,) and torch.allclose(found, expected, rtol=1e-10, atol=1e-12)
    for b, c in zip(torch.autograd.grad(found.sum(), (a, p, k)), gradients(expected.sum(), (a, p, k))):
        assert torch.allclose(b, c, rtol=1e-9, atol=1e-11)


def gradients(loss, inputs):
    found = torch.autograd.grad(loss, inputs, allow_unused=True)
    return [torch.zeros_like(x) if g is None else g for g, x in zip(found, inputs)]


@pytest.mark.parametrize("chunk", [1, 50, None])
@pytest.mark.parametrize("how", ["shared keep", "own keep", "own labels", "index keep", "index labels"])
def test_other_ways_to_say_which_pairs_count(how, chunk):
    n, m, k, d = 11, 17, 6, 4
    a, p, pool = draw(n, d).requires_grad_(), draw(n, d, seed=1).requires_grad_(), draw(m, d, seed=2).requires_grad_()
    own = draw(n, k, d, seed=3).requires_grad_()
    index = torch.randint(m, (n, k), generator=torch.Generator().manual_seed(3))
    ai, pi, oi = ids(n, 3), ids(m, 3, seed=1), ids(n * k, 3, seed=2).view(n, k)
    mask = draw(n, k, seed=5) > 0
    cases = {
        "shared keep": (pool, draw(n, m, seed=4) > 0, {"keep": draw(n, m, seed=4) > 0}, pool),
        "own keep": (own, mask, {"keep": mask}, own),
        "own labels": (own, ai[:, None] != oi, {"anchor_ids": ai, "negative_ids": oi}, own),
        "index keep": (pool, mask, {"keep": mask, "negative_index": index}, pool[index]),
        "index labels": (
            pool, ai[:, None] != pi[index], {"anchor_ids": ai, "negative_ids": pi, "negative_index": index}, pool[index]
        ),
    }  # fmt: skip
    keys, keep, options, explicit = cases[how]
    found = contrastive_loss(a, p, keys, temperature=0.7, chunk=chunk, reduction="sum", **options)
    expected = slow(a, p, explicit, 0.7, keep).sum()
    assert torch.allclose(found, expected)
    for b, c in zip(torch.autograd.grad(found, (a, p, keys)), torch.autograd.grad(expected, (a, p, keys))):
        assert torch.allclose(b, c)


@pytest.mark.parametrize("equal", [False, True])
def test_gradcheck(equal):
    a, k = draw(6, 3).requires_grad_(), draw(9, 3, seed=1).requires_grad_()
    ai, ki = torch.tensor([0, 1, 2, 2, 1, 0]), torch.tensor([0, 1, 2] * 3)
    own, index, p = draw(6, 4, 3, seed=2).requires_grad_(), torch.randint(9, (6, 4)), draw(6, 3, seed=3)
    keep = torch.rand(6, 4, generator=torch.Generator().manual_seed(0)) > 0.3
    ways = {
        "labels": (lambda a, k: masked_logsumexp(a, k, anchor_ids=ai, key_ids=ki, equal=equal, chunk=7), (a, k)),
        "all": (lambda a, k: masked_logsumexp(a, k, temperature=0.3, chunk=7), (a, k)),
        "own": (lambda a, k: contrastive_loss(a, p, k, temperature=0.5, keep=keep), (a, own)),
        "index": (lambda a, k: contrastive_loss(a, k[:6], k, temperature=0.5, negative_index=index), (a, k)),
        "several": (lambda a, p: contrastive_loss(a, p, k.detach(), temperature=0.5, pool="mean"), (a, own)),
        "nca": (lambda a, p: contrastive_loss(a, p, k.detach(), temperature=0.5, pool="sum"), (a, own)),
        "among": (
            lambda a, k: contrastive_loss(a, None, k, temperature=0.5, anchor_ids=ai, negative_ids=ki), (a, k)
        ),
    }  # fmt: skip
    for name, (f, inputs) in ways.items():
        assert torch.autograd.gradcheck(f, inputs), name


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_chunks_change_nothing_but_rounding(dtype):
    n, m, d = 150, 400, 16
    a = draw(n, d, unit=True).to(dtype).requires_grad_()
    p, k = draw(n, d, seed=1).to(dtype), draw(m, d, seed=2).to(dtype)
    ai, ki = ids(n, 9) ** 2 % 7, ids(m, 9, seed=1)
    keep = ai[:, None] != ki[None]
    results = []
    for options in ({"anchor_ids": ai, "negative_ids": ki}, {"keep": keep}):
        for chunk in (64, 1000, 3777, 1 << 20):
            loss = contrastive_loss(a, p, k, temperature=0.1, chunk=chunk, **options)
            again = contrastive_loss(a, p, k, temperature=0.1, chunk=chunk, **options)
            grad = torch.autograd.grad(loss, a)[0]
            assert torch.equal(loss, again) and torch.equal(grad, torch.autograd.grad(again, a)[0])
            results.append((loss, grad))
    tolerance = {"rtol": 1e-4, "atol": 1e-6} if dtype == torch.float32 else {"rtol": 1e-11, "atol": 1e-13}
    for loss, grad in results[1:]:
        assert torch.allclose(loss, results[0][0], **tolerance) and torch.allclose(grad, results[0][1], **tolerance)


def test_extreme_logits_are_finite():
    a = draw(50, 8, unit=True).float().requires_grad_()
    k = torch.cat([draw(90, 8, seed=1, unit=True).float(), a.detach()[:5], -a.detach()[:5]])
    for temperature in (0.01, 1e-4):
        loss = contrastive_loss(a, -a.detach(), k, temperature=temperature, chunk=100, reduction="none")
        assert loss.isfinite().all() and torch.autograd.grad(loss.sum(), a)[0].isfinite().all()
        z = torch.cat([-(a * a).sum(1, keepdim=True), a @ k.T], 1).double() / temperature
        assert torch.allclose(loss.double(), F.cross_entropy(z, torch.zeros(50).long(), reduction="none"), rtol=1e-4)
    assert contrastive_loss(a, a.detach(), -k[:0], temperature=0.01) == 0


def test_all_negatives_dropped_is_exactly_zero():
    a = draw(8, 4).float().requires_grad_()
    p, k, zeros = draw(8, 4, seed=1).float(), draw(20, 4, seed=2).float(), torch.zeros
    for options in (
        {"anchor_ids": zeros(8).long(), "negative_ids": zeros(20).long()},
        {"keep": zeros(8, 20, dtype=torch.bool)},
        {"keep": zeros(8, 3, dtype=torch.bool), "negative_index": zeros(8, 3).long()},
        {"negative_index": zeros(8, 0).long()},
    ):
        loss = contrastive_loss(a, p, k, temperature=0.01, **options)
        assert loss.item() == 0 and not torch.autograd.grad(loss, a)[0].any()


def test_some_rows_without_negatives():
    a, p, k = draw(4, 3).requires_grad_(), draw(4, 3, seed=1), draw(5, 3, seed=2)
    ai, ki = torch.tensor([0, 1, 0, 1]), torch.zeros(5).long()
    loss = contrastive_loss(a, p, k, temperature=1, anchor_ids=ai, negative_ids=ki, reduction="none")
    assert loss[[0, 2]].tolist() == [0, 0] and (loss[[1, 3]] > 0).all()
    grad = torch.autograd.grad(loss.sum(), a)[0]
    assert not grad[[0, 2]].any() and grad[[1, 3]].all()


def test_half_precision_is_computed_in_full():
    a, p, k = (draw(n, 16, seed=n, unit=True).bfloat16() for n in (20, 21, 60))
    a.requires_grad_()
    found = contrastive_loss(a, p[:20], k, temperature=0.1)
    exact = contrastive_loss(a.detach().double(), p[:20].double(), k.double(), temperature=0.1)
    assert found.dtype == torch.float32 and abs(found.item() - exact.item()) < 1e-5
    found.backward()
    assert a.grad.dtype == torch.bfloat16 and a.grad.any()
    full = a.detach().float().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        cast = contrastive_loss(full, p[:20].float(), k.float(), temperature=0.1)
        cast.backward()
    assert torch.equal(cast, found) and torch.equal(full.grad.bfloat16(), a.grad)


def test_half_precision_pool_of_own_negatives():
    a, pool, index = (
        draw(9, 4, unit=True).float().requires_grad_(),
        draw(30, 4, seed=1).half(),
        ids(9 * 5, 30).view(9, 5),
    )
    found = [contrastive_loss(a, a.detach(), pool, temperature=0.1, negative_index=index, chunk=c) for c in (1, 50)]
    expected = contrastive_loss(a, a.detach(), pool.float()[index], temperature=0.1)
    for loss in found:
        assert loss.dtype == torch.float32 and torch.allclose(loss, expected)
        assert torch.allclose(*(torch.autograd.grad(x, a, retain_graph=True)[0] for x in (loss, expected)))


def test_gradients_go_where_they_are_wanted():
    a, p, k = draw(5, 3).requires_grad_(), draw(5, 3, seed=1).requires_grad_(), draw(7, 3, seed=2).requires_grad_()
    contrastive_loss(a, p.detach(), k.detach(), temperature=0.1).backward()
    assert a.grad.any() and p.grad is None and k.grad is None
    contrastive_loss(a.detach(), p.detach(), k, temperature=0.1).backward()
    assert k.grad.any() and p.grad is None


def test_weights_and_reductions():
    a, p, k = draw(6, 3), draw(6, 3, seed=1), draw(9, 3, seed=2)
    w = torch.tensor([0, 1, 0.5, 0, 2, 1]).double()
    each = contrastive_loss(a, p, k, temperature=0.2, reduction="none")
    for weights in (w, w > 0):
        x = weights.double()
        options = {"temperature": 0.2, "weights": weights}
        assert torch.allclose(contrastive_loss(a, p, k, reduction="none", **options), each * x)
        assert torch.allclose(contrastive_loss(a, p, k, reduction="sum", **options), (each * x).sum())
        assert torch.allclose(contrastive_loss(a, p, k, **options), (each * x).sum() / x.sum())
    a.requires_grad_()
    nothing = contrastive_loss(a, p, k, temperature=0.2, weights=torch.zeros(6))
    assert nothing.item() == 0 and not torch.autograd.grad(nothing, a)[0].any()
    assert contrastive_loss(a[:0], p[:0], k, temperature=0.2).item() == 0


def test_several_positives():
    a, p, k = draw(6, 3), draw(6, 4, 3, seed=1), draw(9, 3, seed=2)
    mask = torch.tensor([[1, 1, 1, 1], [1, 0, 0, 0], [0, 1, 1, 0], [0, 0, 0, 0], [0, 0, 0, 1], [1, 1, 0, 1]]).bool()
    one = torch.stack(
        [contrastive_loss(a, p[:, j], k, temperature=0.5, reduction="none") for j in range(4)], 1
    )  # fmt: skip
    options = {"temperature": 0.5, "positive_mask": mask, "reduction": "none"}
    found = contrastive_loss(a, p, k, **options)
    assert torch.allclose(found, torch.where(mask.any(1), (one * mask).sum(1) / mask.sum(1).clamp(min=1), 0))
    top = (torch.exp((p @ a[:, :, None]).squeeze(2) / 0.5) * mask).sum(1)
    rest = torch.exp(a @ k.T / 0.5).sum(1)
    nca = torch.where(mask.any(1), -torch.log(top / (top + rest)), 0)
    assert torch.allclose(contrastive_loss(a, p, k, pool="sum", **options), nca)
    mean = contrastive_loss(a, p, k, temperature=0.5, positive_mask=mask)
    assert torch.allclose(mean, found.sum() / 5), "an anchor without positives does not count"
    single = contrastive_loss(a, p[:, :1], k, temperature=0.5)
    assert torch.allclose(single, one[:, 0].mean())


def test_positives_among_the_negatives_is_cross_entropy():
    """MaskContrast: every pixel picks its image's object among all images' and the queue's."""
    q, keys, image = draw(40, 8), draw(12, 8, seed=1), ids(40, 5)
    key_ids = torch.cat([torch.arange(5), torch.full((7,), -1)])
    found = contrastive_loss(q, None, keys, temperature=0.5, anchor_ids=image, negative_ids=key_ids, chunk=60)
    assert torch.allclose(found, F.cross_entropy(q @ keys.T / 0.5, image))
    eye = torch.eye(4).double()
    loss = contrastive_loss(
        eye, None, eye, temperature=0.5, anchor_ids=torch.arange(4), negative_ids=torch.arange(4)
    )  # fmt: skip
    assert math.isclose(loss.item(), math.log(1 + 3 * math.exp(-2)), rel_tol=1e-12)
    missing = contrastive_loss(
        q, None, keys, temperature=0.5, anchor_ids=image + 3, negative_ids=key_ids, reduction="none"
    )  # fmt: skip
    assert not missing[image + 3 > 4].any() and missing[image + 3 <= 4].all()


def test_segsort_with_masks():
    """Own segment out of the denominator where the class has another."""
    v, mu = draw(30, 4, unit=True).requires_grad_(), draw(7, 4, seed=1, unit=True)
    segment, classes = ids(30, 7), torch.tensor([0, 0, 1, 1, 1, 2, 3])
    same = classes[segment][:, None] == classes[None]
    own = segment[:, None] == torch.arange(7)[None]
    plus = same & ~own
    plus = torch.where(plus.any(1, keepdim=True), plus, own)
    found = contrastive_loss(v, None, mu, temperature=0.1, keep=~same, positive_mask=plus)
    e = torch.exp(v @ mu.T / 0.1)
    num = (e * plus).sum(1)
    expected = -torch.log(num / (num + (e * ~same).sum(1))).mean()
    assert torch.allclose(found, expected)
    grads = [torch.autograd.grad(x, v)[0] for x in (found, expected)]
    assert torch.allclose(*grads)


def test_reco_closed_form():
    """Cosine 1 to the positive and -1 to 512 negatives."""
    a = draw(10, 6, unit=True)
    loss = contrastive_loss(a, a, -a[:, None].expand(10, 512, 6), temperature=0.5)
    assert math.isclose(loss.item(), math.log(1 + 512 * math.exp(-4)), rel_tol=1e-9)


class Largest(TorchDispatchMode):
    """The numbers in the largest tensor that any operation makes."""

    def __init__(self):
        super().__init__()
        self.numel = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for x in out if isinstance(out, tuple | list) else [out]:
            if isinstance(x, torch.Tensor):
                self.numel = max(self.numel, x.numel())
        return out


@pytest.mark.parametrize("own", [False, True])
def test_memory_is_bounded(own):
    n, m, d, chunk = 400, 600, 8, 5000
    a, k = draw(n, d).requires_grad_(), draw(m, d, seed=1).requires_grad_()
    index = torch.randint(m, (n, 100)) if own else None
    labels = {} if own else {"anchor_ids": ids(n, 5), "negative_ids": ids(m, 5)}
    with Largest() as largest:
        contrastive_loss(
            a, a.detach(), k, temperature=0.1, chunk=chunk, negative_index=index, **labels
        ).backward()  # fmt: skip
    limit = max(chunk, n * d, m * d, n * 100 if own else 0)
    assert chunk / 2 < largest.numel <= limit < n * m
    assert a.grad.any() and k.grad.any()


def test_directional_mask_is_strict():
    p1 = torch.tensor([0.1, 0.9, 0.5, 0.8, 0.7])
    p2 = torch.tensor([0.9, 0.1, 0.5, 0.8, 0.75])
    assert directional_mask(p1, p2, 0.75).tolist() == [True, False, False, False, False]
    assert directional_mask(p1, p2, 0.7).tolist() == [True, False, False, False, True]
    assert not directional_mask(p1, p1, 0.0).any()
    assert not (directional_mask(p1, p2, 0) & directional_mask(p2, p1, 0)).any()


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"anchors": torch.zeros(3)}, "anchors are"),
        ({"anchors": torch.zeros(3, 2).long()}, "anchors are"),
        ({"negatives": torch.zeros(5, 3)}, "negatives are"),
        ({"negatives": torch.zeros(4, 5, 2)}, "negatives are"),
        ({"positives": torch.zeros(2, 2)}, "positives are"),
        ({"positives": None}, "without positives"),
        ({"positives": None, "negatives": torch.zeros(3, 5, 2)}, "shared negatives"),
        ({"temperature": 0.0}, "temperature"),
        ({"chunk": 0}, "chunk"),
        ({"reduction": "max"}, "reduction"),
        ({"weights": torch.ones(4)}, "weights"),
        ({"anchor_ids": torch.zeros(3).long()}, "only together"),
        ({"anchor_ids": torch.zeros(3).long(), "negative_ids": torch.zeros(4).long()}, "labels"),
        ({"keep": torch.ones(5, 3).bool()}, "keep is"),
        ({"keep": torch.ones(3, 5).bool(), "anchor_ids": torch.zeros(3).long()}, "no labels beside"),
        ({"negative_index": torch.zeros(4, 2).long()}, "index is"),
        ({"positive_mask": torch.ones(3, 1).bool()}, "positive_mask"),
    ],
)
def test_what_does_not_fit_is_refused(changes, words):
    fits = {"anchors": torch.zeros(3, 2), "positives": torch.zeros(3, 2), "negatives": torch.zeros(5, 2)}
    with pytest.raises(ValueError, match=words):
        contrastive_loss(**({**fits, "temperature": 0.1} | changes))
