"""SlotCon (Wen et al., NeurIPS 2022): grouping, inverse augmentation, both losses, the whole objective, LARS."""

from __future__ import annotations

import math
from functools import partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from tests.golden.cases import Case, read_cases
from tests.golden.cases import close as near
from tests.golden.formulas import as64, draw, generator, softmax, unit

from maskwright.data.training.two_crops import shared_boxes
from maskwright.data.training.views import View
from maskwright.engine.schedules import cosine_value
from maskwright.methods.unsupervised.slotcon import losses as L
from maskwright.models.parts.projector import Projector
from maskwright.recipes.pretraining.lars import LARS

# --------------------------------------------------------------------- by slow formulas


def slots_by_loops(x: np.ndarray, s: np.ndarray, tau: float) -> tuple[np.ndarray, np.ndarray]:
    """Slots (B, K, d) and scores (B, K, h, w), place by place."""
    b, d, h, w = x.shape
    scores = np.zeros((b, len(s), h, w))
    total, weight = np.zeros((b, len(s), d)), np.zeros((b, len(s)))
    for n, i, j in np.ndindex(b, h, w):
        scores[n, :, i, j] = unit(s) @ unit(x[n, :, i, j])
        a = softmax(scores[n, :, i, j] / tau, 0) + 1e-6
        total[n] += a[:, None] * x[n, :, i, j]
        weight[n] += a
    return total / weight[..., None], scores


def test_slots_and_the_grouping_loss():
    x, s, c = draw(2, 4, 3, 2), draw(5, 4, seed=1), 0.1 * draw(5, seed=2)
    slots, scores = slots_by_loops(as64(x), as64(s), 0.07)
    ours = L.group(x, s, 0.07)
    np.testing.assert_allclose(ours.slots.numpy(), slots, atol=2e-6)
    np.testing.assert_allclose(ours.scores.numpy(), scores, atol=1e-6)

    k = draw(2, 5, 3, 2, seed=3)
    shared = torch.tensor([False, True])
    target, p = softmax((as64(k) - as64(c)[:, None, None]) / 0.2), softmax(as64(ours.scores) / 0.1)
    each = -(target * np.log(p)).sum(1).mean((1, 2))
    assert float(L.grouping_loss(ours.scores, k, c, 0.1, 0.2)) == pytest.approx(each.mean(), rel=1e-5)
    assert float(L.grouping_loss(ours.scores, k, c, 0.1, 0.2, shared)) == pytest.approx(each[1], rel=1e-5)
    assert float(L.grouping_loss(ours.scores, k, c, 0.1, 0.2, torch.zeros(2) > 0)) == 0


def test_the_slot_loss():
    q, k = draw(3, 4, 5), draw(3, 4, 5, seed=1)
    theirs = torch.rand(3, 4, generator=generator(2)) < 0.7
    both = theirs & (torch.rand(3, 4, generator=generator(3)) < 0.7)
    a, z, rows = unit(as64(2 * q)), unit(as64(k)), []
    for b, n in both.nonzero().tolist():
        near = {(i, j): np.exp(a[b, n] @ z[i, j] / 0.2) for i, j in theirs.nonzero().tolist()}
        rows.append(-math.log(near[b, n] / sum(near.values())))
    loss, count, guess = L.slot_loss(q, k, both, theirs, lambda x: 2 * x, 0.2)
    assert int(count) == len(rows) > 2
    assert float(guess) == pytest.approx(0.4 * math.log(int(theirs.sum())), rel=1e-6)
    assert float(loss) == pytest.approx(0.4 * np.mean(rows), rel=1e-5)


@pytest.mark.parametrize("anchors", [0, 1])
def test_without_a_shared_prototype_there_is_no_slot_loss(anchors):
    q, predictor = draw(2, 3, 4).requires_grad_(), Projector(4, 6, 4)
    theirs = torch.tensor([[True, True, False], [False, False, True]])
    ours = torch.zeros(2, 3, dtype=torch.bool)
    ours[0, :anchors] = True
    loss, count, _ = L.slot_loss(q, draw(2, 3, 4), ours, theirs, predictor, 0.2)
    loss.backward()
    assert (loss.item(), int(count)) == (0.0, anchors) and not q.grad.any()


