"""PASS's released formats, written with random values under their own names."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torchvision
from torch import nn

from maskwright.errors import MaskwrightError
from maskwright.methods.unsupervised.pass_.network import PassNetwork
from maskwright.methods.unsupervised.pass_.official import official_segmenter, read_centroids, read_pass_checkpoint
from maskwright.models.backbones.build import build_backbone
from maskwright.models.bundle import load_bundle, save_bundle
from maskwright.models.parts.attended_clusters import PixelAttention

F_, HIDDEN, D = 512, 24, 8


def scramble(module: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    with torch.no_grad():
        for name, t in module.state_dict().items():
            if t.is_floating_point():
                t.copy_(torch.rand_like(t) + 0.5 if "running_var" in name else torch.randn_like(t) * 0.1)
    return module.eval()


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """The three checkpoints and centroids, and the modules that they were taken from."""
    folder = tmp_path_factory.mktemp("pass")
    resnet = scramble(torchvision.models.resnet18(weights=None))
    trunk = {k: v for k, v in resnet.state_dict().items() if not k.startswith("fc.")}
    network = scramble(PassNetwork(build_backbone("resnet18", "random"), (3, 2), HIDDEN, D, True))
    gate = scramble(PixelAttention(F_))
    heads = {}
    for old, module in (
        ("projection_head.", network.image_head),
        ("projection_head_pixel.", network.pixel_head),
        ("predictor_head_pixel.", network.predictor),
        ("projection_head_pixel_shallow.projection_head_pixel3.", network.shallow[0].mapping),
        ("projection_head_pixel_shallow.projection_head_pixel2.", network.shallow[1].mapping),
        ("projection_head_shallow.projection_head_shallow3.", network.shallow[0].mlp),
        ("projection_head_shallow.projection_head_shallow2.", network.shallow[1].mlp),
    ):
        heads |= {old + k: v for k, v in module.state_dict().items()}
    attention = {f"fbg.atten.{k}": v for k, v in gate.gate.state_dict().items()}
    attention["fbg.threshold"] = gate.offset.detach().reshape(1, F_, 1, 1)
    image = {f"projection_head.{k}": v for k, v in network.image_head.state_dict().items()}
    prototypes = {"prototypes.weight": torch.randn(20, D)}
    last = {"last_layer.weight": torch.randn(51, F_, 1, 1), "last_layer.bias": torch.randn(51)}
    kinds = {
        "pretrained": trunk | heads | prototypes,
        "pixelatt": trunk | image | prototypes | attention,
        "finetuning": trunk | last,
    }
    for kind, state in kinds.items():
        wrapped = {"epoch": 100, "state_dict": {f"module.{k}": v for k, v in state.items()}}
        torch.save(wrapped, folder / f"pass50_{kind}.pth.tar")
    np.save(folder / "pass50_centroids.npy", np.random.default_rng(0).normal(size=(50, F_)).astype(np.float32))
    return folder, resnet, network, gate, last


@pytest.mark.parametrize("kind", ["pretrained", "pixelatt", "finetuning"])
def test_each_kind_is_recognised_and_is_a_backbone(files, kind):
    folder, resnet = files[:2]
    found = read_pass_checkpoint(folder / f"pass50_{kind}.pth.tar")
    assert found.kind == kind and found.architecture == "resnet18"
    backbone = build_backbone("resnet18", str(folder / f"pass50_{kind}.pth.tar"))
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        y = resnet.maxpool(resnet.relu(resnet.bn1(resnet.conv1(x))))
        y = resnet.layer4(resnet.layer3(resnet.layer2(resnet.layer1(y))))
        torch.testing.assert_close(backbone.dense(x, -1), y)


def test_heads_load_strictly_and_give_the_same(files):
    folder, _, network = files[:3]
    found = read_pass_checkpoint(folder / "pass50_pretrained.pth.tar")
    assert found.stages == (3, 2) and found.prototypes is not None and found.prototypes.shape == (20, D)
    mine = PassNetwork(build_backbone("resnet18", "random"), found.stages, HIDDEN, D, True).eval()
    missing = mine.load_state_dict(found.heads, strict=False)
    assert not missing.unexpected_keys and all(k.startswith("backbone.") for k in missing.missing_keys)
    mine.backbone.load_state_dict(network.backbone.state_dict())
    with torch.no_grad():
        a, b = mine(torch.ones(4, 3, 64, 64)), network(torch.ones(4, 3, 64, 64))
        torch.testing.assert_close(a.z, b.z)
        torch.testing.assert_close(a.shallow, b.shallow)
        torch.testing.assert_close(
            mine.predictor(mine.pixel_head(a.deep)), network.predictor(network.pixel_head(b.deep))
        )


def test_the_gate_loads_strictly(files):
    folder, gate = files[0], files[3]
    mine = PixelAttention(F_).eval()
    mine.load_state_dict(read_pass_checkpoint(folder / "pass50_pixelatt.pth.tar").attention)
    n = torch.randn(1, F_, 5, 5)
    torch.testing.assert_close(mine(n), gate(n))


def test_finetuned_checkpoint_is_a_segmenter(files, tmp_path):
    folder, last = files[0], files[4]
    segmenter = official_segmenter(folder / "pass50_finetuning.pth.tar")
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        f = segmenter.features(x)
        torch.testing.assert_close(
            segmenter(x), nn.functional.conv2d(f, last["last_layer.weight"], last["last_layer.bias"])
        )
    assert len(segmenter.classes) == 51 and segmenter.classes.names[0] == "other"
    save_bundle(tmp_path / "m.safetensors", segmenter, {})
    torch.testing.assert_close(load_bundle(tmp_path / "m.safetensors")(x), segmenter(x))


def test_gate_and_centroids_are_a_segmenter(files, tmp_path):
    folder = files[0]
    segmenter = official_segmenter(folder / "pass50_pixelatt.pth.tar", folder / "pass50_centroids.npy", 0.41)
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        y, a = segmenter.classifier.attend(segmenter.features(x))
        named = segmenter.classifier.cosines(y).argmax(1) + 1
        expected = torch.where(a < 0.41, 0, named)
        assert torch.equal(segmenter(x).argmax(1), expected)
    save_bundle(tmp_path / "m.safetensors", segmenter, {})
    torch.testing.assert_close(load_bundle(tmp_path / "m.safetensors")(x), segmenter(x))


def test_wrong_files_are_told(files, tmp_path):
    folder = files[0]
    with pytest.raises(MaskwrightError, match="centroids"):
        official_segmenter(folder / "pass50_pixelatt.pth.tar")
    np.save(tmp_path / "narrow.npy", np.zeros((50, 7), np.float32))
    with pytest.raises(MaskwrightError, match="width 7"):
        official_segmenter(folder / "pass50_pixelatt.pth.tar", tmp_path / "narrow.npy")
    np.save(tmp_path / "flat.npy", np.zeros(7, np.float32))
    with pytest.raises(MaskwrightError, match="finite centroids"):
        read_centroids(tmp_path / "flat.npy")
    with pytest.raises(MaskwrightError, match="cannot be read"):
        read_centroids(tmp_path / "missing.npy")
    torch.save(
        {"state_dict": {"module.conv1.weight": torch.zeros(1), "module.odd.weight": torch.zeros(1)}},
        tmp_path / "odd.pth",
    )
    with pytest.raises(MaskwrightError, match="odd"):
        read_pass_checkpoint(tmp_path / "odd.pth")
