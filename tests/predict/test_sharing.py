"""Models that are handed on: a folder with its page, and a hub that the test plays."""

from __future__ import annotations

import shutil
from types import SimpleNamespace

import huggingface_hub
import pytest
import torch
import yaml
from huggingface_hub.errors import HfHubHTTPError

import maskwright as mw
from maskwright.data.masking.classes import ClassTable
from maskwright.errors import MaskwrightError
from maskwright.models.backbones import weights
from maskwright.models.networks.ddrnet import DDRNetDecoder, DDRNetEncoder
from maskwright.models.parts.heads import LinearClassifier
from maskwright.models.preprocess import Preprocess
from maskwright.models.provenance import Provenance
from maskwright.models.segmenter import Segmenter
from maskwright.predict import sharing
from maskwright.predict.card import MOST, card
from maskwright.predict.model import Model

NAMES = ("ground", "a|b <img src=x>", "[link](http://a)")
READ = {"train": {"masks": 5, "tags": 0}, "select": {"masks": 0}, "evaluate": {"masks": 7}}


def tiny(license: str = "Apache-2.0", names: tuple[str, ...] = NAMES) -> Model:
    torch.manual_seed(0)
    decoder = DDRNetDecoder("ddrnet23_slim")
    source = Provenance("ddrnet23_slim", "file: a.pth", license, "ImageNet-1k classes", "ab" * 32)
    table = ClassTable(names, ClassTable.numbered(len(names)).colors)
    parts = DDRNetEncoder("ddrnet23_slim"), decoder, LinearClassifier(decoder.width, len(names))
    segmenter = Segmenter(*parts, table, Preprocess(short_side=64, multiple_of=8), source, "supervised")
    return Model(segmenter, {"labels_read": READ, "inputs": {}})


@pytest.fixture(scope="module")
def model() -> Model:
    return tiny()


def front(text: str) -> dict:
    head, _, body = text.removeprefix("---\n").partition("\n---\n")
    assert body.startswith("\n# ")
    return yaml.safe_load(head)


def test_a_folder_is_loaded_as_it_was_saved(model, tmp_path):
    assert model.save_pretrained(tmp_path / "plants") == tmp_path / "plants"
    assert sorted(p.name for p in (tmp_path / "plants").iterdir()) == ["README.md", "model.safetensors"]
    again = mw.load(tmp_path / "plants")
    assert again.classes == model.classes and again.extra == model.extra
    state = again.segmenter.state_dict()
    assert all(torch.equal(state[name], value) for name, value in model.segmenter.state_dict().items())
    model.save_pretrained(tmp_path / "plants", license="MIT")
    assert front((tmp_path / "plants" / "README.md").read_text())["license"] == "mit"


def test_the_page(model):
    text = card(model, "plants")
    facts = front(text)
    assert facts["license"] == "apache-2.0" and facts["library_name"] == "maskwright"
    assert {"image-segmentation", "supervised"} <= set(facts["tags"])
    assert "labels seen" not in facts and "ImageNet-1k classes" in text and "ab" * 32 in text
    assert "Labels read for training: 5 masks." in text
    assert "Labels read for selection: none." in text and "evaluation: 7 masks" in text
    assert "mw.load('plants')" in text
    rows = [line for line in text.splitlines() if line.startswith("| ") and line[2].isdigit()]
    assert len(rows) == len(NAMES) and "| 0 | ground | #" in rows[0]
    assert "<img" not in text and "a\\|b" in rows[1] and "\\[link\\](http" in rows[2]


def test_licences_and_many_classes():
    assert front(card(tiny("DINOv3"), "x")) | {"license_name": "DINOv3"} == front(card(tiny("DINOv3"), "x"))
    assert front(card(tiny("none needed"), "x"))["license_name"] == "unknown"
    assert front(card(tiny("a: b\n- c"), "x"))["license"] == "other", "text of a file breaks no front matter"
    many = tiny(names=tuple(f"class {i}" for i in range(MOST + 3)))
    assert "3 more stand in the model" in card(many, "x")


def test_somebody_elses_page_stays(model, tmp_path):
    (tmp_path / "README.md").write_text("# My garden\n")
    with pytest.raises(MaskwrightError, match="not a model's page"):
        model.save_pretrained(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["README.md"]
    with pytest.raises(MaskwrightError, match="is a file"):
        model.save_pretrained(tmp_path / "README.md")


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A hub of the test's own: a folder a repository."""
    root = tmp_path / "hub"
    asked: list[tuple] = []

    class Api:
        def __init__(self, **_):
            pass

        def create_repo(self, name, private, exist_ok):
            assert exist_ok
            asked.append(("create", name, private))
            (root / name).mkdir(parents=True, exist_ok=True)

        def upload_folder(self, repo_id, folder_path, commit_message):
            asked.append(("upload", repo_id, commit_message))
            shutil.copytree(folder_path, root / repo_id, dirs_exist_ok=True)

    def download(name, filename, revision=None):
        asked.append(("download", name, revision))
        if not (root / name / filename).exists():
            raise OSError("404: no such repository\nmore")
        return str(root / name / filename)

    monkeypatch.setattr(huggingface_hub, "HfApi", Api)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    monkeypatch.setattr(weights, "hub_reachable", lambda: True)
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.delenv("TRANSFORMERS_OFFLINE", raising=False)
    return root, asked, Api


def test_there_and_back(model, hub):
    root, asked, _ = hub
    place = model.push_to_hub("me/plants", private=True, message="first")
    assert place == "hf:me/plants" and asked == [("create", "me/plants", True), ("upload", "me/plants", "first")]
    assert "mw.load('hf:me/plants')" in (root / "me/plants/README.md").read_text()
    assert mw.load(place).classes == model.classes
    assert mw.load("hf:me/plants@v2").classes == model.classes and asked[-1] == ("download", "me/plants", "v2")


def test_what_the_hub_refuses(model, hub, monkeypatch):
    *_, api = hub

    def refuse(*_, **__):
        raise HfHubHTTPError("401: log in\nmore", response=SimpleNamespace(headers={}, request=None))

    with pytest.raises(MaskwrightError, match=r"does not give me/none/model.safetensors \(404") as error:
        mw.load("hf:me/none")
    assert "\n" not in str(error.value)
    for wrong in ("plants", "hf:../..", "me/plants/more", "hf:"):
        with pytest.raises(MaskwrightError, match="owner/name"):
            model.push_to_hub(wrong)
    with pytest.raises(MaskwrightError, match="owner/name"):
        mw.load("hf:../../etc/passwd")
    monkeypatch.setattr(api, "create_repo", refuse)
    with pytest.raises(MaskwrightError, match="hf auth login"):
        model.push_to_hub("me/plants")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(MaskwrightError, match="HF_HUB_OFFLINE"):
        model.push_to_hub("me/plants")


def test_without_a_hub_the_cache_is_asked(model, tmp_path, monkeypatch):
    monkeypatch.setattr(weights, "hub_reachable", lambda: False)
    monkeypatch.setattr(weights, "hub_cached", lambda *_: None)
    with pytest.raises(MaskwrightError, match="the model of me/plants is not in the local cache"):
        mw.load("hf:me/plants")
    model.save_pretrained(tmp_path / "cached")
    monkeypatch.setattr(weights, "hub_cached", lambda *_: tmp_path / "cached" / sharing.BUNDLE)
    assert mw.load("hf:me/plants").classes == model.classes
