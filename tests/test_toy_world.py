"""The toy world of docs/language.md: scenes, their captions, and the training of the two towers."""

from __future__ import annotations

import math
import re
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from benchmarks.toy_world.groups import GroupClusters, groups_a_picture
from benchmarks.toy_world.scenes import CLASSES, FILLINGS, GROUNDS, KINDS, SHAPES, describe, draw_scene, write_folder
from benchmarks.toy_world.table import VOCABULARIES, shuffled, truth_of
from benchmarks.toy_world.two_towers import PairTraining, contrast, description, read_pairs, write_towers
from tests.golden.formulas import as64, draw, unit

import maskwright as mw
from maskwright.data.masking.classes import ClassTable
from maskwright.data.masking.masks import read_mask
from maskwright.models.backbones.build import build_backbone
from maskwright.models.towers.image import ClipViT
from maskwright.models.towers.surgery import LastBlock
from maskwright.models.towers.text import TextTower


def test_scenes_show_what_their_masks_and_captions_say():
    for number in range(40):
        random = np.random.default_rng((1, number))
        scene, caption = draw_scene(random), ""
        caption = describe(scene, random)
        assert 1 <= len(scene.things) <= 4
        shown = {thing.kind for thing in scene.things} | {CLASSES.index(scene.ground)}
        assert set(np.unique(scene.mask).tolist()) == shown, "each thing is seen, and nothing else"
        for thing in scene.things:
            if FILLINGS[thing.filling] == "red":
                colour = scene.image[scene.mask == thing.kind].mean(0)
                assert colour[0] > 150 and max(colour[1:]) < 90
        told = re.findall(rf"a (?:({'|'.join(FILLINGS)}) )?({'|'.join(SHAPES)}|shape)\b", caption)
        left = [(FILLINGS[t.filling], SHAPES[t.shape]) for t in scene.things]
        for filling, shape in told:
            fits = [k for k in left if filling in ("", k[0]) and shape in ("shape", k[1])]
            assert fits, (caption, left)
        assert len(told) == len(scene.things)
        assert not any(g in caption for g in GROUNDS if g != scene.ground)


def test_left_of_is_left():
    for number in range(60):
        random = np.random.default_rng((2, number))
        scene = draw_scene(random)
        if len(scene.things) != 2:
            continue
        caption = describe(scene, random)
        one, two = scene.things
        both = [re.search(rf"a {FILLINGS[t.filling]} {SHAPES[t.shape]}", caption) for t in (one, two)]
        if all(both) and both[0].start() != both[1].start():
            first, second = (one, two) if both[0].start() < both[1].start() else (two, one)
            apart = {"left of": second.x - first.x, "right of": first.x - second.x,
                     "above": second.y - first.y, "below": first.y - second.y}  # fmt: skip
            word = next(w for w in apart if f" {w} " in caption)
            assert apart[word] == max(apart.values()) > 0, caption


def test_truth_of_each_vocabulary():
    mask = np.array([[0, 4, len(KINDS) - 1, len(KINDS) + 2]], np.uint8)
    assert truth_of(mask, "kinds").tolist() == [[0, 4, 23, 255]]
    assert truth_of(mask, "fillings").tolist() == [[0, 1, 7, 255]]
    assert truth_of(mask, "scene").tolist() == [[0, 1, 7, 10]]
    for names in VOCABULARIES.values():
        assert sorted(shuffled(names)) == sorted(names) and not any(a == b for a, b in zip(shuffled(names), names))


def test_contrast_pair_by_pair():
    images, texts = (torch.from_numpy(unit(as64(draw(4, 5, seed=s)))) for s in (0, 1))
    same = torch.eye(4, dtype=torch.bool)
    same[0, 2] = same[2, 0] = True
    total = 0.0
    for a, b in ((images, texts), (texts, images)):
        for i in range(4):
            logits = [7.0 * float(a[i] @ b[j]) for j in range(4)]
            lse = math.log(sum(map(math.exp, logits)))
            right = [j for j in range(4) if same[i, j]]
            total += sum(lse - logits[j] for j in right) / len(right) / 4
    assert float(contrast(images, texts, torch.tensor(7.0), same)) == pytest.approx(total / 2)


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("toy")
    write_folder(folder, 12, 4, validation=3)
    return folder


