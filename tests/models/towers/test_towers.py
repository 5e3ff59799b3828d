"""Towers: loaded in every official format, held to open_clip's own forward pass."""

from __future__ import annotations

import json
import sys

import pytest
import torch
from safetensors.torch import save_file
from tests.models.towers.tiny import RESNET, VIT, config, make, register, write_folder

from maskwright.errors import MaskwrightError
from maskwright.models.backbones import build, weights
from maskwright.models.backbones.build import build_backbone, choose_backbone
from maskwright.models.parts.encoder import BackboneEncoder
from maskwright.models.parts.table import build_part, check_loadable
from maskwright.models.towers.image import ClipResNet, ClipViT, build_clip
from maskwright.models.towers.pairs import find_pair
from maskwright.models.towers.parts import JointEncoder, VocabularyClassifier
from maskwright.models.towers.shape import TowerShape
from maskwright.models.towers.surgery import LastBlock
from maskwright.models.towers.text import TextTower

TEXTS = ["a photo of a cat.", "two dogs", "", "a very " + "long " * 40 + "train"]


@pytest.fixture(scope="module")
def vit(tmp_path_factory):
    """A folder in open_clip's format, and open_clip's model."""
    folder = tmp_path_factory.mktemp("towers") / "vit"
    return folder, write_folder(folder, config())


def test_a_vision_transformer_gives_what_open_clip_gives(vit):
    folder, model = vit
    tower = build_backbone("clip", str(folder))
    assert isinstance(tower, ClipViT) and tower.pair is not None
    assert tower.provenance.mean == (0.4, 0.5, 0.6) and tower.provenance.labels_seen == "image captions"
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        tokens, _ = tower.joint_tokens(images, LastBlock("clip"))
        torch.testing.assert_close(tokens[:, 0], model.encode_image(images), rtol=1e-5, atol=1e-5)
        assert tower.dense(images).shape == (2, 32, 4, 4), "it is a backbone as any other"
        wide = tower.joint_maps(torch.randn(1, 3, 40, 64), LastBlock("value"))
    assert wide[0].shape == (1, 16, 5, 8) and wide[1].shape == (1, 32, 5, 8)


def test_a_resnet_gives_what_open_clip_gives(tmp_path):
    model = write_folder(tmp_path, config(RESNET))
    tower = build_backbone("clip", str(tmp_path))
    assert isinstance(tower, ClipResNet)
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(tower.model(images), model.encode_image(images), rtol=1e-5, atol=1e-5)
        words, keys = tower.joint_maps(images, LastBlock("value"))
        # One place alike everywhere and no position: any attention gives what each place gives for itself.
        pool = model.visual.attnpool
        torch.testing.assert_close(
            words[0, :, 1, 1], pool.c_proj(pool.v_proj(tower.dense(images, -1)[0, :, 1, 1])), rtol=1e-4, atol=1e-4
        )
    assert words.shape == (2, 16, 2, 2) and keys.shape == (2, 256, 2, 2)
    with pytest.raises(ValueError, match="ResNet"):
        tower.joint_maps(images, LastBlock("sclip"))


