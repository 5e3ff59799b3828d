from __future__ import annotations

import math
from functools import partial

import pytest
import segmentation_models_pytorch as smp
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from maskwright.ops.losses.seg_losses import (
    cross_entropy,
    dice_loss,
    kl_divergence,
    lovasz_softmax,
    mse_probs,
    ohem_cross_entropy,
    reduce_pixels,
    soft_cross_entropy,
)

LABEL_LOSSES = [
    cross_entropy,
    lambda z, y: cross_entropy(z, y, denominator="all"),
    lambda z, y: cross_entropy(z, y, weight=torch.arange(4) + 0.5, pixel_weight=torch.rand(y.shape)),
    ohem_cross_entropy,
    lambda z, y: ohem_cross_entropy(z, y, min_kept=0),
    dice_loss,
    lambda z, y: dice_loss(z, y, classes="all"),
    lovasz_softmax,
    lambda z, y: lovasz_softmax(z, y, classes="all"),
]
PROB_LOSSES = [soft_cross_entropy, mse_probs, kl_divergence]


def draw(b=2, c=4, h=5, w=6, seed=0, void=0.3):
    g = torch.Generator().manual_seed(seed)
    z = torch.randn(b, c, h, w, generator=g, dtype=torch.float64) * 2
    y = torch.randint(c, (b, h, w), generator=g)
    return z.requires_grad_(), torch.where(torch.rand(b, h, w, generator=g) < void, 255, y)


def probs(b=2, c=4, h=5, w=6, seed=1):
    return torch.randn(b, c, h, w, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).softmax(1)


def each_pixel(z, y):
    """(p of the label, class) of each valid pixel, with a loop."""
    found = []
    for b in range(len(y)):
        for i in range(y.shape[1]):
            for j in range(y.shape[2]):
                if y[b, i, j] != 255:
                    e = z[b, :, i, j].exp()
                    found.append((e[y[b, i, j]] / e.sum(), int(y[b, i, j]), (b, i, j)))
    return found


def test_cross_entropy_denominators():
    z, y = draw()
    u, v = torch.rand(y.shape, dtype=torch.float64), torch.tensor([0.5, 2.0, 0.0, 1.0])
    pixels = each_pixel(z, y)
    terms = torch.stack([-u[at] * v[c] * p.log() for p, c, at in pixels]).sum()
    counted = sum(float(v[c]) for _, c, _ in pixels)
    weighed = sum(float(v[c] * u[at]) for _, c, at in pixels)
    for name, below in (("valid", counted), ("weights", weighed), ("all", y.numel())):
        found = cross_entropy(z, y, weight=v, pixel_weight=u, denominator=name)
        assert torch.allclose(found, terms / below), name
    none = cross_entropy(z, y, weight=v, pixel_weight=u, denominator="none")
    assert none.shape == y.shape and torch.allclose(none.sum(), terms) and not none[y == 255].any()
    assert torch.allclose(cross_entropy(z, y), F.cross_entropy(z, y, ignore_index=255))
    assert torch.allclose(cross_entropy(z, y, weight=v), F.cross_entropy(z, y, v.double(), ignore_index=255))
    assert torch.allclose(cross_entropy(z, y % 4, ignore=-1), F.cross_entropy(z, y % 4))


def test_pixel_weights_scale_valid_and_not_weights():
    """UniMatch's and the weighted mean: the same pixel, the same scale, other meaning."""
    z, y = draw()
    half = torch.full(y.shape, 0.5)
    assert torch.allclose(cross_entropy(z, y, pixel_weight=half), cross_entropy(z, y) / 2)
    assert torch.allclose(cross_entropy(z, y, pixel_weight=half, denominator="weights"), cross_entropy(z, y))


