from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from maskwright.app.pictures import figure, sample, write_previews
from maskwright.data.folders.folder import open_folder
from maskwright.data.masking.masks import read_mask
from maskwright.predict.model import Model

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "predict"))
from fakes import ColorSegmenter


def test_sample_is_spread_and_distinct():
    assert sample(5, 10) == [0, 1, 2, 3, 4]
    assert sample(101, 5) == [0, 25, 50, 75, 100]
    assert len(sample(13, 12)) == 12 and sample(7, 1) == [0] and sample(0, 3) == []


def test_previews_and_shares(tiny_folder, tmp_path):
    data, model = open_folder(tiny_folder), Model(ColorSegmenter())
    shares = write_previews(tmp_path, model, data, side=32)
    assert shares.shape == (3,) and shares.sum() == pytest.approx(1)
    truth = np.bincount(np.concatenate([data.mask(i).ravel() for i in range(len(data))])) / (8 * 48 * 64)
    np.testing.assert_allclose(shares, truth, atol=0.05)
    for name in data.names:
        assert Image.open(tmp_path / "previews" / f"{name}.jpg").size == (32, 24)
        assert read_mask(tmp_path / "previews" / f"{name}.png").shape == (24, 32)


def test_old_previews_go_and_bad_images_are_left_out(tiny_folder, tmp_path):
    old = tmp_path / "previews" / "gone.jpg"
    old.parent.mkdir()
    old.write_bytes(b"x")
    data = open_folder(tiny_folder)
    (tiny_folder / "images" / "picture_00.png").write_bytes(b"broken")
    write_previews(tmp_path, Model(ColorSegmenter()), data, count=4)
    names = sorted(p.name for p in old.parent.iterdir())
    assert "gone.jpg" not in names and "picture_00.jpg" not in names and len(names) == 6


def test_figure_without_a_class_table_or_of_wrong_size(tiny_folder, tmp_path):
    photo, mask = tiny_folder / "images" / "picture_00.png", tiny_folder / "masks" / "picture_00.png"
    assert "cluster 1" in figure(0, "a", photo, mask, None)
    Image.new("L", (5, 5)).save(tmp_path / "m.png")
    assert figure(0, "a", photo, tmp_path / "m.png", None) == ""
