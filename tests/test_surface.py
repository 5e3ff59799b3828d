"""The Python surface by the names that the documentation uses."""

from __future__ import annotations

import importlib
import json
import shutil
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tests.conftest import write_tiny_folder

import maskwright as mw
from maskwright.app.report import write_report
from maskwright.engine.config import configure
from maskwright.engine.progress import Progress
from maskwright.errors import MaskwrightError
from maskwright.evaluate.scores import hash_names
from maskwright.methods.supervised import SupervisedConfig
from maskwright.models.backbones.build import build_backbone
from maskwright.models.tensors import save_tensors

SMALL = {"crop": 32, "batch": 2}


def train(data: Path, out: Path, method: str = "supervised", **options):
    usual = {
        "backbone": "mobilenetv3_small_050", "weights": "random", "steps": 1, "device": "cpu", "settings": SMALL,
        "report": False, "progress": Progress(quiet=True),
    }  # fmt: skip
    return mw.train(data, method, out=out, **(usual | options))


def record_of(run: Path) -> dict:
    return json.loads((run / "run.json").read_text())


def forget(run: Path, *keys: str, **changes: object) -> None:
    """Makes a record one of before, which did not have some keys."""
    record = {k: v for k, v in record_of(run).items() if k not in keys}
    (run / "run.json").write_text(json.dumps(record | changes))


def test_evaluate_can_be_called_before_and_after_its_package_is_imported(tmp_path):
    folder = write_tiny_folder(tmp_path / "tiny")
    importlib.import_module("maskwright.evaluate.confusion")
    assert mw.evaluate(folder / "masks", folder).to_json()["miou"] == 1
    from maskwright.api import evaluate
    from maskwright.evaluate import confusion
    from maskwright.evaluate.confusion import ConfusionMatrix

    assert mw.evaluate is evaluate and confusion.ConfusionMatrix is ConfusionMatrix
    assert type(sys.modules["maskwright.evaluate"]) is types.ModuleType
    assert evaluate(folder / "masks", folder).to_json()["miou"] == 1


def masks_of(folder: Path) -> list[str]:
    return sorted(p.stem for p in (folder / "masks").iterdir())


def test_masks_that_are_simply_present_are_counted_and_hashed(tmp_path, capfd):
    data, run = write_tiny_folder(tmp_path / "tiny"), tmp_path / "run"
    for name in masks_of(data)[3:]:
        (data / "masks" / f"{name}.png").unlink()
    train(data, run, report=True, progress=Progress())
    digest = hash_names(masks_of(data))
    told = f"Labelled: 3 of 8 images have a mask (sha256 of their names {digest[:12]})."
    record = record_of(run)
    assert record["labeled_hash"] == digest and told in record["notes"] and told in capfd.readouterr().err
    page = (run / "report.html").read_text()
    assert told in page and digest in page

    before = {p: p.read_bytes() for p in run.rglob("*") if p.is_file()}
    shutil.copy(data / "masks" / f"{masks_of(data)[0]}.png", data / "masks" / "picture_07.png")
    with pytest.raises(MaskwrightError) as error:
        train(data, run, resume=True)
    assert "the masks of 1 image are new (first: picture_07)" in str(error.value)
    assert error.value.expected and "put them back" in error.value.repair and "\n" not in str(error.value)
    assert before == {p: p.read_bytes() for p in run.rglob("*") if p.is_file()}
    (data / "masks" / "picture_07.png").unlink()
    train(data, run, resume=True)


def test_a_run_recorded_without_the_hash_of_its_masks_is_resumed(tmp_path):
    data, run = write_tiny_folder(tmp_path / "tiny"), tmp_path / "run"
    train(data, run)
    forget(run, "checksum", "provenance", "backbone_unused", labeled_hash=None)
    train(data, run, resume=True)
    assert record_of(run)["labeled_hash"] == hash_names(masks_of(data))
    (data / "masks" / "picture_07.png").unlink()
    with pytest.raises(MaskwrightError, match=r"the masks of 1 image are gone \(first: picture_07\)"):
        train(data, run, resume=True)


def test_the_hash_of_a_list_is_of_its_names_not_of_their_order(tmp_path, capfd):
    data = write_tiny_folder(tmp_path / "tiny")
    names = masks_of(data)[:3]
    runs = []
    for i, order in enumerate((names, names[::-1], [*names[1:], names[0], ""])):
        (tmp_path / f"list_{i}.txt").write_text("\n".join(order))
        train(data, tmp_path / f"run_{i}", labeled=tmp_path / f"list_{i}.txt", progress=Progress())
        said = f"Labelled: 3 images by {tmp_path / f'list_{i}.txt'} (sha256 of their names {hash_names(names)[:12]})."
        assert said in capfd.readouterr().err
        runs.append(record_of(tmp_path / f"run_{i}"))
    assert {r["labeled_hash"] for r in runs} == {hash_names(names)}
    assert hash_names(names) == hash_names(iter(names[::-1])) != hash_names(names[:2])


def test_a_method_that_reads_no_mask_does_not_care_which_there_are(tmp_path):
    data, run = write_tiny_folder(tmp_path / "tiny"), tmp_path / "run"
    options = {"backbone": "tf_efficientnet_lite0", "settings": {"short_side": 64}}
    train(data, run, "kmeans", **options)
    (data / "masks" / "picture_07.png").unlink()
    train(data, run, "kmeans", resume=True, **options)
    assert record_of(run)["labeled_hash"] is None
    assert not any("Labelled" in n for n in record_of(run)["notes"])


