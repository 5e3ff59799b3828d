"""MaskContrast (Van Gansbeke et al., ICCV 2021): one training step, the saliency loss, which views are accepted, object
vectors, matching. The void variant of the saliency loss is not used in its training: object masks here have none."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from tests.golden.cases import Case, read_cases
from tests.golden.formulas import as64, draw, generator

from maskwright.methods.unsupervised.maskcontrast import losses as L
from maskwright.methods.unsupervised.maskcontrast.views import accepted
from maskwright.models.parts.salient_objects import object_vectors
from maskwright.ops.matching import hungarian_iou, majority_iou
from maskwright.recipes.banks import FeatureBank
from maskwright.recipes.ema import EMATeacher

# --------------------------------------------------------------------- by slow formulas


def contrast_by_loops(q, mask, k, mask_k, queue, t) -> float:
    unit = lambda v: v / max(np.linalg.norm(v), 1e-12)  # noqa: E731
    b, _, h, w = q.shape
    places = list(np.ndindex(h, w))
    keys = [unit(sum((unit(k[i, :, y, x]) for y, x in places if mask_k[i, y, x]), np.zeros(q.shape[1])))
            for i in range(b)] + list(queue)  # fmt: skip
    n = [mask[i].sum() for i in range(b)]
    total = weights = 0.0
    for i in range(b):
        weight = 1 / math.log(1.02 + n[i] / sum(n))
        for y, x in places:
            if mask[i, y, x]:
                logits = np.array([unit(q[i, :, y, x]) @ key for key in keys]) / t
                total += weight * (np.log(np.exp(logits).sum()) - logits[i])
                weights += weight
    return total / weights


def test_losses_by_loops():
    q, k = draw(3, 4, 3, 5, seed=1), draw(3, 4, 3, 5, seed=2)
    masks = [torch.rand(3, 3, 5, generator=generator(s)) < 0.4 for s in (3, 4)]
    queue = F.normalize(draw(5, 4, seed=5), dim=1)
    p = L.object_prototypes(k, masks[1])
    slow = contrast_by_loops(as64(q), masks[0].numpy(), as64(k), masks[1].numpy(), as64(queue), 0.5)
    assert float(L.object_contrast(q, masks[0], p, queue, 0.5)) == pytest.approx(slow, rel=1e-5)
    s, inside = draw(3, 3, 5, seed=6), masks[0].numpy()
    background, z = 1 - inside.mean(), as64(s)
    parts = [background * np.log1p(np.exp(-v)) if m else (1 - background) * np.log1p(np.exp(v))
             for v, m in zip(z.ravel(), inside.ravel())]  # fmt: skip
    assert float(L.balanced_cross_entropy(s, masks[0])) == pytest.approx(np.mean(parts), rel=1e-5)


def test_invariants():
    """Of the brief: a known value, scale of a mask, ENet's weights, symmetry of the balanced loss, empty masks."""
    eye, mask = torch.eye(4)[:, :, None, None].expand(4, 4, 2, 2), torch.ones(4, 2, 2, dtype=torch.bool)
    p = L.object_prototypes(eye, mask)
    none = torch.zeros(0, 4)
    assert float(L.object_contrast(eye, mask, p, none, 0.5)) == pytest.approx(math.log(1 + 3 * math.exp(-2)))
    assert float(L.agreement(eye, mask, p)) == 1
    torch.testing.assert_close(p, torch.eye(4))
    k = draw(2, 4, 4, 4, seed=1)
    small, large = k[:, :, :2, :2], k[:, :, :2, :2].repeat(1, 1, 3, 3)
    whole = [torch.ones(2, n, n, dtype=torch.bool) for n in (2, 6)]
    torch.testing.assert_close(L.object_prototypes(small, whole[0]), L.object_prototypes(large, whole[1]))
    torch.testing.assert_close(L.enet_weights(torch.zeros(7, dtype=torch.int64), 2), torch.tensor([1.4222, 50.4983]),
                               atol=1e-3, rtol=0)  # fmt: skip
    s, inside = draw(2, 3, 4, seed=2), torch.rand(2, 3, 4, generator=generator(3)) < 0.3
    torch.testing.assert_close(L.balanced_cross_entropy(s, inside), L.balanced_cross_entropy(-s, ~inside))
    empty = torch.zeros(2, 4, 4, dtype=torch.bool)
    assert not L.object_prototypes(k, empty).any()
    q = k.clone().requires_grad_()
    loss = L.object_contrast(q, empty, p[:2], none, 0.5)
    loss.backward()
    assert float(loss.detach()) == 0 and not q.grad.any()


# --------------------------------------------------------------------- the authors' own code


@pytest.fixture(scope="module")
def cases(golden_root) -> dict[str, Case]:
    return read_cases(golden_root, "maskcontrast")


STEPS = ["contrast_ordinary", "contrast_low_T", "contrast_empty_query_mask", "contrast_empty_key_mask",
         "contrast_small_objects", "queue_wrap_step0", "queue_wrap_step1", "queue_wrap_step2"]  # fmt: skip


