"""LabelMe's, CVAT's and YOLO's files, and tables of colours, written by hand as their documentation has them."""

from __future__ import annotations

import base64
import io
import json
import zipfile
from pathlib import Path

import numpy as np
from PIL import Image
from tests.data.annotations.test_coco import SIZE, disc, photos

from maskwright.data.annotations.converting import convert
from maskwright.data.examining.doctor import examine
from maskwright.data.examining.reading import Reading
from maskwright.data.folders.folder import open_folder
from maskwright.data.layouts import open_data
from maskwright.evaluate.protocols import evaluate_folder


def png(pixels: np.ndarray) -> str:
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "PNG")
    return base64.b64encode(out.getvalue()).decode()


def labelme(path: Path, shapes: list[dict], **more: object) -> None:
    value = {"version": "5.5.0", "flags": {}, "shapes": shapes, "imagePath": path.with_suffix(".png").name,
             "imageData": None, "imageHeight": SIZE[0], "imageWidth": SIZE[1]}  # fmt: skip
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value | more))


def shape(label: str, points: list, kind: str = "polygon", **more: object) -> dict:
    return {"label": label, "points": points, "group_id": None, "shape_type": kind, "flags": {}, **more}


def test_labelme_by_hand(tmp_path):
    photos(tmp_path, "a.png", "b.png")
    labelme(tmp_path / "a.json", [
        shape("dog", [[2, 2], [12, 2], [12, 12], [2, 12]]),
        shape("cat", [[10, 10], [4, 4]], "rectangle"),
        shape("dog", [[22, 10], [27, 10]], "circle"),
        shape("__ignore__", [[0, 0], [3, 1]], "mask", mask=png(np.full((2, 4), 255, np.uint8))),
        shape("cat", [[1, 1], [9, 9]], "line"),
    ])  # fmt: skip
    data = open_folder(tmp_path)
    expected = np.where(disc(10, 22, 5), 2, 0)
    expected[2:12, 2:12], expected[4:10, 4:10], expected[0:2, 0:4] = 2, 1, 255
    assert data.classes.names == ("background", "cat", "dog") and [data.has_mask(i) for i in range(2)] == [True, False]
    assert np.array_equal(data.mask(0), expected)
    assert "1 shapes of the kind 'line' are left out" in " ".join(data.notices)
    assert evaluate_scores(tmp_path, expected) == 1


def evaluate_scores(truth: Path, expected: np.ndarray) -> float:
    predicted = truth.parent / f"{truth.name}-predicted"
    predicted.mkdir()
    Image.fromarray(expected.astype(np.uint8)).save(predicted / "a.png")
    return evaluate_folder(predicted, truth, "direct").to_json()["miou"]


def test_labelme_whose_photograph_lies_inside_or_elsewhere(tmp_path):
    picture = np.random.default_rng(0).integers(0, 255, (*SIZE, 3), dtype=np.uint8)
    labelme(tmp_path / "in" / "x.json", [shape("cat", [[0, 0], [5, 0], [5, 5]])], imageData=png(picture))
    data = open_folder(tmp_path / "in")
    assert np.array_equal(data.image(0), picture) and data.mask(0).max() == 1
    photos(tmp_path, "two/photos/y.png")
    labelme(
        tmp_path / "two" / "json" / "y.json", [shape("cat", [[0, 0], [5, 0], [5, 5]])], imagePath="..\\photos\\y.png"
    )
    assert open_folder(tmp_path / "two").labels_present()["masks"] == 1


CVAT = """<?xml version="1.0" encoding="utf-8"?>
<annotations><version>1.1</version>
<meta><task><labels><label><name>cat</name><color>#ff0000</color><attributes></attributes></label>
<label><name>dog</name><color>#00ff00</color><attributes></attributes></label></labels></task></meta>
<image id="0" name="a.png" width="30" height="20">
  <polygon label="dog" source="manual" points="2.0,2.0;12.0,2.0;12.0,12.0;2.0,12.0" z_order="1"></polygon>
  <box label="cat" source="manual" occluded="0" xtl="0" ytl="0" xbr="6" ybr="6" z_order="0"></box>
  <mask label="cat" source="manual" rle="2, 3, 1" left="20" top="15" width="3" height="2" z_order="0"></mask>
  <polyline label="cat" points="1,1;5,5" z_order="0"></polyline>
</image>
<image id="1" name="b.png" width="30" height="20"></image>
</annotations>
"""


def cvat_ids() -> np.ndarray:
    ids = np.zeros(SIZE, int)
    ids[0:6, 0:6] = 1
    ids[2:12, 2:12] = 2
    ids[15:17, 20:23] = [[0, 0, 1], [1, 1, 0]]
    return ids


def test_cvat_by_hand_and_in_an_archive(tmp_path):
    photos(tmp_path, "d/images/a.png", "d/images/b.png")
    (tmp_path / "d" / "annotations.xml").write_text(CVAT)
    data = open_folder(tmp_path / "d")
    assert data.classes.names == ("background", "cat", "dog") and data.classes.colors[1].tolist() == [255, 0, 0]
    assert np.array_equal(data.mask(0), cvat_ids())
    told = " ".join(data.notices)
    assert "1 photographs have no shape and count as unlabelled (b)" in told and "'polyline'" in told
    with zipfile.ZipFile(tmp_path / "export.zip", "w") as archive:
        archive.writestr("annotations.xml", CVAT)
    photos(tmp_path, "photos/a.png", "photos/b.png")
    done = convert(
        str(tmp_path / "export.zip"), tmp_path / "out", "masks", images=tmp_path / "photos", empty="background"
    )
    assert (done.images, done.masks) == (2, 2)
    again = open_folder(tmp_path / "out")
    assert np.array_equal(again.mask(0), cvat_ids()) and not again.mask(1).any() and again.notices == ()
    assert (tmp_path / "out" / "splits" / "labeled.txt").read_text() == "a\nb\n"


