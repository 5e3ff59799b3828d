"""The demo on the photographs of the installed packages."""

from __future__ import annotations

import json

import pytest
from PIL import Image

from maskwright import demo
from maskwright.errors import MaskwrightError


def test_demo_twice_and_never_over_other_files(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("MASKWRIGHT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(demo, "STEPS", 3)
    few = {"skimage": ("data/chelsea.png", "data/coffee.png"), "sklearn": ("datasets/images/flower.jpg",)}
    assert all(set(names) <= set(demo.PHOTOGRAPHS[package]) for package, names in few.items())
    monkeypatch.setattr(demo, "PHOTOGRAPHS", few)
    out = tmp_path / "demo"
    for _ in range(2):
        demo.run_demo(out)
        said = capsys.readouterr().out
        assert "0 for training, 0 for selection" in said and "ImageNet-1k" in said and "report.html" in said
    photographs = sorted((out / "photographs").iterdir())
    assert len(photographs) == 3
    for path in photographs:
        assert Image.open(out / "masks" / f"{path.stem}.png").size == Image.open(path).size
        assert (out / "masks" / "overlays" / f"{path.stem}.jpg").exists()
    record = json.loads((out / "run" / "run.json").read_text())
    assert record["status"] == "finished" and not any(record["labels_read"]["train"].values())
    (out / "mine.txt").write_text("keep")
    with pytest.raises(MaskwrightError, match="other files"):
        demo.run_demo(out)
    assert (out / "mine.txt").exists() and (out / "run").exists()
