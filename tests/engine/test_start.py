"""Going on from one's own model: every tensor of the new network is compared with the file that was given."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tests.conftest import write_tiny_folder

import maskwright as mw
from maskwright.data.folders.folder import open_folder
from maskwright.data.masking.classes import ClassTable
from maskwright.engine import seeding
from maskwright.engine.config import configure
from maskwright.engine.context import Context
from maskwright.engine.opening import open_run
from maskwright.engine.progress import Progress
from maskwright.engine.request import RunRequest
from maskwright.errors import MaskwrightError
from maskwright.methods import METHODS
from maskwright.models.backbones.build import build_backbone
from maskwright.models.bundle import save_bundle
from maskwright.models.networks.build import build_network
from maskwright.models.parts.encoder import BackboneEncoder
from maskwright.models.parts.heads import CosineClassifier
from maskwright.models.preprocess import Preprocess
from maskwright.models.segmenter import Segmenter
from maskwright.recipes.training.network import make_network

BACKBONE = "mobilenetv3_small_050"
READ = {"train": {"masks": 12, "tags": 0, "captions": 0}, "select": {"masks": 3}, "evaluate": {"masks": 99}}
OLD = ("road", "sky", "car")


def saved(path: Path, network: str = "deeplabv3plus", names: tuple[str, ...] = OLD, **extra: Any) -> Path:
    """A model whose every tensor is drawn anew, batch-norm statistics too, as a run would leave it."""
    torch.manual_seed(5)
    made = build_network(network, build_backbone(BACKBONE, "random"), len(names))
    for tensor in made.state_dict().values():
        if tensor.is_floating_point():
            tensor.uniform_(0.1, 1.0)
    table = ClassTable(names, np.arange(3 * len(names), dtype=np.uint8).reshape(-1, 3))
    segmenter = Segmenter(
        made.encoder, made.decoder, made.classifier, table, Preprocess((0.5,) * 3, (0.5,) * 3, multiple_of=32),
        made.provenance.replace(labels_seen="ImageNet-1k classes", mean=(0.5, 0.4, 0.3)), "supervised",
    )  # fmt: skip
    path.parent.mkdir(parents=True, exist_ok=True)
    method = {"name": "supervised", "family": "supervised"}
    return save_bundle(path, segmenter, {"method": method, "labels_read": READ, **extra})


def opened(tmp_path: Path, weights: Path | None, names: tuple[str, ...], method: str = "supervised", **more: Any):
    """A run's context, and the network that its training would begin with."""
    data = tmp_path / "tiny"
    if not data.exists():
        write_tiny_folder(data)
    (data / "classes.txt").write_text("\n".join(names) + "\n")
    cls = METHODS[method]
    config = configure(cls.Config, more.pop("settings", {}))
    out = tmp_path / f"run-{len(list(tmp_path.iterdir()))}"
    request = RunRequest(
        data=open_folder(data), method=cls, config=config, out=out, weights=weights or "random", device="cpu",
        progress=Progress(quiet=True), **({"backbone": BACKBONE} if weights is None else {}) | more,
    )  # fmt: skip
    context = open_run(request)
    context.run.release()
    seeding.initialise(context.seed, "train")
    return context, make_network(context, config)


def parts_of(network: Any) -> dict[str, torch.Tensor]:
    return {k: v for k, v in network.state_dict().items() if not k.startswith("aux")}


def told(context: Context) -> str:
    return next(note for note in context.notes if note.startswith("Weights of"))


def test_the_same_classes_take_every_tensor(tmp_path):
    model = saved(tmp_path / "old" / "model.safetensors")
    context, network = opened(tmp_path, model.parent, OLD)
    file, mine = load_file(model), parts_of(network)
    assert mine.keys() == file.keys()
    assert all(torch.equal(mine[k], file[k]) for k in file)
    assert told(context) == (
        f"Weights of {model.parent} (supervised): encoder taken; decoder taken; "
        "classifier: 3 of 3 classes joined by name."
    )
    assert network.provenance.mean == (0.5, 0.4, 0.3), "the input is normalised as the model's was"


