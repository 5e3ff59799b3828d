"""The stages of `affinity`, whatever maps walk and whatever the affinity is."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from tests.conftest import write_tiny_folder

import maskwright as mw
from maskwright.data.training.labels import LabelStore
from maskwright.engine.checkpoint import CHECKPOINT, load_checkpoint
from maskwright.engine.progress import Progress
from maskwright.errors import MaskwrightError
from maskwright.recipes.tags.maps import CamStore
from maskwright.recipes.tags.seeding import read_threshold

SMALL = {
    "batch": 2, "crop": 32, "tag_crop": 64, "tag_batch": 4, "scales": (0.5, 1.0), "precision": "fp32",
    "walk_steps": 8, "affinity_radius": 4,
}  # fmt: skip


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    root = write_tiny_folder(tmp_path_factory.mktemp("data") / "tiny")
    rows = (root / "tags.csv").read_text().splitlines()
    # The sixth says that nothing is there, the last two say nothing.
    (root / "tags.csv").write_text("\n".join([*rows[:6], "picture_05,"]) + "\n")
    return root


def run(data: Path, out: Path, **settings):
    model = mw.train(
        data, "affinity", out=out, steps=2, backbone="mobilenetv2_050", weights="random", device="cpu", report=False,
        resume=out.exists(), settings={**SMALL, **settings}, progress=Progress(quiet=True),
    )  # fmt: skip
    return model, json.loads((out / "run.json").read_text())


def test_every_stage_leaves_its_artefact(data, tmp_path):
    folder = tmp_path / "run"
    model, record = run(data, folder)
    names = ["classify", "cams", "pairs", "affinity", "walk", "seeds", "retrain"]
    assert [s["name"] for s in record["stages"]] == names
    assert record["labels_read"]["train"] == {"masks": 0, "tags": 6, "captions": 0}
    assert not any(record["labels_read"][p][k] for p in ("select", "evaluate") for k in ("masks", "tags", "captions"))
    raw, walked = CamStore(folder / "cams" / "maps"), CamStore(folder / "walk" / "maps")
    labels = LabelStore(folder / "seeds", mw.open_folder(data).classes)
    assert len(labels) == 6 and "picture_07" not in walked
    for i in range(6):
        a, b = raw.read(f"picture_{i:02d}"), walked.read(f"picture_{i:02d}")
        assert torch.equal(a.keys, b.keys) and a.size == b.size == (48, 64)
        assert set(labels.read(f"picture_{i:02d}").ids.unique().tolist()) <= {0, *a.keys.tolist()}
    assert not len(walked.read("picture_05").keys) and not labels.read("picture_05").ids.any()
    assert 0 < read_threshold(folder / "seeds") < 1 and len(model.classes) == 3
    assert any(n.startswith("Pairs: sure background below") for n in record["notes"])


@pytest.mark.slow
def test_psa_walks_with_its_background(data, tmp_path):
    _, record = run(data, tmp_path / "run", variant="psa", seeds="grad_cam", pair_alphas=(4, 24))
    assert read_threshold(tmp_path / "run" / "seeds") == 0.5
    assert any("^4" in n and "^24" in n for n in record["notes"])
    run(data, tmp_path / "asked", variant="psa", threshold=0.4)
    assert read_threshold(tmp_path / "asked" / "seeds") == 0.4


def test_boundaries_are_trained_alone(data, tmp_path):
    run(data, tmp_path / "run", pair_thresholds=(0.2, 0.4))
    state = load_checkpoint(tmp_path / "run" / "affinity" / CHECKPOINT)
    assert state is not None
    assert {k.split(".")[0] for k in state["parts"]["module.network"]} == {"backbone", "edge"}
    with pytest.raises(MaskwrightError, match="displacement"):
        run(data, tmp_path / "other", displacement=True)


def test_without_a_background_class_only_classes_make_pairs(data, tmp_path):
    run(data, tmp_path / "run", background="none", pair_crf=False)
    labels = LabelStore(tmp_path / "run" / "pairs", mw.open_folder(data).classes)
    found = [labels.read(name) for name in labels.names]
    assert all((m.ids[m.valid] > 0).all() for m in found) and any(not m.valid.all() for m in found)


def test_a_walk_that_was_cut_short_goes_on(data, tmp_path):
    folder = tmp_path / "run"
    run(data, folder)
    first = {p.name: p.read_bytes() for p in (folder / "seeds" / "masks").iterdir()}
    maps = sorted((folder / "walk" / "maps").iterdir())
    kept = maps[0].stat().st_mtime_ns
    for path in maps[2:]:
        path.unlink()
    (folder / "walk" / "stage.json").unlink()
    shutil.rmtree(folder / "seeds")
    run(data, folder)
    assert {p.name: p.read_bytes() for p in (folder / "seeds" / "masks").iterdir()} == first
    assert maps[0].stat().st_mtime_ns == kept and all(p.exists() for p in maps)
