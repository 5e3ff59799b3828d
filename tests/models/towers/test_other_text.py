"""Texts of towers that transformers saved or that name its models, held to its own pass where it is installed."""

from __future__ import annotations

import json
import shutil
import sys

import huggingface_hub
import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from tests.conftest import write_tiny_folder
from tests.models.towers.test_towers import TEXTS, transformers_folder
from tests.models.towers.tiny import VIT, config, make, write_folder

import maskwright as mw
from maskwright.engine.progress import Progress
from maskwright.errors import MaskwrightError
from maskwright.models.backbones.build import architecture_of, build_backbone
from maskwright.models.towers.other_text import SPECIAL, OtherText, has_clips_tokens, text_tower
from maskwright.models.towers.pairs import find_pair
from maskwright.models.towers.text import TextTower, clip_tokens

OPENAIS = ("image_mean", "image_std")


def write_clips_tokens(folder) -> None:
    """CLIP's vocabulary and merges as transformers keeps them."""
    own, theirs = clip_tokens(77), {new: old for old, new in SPECIAL.items()}
    (folder / "vocab.json").write_text(json.dumps({theirs.get(k, k): v for k, v in own.encoder.items()}))
    merges = sorted(own.bpe_ranks, key=own.bpe_ranks.get)
    (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(map(" ".join, merges)) + "\n")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A `CLIPModel` as transformers saves it, with CLIP's tokens and normalisation of its own."""
    place = tmp_path_factory.mktemp("theirs") / "clip"
    transformers_folder(place, make(config()).state_dict())
    write_clips_tokens(place)
    (place / "preprocessor_config.json").write_text(json.dumps(dict(zip(OPENAIS, [[0.4, 0.5, 0.6], [0.2, 0.25, 0.3]]))))
    return place


def test_a_folder_of_transformers_says_how_pictures_are_normalised(folder, tmp_path):
    found = build_backbone("clip", str(folder)).provenance
    assert found.mean == (0.4, 0.5, 0.6) and found.std == (0.2, 0.25, 0.3)
    other = shutil.copytree(folder, tmp_path / "other")
    (other / "preprocessor_config.json").unlink()
    (other / "processor_config.json").write_text(json.dumps({"image_processor": {"image_mean": [0.1, 0.2, 0.3]}}))
    assert build_backbone("clip", str(other)).provenance.mean == (0.1, 0.2, 0.3)
    described = json.loads((other / "config.json").read_text())
    described["vision_config"]["layer_norm_eps"] = 1e-4
    (other / "config.json").write_text(json.dumps(described))
    assert find_pair("clip", str(other)).shape.eps == 1e-4


