"""CLIP-ES (Lin et al., CVPR 2023): evidence by gradients, affinity from attention, names, sure labels."""

from __future__ import annotations

import copy
import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy import ndimage
from tests.conftest import write_tiny_folder
from tests.golden.formulas import as64, draw, softmax, unit
from tests.models.towers.tiny import RESNET, config, write_folder

import maskwright as mw
from maskwright.engine.progress import Progress
from maskwright.errors import MaskwrightError
from maskwright.methods.weak.clip_es import (
    BEHIND,
    NameOptions,
    TextMaps,
    mean_attention,
    tag_evidence,
    tag_words,
    until_last,
)
from maskwright.models.towers.image import ClipViT, build_clip
from maskwright.models.towers.shape import TowerShape
from maskwright.ops.attention_affinity import attention_transition, peak_boxes, spread_in_boxes
from maskwright.recipes.tags.maps import ImageCams
from maskwright.recipes.tags.seeds import seeds_by_power

SHAPE = TowerShape("vit", image=24, patch=8, width=24, layers=(3,), heads=3, mlp=2.0, embed=16, act="quick_gelu")


@pytest.fixture(scope="module")
def tower() -> ClipViT:
    torch.manual_seed(0)
    made = build_clip(SHAPE.text(), "random").double()
    assert isinstance(made, ClipViT)
    with torch.no_grad():
        for value in made.parameters():
            value.copy_(torch.randn_like(value) / max(1, value.shape[-1]) ** 0.5 if value.ndim > 1 else value + 0.1)
    return made


def texts(count: int, seed: int = 3) -> torch.Tensor:
    return F.normalize(draw(count, 16, seed=seed).double(), dim=1)


# ---------------------------------------------------------------------- slow and obvious


def test_attention_is_that_of_each_head(tower):
    block, tokens = tower.model.blocks[0], draw(1, 5, 24).double()
    x = block.norm1(tokens)[0]
    q, k, _ = (as64(part) for part in block.attn.qkv(x).chunk(3, -1))
    expected = np.zeros((5, 5))
    for h in range(3):
        s = slice(8 * h, 8 * h + 8)
        expected += softmax(q[:, s] @ k[:, s].T / np.sqrt(8)) / 3
    torch.testing.assert_close(mean_attention(block, tokens)[0], torch.from_numpy(expected))


def test_evidence_is_grad_cam_of_the_softmax_by_differences(tower):
    """Each gradient by moving one number of what the first norm gives, everything behind it run again."""
    x = draw(1, 3, 16, 24).double()
    with torch.no_grad():
        tokens, _ = until_last(tower, x, 0)
    words, tags = texts(5) / 10, 2  # less sharp, so that differences tell
    found = tag_evidence(tower, tokens[0], words, tags)
    model, block = tower.model, tower.model.blocks[-1]
    u = block.norm1(tokens[0]).detach()

    def probabilities(u: torch.Tensor) -> np.ndarray:
        with torch.no_grad():
            out = tokens + block.attn(u[None])
            out = out + block.mlp(block.norm2(out))
            z = unit(as64(model.head(model.norm(out[:, 0]))))
            return softmax(100 * z @ as64(words).T)[0]

    n, d, step = len(u), u.shape[1], 1e-5
    slope = np.zeros((tags, n - 1, d))
    for i in range(1, n):
        for j in range(d):
            up, down = u.clone(), u.clone()
            up[i, j] += step
            down[i, j] -= step
            slope[:, i - 1, j] = (probabilities(up) - probabilities(down))[:tags] / (2 * step)
    y = probabilities(u)[:tags, None]
    expected = np.maximum(np.einsum("kd,nd->kn", slope.mean(1), as64(u[1:])), 0) / (y * (1 - y))
    assert expected.max() > 0
    torch.testing.assert_close(found, torch.from_numpy(expected), rtol=1e-4, atol=1e-6)


