from __future__ import annotations

import base64
import re
import sys
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from maskwright.app.pictures import SHARES, figure, preview_shares, sample, write_previews
from maskwright.data.folders.folder import open_folder
from maskwright.data.masking.classes import ClassTable
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
    names = sorted(p.name for p in old.parent.iterdir() if p.name != SHARES)
    assert "gone.jpg" not in names and "picture_00.jpg" not in names and len(names) == 6


def test_figure_without_a_class_table_or_of_wrong_size(tiny_folder, tmp_path):
    photo, mask = tiny_folder / "images" / "picture_00.png", tiny_folder / "masks" / "picture_00.png"
    assert "cluster 1" in figure(0, "a", photo, mask, None)
    Image.new("L", (5, 5)).save(tmp_path / "m.png")
    assert figure(0, "a", photo, tmp_path / "m.png", None) == ""


def test_thin_structures_are_seen_in_their_colour_and_told_by_their_true_area(tmp_path):
    """Lines of one and two pixels on a photograph three times the size of its preview."""
    line, ground = (40, 70, 220), (90, 140, 90)
    image, ids = np.full((240, 300, 3), ground, np.uint8), np.zeros((240, 300), np.uint8)
    for k in range(20, 280, 20):
        ids[:, k : k + 1 + k // 140] = 2
    image[ids == 2] = line
    (tmp_path / "data").mkdir()
    Image.fromarray(image).save(tmp_path / "data" / "a.png")
    model = Model(ColorSegmenter(stride=1, short_side=240))
    write_previews(tmp_path, model, open_folder(tmp_path / "data"), side=100)
    small = read_mask(tmp_path / "previews" / "a.png")
    assert small.shape == (80, 100)
    columns = np.flatnonzero((small == 2).all(0))
    assert len({round(c * 3 / 20) for c in columns}) == 13, "each line runs through"
    known = preview_shares(tmp_path / "previews")["a"]
    assert known["2"] == pytest.approx((ids == 2).mean(), abs=1e-6) and (small == 2).mean() > 2 * known["2"]
    colors = np.array([(60, 60, 60), (0, 0, 0), (255, 220, 0)], np.uint8)
    photo = tmp_path / "previews" / "a.jpg"
    html = figure(0, "a", photo, photo.with_suffix(".png"), ClassTable(("ground", "no", "vessel"), colors), known)
    assert f"vessel {100 * known['2']:.0f} %" in html
    shown = re.findall(r"data:image/jpeg;base64,([^\"]+)", html)[1]
    pixels = np.asarray(Image.open(BytesIO(base64.b64decode(shown))).convert("RGB")).astype(int)
    of_line = pixels[np.ix_(np.arange(5, 75), columns)].reshape(-1, 3)
    assert (np.abs(of_line - colors[2]).max(1) < 70).mean() > 0.95, "yellow, neither grey nor white"
