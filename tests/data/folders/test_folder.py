"""A dataset is a folder: names, labels, splits, hidden masks, and what bad folders are told."""

from __future__ import annotations

import os
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from maskwright.data.folders.folder import Dataset, Item, Readers, open_folder
from maskwright.data.folders.tables import NameIndex, read_captions, read_tags
from maskwright.data.masking.classes import ClassTable
from maskwright.data.masking.masks import read_mask_rg, write_mask_rg
from maskwright.data.trust.ledger import Ledger
from maskwright.errors import MaskwrightError


def picture(path: Path, size: tuple[int, int] = (6, 8), colour: int = 90) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size[::-1], (colour, 20, 30)).save(path)


def test_open(tiny_folder) -> None:
    ds = open_folder(tiny_folder)
    assert len(ds) == 8 and ds.names[0] == "picture_00" and ds.index("picture_03") == 3
    assert ds.classes is not None and ds.classes.names == ("ground", "disc", "square")
    assert ds.image(2).shape == (48, 64, 3) and ds.size(2) == (48, 64)
    assert ds.split_names == ["test", "train"]
    assert ds.labels_present() == {"masks": 8, "tags": 8, "captions": 8}
    assert sum(n for kinds in ds.ledger.counts().values() for n in kinds.values()) == 0
    assert "picture_00" in ds and "nobody" not in ds
    for part in ("8 images", "masks", "ground, disc, square", "train (4)"):
        assert part in ds.summary()
    assert "8 masks" in repr(ds)


def test_labels_are_noted(tiny_folder) -> None:
    ds = open_folder(tiny_folder)
    assert set(np.unique(ds.mask(0))) == {0, 1} and ds.mask(0).dtype == np.uint8
    ds.split("train").mask(0)
    with ds.ledger.purpose("evaluate"):
        assert ds.split("test").mask(1).shape == (48, 64)
    assert ds.tags(1) == ("square",)
    assert ds.captions(0) == ("a red disc on green ground",)
    assert ds.ledger.counts()["train"] == {"masks": 1, "tags": 1, "captions": 1}
    assert ds.ledger.counts()["evaluate"] == {"masks": 1, "tags": 0, "captions": 0}


def test_split_and_labeled_commute(tiny_folder) -> None:
    (tiny_folder / "splits" / "few.txt").write_text("picture_01.png\r\n\r\npicture_06\n")
    ds = open_folder(tiny_folder)
    one, two = ds.split("train").labeled("few"), ds.labeled("few").split("train")
    assert one.items == two.items and len(one) == 4
    assert [one.has_mask(i) for i in range(4)] == [False, True, False, False]
    assert one.labels_present() == {"masks": 1, "tags": 4, "captions": 4}
    with pytest.raises(MaskwrightError, match="no mask that may be read"):
        one.mask(0)
    assert one.mask(1).shape == (48, 64)
    assert ds.has_mask(0), "the dataset it came from is unchanged"
    assert one.ledger is ds.ledger
    path = tiny_folder.parent / "elsewhere.lst"
    path.write_text("images/picture_02.png masks/picture_02.png")
    assert ds.labeled(path).labels_present()["masks"] == 1
    assert ds.labeled(["picture_02", "picture_03"]).labels_present()["masks"] == 2
    assert ds.labeled("few").labeled("train").labels_present()["masks"] == 1
    assert ds.split(path).names == ["picture_02"]


def test_split_keeps_the_order_of_its_list(tiny_folder) -> None:
    (tiny_folder / "splits" / "back.txt").write_text("picture_05\npicture_02\npicture_05\n")
    assert open_folder(tiny_folder).split("back").names == ["picture_05", "picture_02"]


def test_unknown_names(tiny_folder) -> None:
    ds = open_folder(tiny_folder)
    with pytest.raises(MaskwrightError, match=r"unknown split 'tran'.*did you mean 'train'"):
        ds.split("tran")
    (tiny_folder / "splits" / "odd.txt").write_text("picture_00\npicture_0x\nzzz\n")
    with pytest.raises(MaskwrightError, match=r"2 of 3 names.*nearest is 'picture_0"):
        ds.split("odd")
    shutil.rmtree(tiny_folder / "splits")
    with pytest.raises(MaskwrightError, match="no splits"):
        ds.split("train")


