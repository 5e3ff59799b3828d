"""Official checkpoint formats, written with random values: the loaded features equal the original's."""

from __future__ import annotations

import argparse
import pickle
import re

import pytest
import torch
import torchvision
from safetensors.torch import save_file
from torch import Tensor

from maskwright.errors import MaskwrightError
from maskwright.models.backbones.build import build_backbone

VIT = {"img_size": 32, "depth": 2, "embed_dim": 48, "num_heads": 3}
DINOV2 = {"img_size": 28, "depth": 2, "embed_dim": 48, "num_heads": 3}


def scrambled(name: str, **options):
    """A backbone whose tensors are all random, so that no two can be confused."""
    torch.manual_seed(0)
    backbone = build_backbone(name, "random", **options)
    with torch.no_grad():
        for tensor_name, tensor in backbone.model.state_dict().items():
            if tensor.is_floating_point():
                tensor.copy_(
                    torch.rand_like(tensor) + 0.5 if "running_var" in tensor_name else torch.randn_like(tensor) * 0.2
                )
    return backbone


def assert_same(original, path, name: str, **options) -> None:
    loaded = build_backbone(name, str(path), **options)
    assert loaded.key == original.key
    x = torch.randn(1, 3, *(2 * s for s in (original.multiple_of, original.multiple_of)))
    torch.testing.assert_close(loaded.dense(x), original.dense(x), rtol=0, atol=0)