@pytest.mark.parametrize(
    ("method", "settings", "reads"),
    [
        ("kmeans", {}, False), ("pass", {}, False), ("pass", {"oracle_threshold": True}, True), ("cam", {}, False),
        ("cam", {"oracle_threshold": True}, True), ("cam", {"tags_from_masks": True}, True), ("unimatch", {}, True),
    ],
)  # fmt: skip
def test_which_runs_read_masks(method, settings, reads):
    cls = mw.METHODS[method]
    assert cls.terms(configure(cls.Config, settings)).reads_masks is reads


def test_a_network_with_an_encoder_of_its_own_is_what_the_record_tells(tmp_path, capfd):
    data, run = write_tiny_folder(tmp_path / "tiny"), tmp_path / "run"
    backbone = build_backbone("mobilenetv3_small_050", "random")
    file = tmp_path / "imagenet.safetensors"
    save_tensors(file, backbone.model.state_dict(), {"labels_seen": "ImageNet-1k classes"})
    network = {"settings": SMALL | {"network": "ddrnet23_slim"}}
    model = train(data, run, weights=file, report=True, progress=Progress(), **network)
    record = record_of(run)
    assert record["backbone"]["labels_seen"] == "ImageNet-1k classes", "as it was asked for"
    assert record["provenance"] == model.segmenter.provenance.to_json()
    assert record["provenance"]["architecture"] == "ddrnet23_slim"
    unused = "Backbone: not used, because network ddrnet23_slim has an encoder of its own."
    err = capfd.readouterr().err
    assert unused in err and "ImageNet" not in err and "weights: ddrnet23_slim (random)" in err
    page = (run / "report.html").read_text()
    assert "Its features come from ddrnet23_slim, whose weights saw: no labels." in page and unused in page
    assert "ImageNet" not in page and "mobilenetv3" not in page.split("The command")[0]

    forget(run, "checksum", "provenance", "backbone_unused")  # a record of before tells what it told
    assert "weights saw: ImageNet-1k classes" in write_report(run).read_text()
    train(data, run, weights=file, resume=True, **network)
    assert record_of(run)["provenance"] == record["provenance"]


def test_weights_of_a_whole_network_replace_those_of_the_backbone(tmp_path):
    data, run, file = write_tiny_folder(tmp_path / "tiny"), tmp_path / "run", tmp_path / "official.safetensors"
    backbone = build_backbone("test_vit", "random")
    official = {f"encoder.{k}": v for k, v in backbone.model.state_dict().items()}
    official |= {"decoder.head.weight": torch.zeros(3, 64), "decoder.head.bias": torch.zeros(3)}
    save_tensors(file, official, {"labels_seen": "ADE20K masks"})
    settings = SMALL | {"network": "segmenter_linear", "network_weights": str(file)}
    train(data, run, backbone="test_vit", settings=settings, report=True)
    record = record_of(run)
    assert record["backbone"]["labels_seen"] == "none" and record["provenance"]["labels_seen"] == "ADE20K masks"
    page = (run / "report.html").read_text()
    assert "whose weights saw: ADE20K masks." in page and "no labels" not in page
    assert "Backbone: its weights are not used, because network_weights=" in page


def test_a_backbone_that_is_used_is_told_as_before(tmp_path):
    data, run = write_tiny_folder(tmp_path / "tiny"), tmp_path / "run"
    train(data, run, report=True)
    record = record_of(run)
    assert record["provenance"] == record["backbone"] and record["backbone_unused"] == ""
    assert (
        "Its features come from mobilenetv3_small_050, whose weights saw: no labels."
        in (run / "report.html").read_text()
    )
    config = configure(mw.METHODS["cam"].Config, {"network": "ddrnet23_slim"})
    assert mw.METHODS["cam"].terms(config).backbone_unused == "", "its classifier stands on it"
    assert mw.METHODS["supervised"].terms(SupervisedConfig()).backbone_unused == ""


def test_what_auto_chose_and_the_backbone_are_said_once(tmp_path, capfd):
    data, run = write_tiny_folder(tmp_path / "tiny"), tmp_path / "run"
    train(data, run, "auto", report=True, progress=Progress())
    said, notes = capfd.readouterr().err, record_of(run)["notes"]
    page = (run / "report.html").read_text()
    for begin in ("Method: supervised, because", "Backbone: mobilenetv3_small_050, as asked"):
        assert [begin in note for note in notes].count(True) == said.lower().count(begin.lower()) == 1
    assert "labels its weights saw: none." in said and page.count("Method: supervised, because") == 1


def test_the_range_of_deep_images_is_kept_in_run_and_model(tmp_path):
    """A 12-bit series in 16 bits: what was measured at training holds for what the model sees later."""
    (tmp_path / "deep" / "images").mkdir(parents=True)
    rng = np.random.default_rng(0)
    for i in range(4):
        values = rng.integers(0, 4096, (40, 48)).astype(np.uint16)
        Image.fromarray(values).save(tmp_path / "deep" / "images" / f"{i}.png")
    model = train(tmp_path / "deep", tmp_path / "run", "kmeans", classes=2, settings={})
    record = record_of(tmp_path / "run")
    assert record["reading"]["range"] == [0, 4095]
    assert any("0 is black and 4095 white" in note for note in record["notes"])
    assert model.value_range() == mw.load(tmp_path / "run").value_range() == (0, 4095)
    dark = Image.fromarray((values // 8).astype(np.uint16))
    dark.save(tmp_path / "dark.png")
    read = np.floor(np.asarray(dark) * (255 / 4095) + 0.5).astype(np.uint8)
    assert np.array_equal(model.predict(tmp_path / "dark.png").mask, model.predict(read).mask)