def test_images_directly_in_the_folder(tmp_path) -> None:
    for name in ("b.JPG", "a.png", ".hidden.png", "._a.png"):
        picture(tmp_path / name)
    (tmp_path / "masks").mkdir()
    Image.new("L", (8, 6)).save(tmp_path / "masks" / "b.png")
    picture(tmp_path / "results" / "c.png")
    (tmp_path / "notes.txt").write_text("x")
    ds = open_folder(tmp_path)
    assert ds.names == ["a", "b"] and [ds.has_mask(i) for i in range(2)] == [False, True]
    assert ds.classes is None and ds.split_names == [] and ds.tags(0) is None and ds.captions(0) == ()


def test_nested_folders_and_names_with_dots(tmp_path) -> None:
    picture(tmp_path / "images" / "cat" / "x.1.png")
    picture(tmp_path / "images" / "dog" / "y.png")
    picture(tmp_path / "images" / "z.jpg")
    (tmp_path / "masks" / "dog").mkdir(parents=True)
    Image.new("L", (8, 6)).save(tmp_path / "masks" / "dog" / "y.png")
    os.symlink(tmp_path / "images", tmp_path / "images" / "loop")
    ds = open_folder(tmp_path)
    assert ds.names == ["cat/x.1", "dog/y", "z"] and ds.has_mask(1)
    (tmp_path / "splits").mkdir()
    (tmp_path / "splits" / "s.txt").write_text("dog/y.png\nx.1\nimages/z.jpg\ncat\\x.1.png\n")
    assert ds.split("s").names == ["dog/y", "cat/x.1", "z"]


def test_folders_of_classes_without_images_folder(tmp_path) -> None:
    picture(tmp_path / "cat" / "a.png")
    picture(tmp_path / "dog" / "a.png")
    Image.new("L", (8, 6)).save(tmp_path / "a.txt", "PNG")
    (tmp_path / "masks" / "cat").mkdir(parents=True)
    Image.new("L", (8, 6)).save(tmp_path / "masks" / "cat" / "a.png")
    ds = open_folder(tmp_path)
    assert ds.names == ["cat/a", "dog/a"] and ds.labels_present()["masks"] == 1


def test_two_files_of_one_name(tmp_path) -> None:
    picture(tmp_path / "images" / "a.jpg")
    picture(tmp_path / "images" / "a.png")
    ds = open_folder(tmp_path)
    assert ds.names == ["a"] and ds.skipped[0][0] == "a.png" and "same name" in ds.skipped[0][1]


def test_bad_folders(tmp_path) -> None:
    with pytest.raises(MaskwrightError, match="does not exist"):
        open_folder(tmp_path / "no")
    (tmp_path / "photos").mkdir()
    with pytest.raises(MaskwrightError, match=r"did you mean .*photos"):
        open_folder(tmp_path / "photo")
    with pytest.raises(MaskwrightError, match="is empty"):
        open_folder(tmp_path / "photos")
    (tmp_path / "photos" / "a.txt").write_text("x")
    with pytest.raises(MaskwrightError, match="holds no images"):
        open_folder(tmp_path / "photos")
    with pytest.raises(MaskwrightError, match="is a file"):
        open_folder(tmp_path / "photos" / "a.txt")


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="this user may read everything")
def test_unreadable_folder(tmp_path) -> None:
    tmp_path.chmod(0)
    try:
        with pytest.raises(MaskwrightError, match="cannot read"):
            open_folder(tmp_path)
    finally:
        tmp_path.chmod(0o700)


def test_tables(tmp_path) -> None:
    path = tmp_path / "t.csv"
    path.write_bytes("\ufeffname,tags\r\na.jpg,cat; dog;cat\r\nb,\r\n\r\nc,cow;,sheep\r\n".encode())
    assert read_tags(path) == {"a.jpg": ("cat", "dog"), "b": (), "c": ("cow", "sheep")}
    path.write_text('name,caption\na,"a cat, asleep"\na,"second ""one"""\nb,not quoted, with comma\n')
    assert read_captions(path) == {"a": ("a cat, asleep", 'second "one"'), "b": ("not quoted, with comma",)}
    path.write_text("name,tags\n" + "a,b\n")
    path.write_bytes("name,tags\na,b\n".encode("utf-16"))
    assert read_tags(path) == {"a": ("b",)}
    for content, said in (
        (b"a,cat\n", "header"),
        (b"", "empty"),
        (b"\xff\xd8\xff\xe0", "UTF-8"),
        (b"\0\0", "not text"),
    ):
        path.write_bytes(content)
        with pytest.raises(MaskwrightError, match=said):
            read_tags(path)


