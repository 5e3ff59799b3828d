"""DANNet (Wu et al., CVPR 2021): what is asked of relit photographs, rarity, and the labels that day lends to night."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from tests.golden.cases import read_cases
from tests.golden.formulas import as64, draw, labels, pixels, softmax

from maskwright.methods.adapt.dannet.losses import (
    dissimilarity,
    exposure,
    mean_light,
    rarity_weights,
    static_labels,
    static_loss,
    structure,
    total_variation,
)
from maskwright.recipes.adversarial.adversary import least_squares

# ---------------------------------------------------------------------- plain formulas


def test_rarity_weights():
    counts = torch.tensor([700.0, 200.0, 0.0, 100.0])
    w = [-math.log(f) for f in (0.7, 0.2, 0.1)]
    mean, std = np.mean(w), np.std(w, ddof=1)
    expected = [0.16 * (x - mean) / std + 1 for x in w]
    assert rarity_weights(counts, 0.16).tolist() == pytest.approx([*expected[:2], 1.0, expected[2]], rel=1e-6)
    for equal in ([5.0, 5.0, 5.0], [7.0, 0.0], [0.1] * 10):
        assert torch.equal(rarity_weights(torch.tensor(equal), 0.05), torch.ones(len(equal))), "equal shares"
    many = rarity_weights(torch.rand(30, generator=torch.Generator().manual_seed(0)) + 0.01, 0.05)
    assert float(many.mean()) == pytest.approx(1, abs=1e-6) and float(many.std()) == pytest.approx(0.05, abs=1e-6)


def test_total_variation():
    r = draw(2, 3, 4, 5)
    x, total = as64(r), 0.0
    for b, c, i, j in np.ndindex(2, 3, 4, 5):
        if i < 3:
            total += (x[b, c, i + 1, j] - x[b, c, i, j]) ** 2 / (3 * 5)
        if j < 4:
            total += (x[b, c, i, j + 1] - x[b, c, i, j]) ** 2 / (4 * 4)
    assert float(total_variation(r)) == pytest.approx(2 * total / 2, rel=1e-5)
    assert float(total_variation(torch.full((1, 3, 4, 4), 0.3))) == 0


def test_exposure_and_mean_light():
    relit = draw(2, 3, 9, 11)
    x = as64(relit)
    windows = [x[b, :, 4 * i : 4 * i + 4, 4 * j : 4 * j + 4].mean() for b, i, j in np.ndindex(2, 2, 2)]
    expected = np.mean([(w - 0.3) ** 2 for w in windows])
    assert float(exposure(relit, 0.3, 4)) == pytest.approx(expected, rel=1e-5)
    valid = torch.ones(2, 9, 11, dtype=torch.bool)
    valid[0, :, 5] = False  # cuts the two right windows of the first
    left = [w for w, (b, _, j) in zip(windows, np.ndindex(2, 2, 2)) if b == 1 or j == 0]
    assert float(exposure(relit, 0.3, 4, valid)) == pytest.approx(np.mean([(w - 0.3) ** 2 for w in left]), rel=1e-5)
    assert float(exposure(torch.full((1, 3, 8, 8), 0.25), 0.25, 4)) == 0
    assert float(exposure(relit, 0.3, 4, torch.zeros_like(valid))) == 0, "no window lies inside"
    inside = np.broadcast_to(valid.numpy()[:, None], x.shape)
    assert float(mean_light(relit, valid)) == pytest.approx(x[inside].mean(), rel=1e-4)


def test_structure_is_ssim():
    a, b = draw(1, 3, 5, 6), draw(1, 3, 5, 6, seed=1)
    x, y = (np.pad(as64(z)[0], ((0, 0), (1, 1), (1, 1)), mode="reflect") for z in (a, b))
    found = []
    for c, i, j in np.ndindex(3, 5, 6):
        p, q = x[c, i : i + 3, j : j + 3], y[c, i : i + 3, j : j + 3]
        above = (2 * p.mean() * q.mean() + 1e-4) * (2 * ((p * q).mean() - p.mean() * q.mean()) + 9e-4)
        below = (p.mean() ** 2 + q.mean() ** 2 + 1e-4) * (p.var() + q.var() + 9e-4)
        found.append(min(max((1 - above / below) / 2, 0), 1))
    assert as64(dissimilarity(a, b)).ravel().tolist() == pytest.approx(found, abs=2e-5)
    assert float(structure(a, b)) == pytest.approx(np.mean(found), rel=1e-5)
    assert float(structure(a, a)) == pytest.approx(0, abs=1e-6), "what is not relit differs in nothing"


def test_static_labels():
    day, night = draw(2, 4, 5, 5), draw(2, 4, 5, 5, seed=1)
    weight, static = torch.tensor([1.1, 0.9, 1.0, 0.95]), [0, 3]
    k = static_labels(day, night, weight, static)
    x, y = as64(day), as64(night)
    for b, i, j in np.ndindex(2, 5, 5):
        z = y[b, :, i, j].copy()
        for c in static:
            t = 0.8 if x[b, c, i, j] > 0.4 else 0.2
            z[c] = t * x[b, c, i, j] + (1 - t) * z[c]
        best = int((z * as64(weight)).argmax())
        assert bool(k.valid[b, i, j]) == (best in static)
        if best in static:
            assert static[int(k.ids[b, i, j])] == best
    assert k.valid.any() and not k.valid.all()


def slow_static_loss(logits: torch.Tensor, k: Any, weight: torch.Tensor, gamma: float) -> float:
    """A label of any of the nine pixels around will do."""
    q, terms = softmax(as64(logits)), []
    for b, i, j in pixels(k):
        around = {
            int(k.ids[b, y, x])
            for y in range(max(0, i - 1), min(5, i + 2))
            for x in range(max(0, j - 1), min(5, j + 2))
            if k.valid[b, y, x]
        }
        o = min(max(max(float(weight[c]) * q[b, c, i, j] for c in around), 1e-7), 1 - 1e-7)
        terms.append(-((1 - o) ** gamma) * math.log(o))
    return float(np.mean(terms))


@pytest.mark.parametrize("gamma", [0.0, 1.0, 2.0])
def test_static_loss(gamma):
    logits, k, weight = draw(2, 3, 5, 5), labels(2, 3), torch.tensor([1.05, 0.9, 1.0])
    assert float(static_loss(logits, k, weight, gamma)) == pytest.approx(
        slow_static_loss(logits, k, weight, gamma), rel=1e-5
    )


def test_a_static_loss_of_nothing_is_nothing():
    logits, k = draw(2, 3, 5, 5).requires_grad_(), labels(2, 3)
    loss = static_loss(logits, k.restrict(torch.zeros_like(k.valid)), torch.ones(3))
    loss.backward()
    assert float(loss.detach()) == 0 and not logits.grad.any()


def test_the_static_loss_falls_as_a_neighbours_label_grows_likely():
    k = labels(1, 3).restrict(torch.ones(1, 5, 5, dtype=torch.bool))
    k = type(k)(torch.zeros_like(k.ids), torch.ones_like(k.confidence), torch.ones_like(k.valid))
    k.ids[0, 2, 3] = 1
    low, high = torch.zeros(1, 3, 5, 5), torch.zeros(1, 3, 5, 5)
    high[0, 1, 2, 2] = 2.0  # the pixel left of the one that is 1
    far = torch.zeros(1, 3, 5, 5)
    far[0, 1, 2, 0] = 2.0  # three pixels off
    losses = [float(static_loss(x, k, torch.ones(3))) for x in (low, high, far)]
    assert losses[1] < losses[0] < losses[2]


def test_least_squares():
    verdicts = draw(2, 1, 3, 4)
    assert float(least_squares(verdicts, 1.0)) == pytest.approx(np.mean((as64(verdicts) - 1) ** 2), rel=1e-5)
    valid = torch.zeros(2, 24, 32, dtype=torch.bool)
    valid[1, :, :16] = True
    left = as64(verdicts)[1, 0, :, :2]
    assert float(least_squares(verdicts, 0.0, valid)) == pytest.approx(np.mean(left**2), rel=1e-5)


# ---------------------------------------------------------------------- the authors' code


@pytest.fixture(scope="module")
def cases(data_root):
    """The authors' cases, gradients asked for."""
    root = data_root.parent / "golden"
    if not (root / "dannet").is_dir():
        pytest.skip("no tensors of the authors' code beside the photographs")
    found = read_cases(root, "dannet")
    for case in found.values():
        for name in case.grad:
            case.input[name].requires_grad_()
    return found


