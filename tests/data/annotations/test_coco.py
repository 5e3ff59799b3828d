"""COCO's files, written by hand and read, beside what pycocotools draws of them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco
from pycocotools.coco import COCO

from maskwright.data.annotations.checks import Source
from maskwright.data.annotations.coco import decode_counts, encode_counts
from maskwright.data.annotations.converting import convert
from maskwright.data.folders.folder import open_folder
from maskwright.data.layouts import open_data

SIZE = (20, 30)


def photos(root: Path, *names: str) -> None:
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((*SIZE, 3), 90, np.uint8)).save(path)


def disc(row: float, column: float, radius: float) -> np.ndarray:
    y, x = np.mgrid[: SIZE[0], : SIZE[1]] + 0.5
    return (y - row) ** 2 + (x - column) ** 2 < radius**2


def written_by_hand(root: Path) -> dict:
    """Two photographs: a box in two parts, runs as numbers and as text, a crowd beneath a smaller object."""
    photos(root, "images/a.png", "images/b.png", "images/c.png")
    ring = disc(10, 10, 8) & ~disc(10, 10, 3)
    runs = coco.encode(np.asfortranarray(ring.astype(np.uint8)))
    flat = disc(8, 20, 5).T.ravel()
    counts = np.diff(np.concatenate([[0], np.flatnonzero(flat[1:] != flat[:-1]) + 1, [flat.size]])).tolist()
    value = {
        "images": [{"id": 7, "file_name": "a.png", "height": 20, "width": 30},
                   {"id": 9, "file_name": "b.png", "height": 20, "width": 30},
                   {"id": 11, "file_name": "gone.png", "height": 20, "width": 30}],
        "categories": [{"id": 3, "name": "dog"}, {"id": 1, "name": "cat"}],
        "annotations": [
            {"id": 1, "image_id": 7, "category_id": 3, "iscrowd": 0, "bbox": [1, 1, 9, 9], "area": 30,
             "segmentation": [[1, 1, 6, 1, 6, 5, 1, 5], [20, 10, 25, 10, 25, 12, 20, 12]]},
            {"id": 2, "image_id": 7, "category_id": 1, "iscrowd": 1,
             "segmentation": {"size": [20, 30], "counts": counts}},
            {"id": 3, "image_id": 9, "category_id": 1, "iscrowd": 0,
             "segmentation": {"size": [20, 30], "counts": runs["counts"].decode()}},
            {"id": 4, "image_id": 9, "category_id": 3, "iscrowd": 0, "segmentation": [], "bbox": [0, 0, 5, 5]},
            {"id": 5, "image_id": 11, "category_id": 3, "iscrowd": 0, "segmentation": [[1, 1, 6, 1, 6, 5]]},
        ],
    }  # fmt: skip
    (root / "notes.json").write_text(json.dumps(value))
    return value


@pytest.mark.parametrize("spec", ["coco:{}", "coco:{}/notes.json", "{}"])
def test_a_file_written_by_hand(tmp_path, spec):
    written_by_hand(tmp_path)
    data = open_data(spec.format(tmp_path))
    assert data.classes.names == ("background", "cat", "dog") and data.names == ["a", "b", "c"]
    assert [data.has_mask(i) for i in range(3)] == [True, True, False]
    a = np.where(disc(8, 20, 5), 1, 0)
    a[1:5, 1:6], a[10:12, 20:25] = 2, 2
    assert np.array_equal(data.mask(0), a)
    assert np.array_equal(data.mask(1), disc(10, 10, 8) & ~disc(10, 10, 3))
    told = " ".join(data.notices)
    for words in (
        "class 0, background",
        "1 images that the annotations name are not there (gone.png)",
        "1 boxes without",
    ):
        assert words in told
    assert data.ledger.counts()["train"]["masks"] == 2


def test_runs_as_text_are_those_of_pycocotools():
    rng = np.random.default_rng(0)
    for density in (0.001, 0.1, 0.5, 1.0):
        mask = rng.random((83, 61)) < density
        text = coco.encode(np.asfortranarray(mask.astype(np.uint8)))["counts"].decode()
        counts = decode_counts(text, Source(Path("x"), "x"), "x")
        assert sum(counts) == mask.size and encode_counts(counts) == text
        flat = np.repeat(np.arange(len(counts)) % 2, counts).astype(bool)
        assert np.array_equal(flat.reshape(61, 83).T, mask)


def test_what_is_written_is_drawn_alike_by_pycocotools(tmp_path):
    ids = np.where(disc(10, 10, 8), 1, 0).astype(np.uint8)
    ids[disc(10, 10, 3)] = 2
    ids[disc(6, 24, 4)] = 2
    ids[0:3, 0:3] = 255
    photos(tmp_path / "data", "images/p.png")
    (tmp_path / "data" / "masks").mkdir()
    Image.fromarray(ids).save(tmp_path / "data" / "masks" / "p.png")
    (tmp_path / "data" / "classes.txt").write_text("background\nring\ncore\n")
    convert(str(tmp_path / "data"), tmp_path / "out", "coco", tolerance=0)
    theirs = COCO(str(tmp_path / "out" / "annotations.json"))
    assert {c["id"]: c["name"] for c in theirs.loadCats(theirs.getCatIds())} == {
        0: "background", 1: "ring", 2: "core", 3: "__ignore__"}  # fmt: skip
    drawn = np.zeros(SIZE, np.uint8)
    for row in theirs.loadAnns(theirs.getAnnIds()):
        mask = theirs.annToMask(row)
        assert int(mask.sum()) == row["area"]
        drawn[mask > 0] = 255 if row["category_id"] == 3 else row["category_id"]
    assert np.array_equal(drawn, ids)
    kinds = {theirs.cats[a["category_id"]]["name"]: type(a["segmentation"]) for a in theirs.anns.values()}
    assert kinds == {"ring": dict, "core": list, "__ignore__": list}, "runs where there is a hole alone"
    assert np.array_equal(open_folder(tmp_path / "out").mask(0), ids)


def test_slanted_edges_agree_with_pycocotools_but_for_pixels_on_the_edge(tmp_path):
    photos(tmp_path, "a.png")
    polygon = [3.3, 2.1, 27.2, 8.4, 14.9, 18.7]
    value = {
        "images": [{"id": 1, "file_name": "a.png", "height": 20, "width": 30}],
        "categories": [{"id": 1, "name": "x"}],
        "annotations": [{"image_id": 1, "category_id": 1, "segmentation": [polygon]}],
    }
    (tmp_path / "a.coco.json").write_text(json.dumps(value))
    ours = open_data(f"coco:{tmp_path}").mask(0)
    theirs = coco.decode(coco.merge(coco.frPyObjects([polygon], *SIZE)))
    assert (ours != theirs).sum() <= 0.05 * theirs.sum()


def test_files_of_several_splits_are_joined_by_names(tmp_path):
    for split, categories in (("train", {1: "cat", 2: "dog"}), ("valid", {5: "dog", 6: "cat"})):
        photos(tmp_path, f"{split}/{split}_a.png")
        value = {
            "images": [{"id": 1, "file_name": f"{split}_a.png", "height": 20, "width": 30}],
            "categories": [{"id": k, "name": n} for k, n in categories.items()],
            "annotations": [
                {"image_id": 1, "category_id": min(categories), "segmentation": [[0, 0, 4, 0, 4, 4, 0, 4]]}
            ],
        }
        (tmp_path / split / "_annotations.coco.json").write_text(json.dumps(value))
    data = open_folder(tmp_path)
    assert data.classes.names == ("background", "cat", "dog")
    assert [int(data.split(s).mask(0).max()) for s in ("train", "valid")] == [1, 2]


def test_a_class_list_says_all(tmp_path):
    written_by_hand(tmp_path)
    (tmp_path / "classes.txt").write_text("dog\ncat\n")
    data = open_data(f"coco:{tmp_path}")
    assert data.classes.names == ("dog", "cat") and set(np.unique(data.mask(0))) == {0, 1, 255}
    assert "what no shape covers has no class" in " ".join(data.notices)


def test_who_reads_drawings_is_not_given_those_of_another_meaning(tmp_path):
    written_by_hand(tmp_path)
    data = open_data(f"coco:{tmp_path}")
    before = data.mask(0)
    convert(str(tmp_path), tmp_path.parent / "other", "masks", names=("dog", "cat"))
    assert np.array_equal(data.mask(0), before)