def test_texts_are_those_of_open_clip(vit):
    import open_clip

    folder, model = vit
    tower = TextTower(find_pair("clip", str(folder)))
    with torch.no_grad():
        expected = model.encode_text(open_clip.tokenize(TEXTS), normalize=True)
    torch.testing.assert_close(tower.encode(TEXTS[:2]), expected[:2], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(tower.encode(TEXTS), expected, rtol=1e-5, atol=1e-5)


def transformers_names(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """open_clip's tensors as transformers' `CLIPModel` names them, after its conversion script."""
    found = {"logit_scale": state["logit_scale"]}
    for side, before, out in (("vision_model", "visual.", "visual_projection"), ("text_model", "", "text_projection")):
        own = {k.removeprefix(before): v for k, v in state.items() if k.startswith("visual.") == bool(before)}
        found[f"{out}.weight"] = (own["proj"] if before else own["text_projection"]).T
        table = "patch_embedding" if before else "token_embedding"
        found[f"{side}.embeddings.{table}.weight"] = own["conv1.weight" if before else "token_embedding.weight"]
        found[f"{side}.embeddings.position_embedding.weight"] = own["positional_embedding"]
        if before:
            found[f"{side}.embeddings.class_embedding"] = own["class_embedding"]
        norms = {"pre_layrnorm": "ln_pre", "post_layernorm": "ln_post"} if before else {"final_layer_norm": "ln_final"}
        for end in ("weight", "bias"):
            found |= {f"{side}.{new}.{end}": own[f"{old}.{end}"] for new, old in norms.items()}
            for i in range(2):
                theirs, ours = f"{side}.encoder.layers.{i}", f"transformer.resblocks.{i}"
                for letter, part in zip("qkv", own[f"{ours}.attn.in_proj_{end}"].chunk(3)):
                    found[f"{theirs}.self_attn.{letter}_proj.{end}"] = part
                pairs = {"self_attn.out_proj": "attn.out_proj", "layer_norm1": "ln_1", "layer_norm2": "ln_2",
                         "mlp.fc1": "mlp.c_fc", "mlp.fc2": "mlp.c_proj"}  # fmt: skip
                found |= {f"{theirs}.{new}.{end}": own[f"{ours}.{old}.{end}"] for new, old in pairs.items()}
    return found


def transformers_folder(folder, state):
    side = {"num_hidden_layers": 2, "num_attention_heads": 2, "hidden_size": 32, "intermediate_size": 128}
    described = {
        "model_type": "clip", "projection_dim": 16,
        "vision_config": {**side, "image_size": 32, "patch_size": 8}, "text_config": side,
    }  # fmt: skip
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(described))
    save_file({k: v.contiguous() for k, v in transformers_names(state).items()}, folder / "model.safetensors")


@pytest.mark.parametrize("kind", ["training", "custom text", "half", "transformers"])
def test_official_formats_give_the_same_towers(vit, tmp_path, kind):
    folder, model = vit
    state, name, path = model.state_dict(), register(), tmp_path / "weights.pt"
    if kind == "training":
        torch.save({"epoch": 3, "state_dict": {f"module.{k}": v for k, v in state.items()}}, path)
    elif kind == "custom text":
        torch.save({k if k.startswith(("visual.", "logit")) else f"text.{k}": v for k, v in state.items()}, path)
    elif kind == "half":
        torch.save({k: v.half() for k, v in state.items()}, path)
    else:
        name, path = "clip", tmp_path / "folder"
        transformers_folder(path, state)
    ours, same = build_clip("clip", str(folder)), build_clip(name, str(path))
    loose = 1e-2 if kind == "half" else 0
    images = torch.randn(1, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(same.embed(images), ours.embed(images), rtol=loose, atol=loose)
    assert ours.pair is not None and same.pair is not None
    torch.testing.assert_close(
        TextTower(same.pair).encode(TEXTS), TextTower(ours.pair).encode(TEXTS), rtol=loose, atol=loose
    )
    assert (same.key == ours.key) == (kind != "half")


@pytest.mark.filterwarnings("ignore:.torch.jit:FutureWarning", "ignore:.*torch.jit:DeprecationWarning")
def test_openais_own_file_tells_its_activation_and_its_archive_is_refused_with_a_repair_that_works(vit, tmp_path):
    _, model = vit
    path = tmp_path / "openai.pt"

    class Archive(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x

    archive = Archive()
    archive.visual = torch.nn.Module()
    archive.register_buffer("input_resolution", torch.tensor(32))
    torch.jit.script(archive).save(str(path))
    with pytest.raises(MaskwrightError, match="TorchScript") as told:
        find_pair(register(), str(path))
    command = str(told.value).split('python -c "')[1].split('"')[0]
    exec(command.replace("'clip.pt'", repr(str(tmp_path / "clip.pt"))), {})
    assert torch.load(tmp_path / "clip.pt", weights_only=True).keys() == {"input_resolution"}
    (tmp_path / "open_clip_config.json").write_text(json.dumps({"model_cfg": config(quick_gelu=False)}))
    torch.save({**model.state_dict(), "input_resolution": torch.tensor(32)}, tmp_path / "clip.pt")
    assert find_pair("clip", str(tmp_path / "clip.pt")).shape.act == "quick_gelu"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"embed": 24}, "another shape"),
        ({"vision": VIT | {"layers": 3}}, "missing"),
        ({"vision": VIT | {"timm_model_name": "convnext_base"}}, "timm_model_name"),
        ({"vision": VIT | {"pool_type": "avg"}}, "pool_type"),
    ],
)
def test_a_tower_of_another_build_is_refused(vit, tmp_path, change, said):
    _, model = vit
    write_folder(tmp_path, config(), tensors=model.state_dict())
    (tmp_path / "open_clip_config.json").write_text(json.dumps({"model_cfg": config(**change)}))
    with pytest.raises(MaskwrightError, match=said):
        build_backbone("clip", str(tmp_path))


def test_a_text_tower_of_another_width_is_refused(vit, tmp_path):
    _, model = vit
    write_folder(tmp_path, config(), tensors=model.state_dict())
    for text, said in (({"width": 64}, "does not fit the text tower"), ({"tokenizer_mode": "clips"}, "tokenizer_mode"),
                       ({"vocab_size": 100}, "100 tokens")):  # fmt: skip
        (tmp_path / "open_clip_config.json").write_text(json.dumps({"model_cfg": config(**text)}))
        with pytest.raises(MaskwrightError, match=said):
            TextTower(find_pair("clip", str(tmp_path)))


