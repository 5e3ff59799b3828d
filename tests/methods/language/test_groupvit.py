"""GroupViT from captions to masks: what is drawn, what is trained, other names, and what is refused."""

from __future__ import annotations

import json
import sys

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from tests.conftest import write_tiny_folder
from tests.models.towers.test_groupvit import TINY

import maskwright as mw
from maskwright.api.opening import weights_of
from maskwright.data.folders.folder import open_folder
from maskwright.data.training.captioned import CaptionStream, content_words
from maskwright.data.training.sampler import Sampler
from maskwright.engine.progress import Progress
from maskwright.errors import MaskwrightError
from maskwright.models.towers.groupvit.files import find_group_pair
from maskwright.models.towers.groupvit.text import GroupText
from maskwright.ops.groups import group_affinity

SMALL = {"words.short_side": 48, "crops.batch": 4, "precision": "fp32"}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Photographs of which one has no caption, and a run on them."""
    root = tmp_path_factory.mktemp("groups")
    folder = write_tiny_folder(root / "photos", count=5)
    lines = (folder / "captions.csv").read_text().splitlines()
    (folder / "captions.csv").write_text("\n".join(lines[:-1]) + "\n")
    train(root, root / "run")
    return root


def train(root, out, names="disc;square;background", settings=None, base=SMALL, **options):
    given = {"backbone": TINY.text(), "weights": "random", "steps": 3} | options
    return mw.train(
        root / "photos", "groupvit", names=names, out=out, device="cpu", settings=base | (settings or {}),
        report=False, progress=Progress(quiet=True), **given,
    )  # fmt: skip


def test_words_of_a_caption():
    assert content_words("Two dogs are running on the man's GREEN lawn, 3 of them!") == [
        "dogs", "running", "man's", "green", "lawn",
    ]  # fmt: skip
    assert content_words("It is on a.") == []


def test_what_the_stream_draws(tmp_path):
    data = open_folder(write_tiny_folder(tmp_path / "photos", count=4))
    texts: list[str] = []

    def encode(sentences: list[str]) -> torch.Tensor:
        texts.extend(sentences)
        return torch.tensor([[len(s)] for s in sentences])

    stream = CaptionStream(data, range(4), Sampler(4, 2), 16, 0.5, encode, ("a {}.", "the {}."), 6)
    drawn = stream.draw(stream.next(), torch.Generator().manual_seed(0))
    assert drawn.pixels.shape == (2, 3, 16, 16) and drawn.pixels.dtype == torch.uint8
    assert drawn.tokens.shape == (2, 7, 1) and len(texts) == 14
    caption, *others = texts[:7]
    assert caption in data.items[drawn.images[0]].captions
    words = content_words(caption)
    made = [o for o in others if o != caption]
    assert len(made) == len(words) == 4 and others[4:] == [caption] * 2, "the caption stands in for words it lacks"
    assert {o.split(" ", 1)[1].rstrip(".") for o in made} == set(words), "each once"
    again = stream.draw(drawn.images, torch.Generator().manual_seed(0))
    assert torch.equal(again.pixels, drawn.pixels) and texts[14:] == texts[:14]
    assert data.ledger.counts()["train"]["captions"] == 2


def test_a_run_predicts_alone_and_says_what_it_read(place, monkeypatch):
    record = json.loads((place / "run" / "run.json").read_text())
    assert record["labels_read"]["train"] == {"masks": 0, "tags": 0, "captions": 4}
    assert any(note.startswith("1 of 5 photographs have no caption") for note in record["notes"])
    assert any(note.startswith("Background (class 2): where no class") for note in record["notes"])
    losses = [json.loads(line) for line in (place / "run" / "metrics.jsonl").read_text().splitlines()]
    first = next(one for one in losses if one["stage"] == "train")
    assert first["loss"] == pytest.approx(first["caption"] + first["words"], rel=1e-5)
    monkeypatch.setitem(sys.modules, "open_clip", None)
    model = mw.load(place / "run")
    assert model.segmenter.provenance.labels_seen == "image captions"
    assert model.predict(np.zeros((30, 50, 3), np.uint8)).mask.shape == (30, 50)


def test_masks_are_those_of_the_formula(place):
    """Groups of the written towers against names, one group and one pixel at a time."""
    model = mw.load(place / "run").with_names("disc|ball;square", place / "run" / "towers")
    pair = find_group_pair("groupvit", str(place / "run" / "towers"))
    path = next((place / "photos" / "images").iterdir())
    text, encoder = GroupText.of(pair), model.segmenter.encoder
    x = model.segmenter.preprocess.apply(open_folder(place / "photos").image(0))[None]
    with torch.no_grad():
        words = F.normalize(text.encode([f"a photo of a {w}." for w in ("disc", "ball", "square")]), dim=1)
        seen = encoder.backbone.grouped(x)
        tower = encoder.backbone.tower
        groups, picture = (F.normalize(tower.projector(v), dim=-1) for v in (seen.tokens[0], seen.average))
        scale = min(100.0, float(tower.log_scale.exp()))
    maps = F.interpolate(seen.maps, x.shape[-2:], mode="bilinear", align_corners=False)[0]
    logits = torch.stack([(scale * v @ words.T) for v in (*groups, picture[0])])
    classes = torch.stack([logits[:, :2].amax(1), logits[:, 2]], 1)
    affinity = group_affinity(classes[None, :-1], classes[-1:])[0]
    expected = affinity[maps.argmax(0)].permute(2, 0, 1)
    found = model.segmenter(x)[0].softmax(0)
    torch.testing.assert_close(found, expected / expected.sum(0), rtol=1e-4, atol=1e-5)
    assert model.predict(path).mask.shape == (48, 64)


def test_trained_towers_are_taken_as_they_are(place, tmp_path):
    towers = place / "run" / "towers"
    taken = train(
        place, tmp_path / "taken", "disc;square", {"preset": "zero_shot"}, {"words.short_side": 48}, backbone="auto",
        weights=towers, steps=None,
    )  # fmt: skip
    named = mw.load(place / "run").with_names("disc;square", towers)
    path = next((place / "photos" / "images").iterdir())
    assert np.array_equal(taken.predict(path).confidence, named.predict(path).confidence)
    record = json.loads((tmp_path / "taken" / "run.json").read_text())
    assert not any(record["labels_read"]["train"].values()) and record["backbone"]["labels_seen"] == "image captions"
    with pytest.raises(MaskwrightError, match="text tower is not in it"):
        train(place, tmp_path / "model", backbone="auto", weights=place / "run", steps=2)


@pytest.mark.slow
def test_trained_towers_learn_further(place, tmp_path):
    towers = place / "run" / "towers"
    train(place, tmp_path / "further", backbone="groupvit", weights=towers, steps=2)
    notes = json.loads((tmp_path / "further" / "run.json").read_text())["notes"]
    assert any(note.startswith("Learning rate 5e-05") for note in notes), "slower than from nothing"
    # For other names it asks the towers that it left, not those that it began with.
    found = weights_of(tmp_path / "further" / "model.safetensors")
    assert found == str(tmp_path / "further" / "towers")
    assert mw.load(tmp_path / "further").with_names("disc", found).classes.names == ("disc",)


def test_what_cannot_be_done_is_one_line(place, tmp_path):
    for number, (options, said) in enumerate((
        ({"backbone": "test_vit"}, "sorts no patches into groups"),
        ({"settings": {"crops.batch": 1}}, "at least 2"),
        ({"names": "class 0;class 1"}, "says nothing of how it looks"),
        ({"names": "word " * 400 + ";sky"}, "tokens long"),
        ({"names": "sky;;road"}, "empty name"),
    )):  # fmt: skip
        with pytest.raises(MaskwrightError, match=said):
            train(place, tmp_path / f"run{number}", **options)
        assert not (tmp_path / f"run{number}" / "train" / "checkpoint.pt").exists(), "before anything is learned"
    with pytest.raises(MaskwrightError, match="no words"):
        mw.train(
            place / "photos", "maskclip", names="sky;road", backbone=TINY.text(), weights="random", device="cpu",
            out=tmp_path / "other", progress=Progress(quiet=True),
        )  # fmt: skip
