"""The saved bundle: the same outputs bit for bit, and every kind of bad file refused with one line."""

from __future__ import annotations

import json
import pickle
import socket
import zipfile

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from maskwright.data.masking.classes import ClassTable
from maskwright.errors import MaskwrightError
from maskwright.models.backbones.build import build_backbone
from maskwright.models.bundle import load_bundle, save_bundle
from maskwright.models.networks.smp import SmpEncoder, smp_parts
from maskwright.models.parts.encoder import BackboneEncoder, concatenate
from maskwright.models.parts.heads import (
    CosineClassifier,
    Identity,
    LinearClassifier,
    Projection,
    Sequential,
    StegoHead,
)
from maskwright.models.preprocess import Preprocess
from maskwright.models.provenance import Provenance
from maskwright.models.segmenter import Segmenter

PREPROCESS = Preprocess(short_side=64, multiple_of=16)


def segmenter(classes: int = 3) -> Segmenter:
    torch.manual_seed(0)
    vit = build_backbone("test_vit", "random")
    encoder = BackboneEncoder(vit, [-2, -1], "k", normalize=True)
    table = ClassTable(("sky", "tree", "größe")[:classes], np.arange(3 * classes, dtype=np.uint8).reshape(-1, 3))
    provenance = vit.provenance.replace(source="file: a.pth", labels_seen="none", license="MIT")
    return Segmenter(
        encoder,
        StegoHead(128, 8),
        CosineClassifier(torch.randn(classes, 8), 0.5),
        table,
        PREPROCESS,
        provenance,
        "stego",
        "x",
    ).eval()


@pytest.fixture
def saved(tmp_path):
    path = tmp_path / "model.safetensors"
    save_bundle(path, segmenter(), {"loss": [1.5, 0.5]})
    return path


@pytest.fixture
def no_network(monkeypatch):
    def refuse(*_args, **_kwargs):
        pytest.fail("the network was asked")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


def test_saved_and_loaded_equal_bit_for_bit(saved, no_network):
    original, loaded = segmenter(), load_bundle(saved)
    x = torch.randn(2, 3, 48, 64)
    assert torch.equal(loaded(x), original(x)) and not loaded.training
    assert loaded(x).shape == (2, 3, 3, 4)
    torch.testing.assert_close(loaded.classify(loaded.decode(loaded.features(x))), loaded(x), rtol=0, atol=0)
    assert loaded.classes == original.classes and loaded.preprocess == PREPROCESS
    assert loaded.provenance == original.provenance == loaded.encoder.backbone.provenance
    assert (loaded.method, loaded.notes, loaded.extra) == ("stego", "x", {"loss": [1.5, 0.5]})
    assert loaded.encoder.key == original.encoder.key and loaded.multiple_of == 16
    assert [p.name for p in saved.parent.iterdir()] == [saved.name]


def test_the_file_has_the_rights_of_any_file(saved):
    (saved.parent / "plain").touch()
    assert saved.stat().st_mode == (saved.parent / "plain").stat().st_mode


def test_saving_twice_keeps_what_was_known(saved, tmp_path):
    again = tmp_path / "again.safetensors"
    save_bundle(again, load_bundle(saved))
    a, b = load_file(saved), load_file(again)
    assert a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)
    with safe_open(saved, "pt") as first, safe_open(again, "pt") as second:
        assert first.metadata() == second.metadata()


@pytest.mark.parametrize("name", ["efficientnet_lite0", "resnet18"])
def test_convolutional_backbones(tmp_path, name: str, no_network):
    backbone = build_backbone(name, "random", output_stride=16)
    encoder = BackboneEncoder(backbone, [1, 3])
    model = Segmenter(
        encoder,
        Sequential(Projection(torch.zeros(encoder.width), torch.randn(6, encoder.width))),
        LinearClassifier(6, 2),
        ClassTable.numbered(2),
        PREPROCESS,
        backbone.provenance,
    ).eval()
    save_bundle(tmp_path / "m.safetensors", model)
    x = torch.randn(1, 3, 64, 96)
    loaded = load_bundle(tmp_path / "m.safetensors")
    assert torch.equal(loaded(x), model(x)) and loaded(x).shape == (1, 2, 16, 24)


@pytest.mark.parametrize("architecture", ["unet", "deeplabv3plus", "segformer"])
def test_smp_networks_are_taken_apart(tmp_path, architecture: str, no_network):
    torch.manual_seed(0)
    parts = smp_parts(architecture, "resnet18", 4)
    model = Segmenter(*parts, ClassTable.numbered(4), PREPROCESS, Provenance("resnet18")).eval()
    x = torch.randn(1, 3, 64, 96)
    features = model.features(x)
    assert isinstance(features, list) and torch.equal(model.classify(model.decode(features)), model(x))
    save_bundle(tmp_path / "m.safetensors", model)
    assert torch.equal(load_bundle(tmp_path / "m.safetensors")(x), model(x))
    with pytest.raises(ValueError, match="multiples"):
        model(torch.randn(1, 3, 65, 96))


