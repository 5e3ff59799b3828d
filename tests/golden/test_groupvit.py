"""GroupViT (Xu et al., CVPR 2022): grouping, both contrasts, and the way from groups to classes.

Legend: B batch, N tokens, D width, S groups before and G after, C classes, K words of a caption.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.special import erf
from tests.golden.cases import Case, read_cases
from tests.golden.formulas import as64, draw, softmax, unit
from torch import Tensor, nn

from maskwright.models.towers.groupvit.network import (
    Assignment,
    GroupingBlock,
    GroupViT,
    ImageTower,
    Projector,
    assignments,
    gumbel_like,
)
from maskwright.models.towers.groupvit.shape import GroupShape
from maskwright.models.towers.vocabulary import ensemble
from maskwright.ops.groups import behind, group_affinity, paint_groups
from maskwright.ops.losses.captions import caption_contrast, word_contrast

SHAPE = GroupShape(
    image=24, patch=4, width=12, heads=3, depths=(2, 1, 1), groups=(5, 3), embed=8, hidden=8, words=8, layers=1
)


def close(found: Any, expected: Any) -> None:
    torch.testing.assert_close(torch.as_tensor(found), torch.as_tensor(expected), rtol=1e-5, atol=1e-7)


# ---------------------------------------------------------------------- the authors' own numbers


@pytest.fixture(scope="module")
def cases(golden_root) -> dict[str, Case]:
    return read_cases(golden_root, "groupvit")


def weights_of(case: Case) -> dict[str, Tensor]:
    return {k.removeprefix("weight."): v for k, v in case.input.items() if k.startswith("weight.")}


@pytest.mark.data
@pytest.mark.parametrize("name", ["network_train_size", "network_resized_position"])
def test_network_of_the_authors(cases, name):
    network = GroupViT(SHAPE).double().eval()
    network.load_state_dict(weights_of(cases["network_train_size"]))
    found, expected = network(cases[name].input["image"]), cases[name].output
    close(found.tokens, expected["tokens"])
    close(found.average, expected["average"])
    close(found.maps.flatten(2).transpose(1, 2), expected["map_product"])


@pytest.mark.data
@pytest.mark.parametrize("name", ["grouping_soft", "grouping_eval_hard", "grouping_train_gumbel", "grouping_one_group"])
def test_grouping_of_the_authors(cases, name):
    case = cases[name]
    after = case.output["assignment"].shape[1]
    block = GroupingBlock(12, 3, 6, after, hard=case.settings["hard"]).double().train(case.settings["train"])
    block.load_state_dict(weights_of(case))
    groups, tokens = (case.input[k].requires_grad_() for k in ("group_token", "image_token"))
    found, soft = block(tokens, groups, case.input.get("gumbel_noise"))
    close(found, case.output["new_token"])
    close(soft, case.output["soft_assignment"])
    (found * case.input["cotangent"]).sum().backward()
    close(groups.grad, case.grad["group_token"])
    close(tokens.grad, case.grad["image_token"])


@pytest.mark.data
@pytest.mark.parametrize(
    "name",
    [
        "infonce", "infonce_single_pair", "infonce_scale_clamped", "multi_label", "multi_label_one_word",
        "multi_label_single_image",
    ],
)  # fmt: skip
def test_contrasts_of_the_authors(cases, name):
    case = cases[name]
    x = {k: v.requires_grad_() for k, v in case.input.items()}
    image, text, scale = x["image"], x["text"], x["log_scale"]
    if name.startswith("infonce"):
        loss = caption_contrast(image, text, scale, image, text)
    else:
        loss = word_contrast(image[:, 0], text, scale, image[:, 0], text)
    close(loss, case.output["loss"])
    loss.backward()
    for key, expected in case.grad.items():
        close(x[key].grad, expected)


@pytest.mark.data
@pytest.mark.parametrize(
    "name", ["with_background", "low_threshold", "few_classes", "all_background", "without_background"]
)
def test_segmentation_of_the_authors(cases, name):
    case, t = cases[f"segment_{name}"], cases[f"segment_{name}"].input
    s = case.settings
    maps = (t["soft_stage2"] @ t["soft_stage1"]).unflatten(-1, s["grid"])[None]
    groups, picture = (s["scale"] * F.normalize(t[f"{k}_feature"], dim=-1) @ t["text"].T for k in ("group", "average"))
    if s["with_background"]:
        groups, picture = (F.pad(x, (1, 0), value=-math.inf) for x in (groups, picture))
    affinity = group_affinity(groups[None], picture[None], s["top_k"])
    scores = paint_groups(maps, affinity, tuple(s["image_size"]))
    if s["with_background"]:
        scores = behind(scores, affinity, 0, s["threshold"])
    close(scores[0], case.output["score"])
    assert torch.equal(scores[0].argmax(0), case.output["label"])


@pytest.mark.data
def test_ensemble_of_the_authors(cases):
    case = cases["text_ensemble"]
    close(ensemble(case.input["projected"], units=False), case.output["text"])


def test_the_paper_s_network_has_the_paper_s_parameters():
    with torch.device("meta"):
        tower, words = ImageTower(GroupShape()), Projector(256, 4096, 256)
    assert sum(p.numel() for p in tower.encoder.parameters()) == 28_837_136
    assert [sum(p.numel() for p in m.parameters()) for m in (tower.projector, words)] == [2_633_984, 2_109_696]


# ---------------------------------------------------------------------- slow and obvious


def norm(x: np.ndarray, layer: Any) -> np.ndarray:
    centred = x - x.mean(-1, keepdims=True)
    return centred / np.sqrt((centred**2).mean(-1, keepdims=True) + layer.eps) * as64(layer.weight) + as64(layer.bias)


def linear(x: np.ndarray, layer: Any) -> np.ndarray:
    return x @ as64(layer.weight).T + as64(layer.bias)


def mlp(x: np.ndarray, module: Any) -> np.ndarray:
    inside = linear(x, module.fc1)
    return linear(0.5 * inside * (1 + erf(inside / math.sqrt(2))), module.fc2)


def slow_grouping(block: Any, tokens: np.ndarray, groups: np.ndarray, noise: np.ndarray) -> np.ndarray:
    """One picture: tokens (N, D), groups (S, D), noise (G, N) to (G, D); token by token."""
    g, x = norm(groups, block.norm_tokens), norm(tokens, block.norm_x)
    g = norm(mlp(g.T, block.mlp_inter).T, block.norm_post_tokens)
    a, b = block.pre_assign_attn.attn, block.pre_assign_attn
    q, k, v = linear(g, a.q_proj), linear(x, a.k_proj), linear(x, a.v_proj)
    d = q.shape[1] // a.heads
    asked = np.zeros_like(g)
    for h in range(a.heads):
        s = slice(h * d, (h + 1) * d)
        asked[:, s] = softmax(q[:, s] @ k[:, s].T / math.sqrt(d)) @ v[:, s]
    g = g + linear(asked, a.proj)
    g = norm(g + mlp(norm(g, b.norm2), b.mlp), b.norm_post)
    t = block.assign
    q, k, v = linear(g, t.q_proj), linear(x, t.k_proj), linear(x, t.v_proj)
    sums, counts = np.zeros_like(g), np.zeros(len(g))
    for n in range(len(x)):
        winner = int(np.argmax([q[i] @ k[n] / math.sqrt(len(q[i])) + noise[i, n] for i in range(len(g))]))
        sums[winner] += v[n]
        counts[winner] += 1
    joined = linear(sums / (counts + 1)[:, None], t.proj) + g
    return joined + mlp(norm(joined, block.norm_new_x), block.mlp_channels)


def test_grouping_is_that_of_the_slow_version():
    torch.manual_seed(0)
    block = GroupingBlock(12, 3, 6, 4).double().train()
    tokens, groups, noise = draw(2, 9, 12).double(), draw(2, 6, 12, seed=1).double(), draw(2, 4, 9, seed=2).double()
    with torch.no_grad():
        for p in block.parameters():
            p.add_(0.3 * torch.randn_like(p))
        found, _ = block(tokens, groups, noise)
    close(found, np.stack([slow_grouping(block, *(as64(x[b]) for x in (tokens, groups, noise))) for b in range(2)]))


def slow_words(image: np.ndarray, words: np.ndarray, scale: float) -> float:
    b, k = words.shape[:2]
    image, words = unit(image), unit(words)
    flat = words.reshape(b * k, -1)
    to_text = 0.0
    for n in range(b):
        p = softmax(scale * (flat @ image[n])[None])[0]
        to_text -= sum(math.log(p[n * k + j]) for j in range(k)) / k
    to_image = -sum(math.log(softmax(scale * (image @ flat[m])[None])[0][m // k]) for m in range(b * k))
    return 0.5 * (to_text / b + to_image / (b * k))


def test_contrasts_are_those_of_the_slow_version():
    image, words = draw(4, 8).double(), draw(4, 3, 8, seed=1).double()
    log_scale = torch.tensor(1.5).double()
    close(
        word_contrast(image, words, log_scale, image, words).item(), slow_words(as64(image), as64(words), math.exp(1.5))
    )
    pair = caption_contrast(image, words[:, 0], log_scale, image, words[:, 0])
    close(pair.item(), slow_words(as64(image), as64(words[:, :1]), math.exp(1.5)))


def test_shares_of_a_batch_make_up_the_whole():
    """Two processes' losses, each on its rows against all, have the mean and the gradient of one batch."""
    image, words = draw(4, 8).double().requires_grad_(), draw(4, 3, 8, seed=1).double().requires_grad_()
    scale = torch.tensor(1.5).double()

    def total(starts: tuple[int, ...]) -> tuple[Tensor, ...]:
        each = 4 // len(starts)
        losses = [
            caption_contrast(image[s : s + each], words[s : s + each, 0], scale, image, words[:, 0], s)
            + word_contrast(image[s : s + each], words[s : s + each], scale, image, words, s)
            for s in starts
        ]
        loss = torch.stack(losses).mean()
        return loss.detach(), *torch.autograd.grad(loss, (image, words))

    for a, b in zip(total((0,)), total((0, 2))):
        close(a, b)