# --------------------------------------------------------------------- the authors' own code


close = partial(near, least=1.0)


@pytest.fixture(scope="module")
def cases(golden_root) -> dict[str, Case]:
    return read_cases(golden_root, "slotcon")


def predictor_of(case: Case) -> Projector:
    """The authors' predictor, of linear layers."""
    given = {k.removeprefix("param.predictor.mlp."): v for k, v in case.input.items() if k.startswith("param.")}
    head = Projector(given["0.weight"].shape[1], given["0.weight"].shape[0], given["6.weight"].shape[0])
    with torch.no_grad():
        for name, p in head.layers.named_parameters():
            p.copy_(given[name].view_as(p))
    return head.train()


@pytest.mark.data
@pytest.mark.parametrize("name", ["grouping_ordinary", "grouping_constant_map", "grouping_high_temp"])
def test_grouping_of_the_authors(cases, name):
    case = cases[name]
    i, x, s = case.input, *(case.input[n].clone().requires_grad_() for n in ("x", "prototype"))
    ours = L.group(x, s, case.settings["temp"])
    close(ours.slots, case.output["slot"], "slot")
    close(ours.scores, case.output["score"], "score")
    ((ours.slots * i["upstream_slot"]).sum() + (ours.scores * i["upstream_score"]).sum()).backward()
    close(x.grad, case.grad["x"], "x")
    close(s.grad, case.grad["prototype"], "prototype")
    if name == "grouping_constant_map":
        constant = i["x"][:, :, 0, 0][:, None]
        torch.testing.assert_close(ours.slots, constant.expand_as(ours.slots))


@pytest.mark.data
@pytest.mark.parametrize("name", ["invaug_ordinary", "invaug_full_box", "invaug_tiny_box", "invaug_no_overlap"])
def test_inverse_augmentation_of_the_authors(cases, name):
    case = cases[name]
    x = case.input["score"].clone().requires_grad_()
    ours = L.inverse_augment(x, case.input["coords"], case.input["flag"])
    close(ours, case.output["aligned"], "aligned")
    if name == "invaug_full_box":
        plain = ~case.input["flag"]
        assert torch.equal(ours, case.output["aligned"]) and torch.equal(ours[plain], x[plain])
    if "upstream" in case.input:
        (ours * case.input["upstream"]).sum().backward()
        close(x.grad, case.grad["score"], "score")


@pytest.mark.data
@pytest.mark.parametrize("name", ["distill_ordinary", "distill_equal_views", "distill_other_temps"])
def test_grouping_loss_and_centre_of_the_authors(cases, name):
    case, s = cases[name], cases[name].settings
    q, k = case.input["score_student"].clone().requires_grad_(), case.input["score_teacher"]
    center = L.Center(k.shape[1], s["center_momentum"])
    center.value.copy_(case.input["center"][0])
    loss = L.grouping_loss(q, k, center.value, s["student_temp"], s["teacher_temp"])
    assert loss.item() == pytest.approx(case.output["loss"].item(), rel=1e-5)
    loss.backward()
    close(q.grad, case.grad["score_student"], "score_student")
    center.update(torch.cat((k, 0.5 * k)))
    close(center.value, case.output["center_after"][0], "centre")


@pytest.mark.data
@pytest.mark.parametrize("name", ["slot_ordinary", "slot_one_prototype_active", "slot_extra_teacher_slots"])
def test_slot_loss_of_the_authors(cases, name):
    case, head = cases[name], predictor_of(cases[name])
    q, k = case.input["slot_student"].clone().requires_grad_(), case.input["slot_teacher"]
    ours, theirs = L.winners(case.input["score_student"]), L.winners(case.input["score_teacher"])
    for mask, of in ((ours, "student"), (theirs, "teacher")):
        assert torch.equal(mask.long(), case.output[f"mask_{of}"])
    loss, *_ = L.slot_loss(q, k, ours & theirs, theirs, head, case.settings["tau"])
    assert loss.item() == pytest.approx(case.output["loss"].item(), rel=1e-5)
    loss.backward()
    close(q.grad, case.grad["slot_student"], "slot_student")
    last = head.layers[6].weight.grad
    close(last.flatten(1), case.grad["predictor_out_weight"], "predictor")