def test_what_cannot_be_had_is_told_with_its_repair(tmp_path, monkeypatch):
    with pytest.raises(MaskwrightError, match=r"ViT-B-16"):
        find_pair("clip:ViT-B-61", "random")
    with pytest.raises(MaskwrightError, match="openai"):
        find_pair("clip:ViT-B-16:openia", "random")
    (tmp_path / "empty").mkdir()
    with pytest.raises(MaskwrightError, match="open_clip_config"):
        find_pair("clip", str(tmp_path / "empty"))
    torch.save(make(config()).state_dict(), tmp_path / "a.pt")
    with pytest.raises(MaskwrightError, match="does not say which network"):
        find_pair("clip", str(tmp_path / "a.pt"))
    torch.save({"conv1.weight": torch.zeros(1)}, tmp_path / "b.pt")
    with pytest.raises(MaskwrightError, match="holds no CLIP"):
        build_clip(register(), str(tmp_path / "b.pt"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    for module in (weights, build):
        monkeypatch.setattr(module, "hub_cached", lambda *_: None)
    with pytest.raises(MaskwrightError, match="--weights FILE"):
        build_backbone("clip:ViT-B-16")
    with pytest.raises(MaskwrightError, match="--backbone clip --weights FOLDER"):
        choose_backbone("joint")
    with pytest.raises(MaskwrightError, match="output stride 8"):
        build_backbone("clip:ViT-B-16", "random", 8)
    monkeypatch.setitem(sys.modules, "open_clip", None)
    with pytest.raises(MaskwrightError, match=r"pip install 'maskwright\[clip\]'"):
        build_backbone("clip:ViT-B-16", "random")


def test_openais_activation_comes_with_its_tag():
    assert find_pair("clip:ViT-B-16", "random").shape.act == "gelu"
    assert find_pair("clip:ViT-B-16:openai", "random").shape.act == "quick_gelu"
    assert find_pair("clip:RN50", "random").shape.heads == 32


def test_a_build_is_a_line_that_is_read_back(vit):
    for described in (config(), config(RESNET, quick_gelu=False)):
        shape = TowerShape.of(described, "tiny")
        assert TowerShape.parse(shape.text()) == shape
    assert TowerShape.parse("clip:ViT-B-16") is None
    text = TowerShape.of(config(), "tiny").text()
    for damage in (text.replace("width=32", "width=33"), text.replace("layers=2", "layers=x"), f"{text}/more=1",
                   text.replace("heads=2", "heads=0"), text.replace("act=quick_gelu", "act=relu")):  # fmt: skip
        with pytest.raises(MaskwrightError):
            TowerShape.parse(damage)


def test_parts_are_built_again_without_open_clip(vit, monkeypatch):
    folder, _ = vit
    tower = build_clip("clip", str(folder))
    monkeypatch.setitem(sys.modules, "open_clip", None)
    for part in (JointEncoder(tower, "sclip", keys=True), BackboneEncoder(tower, layers=[0, 1])):
        check_loadable(part)
    encoder = JointEncoder(tower, "neighbour", rest=False, std=2.0, keys=True)
    again = build_part(json.loads(json.dumps(encoder.spec())))
    again.load_state_dict(encoder.state_dict())
    images = torch.randn(1, 3, 32, 48)
    with torch.no_grad():
        assert torch.equal(again.eval()(images), encoder.eval()(images))
    assert encoder(images).shape[1] == encoder.width == 16 + 32


def test_the_classifier_of_words():
    torch.manual_seed(0)
    vectors = torch.nn.functional.normalize(torch.randn(4, 6), dim=1)
    owner, x = torch.tensor([0, 0, 1, 2]), torch.randn(1, 6, 2, 3)
    cosines = torch.einsum("bdhw,pd->bphw", x / x.norm(dim=1, keepdim=True), vectors)
    plain = VocabularyClassifier(vectors, owner, 3)
    best = torch.stack([cosines[:, :2].amax(1), cosines[:, 2], cosines[:, 3]], 1)
    torch.testing.assert_close(plain(x), best * 100)
    # A background by threshold: wins where no word is as probable, and has no words of its own.
    threshold = VocabularyClassifier(vectors[:3], owner[:3] + 1, 3, scale=2.0, background=0, threshold=0.55)
    sure = (cosines[:, :3] * 2).softmax(1).amax(1)
    assert torch.equal(threshold(x).argmax(1) == 0, sure < 0.55) and 0 < int((sure < 0.55).sum()) < 6
    threshold.check_tensors()
    broken = VocabularyClassifier(vectors, owner, 3)
    broken.owner[3] = 1
    with pytest.raises(ValueError, match="expected each of 3"):
        broken.check_tensors()
    # Prompt denoising takes away what is nowhere sure, but not all that there is.
    few = VocabularyClassifier(vectors, owner, 3, denoise=1.0, scale=1e-3)
    assert torch.equal(few(x).argmax(1), plain(x).argmax(1)) and int(plain(x).argmax(1).max()) > 0
    # With keys that are alike everywhere all places vote alike.
    both = VocabularyClassifier(vectors, owner, 3, scale=10.0, denoise=0.5, smooth=1.0)
    logits = both(torch.cat([x, torch.ones(1, 5, 2, 3)], 1))
    assert torch.allclose(logits, logits[:, :, :1, :1].expand_as(logits), atol=1e-3) and float(logits.max()) <= 10