# ---------------------------------------------------------------------- what the brief says must hold


def test_assignments_are_one_hot_or_sum_to_one_and_hard_ones_have_the_soft_gradient():
    logits, cotangent = draw(2, 4, 9).double().requires_grad_(), draw(2, 4, 9, seed=1).double()
    hard, soft = assignments(logits), assignments(logits, hard=False)
    assert torch.equal(hard.detach().round().sort(1).values[:, -1], torch.ones(2, 9).double())
    close(hard.detach(), F.one_hot(logits.argmax(1), 4).transpose(1, 2).double())
    close(soft.sum(1), torch.ones(2, 9).double())
    (of_hard,) = torch.autograd.grad((hard * cotangent).sum(), logits)
    (of_soft,) = torch.autograd.grad((soft * cotangent).sum(), logits)
    close(of_hard, of_soft)


def test_maps_sum_to_one_over_groups_at_any_grid():
    torch.manual_seed(0)
    network = GroupViT(SHAPE).eval()
    found = network(draw(2, 3, 24, 44))
    assert found.maps.shape == (2, 3, 6, 11)
    close(found.maps.sum(1), torch.ones(2, 6, 11))
    close(found.tokens.mean(1), found.average)


def test_one_group_gets_the_sum_over_the_number_and_one():
    part = Assignment(6).double().eval()
    part.proj = nn.Identity()
    tokens = draw(1, 5, 6).double()
    found, soft = part(draw(1, 1, 6, seed=1).double(), tokens, True, None)
    close(found[0, 0], part.v_proj(tokens)[0].sum(0) / 6)
    close(soft, torch.ones(1, 1, 5).double())