def training(scenes):
    config = description(64, 16, 32, 2)
    images, captions = read_pairs(scenes, "train", 64)
    return PairTraining(config, images, captions, steps=6, batch=8, lr=1e-3), config


def test_towers_learn_go_on_and_are_read_as_any_others(scenes, tmp_path):
    data = mw.open_folder(scenes)
    assert data.classes.names == CLASSES and len(data.split("train")) == 12 and len(data.split("test")) == 4
    held = [set(data.split(name).names) for name in ("train", "test", "validation")]
    assert len(held[2]) == 3 and not set.intersection(*held) and len(set.union(*held)) == 19
    whole, config = training(scenes)
    losses = [whole.update()[0] for _ in range(4)]
    assert losses[-1] < losses[0] and math.log(100) + 1e-6 >= float(whole.model.logit_scale.detach()) > 0
    first, _ = training(scenes)
    first.update(), first.update()
    first.save(tmp_path / "checkpoint.pt")
    again, _ = training(scenes)
    again.load(tmp_path / "checkpoint.pt")
    again.update(), again.update()
    for (name, a), b in zip(whole.model.state_dict().items(), again.model.state_dict().values()):
        assert torch.equal(a, b), name
    write_towers(whole, config, tmp_path)
    tower = build_backbone("clip", str(tmp_path))
    assert isinstance(tower, ClipViT) and tower.pair is not None
    x, tokens = whole.draw(0)
    with torch.no_grad():
        ours, _ = tower.joint_tokens(x, LastBlock("clip"))
        torch.testing.assert_close(ours[:, 0], whole.model.encode_image(x), rtol=0.02, atol=0.02)  # halves
        torch.testing.assert_close(whole.texts(tokens), whole.model.encode_text(tokens, normalize=True))
        own = whole.model.encode_text(TextTower(tower.pair).tokenizer(["a red circle"]), normalize=True)
        torch.testing.assert_close(TextTower(tower.pair).encode(["a red circle"]), own, rtol=0.02, atol=0.02)


class Halves(torch.nn.Module):
    """A picture's left and right half as its two groups, whose vectors are the halves' colours; groups of a bright
    picture have changed places."""

    backbone = SimpleNamespace(groups=2)

    def forward(self, x):
        maps = torch.zeros(1, 2, 2, 4)
        left = int(x[0].mean() > 0.5)
        maps[0, left, :, :2] = maps[0, 1 - left, :, 2:] = 1
        colours = torch.stack([x[0, :, :, :4].mean((1, 2)), x[0, :, :, 4:].mean((1, 2))])
        vectors = torch.cat((colours[[left, 1 - left]], x[0].mean((1, 2))[None]))  # (G + 1, E)
        return torch.cat((maps, vectors.flatten()[None, :, None, None].expand(1, -1, 2, 4)), 1)


class Pictures(list):
    names, classes = ("a", "b", "c"), ClassTable.numbered(3)
    image = list.__getitem__


def test_groups_are_clustered_by_what_they_are_and_not_by_their_numbers(tmp_path):
    dark, light, grey = (60, 0, 0), (250, 240, 255), (0, 90, 60)
    pictures = Pictures(np.zeros((4, 8, 3), np.uint8) for _ in range(3))
    for picture, (left, right) in zip(pictures, ((dark, grey), (light, grey), (light, dark))):
        picture[:, :4], picture[:, 4:] = left, right
    preprocess = SimpleNamespace(apply=lambda image: torch.from_numpy(image).permute(2, 0, 1) / 255)
    segmenter = SimpleNamespace(encoder=Halves(), preprocess=preprocess)
    assert groups_a_picture(segmenter, pictures) == 2
    found = GroupClusters.fitted(segmenter, pictures, 3, 0)
    found.predict_folder(pictures, tmp_path)
    one, two, three = (read_mask(tmp_path / f"{name}.png") for name in pictures.names)
    for mask in (one, two, three):
        assert mask.shape == (4, 8)
        assert len(np.unique(mask[:, :4])) == len(np.unique(mask[:, 4:])) == 1
    a, b, c = one[0, 0], two[0, 0], one[0, 7]
    assert len({a, b, c}) == 3
    assert two[0, 7] == c and three[0, 0] == b and three[0, 7] == a
