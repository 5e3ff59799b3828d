"""GroupViT's towers: read in both official layouts, written in transformers', held to open_clip's and transformers'
own passes."""

from __future__ import annotations

import json
import re
from dataclasses import replace

import open_clip
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from maskwright.errors import MaskwrightError
from maskwright.models.backbones.build import build_backbone, choose_backbone
from maskwright.models.joining import backbone_of
from maskwright.models.networks.build import build_network
from maskwright.models.parts.table import build_part, check_loadable
from maskwright.models.towers.groupvit.files import MULTI, find_group_pair, transformers_names, wanted, write_pair
from maskwright.models.towers.groupvit.network import TextEncoder
from maskwright.models.towers.groupvit.parts import GroupClassifier, GroupEncoder
from maskwright.models.towers.groupvit.shape import GroupShape
from maskwright.models.towers.groupvit.text import GroupText
from maskwright.models.towers.groupvit.tower import GroupTower

TINY = GroupShape(
    image=32, patch=8, width=24, heads=2, depths=(2, 1, 1), groups=(6, 4), embed=16, hidden=32, words=64, layers=2
)

TWO_HEADS = replace(TINY, words=128)


def random_tensors(shape: GroupShape = TINY) -> dict[str, Tensor]:
    torch.manual_seed(0)
    found = {}
    for name, like in wanted(shape).items():
        if not like.is_floating_point():
            found[name] = torch.tensor(3)
        elif name.endswith("running_var"):
            found[name] = torch.rand(like.shape) + 0.5
        else:
            found[name] = torch.randn(like.shape) / (like.shape[-1] ** 0.5 if like.ndim > 1 else 4)
    return found | {MULTI: torch.tensor(1.25)}