@pytest.mark.parametrize("loss", [cross_entropy, ohem_cross_entropy, dice_loss, lovasz_softmax])
def test_smaller_logits_are_brought_to_the_target(loss):
    z, _ = draw(h=4, w=5)
    _, y = draw(h=13, w=11)
    big = F.interpolate(z, (13, 11), mode="bilinear", align_corners=False)
    assert torch.allclose(loss(z, y), loss(big, y))
    assert torch.allclose(loss(z.bfloat16(), y), loss(z.bfloat16().float(), y))
    assert loss(z.bfloat16(), y).dtype == torch.float32


@pytest.mark.parametrize("loss", PROB_LOSSES)
def test_smaller_logits_are_brought_to_the_probabilities(loss):
    z, q = draw(h=4, w=5)[0], probs(h=13, w=11)
    assert torch.allclose(loss(z, q), loss(F.interpolate(z, (13, 11), mode="bilinear", align_corners=False), q))


@given(st.integers(0, 100), st.sampled_from([0.0, 0.1, 0.3, 0.7, 1.0]), st.integers(0, 70), st.floats(0, 1))
@settings(max_examples=60)
def test_ohem_against_the_definition(seed, threshold, min_kept, void):
    z, y = draw(seed=seed, void=void)
    v = torch.tensor([0.5, 2.0, 1.5, 1.0], dtype=torch.float64)
    pixels = sorted(((p, c) for p, c, _ in each_pixel(z, y)), key=lambda x: x[0].item())
    if min_kept <= len(pixels):
        limit = max(threshold, pixels[min_kept - 1][0].item() if min_kept else 0)
        pixels = [(p, c) for p, c in pixels if p.item() <= limit * (1 + 1e-12)]
    plain, weighted = (ohem_cross_entropy(z, y, threshold, min_kept, weight=w) for w in (None, v))
    if not pixels:
        assert plain == weighted == 0
        return
    nll = torch.stack([-p.log() for p, _ in pixels])
    w = torch.stack([v[c] for _, c in pixels])
    assert torch.allclose(plain, nll.mean()) and torch.allclose(weighted, (nll * w).sum() / w.sum())


def test_ohem_keeps_the_hardest_of_the_batch_not_of_each_image():
    z = torch.zeros(2, 2, 1, 4)
    z[0, 0], z[1, 0] = 5.0, 3.0  # the second image is harder
    y = torch.zeros(2, 1, 4, dtype=torch.long)
    assert torch.allclose(ohem_cross_entropy(z, y, 0.5, 4), cross_entropy(z[1:], y[1:]))
    assert torch.allclose(ohem_cross_entropy(z, y, 0.5, 5), cross_entropy(z, y)), "ties stay together"
    assert ohem_cross_entropy(z, y, 0.5, 0) == 0
    assert torch.allclose(ohem_cross_entropy(z, y, 1.0, 0), cross_entropy(z, y))


def test_ohem_does_not_count_void_among_the_kept():
    z, y = draw(void=0.5)
    valid = int((y != 255).sum())
    for min_kept in (valid - 1, valid, valid + 1, y.numel(), 10 * y.numel()):
        found = ohem_cross_entropy(z, y, 0.0, min_kept)
        nll = torch.stack([-p.log() for p, _, _ in each_pixel(z, y)]).sort(descending=True).values
        assert torch.allclose(found, nll[:min_kept].mean())


def test_dice_against_the_definition_and_smp():
    z, y = draw(c=5)
    y = torch.where(y == 3, 255, y)  # class 3 is absent, 4 never was
    p, valid = z.softmax(1), y != 255
    for smooth in (0.0, 1.0):
        each = []
        for c in range(5):
            pc, gc = p[:, c][valid], (y[valid] == c).double()
            each.append(1 - (2 * (pc * gc).sum() + smooth) / (pc.sum() + gc.sum() + smooth))
        present = [each[c] for c in range(5) if (y == c).any()]
        assert len(present) == 4
        assert torch.allclose(dice_loss(z, y, smooth=smooth), sum(present) / 4)
        assert torch.allclose(dice_loss(z, y, smooth=smooth, classes="all"), sum(each) / 5)
    z, y = draw()
    theirs = smp.losses.DiceLoss("multiclass", ignore_index=255)
    ours = dice_loss(z, y)
    assert torch.allclose(ours, theirs(z, y), atol=1e-6)
    assert torch.allclose(*(torch.autograd.grad(x, z)[0] for x in (ours, theirs(z, y))), atol=1e-6)


