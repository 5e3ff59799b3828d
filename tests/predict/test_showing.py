"""What a notebook shows of a result, a model and a data set: bounded, and without reading a label."""

from __future__ import annotations

import base64
import re
from io import BytesIO

import numpy as np
import pytest
from fakes import ColorSegmenter
from PIL import Image
from tests.conftest import write_tiny_folder

from maskwright.data.folders.folder import open_folder
from maskwright.data.masking.classes import ClassTable
from maskwright.models.provenance import Provenance
from maskwright.predict.model import Model, Result
from maskwright.predict.showing import thumbnail

TABLE = ClassTable(("ground <b>", "disc", "never"), np.array([(0, 0, 200), (200, 0, 0), (0, 200, 0)], np.uint8))


def picture_in(html: str) -> np.ndarray:
    data = re.search('src="data:image/jpeg;base64,([^"]+)"', html)[1]
    return np.array(Image.open(BytesIO(base64.b64decode(data)))).astype(int)


def result(size=(60, 80), photo: np.ndarray | None = None) -> Result:
    mask = np.zeros(size, np.uint16)
    mask[:, size[1] // 4 :] = 1
    return Result(mask, np.full(size, 0.75, np.float32), TABLE, photo=photo)


def test_a_result_shows_the_tinted_photograph_and_the_classes_that_occur():
    photo = np.full((60, 80, 3), 100, np.uint8)
    html = result(photo=thumbnail(photo))._repr_html_()
    shown = picture_in(html)
    assert shown.shape == (60, 80, 3)
    assert np.abs(shown[30, 5] - (50, 50, 150)).max() < 12 and np.abs(shown[30, 60] - (150, 50, 50)).max() < 12
    assert "ground &lt;b&gt; 25.0 %" in html and "disc 75.0 %" in html and "never" not in html
    assert html.index("disc 75") < html.index("ground &lt;"), "the largest first"
    assert "80 x 60 pixels" in html and "0.75" in html
    png = np.array(Image.open(BytesIO(result(photo=thumbnail(photo))._repr_png_())))
    assert png.shape == (60, 80, 3)
    assert picture_in(result()._repr_html_())[30, 60].tolist() == pytest.approx([200, 0, 0], abs=6), "the mask alone"


def test_what_is_shown_of_a_large_picture_is_small():
    noise = np.random.default_rng(0).integers(0, 256, (1500, 2000, 3), np.uint8)
    assert thumbnail(noise).shape == (360, 480, 3)
    html = result((1500, 2000), thumbnail(noise))._repr_html_()
    assert picture_in(html).shape == (360, 480, 3) and len(html) < 400_000


def test_a_result_of_a_model_has_its_photograph_and_the_model_a_card(tiny_folder):
    segmenter = ColorSegmenter()
    segmenter.provenance = Provenance("net <x>", source="package: y", labels_seen="ImageNet-1k classes")
    segmenter.method = "kmeans"
    extra = {"method": {"title": "A <title>", "paper": "CVPR"}, "seed": 7, "image_size": [48, 64],
             "labels_read": {"train": {"masks": 12, "tags": 0}, "select": {"masks": 3}}}  # fmt: skip
    model = Model(segmenter, extra)
    data = open_folder(tiny_folder)
    assert np.array_equal(model.predict(data.image(0)).photo, data.image(0))
    card = model._repr_html_()
    for told in (
        "A &lt;title&gt; · CVPR", "net &lt;x&gt;", "package: y", "ImageNet-1k classes", "unknown", "64 x 48", ">7<",
        "12 masks for training, 3 masks for selection", *model.classes.names,
    ):  # fmt: skip
        assert told in card, told
    assert "tags" not in card


def test_a_data_set_shows_a_few_photographs_and_reads_no_label(tmp_path):
    root = write_tiny_folder(tmp_path / "tiny", count=12)
    (root / "images" / "picture_00.png").write_bytes(b"no picture")
    data = open_folder(root)
    html = data._repr_html_()
    assert html.count("<img") == 5 and "picture_00" in html and "picture_11" in html
    assert "12 images" in html and "mask, tags, captions" in html and len(html) < 80_000
    assert not any(n for kinds in data.ledger.counts().values() for n in kinds.values())


def test_deep_images_are_shown_without_a_survey_of_the_folder(tmp_path, monkeypatch):
    (tmp_path / "images").mkdir()
    for k in range(3):
        Image.fromarray(np.linspace(0, 4000, 64 * 48).reshape(48, 64).astype(np.uint16)).save(
            tmp_path / "images" / f"{k}.png"
        )
    data = open_folder(tmp_path)
    monkeypatch.setattr(type(data), "survey", lambda self: pytest.fail("every file was read"))
    assert picture_in(data._repr_html_()).max() > 200