def test_smp_encoder_takes_a_backbones_weights():
    backbone = build_backbone("efficientnet_lite0", "package")
    parts = smp_parts("fpn", "tu-tf_efficientnet_lite0", 2, weights="package")
    x = torch.randn(1, 3, 64, 64)
    with torch.inference_mode():
        torch.testing.assert_close(parts.encoder.eval()(x)[-1], backbone.dense(x, -1), rtol=1e-4, atol=1e-4)
    with pytest.raises(MaskwrightError, match="tu-"):
        smp_parts("fpn", "resnet18", 2, weights="package")


@pytest.mark.parametrize(
    ("architecture", "encoder", "options"),
    [
        ("unett", "resnet18", {}),
        ("unet", "resnet19", {}),
        ("unet", "tu-hf-hub:a/b", {}),
        ("unet", "tu-nothing", {}),
        ("unet", "resnet18", {"encoder_weights": "imagenet"}),
        ("unet", "resnet18", {"decoder_channels": [1]}),
        ("unet", "resnet18", {"nonsense": 1}),
    ],
)
def test_smp_networks_that_are_refused(architecture, encoder, options):
    with pytest.raises(MaskwrightError):
        smp_parts(architecture, encoder, 2, options=options)
    with pytest.raises(MaskwrightError):
        SmpEncoder.from_spec(
            {"kind": "SmpEncoder", "architecture": architecture, "encoder": encoder, "options": options}
        )


def test_shared_tensors_stay_equal(tmp_path):
    model = segmenter()
    head = LinearClassifier(128, 128)
    model.decoder = Sequential(head, head)
    model.classifier = LinearClassifier(128, 3)
    save_bundle(tmp_path / "m.safetensors", model)
    x = torch.randn(1, 3, 32, 32)
    assert torch.equal(load_bundle(tmp_path / "m.safetensors")(x), model(x))
    names = load_file(tmp_path / "m.safetensors").keys()
    assert "decoder.parts.0.linear.weight" in names and "decoder.parts.1.linear.weight" not in names


def test_concatenated_maps_have_the_finest_size():
    maps = [torch.full((1, 2, 4, 6), 1.0), torch.full((1, 3, 2, 3), 2.0)]
    joined = concatenate(maps)
    assert joined.shape == (1, 5, 4, 6) and joined[:, :2].eq(1).all() and joined[:, 2:].eq(2).all()


def test_as_many_classes_as_the_table():
    with pytest.raises(ValueError, match="classes"):
        model = segmenter()
        Segmenter(model.encoder, None, LinearClassifier(128, 4), model.classes, PREPROCESS, model.provenance)
    assert isinstance(
        Segmenter(model.encoder, None, LinearClassifier(128, 3), model.classes, PREPROCESS, model.provenance).decoder,
        Identity,
    )


def refused(path, match: str | None = None) -> None:
    with pytest.raises(MaskwrightError, match=match) as error:
        load_bundle(path)
    assert "\n" not in str(error.value)


class Danger:
    """Runs code when it is unpickled."""

    def __reduce__(self):
        return (pytest.fail, ("the pickle was executed",))


def test_other_formats(tmp_path):
    path = tmp_path / "model.safetensors"
    refused(path, "missing")
    refused(tmp_path, "folder")
    path.write_bytes(pickle.dumps(Danger()))
    refused(path, "cannot be read")
    torch.save({"a": Danger()}, path)
    refused(path, "cannot be read")
    path.write_text("a text " * 100)
    refused(path, "cannot be read")
    path.write_bytes(b"")
    refused(path, "cannot be read")
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("../../escape", "x")
    refused(path, "cannot be read")
    save_file({"a": torch.zeros(2)}, path)
    refused(path, "another format")


@pytest.mark.parametrize("share", [0.001, 0.1, 0.5, 0.99])
def test_truncated(saved, share: float):
    content = saved.read_bytes()
    saved.write_bytes(content[: int(len(content) * share)])
    refused(saved, "cannot be read")


def rewrite(path, tensors=None, **metadata) -> None:
    """Writes the bundle again with some metadata or tensors changed; None removes a field."""
    with safe_open(path, "pt") as file:
        known = dict(file.metadata())
    found = load_file(path)
    found.update(tensors or {})
    known.update(metadata)
    save_file(
        {k: v for k, v in found.items() if v is not None},
        path,
        {k: v for k, v in known.items() if v is not None},
    )