def slow_jaccard_extension(errors, truth):
    """Sum over sorted errors of error times the growth of the Jaccard loss of the set of the first ones."""
    order, wrong, before, total = errors.argsort(descending=True), set(), 0.0, 0.0
    positives = {i for i in range(len(truth)) if truth[i]}
    for i in order.tolist():
        wrong.add(i)
        predicted = positives ^ wrong
        union = len(predicted | positives)
        loss = 1 - len(predicted & positives) / union if union else 0.0
        total, before = total + errors[i] * (loss - before), loss
    return total


@given(st.integers(0, 100), st.floats(0, 0.9), st.sampled_from(["present", "all"]))
@settings(max_examples=15)
def test_lovasz_against_the_definition(seed, void, classes):
    z, y = draw(b=1, c=3, h=3, w=4, seed=seed, void=void)
    valid = y != 255
    p, truth = z.softmax(1).movedim(1, 0)[:, valid], y[valid]
    each = [
        slow_jaccard_extension(torch.where(truth == c, 1 - p[c], p[c]), truth == c)
        for c in range(3)
        if valid.any() and (classes == "all" or (truth == c).any())
    ]
    expected = sum(each) / len(each) if each else z.sum() * 0
    found = lovasz_softmax(z, y, classes=classes)
    assert torch.allclose(found, expected)
    assert torch.allclose(*(torch.autograd.grad(x, z)[0] for x in (found, expected)))


def test_lovasz_against_smp_and_the_jaccard_index():
    z, y = draw(h=16, w=16)
    z = z.detach().float().requires_grad_()
    theirs, ours = smp.losses.LovaszLoss("multiclass", ignore_index=255)(z, y), lovasz_softmax(z, y)
    assert torch.allclose(ours, theirs, atol=1e-6)
    assert torch.allclose(*(torch.autograd.grad(x, z)[0] for x in (ours, theirs)), atol=1e-6)
    # Of hard predictions the extension is the set function itself.
    hard = torch.where(F.one_hot(z.argmax(1), 4).movedim(3, 1) > 0, 1000.0, 0.0)
    k, valid = z.argmax(1), y != 255
    iou = [((k == c) & (y == c)).sum() / (((k == c) & valid) | (y == c)).sum() for c in range(4)]
    assert math.isclose(lovasz_softmax(hard, y).item(), 1 - sum(map(float, iou)) / 4, abs_tol=1e-6)


def test_losses_on_probabilities_against_torch():
    z, q = draw()[0], probs()
    p = z.softmax(1)
    assert torch.allclose(soft_cross_entropy(z, q), F.cross_entropy(z, q))
    assert torch.allclose(mse_probs(z, q), F.mse_loss(p, q))
    assert torch.allclose(mse_probs(z, q, over="sum"), F.mse_loss(p, q) * 4)
    assert torch.allclose(kl_divergence(z, q), (q * (q / p).log()).sum(1).mean())
    assert torch.allclose(soft_cross_entropy(z, q) + (q * q.log()).sum(1).mean(), kl_divergence(z, q))


def test_hard_targets():
    z, y = draw(void=0)
    one_hot = F.one_hot(y, 4).movedim(3, 1).double()
    ce = cross_entropy(z, y)
    for loss in (soft_cross_entropy, kl_divergence):
        assert torch.allclose(loss(z, one_hot), ce)
        assert torch.allclose(*(torch.autograd.grad(x, z, retain_graph=True)[0] for x in (loss(z, one_hot), ce)))
    sure = (one_hot * 2000).requires_grad_()
    for loss in PROB_LOSSES:
        assert loss(sure, one_hot).abs() < 1e-9
        wrong = loss(sure, one_hot.flip(1))
        assert wrong.isfinite() and torch.autograd.grad(wrong, sure)[0].isfinite().all()