def test_clips_own_tokens_are_known_and_others_need_transformers(folder, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    assert has_clips_tokens(folder) and isinstance(text_tower(find_pair("clip", str(folder))), TextTower)
    other = shutil.copytree(folder, tmp_path / "other")
    merges = (other / "merges.txt").read_text().splitlines()
    (other / "merges.txt").write_text("\n".join([*merges[:5], merges[6], merges[5], *merges[7:]]))
    assert not has_clips_tokens(other)
    with pytest.raises(MaskwrightError, match=r"tokenizer of its own.*pip install 'maskwright\[hf\]'"):
        text_tower(find_pair("clip", str(other)))
    write_folder(tmp_path / "roberta", config())
    named = {"model_cfg": config(hf_model_name="roberta-base")}
    (tmp_path / "roberta" / "open_clip_config.json").write_text(json.dumps(named))
    with pytest.raises(MaskwrightError, match=r"roberta-base.*pip install 'maskwright\[hf\]'"):
        text_tower(find_pair("clip", str(tmp_path / "roberta")))
    described = json.loads((other / "config.json").read_text())
    described["text_config"]["vocab_size"] = 100
    (other / "config.json").write_text(json.dumps(described))
    for file in ("vocab.json", "merges.txt"):
        (other / file).unlink()
    with pytest.raises(MaskwrightError, match=r"knows 100 tokens.*lay its tokenizer\.json"):
        text_tower(find_pair("clip", str(other)))
    monkeypatch.setitem(sys.modules, "open_clip", None)
    with pytest.raises(MaskwrightError, match=r"pip install 'maskwright\[clip\]'"):
        text_tower(find_pair("clip", str(folder)))


def test_a_repository_of_a_hub_is_a_folder_too(folder, tmp_path, monkeypatch):
    """From the local cache, which is all that there is without a hub."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    with pytest.raises(MaskwrightError, match=r"towers of me/towers.*--backbone clip --weights FOLDER"):
        find_pair("clip:hf:me/towers", None)
    with pytest.raises(MaskwrightError, match="OWNER/NAME"):
        find_pair("clip:hf:towers", None)
    repo = tmp_path / "hub" / "models--me--towers"
    shutil.copytree(folder, repo / "snapshots" / "abc")
    (repo / "refs").mkdir()
    (repo / "refs" / "main").write_text("abc")
    ours, same = build_backbone("clip", str(folder)), build_backbone("clip:hf:me/towers")
    assert same.key == ours.key and same.provenance.mean == ours.provenance.mean
    assert same.provenance.source == "hub: me/towers" and same.pair is not None and same.pair.folder is not None
    assert architecture_of("clip:hf:me/towers") == same.architecture
    photos = write_tiny_folder(tmp_path / "photos", count=2, masks=False)
    model = mw.train(
        photos, "maskclip", names="road,sky", backbone="clip:hf:me/towers", out=tmp_path / "run", device="cpu",
        settings={"words.short_side": 48, "words.prompts": "photo"}, report=False, progress=Progress(quiet=True),
    )  # fmt: skip
    picture = next((photos / "images").iterdir())
    again = mw.load(tmp_path / "run").with_names("road,sky")
    assert np.array_equal(again.predict(picture).confidence, model.predict(picture).confidence)
    assert model.with_names("tree,sky", folder).classes.names == ("tree", "sky"), "or from a folder"
    (repo / "snapshots" / "abc" / "model.safetensors").unlink()
    with pytest.raises(MaskwrightError, match=r"has no weights.*model\.safetensors"):
        find_pair("clip:hf:me/towers", None)


@pytest.mark.slow
def test_both_ways_give_what_transformers_gives(folder, monkeypatch):
    transformers = pytest.importorskip("transformers")
    model = transformers.CLIPModel.from_pretrained(folder).eval()
    asked = transformers.CLIPTokenizer.from_pretrained(folder)(TEXTS[:3], padding=True, return_tensors="pt")
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        both = model(**asked, pixel_values=images)
        tower = build_backbone("clip", str(folder))
        torch.testing.assert_close(
            torch.nn.functional.normalize(tower.picture_vectors(images), dim=1), both.image_embeds, rtol=1e-5, atol=1e-5
        )
    ours = text_tower(find_pair("clip", str(folder)))
    assert isinstance(ours, TextTower)
    torch.testing.assert_close(ours.encode(TEXTS[:3]), both.text_embeds, rtol=1e-5, atol=1e-5)
    monkeypatch.setitem(sys.modules, "open_clip", None)
    alone = text_tower(find_pair("clip", str(folder)))
    assert isinstance(alone, OtherText)
    torch.testing.assert_close(alone.encode(TEXTS[:3]), both.text_embeds, rtol=1e-5, atol=1e-5)
    with pytest.raises(MaskwrightError, match="tokens long"):
        alone.check(TEXTS[3] * 3, "long")


@pytest.mark.slow
def test_a_tokenizer_of_its_own(tmp_path):
    """Six words and letters; the end of a text is not its greatest token."""
    transformers = pytest.importorskip("transformers")
    letters = [*"abcdefghijklmnopqrstuvwxyz.", *(f"{c}</w>" for c in "abcdefghijklmnopqrstuvwxyz.")]
    vocab = {token: i for i, token in enumerate(["<|startoftext|>", "<|endoftext|>", *letters, "ca", "cat</w>"])}
    tokenizer = transformers.CLIPTokenizer(vocab=vocab, merges=[("c", "a"), ("ca", "t</w>")])
    side = {"num_hidden_layers": 2, "num_attention_heads": 2, "hidden_size": 32, "intermediate_size": 64}
    described = transformers.CLIPConfig(
        text_config={**side, "vocab_size": len(vocab), "max_position_embeddings": 40, "hidden_act": "gelu",
                     "layer_norm_eps": 1e-3, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1},
        vision_config={**side, "image_size": 32, "patch_size": 8, "hidden_act": "gelu", "layer_norm_eps": 1e-3},
        projection_dim=16,
    )  # fmt: skip
    torch.manual_seed(0)
    model = transformers.CLIPModel(described).eval()
    with torch.no_grad():
        for value in model.parameters():
            value.add_(0.1 * torch.randn_like(value))
    model.save_pretrained(tmp_path / "clip")
    tokenizer.save_pretrained(tmp_path / "clip")
    texts, images = ["a photo of a cat.", "zebra"], torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        both = model(**tokenizer(texts, padding=True, return_tensors="pt"), pixel_values=images)
        tower = build_backbone("clip", str(tmp_path / "clip"))
        torch.testing.assert_close(
            torch.nn.functional.normalize(tower.picture_vectors(images), dim=1), both.image_embeds, rtol=1e-5, atol=1e-5
        )
    found = text_tower(tower.pair)
    assert isinstance(found, OtherText) and len(found.tokenizer.encode("cat")) == 1
    torch.testing.assert_close(found.encode(texts), both.text_embeds, rtol=1e-5, atol=1e-5)
    photos = write_tiny_folder(tmp_path / "photos", count=2, masks=False)
    trained = mw.train(
        photos, "maskclip", names="cat,sky", backbone="clip", weights=tmp_path / "clip", out=tmp_path / "run",
        device="cpu", settings={"words.short_side": 48, "words.prompts": "photo"}, report=False,
        progress=Progress(quiet=True),
    )  # fmt: skip
    torch.testing.assert_close(
        trained.segmenter.classifier.vectors, found.encode(["a photo of a cat.", "a photo of a sky."])
    )
    with pytest.raises(MaskwrightError, match="tokens long"):
        trained.with_names("cat," + "z" * 50, tmp_path / "clip")


@pytest.mark.slow
def test_a_text_tower_that_open_clip_names(tmp_path):
    """RoBERTa of transformers beside CLIP's image tower, against open_clip's own pair of them."""
    transformers = pytest.importorskip("transformers")
    import open_clip

    words = ["<s>", "<pad>", "</s>", "<unk>", "<mask>", "Ġ", *"abcdefghijklmnopqrstuvwxyz.", "Ġa"]
    tokenizer = transformers.RobertaTokenizer(vocab={w: i for i, w in enumerate(words)}, merges=[("Ġ", "a")])
    text = transformers.RobertaConfig(
        vocab_size=len(words), hidden_size=24, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32,
        max_position_embeddings=60, pad_token_id=1, bos_token_id=0, eos_token_id=2,
    )  # fmt: skip
    text.save_pretrained(tmp_path / "roberta")
    tokenizer.save_pretrained(tmp_path / "roberta")
    described = {
        "embed_dim": 16, "vision_cfg": VIT,
        "text_cfg": {"hf_model_name": str(tmp_path / "roberta"), "hf_tokenizer_name": str(tmp_path / "roberta"),
                     "hf_pooler_type": "mean_pooler", "context_length": 40},
    }  # fmt: skip
    torch.manual_seed(0)
    told = described["text_cfg"] | {"hf_model_pretrained": False}
    model = open_clip.CustomTextCLIP(**{**described, "text_cfg": told}).eval()
    (tmp_path / "pair").mkdir()
    (tmp_path / "pair" / "open_clip_config.json").write_text(json.dumps({"model_cfg": described}))
    save_file(
        {k: v.clone().contiguous() for k, v in model.state_dict().items()},
        tmp_path / "pair" / "open_clip_model.safetensors",
    )
    texts = ["a photo of a cat.", "zebra"]
    asked = open_clip.tokenizer.HFTokenizer(str(tmp_path / "roberta"), context_length=40)(texts)
    with torch.no_grad():
        expected = model.encode_text(asked, normalize=True)
    found = text_tower(find_pair("clip", str(tmp_path / "pair")))
    torch.testing.assert_close(found.encode(texts), expected, rtol=1e-5, atol=1e-5)
    with pytest.raises(MaskwrightError, match="tokens long"):
        found.check("zebra " * 9, "zebra")
    shutil.rmtree(tmp_path / "roberta")
    with pytest.raises(MaskwrightError, match="transformers cannot read"):
        text_tower(find_pair("clip", str(tmp_path / "pair")))
