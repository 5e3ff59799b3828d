"""MaskCLIP (Zhou et al., ECCV 2022), SCLIP, ClearCLIP and NACLIP: the last block, the words and the two refinements."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors import safe_open
from tests.golden.formulas import as64, draw, softmax, unit
from timm.layers import AttentionPool2d
from torch import Tensor

from maskwright.models.backbones.keymaps import fit
from maskwright.models.towers.image import ClipViT, build_clip, pooled_places, timm_names
from maskwright.models.towers.shape import TowerShape
from maskwright.models.towers.surgery import LastBlock
from maskwright.models.towers.vocabulary import ensemble
from maskwright.ops.language import REMOVED, denoise_prompts, of_classes, smooth_by_keys, threshold_logit

SHAPE = TowerShape("vit", image=24, patch=8, width=24, layers=(2,), heads=3, mlp=2.0, embed=16, act="quick_gelu")


def tower(seed: int = 0) -> ClipViT:
    torch.manual_seed(seed)
    made = build_clip(SHAPE.text(), "random").double()
    assert isinstance(made, ClipViT)
    with torch.no_grad():
        for value in made.parameters():
            value.copy_(torch.randn_like(value) / max(1, value.shape[-1]) ** 0.5 if value.ndim > 1 else value + 0.1)
    return made


def layer_norm(x: np.ndarray, layer: Any) -> np.ndarray:
    centred = x - x.mean(-1, keepdims=True)
    scaled = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + layer.eps)
    return scaled * as64(layer.weight) + as64(layer.bias)


def linear(x: np.ndarray, layer: Any) -> np.ndarray:
    return x @ as64(layer.weight).T + (0 if layer.bias is None else as64(layer.bias))


def slow_block(block: Any, x: np.ndarray, weights: Callable[..., np.ndarray] | None, rest: bool) -> np.ndarray:
    """One picture (T, D), head by head; `weights` of (q, k), each (T, d), gives (T, T); None: own values alone."""
    q, k, v = np.split(linear(layer_norm(x, block.norm1), block.attn.qkv), 3, -1)
    d = q.shape[1] // block.attn.num_heads
    gathered = v
    if weights is not None:
        heads = [slice(i * d, (i + 1) * d) for i in range(block.attn.num_heads)]
        gathered = np.concatenate([weights(q[:, s], k[:, s]) @ v[:, s] for s in heads], 1)
    out = linear(gathered, block.attn.proj)
    if not rest:
        return out
    out = x + out
    hidden = linear(layer_norm(out, block.norm2), block.mlp.fc1)
    return out + linear(hidden / (1 + np.exp(-1.702 * hidden)), block.mlp.fc2)


def slow_tokens(made: ClipViT, image: Tensor, weights: Callable[..., np.ndarray] | None, rest: bool) -> np.ndarray:
    """All tokens of one 24 x 24 picture in the space of words (T, E)."""
    model: Any = made.model
    kernel = as64(model.patch_embed.proj.weight)
    pixels = as64(image)
    patches = [
        np.tensordot(kernel, pixels[:, 8 * i : 8 * i + 8, 8 * j : 8 * j + 8], 3) for i in range(3) for j in range(3)
    ]
    x = np.stack([as64(model.cls_token)[0, 0], *patches]) + as64(model.pos_embed)[0]
    x = layer_norm(x, model.norm_pre)
    x = slow_block(model.blocks[0], x, own, True)
    x = slow_block(model.blocks[1], x, weights, rest)
    return linear(layer_norm(x, model.norm), model.head)


def own(q: np.ndarray, k: np.ndarray) -> np.ndarray:
    return softmax(q @ k.T / math.sqrt(q.shape[1]))


def near(q: np.ndarray, k: np.ndarray) -> np.ndarray:
    """k k^T and, between the patches a and b of a 3 x 3 grid, exp(-|a - b|^2 / 2 std^2), std 2."""
    logits = k @ k.T / math.sqrt(k.shape[1])
    for a in range(9):
        for b in range(9):
            square = (a // 3 - b // 3) ** 2 + (a % 3 - b % 3) ** 2
            logits[1 + a, 1 + b] += math.exp(-square / 8)
    return softmax(logits)


@pytest.mark.parametrize(
    ("how", "weights"),
    [
        (LastBlock("clip"), own),
        (LastBlock("value"), None),
        (LastBlock("value", rest=False), None),
        (LastBlock("sclip"), lambda q, k: own(q, q) + own(k, k)),
        (LastBlock("query", rest=False), lambda q, k: own(q, q)),
        (LastBlock("key", rest=False), lambda q, k: own(k, k)),
        (LastBlock("neighbour", rest=False, std=2.0), near),
    ],
)
def test_last_block(how, weights):
    made, images = tower(), draw(2, 3, 24, 24).double()
    found, _ = made.joint_tokens(images, how)
    for image, tokens in zip(images, as64(found)):
        np.testing.assert_allclose(tokens, slow_tokens(made, image, weights, how.rest), rtol=1e-6, atol=1e-7)
    maps, keys = made.joint_maps(images, how)
    assert maps.shape == (2, 16, 3, 3) and keys.shape == (2, 24, 3, 3)
    assert torch.equal(maps.flatten(2).transpose(1, 2), found[:, 1:])


def test_attention_pool_at_each_place():
    pool, maps = AttentionPool2d(32, 3, 16, head_dim=8, qkv_separate=True).double(), draw(2, 32, 3, 4).double()
    words, keys = pooled_places(pool, maps)
    for b, i, j in np.ndindex(2, 3, 4):
        place = as64(maps)[b, :, i, j]
        np.testing.assert_allclose(as64(words)[b, :, i, j], linear(linear(place, pool.v), pool.proj), rtol=1e-6)
        np.testing.assert_allclose(as64(keys)[b, :, i, j], linear(place, pool.k), rtol=1e-6)


def test_words_in_several_sentences_are_averaged_as_directions():
    x = draw(3, 4, 5).double()
    np.testing.assert_allclose(as64(ensemble(x)), unit(unit(as64(x)).mean(1)), rtol=1e-6)


def test_prompt_denoising():
    cosines = draw(2, 4, 2, 3).double() * 0.03
    p = softmax(as64(cosines) * 100)
    expected = as64(cosines).copy()
    gone = 0
    for b in range(2):
        for c in range(4):
            if p[b, c].max() < 0.8:
                expected[b, c] = REMOVED
                gone += 1
    assert 0 < gone < 8
    np.testing.assert_allclose(as64(denoise_prompts(cosines, 0.8)), expected, rtol=1e-6)


@pytest.mark.parametrize("threshold", [1.0, 0.7])
def test_key_smoothing(threshold):
    cosines, keys = draw(2, 4, 2, 3).double() * 0.03, draw(2, 5, 2, 3, seed=1).double()
    found, mass = smooth_by_keys(cosines, keys, threshold)
    kept = 0
    for b in range(2):
        p = softmax(as64(cosines)[b] * 100, 0).reshape(4, 6)
        k = unit(as64(keys)[b].reshape(5, 6), 0)
        for n in range(6):
            weights = k[:, n] @ k
            sure = p[:, n].max() >= threshold
            kept += sure
            expected = p[:, n] if sure else sum(w * p[:, m] for m, w in enumerate(weights))
            np.testing.assert_allclose(as64(found)[b].reshape(4, 6)[:, n], expected, rtol=1e-6, atol=1e-9)
            assert float(mass[b].flatten()[n]) == pytest.approx(1 if sure else np.abs(weights).sum())
    assert kept == 0 if threshold == 1 else 0 < kept < 12


# --------------------------------------------------------------------- what the authors' code gave on the same tensors


@pytest.fixture(scope="module")
def golden(data_root) -> Callable[[str, str], tuple[dict[str, Tensor], dict[str, Any]]]:
    """Tensors of one case of a paper, and its scalars."""

    def case(paper: str, name: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
        path = data_root.parent / "golden" / paper / "cases.safetensors"
        if not path.is_file():
            pytest.skip("no golden tensors beside the photographs")
        with safe_open(path, "pt") as file:
            names = [k for k in file.keys() if k.startswith(f"{name}.")]  # noqa: SIM118
            return {k.removeprefix(f"{name}."): file.get_tensor(k) for k in names}, json.loads(file.metadata()[name])

    return case


def close(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


def official(shape: TowerShape, tensors: dict[str, Tensor]) -> ClipViT:
    made = build_clip(shape.text(), "random").double()
    made.model.load_state_dict(fit(tensors, made.model))
    assert isinstance(made, ClipViT)
    return made


def mmseg_names(t: dict[str, Tensor]) -> dict[str, Tensor]:
    """The authors' tensors of MaskCLIP by timm's names."""
    found = {}
    for key, value in t.items():
        if key.startswith("input.weight."):
            name = key.removeprefix("input.weight.").replace("patch_embed.projection", "patch_embed.proj")
            name = re.sub(r"^ln0\.", "norm_pre.", re.sub(r"^ln1\.", "norm.", name)).replace("head.proj", "head.weight")
            name = re.sub(r"^layers\.", "blocks.", name).replace(".attn.attn.in_proj_", ".attn.qkv.")
            name = name.replace(".attn.attn.out_proj.", ".attn.proj.").replace(".ffn.layers.0.0.", ".mlp.fc1.")
            found[re.sub(r"\.ln([12])\.", r".norm\1.", name).replace(".ffn.layers.1.", ".mlp.fc2.")] = value
    return found


@pytest.mark.data
@pytest.mark.parametrize("name", ["vit_dense", "vit_dense_quickgelu", "vit_dense_resized"])
def test_maskclip_of_its_authors(golden, name):
    t, said = golden("maskclip", name)
    weights, _ = golden("maskclip", "vit_dense_quickgelu" if said["activation"] == "QuickGELU" else "vit_dense")
    act = {"GELU": "gelu", "QuickGELU": "quick_gelu"}[said["activation"]]
    shape = replace(SHAPE, heads=said["heads"], act=act, eps=said["eps"])
    made = official(shape, mmseg_names(t) or mmseg_names(weights))
    words, keys = made.joint_maps(t["input.image"], LastBlock("value"))
    close(words, t["output.feature"])
    close(keys.flatten(2).transpose(1, 2), t["output.key"])
    close(torch.einsum("bdhw,cd->bchw", F.normalize(words, dim=1), t["input.text"]), t["output.logits"])


@pytest.mark.data
def test_resnet_and_ensemble_of_the_authors(golden):
    t, _ = golden("maskclip", "resnet_dense")
    pool = AttentionPool2d(32, (4, 5), 16, head_dim=8, qkv_separate=True).double()
    with torch.no_grad():
        for one, name in ((pool.v, "v_proj"), (pool.k, "k_proj"), (pool.proj, "c_proj")):
            one.weight.copy_(t[f"input.weight.{name}.weight"])
            one.bias.copy_(t[f"input.weight.{name}.bias"])
    words, _ = pooled_places(pool, t["input.feature_map"])
    close(words, t["output.feature"])
    close(torch.einsum("bdhw,cd->bchw", F.normalize(words, dim=1), t["input.text"]), t["output.logits"])
    t, _ = golden("maskclip", "text_ensemble")
    close(ensemble(t["input.template_embedding"]), t["output.text"])


@pytest.mark.data
@pytest.mark.parametrize("name", ["vit_prompt_denoise", "vit_key_smoothing", "vit_key_smoothing_half", "vit_both"])
def test_refinements_of_the_authors(golden, name):
    t, said = golden("maskclip", name)
    logits, key = t["input.logits"], t["input.key"]
    keys = key.transpose(1, 2).unflatten(2, logits.shape[2:])
    if said["pd_thresh"]:
        logits = denoise_prompts(logits, said["pd_thresh"])
    if not said["ks_thresh"]:
        close(logits, t["output.refined"])
        return
    close(smooth_by_keys(logits, keys, said["ks_thresh"])[0], t["output.refined_per_key_norm"])
    close(smooth_by_keys(logits, keys, said["ks_thresh"], per_key=False)[0], t["output.refined"])


@pytest.mark.data
@pytest.mark.parametrize(
    ("name", "how"),
    [
        ("vanilla", LastBlock("clip")),
        ("sclip", LastBlock("sclip")),
        ("clearclip_repo_ClearCLIP_noresidual", LastBlock("query", rest=False)),
        ("clearclip_repo_ClearCLIP_residual", LastBlock("query")),
        ("clearclip_repo_SCLIP_noresidual", LastBlock("sclip", rest=False)),
        ("clearclip_repo_MaskCLIP_noresidual", LastBlock("value", rest=False)),
        ("naclip_reduced_naclip_5", LastBlock("neighbour", rest=False)),
        ("naclip_reduced_naclip_1", LastBlock("neighbour", rest=False, std=1.0)),
        ("naclip_reduced_kk_0", LastBlock("key", rest=False)),
        ("naclip_vanilla_naclip_5", LastBlock("neighbour")),
    ],
)
def test_training_free_variants_of_their_authors(golden, name, how):
    """On the training grid; elsewhere they resize positions by a factor that is not the ratio of the sizes."""
    weights, _ = golden("clip_training_free", "vanilla_square")
    t, _ = golden("clip_training_free", f"{name}_square")
    shape = replace(SHAPE, image=32, mlp=4.0)
    named = {k.replace("input.weight.", "visual."): v for k, v in weights.items() if k.startswith("input.weight.")}
    made = official(shape, timm_names(named))
    close(made.joint_tokens(weights["input.image"], how)[0], t["output.tokens"])


@pytest.mark.data
@pytest.mark.parametrize("name", ["post_synonyms", "post_threshold"])
def test_synonyms_and_background_of_the_authors(golden, name):
    t, said = golden("clip_training_free", name)
    owner = torch.tensor(said["query_index"])
    words = t["input.logits"] * said["scale"]
    found = of_classes(words, owner, int(owner.max()) + 1)
    close((found - words.logsumexp(1, keepdim=True)).exp()[0], t["output.score"])
    if said["threshold"]:
        found[:, 0] = torch.maximum(found[:, 0], threshold_logit(words, said["threshold"])[:, 0])
    assert torch.equal(found.argmax(1)[0], t["output.label"].long())
