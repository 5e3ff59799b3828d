"""Malformed and hostile files: each is one line that says what was found and what is expected."""

from __future__ import annotations

import io
import json
import stat
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest
from tests.data.annotations.test_coco import photos, written_by_hand
from tests.data.annotations.test_tools import CVAT, labelme, shape

from maskwright.data.annotations.archives import unpacked
from maskwright.data.annotations.converting import convert
from maskwright.data.layouts import open_data
from maskwright.errors import MaskwrightError

SQUARE = [1, 1, 9, 1, 9, 9, 1, 9]


def refused(spec: str, words: str) -> None:
    """Opening, or drawing the first mask, is an error of one line, and takes no time and memory."""
    start = time.perf_counter()
    with pytest.raises(MaskwrightError, match=words) as error:
        data = open_data(spec)
        data.mask(0)
    assert "\n" not in str(error.value) and len(str(error.value)) < 2000
    assert time.perf_counter() - start < 5


def coco(value: dict, **changes: object) -> dict:
    """The first annotation, the first image or the whole of a COCO file changed."""
    for key, change in changes.items():
        if key in ("annotations", "images", "categories") and isinstance(change, dict):
            value[key][0].update(change)
        else:
            value[key] = change
    return value


COCO = {
    "no lists": ({"annotations": 3}, "annotations is no list of objects"),
    "no categories": ({"categories": None}, "categories is no list"),
    "an unknown category": ({"annotations": {"category_id": 99}}, "has the category 99; expected an id among the 2"),
    "a high id": ({"categories": {"id": 2**31}}, "the id of category 0 is 2147483648"),
    "a very high id": ({"images": {"id": 2**70}}, "the id of image 0 is 1180591620717411303424"),
    "no id": ({"annotations": {"category_id": True}}, "category_id of annotation 0 is True"),
    "an image that is not listed": ({"annotations": {"image_id": 12345}}, "is of image 12345, which is not listed"),
    "the same file twice": ({"images": {"file_name": "b.png"}}, "lists the image 'b.png' .* twice"),
    "a category twice": ({"categories": {"name": "cat"}}, "names the category 'cat' .* twice"),
    "a path upwards": ({"images": {"file_name": "../../secret.png"}}, "whose path leads out of the folder"),
    "an absolute path": ({"images": {"file_name": "/etc/passwd"}}, "whose path leads out of the folder"),
    "no size": ({"images": {"width": -4}}, "the width of a.png is -4"),
    "too large": ({"images": {"width": 2**30, "height": 2**30}}, "at most 1074 million pixels"),
    "another size": ({"images": {"width": 31}}, r"runs of size \[20, 30\]; expected \[20, 31\]"),
    "odd numbers": ({"annotations": {"segmentation": [[1, 1, 9, 1, 9, 9, 1]]}}, "a polygon of 7 numbers"),
    "text": ({"annotations": {"segmentation": [[1, 1, "9", 1, 9, 9]]}}, "the coordinate '9'"),
    "far away": ({"annotations": {"segmentation": [[1, 1, 1e300, 1, 9, 9]]}}, r"the coordinate 1e\+300"),
    "many points": ({"annotations": {"segmentation": [[1.5] * 300_000]}}, "has 150000 points; .*100000"),
    "nested": ({"annotations": {"segmentation": [[[[[1, 2]]]]]}}, "the coordinate a list of 1"),
    "short runs": ({"annotations": {"segmentation": {"size": [20, 30], "counts": [5, 5]}}}, "runs of 10 pixels"),
    "negative runs": ({"annotations": {"segmentation": {"size": [20, 30], "counts": [-5, 605]}}}, "runs of 600 pixels"),
    "long runs": ({"annotations": {"segmentation": {"size": [20, 30], "counts": [2**62]}}}, "expected 600"),
    "runs of another size": ({"annotations": {"segmentation": {"size": [2**40, 2], "counts": [1]}}}, "runs of size"),
    "no runs": ({"annotations": {"segmentation": {"size": [20, 30], "counts": "\u20ac"}}}, "runs with"),
    "runs that break off": ({"annotations": {"segmentation": {"size": [20, 30], "counts": "oo"}}}, "break off"),
}


@pytest.mark.parametrize("case", COCO)
def test_coco(tmp_path, case):
    changes, words = COCO[case]
    value = coco(written_by_hand(tmp_path), **changes)
    (tmp_path / "notes.json").write_text(json.dumps(value))
    refused(f"coco:{tmp_path}/notes.json", words)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('{"images": NaN, "annotations": [], "categories": []}', "NaN, which is no JSON"),
        ('{"images": ' + "[" * 100_000 + "]" * 100_000 + ', "annotations": []}', "nested too deeply"),
        ('{"images": [', "no JSON"),
        ('["images", "annotations"]', "a list at the top"),
        ('{"images": ' + "9" * 10_000 + ', "annotations": []}', "no JSON"),
        ("\xff\xfe", "no JSON"),
    ],
)
def test_what_is_no_json(tmp_path, text, words):
    photos(tmp_path, "a.png")
    (tmp_path / "x.json").write_bytes(text.encode("latin-1"))
    refused(f"coco:{tmp_path}/x.json", words)