def test_tables_in_a_folder(tiny_folder) -> None:
    (tiny_folder / "tags.csv").write_text("name,tags\npicture_00.png,disc;ground\nghost,disc\npicture_02,\n")
    ds = open_folder(tiny_folder)
    assert ds.tags(0) == ("disc", "ground") and ds.tags(1) is None and ds.tags(2) == ()
    assert ds.labels_present()["tags"] == 2
    (tiny_folder / "tags.csv").write_text("picture_00,disc\n")
    with pytest.raises(MaskwrightError, match="header"):
        open_folder(tiny_folder)


def test_mask_checks(tiny_folder) -> None:
    ds = open_folder(tiny_folder)
    Image.new("L", (64, 47)).save(ds.items[0].mask)
    with pytest.raises(MaskwrightError, match=r"47x64.*48x64 as its image.*doctor"):
        ds.mask(0)
    Image.new("L", (64, 48), 3).save(ds.items[0].mask)
    with pytest.raises(MaskwrightError, match=r"id 3.*0 to 2.*doctor"):
        ds.mask(0)
    Image.new("L", (64, 48), 255).save(ds.items[0].mask)
    assert (ds.mask(0) == 255).all()
    Image.fromarray(np.full((48, 64), 65535, np.uint16)).save(ds.items[0].mask)
    assert (ds.mask(0) == 65535).all()
    Image.fromarray(np.full((48, 64), 255, np.uint16)).save(ds.items[0].mask)
    with pytest.raises(MaskwrightError, match=r"id 255.*65535 for ignore"):
        ds.mask(0)


def test_mask_of_a_turned_image(tmp_path) -> None:
    (tmp_path / "masks").mkdir()
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (8, 6)).save(tmp_path / "a.jpg", exif=exif)
    Image.new("L", (6, 8)).save(tmp_path / "masks" / "a.png")
    ds = open_folder(tmp_path)
    assert ds.size(0) == (8, 6) and ds.image(0).shape == (8, 6, 3) and ds.mask(0).shape == (8, 6)