def same(found: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(found, expected.to(found), rtol=1e-5, atol=1e-6)


@pytest.mark.data
@pytest.mark.parametrize("name", ["light_constant", "light_ordinary", "light_partial_window"])
def test_light_as_the_authors(name, cases):
    case = cases[name]
    image, r = case.input["image"], case.input["residual"]
    tv, ssim, exp = total_variation(r), structure(image + r, image), exposure(image + r, case.settings["mean_light"])
    for term, key in ((tv, "tv"), (ssim, "ssim"), (exp, "exp"), (10 * tv + ssim + exp, "light")):
        same(term, case.output[key])
    (10 * tv + ssim + exp).backward()
    same(r.grad, case.grad["residual"])


@pytest.mark.data
def test_rarity_as_the_authors(cases):
    for name, spread in (("weights_05", 0.05), ("weights_16", 0.16)):
        same(rarity_weights(cases[name].input["frequency"], spread), cases[name].output["weight"])


@pytest.mark.data
@pytest.mark.parametrize("name", ["pseudo_label", "pseudo_label_low"])
def test_labels_as_the_authors(name, cases):
    case = cases[name]
    k = static_labels(
        case.input["logits_day"].double(), case.input["logits_night"].double(), case.input["weight"].double(), range(11)
    )
    assert torch.equal(k.target(255), case.output["label"].long())


@pytest.mark.data
@pytest.mark.parametrize(
    ("name", "window"),
    [
        ("static_ordinary", 3), ("static_with_ignore", 3), ("static_ordinary_nowindow", 1),
        ("static_with_ignore_nowindow", 1),
    ],
)  # fmt: skip
def test_static_loss_as_the_authors_mean_it(name, window, cases):
    """Of the released code's own values (`*_official`) none is met: its labels are lost before they are used."""
    from maskwright.data.training.labels import LabelMap

    case = cases[name]
    logits = case.input["logits"]
    loss = static_loss(logits, LabelMap.from_mask(case.input["label"].long()), case.input["weight"], window=window)
    same(loss, case.output["loss"])
    loss.backward()
    same(logits.grad, case.grad["logits"])


@pytest.mark.data
def test_verdicts_as_the_authors(cases):
    for wanted in (0, 1):
        case = cases[f"adversarial_label{wanted}"]
        loss = least_squares(case.input["score"], float(wanted))
        same(loss, case.output["loss"])
        loss.backward()
        same(case.input["score"].grad, case.grad["score"])