def test_photographs_that_are_missing(tmp_path):
    value = written_by_hand(tmp_path)
    for row in value["images"]:
        row["file_name"] = "lost_" + row["file_name"]
    (tmp_path / "notes.json").write_text(json.dumps(value))
    refused(f"coco:{tmp_path}", "none of the 3 images of notes.json is there")
    refused(f"coco:{tmp_path}/nothing", "does not exist")
    refused(f"yolo:{tmp_path}", "no table of the names")
    refused(f"cvat:{tmp_path}", "holds no annotations of CVAT; .* it looks like coco:")


@pytest.mark.parametrize(
    ("shapes", "more", "words"),
    [
        ([shape("", [[1, 1], [2, 2], [3, 1]])], {}, "the label of shape 0 is ''"),
        ([shape("x", [[1, 1, 1], [2, 2], [3, 1]])], {}, "points that are no pairs"),
        ([shape("x", "abc")], {}, "points that are no pairs"),
        ([shape("x", [[1, 1], [4, 4]], "mask", mask="iVBO")], {}, "a mask that cannot be read"),
        ([shape("x", [[1, 1], [4, 4]], "circle", mask=3)] * 2, {"imageHeight": None}, "height of the image is missing"),
        ("none", {}, "shapes is no list of objects"),
    ],
)  # fmt: skip
def test_labelme(tmp_path, shapes, more, words):
    photos(tmp_path, "a.png")
    labelme(tmp_path / "a.json", shapes, **more)
    refused(f"labelme:{tmp_path}", words)


def test_labelme_with_damaged_data(tmp_path):
    labelme(tmp_path / "a.json", [shape("x", [[1, 1], [2, 2], [3, 1]])], imageData="bm8gcGljdHVyZQ==")
    refused(f"labelme:{tmp_path}", "imageData that holds no picture")
    labelme(tmp_path / "a.json", [shape("x", [[1, 1], [2, 2], [3, 1]])], imagePath="../../../etc/passwd")
    refused(f"labelme:{tmp_path}", r"none of the 1 images of a.json is there")


BOMB = '<!DOCTYPE a [<!ENTITY x "ha">' + "".join(f'<!ENTITY x{k} "{"&x;" * 9}">' for k in range(9)) + "]>"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda t: t.replace("<annotations>", BOMB + "<annotations>", 1), "defines entities or a document type"),
        (lambda t: t.replace("<image ", "<a>" * 10_000 + "<image ", 1), "more than 64 elements in one another"),
        (lambda t: t[:400], "no XML"),
        (lambda t: t.replace("annotations", "notes"), "an element 'notes' at the top"),
        (lambda t: t.replace("<image ", "<track></track><image ", 1), "tracks of a video"),
        (lambda t: t.replace("2.0,2.0;", "nan,2.0;"), "is 'nan'; expected a number"),
        (lambda t: t.replace("2.0,2.0;", "1,1;" * 1_000_000), "has 1000004 points|100000"),
        (lambda t: t.replace('rle="2, 3, 1"', 'rle="2, 3, 1, 9"'), "runs of 15 pixels; expected 6"),
        (lambda t: t.replace('left="20"', 'left="28"'), "leaves its image"),
        (lambda t: t.replace('name="b.png"', 'name="a.png"'), "lists the image 'a.png' twice"),
        (lambda t: t.replace('name="a.png"', 'name="../a.png"'), "leads out of the folder"),
        (lambda t: t.replace('width="30"', 'width="x"'), "width of a.png is 'x'"),
        (lambda t: t.replace('z_order="1"', 'z_order="99999999999"'), "z_order is"),
    ],
)  # fmt: skip
def test_cvat(tmp_path, change, words):
    photos(tmp_path, "a.png", "b.png")
    (tmp_path / "annotations.xml").write_text(change(CVAT))
    refused(f"cvat:{tmp_path}/annotations.xml", words)


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("2 0.1 0.1 0.4 0.1 0.4 0.6", "line 1 has the class 2; expected 0 to 1"),
        ("-1 0.1 0.1 0.4 0.1 0.4 0.6", "the class in line 1 is"),
        ("0 0.1 0.1 0.4 0.1 0.4", "line 1 has 6 numbers"),
        ("0 0.1 0.1 0.4 nan 0.4 0.6", "line 1 is 'nan'"),
        ("0 10 10 40 10 40 60", "shares of the image's width and height"),
        ("0" + " 0.5" * 2_000_000, "has 1000000 points"),
        ("cat dog", "the class in line 1 is 'cat'"),
    ],
)
def test_yolo(tmp_path, line, words):
    photos(tmp_path, "a.png")
    (tmp_path / "data.yaml").write_text("names: [cat, dog]\n")
    (tmp_path / "a.txt").write_text(line)
    refused(f"yolo:{tmp_path}", words)


