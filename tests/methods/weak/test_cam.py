"""The way from tags to masks, and what its options read."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from tests.conftest import write_tiny_folder

import maskwright as mw
from maskwright.data.training.labels import LabelStore
from maskwright.engine.progress import Progress
from maskwright.errors import MaskwrightError
from maskwright.methods.choosing import choose_method
from maskwright.recipes.tags.maps import CamStore
from maskwright.recipes.tags.seeding import read_threshold

SMALL = {
    "batch": 2, "crop": 32, "tag_crop": 48, "tag_batch": 4, "scales": (0.5, 1.0), "precision": "fp32",
    "tag_scale_min": 0.9, "tag_scale_max": 1.0,
}  # fmt: skip


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    root = write_tiny_folder(tmp_path_factory.mktemp("data") / "tiny")
    rows = (root / "tags.csv").read_text().splitlines()
    (root / "tags.csv").write_text("\n".join(rows[:7]) + "\n")  # two images say nothing
    return root


def run(data: Path, out: Path, method: str = "cam", steps: int = 2, **settings):
    model = mw.train(
        data, method, out=out, steps=steps, backbone="mobilenetv2_050", weights="random", device="cpu", report=False,
        settings={**SMALL, **settings}, progress=Progress(quiet=True),
    )  # fmt: skip
    return model, json.loads((out / "run.json").read_text())


def test_every_stage_leaves_its_artefact(data, tmp_path):
    model, record = run(data, tmp_path / "run")
    assert [s["name"] for s in record["stages"]] == ["classify", "cams", "seeds", "retrain"]
    assert record["labels_read"]["train"] == {"masks": 0, "tags": 6, "captions": 0}
    assert not any(record["labels_read"][p][k] for p in ("select", "evaluate") for k in ("masks", "tags", "captions"))
    store = CamStore(tmp_path / "run" / "cams" / "maps")
    labels = LabelStore(tmp_path / "run" / "seeds", mw.open_folder(data).classes)
    assert len(labels) == 6 and "picture_07" not in labels and "picture_07" not in store
    for name in labels.names:
        keys = store.read(name).keys.tolist()
        assert set(labels.read(name).ids.unique().tolist()) <= {0, *keys}, "only tagged classes and the background"
    assert 0 < read_threshold(tmp_path / "run" / "seeds") < 1
    assert len(model.classes) == 3
    assert mw.load(tmp_path / "run").extra["background"] == "ground"
    assert any("2 have none" in n for n in record["notes"])


def test_tags_from_masks_show_in_the_ledger(data, tmp_path):
    _, record = run(data, tmp_path / "run", tags_from_masks=True, background="ground")
    assert record["labels_read"]["train"] == {"masks": 8, "tags": 0, "captions": 0}


def test_the_oracle_and_the_curve_show_in_the_ledger(data, tmp_path):
    _, record = run(data, tmp_path / "run", oracle_threshold=True, threshold_curve=True)
    assert record["labels_read"]["train"]["masks"] == 0
    assert record["labels_read"]["select"]["masks"] == 6 and record["labels_read"]["evaluate"]["masks"] == 6
    curve = json.loads((tmp_path / "run" / "seeds" / "curve.json").read_text())
    best = max(p["miou"] for p in curve)
    chosen = min(curve, key=lambda p: abs(p["threshold"] - read_threshold(tmp_path / "run" / "seeds")))
    assert chosen["miou"] == best and set(chosen) >= {"mfn", "mfp", "mfn_code", "mfp_code", "labeled"}


def test_asked_threshold_and_no_background(data, tmp_path):
    _, record = run(data, tmp_path / "run", threshold=0.45, background="none", seed_crf=False)
    assert read_threshold(tmp_path / "run" / "seeds") == 0.45
    labels = LabelStore(tmp_path / "run" / "seeds", mw.open_folder(data).classes)
    maps = [labels.read(name) for name in labels.names]
    assert any(not m.valid.all() for m in maps) and all((m.ids[m.valid] > 0).all() for m in maps)
    assert any("no class stands for the background" in n for n in record["notes"])


def test_without_a_background_class_every_pixel_with_evidence_has_a_class(data, tmp_path):
    _, record = run(data, tmp_path / "run", background="none", seed_crf=False)
    assert read_threshold(tmp_path / "run" / "seeds") == 0
    (said,) = [n for n in record["notes"] if n.startswith("Seeds:")]
    assert "threshold 0" in said and "no class stands for the background" in said and "--set threshold=" in said
    store = CamStore(tmp_path / "run" / "cams" / "maps")
    labels = LabelStore(tmp_path / "run" / "seeds", mw.open_folder(data).classes)
    for name in labels.names:
        assert torch.equal(labels.read(name).valid, store.read(name).top()[0] > 0)


def test_the_report_shows_the_way_to_the_masks_and_the_ledger_what_was_judged(data, tmp_path):
    out = tmp_path / "run"
    settings = {"walk": "irn", "walk_steps": 8, "affinity_radius": 4, "judge": True, "threshold_curve": True}
    mw.train(
        data, "seam", out=out, steps=2, backbone="mobilenetv2_050", weights="random", device="cpu",
        settings={**SMALL, **settings}, progress=Progress(quiet=True),
    )  # fmt: skip
    record, page = json.loads((out / "run.json").read_text()), (out / "report.html").read_text()
    assert record["labels_read"]["evaluate"]["masks"] == 6 and record["labels_read"]["train"]["masks"] == 0
    assert "From tags to pseudo masks" in page
    for caption in ("photograph", "class maps", "walked maps", "sure pixels", "pseudo mask"):
        assert page.count(f"<span>{caption}</span>") == 6, caption
    for heading in ("mIoU of the masks", "mFN", "mFP", "background threshold", "mIoU of the maps, percent"):
        assert heading in page
    assert "of 6 tags have not a single pixel" in page or "Each of the 6 tags has a pixel" in page
    shown = json.loads((out / "seeds" / "shown.json").read_text())
    scores = mw.evaluate(out / "seeds", data).to_json()
    assert dict(map(tuple, shown["facts"]))["mIoU of the masks"] == f"{100 * scores['miou']:.1f} %"
    assert any("2 of 8 images left out: no prediction" in n for n in scores["notes"])


@pytest.mark.slow
def test_grad_cam_at_the_last_layer_makes_the_maps_of_cam(data, tmp_path):
    stores = []
    for method in ("cam", "grad_cam"):
        run(data, tmp_path / method, method, steps=8)
        stores.append(CamStore(tmp_path / method / "cams" / "maps"))
    found = False
    for i in range(6):
        a, b = (s.read(f"picture_{i:02d}") for s in stores)
        assert torch.equal(a.keys, b.keys) and torch.allclose(a.maps, b.maps, atol=5e-3)
        found |= bool(a.maps.any())
    assert found, "some maps hold evidence"


def test_tags_choose_the_family():
    name, why = choose_method({"masks": 0, "tags": 9, "captions": 0}, 9)
    assert name in ("seam", "cam") and "tags" in why


def test_needs_tags(tmp_path):
    root = write_tiny_folder(tmp_path / "bare")
    (root / "tags.csv").unlink()
    with pytest.raises(MaskwrightError, match="cam needs tags"):
        run(root, tmp_path / "run")


def test_tags_without_names_of_classes_are_asked_for_before_a_folder_is_made(tmp_path):
    """And the repair that the line gives is one."""
    data = write_tiny_folder(tmp_path / "tiny")
    (data / "classes.txt").unlink()
    options = {
        "backbone": "mobilenetv3_small_050", "weights": "random", "steps": 2, "device": "cpu", "report": False,
        "progress": Progress(quiet=True), "settings": {"classifier.size": 32, "crops.size": 32, "maps.scales": "1"},
    }  # fmt: skip
    with pytest.raises(MaskwrightError, match="needs names of the classes") as caught:
        mw.train(data, "cam", out=tmp_path / "run", **options)
    assert "--names" in caught.value.repair and not (tmp_path / "run").exists()
    model = mw.train(data, "cam", out=tmp_path / "run", names="ground,disc,square", **options)
    assert list(model.classes.names) == ["ground", "disc", "square"]