def prefixed(state: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {prefix + name: value.clone() for name, value in state.items()}


@pytest.mark.parametrize(
    "wrap",
    [
        lambda s: s,
        lambda s: {"teacher": prefixed(s, "backbone.") | {"head.mlp.0.weight": torch.zeros(1)}, "epoch": 3},
        lambda s: {
            "student": {k: v + 1 for k, v in prefixed(s, "module.backbone.").items()},
            "teacher": prefixed(s, "backbone."),
            "args": argparse.Namespace(arch="vit_small", lr=0.1),
        },
        lambda s: {"student": prefixed(s, "module.backbone.")},
        lambda s: {
            "state_dict": prefixed(s, "module.base_encoder.")
            | {k: v + 1 for k, v in prefixed(s, "module.momentum_encoder.").items()}
            | {
                "module.base_encoder.head.0.weight": torch.zeros(3),
                "module.predictor.0.weight": torch.zeros(3),
            }
        },
        lambda s: {"state_dict": prefixed(s, "module.")},
        lambda s: {"model": prefixed(s, "_orig_mod.")},
    ],
    ids=["dino", "dino teacher", "dino full", "dino student", "moco v3", "module", "compiled"],
)
def test_vit_formats(tmp_path, wrap):
    original = scrambled("vit_tiny_patch16_224", **VIT)
    torch.save(wrap(original.model.state_dict()), tmp_path / "w.pth")
    assert_same(original, tmp_path / "w.pth", "vit_tiny_patch16_224", **VIT)


@pytest.mark.parametrize("chunks", [False, True])
def test_dinov2(tmp_path, chunks: bool):
    original = scrambled("vit_small_patch14_dinov2", **DINOV2)
    official = {k: v.clone() for k, v in original.model.state_dict().items()}
    assert "blocks.0.ls1.gamma" in official
    if chunks:  # FSDP training keeps blocks in chunks: blocks.CHUNK.NUMBER
        official = {k.replace("blocks.", "blocks.0.") if k.startswith("blocks.") else k: v for k, v in official.items()}
    official["mask_token"] = torch.zeros(1, 48)
    torch.save(official, tmp_path / "dinov2.pth")
    assert_same(original, tmp_path / "dinov2.pth", "dinov2_small", **DINOV2)


def test_dinov2_with_registers(tmp_path):
    original = scrambled("vit_small_patch14_reg4_dinov2", **DINOV2)
    state = {k: v.clone() for k, v in original.model.state_dict().items()}
    of_class = torch.randn(1, 1, 48)
    official = {k: v for k, v in state.items() if k not in ("reg_token", "cls_token", "pos_embed")}
    official["register_tokens"] = state["reg_token"]
    official["cls_token"] = state["cls_token"] - of_class
    official["pos_embed"] = torch.cat([of_class, state["pos_embed"]], 1)
    official["mask_token"] = torch.zeros(1, 48)
    torch.save(official, tmp_path / "reg.pth")
    loaded = build_backbone("dinov2_small_reg", str(tmp_path / "reg.pth"), **DINOV2)
    x = torch.randn(1, 3, 28, 42)
    torch.testing.assert_close(loaded.dense(x), original.dense(x))
    torch.testing.assert_close(loaded.embed(x), original.embed(x))


@pytest.mark.parametrize("name", ["vit_small_patch16_dinov3", "vit_small_patch16_dinov3_qkvb"])
def test_dinov3(tmp_path, name: str):
    options = {"img_size": 32, "depth": 2, "embed_dim": 48, "num_heads": 2}
    original = scrambled(name, **options)
    official = {}
    for key, value in original.model.state_dict().items():
        key = key.replace("gamma_1", "ls1.gamma").replace("gamma_2", "ls2.gamma").replace("reg_token", "storage_tokens")
        if key.endswith("q_bias"):
            v = original.model.state_dict()[key.replace("q_bias", "v_bias")]
            official[key.replace("q_bias", "qkv.bias")] = torch.cat([value, torch.zeros_like(value), v])
        elif not key.endswith(("k_bias", "v_bias")):
            official[key] = value.clone()
    for i in range(2):
        official.setdefault(f"blocks.{i}.attn.qkv.bias", torch.zeros(144))
        official[f"blocks.{i}.attn.qkv.bias_mask"] = torch.zeros(144)
    official["rope_embed.periods"], official["mask_token"] = torch.zeros(6), torch.zeros(1, 48)
    torch.save(official, tmp_path / "dinov3.pth")
    assert_same(original, tmp_path / "dinov3.pth", name, **options)


@pytest.mark.parametrize(
    "wrap",
    [
        lambda s: s,
        lambda s: {
            "state_dict": prefixed(s, "module.encoder_q.")
            | {k: v + 1 for k, v in prefixed(s, "module.encoder_k.").items()}
            | {"module.queue": torch.zeros(3), "module.encoder_q.fc.0.weight": torch.zeros(2)},
            "optimizer": {"state": {}},
        },
        lambda s: prefixed(s, "module.") | {"module.prototypes.weight": torch.zeros(2)},
        lambda s: {"state_dict": prefixed(s, "module.") | {"module.projection_head.0.weight": torch.zeros(2)}},
    ],
    ids=["torchvision", "moco v1 and v2", "swav", "pass"],
)
def test_resnet_formats_against_torchvision(tmp_path, wrap):
    torch.manual_seed(0)
    reference = torchvision.models.resnet18(weights=None).eval()
    for module in reference.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
    torch.save(wrap(reference.state_dict()), tmp_path / "r.pth")
    loaded = build_backbone("resnet18", str(tmp_path / "r.pth"))
    x = torch.randn(1, 3, 64, 64)
    trunk = torch.nn.Sequential(*list(reference.children())[:-2])
    with torch.inference_mode():
        torch.testing.assert_close(loaded.dense(x, -1), trunk(x), rtol=1e-4, atol=1e-4)


def test_densenet_against_torchvision(tmp_path):
    torch.manual_seed(0)
    reference = torchvision.models.densenet121(weights=None).eval()
    # Its published file is older than the names of its layers.
    numbered = {re.sub(r"(denselayer\d+\.(?:norm|conv))", r"\1.", k): v for k, v in reference.state_dict().items()}
    assert "features.denseblock1.denselayer1.conv.2.weight" in numbered
    torch.save(numbered, tmp_path / "d.pth")
    loaded = build_backbone("densenet121", str(tmp_path / "d.pth"))
    x = torch.randn(1, 3, 64, 64)
    with torch.inference_mode():
        expected = torch.relu(reference.features(x))
        torch.testing.assert_close(loaded.dense(x, -1), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["swin_tiny_patch4_window7_224", "swinv2_tiny_window8_256"])
def test_swin_of_its_authors(tmp_path, name: str):
    options = {"embed_dim": 24, "depths": (1, 2, 1, 1), "num_heads": (1, 2, 4, 8)}
    original = scrambled(name, **options)
    official = {}
    for key, value in original.model.state_dict().items():
        if match := re.match(r"layers\.(\d)\.downsample\.(.+)", key):
            key = f"layers.{int(match[1]) - 1}.downsample.{match[2]}"
        official[key] = value
    made = ["attn.relative_position_index", "attn.relative_coords_table", "attn_mask"]
    official |= {f"layers.1.blocks.1.{k}": torch.zeros(2, 2) for k in made}
    official |= {"head.weight": torch.zeros(2, 192), "head.bias": torch.zeros(2)}
    assert "layers.0.downsample.norm.weight" in official and "layers.3.downsample.norm.weight" not in official
    torch.save({"model": official}, tmp_path / "swin.pth")
    assert_same(original, tmp_path / "swin.pth", name, **options)


def test_vit_against_torchvision(tmp_path):
    torch.manual_seed(0)
    reference = torchvision.models.VisionTransformer(32, 16, 2, 3, 48, 192).eval()
    for parameter in reference.parameters():
        torch.nn.init.normal_(parameter, 0, 0.2)
    torch.save(reference.state_dict(), tmp_path / "v.pth")
    loaded = build_backbone("vit_tiny_patch16_224", str(tmp_path / "v.pth"), **VIT)
    x = torch.randn(2, 3, 32, 32)
    with torch.inference_mode():
        tokens = torch.cat([reference.class_token.expand(2, -1, -1), reference._process_input(x)], 1)
        expected = reference.encoder(tokens)
        torch.testing.assert_close(loaded.embed(x), expected[:, 0], rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(loaded.dense(x).flatten(2).mT, expected[:, 1:], rtol=1e-4, atol=1e-4)


def test_position_embedding_of_another_size_is_resized(tmp_path):
    original = scrambled("vit_tiny_patch16_224", **VIT)
    save_file(original.model.state_dict(), tmp_path / "w.safetensors")
    larger = build_backbone("vit_tiny_patch16_224", str(tmp_path / "w.safetensors"), **{**VIT, "img_size": 64})
    x = torch.randn(1, 3, 64, 64)
    torch.testing.assert_close(larger.dense(x), original.dense(x), rtol=1e-4, atol=1e-4)


def test_what_does_not_fit_is_refused(tmp_path):
    original = scrambled("vit_tiny_patch16_224", **VIT)
    path = tmp_path / "w.pth"
    torch.save(original.model.state_dict(), path)
    with pytest.raises(MaskwrightError, match="too many"):
        build_backbone("vit_tiny_patch16_224", str(path), **{**VIT, "depth": 1})
    with pytest.raises(MaskwrightError, match="missing"):
        build_backbone("vit_tiny_patch16_224", str(path), **{**VIT, "depth": 3})
    with pytest.raises(MaskwrightError, match="another shape"):
        build_backbone("vit_tiny_patch16_224", str(path), **{**VIT, "embed_dim": 96})
    with pytest.raises(MaskwrightError, match="does not fit"):
        build_backbone("resnet18", str(path))
    torch.save({"epoch": 1}, path)
    with pytest.raises(MaskwrightError, match="no tensors"):
        build_backbone("resnet18", str(path))


class Danger:
    """Runs code when it is unpickled."""

    def __reduce__(self):
        return (pytest.fail, ("the pickle was executed",))


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize(
    "damage", ["danger", "plain pickle", "text", "empty", "truncated", "list", "missing", "folder"]
)
def test_files_that_are_no_weights(tmp_path, damage: str):
    path = tmp_path / "w.pth"
    if damage == "danger":
        torch.save({"a": Danger()}, path)
    elif damage == "plain pickle":
        path.write_bytes(pickle.dumps(Danger()))
    elif damage == "text":
        path.write_text("no weights")
    elif damage == "empty":
        path.write_bytes(b"")
    elif damage == "truncated":
        torch.save({"conv1.weight": torch.zeros(1000)}, path)
        path.write_bytes(path.read_bytes()[:800])
    elif damage == "list":
        torch.save([torch.zeros(1)], path)
    elif damage == "folder":
        path.mkdir()
    with pytest.raises(MaskwrightError) as error:
        build_backbone("resnet18", str(path))
    assert "\n" not in str(error.value)


def test_damaged_safetensors(tmp_path):
    path = tmp_path / "w.safetensors"
    for content in (b"", b"\x80\x04N.", b"\xff" * 64):
        path.write_bytes(content)
        with pytest.raises(MaskwrightError, match="safetensors"):
            build_backbone("resnet18", str(path))