def slow_transition(a: np.ndarray, rounds: int) -> np.ndarray:
    a = a.copy()
    for _ in range(rounds):
        for j in range(len(a)):
            a[:, j] /= a[:, j].sum()
        for i in range(len(a)):
            a[i] /= a[i].sum()
    a = (a + a.T) / 2
    return a @ a


def slow_spread(cam: np.ndarray, transition: np.ndarray, share: float) -> np.ndarray:
    parts, _ = ndimage.label(cam >= share * cam.max(), np.ones((3, 3)))
    inside = np.zeros(cam.shape)
    for rows, columns in ndimage.find_objects(parts):
        inside[rows, columns] = 1
    masked = transition * inside.reshape(1, -1)  # columns outside are taken away
    found = (masked @ cam.reshape(-1)).reshape(cam.shape)
    found -= found.min()
    return found / (found.max() + 1e-7)


def test_spreading_is_that_of_the_slow_version():
    attention = draw(12, 12).double().softmax(1)
    cam = draw(3, 4, seed=1).double().relu()
    transition = attention_transition(attention)
    torch.testing.assert_close(transition, torch.from_numpy(slow_transition(as64(attention), 3)))
    expected = slow_spread(as64(cam), as64(transition), 0.4)
    torch.testing.assert_close(spread_in_boxes(cam, transition), torch.from_numpy(expected))


# ---------------------------------------------------------------------- what the brief says must hold


def test_background_words_only_take_from_the_tags(tower):
    x = draw(1, 3, 24, 24).double()
    with torch.no_grad():
        tokens, _ = until_last(tower, x, 0)
        block, model = tower.model.blocks[-1], tower.model
        z = F.normalize(model.head(model.norm(block(tokens)[:, 0])), dim=-1)
    few, more = ((100 * z @ texts(n).T).softmax(-1)[0, :2] for n in (2, 6))
    assert (more < few).all()
    assert not torch.equal(tag_evidence(tower, tokens[0], texts(2), 2), tag_evidence(tower, tokens[0], texts(6), 2))


def test_transitions_are_doubly_stochastic_and_follow_a_permutation():
    attention = draw(20, 20).double().softmax(1)
    found = attention_transition(attention, rounds=8)
    torch.testing.assert_close(found, found.T)
    torch.testing.assert_close(found.sum(1), torch.ones(20).double(), rtol=0.02, atol=0)
    order = torch.randperm(20, generator=torch.Generator().manual_seed(0))
    again = attention_transition(attention[order][:, order])
    torch.testing.assert_close(again, attention_transition(attention)[order][:, order])


def test_boxes_reach_the_border_and_nothing_outside_them_spreads():
    cam = torch.zeros(5, 6)
    cam[4, 5], cam[0, 0], cam[1, 1], cam[2, 4] = 1.0, 0.5, 0.4, 0.2
    boxes = peak_boxes(cam)
    expected = torch.zeros(5, 6, dtype=torch.bool)
    expected[:2, :2], expected[4, 5] = True, True
    assert torch.equal(boxes, expected), "diagonal neighbours are one part"
    same = spread_in_boxes(cam, torch.eye(30))
    assert not same[~boxes].any() and same[4, 5] == pytest.approx(1)
    assert not peak_boxes(torch.zeros(3, 3)).any() and not spread_in_boxes(torch.zeros(3, 3), torch.eye(9)).any()


def test_maps_are_of_the_tags_alone_and_no_parameter_learns(tower):
    single = copy.deepcopy(tower).float()
    tags, behind = texts(4).float(), texts(3, seed=7).float()
    maps = TextMaps(single, tags, behind, blocks=8)
    y = torch.tensor([[1, 0, 0, 1], [0, 0, 0, 0]])
    found = maps(draw(2, 3, 24, 32), y)
    assert found.shape == (2, 4, 3, 4) and found.min() >= 0 and found.max() <= 1
    assert found[0, [0, 3]].flatten(1).amax(1).gt(0.99).all() and not found[0, 1:3].any() and not found[1].any()
    assert all(p.grad is None for p in single.parameters())
    alone = maps(draw(2, 3, 24, 32)[:1], y[:1])
    torch.testing.assert_close(found[:1], alone, rtol=1e-4, atol=1e-5)