def test_cvats_mask_archive(tmp_path):
    colours = np.array([(0, 0, 0), (250, 50, 83), (51, 221, 255), (9, 9, 9)], np.uint8)
    ids = cvat_ids()
    ids[19, 29] = 3
    out = io.BytesIO()
    Image.fromarray(colours[ids]).save(out, "PNG")
    with zipfile.ZipFile(tmp_path / "masks.zip", "w") as archive:
        archive.writestr("labelmap.txt", "# label:color_rgb:parts:actions\nbackground:0,0,0::\ncat:250,50,83::\n"
                         "dog:51,221,255::\nignored:9,9,9::\n")  # fmt: skip
        archive.writestr("ImageSets/Segmentation/default.txt", "a\n")
        archive.writestr("SegmentationClass/a.png", out.getvalue())
    photos(tmp_path, "photos/a.png", "photos/b.png")
    done = convert(str(tmp_path / "masks.zip"), tmp_path / "out", "masks", images=tmp_path / "photos")
    assert done.masks == 1 and any("'ignored'" in s or "ignored" in s for s in done.said)
    data = open_folder(tmp_path / "out")
    assert data.classes.names == ("background", "cat", "dog")
    assert np.array_equal(data.mask(0), np.where(ids == 3, 255, ids))


def test_yolo_by_hand(tmp_path):
    photos(tmp_path, "images/train/a.png", "images/train/b.png", "images/train/c.png")
    (tmp_path / "labels" / "train").mkdir(parents=True)
    (tmp_path / "data.yaml").write_text("path: .\ntrain: images/train\nnames:\n  0: cat\n  1: dog\n")
    box = "0.1 0.1 0.4 0.1 0.4 0.6 0.1 0.6"
    (tmp_path / "labels" / "train" / "a.txt").write_text(
        f"1 {box}\n0 0.2 0.2 0.3 0.2 0.3 0.5 0.2 0.5\n0 0.5 0.5 0.1 0.1\n"
    )
    (tmp_path / "labels" / "train" / "b.txt").write_text("")
    data = open_folder(tmp_path)
    expected = np.zeros(SIZE, int)
    expected[2:12, 3:12], expected[4:10, 6:9] = 2, 1
    assert data.classes.names == ("background", "cat", "dog")
    assert [data.has_mask(i) for i in range(3)] == [True, True, False]
    assert np.array_equal(data.mask(0), expected) and not data.mask(1).any()
    assert "1 boxes are left out" in " ".join(data.notices)


def test_a_table_of_colours(tmp_path):
    photos(tmp_path, "images/a.png")
    (tmp_path / "masks").mkdir()
    ids = np.where(disc(10, 10, 5), 1, 0)
    ids[0, 0] = 2
    Image.fromarray(np.array([(1, 2, 3), (200, 0, 7), (5, 5, 5)], np.uint8)[ids]).save(tmp_path / "masks" / "a.png")
    (tmp_path / "t.txt").write_text("1 2 3 ground\n200 0 7 big disc\n5 5 5 Void\n")
    done = convert(str(tmp_path), tmp_path.parent / "coloured", "masks", colors=tmp_path / "t.txt")
    assert "what is drawn as Void has no class" in done.said
    back = open_folder(tmp_path.parent / "coloured")
    assert back.classes.names == ("ground", "big disc") and np.array_equal(back.mask(0), np.where(ids == 2, 255, ids))
    (tmp_path / "t.txt").rename(tmp_path / "label_colors.txt")
    assert np.array_equal(open_folder(tmp_path).mask(0), np.where(ids == 2, 255, ids))


def test_arrays_are_masks(tmp_path):
    photos(tmp_path, "images/a.png")
    (tmp_path / "masks").mkdir()
    np.save(tmp_path / "masks" / "a.npy", np.where(disc(10, 10, 5), 255, 0).astype(np.uint8))
    ids = open_data(str(tmp_path), Reading.parse("binary255")).mask(0)
    assert np.array_equal(ids, disc(10, 10, 5))
    np.save(tmp_path / "masks" / "a.npy", np.where(disc(10, 10, 5), 300, 0))
    assert open_data(str(tmp_path), Reading.parse("ids")).mask(0).max() == 300


def test_the_doctor_names_the_format_and_the_command(tmp_path):
    photos(tmp_path, "a.png")
    labelme(tmp_path / "a.json", [shape("cat", [[0, 0], [9, 0], [9, 9]])])
    diagnosis = examine(tmp_path)
    found, _ = diagnosis.of_kind("annotations")
    assert diagnosis.labels["masks"] == 1 and diagnosis.healthy and not diagnosis.of_kind("left-aside")
    assert "LabelMe" in found.message and f"maskwright convert {tmp_path} OUT --from labelme --to masks" in found.repair
    (tmp_path / "a_mask.png").write_bytes(b"")
    Image.fromarray(np.zeros(SIZE, np.uint8)).save(tmp_path / "a_mask.png")
    (beside,) = examine(tmp_path).of_kind("annotations")
    assert "lie beside the masks" in beside.message and beside.repair.startswith(f"name labelme:{tmp_path}")
    assert open_data(f"labelme:{tmp_path}").mask(0).max() == 1 and open_folder(tmp_path).mask(0).max() == 0
