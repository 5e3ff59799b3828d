"""CBST (Zou et al., ECCV 2018) and CRST (Zou et al., ICCV 2019): thresholds, selection, losses and their gradients."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from tests.golden.cases import read_cases
from tests.golden.formulas import as64, draw, labels, softmax

from maskwright.data.training.crops import around
from maskwright.data.training.labels import LabelMap
from maskwright.methods.adapt.cbst import REGULARISERS
from maskwright.ops.losses.seg_losses import cross_entropy
from maskwright.ops.losses.thresholds import BINS, ClassHistogram, class_balanced_labels, lrent_labels, mrent, mrl2
from maskwright.recipes.self_training.soft_labels import SoftTarget, soft_loss
from maskwright.recipes.training.rare_classes import mined_classes

CLASSES, WEIGHT = 3, 0.3


def slow_loss(logits, y, regularised, regulariser):
    """Cross-entropy summed over labelled pixels by their number, R likewise over those of the regularised images; and
    the gradient, by the derivatives on paper."""
    p = softmax(as64(logits))
    value, gradient = {"ce": 0.0, "reg": 0.0}, np.zeros_like(p)
    labelled = y.valid.nonzero().tolist()
    pulled = [place for place in labelled if regularised[place[0]]]
    for b, i, j in labelled:
        k, q = int(y.ids[b, i, j]), p[b, :, i, j]
        value["ce"] -= np.log(q[k]) / len(labelled)
        gradient[b, :, i, j] += (q - np.eye(CLASSES)[k]) / len(labelled)
    for b, i, j in pulled:
        q = p[b, :, i, j]
        if regulariser == "mrkld":
            term, slope = -np.log(q).mean(), q - 1 / CLASSES
        elif regulariser == "mrent":
            term = (q * np.log(q)).sum()
            slope = q * (np.log(q) - term)
        else:
            term = (q**2).sum()
            slope = 2 * q * (q - term)
        value["reg"] += term / len(pulled)
        gradient[b, :, i, j] += WEIGHT * slope / len(pulled)
    return value["ce"] + WEIGHT * value["reg"], gradient


@pytest.mark.parametrize("regulariser", REGULARISERS)
def test_loss_with_a_regulariser_and_its_gradient(regulariser):
    logits, y = draw(2, CLASSES, 5, 5).double().requires_grad_(), labels(2, CLASSES)
    regularised = [False, True]
    loss = cross_entropy(logits, y.target(-1), ignore=-1)
    loss = loss + WEIGHT * REGULARISERS[regulariser](logits[1:], y.valid[1:])
    loss.backward()
    value, gradient = slow_loss(logits, y, regularised, regulariser)
    assert float(loss.detach()) == pytest.approx(value, rel=1e-9)
    np.testing.assert_allclose(as64(logits.grad), gradient, atol=1e-12)


@pytest.mark.parametrize("regulariser", REGULARISERS)
def test_a_regulariser_rests_at_uniform_and_without_labels(regulariser):
    logits = torch.zeros(1, 4, 2, 2, dtype=torch.float64, requires_grad=True)
    REGULARISERS[regulariser](logits, torch.ones(1, 2, 2, dtype=torch.bool)).backward()
    assert logits.grad.abs().max() < 1e-12
    away = draw(1, 4, 2, 2).requires_grad_()
    nothing = REGULARISERS[regulariser](away, torch.zeros(1, 2, 2, dtype=torch.bool))
    nothing.backward()
    assert float(nothing.detach()) == 0 and not away.grad.any()


def test_soft_loss_is_the_mean_over_labelled_pixels_and_equals_the_hard_one_of_one_hot_labels():
    logits, y = draw(2, CLASSES, 5, 5).double().requires_grad_(), labels(2, CLASSES)
    soft = draw(2, CLASSES, 5, 5, seed=4).double().softmax(1)
    loss = soft_loss(logits, SoftTarget(soft, y.valid))
    loss.backward()
    p, q, places = softmax(as64(logits)), as64(soft), y.valid.nonzero().tolist()
    value = -sum((q[b, :, i, j] * np.log(p[b, :, i, j])).sum() for b, i, j in places) / len(places)
    assert float(loss.detach()) == pytest.approx(value, rel=1e-9)
    expected = np.where(y.valid.numpy()[:, None], (p - q) / len(places), 0)
    np.testing.assert_allclose(as64(logits.grad), expected, atol=1e-12)
    hard = SoftTarget(F.one_hot(y.ids, CLASSES).permute(0, 3, 1, 2).double(), y.valid)
    logits = logits.detach()
    assert float(soft_loss(logits, hard)) == pytest.approx(float(cross_entropy(logits, y.target(-1), ignore=-1)))


def test_equal_portions_give_equal_thresholds_and_the_portion_decides_how_much_is_kept():
    p = draw(1, 2, 40, 40).softmax(1)
    p = torch.cat([p, p.flip(1)])  # what one image says of class 0 the other says of class 1
    histogram = ClassHistogram(2)
    histogram.update(p)
    kept = []
    for portion in (0.2, 0.25, 0.5):
        lam = histogram.thresholds(portion)
        assert float(lam[0]) == float(lam[1]), "classes that occur alike are treated alike"
        kept.append(int((class_balanced_labels(p, lam) != 255).sum()))
        assert kept[-1] == pytest.approx(portion * 3200, abs=3)
    assert kept == sorted(kept)


def test_soft_labels_become_the_hard_ones_towards_alpha_zero():
    p, lam = draw(4, 6, 6).double().softmax(0), torch.tensor([0.3, 0.4, 0.35, 0.5]).double()
    y, _ = lrent_labels(p, lam, alpha=0.01)
    hard = class_balanced_labels(p, lam, ignore=-1)
    clear = (p / lam[:, None, None]).sort(0).values[-2:].log().diff(dim=0)[0] > 0.05
    assert torch.equal(y.argmax(0)[clear & (hard >= 0)], hard[clear & (hard >= 0)])
    assert float(y.max(0).values[clear].min()) > 0.98
    assert lrent_labels(p, lam, alpha=1.0)[1].all(), "at 1 all is kept"


# ---------------------------------------------------------------------- the authors' tensors


@pytest.mark.data
def test_thresholds_and_selection_of_the_authors(golden_root):
    cases = read_cases(golden_root, "cbst_crst")
    for name in (n for n in cases if n.startswith(("threshold_", "lrent_")) and "loss" not in n):
        case, numbers = cases[name], cases[name].settings
        p = case.input["probability"].permute(0, 3, 1, 2)
        histogram, lam = ClassHistogram(numbers["classes"]), case.output["threshold"].double()
        histogram.update(p, every=numbers["ds_rate"])
        assert (histogram.thresholds(numbers["portion"]) - lam).abs().max() <= 1 / BINS + 1e-6, name
        assert mined_classes(case.output["predicted_pixels"], 0.001) == case.output["mine_id"].tolist()
        label = case.output["label"].long()
        if "soft_label" not in case.output:
            assert torch.equal(class_balanced_labels(p.double(), lam), label), name
            continue
        y, kept = lrent_labels(p.double(), lam, numbers["alpha"])
        assert torch.equal(kept, label != 255), name
        assert (y.permute(0, 2, 3, 1) - case.output["soft_label"]).abs().max() < 1e-5, name
    for name in ("cbst_sp", "cbst_noprior_leading_zero"):  # mxnet: its lists of confidences begin with a 0, ours do not
        case = cases[name]
        weighted = case.input["probability"] * (case.input["prior"] if name == "cbst_sp" else 1.0)
        assert torch.allclose(weighted, case.output["weighted"])
        found = class_balanced_labels(weighted, case.output["threshold"])
        assert torch.equal(found, case.output["label"].long()), name


@pytest.mark.data
def test_losses_and_gradients_of_the_authors(golden_root):
    cases = read_cases(golden_root, "cbst_crst")
    hard = [n for n in cases if n.startswith(("mrkld_", "cbst_plain", "cbst_all", "lrent_loss"))]
    assert len(hard) == 8
    for name in hard:
        case, weight = cases[name], cases[name].settings.get("mr_weight_kld", 0.0)
        logits = case.input["logits"].double().requires_grad_()
        if "soft_label" in case.input:
            soft = case.input["soft_label"].double()
            valid = soft.sum(1) > 0
            loss = soft_loss(logits, SoftTarget(soft, valid))
        else:
            y = LabelMap.from_mask(case.input["label"])
            valid, loss = y.valid, cross_entropy(logits, y.target(-1), ignore=-1)
        r = case.input.get("reg_weight", torch.zeros(len(logits)))
        if bool((r > 0).any()):
            assert r[r > 0].unique().numel() == 1, "one weight for the target"
            lam = weight * float(r.max())  # twice: what is 0.1 in their options is 0.01
            loss = loss + lam * REGULARISERS["mrkld"](logits[r > 0], valid[r > 0])
        expected = float(case.output["loss"])
        if name == "cbst_all_ignore":
            assert np.isnan(expected) and float(loss.detach()) == 0, "theirs is NaN without a label"
            continue
        loss.backward()
        assert float(loss.detach()) == pytest.approx(expected, rel=1e-5), name
        if "logits" in case.grad:
            torch.testing.assert_close(logits.grad, case.grad["logits"].double(), rtol=1e-5, atol=1e-9)
    for name, function in (("mrent_formula", mrent), ("mrl2_formula", mrl2)):
        logits = cases[name].input["logits"].double().requires_grad_()
        value = function(logits)
        value.backward()
        assert float(value.detach()) == pytest.approx(float(cases[name].output["regulariser"]), rel=1e-5)
        torch.testing.assert_close(logits.grad, cases[name].grad["logits"].double(), rtol=1e-5, atol=1e-9)


@pytest.mark.data
def test_crops_around_mined_pixels_of_the_authors(golden_root):
    case = read_cases(golden_root, "cbst_crst")["mining_crop"]
    label, numbers = case.input["label"], case.settings
    height, width = label.shape
    for (u, which, pixel), offset in zip(case.input["draws"].tolist(), case.output["offset"].tolist()):
        if u >= numbers["mine_chance"]:
            continue
        present = [c for c in numbers["mine_id"] if bool((label == c).any())]
        row, column = (label == present[int(which)]).nonzero()[int(pixel)].tolist()
        found = [around(row, numbers["crop_h"], height), around(column, numbers["crop_w"], width)]
        assert found == offset