@pytest.mark.data
@pytest.mark.parametrize("name", ["forward_ordinary", "forward_group_only_weight", "forward_other_setting"])
def test_the_whole_objective_of_the_authors(cases, name):
    """With the teacher's update before it is used, and the centre's after."""
    case, s, i = cases[name], cases[name].settings, cases[name].input
    leaves = {n: i[n].clone().requires_grad_() for n in ("view1", "view2", "projector_q", "prototype_q")}
    a = cosine_value(s["teacher_momentum_base"], 1.0, s["step"], s["total_steps"])
    assert a == pytest.approx(s["teacher_momentum"], rel=1e-9)
    k_of = {n: a * i[f"{n}_k"] + (1 - a) * i[f"{n}_q"] for n in ("projector", "prototype")}
    close(k_of["projector"], case.output["projector_k_after"], "projector_k")
    close(k_of["prototype"], case.output["prototype_k_after"], "prototype_k")

    def grouped(x, projector, prototypes):
        return L.group(F.conv2d(x, projector[..., None, None]), prototypes, s["teacher_temp"])

    views = [leaves["view1"], leaves["view2"]]
    q = [grouped(x, leaves["projector_q"], leaves["prototype_q"]) for x in views]
    k = [grouped(x.detach(), k_of["projector"], k_of["prototype"]) for x in views]
    center = L.Center(len(i["prototype_q"]), s["center_momentum"])
    center.value.copy_(i["center"][0])
    head, groups, slots = predictor_of(case), [], []
    for one, other in ((0, 1), (1, 0)):
        aligned = [
            L.inverse_augment(x.scores, i[f"coords{n + 1}"], i[f"flag{n + 1}"])
            for x, n in ((q[one], one), (k[other], other))
        ]
        groups.append(L.grouping_loss(*aligned, center.value, s["student_temp"], s["teacher_temp"]))
        theirs = L.winners(k[other].scores)
        ours = L.winners(q[one].scores) & theirs
        slots.append(L.slot_loss(q[one].slots, k[other].slots, ours, theirs, head, s["slot_tau"])[0])
    center.update(torch.cat([x.scores for x in k]))
    lamb = s["group_loss_weight"]
    loss = lamb * sum(groups) + (1 - lamb) * sum(slots)
    for n, value in {"group_loss_sum": sum(groups), "slot_loss_sum": sum(slots), "loss": loss}.items():
        assert value.item() == pytest.approx(case.output[n].item(), rel=1e-5), n
    close(center.value, case.output["center_after"][0], "centre")
    loss.backward()
    for n, x in leaves.items():
        close(x.grad, case.grad[n], n)


@pytest.mark.data
def test_boxes_of_the_authors(cases):
    case = cases["overlap_boxes"]
    found = []
    for crops in zip(case.input["crop1_ijhw"].tolist(), case.input["crop2_ijhw"].tolist()):
        views = [View.identity((200, 200)).crop(*c).resize(64, 64) for c in crops]
        found.append((shared_boxes(*views), shared_boxes(*(v.hflip() for v in views))))
    close(torch.tensor([plain for plain, _ in found]), case.output["coords"], "boxes")
    close(torch.tensor(found[0][1]), case.output["coords_case0_flipped"], "mirrored boxes")


@pytest.mark.data
def test_rates_and_lars_of_the_authors(cases):
    s, rates = cases["lr_schedule"].settings, cases["lr_schedule"].output["lr"]
    factor = L.warm_cosine(len(rates), s["warmup_epochs"] * s["iters_per_epoch"], s["eta_min"] / s["base"])
    np.testing.assert_allclose([s["base"] * factor(t) for t in range(len(rates))], rates.numpy(), rtol=1e-5)
    case, s = cases["lars"], cases["lars"].settings
    matrix, vector = (case.input[n].clone().requires_grad_() for n in ("matrix", "vector"))
    optimizer = LARS([matrix, vector], s["lr"], s["momentum"], s["weight_decay"], s["eta"])
    for step in range(s["steps"]):
        matrix.grad, vector.grad = case.input["grad_matrix"][step], case.input["grad_vector"][step]
        optimizer.step()
    close(matrix, case.output["matrix_after"], "matrix")
    close(vector, case.output["vector_after"], "vector")