@pytest.mark.parametrize(
    ("text", "words"),
    [("names: 3\n", "names no classes"), ("names: [a, a]\n", "names a class twice"), ("a: [\n", "no YAML"),
     ("!!python/object/apply:os.system ['x']", "no YAML"), ("[" * 5000, "no YAML"),
     ("names: {x: y}", "number of a class")],
)  # fmt: skip
def test_yolos_table(tmp_path, text, words):
    photos(tmp_path, "a.png")
    (tmp_path / "data.yaml").write_text(text)
    refused(f"yolo:{tmp_path}", words)


@pytest.mark.parametrize(
    ("text", "words"),
    [("a,1,2,3\nb,1,2,3\n", "lines 1 and 2 .* the same colour"), ("a,1,2,3\na,1,2,4\n", "the same name"),
     ("a,1,2,300\n", "has the colour"), ("name,r,g,b\n", "names no class"), ("a,1,2,3\nb 4\n", "line 2 of"),
     ("a,1,2,3\n", "holds the colour 9, 9, 9, which is of no class; .* add a line for it")],
)  # fmt: skip
def test_tables_of_colours(tmp_path, text, words):
    from PIL import Image

    photos(tmp_path, "images/a.png")
    (tmp_path / "masks").mkdir()
    Image.fromarray(np.full((20, 30, 3), 9, np.uint8)).save(tmp_path / "masks" / "a.png")
    (tmp_path / "colors.csv").write_text(text)
    refused(f"colours:{tmp_path}", words)


def archive(path: Path, members: dict[str, bytes], link: str = "") -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        for name, data in members.items():
            file.writestr(name, data)
        if link:
            entry = zipfile.ZipInfo(link)
            entry.external_attr = (stat.S_IFLNK | 0o777) << 16
            file.writestr(entry, "/etc")
    return path


def test_archives(tmp_path):
    cases = {
        "leads out of it": archive(tmp_path / "a.zip", {"../x.xml": b"x"}),
        "leads out of it ": archive(tmp_path / "b.zip", {"/x.xml": b"x"}),
        "holds the link": archive(tmp_path / "c.zip", {"x.xml": b"x"}, link="y"),
        "says that it unpacks to": archive(tmp_path / "d.zip", {"x.xml": bytes(80 << 20)}),
    }
    for words, path in cases.items():
        refused(f"cvat:{path}", words.strip())
    (tmp_path / "e.zip").write_bytes(cases["holds the link"].read_bytes()[:40])
    refused(f"cvat:{tmp_path}/e.zip", "cannot be unpacked")
    good = archive(tmp_path / "g.zip", {"sub/a.txt": b"one"})
    folder = unpacked(good)
    assert (folder / "sub" / "a.txt").read_bytes() == b"one" and unpacked(good) == folder
    data = bytearray(good.read_bytes())
    data[data.index(b"sub/a.txt") + len("sub/a.txt")] ^= 0x55
    (tmp_path / "h.zip").write_bytes(bytes(data))
    refused(f"cvat:{tmp_path}/h.zip", "cannot be unpacked")


@pytest.mark.parametrize(
    "array", [np.zeros((20, 30)), np.zeros((20, 30, 3), np.uint8), np.full((20, 30), -1), np.zeros(0, int)]
)
def test_arrays_that_are_no_masks(tmp_path, array):
    photos(tmp_path, "images/a.png")
    (tmp_path / "masks").mkdir()
    np.save(tmp_path / "masks" / "a.npy", array)
    refused(str(tmp_path), "class ids|floating|from -1")


def test_arrays_are_never_unpickled(tmp_path):
    photos(tmp_path, "images/a.png")
    (tmp_path / "masks").mkdir()
    out = io.BytesIO()
    np.save(out, np.array([{"a": 1}], object), allow_pickle=True)
    (tmp_path / "masks" / "a.npy").write_bytes(out.getvalue())
    refused(str(tmp_path), "cannot be read as an array")


def test_nothing_is_written_where_something_is_wrong(tmp_path):
    value = written_by_hand(tmp_path / "data")
    (tmp_path / "data" / "notes.json").write_text(json.dumps(coco(value, annotations={"category_id": 99})))
    for arguments in ({"kind": "coco"}, {"kind": "cocoo"}, {}):
        with pytest.raises(MaskwrightError):
            convert(str(tmp_path / "data"), tmp_path / "out", "masks", **arguments)
        assert sorted(p.name for p in tmp_path.iterdir()) == ["data"]
