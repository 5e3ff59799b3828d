"""UDA-SOD (Yan et al., AAAI 2022): tensors of the authors' code, and of their recipe of composites."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from tests.golden.cases import Case, read_cases

from maskwright.data.training.mixing import composite
from maskwright.methods.adapt.uda_sod.losses import SoftMasks, iou_loss, mask_loss, weighted_bce
from maskwright.methods.adapt.uda_sod.training import triangular
from maskwright.methods.adapt.uda_sod.uncertainty import believed, disagreement, portions, salient_share

pytestmark = pytest.mark.data


@pytest.fixture(scope="module")
def cases(golden_root: Path) -> dict[str, Case]:
    return read_cases(golden_root, "uda_sod")


@pytest.mark.parametrize("name", ["loss_ordinary", "loss_source_no_variance", "loss_empty_mask", "loss_weight5"])
def test_losses_and_their_gradients(cases, name):
    """The network of the authors has heads for body and detail too, whose terms are weighted cross-entropies."""
    case = cases[name]
    k = case.settings["pixel_weight"]
    x = {n: t[:, 0] for n, t in case.input.items()}
    logits = {n: t.requires_grad_() for n, t in x.items() if n.startswith("logits_")}
    valid, parts = torch.ones_like(x["mask"], dtype=torch.bool), {}
    for n, o in logits.items():
        kind = n.removeprefix("logits_")
        y = SoftMasks(x[kind[:-1]], x["variance"], valid)
        parts[kind] = mask_loss(o, y, k) if kind.startswith("mask") else weighted_bce(o, y, k)
        assert parts[kind].item() == pytest.approx(float(case.output[f"part_{kind}"]), abs=1e-8)
    iou = iou_loss(logits["logits_mask2"], x["mask"], valid)
    assert iou.item() == pytest.approx(float(case.output["iou_mask2"]), abs=1e-8)
    loss = torch.stack(list(parts.values())).sum() / 2
    assert loss.item() == pytest.approx(float(case.output["loss"]), abs=1e-8)
    loss.backward()
    for n, o in logits.items():
        assert torch.allclose(o.grad[:, None], case.grad[n], atol=1e-8)


@pytest.mark.parametrize("name", ["pseudo_update", "pseudo_update_skip05", "pseudo_update_threshold"])
def test_scores_and_who_is_believed(cases, name):
    case, s = cases[name], cases[name].settings
    p = case.input["view_logits"][:, :, 0].sigmoid().clone()  # (K, N, H, W)
    p[1] = p[1].flip(-1)
    names = [f"{i:02d}" for i in range(p.shape[1])]
    v = [disagreement(p[:, i]) for i in range(len(names))]
    scores = {n: float(one.mean()) for n, one in zip(names, v)}
    shares = {n: salient_share(p[0, i]) for i, n in enumerate(names)}
    threshold = s["variance_threshold"] if s["policy"] == "threshold" else None
    found = believed(
        scores, shares, portion=s["portion"], skip=s["filter_portion"], threshold=threshold, black=s["black"],
        white=s["white"],
    )  # fmt: skip
    assert [int(n) for n in found.dropped] == case.output["dropped"].tolist()
    assert [int(n) for n in found.ranking] == case.output["ranking"].tolist()
    assert sorted(map(int, found.names)) == sorted(case.output["selected"].tolist())
    np.testing.assert_allclose([scores[n] for n in found.ranking], case.output["score"].numpy(), atol=2e-8)
    order = [int(n) for n in found.ranking]
    kept = sorted(order)
    stored = torch.stack([(255 * v[i]).round() for i in kept])
    assert torch.equal(stored, case.output["variance_png"].to(stored)), "within the 8 bits that the authors keep"
    assert torch.equal((255 * p[0, kept]).round(), case.output["mask_png"].to(p))


@pytest.mark.parametrize(
    ("name", "growth"), [("portions_default", 2.0), ("portions_ldf_train", 2.0), ("portions_more_target", 1.5)]
)
def test_portions_but_the_last_which_is_never_trained_on(cases, name, growth):
    case, s = cases[name], cases[name].settings
    rounds = s["rounds"] - 1
    np.testing.assert_allclose(portions(rounds, s["target_init"], growth, s["target_max"]), case.output["target"][:-1])
    np.testing.assert_allclose(portions(rounds, s["source_init"], 0.5), case.output["source"][:-1])


def test_rates_of_each_cycle(cases):
    case, s = cases["lr_cyclic"], cases["lr_cyclic"].settings
    ends = [0, *s["multi_steps"], s["total"]]
    found = [
        s["scale_rate"] ** r * triangular(b - a)(i) for r, (a, b) in enumerate(pairwise(ends)) for i in range(b - a)
    ]
    np.testing.assert_allclose(found, case.output["factor"][: len(found)].numpy(), atol=1e-12)


@pytest.mark.parametrize("place", ["center", "random", "shrink"])
def test_composites_within_the_half_level_of_rounding(cases, place):
    """The authors truncate, so that theirs is darker by less than a level; mask and place are equal."""
    case = cases[f"alpha_composite_{place}"]
    front, ground = case.input["foreground_resized"], case.input["background_bgr"]
    top, left = case.output["offset"].tolist()
    h, w = front.shape[:2]
    whole, alpha = torch.zeros_like(ground), torch.zeros(ground.shape[:2], dtype=torch.float64)
    whole[top : top + h, left : left + w], alpha[top : top + h, left : left + w] = front[..., :3], front[..., 3] / 255
    image, mask = composite(whole.permute(2, 0, 1), alpha, ground.permute(2, 0, 1))
    assert torch.equal(mask, case.output["mask"] == 255)
    more = image.permute(1, 2, 0).int() - case.output["image"].int()
    assert set(more.unique().tolist()) <= {0, 1}
    sure = (alpha == 0) | (alpha == 1)
    assert not more[sure].any(), "exact where the opacity is 0 or 1"
