"""What may be plugged into the way from tags to masks."""

from __future__ import annotations

import json

import numpy as np
from PIL import Image

import maskwright as mw
from maskwright.data.training.labels import LabelStore
from maskwright.engine.progress import Progress
from maskwright.methods import TABLE


def test_maps_that_nothing_was_trained_for(tmp_path, monkeypatch):
    """Bright squares on dark ground, tagged "thing": the seeds are the squares, and a network learns from them."""
    monkeypatch.setitem(TABLE, "untrained", "tests.engine.plugs:Untrained")
    root, places = tmp_path / "data", {}
    (root / "images").mkdir(parents=True)
    for k in range(4):
        pixels = np.full((64, 64, 3), 20, np.uint8)
        places[f"p{k}"] = (slice(8 * k, 8 * k + 24), slice(16, 40))
        pixels[places[f"p{k}"]] = 230
        Image.fromarray(pixels).save(root / "images" / f"p{k}.png")
    (root / "classes.txt").write_text("ground\nthing\n")
    (root / "tags.csv").write_text("name,tags\n" + "".join(f"p{k},thing\n" for k in range(4)))
    small = {"crop": 32, "batch": 2, "scales": (1.0,), "threshold": 0.5, "seed_crf": False, "precision": "fp32"}
    model = mw.train(
        root, "untrained", out=tmp_path / "run", steps=2, backbone="mobilenetv2_050", weights="random", device="cpu",
        report=False, progress=Progress(quiet=True), settings=small,
    )  # fmt: skip
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert [(s["name"], s["kind"]) for s in record["stages"]][:2] == [("classify", "fit"), ("cams", "label")]
    assert record["labels_read"]["train"] == {"masks": 0, "tags": 4, "captions": 0}
    labels = LabelStore(tmp_path / "run" / "seeds", model.classes)
    for name, place in places.items():
        true = np.zeros((64, 64), bool)
        true[place] = True
        found = labels.read(name).ids.numpy() == 1
        assert (found & true).sum() / (found | true).sum() > 0.9
