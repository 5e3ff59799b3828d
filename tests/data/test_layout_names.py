"""Folders as people have them: masks are masks, photographs are photographs, and nothing vanishes without a word."""

from __future__ import annotations

import itertools
import os
import shutil
import tempfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from maskwright.data.examining.doctor import examine
from maskwright.data.folders.folder import Dataset, open_folder
from maskwright.data.folders.folder_names import plain_stem
from maskwright.data.folders.recognise import recognise
from maskwright.data.masking.label_maps import looks_like_labels
from maskwright.errors import MaskwrightError

SIZE = (24, 32)
_seeds = itertools.count()


def photo(path: Path, mode: str = "RGB") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(next(_seeds)).integers(0, 256, (*SIZE, 3), dtype=np.uint8)
    Image.fromarray(noise).convert(mode).save(path)


def mask(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    ids = np.zeros(SIZE, np.uint8)
    ids[4:12, 6:20] = 1
    Image.fromarray(ids).save(path)


def fill(root: Path, images: str, masks: str, count: int = 3) -> Path:
    """Files p0, p1, ... whose places are patterns with {} for the number."""
    for i in range(count):
        photo(root / images.format(i))
        mask(root / masks.format(i))
    return root


def said(data: Dataset, *words: str) -> None:
    text = " | ".join(data.notices)
    for word in words:
        assert word in text, text


LAYOUTS = [
    ("Images/p{}.jpg", "Masks/p{}.png", "images from Images, masks from Masks", ""),
    ("JPEGImages/p{}.jpg", "SegmentationClass/p{}.png", "masks from SegmentationClass", ""),
    ("imgs/p{}.png", "labels/p{}.png", "images from imgs, masks from labels", ""),
    ("image/p{}.jpg", "mask/p{}.png", "images from image, masks from mask", ""),
    ("images/p{}.jpg", "labels/p{}.png", "images from images, masks from labels", ""),
    ("images/p{}.jpg", "Ground Truth/p{}.bmp", "masks from Ground Truth", ""),
    ("p{}.jpg", "gt/p{}.png", "images from the folder itself, masks from gt", ""),
    ("set/photos/p{}.jpg", "set/annotations/p{}.png", "images from set/photos", "set/"),
    ("images/p{}.jpg", "annotations/trimaps/p{}.png", "masks from annotations/trimaps", ""),
    ("img_dir/train/p{}.jpg", "ann_dir/train/p{}.png", "masks from ann_dir", "train/"),
    ("images/p{}.jpg", "images/p{}_mask.png", "3 masks beside their images, named with _mask", ""),
    ("p{}.jpg", "p{}-GT.png", "named with -GT", ""),
    ("images/cat/p{}.png", "images/cat/p{}_label.png", "named with _label", "cat/"),
    ("images/p{}_sat.jpg", "images/p{}_mask.png", "named with _mask", ""),
    ("p{}.jpg", "p{}.png", "as PNG of the same name", ""),
    ("images/p{}.png", "images/p{}.tif", "as TIF of the same name", ""),
    ("images/p{}.jpg", "masks/p{}_segmentation.png", "with _segmentation", ""),
    ("train/p{}.jpg", "train_masks/p{}_mask.gif", "images from train, masks from train_masks", "train/"),
]  # fmt: skip


@pytest.mark.parametrize(("images", "masks", "how", "prefix"), LAYOUTS, ids=[" + ".join(x[:2]) for x in LAYOUTS])
def test_usual_folders(tmp_path, images: str, masks: str, how: str, prefix: str) -> None:
    fill(tmp_path, images, masks)
    data = open_folder(tmp_path)
    stem = os.path.splitext(images.rpartition("/")[2])[0]
    assert data.names == [prefix + stem.format(i) for i in range(3)]
    assert [item.mask for item in data.items] == [tmp_path / masks.format(i) for i in range(3)]
    assert all(item.image == tmp_path / images.format(i) for i, item in enumerate(data.items))
    said(data, how)
    found = examine(tmp_path)
    assert found.labels["masks"] == 3 and how in found.of_kind("layout")[0].message and found.healthy
    assert data.aside == ()


@pytest.mark.parametrize("place", ["", "images/"])
def test_the_documented_folder_is_silent(tmp_path, place: str) -> None:
    fill(tmp_path, f"{place}p{{}}.jpg", "masks/p{}.png")
    (tmp_path / "classes.txt").write_text("a\nb\n")
    (tmp_path / "README.md").write_text("mine")
    data = open_folder(tmp_path)
    assert data.notices == () and data.labels_present()["masks"] == 3 and data.names == ["p0", "p1", "p2"]
    assert examine(tmp_path).findings == ()


def test_folders_of_classes_keep_their_names(tmp_path) -> None:
    """The names of folders of classes may be those of image folders; masks/ beside them decides."""
    for name in ("photos", "label", "cat"):
        fill(tmp_path, name + "/p{}.jpg", "masks/" + name + "/p{}.png", 2)
    data = open_folder(tmp_path)
    assert data.names == ["cat/p0", "cat/p1", "label/p0", "label/p1", "photos/p0", "photos/p1"]
    assert data.labels_present()["masks"] == 6 and data.notices == ()


def test_a_folder_for_each_split(tmp_path) -> None:
    fill(tmp_path, "train/images/p{}.jpg", "train/masks/p{}.png", 3)
    fill(tmp_path, "Val/images/q{}.jpg", "Val/masks/q{}.png", 2)
    photo(tmp_path / "test" / "images" / "r.jpg")
    data = open_folder(tmp_path)
    assert data.names == ["Val/q0", "Val/q1", "test/r", "train/p0", "train/p1", "train/p2"]
    assert data.split_names == ["test", "train", "val"] and data.labels_present()["masks"] == 5
    assert data.split("train").names == ["train/p0", "train/p1", "train/p2"] and data.split("val").has_mask(1)
    (tmp_path / "splits").mkdir()
    (tmp_path / "splits" / "train.txt").write_text("p1\n")
    assert open_folder(tmp_path).split("train").names == ["train/p1"], "a list says more than a folder"
    assert open_folder(tmp_path).split_names == ["test", "train", "val"]


def test_split_and_kind_in_one_name(tmp_path) -> None:
    fill(tmp_path, "train_images/p{}.jpg", "train_labels/p{}.png", 3)
    fill(tmp_path, "valImages/q{}.jpg", "val-masks/q{}.png", 2)
    photo(tmp_path / "test_images" / "r.jpg")
    data = open_folder(tmp_path)
    assert data.names == ["test/r", "train/p0", "train/p1", "train/p2", "val/q0", "val/q1"]
    assert data.split_names == ["test", "train", "val"] and data.labels_present()["masks"] == 5


@pytest.mark.parametrize(
    ("second", "rename"), [("labels/p{}.png", ("gt", "masks")), ("mask/p{}.png", ("mask", "masks"))]
)
def test_two_folders_of_masks_are_asked_about(tmp_path, second: str, rename: tuple[str, str]) -> None:
    fill(tmp_path, "images/p{}.jpg", "gt/p{}.png")
    fill(tmp_path, "images/p{}.jpg", second)
    with pytest.raises(MaskwrightError, match=r"masks in gt and in .*rename the one to use to masks"):
        open_folder(tmp_path)
    (tmp_path / rename[0]).rename(tmp_path / rename[1])  # the repair
    data = open_folder(tmp_path)
    assert data.items[0].mask == tmp_path / "masks" / "p0.png"
    said(data, "left aside")


def test_two_pairs_are_asked_about(tmp_path) -> None:
    fill(tmp_path, "Images/p{}.jpg", "Masks/p{}.png")
    fill(tmp_path, "photos/p{}.jpg", "labels/p{}.png")
    with pytest.raises(MaskwrightError, match="images in Images and in photos, masks in Masks and in labels"):
        open_folder(tmp_path)
    (tmp_path / "photos").rename(tmp_path / "images")
    (tmp_path / "labels").rename(tmp_path / "masks")
    data = open_folder(tmp_path)
    assert data.items[0].image == tmp_path / "images" / "p0.jpg" and data.labels_present()["masks"] == 3
    said(data, "Images/", "Masks/", "not read")


def test_two_masks_of_one_image_are_asked_about(tmp_path) -> None:
    fill(tmp_path, "images/p{}.jpg", "images/p{}_mask.png")
    fill(tmp_path, "images/p{}.jpg", "images/p{}_gt.png")
    with pytest.raises(MaskwrightError, match=r"are masks of one image.*other_masks"):
        open_folder(tmp_path)
    (tmp_path / "other_masks").mkdir()
    for path in (tmp_path / "images").glob("*_gt.png"):  # the repair
        path.rename(tmp_path / "other_masks" / path.name)
    assert open_folder(tmp_path).labels_present()["masks"] == 3


def test_masks_beside_documented_ones_are_left_aside(tmp_path) -> None:
    fill(tmp_path, "images/p{}.jpg", "masks/p{}.png")
    fill(tmp_path, "images/p{}.jpg", "labels/p{}.png")
    data = open_folder(tmp_path)
    assert data.items[0].mask == tmp_path / "masks" / "p0.png"
    said(data, "labels/ (3 PNG; not read)")
    mask(tmp_path / "images" / "p0_mask.png")
    data = open_folder(tmp_path)
    assert data.names == ["p0", "p1", "p2"]
    said(data, "images/p0_mask.png (looks like a mask beside its image")


def test_cityscapes_is_pointed_to_its_layout(tmp_path) -> None:
    photo(tmp_path / "leftImg8bit" / "train" / "a" / "a_1_leftImg8bit.png")
    mask(tmp_path / "gtFine" / "train" / "a" / "a_1_gtFine_labelIds.png")
    with pytest.raises(MaskwrightError, match=r"name it cityscapes:"):
        open_folder(tmp_path)
    from maskwright.data.layouts import open_data

    assert open_data(f"cityscapes:{tmp_path}").labels_present()["masks"] == 1  # the repair


def test_photographs_called_as_masks_stay_photographs(tmp_path) -> None:
    for name in ("face", "face_mask", "room_seg", "a_label"):
        photo(tmp_path / "images" / f"{name}.png")
    data = open_folder(tmp_path)
    assert len(data) == 4 and data.labels_present()["masks"] == 0 and data.notices == ()


def test_photographs_that_look_like_label_maps(tmp_path) -> None:
    fill(tmp_path, "one/p{}.jpg", "two/p{}.png")
    data = open_folder(tmp_path)
    assert data.names == ["one/p0", "one/p1", "one/p2"]
    said(data, "two/ holds 3 files that look like label maps", "rename two to masks (and one to images)")
    assert examine(tmp_path).of_kind("looks-like-labels")[0].severity == "warning"
    shutil.copytree(tmp_path, tmp_path.parent / "renamed")
    for old, new in (("one", "images"), ("two", "masks")):  # the repair
        (tmp_path.parent / "renamed" / old).rename(tmp_path.parent / "renamed" / new)
    assert open_folder(tmp_path.parent / "renamed").labels_present()["masks"] == 3
    shutil.rmtree(tmp_path / "one")
    data = open_folder(tmp_path)
    assert len(data) == 3
    said(data, "3 of 3 images without a mask that were looked at look like label maps")


def test_predictions_beside_folders_of_images_and_masks(tmp_path) -> None:
    fill(tmp_path, "a/images/p{}.jpg", "a/masks/p{}.png")
    for i in range(3):
        mask(tmp_path / "found" / f"p{i}.png")
    said(open_folder(tmp_path), "look like label maps", "the first found/p0")


def test_images_without_masks_beside_others_with_masks_are_asked_about(tmp_path) -> None:
    fill(tmp_path, "train/images/p{}.jpg", "train/masks/p{}.png")
    photo(tmp_path / "images" / "figure.jpg")
    with pytest.raises(MaskwrightError, match="images without masks in images, and images with masks in train/images"):
        open_folder(tmp_path)
    assert open_folder(tmp_path / "train").labels_present()["masks"] == 3  # the one repair
    (tmp_path / "images").rename(tmp_path.parent / "figures")  # the other
    assert open_folder(tmp_path).split("train").labels_present()["masks"] == 3


def test_a_folder_beside_that_cannot_be_listed(tmp_path, monkeypatch) -> None:
    """As lost+found at the top of a disk: it is named, and does not stop the reading."""
    fill(tmp_path, "images/p{}.jpg", "masks/p{}.png")
    (tmp_path / "lost+found").mkdir()
    scandir = os.scandir

    def refuse(path: str) -> object:
        if "lost+found" in os.fspath(path):
            raise PermissionError(13, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    data = open_folder(tmp_path)
    assert data.labels_present()["masks"] == 3
    said(data, "lost+found/ (cannot be read)")
    (tmp_path / "images" / "lost+found").mkdir()
    with pytest.raises(MaskwrightError, match="cannot read"):
        open_folder(tmp_path)


def test_what_looks_like_labels(tmp_path) -> None:
    mask(tmp_path / "m.png")
    photo(tmp_path / "p.png")
    photo(tmp_path / "g.png", "L")
    photo(tmp_path / "palette.gif", "P")
    assert looks_like_labels(tmp_path / "m.png", colours=False)
    for name in ("p.png", "g.png", "palette.gif"):
        assert not looks_like_labels(tmp_path / name, colours=True), name
    colours = np.zeros((*SIZE, 3), np.uint8)
    colours[:8] = (128, 0, 0)
    Image.fromarray(colours).save(tmp_path / "c.png")
    Image.fromarray(colours).save(tmp_path / "c.jpg")
    assert looks_like_labels(tmp_path / "c.png", colours=True) and looks_like_labels(tmp_path / "c.jpg", colours=True)
    assert not looks_like_labels(tmp_path / "c.png", colours=False)
    Image.new("RGB", (8, 8), (9, 9, 9)).save(tmp_path / "sheet.png")
    assert not looks_like_labels(tmp_path / "sheet.png", colours=True)
    (tmp_path / "bad.png").write_bytes(b"\x89PNG\r\n\x1a\n damaged")
    assert not looks_like_labels(tmp_path / "bad.png", colours=True)


def test_loose_images_and_folders_are_all_read(tmp_path) -> None:
    for name in ("a", "b"):
        photo(tmp_path / f"{name}.jpg")
    for i in range(4):
        photo(tmp_path / "more" / f"c{i}.jpg")
    photo(tmp_path / "runs" / "x" / "label" / "images" / "d.jpg")
    mask(tmp_path / "runs" / "x" / "label" / "masks" / "d.png")
    (tmp_path / "runs" / "x" / "run.json").write_text("{}")
    mask(tmp_path / "predictions" / "a.png")
    data = open_folder(tmp_path)
    assert data.names == ["a", "b", "more/c0", "more/c1", "more/c2", "more/c3"]
    said(data, "2 folders are left aside: predictions/, runs/ (results)")
    assert examine(tmp_path).of_kind("left-aside")[0].severity == "note"


def test_files_left_aside_are_named(tmp_path) -> None:
    fill(tmp_path, "images/p{}.jpg", "masks/p{}.png", 1)
    files = ("images/q.heic", "images/r.CR2", "images/p0.txt", "masks/q.npz", "masks/r.json", "labels/p0.txt", "s.png")
    for file in files:
        (tmp_path / file).parent.mkdir(exist_ok=True)
        (tmp_path / file).write_bytes(b"x")
    mask(tmp_path / "masks" / "p0.tif")
    data = open_folder(tmp_path)
    assert dict(data.aside).keys() == {*files, "masks/p0.tif", "labels/"} - {"labels/p0.txt"}
    said(
        data,
        "7 files and 1 folder are left aside",
        "HEIC is not read",
        "CR2",
        "NPZ",
        "JSON",
        "p0.png has the same name",
    )
    said(data, "labels/ (1 TXT; not read)", "convert them to JPEG or PNG", "export labels as index PNG into masks/")
    (finding,) = examine(tmp_path).of_kind("left-aside")
    assert finding.severity == "warning" and finding.count == 8
    (tmp_path / "images" / "p0.jpg").unlink()
    with pytest.raises(MaskwrightError, match=r"holds no images, but .* other files or folders"):
        open_folder(tmp_path)


def test_lists_of_class_names_that_labelme_writes(tmp_path) -> None:
    """They have other names; the repair is to rename them."""
    fill(tmp_path, "images/p{}.jpg", "masks/p{}.png")
    (tmp_path / "labels.txt").write_text("__ignore__\n_background_\nleaf\n")
    said(open_folder(tmp_path), "labels.txt (class names are read from classes.txt); rename it to classes.txt")
    (tmp_path / "labels.txt").rename(tmp_path / "classes.txt")
    data = open_folder(tmp_path)
    assert data.classes is not None and data.classes.names == ("background", "leaf") and data.mask(0).max() == 1
    assert [f.message for f in examine(tmp_path).of_kind("notice")] == list(data.notices)


def test_masks_without_image_are_named(tmp_path) -> None:
    fill(tmp_path, "images/p{}.jpg", "masks/p{}.png")
    mask(tmp_path / "masks" / "q.png")
    data = open_folder(tmp_path)
    assert data.lone == ("masks/q.png",)
    said(data, "1 masks have no image of the same name and are not used (masks/q.png)")
    (finding,) = examine(tmp_path).of_kind("mask-without-image")
    assert finding.examples == ("q.png",)
    mask(tmp_path / "p9_mask.png")
    beside = fill(tmp_path.parent / "beside", "p{}.jpg", "p{}_mask.png")
    mask(beside / "z_mask.png")
    assert open_folder(beside).lone == ("z_mask.png",) and open_folder(beside).names == ["p0", "p1", "p2"]


def test_plain_stem() -> None:
    assert [plain_stem(n) for n in ("a_Mask.png", "x/b-gt.tif", "c.png", "_mask.png", "d_labelIds.png")] == [
        "a", "b", "c", "_mask", "d",
    ]  # fmt: skip


FOLDERS = ("", "images", "masks", "Images", "labels", "train", "train/images", "train/masks", "cat", "cat/x", "runs",
           "splits", "val_masks", "gt/sub")  # fmt: skip
FILES = ("a.jpg", "a.png", "a_mask.png", "b.JPG", "b.png", "b.tif", "c.heic", "d.txt", "classes.csv", "README.md", "e",
         "caf\u00e9.png", "cafe\u0301.png", "run.json", "annotations.json")  # fmt: skip


@settings(max_examples=60)
@given(st.lists(st.tuples(st.sampled_from(FOLDERS), st.sampled_from(FILES)), min_size=1, max_size=14, unique=True))
def test_nothing_vanishes(files: list[tuple[str, str]]) -> None:
    """Each file is an image, a mask, a list, or named: itself or a folder that it lies in."""
    with tempfile.TemporaryDirectory() as place:
        root = Path(place)
        for k, (folder, file) in enumerate(files):
            path = root / folder / file
            path.parent.mkdir(parents=True, exist_ok=True)
            if path.suffix == ".JPG" or path.suffix == ".jpg":
                Image.fromarray(np.random.default_rng(k).integers(0, 256, (6, 7, 3), dtype=np.uint8)).save(path)
            elif path.suffix in (".png", ".tif"):
                Image.fromarray(np.full((6, 7), k, np.uint8)).save(path)
            else:
                path.write_text("x")
        try:
            found = recognise(root)
        except MaskwrightError as error:
            assert "rename" in str(error) or "move" in str(error)
            return
        read = {p.relative_to(root).as_posix() for p in (*found.images.values(), *found.masks.values())}
        named = {*found.lone, *(f for f, _ in found.aside)}
        skipped = {f.rpartition("/")[2] for f, _ in found.skipped}
        for folder, file in files:
            path = f"{folder}/{file}" if folder else file
            above = {path[: i + 1] for i, c in enumerate(path) if c == "/"}
            known = path in read | named or above & named or file in skipped
            assert known or path.startswith("splits/"), (path, found)


def test_probe_and_suggest_say_what_opening_found(tmp_path, monkeypatch) -> None:
    """The other verbs are in test_scan.py, which runs them."""
    from maskwright import api
    from maskwright.evaluate.protocols import evaluate_arrays
    from maskwright.predict import suggest
    from maskwright.recipes.probing import luss_probe

    fill(tmp_path, "Images/p{}.jpg", "Masks/p{}.png")
    (tmp_path / "splits").mkdir()
    for split in ("train", "test"):
        (tmp_path / "splits" / f"{split}.txt").write_text("p0\np1\n")
    ids = np.zeros((2, 2), np.uint8)
    scores = evaluate_arrays([(ids, ids)], 2)
    monkeypatch.setattr(luss_probe, "probe_encoder", lambda *given, **options: scores)
    assert api.probe("backbone", tmp_path).notes[0] == "images from Images, masks from Masks"
    monkeypatch.setattr(suggest, "suggest", lambda model, data, *given, **options: data.notices)
    model = SimpleNamespace(read_as_trained=lambda data: data)
    monkeypatch.setattr("maskwright.api.suggesting.load", lambda *given, **options: model)
    notices = api.suggest("model", tmp_path, 1, by="entropy", device="cpu")
    assert list(notices).count("images from Images, masks from Masks") == 1


def test_the_truth_of_an_evaluation(tmp_path) -> None:
    """What it leaves out is a note; masks beside photographs are the truth, not the photographs."""
    from maskwright import api

    fill(tmp_path / "beside", "p{}.jpg", "p{}_mask.png")
    predictions = tmp_path / "predicted"
    for i in range(4):
        mask(predictions / f"p{i}.png")
    scores = api.evaluate(predictions, tmp_path / "beside")
    assert scores.images == 3 and scores.miou == 1 and any("named with _mask" in n for n in scores.notes)
    documented = fill(tmp_path / "set", "images/p{}.jpg", "masks/p{}.png")
    (documented / "images" / "p2.jpg").unlink()
    scores = api.evaluate(predictions, documented)
    assert scores.images == 2 and sum("no image" in n for n in scores.notes if "predictions" not in n) == 1


def test_the_doctor_of_a_layout(tmp_path) -> None:
    """`doctor LAYOUT:PATH`, its masks and its splits, and a missing folder in one line."""
    fill(tmp_path, "JPEGImages/p{}.jpg", "SegmentationClass/p{}.png")
    lists = tmp_path / "ImageSets" / "Segmentation"
    lists.mkdir(parents=True)
    (lists / "train.txt").write_text("p0\np1\n")
    found = examine(f"voc:{tmp_path}")
    assert found.labels["masks"] == 3 and found.labels["splits"]["train"] == 2 and len(found.labels["classes"]) == 21
    for spec, words in ((f"voc:{tmp_path}/none", "does not exist"), (f"vok:{tmp_path}", "did you mean 'voc'")):
        with pytest.raises(MaskwrightError, match=words):
            examine(spec)
    with pytest.raises(MaskwrightError, match=r"longer than this system takes|does not exist"):
        examine("voc" + "x" * 5000)