# ---------------------------------------------------------------------- names and labels


def test_names_of_tags_and_what_stands_behind_them():
    found, behind = tag_words(("birds", "tvmonitor", "river|stream"), "ground", NameOptions())
    assert found.words == (("bird avian",), ("tvmonitor screen",), ("river", "stream"))
    assert set(behind) == set(BEHIND) - {"river"} and any("bird as bird avian" in said for said in found.said)
    assert tag_words(("trees",), None, NameOptions(behind=("Trees", "Skies")))[1] == ("sky",)
    assert "background" not in tag_words(("cat",), "background", NameOptions())[1]
    assert tag_words(("cat",), "mud", NameOptions(clearer=False, behind=("sky",)))[1] == ("sky", "mud")
    assert tag_words(("cat",), "mud|clays", NameOptions(behind=("sky",)))[1] == ("sky", "mud", "clay"), "synonyms"
    assert "bg" not in tag_words(("cat",), "bg", NameOptions())[1], "another name of the background"
    with pytest.raises(MaskwrightError, match=r"names\.behind"):
        tag_words(("cat",), None, NameOptions(behind=()))
    with pytest.raises(MaskwrightError, match="says nothing"):
        tag_words(("class 1",), None, NameOptions())


def test_labels_are_what_is_sure():
    maps = torch.zeros(2, 2, 4)
    maps[0, 0], maps[1, 1] = torch.tensor([0.0, 0.6, 0.97, 1.0]), torch.tensor([0.0, 0.4, 0.0, 0.0])
    cams = ImageCams(torch.tensor([1, 3]), maps, (2, 4))
    found = seeds_by_power(cams, 0, sure=0.95)
    assert found.ids[0].tolist() == [0, 0, 1, 1] and found.valid.tolist() == [
        [True, False, True, True],
        [True, False, True, True],
    ]
    assert found.confidence[0, 1] == pytest.approx(0.6) and found.confidence[1, 1] == pytest.approx(0.6)
    assert seeds_by_power(cams, None, sure=0.5).valid.tolist() == [[False, True, True, True], [False] * 4]
    none = ImageCams(torch.zeros(0, dtype=torch.int64), torch.zeros(0, 2, 4), (2, 4))
    assert seeds_by_power(none, 0).valid.all() and not seeds_by_power(none, None).valid.any()
    image = np.zeros((2, 4, 3), np.uint8)
    assert seeds_by_power(cams, 0, sure=0.0, image=image).valid.all()


# ---------------------------------------------------------------------- the run


def train(root, out, weights, settings=None):
    small = {
        "classifier.long_side": 48, "names.prompts": "name", "crops.size": 32, "crops.batch": 2, "norms.images": 2,
        "precision": "fp32", "seeds.crf": False, "seeds.sure": 0.5,
    }  # fmt: skip
    return mw.train(
        root / "photos", "clip_es", backbone="clip", weights=weights, steps=2, out=out, device="cpu",
        settings=small | (settings or {}), report=False, progress=Progress(quiet=True),
    )  # fmt: skip


def test_a_run_reads_tags_alone_and_says_what_counts_against_them(tmp_path):
    write_tiny_folder(tmp_path / "photos", count=3)
    write_folder(tmp_path / "towers", config())
    model = train(tmp_path, tmp_path / "run", tmp_path / "towers")
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert record["labels_read"]["train"] == {"masks": 0, "tags": 3, "captions": 0}
    assert any(note.startswith("Against the tags count: ground, land") for note in record["notes"])
    assert [s["kind"] for s in record["stages"]] == ["fit", "label", "label", "train"]
    assert model.predict(np.zeros((30, 50, 3), np.uint8)).mask.shape == (30, 50)
    write_folder(tmp_path / "resnet", config(RESNET))
    with pytest.raises(MaskwrightError, match="a vision transformer"):
        train(tmp_path, tmp_path / "other", tmp_path / "resnet")
