"""Masks to each format and back, corrected masks into a folder, and what convert says."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tests.data.annotations.test_coco import SIZE, disc, photos, written_by_hand

from maskwright.data.annotations.converting import convert
from maskwright.data.annotations.writing import OUTLINES, TARGETS
from maskwright.data.examining.reading import Reading
from maskwright.data.folders.folder import Dataset, open_folder
from maskwright.data.layouts import open_data
from maskwright.errors import MaskwrightError


def scenes() -> dict[str, np.ndarray]:
    """A ring with a core, a line of one pixel, two parts, pixels without a class; one class alone; none at all."""
    mixed = np.where(disc(10, 10, 8), 1, 0).astype(np.uint8)
    mixed[disc(10, 10, 4)] = 0
    mixed[disc(10, 10, 2)] = 2
    mixed[np.arange(20), 20 + np.arange(20) // 4] = 2
    mixed[14:18, 26:29] = 255
    return {"a/mixed": mixed, "b plain": np.full(SIZE, 1, np.uint8), "empty": np.zeros(SIZE, np.uint8)}


def folder(root: Path, names: str = "background\nring\ncore\n", void: bool = True) -> Path:
    for name, ids in scenes().items():
        photos(root, f"images/{name}.png")
        path = root / "masks" / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(ids if void else np.where(ids == 255, 0, ids).astype(np.uint8)).save(path)
    photos(root, "images/unlabelled.png")
    (root / "classes.txt").write_text(names)
    return root


def ids_of(data: Dataset) -> dict[str, np.ndarray]:
    return {item.name: data.mask(i) for i, item in enumerate(data.items) if item.mask is not None}


def same(found: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> bool:
    return found.keys() == expected.keys() and all(np.array_equal(found[k], expected[k]) for k in expected)


@pytest.mark.parametrize("names", ["background\nring\ncore\n", "ground\nring\ncore\n", "ring\ncore\nbackground\n"])
@pytest.mark.parametrize("to", [t for t in TARGETS if t != "binary"])
def test_there_and_back(tmp_path, to, names):
    data = folder(tmp_path / "data", names)
    done = convert(str(data), tmp_path / "out", to, tolerance=0)
    assert (done.images, done.masks) == (4, 3)
    back = open_folder(tmp_path / "out")
    assert back.classes.names == tuple(names.split())
    assert sorted(back.names) == ["a/mixed", "b plain", "empty", "unlabelled"]
    assert same(ids_of(back), scenes())
    for item in back.items:
        assert item.image.read_bytes() == (data / "images" / f"{item.name}.png").read_bytes()
    if to in ("coco", "labelme", "cvat", "yolo"):
        assert same(ids_of(open_data(f"{to}:{tmp_path / 'out'}")), scenes())


@pytest.mark.parametrize("to", OUTLINES)
def test_without_a_class_list_the_format_says_enough(tmp_path, to):
    convert(str(folder(tmp_path / "data")), tmp_path / "out", to, tolerance=0)
    (tmp_path / "out" / "classes.txt").unlink()
    back = open_folder(tmp_path / "out")
    order = {"labelme": ("background", "core", "ring")}.get(to, ("background", "ring", "core"))
    assert back.classes.names == order
    table = np.arange(256)
    table[[1, 2]] = [order.index("ring"), order.index("core")]
    assert same(ids_of(back), {name: table[ids] for name, ids in scenes().items()})


@pytest.mark.parametrize("to", OUTLINES)
def test_outlines_within_a_tolerance(tmp_path, to):
    data = folder(tmp_path / "data")
    done = convert(str(data), tmp_path / "out", to, tolerance=2)
    found = ids_of(open_folder(tmp_path / "out"))
    changed = sum(int((found[name] != ids).sum()) for name, ids in scenes().items())
    share = changed / sum(ids.size for ids in scenes().values())
    assert any(f"within 2 pixels change {share:.2%} of" in s for s in done.said) and 0 < share < 0.03
    exact = tmp_path / "exact"
    convert(str(data), exact, to, tolerance=0)
    sizes = [
        sum(p.stat().st_size for p in f.rglob("*") if p.suffix in (".json", ".xml", ".txt"))
        for f in (tmp_path / "out", exact)
    ]
    assert sizes[0] <= sizes[1]


def test_masks_of_two_classes(tmp_path):
    data = folder(tmp_path / "data", "background\nring\n", void=False)
    mixed = data / "masks" / "a" / "mixed.png"
    Image.fromarray(disc(10, 10, 8).astype(np.uint8)).save(mixed)
    done = convert(str(data), tmp_path / "out", "binary")
    assert "verbs read them with --labels binary255" in done.said
    stored = np.asarray(Image.open(tmp_path / "out" / "masks" / "a" / "mixed.png"))
    assert set(np.unique(stored)) == {0, 255}
    (tmp_path / "out" / "classes.txt").unlink()
    back = convert(str(tmp_path / "out"), tmp_path / "coco", "coco", reading=Reading.parse("binary255"), tolerance=0)
    assert "masks of 0 and 255: the classes are background and object" in back.said
    assert np.array_equal(open_folder(tmp_path / "coco").mask(0), disc(10, 10, 8))
    with pytest.raises(MaskwrightError, match="3 classes in masks of 0 and 255"):
        convert(str(folder(tmp_path / "more")), tmp_path / "x", "binary")


def test_more_than_255_classes(tmp_path):
    photos(tmp_path / "data", "images/a.png")
    (tmp_path / "data" / "masks").mkdir()
    ids = (np.arange(600).reshape(SIZE) % 300).astype(np.uint16)
    ids[0, 0] = 65535
    Image.fromarray(ids).save(tmp_path / "data" / "masks" / "a.png")
    (tmp_path / "data" / "classes.txt").write_text("".join(f"class {k}\n" for k in range(300)))
    convert(str(tmp_path / "data"), tmp_path / "out", "coco", tolerance=0, reading=Reading.parse("ids"))
    assert np.array_equal(open_folder(tmp_path / "out").mask(0), ids)
    with pytest.raises(MaskwrightError, match="300 classes in masks of 8 bits"):
        convert(str(tmp_path / "data"), tmp_path / "x", "voc", reading=Reading.parse("ids"))


def test_a_split_alone_and_no_photographs(tmp_path):
    data = folder(tmp_path / "data")
    (data / "splits").mkdir()
    (data / "splits" / "few.txt").write_text("a/mixed\nunlabelled\n")
    done = convert(str(data), tmp_path / "out", "labelme", split="few", photographs=False)
    assert (done.images, done.masks) == (2, 1)
    assert sorted(p.name for p in (tmp_path / "out").rglob("*") if p.is_file()) == [
        "classes.txt", "labeled.txt", "labels.txt", "mixed.json"]  # fmt: skip


@pytest.mark.parametrize(("outside", "value"), [("void", 255), ("background", 0), (None, 0)])
def test_what_no_shape_covers(tmp_path, outside, value):
    written_by_hand(tmp_path / "data")
    done = convert(str(tmp_path / "data"), tmp_path / "out", "masks", outside=outside)
    data = open_folder(tmp_path / "out")
    assert data.mask(0)[19, 0] == value and len(data.classes) == (2 if outside == "void" else 3)
    assert any("what no shape covers" in sentence for sentence in done.said)


def test_corrected_masks_come_back_into_the_folder(tmp_path):
    """One mask is there, another was corrected in LabelMe: points are moved, an object gets another label."""
    data = folder(tmp_path / "photos", void=False)
    for name in ("b plain", "empty"):
        (data / "masks" / f"{name}.png").unlink()
    start = folder(tmp_path / "start", void=False)
    convert(str(start), tmp_path / "labelme", "labelme", tolerance=0)
    for name in ("a/mixed", "unlabelled"):
        (tmp_path / "labelme" / f"{name}.json").unlink(missing_ok=True)
    path = tmp_path / "labelme" / "b plain.json"
    value = json.loads(path.read_text())
    (shape,) = value["shapes"]
    shape["label"], shape["points"] = "core", [[0, 0], [15, 0], [15, 20], [0, 20]]
    path.write_text(json.dumps(value))
    before = {p: p.read_bytes() for p in data.rglob("*") if p.is_file()}
    done = convert(str(tmp_path / "labelme"), data, "masks", add=True)
    assert done.masks == 2
    found = ids_of(open_folder(data))
    assert found.keys() == {"a/mixed", "b plain", "empty"} and not found["empty"].any()
    assert (found["b plain"][:, :15] == 2).all() and not found["b plain"][:, 15:].any()
    assert all(p.read_bytes() == content for p, content in before.items()), "what was there is as it was"
    assert (data / "splits" / "labeled.txt").read_text() == "a/mixed\nb plain\nempty\n"
    with pytest.raises(MaskwrightError, match=r"a mask already in .*: 2 of the photographs .* --replace"):
        convert(str(tmp_path / "labelme"), data, "masks", add=True)
    convert(str(tmp_path / "labelme"), data, "masks", add=True, replace_masks=True)
    assert (data / "splits" / "labeled.txt").read_text() == "a/mixed\nb plain\nempty\n"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            lambda d: (d / "classes.txt").write_text("background\ncore\nring\nmore\n"),
            "the classes are background, ring, core .*--names .*classes.txt",
        ),
        (lambda d: (d / "images" / "empty.png").unlink(), "not in .*: 1 of the photographs"),
        (lambda d: Image.new("RGB", (9, 9)).save(d / "images" / "empty.png"), "the same photograph"),
    ],
)
def test_corrected_masks_that_do_not_fit(tmp_path, change, words):
    data = folder(tmp_path / "photos")
    convert(str(data), tmp_path / "out", "masks")
    shutil.rmtree(data / "masks")
    change(data)
    with pytest.raises(MaskwrightError, match=words):
        convert(str(tmp_path / "out"), data, "masks", add=True, kind="masks")
    assert not (data / "masks").exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"to": "cocoo"}, "unknown format 'cocoo'.*did you mean 'coco'"),
        ({"to": "coco", "kind": "vocc"}, "unknown format to read 'vocc'"),
        ({"to": "coco", "outside": "nothing"}, "--outside nothing; expected background or void"),
        ({"to": "coco", "outside": "void"}, "--outside void for masks"),
        ({"to": "coco", "add": True}, "--add with --to coco"),
        ({"to": "coco", "tolerance": -1}, "--tolerance -1"),
        ({"to": "coco", "names": ("a", "b")}, "--names of 2 classes"),
        ({"to": "coco", "split": "fewer"}, "no split 'fewer'"),
        ({"to": "coco", "images": Path("x")}, "--images for a folder of masks"),
    ],
)
def test_what_cannot_be_asked(tmp_path, arguments, words):
    data = folder(tmp_path / "data")
    with pytest.raises(MaskwrightError, match=words):
        convert(str(data), tmp_path / "out", **arguments)
    assert not (tmp_path / "out").exists()


def test_two_formats_in_one_folder_are_asked_about(tmp_path):
    written_by_hand(tmp_path)
    convert(str(tmp_path), tmp_path.parent / "out", "labelme", photographs=False)
    (tmp_path / "a.json").write_bytes((tmp_path.parent / "out" / "a.json").read_bytes())
    with pytest.raises(MaskwrightError, match=r"annotations of 2 formats.*name it: coco:.* or labelme:"):
        open_folder(tmp_path)
    assert open_data(f"labelme:{tmp_path}").has_mask(0)