def spec_with(saved, encoder) -> str:
    with safe_open(saved, "pt") as file:
        spec = json.loads(file.metadata()["spec"])
    spec["encoder"].update(encoder)
    return json.dumps(spec)


@pytest.mark.parametrize(
    ("metadata", "match"),
    [
        ({"version": "99"}, "version 99"),
        ({"version": None}, "version"),
        ({"format": "other"}, "another format"),
        ({"hook": "import os"}, "unknown metadata hook"),
        ({"extra": None}, "unknown metadata extra"),
        ({"spec": "{"}, "not JSON"),
        ({"spec": "[" * 100_000}, "not JSON"),
        ({"spec": "[]"}, "no JSON object"),
        ({"spec": "{}"}, "incomplete"),
        ({"classes": '{"names": ["a"], "colors": [[0, 0, 300]]}'}, "class table"),
        ({"classes": '{"names": ["a"], "colors": [[0, 0, 0]]}'}, "classes"),
        ({"preprocess": '{"mean": [0, 0, 0], "std": [0, 0, 0]}'}, "preprocess"),
        ({"provenance": "{}"}, "provenance"),
        ({"shared": '{"decoder.linear.bias": "nothing"}'}, "shared"),
    ],
)
def test_metadata_that_does_not_fit(saved, metadata, match):
    rewrite(saved, **metadata)
    refused(saved, match)


@pytest.mark.parametrize(
    ("encoder", "match"),
    [
        ({"kind": "os.system"}, "unknown part"),
        ({"backbone": "hf-hub:evil/model"}, "unknown backbone"),
        ({"backbone": "../../etc/passwd"}, "unknown backbone"),
        ({"backbone": "vit_7b_patch16_dinov3"}, "another shape|lacks|has unknown"),
        ({"img_size": [60000, 60000]}, "another shape"),
        ({"img_size": [10**12, 10**12]}, "at most"),
        ({"img_size": "x"}, "img_size"),
        ({"layers": [999]}, "layer 999"),
        ({"layers": "all"}, "cannot be built"),
        ({"output_stride": 3}, "output stride"),
        ({"features": "z"}, "features"),
        ({"path": "/etc/passwd"}, "BackboneEncoder"),
    ],
)
def test_malicious_encoders(saved, encoder, match, no_network):
    rewrite(saved, spec=spec_with(saved, encoder))
    refused(saved, match)


def test_gigantic_parts_are_refused_before_memory_is_taken(saved):
    with safe_open(saved, "pt") as file:
        spec = json.loads(file.metadata()["spec"])
    spec["decoder"] = {"kind": "LinearClassifier", "width": 65536, "classes": 65536}  # 17 GB
    rewrite(saved, spec=json.dumps(spec))
    refused(saved, "lacks|another shape|has unknown")
    spec["decoder"] = {"kind": "StegoHead", "width": 65536, "code": 65536, "dropout": 0.1}
    rewrite(saved, spec=json.dumps(spec))
    refused(saved, "another shape")
    nested = {"kind": "Identity"}
    for _ in range(300):
        nested = {"kind": "Sequential", "parts": [nested]}
    rewrite(saved, spec=json.dumps({**spec, "decoder": nested}))
    refused(saved)


@pytest.mark.parametrize(
    ("tensors", "match"),
    [
        ({"decoder.linear.bias": None}, "lacks"),
        ({"decoder.linear.more": torch.zeros(2)}, "has unknown"),
        ({"decoder.linear.bias": torch.zeros(9)}, "another shape"),
        ({"decoder.linear.bias": torch.zeros(8, dtype=torch.float64)}, "float64"),
    ],
)
def test_tensors_that_do_not_fit(saved, tensors, match):
    rewrite(saved, tensors)
    refused(saved, match)


def test_a_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(MaskwrightError, match="cannot write"):
        save_bundle(tmp_path / "file" / "m.safetensors", segmenter())
    with pytest.raises(MaskwrightError, match="JSON"):
        save_bundle(tmp_path / "m.safetensors", segmenter(), {"a": object()})
    assert not (tmp_path / "m.safetensors").exists()


def test_a_failed_write_keeps_the_old_file(saved, monkeypatch):
    before = saved.read_bytes()

    def full(*_args, **_kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("maskwright.models.bundle.save_file", full)
    with pytest.raises(MaskwrightError, match="no space left"):
        save_bundle(saved, segmenter())
    assert saved.read_bytes() == before and [p.name for p in saved.parent.iterdir()] == [saved.name]