def as_the_authors(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Their names, spelled out here once more; projectors are convolutions."""
    found: dict[str, Tensor] = {}
    for name, value in tensors.items():
        new = {"image.log_scale": "logit_scale", MULTI: "multi_label_logit_scale"}.get(name, name)
        new = new.replace("image.encoder.", "img_encoder.").replace(
            "text.encoder.blocks", "text.encoder.transformer.resblocks"
        )
        new = new.replace("text.encoder.", "text_encoder.")
        for side, theirs in (("image.projector", "img_projector"), ("text.projector", "text_projector")):
            for number, word in (("0", "linear_hidden.0"), ("1", "linear_hidden.1"), ("3", "linear_out")):
                new = new.replace(f"{side}.{number}.", f"{theirs}.{word}.")
        if new.startswith("text_encoder.transformer"):
            for ours, theirs in (
                ("attn.qkv.", "attn.in_proj_"), ("attn.proj.", "attn.out_proj."), ("norm1", "ln_1"), ("norm2", "ln_2"),
                ("mlp.fc1", "mlp.c_fc"), ("mlp.fc2", "mlp.c_proj"),
            ):  # fmt: skip
                new = new.replace(ours, theirs)
        found[new] = value[..., None] if re.search(r"projector\.linear_(hidden\.0|out)\.weight", new) else value
    return found


def test_both_official_layouts_give_the_same_tensors(tmp_path):
    """The authors' in fp16 under an entry of its own, transformers' in fp32."""
    tensors = random_tensors()
    theirs = as_the_authors(tensors)
    assert {"img_encoder.layers.0.downsample.assign.q_proj.weight", "text_encoder.ln_final.weight"} <= theirs.keys()
    torch.save({"model": {k: v.half() for k, v in theirs.items()}, "epoch": 30}, tmp_path / "theirs.pth")
    write_pair(tmp_path / "hf", TINY, tensors)
    for name, place, near in ((TINY.text(), "theirs.pth", 1e-3), ("groupvit", "hf", 0.0)):
        found = find_group_pair(name, str(tmp_path / place))
        assert found.shape == TINY
        read = found.without_tensors().tensors()
        assert read.keys() == tensors.keys()
        assert all(torch.allclose(read[k].float(), v.float(), atol=near) for k, v in tensors.items())


def test_names_are_those_of_transformers():
    """Some that its documentation and conversion script name."""
    assert transformers_names("image.encoder.layers.1.blocks.0.attn.qkv.weight") == tuple(
        f"vision_model.encoder.stages.1.layers.0.self_attn.{k}_proj.weight" for k in "qkv"
    )
    for ours, theirs in (
        ("image.encoder.pos_embed", "vision_model.embeddings.position_embeddings"),
        ("image.encoder.patch_embed.norm.bias", "vision_model.embeddings.layernorm.bias"),
        ("image.encoder.layers.0.group_token", "vision_model.encoder.stages.0.group_token"),
        (
            "image.encoder.layers.0.downsample.pre_assign_attn.attn.proj.weight",
            "vision_model.encoder.stages.0.downsample.pre_assign_attn.attn.out_proj.weight",
        ),
        (
            "image.encoder.layers.0.downsample.pre_assign_attn.norm2.weight",
            "vision_model.encoder.stages.0.downsample.pre_assign_attn.norm2.weight",
        ),
        (
            "image.encoder.layers.0.blocks.1.attn.proj.bias",
            "vision_model.encoder.stages.0.layers.1.self_attn.out_proj.bias",
        ),
        ("image.projector.3.weight", "visual_projection.3.weight"),
        ("text.encoder.positional_embedding", "text_model.embeddings.position_embedding.weight"),
        ("text.encoder.blocks.0.mlp.fc1.weight", "text_model.encoder.layers.0.mlp.fc1.weight"),
        ("image.log_scale", "logit_scale"),
    ):
        assert transformers_names(ours) == (theirs,)


@pytest.mark.slow
def test_towers_are_those_of_transformers(tmp_path):
    """Skipped where transformers is not installed; the key names above are then what is known of it."""
    transformers = pytest.importorskip("transformers")
    write_pair(tmp_path, TWO_HEADS, random_tensors(TWO_HEADS))
    assert GroupShape.described(transformers.GroupViTConfig().to_dict()) == GroupShape()
    model, told = transformers.GroupViTModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not told["missing_keys"] and set(told["unexpected_keys"]) <= {"multi_label_logit_scale"}
    images, texts = torch.randn(3, 3, 32, 32), open_clip.tokenize(["a cat", "two dogs on a green lawn"])
    tower = build_backbone("groupvit", str(tmp_path))
    assert isinstance(tower, GroupTower) and tower.pair is not None
    with torch.no_grad():
        theirs = model.eval()(input_ids=texts, pixel_values=images)
        ours = tower.tower.projector(tower.grouped(images).average)
        words = GroupText.of(tower.pair).tower(texts)
    unit = torch.nn.functional.normalize
    torch.testing.assert_close(unit(ours, dim=-1), theirs.image_embeds, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(unit(words, dim=-1), theirs.text_embeds, rtol=1e-5, atol=1e-5)


def test_the_paper_s_description_is_the_paper_s_build():
    """What transformers' `GroupViTConfig` says by default, the last stage's number of groups among it."""
    vision = {"depths": [6, 3, 3], "num_group_tokens": [64, 8, 0], "num_output_groups": [64, 8, 8], "image_size": 224}
    record = {"model_type": "groupvit", "projection_dim": 256, "vision_config": vision, "text_config": {}}
    assert GroupShape.described(record) == GroupShape()
    vision["num_output_groups"] = [32, 8, 8]
    with pytest.raises(ValueError, match="num_output_groups"):
        GroupShape.described(record)
    assert GroupShape.described(TINY.description()) == TINY


def test_texts_are_those_of_open_clip():
    """Its text transformer with the projection taken away, on the same weights."""
    torch.manual_seed(0)
    vision = {"image_size": 8, "patch_size": 8, "layers": 1, "width": 64}
    text = {"context_length": 77, "vocab_size": 49408, "width": 128, "heads": 2, "layers": 2}
    clip = open_clip.CLIP(128, vision, text, quick_gelu=True).eval()
    state = {}
    for name, value in clip.state_dict().items():
        for theirs, ours in (
            ("transformer.resblocks", "blocks"), ("attn.in_proj_", "attn.qkv."), ("attn.out_proj", "attn.proj"),
            ("ln_1", "norm1"), ("ln_2", "norm2"), ("mlp.c_fc", "mlp.fc1"), ("mlp.c_proj", "mlp.fc2"),
        ):  # fmt: skip
            name = name.replace(theirs, ours)
        state[name] = value
    ours = TextEncoder(TWO_HEADS).eval()
    ours.load_state_dict({k: state[k] for k in ours.state_dict()})
    tokens = open_clip.tokenize(["a cat", "", "a very " + "long " * 40 + "train"])
    with torch.no_grad():
        clip.text_projection.copy_(torch.eye(128))
        torch.testing.assert_close(ours(tokens), clip.encode_text(tokens), rtol=1e-5, atol=1e-5)


def test_a_tower_is_a_backbone_and_its_parts_are_built_again(tmp_path):
    tower = build_backbone(TINY.text(), "random")
    assert isinstance(tower, GroupTower) and tower.groups == 4 and not tower.joint_width
    x = torch.randn(2, 3, 32, 48)
    with torch.no_grad():
        assert tower.dense(x).shape == (2, 24, 4, 6) == tower.dense(x, 0, "k").shape
        assert tower.embed(x).shape == (2, 24)
        vectors = torch.nn.functional.normalize(torch.randn(5, 16), dim=1)
        classifier = GroupClassifier(vectors, torch.tensor([0, 1, 1, 2, 3]), 4, 14.0, 4, top=2, enlarge=8)
        encoder = GroupEncoder(tower)
        logits = classifier(encoder(x))
    assert logits.shape == (2, 4, 32, 48) and encoder(x).shape[1] == encoder.width == 4 + 5 * 16
    for part in (encoder, classifier):
        check_loadable(part)
    assert build_part(json.loads(json.dumps(encoder.spec()))).width == encoder.width
    found = backbone_of(encoder)
    assert found is not None and found[0] is tower
    assert classifier.size((1024, 1024)) == (2048, 2048), "less where all classes' maps would be too large"
    with pytest.raises(MaskwrightError, match="a segmentation network on groupvit"):
        build_network("auto", tower, 3)
    with pytest.raises(ValueError, match="multiples of the patch"):
        tower.dense(torch.randn(1, 3, 30, 32))


def test_what_does_not_fit_is_said(tmp_path, monkeypatch):
    tensors = random_tensors()
    write_pair(tmp_path / "hf", TINY, tensors)
    whole = load_file(tmp_path / "hf" / "model.safetensors")
    save_file({k: v for k, v in whole.items() if k != "visual_projection.3.bias"}, tmp_path / "less.safetensors")
    save_file({"conv1.weight": torch.zeros(1)}, tmp_path / "other.safetensors")
    (tmp_path / "clip").mkdir()
    (tmp_path / "clip" / "config.json").write_text('{"model_type": "clip"}')
    for name, place, said in (
        (TINY.text(), "less.safetensors", r"lacks visual_projection\.3\.bias"),
        (TINY.text(), "other.safetensors", "holds no GroupViT: its tensors are conv1"),
        ("groupvit", "hf/model.safetensors", r"has .*, not "),
        ("groupvit:small", "hf", "leave the name out"),
        ("groupvit", "clip", "describes no GroupViT"),
        ("groupvit", "missing.pth", "missing"),
        ("groupvit:large", None, "unknown GroupViT"),
        ("groupvit:width=many", None, "numbers, as groupvit:width"),
        ("groupvit:width=25", None, "whole number"),
        ("groupvit:depths=1+1", None, "groups of each stage"),
    ):
        with pytest.raises(MaskwrightError, match=said):
            build_backbone(name, None if place is None else str(tmp_path / place))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(MaskwrightError, match="--backbone groupvit:small --weights random"):
        choose_backbone("groups")
    with pytest.raises(MaskwrightError, match="output stride 8"):
        build_backbone("groupvit:small", "random", 8)