def test_rows_of_classes_are_joined_by_name(tmp_path):
    """Another order, one class gone and two new: row by row."""
    model, names = saved(tmp_path / "old" / "model.safetensors"), ("car", "dog", "road", "bike")
    context, network = opened(tmp_path, model.parent, names)
    fresh = opened(tmp_path, None, names)[1].state_dict()
    file, mine = load_file(model), network.state_dict()
    heads = [k for k in file if k.startswith("classifier.")]
    assert len(heads) == 2
    for key in heads:
        for row, name in enumerate(names):
            expected = file[key][OLD.index(name)] if name in OLD else fresh[key][row]
            assert torch.equal(mine[key][row], expected), (key, name)
    assert all(torch.equal(mine[k], file[k]) for k in file if k not in heads)
    assert "2 of 4 classes joined by name, new: dog, bike, left out of the model: sky" in told(context)


def test_other_classes_have_a_new_classifier_and_keep_the_rest(tmp_path):
    model, names = saved(tmp_path / "old" / "model.safetensors"), ("cat", "dog", "bird")
    context, network = opened(tmp_path, model, names)
    fresh, file, mine = opened(tmp_path, None, names)[1].state_dict(), load_file(model), network.state_dict()
    for key, value in parts_of(network).items():
        assert torch.equal(mine[key], (fresh if key.startswith("classifier.") else file)[key]), key
        assert key.startswith("classifier.") or torch.equal(value, file[key])
    assert "classifier new (3 classes)" in told(context)


def test_another_network_keeps_the_encoder(tmp_path):
    model = saved(tmp_path / "old" / "model.safetensors")
    context, network = opened(tmp_path, model, OLD, settings={"network": "unet"})
    file, mine = load_file(model), network.state_dict()
    encoder = [k for k in file if k.startswith("encoder.")]
    assert encoder and all(torch.equal(mine[k], file[k]) for k in encoder)
    assert (
        "encoder taken; decoder new (SmpDecoder unet, the model's is SmpDecoder deeplabv3plus); classifier new"
        in told(context)
    )


def test_decoders_that_hold_classes_are_joined_too(tmp_path):
    model, names = saved(tmp_path / "old" / "model.safetensors", "ocr"), ("sky", "tree", "road", "car")
    _, network = opened(tmp_path, model, names, settings={"network": "ocr"})
    fresh = opened(tmp_path, None, names, settings={"network": "ocr"})[1].state_dict()
    file, mine = load_file(model), network.state_dict()
    grown = [k for k in file if file[k].shape != mine[k].shape]
    assert any(k.startswith("decoder.") for k in grown)
    for key in grown:
        for row, name in enumerate(names):
            assert torch.equal(mine[key][row], file[key][OLD.index(name)] if name in OLD else fresh[key][row])
    assert all(torch.equal(mine[k], file[k]) for k in file if k not in grown)


def test_the_backbone_of_a_model_on_frozen_features(tmp_path):
    torch.manual_seed(3)
    backbone = build_backbone(BACKBONE, "random")
    classifier = CosineClassifier(torch.randn(3, backbone.widths[-1]))
    segmenter = Segmenter(
        BackboneEncoder(backbone, layers=-1), None, classifier, ClassTable.numbered(3),
        Preprocess((0.5,) * 3, (0.5,) * 3), backbone.provenance.replace(labels_seen="none"), "kmeans",
    )  # fmt: skip
    read = {"train": {"masks": 0, "tags": 0, "captions": 0}}
    model = save_bundle(
        tmp_path / "kmeans.safetensors", segmenter, {"method": {"family": "unsupervised"}, "labels_read": read}
    )
    names = ("cluster 0", "cluster 1", "cluster 2")
    context, network = opened(tmp_path, model, names)
    assert context.backbone.key == backbone.key and context.backbone.provenance.labels_seen == "none"
    inner = network.encoder.backbone_tensors(backbone.model.state_dict())
    assert inner and all(torch.equal(v, backbone.model.state_dict()[k]) for k, v in inner.items())
    assert "encoder: the backbone taken; decoder new" in told(context)
    assert "classifier new (3 classes)" in told(context), "clusters of a run without labels are no classes"


