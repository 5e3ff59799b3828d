"""MaskCLIP+ (Zhou et al., ECCV 2022) and ProxyCLIP (Lan et al., ECCV 2024): labels, the student's last layer, and what
places gather by a second network."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from tests.golden.cases import read_cases
from tests.golden.formulas import as64, draw, softmax, unit
from tests.golden.test_maskclip import SHAPE, official, tower
from torch import Tensor

from maskwright.data.training.labels import LabelMap
from maskwright.models.parts.heads import Identity
from maskwright.models.towers.image import timm_names
from maskwright.models.towers.parts import VocabularyClassifier, WordHead
from maskwright.models.towers.surgery import LastBlock, proxy_weights, run_last_block_by_proxy
from maskwright.ops.language import smooth_by_keys
from maskwright.recipes.training.criteria import make_criterion


def case(root: Path, paper: str, name: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors of one case by their kind and name, and its scalars."""
    found = read_cases(root, paper)[name]
    kinds = {"input": found.input, "output": found.output, "grad": found.grad}
    return {f"{kind}.{k}": v for kind, tensors in kinds.items() for k, v in tensors.items()}, found.settings


def close(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


# ----------------------------------------------------------------------------------------------- ProxyCLIP, slowly


def test_places_gather_what_the_second_network_finds_alike():
    features = draw(2, 5, 2, 3).double()
    features[1, :, 0, 0] = 0  # like none: it gathers itself
    found = as64(proxy_weights(features, 1.2, 3.0))
    gathered = 0
    for b in range(2):
        u = unit(as64(features)[b].reshape(5, 6).T)
        s = [[float(u[a] @ u[c]) for c in range(6)] for a in range(6)]
        mean = sum(map(sum, s)) / 36
        for a in range(6):
            z = [3.0 * (s[a][c] - 1.2 * mean) for c in range(6)]
            kept = [c for c in range(6) if z[c] >= 0 or c == a]
            total = sum(math.exp(z[c]) for c in kept)
            expected = [math.exp(z[c]) / total if c in kept else 0.0 for c in range(6)]
            np.testing.assert_allclose(found[b, a], expected, rtol=1e-6, atol=1e-9)
            gathered += len(kept) > 1
    assert 0 < gathered < 12
    np.testing.assert_allclose(found[1, 0], [1, 0, 0, 0, 0, 0])


def test_a_second_network_that_tells_all_places_apart_leaves_the_values():
    made, x = tower(), draw(1, 3, 24, 24).double()
    features = torch.eye(9, dtype=torch.float64).view(1, 9, 3, 3)
    found = made.proxy_maps(x, features, 9.0, 3.0)
    close(found, made.joint_maps(x, LastBlock("value", rest=False))[0])


@pytest.mark.data
@pytest.mark.parametrize(
    ("name", "image"),
    [
        ("default_square", "square"), ("other_beta_gamma_square", "square"), ("finer_grid_square", "square"),
        ("default_wide", "wide"),
    ],
)  # fmt: skip
def test_proxyclip_of_its_authors(data_root, name, image):
    """With the mean of each picture; the wide one where its grid is not turned, and by the tokens that enter the last
    block, because its authors resize positions by another factor."""
    root = data_root.parent / "golden"
    weights, _ = case(root, "clip_training_free", "vanilla_square")
    t, said = case(root, "clip_training_free", f"proxyclip_{name}")
    shape = replace(SHAPE, image=32, mlp=4.0)
    named = {k.replace("input.weight.", "visual."): v for k, v in weights.items() if k.startswith("input.weight.")}
    made = official(shape, timm_names(named))
    if image == "square":
        found = made.proxy_maps(weights["input.image"], t["input.external_feature"], said["beta"], said["gamma"])
        close(found.flatten(2).transpose(1, 2), t["output.tokens_per_image_mean"])
        one = made.proxy_maps(weights["input.image"][:1], t["input.external_feature"][:1], said["beta"], said["gamma"])
        close(one[0], found[0])
        return
    pictures, _ = case(root, "clip_training_free", "vanilla_wide")
    tokens, grid = before_last(made, pictures["input.image"])
    own = proxy_weights(t["input.external_feature"], said["beta"], said["gamma"])
    batch = batch_mean_weights(t["input.external_feature"], said["beta"], said["gamma"])
    model: Any = made.model
    by_batch, by_picture = (
        model.head(model.norm(run_last_block_by_proxy(model.blocks[-1], tokens, grid, by, (4, 6))))
        for by in (batch, own)
    )
    close(by_batch, t["output.tokens_correct_grid"])
    assert not torch.allclose(t["output.tokens"], t["output.tokens_correct_grid"]), "the release turns the grid"
    assert not torch.allclose(by_picture, by_batch)


def before_last(made, x: Tensor) -> tuple[Tensor, tuple[int, int]]:
    """What enters the last block of a tower whose positions are resized as SCLIP's code does, by a factor."""
    model = made.model
    patches = model.patch_embed(x)
    h, w = patches.shape[1:3]
    own = model.pos_embed[:, 1:].reshape(1, 4, 4, -1).permute(0, 3, 1, 2)
    place = F.interpolate(own, scale_factor=((h + 0.1) / 4, (w + 0.1) / 4), mode="bicubic", align_corners=False)
    place = torch.cat([model.pos_embed[:, :1], place.flatten(2).transpose(1, 2)], 1)
    cls = model.cls_token.expand(len(x), -1, -1)
    tokens = model.norm_pre(torch.cat([cls, patches.flatten(1, 2)], 1) + place)
    return model.blocks[0](tokens), (h, w)


def batch_mean_weights(features: Tensor, beta: float, gamma: float) -> Tensor:
    """The authors': the mean of S over the batch, written out."""
    u = F.normalize(features.flatten(2), dim=1)
    s = torch.einsum("bdn,bdm->bnm", u, u)
    z = (s - s.mean() * beta) * gamma
    return torch.where(z < 0, float("-inf"), z).softmax(-1)


# ------------------------------------------------------------------------------------------------------- MaskCLIP+


def labels_of(logits: Tensor, label: Tensor, ids: list[int]) -> Tensor:
    """The authors' labels where they mark pixels to be filled (-1), from logits of the classes `ids` at any size."""
    found = F.interpolate(logits, label.shape[-2:], mode="bilinear", align_corners=False).argmax(1, keepdim=True)
    return torch.where(label == -1, torch.tensor(ids)[found], label)


@pytest.mark.data
@pytest.mark.parametrize("name", ["guided", "guided_denoise", "guided_smooth", "guided_unseen_only"])
def test_labels_by_the_tower_of_the_authors(data_root, name):
    """From the same parts as the frozen model; key smoothing as their code has it is compared in test_maskclip."""
    t, said = case(data_root.parent / "golden", "maskclip", f"plus_clip_{name}")
    ids, text = said["unlabeled_cats"], t["input.text"]
    classifier = VocabularyClassifier(text[ids].float(), torch.arange(len(ids)), len(ids), denoise=said.get("pd", 0.0))
    logits = classifier(t["input.feature"].float())
    if "ks" in said:
        keys = t["input.key"].transpose(1, 2).unflatten(2, logits.shape[2:])
        cosines = torch.einsum("bdhw,cd->bchw", F.normalize(t["input.feature"], dim=1), text)
        logits = smooth_by_keys(cosines, keys, said["ks"], per_key=False)[0]
    assert torch.equal(labels_of(logits, t["input.label"], ids), t["output.label"])


@pytest.mark.data
def test_labels_by_the_student_of_the_authors(data_root):
    t, said = case(data_root.parent / "golden", "maskclip", "plus_self_training_unseen")
    ids = said["unlabeled_cats"]
    head = WordHead(Identity(), t["input.text"][ids], torch.arange(len(ids)), len(ids)).double()
    assert torch.equal(labels_of(head(t["input.feature"]), t["input.label"], ids), t["output.label"])


@pytest.mark.data
def test_logits_loss_and_gradient_of_the_authors_student(data_root):
    t, _ = case(data_root.parent / "golden", "maskclip", "plus_student_logits")
    head = WordHead(Identity(), t["input.text"], torch.arange(5), 5).double()
    feature = t["input.feature"].clone().requires_grad_(True)
    logits, label = head(feature), t["input.label"]
    valid = label < 5
    y = LabelMap(torch.where(valid, label, 0), valid.float(), valid & (label >= 0))
    loss = make_criterion("ce")(logits, y)
    loss.backward()
    close(logits, t["output.logits"])
    close(loss, t["output.loss_over_valid"].to(loss))
    close(feature.grad, t["grad.feature"])


def test_cross_entropy_of_the_best_word_by_hand():
    vectors, owner = draw(3, 4).double(), torch.tensor([0, 0, 1])
    head = WordHead(Identity(), vectors, owner, 2).double()
    x = draw(1, 4, 1, 2, seed=1).double()
    y = LabelMap(torch.tensor([[[0, 1]]]), torch.ones(1, 1, 2), torch.ones(1, 1, 2, dtype=torch.bool))
    dots = as64(vectors.float()) @ as64(x)[0, :, 0]  # (3, 2)
    logits = np.stack([dots[:2].max(0), dots[2]])
    p = softmax(logits, 0)
    expected = -(np.log(p[0, 0]) + np.log(p[1, 1])) / 2
    assert float(make_criterion("ce")(head(x), y)) == pytest.approx(expected, rel=1e-5)