def test_contrast_of_orthonormal_pairs_is_known():
    b, s = 5, 3.0
    eye = torch.eye(b).double()
    close(
        caption_contrast(eye, eye, torch.tensor(math.log(s)).double(), eye, eye).item(),
        math.log(1 + (b - 1) * math.exp(-s)),
    )


def test_the_scale_stops_at_a_hundred_without_a_gradient():
    image, text = draw(3, 4), draw(3, 4, seed=1)
    scale = torch.tensor(6.0, requires_grad=True)
    loss = caption_contrast(image, text, scale, image, text)
    close(loss, caption_contrast(image, text, torch.tensor(math.log(100.0)), image, text))
    loss.backward()
    assert scale.grad == 0


def test_gumbel_noise_has_its_mean_and_variance():
    torch.manual_seed(0)
    noise = gumbel_like(torch.empty(200_000))
    assert abs(float(noise.mean()) - 0.5772) < 0.01 and abs(float(noise.var()) - math.pi**2 / 6) < 0.03


def test_background_is_what_no_class_is_sure_of():
    maps = torch.eye(3).reshape(1, 3, 1, 3)
    groups = torch.tensor([[[-math.inf, 6.0, 0.0], [-math.inf, 0.0, 0.2], [-math.inf, 0.1, 0.0]]])
    affinity = group_affinity(groups, torch.tensor([[-math.inf, 1.0, 0.5]]))
    scores = paint_groups(maps, affinity, (1, 3))
    assert scores[0, 0].tolist() == [[0, 0, 0]]
    assert not behind(scores, affinity, 0, 0.0)[0, 0].any(), "a threshold of 0 has no background"
    assert behind(scores, affinity, 0, 0.9)[0, 0].tolist() == [[0, 1, 1]]
    assert behind(scores, affinity, 0, 0.999)[0, 0].tolist() == [[0, 1, 1]], "lowered to the greatest affinity"
    lost = paint_groups(maps[:, :, :, 1:], affinity, (1, 2))
    assert behind(lost, affinity, 0, 0.999)[0, 0].all(), "the surest group owns no pixel"


def test_only_the_best_classes_of_a_picture_occur():
    groups, picture = draw(1, 4, 9), draw(1, 9, seed=1)
    affinity = group_affinity(groups, picture, 3)
    there = (affinity[0] > 0).all(0)
    assert set(there.nonzero().flatten().tolist()) == set(picture[0].topk(3).indices.tolist())
    p = softmax(as64(groups[0]), 1)
    kept = np.where(there.numpy(), p, 0)
    close(affinity[0].double(), p * kept / kept.sum(1, keepdims=True))


def test_builds_that_cannot_be_are_refused():
    assert GroupShape.of(SHAPE.text()) == SHAPE and GroupShape.of("groupvit") == GroupShape()
    assert replace(SHAPE, heads=4).width == 12