def test_methods_on_frozen_features_take_the_backbone(tmp_path):
    model = saved(tmp_path / "old" / "model.safetensors")
    data = write_tiny_folder(tmp_path / "tiny")
    request = RunRequest(
        data=open_folder(data), method=METHODS["kmeans"], out=tmp_path / "k", weights=model, device="cpu",
        progress=Progress(quiet=True),
    )  # fmt: skip
    context = open_run(request)
    context.run.release()
    file = load_file(model)
    own = context.start.segmenter.encoder.backbone_tensors(context.backbone.model.state_dict())
    state = context.backbone.model.state_dict()
    assert len(own) == sum(k.startswith("encoder.") for k in file)
    assert all(torch.equal(state[k], v) for k, v in own.items())
    again = open_run(
        RunRequest(
            data=open_folder(data), method=METHODS["kmeans"], out=tmp_path / "k", weights=model, device="cpu",
            progress=Progress(quiet=True), resume=True,
        )
    )  # fmt: skip
    again.run.release()
    assert again.backbone.key == context.backbone.key, "what the model lacks is drawn the same"


def test_the_second_of_two_networks_differs(tmp_path):
    model = saved(tmp_path / "old" / "model.safetensors")
    context, first = opened(tmp_path, model, OLD, "cps")
    seeding.initialise(context.seed, "second")
    second = make_network(context, configure(METHODS["cps"].Config, {}), second=True)
    assert torch.equal(*(next(iter(n.encoder.state_dict().values())) for n in (first, second)))
    assert not torch.equal(*(n.classifier.state_dict()["conv.weight"] for n in (first, second)))


def test_records_tell_which_labels_the_model_had_seen(tmp_path):
    teacher = {"labels_seen": "ImageNet-1k classes", "labels_read": {"train": {"masks": 367}}}
    model = saved(tmp_path / "old" / "model.safetensors", inputs={"teacher": teacher})
    context, network = opened(tmp_path, model.parent, OLD)
    seen = "ImageNet-1k classes; 15 masks (supervised); ImageNet-1k classes (teacher); 367 masks (teacher)"
    assert context.backbone.provenance.labels_seen == network.provenance.labels_seen == seen
    record = json.loads((context.run.path / "run.json").read_text())
    assert record["inputs"]["weights"]["labels_read"] == READ
    assert record["inputs"]["weights"]["place"] == str(model)
    assert record["backbone"]["labels_seen"] == seen
    assert record["labels_read"]["train"]["masks"] == 0, "the new run's own ledger counts what it reads itself"


def test_another_backbone_and_no_model_are_one_line(tmp_path):
    model = saved(tmp_path / "old" / "model.safetensors")
    with pytest.raises(MaskwrightError, match=f"a model on {BACKBONE}, and --backbone efficientnet_lite0") as raised:
        opened(tmp_path, model, OLD, backbone="efficientnet_lite0")
    assert "leave --backbone out" in raised.value.repair
    opened(tmp_path, model, OLD, backbone=BACKBONE)  # the repair's other form: the same one
    (tmp_path / "empty").mkdir()
    with pytest.raises(MaskwrightError, match=r"is a folder without a model\.safetensors"):
        opened(tmp_path, tmp_path / "empty", OLD)
    with pytest.raises(MaskwrightError, match=r"a model on the convolutional .*, and toco"):
        opened(tmp_path, model, OLD, "toco")


@pytest.mark.slow
def test_the_network_of_the_run_is_taken_where_none_is_named(tmp_path, monkeypatch):
    monkeypatch.setenv("MASKWRIGHT_CACHE", str(tmp_path / "cache"))
    data, out = write_tiny_folder(tmp_path / "tiny"), tmp_path / "first"
    usual = {"device": "cpu", "steps": 1, "report": False, "progress": Progress(quiet=True)}
    small = {"crop": 32, "batch": 2}
    mw.train(
        data, "supervised", out=out, backbone=BACKBONE, weights="random", settings={"network": "fpn", **small}, **usual
    )
    model = mw.train(data, "mean_teacher", out=tmp_path / "second", weights=out, settings=small, **usual)
    record = json.loads((tmp_path / "second" / "run.json").read_text())
    assert record["config"]["network"] == "fpn"
    assert any("encoder taken; decoder taken; classifier: 3 of 3" in note for note in record["notes"])
    assert model.segmenter.provenance.labels_seen.endswith("masks (supervised)")
    assert record["provenance"]["labels_seen"] == model.segmenter.provenance.labels_seen