def test_readable_skips_and_names(tiny_folder) -> None:
    (tiny_folder / "images" / "picture_01.png").write_bytes(b"")
    data = (tiny_folder / "images" / "picture_02.png").read_bytes()
    (tiny_folder / "images" / "picture_02.png").write_bytes(data[: len(data) // 2])
    (tiny_folder / "images" / "words.jpg").write_text("not a picture " * 99)
    seen: list[tuple[int, int]] = []
    ds = open_folder(tiny_folder).readable(lambda done, total: seen.append((done, total)))
    assert len(ds) == 6 and seen == [(i, 9) for i in range(1, 10)]
    assert dict(ds.skipped).keys() == {"picture_01", "picture_02", "words"}
    assert "0 bytes" in dict(ds.skipped)["picture_01"] and "skipped: 3" in ds.summary()
    assert ds.split("train").names == ["picture_00", "picture_03"], "a split may name what was skipped"
    assert len(ds.labeled("train").skipped) == 3
    for path in (tiny_folder / "images").iterdir():
        path.write_bytes(b"")
    with pytest.raises(MaskwrightError, match="none of the 9 images"):
        open_folder(tiny_folder).readable()


def test_fingerprint(tiny_folder) -> None:
    ds = open_folder(tiny_folder)
    first = ds.fingerprint()
    assert first == open_folder(tiny_folder).fingerprint() == ds.subset(reversed(range(8))).fingerprint()
    assert ds.split("train").fingerprint() != first
    assert ds.content_hash(0) != ds.content_hash(1)
    picture(tiny_folder / "images" / "picture_00.png", colour=91)
    assert ds.fingerprint() != first
    (tiny_folder / "images" / "picture_00.png").unlink()
    with pytest.raises(MaskwrightError, match="cannot read"):
        ds.content_hash(0)


def test_pickle_and_derive(tiny_folder) -> None:
    ds = open_folder(tiny_folder).split("train").labeled(["picture_01"])
    ds.mask(1)
    copy = pickle.loads(pickle.dumps(ds))
    assert copy.items == ds.items and copy.ledger.counts() == ds.ledger.counts()
    assert copy.classes == ds.classes and copy.split("test").names == []
    sub = ds.subset([2, 0])
    assert sub.names == ["picture_02", "picture_00"] and sub.index("picture_00") == 1


def test_readers_and_given_splits(tmp_path) -> None:
    picture(tmp_path / "x.png", (4, 5))
    write_mask_rg(tmp_path / "m.png", np.full((4, 5), 919))
    items = [Item("x", tmp_path / "x.png", tmp_path / "m.png")]
    ds = Dataset(tmp_path, items, splits={"val": ["x"], "none": []}, readers=Readers(mask=read_mask_rg))
    assert ds.split_names == ["none", "val"] and ds.split("val").names == ["x"] and len(ds.split("none")) == 0
    assert (ds.split("val").mask(0) == 919).all()
    with pytest.raises(MaskwrightError, match="unknown split"):
        ds.split("test")
    own = Dataset(tmp_path, items, readers=Readers(image=_half, size=lambda path: (4, 5)))
    assert own.resized(0, (2, 2), (1, 1, 2, 2)).shape == (2, 2, 3)
    assert ds.resized(0, (2, 2)).tolist() == [[[90, 20, 30]] * 2] * 2


def _half(path: Path) -> np.ndarray:
    return np.zeros((4, 5, 3), np.uint8)


def test_name_index() -> None:
    index = NameIndex(["a", "d/b", "e/b", "f/c", "two words"], {".jpg", ".png"})
    assert (
        index.find("a.JPG") == "a" and index.find("./images/a.png") == "a" and index.find("/JPEGImages/a.jpg x") == "a"
    )
    assert index.find("b") is None, "two images are called so"
    assert (
        index.find("c") == "f/c"
        and index.find("images/f/c.png") == "f/c"
        and index.find("g/c") is None
        and index.find("set/d/b.jpg") is None
    )
    assert index.find("two words") == "two words" and index.find("") is None


@pytest.mark.data
def test_real_folders(data_root) -> None:
    ds = open_folder(data_root / "camvid")
    assert len(ds) == 701 and len(ds.split("train")) == 367
    assert ds.split("train").labeled("labeled_1_30").labels_present()["masks"] == 12
    assert open_folder(data_root / "flickr8k_part").labels_present() == {
        "masks": 0,
        "tags": 0,
        "captions": 500,
    }


@pytest.mark.parametrize("mark, said", [(";", "semicolons"), ("\t", "tabulators")])
def test_tables_of_other_separators_are_told_apart(tmp_path, mark: str, said: str) -> None:
    path = tmp_path / "tags.csv"
    path.write_text(f"name{mark}tags\na{mark}cat\n")
    with pytest.raises(MaskwrightError, match=f"separated by {said}.*commas") as error:
        read_tags(path)
    assert "header as its first line" not in str(error.value)
    path.write_text(path.read_text().replace(mark, ","))
    assert read_tags(path) == {"a": ("cat",)}


def test_folders_of_splits_alone_say_the_splits(tmp_path) -> None:
    """As Roboflow writes it: photographs and their masks in train/, valid/ and test/."""
    for split in ("train", "valid", "test"):
        for i in range(2):
            picture(tmp_path / split / f"p{i}.jpg")
            ids = np.zeros((6, 8), np.uint8)
            ids[:, :4] = 1
            Image.fromarray(ids).save(tmp_path / split / f"p{i}_mask.png")
    data = open_folder(tmp_path)
    assert len(data) == 6 and data.split("train").names == ["train/p0", "train/p1"]
    assert data.split("valid").has_mask(0) and data.split_names == ["test", "train", "valid"]


def test_a_dataset_with_other_classes_reads_its_masks_by_them(tiny_folder):
    data = open_folder(tiny_folder)
    two = data.with_classes(ClassTable(("ground", "disc")))
    assert two.classes.names == ("ground", "disc") and data.classes.names == ("ground", "disc", "square")
    with pytest.raises(MaskwrightError, match="id 2"):
        two.mask(1)
    assert data.with_classes(None).classes is None and data.mask(1).max() == 2


def test_a_dataset_with_a_ledger_of_its_own(tiny_folder):
    data = open_folder(tiny_folder)
    apart = data.with_ledger(Ledger())
    apart.mask(0)
    assert (data.ledger.counts()["train"]["masks"], apart.ledger.counts()["train"]["masks"]) == (0, 1)
    assert apart.subset([1]).ledger is apart.ledger


def test_labels_that_are_hidden(tiny_folder):
    data = open_folder(tiny_folder)
    assert data.only_labels(("masks", "captions")).labels_present() == {"masks": 8, "tags": 0, "captions": 8}
    bare = data.only_labels(())
    assert bare.tags(0) is None and bare.captions(0) == () and not bare.has_mask(0)
    assert bare.names == data.names and data.labels_present()["tags"] == 8
