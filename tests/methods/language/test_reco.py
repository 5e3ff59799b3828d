"""Zero-shot ReCo as people run it, and ProxyCLIP beside it: second networks, archives, and what is said."""

from __future__ import annotations

import json
import sys

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import load_file
from tests.conftest import write_tiny_folder
from tests.models.towers.tiny import RESNET, config, write_folder

import maskwright as mw
from maskwright.engine.progress import Progress
from maskwright.errors import MaskwrightError
from maskwright.methods.language.reco import Reco
from maskwright.models.towers.beside import ProxyEncoder, TowerBeside

SMALL = {"words.short_side": 48, "words.prompts": "photo"}
RECO = SMALL | {"archive.images": 2, "archive.side": 32, "crf": False}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Photographs `photos` and `archive`, without labels, and towers `towers` and `resnet`."""
    root = tmp_path_factory.mktemp("reco")
    write_tiny_folder(root / "photos", count=3, masks=False)
    write_tiny_folder(root / "archive", count=5, masks=False)
    write_folder(root / "towers", config())
    write_folder(root / "resnet", config(RESNET))
    return root


def train(place, out, method="reco", settings=None, weights="towers", names="a red disc|ball,tree", **options):
    return mw.train(
        place / "photos", method, names=names, backbone="clip", weights=place / weights, out=out, device="cpu",
        settings=(RECO if method == "reco" else SMALL) | (settings or {}), report=False, progress=Progress(quiet=True),
        **options,
    )  # fmt: skip


def test_masks_are_those_of_the_formula(place, tmp_path, monkeypatch):
    inputs, source = {"encoder": "mobilenetv3_small_050@random"}, {"archive": place / "archive"}
    model = train(place, tmp_path / "run", inputs=inputs, source=source)
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert [s["name"] for s in record["stages"]] == ["vocabulary", "pictures", "references"]
    assert not any(record["labels_read"]["train"].values())
    pictures = load_file(tmp_path / "run" / "pictures" / "pictures.safetensors")["pictures"]
    assert len(pictures) == 5, "the archive's photographs, not those of the run"
    segmenter = model.segmenter
    assert isinstance(segmenter.encoder, TowerBeside)
    words = load_file(tmp_path / "run" / "vocabulary" / "vocabulary.safetensors")
    references = load_file(tmp_path / "run" / "references" / "references.safetensors")["references"]
    picture = next((place / "photos" / "images").iterdir())
    found = model.predict(picture)
    with torch.no_grad():
        x = segmenter.preprocess.apply(mw.open_folder(place / "photos").image(0))[None]
        features, places = segmenter.features(x)
    assert features.shape[1] == references.shape[1]
    cosines = torch.einsum("bdhw,pd->bphw", F.normalize(places, dim=1), words["vectors"])
    best = torch.stack([cosines[:, words["owner"] == c].amax(1) for c in range(2)], 1)
    size = max(features.shape[-2:], places.shape[-2:])
    parts = [torch.einsum("bdhw,cd->bchw", F.normalize(features, dim=1), references).sigmoid(), (10 * best).sigmoid()]
    parts = [F.interpolate(p, size, mode="bilinear", align_corners=False) for p in parts]
    score = F.interpolate(parts[0] * parts[1] * 40, found.mask.shape, mode="bilinear", align_corners=False)
    clear = ((score[0, 0] - score[0, 1]).abs() > 1e-4).numpy()
    assert clear.mean() > 0.9 and np.array_equal(found.mask[clear], score.argmax(1)[0].numpy()[clear])
    monkeypatch.setitem(sys.modules, "open_clip", None)
    again = mw.load(tmp_path / "run").predict(picture)
    assert np.array_equal(found.mask, again.mask) and np.array_equal(found.confidence, again.confidence)


def test_a_name_of_the_context_has_its_vector_and_few_photographs_are_told(place, tmp_path):
    """On the tower's own features, and on a ResNet's."""
    train(place, tmp_path / "one", settings={"archive.images": 50})
    record = json.loads((tmp_path / "one" / "run.json").read_text())
    assert any("all 3 photographs" in note for note in record["notes"])
    one = load_file(tmp_path / "one" / "references" / "references.safetensors")["references"]
    train(place, tmp_path / "two", names="vegetation,disc", settings={"archive.images": 50})
    other = load_file(tmp_path / "two" / "references" / "references.safetensors")["references"]
    assert torch.equal(one[1], other[0]), "tree and vegetation are one"
    train(place, tmp_path / "bare", names="tree,disc", settings={"archive.images": 50, "context": ""})
    bare = load_file(tmp_path / "bare" / "references" / "references.safetensors")["references"]
    assert not torch.equal(bare, other), "context weighs in"
    model = train(place, tmp_path / "resnet", weights="resnet", settings={"words.short_side": 64, "archive.side": 64})
    assert model.predict(next((place / "photos" / "images").iterdir())).mask.shape == (48, 64)


def test_a_background_is_no_single_one_of_its_words(place, tmp_path, monkeypatch):
    """It has one vector of all its words, and of what surrounds things only what is none of them damps it."""
    made, calls = Reco.reference, []
    spied = lambda self, archive, words, context: (  # noqa: E731
        calls.append((len(words), len(context))) or made(self, archive, words, context)
    )
    monkeypatch.setattr(Reco, "reference", spied)

    def told(out, words):
        calls.clear()
        settings = {"context": "sky,road", "words.background.words": words}
        train(place, tmp_path / out, names="disc,background", settings=settings)
        notes = json.loads((tmp_path / out / "run.json").read_text())["notes"]
        return any("background has one vector" in note for note in notes)

    assert told("many", "sky,tree")
    assert calls == [(1, 0), (1, 1), (1, 2), (2, 1)], "sky, road, disc, and what is sky or tree but no road"
    assert not told("one", "sky") and calls == [(1, 0), (1, 1), (1, 2)], "a background of one word is that word"


def test_a_network_learns_recos_masks(place, tmp_path):
    settings = {"plus.train": True, "student.crops.size": 32, "student.precision": "fp32"}
    settings |= {"student.network.name": "unet", "archive.images": 2}
    inputs = {"student": "mobilenetv3_small_050@random"}
    model = train(place, tmp_path / "run", settings=settings, inputs=inputs, steps=2)
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert [s["name"] for s in record["stages"]] == ["vocabulary", "pictures", "references", "pseudo", "student"]
    assert model.classes.names == ("a red disc", "tree") and model.segmenter.classifier.spec()["kind"] != "WordHead"


def test_proxyclip_takes_a_backbone_or_a_model(place, tmp_path):
    first = train(
        place, tmp_path / "a", "clip_seg", {"variant": "proxyclip"}, inputs={"proxy": "mobilenetv3_small_050@random"}
    )
    assert isinstance(first.segmenter.encoder, ProxyEncoder) and first.segmenter.encoder.multiple_of == 16
    train(place, tmp_path / "m", "maskclip")
    model = train(place, tmp_path / "b", "clip_seg", {"variant": "proxyclip"}, inputs={"proxy": tmp_path / "m"})
    picture = next((place / "photos" / "images").iterdir())
    for run, made in (("a", first), ("b", model)):
        ours, again = made.predict(picture), mw.load(tmp_path / run).predict(picture)
        assert np.array_equal(ours.mask, again.mask) and np.array_equal(ours.confidence, again.confidence)
    other = mw.load(tmp_path / "b").with_names(["grass", "a disc"], place / "towers")
    assert other.classes.names == ("grass", "a disc") and other.predict(picture).mask.shape == (48, 64)
    encoder = model.segmenter.encoder
    raw = torch.rand(3, 32, 32)
    own, second = encoder.joint.backbone.provenance, mw.load(tmp_path / "m").segmenter.preprocess
    x = (raw - torch.tensor(own.mean)[:, None, None]) / torch.tensor(own.std)[:, None, None]
    scale, move = (torch.tensor(v)[:, None, None] for v in (encoder.factor, encoder.offset))
    expected = (raw - torch.tensor(second.mean)[:, None, None]) / torch.tensor(second.std)[:, None, None]
    torch.testing.assert_close(x * scale + move, expected, rtol=1e-4, atol=1e-5)


def test_of_a_strip_the_middle_is_looked_at(place, tmp_path):
    archive = tmp_path / "archive" / "images"
    archive.mkdir(parents=True)
    strip = np.random.default_rng(0).integers(0, 256, (2, 90, 3), np.uint8)
    Image.fromarray(strip).save(archive / "long.png")
    Image.fromarray(strip[:, 44:46]).save(archive / "middle.png")
    Image.fromarray(strip[:1, :1]).save(archive / "pixel.png")
    train(place, tmp_path / "run", source={"archive": archive.parent}, settings={"archive.images": 3, "context": ""})
    pictures = load_file(tmp_path / "run" / "pictures" / "pictures.safetensors")["pictures"]
    assert len(pictures) == 3 and torch.allclose(pictures[0], pictures[1], atol=1e-5)


@pytest.mark.parametrize(
    ("method", "settings", "inputs", "said"),
    [
        ("clip_seg", {"variant": "proxyclip"}, None, "needs an input called proxy"),
        ("clip_seg", {"variant": "naclip"}, {"proxy": "test_vit@random"}, "no use for"),
        ("reco", {}, {"student": "test_vit@random"}, "no use for"),
    ],
)
def test_what_is_missing_or_too_much_is_one_line(place, tmp_path, method, settings, inputs, said):
    with pytest.raises(MaskwrightError, match=said):
        train(place, tmp_path / "run", method, settings, inputs=inputs)
