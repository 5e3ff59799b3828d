"""ReCo (Shin, Xie, Albanie, NeurIPS 2022): retrieval, seeds, references, context, attention and the score."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from tests.golden.cases import Case, read_cases
from tests.golden.formulas import as64, draw, unit
from torch import Tensor

from maskwright.methods.language.reco import nearest_pictures
from maskwright.models.towers.beside import RecoScores
from maskwright.ops.cosegmentation import (
    find_seeds,
    fused_scores,
    likeness,
    reference_vector,
    without_context,
    word_attention,
)


def close(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


# ------------------------------------------------------------------------------------------------------------ slowly


@pytest.mark.parametrize("weighted", [False, True])
def test_seeds_place_by_place(weighted):
    n, d, h, w = 4, 6, 2, 3
    features = draw(n, d, h, w).double()
    weights = torch.rand(n, h, w, generator=torch.Generator().manual_seed(1)).double() if weighted else None
    u = unit(np.moveaxis(as64(features), 1, -1).reshape(n * h * w, d))
    seeds = []
    for i in range(n):
        scores = []
        for a in range(i * h * w, (i + 1) * h * w):
            best = []
            for j in range(n):
                column = [float(u[a] @ u[b]) * (float(weights.flatten()[b]) if weighted else 1.0)
                          for b in range(j * h * w, (j + 1) * h * w)]  # fmt: skip
                best.append(max(column))
            scores.append(sum(best) / n)
        seeds.append(int(np.argmax(scores)))
    found = find_seeds(features, weights)
    assert found.tolist() == seeds
    mean = np.mean([as64(features)[i, :, s // w, s % w] for i, s in enumerate(seeds)], 0)
    np.testing.assert_allclose(as64(reference_vector(features, found)), mean / np.linalg.norm(mean), rtol=1e-6)


def test_score_place_by_place():
    features, places = draw(1, 6, 2, 2).double(), draw(1, 5, 2, 2, seed=1).double()
    references = torch.from_numpy(unit(as64(draw(3, 6, seed=2))))
    vectors, owner = F.normalize(draw(4, 5, seed=3).double(), dim=1), torch.tensor([0, 1, 1, 2])
    found = as64(RecoScores(references, vectors, owner).double()([features, places]))
    for c, i, j in np.ndindex(3, 2, 2):
        f, p = unit(as64(features)[0, :, i, j]), unit(as64(places)[0, :, i, j])
        best = max(float(p @ as64(vectors)[k]) for k in range(4) if owner[k] == c)
        expected = sigmoid(float(f @ as64(references)[c])) * sigmoid(10 * best)
        assert found[0, c, i, j] == pytest.approx(expected, rel=1e-6)


def test_a_planted_vector_is_found_whatever_the_order_and_length():
    random = np.random.default_rng(0)
    features = torch.from_numpy(np.linalg.qr(random.normal(size=(64, 64)))[0][:60].reshape(5, 12, 64))
    features = features.transpose(1, 2).reshape(5, 64, 3, 4).contiguous()
    planted = random.integers(0, 12, 5)
    for i, place in enumerate(planted):
        features[i, :, place // 4, place % 4] = 1 / 8
    assert find_seeds(features).tolist() == planted.tolist()
    longer = features * torch.linspace(0.5, 2, 5).view(5, 1, 1, 1)
    assert find_seeds(longer).tolist() == planted.tolist()
    order = torch.tensor([3, 0, 4, 1, 2])
    close(
        reference_vector(features, find_seeds(features)), reference_vector(features[order], find_seeds(features[order]))
    )


def test_context_is_damped_and_never_gone():
    features = draw(2, 6, 2, 3).double()
    same = features[0, :, 1, 2][None]
    kept = without_context(features, same)
    assert float(kept[0, 1, 2]) == pytest.approx(1 - sigmoid(1)) and float(kept.min()) >= 1 - sigmoid(1) - 1e-9
    assert torch.equal(without_context(features, same[:0]), torch.ones(2, 2, 3).double())


def test_pictures_nearest_to_any_word_of_a_name():
    pictures, words = F.normalize(draw(9, 4), dim=1), F.normalize(draw(2, 4, seed=1), dim=1)
    best = [max(float(p @ w) for w in words) for p in pictures]
    expected = sorted(range(9), key=lambda i: -best[i])
    assert nearest_pictures(pictures, words, 4).tolist() == expected[:4]
    assert nearest_pictures(pictures, words, 50).tolist() == expected


# --------------------------------------------------------------------- what the authors' code gave on the same tensors


@pytest.fixture(scope="module")
def cases(data_root) -> dict[str, Case]:
    return read_cases(data_root.parent / "golden", "reco_zeroshot")


@pytest.mark.data
@pytest.mark.parametrize("name", ["no_weight", "weighted", "planted", "single_image"])
@pytest.mark.parametrize("how", ["fixed", "released"])
def test_seeds_and_references_of_the_authors(cases, name, how):
    case = cases[f"coseg_{name}"]
    features = case.input["feature"]
    found = find_seeds(features, case.input.get("weight"), as_released=how == "released")
    assert torch.equal(found, case.output[f"seed_index_{how}"])
    close(features.flatten(2)[torch.arange(len(found)), :, found], case.output[f"seed_feature_{how}"])
    close(reference_vector(features, found), case.output[f"reference_{how}"])


@pytest.mark.data
def test_context_attention_and_retrieval_of_the_authors(cases):
    case = cases["context_weight"]
    close(likeness(case.input["feature"], case.input["context"]), case.output["context_weight"])
    close(without_context(case.input["feature"], case.input["context"]), case.output["keep"])
    case = cases["text_attention"]
    cosines = torch.einsum("bdhw,cd->bchw", F.normalize(case.input["dense_clip"], dim=1), unit_rows(case.input["text"]))
    close(word_attention(cosines, (24, 28)), case.output["all"])
    close(word_attention(cosines[:, :1], (4, 5))[:, 0], case.output["single"])
    case = cases["retrieval"]
    found = nearest_pictures(case.input["image_embedding"], case.input["text"][None], case.settings["k"])
    assert torch.equal(found, case.output["index"])


@pytest.mark.data
@pytest.mark.parametrize("how", ["fixed", "released"])
def test_chain_of_context_of_the_authors(cases, how):
    """Five names of context, each without those before it, then one name."""
    case = cases["chain"]
    around = torch.zeros(0, 16).double()
    for features, dense, text, expected in zip(
        case.input["feature"], case.input["dense_clip"], unit_rows(case.input["text"]), case.output[f"reference_{how}"]
    ):
        cosines = torch.einsum("bdhw,d->bhw", F.normalize(dense, dim=1), text)[:, None]
        weights = word_attention(cosines, (4, 5))[:, 0] * without_context(features, around)
        found = reference_vector(features, find_seeds(features, weights, as_released=how == "released"))
        close(found, expected)
        around = torch.cat([around, found[None]])


@pytest.mark.data
def test_score_of_the_authors(cases):
    case = cases["inference"]
    cosines = torch.einsum("bdhw,cd->bchw", F.normalize(case.input["dense_clip"], dim=1), unit_rows(case.input["text"]))
    found = fused_scores(case.input["feature"], case.input["reference"], cosines, (32, 40))
    close(found, case.output["score"])
    assert torch.equal(found.argmax(1), case.output["label"])
    close(found.log_softmax(1).softmax(1), case.output["crf_unary_probability"])


def unit_rows(x: Tensor) -> Tensor:
    return F.normalize(x, dim=-1)
