"""The montage and the map of a run of clusters, against a segmenter whose answer is known."""

from __future__ import annotations

import csv
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from maskwright.app.montage import CELL, GAP, LABEL, ROWS, look, montage_files, write_clusters
from maskwright.data.folders.folder import open_folder
from maskwright.predict.model import Model

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "predict"))
from fakes import COLORS, ColorSegmenter


def rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "map.csv").open() as file:
        return list(csv.DictReader(file))


def test_shares_and_places_are_those_of_the_pixels(tiny_folder):
    data = open_folder(tiny_folder)
    seen = look(Model(ColorSegmenter()), data)
    truth = np.stack([data.mask(i) for i in range(len(data))])
    for k in range(3):
        inside = truth == k
        assert seen.share[k] == pytest.approx(inside.mean(), abs=0.02)
        _, y, x = np.nonzero(inside)
        assert seen.places[k] == pytest.approx(((y.mean() + 0.5) / 48, (x.mean() + 0.5) / 64), abs=0.03)


def test_the_map_and_the_picture(tiny_folder, tmp_path):
    data, model = open_folder(tiny_folder), Model(ColorSegmenter(classes=4))
    shares, places = write_clusters(tmp_path, model, data)
    found = rows(tmp_path)
    assert [r["cluster"] for r in found] == ["0", "1", "2", "3"] and {r["name"] for r in found} == {""}
    assert [float(r["share"]) for r in found] == pytest.approx(shares, abs=1e-4) and shares.sum() == pytest.approx(1)
    assert (
        0 <= places.accuracy <= 1
        and places.chance == pytest.approx(shares.max(), abs=0.02)
        and places.photographs == len(data)
    )
    assert found[3]["row"] == "" and found[3]["share"] == "0.0000", "a cluster that no photograph holds"
    assert found[1]["colour"] == "#" + bytes(model.classes.colors[1]).hex()
    (sheet,) = montage_files(tmp_path)
    picture = np.asarray(Image.open(sheet)).astype(int)
    assert picture.shape[0] == 4 * (CELL + GAP) + GAP
    for k in (1, 2):  # in its row stand crops of what it is: most pixels have its colour of the photographs
        top = GAP + k * (CELL + GAP)
        crop = picture[top : top + CELL, LABEL + 3 * (CELL + GAP) : LABEL + 3 * (CELL + GAP) + CELL]
        assert (np.abs(crop - COLORS[k]).max(2) < 60).mean() > 0.35
    empty = picture[GAP + 3 * (CELL + GAP) + 4 : -GAP - 4, LABEL:]
    assert (empty > 235).all(), "no picture of what is nowhere"


def test_many_clusters_make_several_pictures_and_fewer_take_old_ones_away(tiny_folder, tmp_path):
    data = open_folder(tiny_folder).subset([0, 1])
    write_clusters(tmp_path, Model(ColorSegmenter(classes=ROWS + 1)), data)
    assert [p.name for p in montage_files(tmp_path)] == ["montage.jpg", "montage-2.jpg"]
    write_clusters(tmp_path, Model(ColorSegmenter()), data)
    assert [p.name for p in montage_files(tmp_path)] == ["montage.jpg"] and len(rows(tmp_path)) == 3


def test_photographs_of_one_pixel_and_none_that_can_be_read(tmp_path):
    (tmp_path / "images").mkdir()
    Image.new("RGB", (1, 1), tuple(int(v) for v in COLORS[1])).save(tmp_path / "images" / "a.png")
    Image.new("RGB", (200, 2), tuple(int(v) for v in COLORS[2])).save(tmp_path / "images" / "b.png")
    data, model = open_folder(tmp_path), Model(ColorSegmenter())
    assert write_clusters(tmp_path / "run", model, data).share == pytest.approx([0, 0.5, 0.5])
    for path in (tmp_path / "images").iterdir():
        path.write_bytes(b"broken")
    (tmp_path / "run" / "map.csv").unlink()
    nothing = write_clusters(tmp_path / "run", model, data)
    assert not nothing.share.any() and nothing.places is None
    assert [r["row"] for r in rows(tmp_path / "run")] == [""] * 3
