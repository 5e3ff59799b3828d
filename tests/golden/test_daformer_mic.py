"""DAFormer (Hoyer et al., CVPR 2022) and MIC (Hoyer et al., CVPR 2023): the parts that are options of `dacs`."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from tests.golden.cases import read_cases
from tests.golden.formulas import as64, draw, labels, softmax

from maskwright.data.training.mixing import kept_cells, patch_mask
from maskwright.methods.adapt.dacs import masked_loss
from maskwright.ops.losses.feature_distance import class_cells, feature_distance
from maskwright.recipes.training.rare_classes import rare_class_chances


def test_rare_classes_are_drawn_by_a_softmax_over_their_rarity():
    counts, temperature = [500.0, 0.0, 300.0, 200.0], 0.1
    weights = [math.exp((1 - n / 1000) / temperature) if n else 0.0 for n in counts]
    found = rare_class_chances(counts, temperature)
    np.testing.assert_allclose(found, np.array(weights) / sum(weights), rtol=1e-12)
    assert found.sum() == pytest.approx(1) and found[3] > found[2] > found[0] and found[1] == 0
    np.testing.assert_allclose(rare_class_chances([7, 7, 7], 0.01), 1 / 3)
    for wrong in (([1.0], 0.0), ([0.0, 0.0], 1.0)):
        with pytest.raises(ValueError, match="expected both above 0"):
            rare_class_chances(*wrong)


def test_feature_distance_is_the_mean_length_over_cells_with_its_gradient():
    f, f0 = draw(2, 4, 3, 3).double().requires_grad_(), draw(2, 4, 3, 3, seed=1).double().requires_grad_()
    cells = draw(2, 3, 3, seed=2) > 0
    loss = feature_distance(f, f0, cells)
    loss.backward()
    assert f0.grad is None, "nothing reaches the frozen network"
    total, gradient, places = 0.0, np.zeros((2, 4, 3, 3)), cells.nonzero().tolist()
    for b, i, j in places:
        d = as64(f)[b, :, i, j] - as64(f0)[b, :, i, j]
        length = math.sqrt((d**2).sum())
        total += length / len(places)
        gradient[b, :, i, j] = d / length / len(places)
    assert float(loss.detach()) == pytest.approx(total, rel=1e-12)
    np.testing.assert_allclose(as64(f.grad), gradient, atol=1e-12)
    for same, where in ((f0.detach(), cells), (f.detach(), torch.zeros_like(cells))):
        x = f0.detach().clone().requires_grad_()
        rest = feature_distance(x, same, where)
        rest.backward()
        assert float(rest.detach()) == 0 and not x.grad.any(), "equal features, or no cell: 0, and no NaN"


def test_cells_are_those_that_mostly_show_one_thing():
    y = torch.zeros(1, 4, 8, dtype=torch.int64)
    y[0, :, :3], y[0, :2, 4:] = 5, 7  # three quarters of the first cell, half of the second
    assert class_cells(y, [5, 7], (1, 2)).tolist() == [[[True, False]]]
    assert class_cells(y, [7], (1, 2)).tolist() == [[[False, False]]]
    y[0, 0, 0] = 255
    assert class_cells(y, [5], (1, 2)).tolist() == [[[False, False]]], "just below the share"
    assert not class_cells(y, [5, 255], (1, 2)).any(), "no label is no thing"
    with pytest.raises(ValueError, match=r"share is 0\.4"):
        class_cells(y, [5], (1, 2), 0.4)


def test_masked_loss_is_the_weighted_mean_over_all_pixels():
    logits, k = draw(2, 3, 5, 5).double().requires_grad_(), labels(2, 3)
    loss = masked_loss(logits, k, torch.tensor(0.4, dtype=torch.float64))
    loss.backward()
    p, gradient, total = softmax(as64(logits)), np.zeros((2, 3, 5, 5)), 0.0
    for b, i, j in k.valid.nonzero().tolist():
        c = int(k.ids[b, i, j])
        total -= 0.4 * math.log(p[b, c, i, j]) / 50
        gradient[b, :, i, j] = 0.4 * (p[b, :, i, j] - np.eye(3)[c]) / 50
    assert float(loss.detach()) == pytest.approx(total, rel=1e-9)
    np.testing.assert_allclose(as64(logits.grad), gradient, atol=1e-12)


def test_masks_are_whole_cells_and_of_the_ratio_on_average():
    mask = patch_mask(64, (64, 96), block=16, ratio=0.7, generator=torch.Generator().manual_seed(0))
    cells = mask.view(64, 4, 16, 6, 16)
    assert torch.equal(cells.all(4).all(2), cells.any(4).any(2))
    assert float(mask.float().mean()) == pytest.approx(0.3, abs=3 * math.sqrt(0.21 / (64 * 24)))
    assert patch_mask(2, (40, 56), block=16, ratio=0.0).all()


# ---------------------------------------------------------------------- the authors' tensors


@pytest.mark.data
def test_equal_to_the_authors(golden_root):
    cases = read_cases(golden_root, "daformer_mic")
    for name in ("rcs_gta_like", "rcs_missing_class", "rcs_temperature_1"):
        case = cases[name]
        found = rare_class_chances(case.input["pixel_count"].numpy(), case.settings["temperature"])
        order, expected = case.output["classes"].long().numpy(), case.output["probability"].numpy()
        np.testing.assert_allclose(found[order], expected, rtol=1e-4, atol=1e-6)  # theirs is in float32
        assert found.sum() == pytest.approx(found[order].sum())
    for name in ("feature_distance", "feature_distance_boundary", "feature_distance_no_thing"):
        case, numbers = cases[name], cases[name].settings
        f, f0 = case.input["feature"].double().requires_grad_(), case.input["feature_frozen"].double()
        cells = class_cells(case.input["label"][:, 0].long(), numbers["classes"], f.shape[-2:], numbers["min_ratio"])
        assert torch.equal(cells, case.output["mask"].bool()), name
        loss = numbers["weight"] * feature_distance(f, f0, cells)
        loss.backward()
        if name == "feature_distance_no_thing":
            assert float(loss.detach()) == 0 and torch.isnan(case.output["loss"]), "theirs is NaN"
            continue
        assert float(loss.detach()) == pytest.approx(float(case.output["loss"]), rel=1e-5)
        torch.testing.assert_close(f.grad, case.grad["feature"].double(), rtol=1e-5, atol=1e-10)
    for name in ("mic_mask", "mic_mask_ratio_0"):
        case, numbers = cases[name], cases[name].settings
        found = kept_cells(case.input["draw"][:, 0], tuple(numbers["size"]), numbers["block"], numbers["ratio"])
        assert torch.equal(found, case.output["mask"][:, 0].bool()), name
    # Where cells do not divide the crop, theirs stretch (two rows of 20 pixels); here they keep their size.
    assert cases["mic_mask_not_divisible"].input["draw"].shape[-2:] == (2, 4)
    assert kept_cells(torch.rand(1, 3, 4), (40, 56), 16, 0.7).shape == (1, 40, 56)