def network(weight: torch.Tensor) -> torch.nn.Conv2d:
    made = torch.nn.Conv2d(weight.shape[1], weight.shape[0], 1, bias=False)
    made.weight.data.copy_(weight[..., None, None])
    return made


def filled(queue: torch.Tensor, pointer: int) -> FeatureBank:
    """Their columns in the order in which they are overwritten."""
    bank = FeatureBank(queue.shape[1], queue.shape[0])
    bank.add(queue.T)
    bank.head.fill_(pointer)
    return bank


@pytest.mark.data
@pytest.mark.parametrize("name", STEPS)
def test_a_step_of_the_authors(cases, name):
    """Moving average, prototypes, contrast, saliency, gradients, the queue behind it."""
    case, i = cases[name], cases[name].input
    c, out = case.settings, case.output
    near = {"rtol": 1e-5, "atol": 1e-5}
    query, teacher = network(i["weight_q"]), EMATeacher(network(i["weight_k"]), c["m"], "own", "train", warm=False)
    teacher.update(query)
    torch.testing.assert_close(teacher.module.weight[..., 0, 0], out["weight_k_after"], **near)
    x = i["image_q"].clone().requires_grad_()
    y, mask_q, mask_k = query(x), i["mask_q"] > 0, i["mask_k"] > 0
    bank = filled(i["queue"], c["queue_ptr"])
    p = L.object_prototypes(teacher(i["image_k"])[:, : c["dim"]], mask_k)
    e, s = y[:, : c["dim"]], y[:, c["dim"]]
    contrast = L.object_contrast(e, mask_q, p, bank.get(), c["T"])
    saliency = L.balanced_cross_entropy(s, mask_q)
    torch.testing.assert_close(contrast, out["loss_contrast"], **near)
    torch.testing.assert_close(saliency, out["loss_saliency"], **near)
    loss = contrast + c["saliency_weight"] * saliency
    torch.testing.assert_close(loss, out["loss"], **near)
    loss.backward()
    torch.testing.assert_close(x.grad, case.grad["image_q"], **near)
    torch.testing.assert_close(query.weight.grad[..., 0, 0], case.grad["weight_q"], **near)
    torch.testing.assert_close(L.enet_weights(out["target"], c["batch"]), out["class_weight"][: c["batch"]], **near)
    bank.add(p)
    torch.testing.assert_close(bank.rows.T, out["queue_after"], **near)
    assert int(bank.head) == int(out["queue_ptr_after"])


@pytest.mark.data
@pytest.mark.parametrize(
    "name", ["ordinary", "all_foreground", "all_background", "large_logits", "batch_average", "pos_weight"]
)
def test_saliency_loss_of_the_authors(cases, name):
    case = cases[f"bce_{name}"]
    s = case.input["logit"].clone().requires_grad_()
    loss = L.balanced_cross_entropy(s, case.input["label"] > 0, case.settings["pos_weight"])
    if not case.settings["size_average"]:  # their sum over pixels by the number of photographs
        loss = loss * s[0].numel()
    torch.testing.assert_close(loss, case.output["loss"], rtol=1e-5, atol=1e-6)
    loss.backward()
    torch.testing.assert_close(s.grad, case.grad["logit"], rtol=1e-5, atol=1e-6)


@pytest.mark.data
@pytest.mark.parametrize("name", ["bounds_are_strict", "first_attempt", "other_image_after_three"])
def test_which_views_the_authors_take(cases, name):
    case = cases[f"sampling_{name}"]
    c, script = case.settings, iter(case.input["foreground_pixels_key_query"].tolist())
    others, asked = iter(case.input["next_random_image"].tolist()), []

    def views(image):
        asked.append(image)
        return len(asked) - 1, [n / c["pixels"] for n in next(script)]

    image, attempt = accepted(c["start_image"], views, lambda: int(next(others)), c["min_area"], c["max_area"])
    assert attempt == int(case.output["accepted_attempt"])
    assert asked == case.output["image_of_attempt"].tolist()[: len(asked)] and image == asked[-1]


@pytest.mark.data
@pytest.mark.parametrize("name", ["retrieval_ordinary", "retrieval_no_object"])
def test_object_vectors_of_the_authors(cases, name):
    case = cases[name]
    found = object_vectors(case.input["embedding"], case.input["saliency_logit"], case.settings["threshold"])
    torch.testing.assert_close(found, case.output["object_vector"], rtol=1e-5, atol=1e-6)


@pytest.mark.data
@pytest.mark.parametrize("name", ["hungarian", "hungarian_missing_class", "majority"])
def test_matching_of_the_authors(cases, name):
    case = cases[f"match_{name}"]
    c, i = case.settings, case.input
    counts = np.zeros((c["preds_k"], c["targets_k"]), np.int64)
    np.add.at(counts, (i["prediction"].numpy(), i["target"].numpy()), 1)
    found = (majority_iou if name == "majority" else hungarian_iou)(counts)
    theirs = dict(case.output["match"].tolist())
    assert {k: int(v) for k, v in enumerate(found) if v >= 0} == theirs