@pytest.mark.parametrize("loss", PROB_LOSSES)
def test_gradcheck_and_masks(loss):
    z, q = draw(h=2, w=3)[0], probs(h=4, w=3)
    valid = torch.rand(2, 4, 3, generator=torch.Generator().manual_seed(2)) > 0.4
    u = torch.rand(2, 4, 3, dtype=torch.float64)
    each = loss(z, q, denominator="none")
    for name, below in (("valid", valid.sum()), ("weights", (valid * u).sum()), ("all", 24)):
        masked = partial(loss, probs=q, valid=valid, pixel_weight=u, denominator=name)
        assert torch.allclose(masked(z), (each * valid * u).sum() / below), name
        assert torch.autograd.gradcheck(masked, z)


@pytest.mark.parametrize("loss", LABEL_LOSSES)
def test_no_valid_pixel_is_zero_with_a_gradient(loss):
    z, y = draw(h=3, w=3)
    for target in (torch.full_like(y, 255), torch.full((2, 7, 7), 255)):
        found = loss(z, target)
        assert found.item() == 0 and not torch.autograd.grad(found, z)[0].any()


@pytest.mark.parametrize("loss", PROB_LOSSES)
def test_no_valid_probability_is_zero_with_a_gradient(loss):
    z, q = draw()[0], probs()
    found = loss(z, q, valid=torch.zeros(2, 5, 6, dtype=torch.bool), pixel_weight=torch.zeros(2, 5, 6))
    assert found.item() == 0 and not torch.autograd.grad(found, z)[0].any()


@pytest.mark.parametrize("loss", LABEL_LOSSES)
def test_extreme_logits_are_finite(loss):
    z, y = draw()
    for scale in (1e3, 1e5):
        x = (z.detach() * scale).float().requires_grad_()
        found = loss(x, y)
        assert found.isfinite() and torch.autograd.grad(found, x)[0].isfinite().all()


@pytest.mark.parametrize("loss", LABEL_LOSSES[:2] + LABEL_LOSSES[3:])
def test_void_and_order_of_images_do_not_matter(loss):
    z, y = draw()
    other = torch.where((y == 255)[:, None], z.detach().flip(1) * 3 + 1, z)
    assert torch.allclose(loss(z, y), loss(other, y))
    assert torch.allclose(loss(z, y), loss(z.flip(0), y.flip(0)))
    assert torch.allclose(loss(z, y), loss(z, y.to(torch.uint8)))


def test_what_does_not_fit_is_refused():
    z, y = draw()
    for call, words in (
        (lambda: cross_entropy(z, y[:1]), "expected"),
        (lambda: cross_entropy(z, y.float()), "integers"),
        (lambda: cross_entropy(z, y, weight=torch.ones(3)), "weight is"),
        (lambda: ohem_cross_entropy(z, y, weight=torch.ones(3)), "weight is"),
        (lambda: cross_entropy(z, y, denominator="some"), "denominator"),
        (lambda: cross_entropy(z, y, pixel_weight=torch.ones(2, 5, 5)), "pixel_weight is"),
        (lambda: ohem_cross_entropy(z, y, 1.5), "threshold"),
        (lambda: ohem_cross_entropy(z, y, 0.7, -1), "min_kept"),
        (lambda: dice_loss(z, y, smooth=-1.0), "smooth"),
        (lambda: dice_loss(z, y, classes="some"), "classes"),
        (lambda: mse_probs(z, probs(), over="all"), "over"),
        (lambda: kl_divergence(z, probs(c=3)), "probabilities"),
        (lambda: reduce_pixels(torch.ones(2, 3, 3), torch.ones(2, 3, 4)), "valid is"),
    ):
        with pytest.raises(ValueError, match=words):
            call()
