"""Names and kinds of files: what is no regular file, what is not UTF-8, and what differs in its Unicode form only."""

from __future__ import annotations

import json
import os
import sys
import time
import unicodedata
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tests.conftest import write_tiny_folder

from maskwright import api, cli
from maskwright.data.examining.doctor import examine
from maskwright.data.folders.folder import open_folder
from maskwright.data.folders.scan import Folder, is_utf8, names_below
from maskwright.data.folders.tables import NameIndex
from maskwright.data.layouts import open_data
from maskwright.engine.progress import Progress
from maskwright.errors import MaskwrightError, shown

NFC, NFD = "caf\u00e9", unicodedata.normalize("NFD", "caf\u00e9")
FAST = ["--backbone", "tf_efficientnet_lite0", "--weights", "random", "--set", "short_side=64", "--device", "cpu"]
posix = pytest.mark.skipif(os.name != "posix", reason="these files exist on POSIX systems only")


def picture(path: Path, seed: int = 0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (40, 48, 3), dtype=np.uint8)).save(path)


def run(monkeypatch, capfd, *arguments: object) -> tuple[int, str, str]:
    monkeypatch.setattr(sys, "argv", ["maskwright", *map(str, arguments)])
    try:
        cli.main()
        code = 0
    except SystemExit as stop:
        code = int(stop.code or 0)
    out, err = capfd.readouterr()
    assert "Traceback" not in err
    return code, out, err


@posix
def test_only_regular_files_are_opened(tmp_path) -> None:
    root = write_tiny_folder(tmp_path / "tiny", 2)
    os.mkfifo(root / "images" / "pipe.png")
    os.mkfifo(root / "masks" / "picture_00.png.png")
    os.mkfifo(root / "tags.csv.png")
    os.symlink("/dev/zero", root / "images" / "endless.jpg")
    os.symlink(root / "nothing", root / "images" / "lost.jpg")
    os.symlink(root / "images" / "picture_00.png", root / "images" / "linked.png")
    start = time.perf_counter()
    data = open_folder(root)
    assert data.names == ["linked", "picture_00", "picture_01"]
    aside = dict(data.aside)
    assert aside["images/pipe.png"] == aside["images/endless.jpg"] == "not a regular file"
    assert aside["images/lost.jpg"] == "a link to nothing" and aside["masks/picture_00.png.png"] == "not a regular file"
    assert "not a regular file" in data.notices[0] and "put the files themselves there" in data.notices[0]
    assert examine(root).of_kind("left-aside")[0].count == 5
    assert len(data.readable()) == 3 and time.perf_counter() - start < 20
    os.remove(root / "tags.csv")
    os.mkfifo(root / "tags.csv")
    os.remove(root / "classes.txt")
    os.mkfifo(root / "classes.txt")
    assert len(open_folder(root)) == 3


@posix
def test_layouts_open_regular_files_only(tmp_path) -> None:
    for folder in ("JPEGImages", "SegmentationClass", "ImageSets/Segmentation", "Annotations"):
        (tmp_path / folder).mkdir(parents=True)
    picture(tmp_path / "JPEGImages" / "a.jpg")
    os.mkfifo(tmp_path / "JPEGImages" / "b.jpg")
    os.mkfifo(tmp_path / "SegmentationClass" / "a.png")
    os.mkfifo(tmp_path / "Annotations" / "a.xml")
    data = open_data(f"voc:{tmp_path}")
    assert data.names == ["a"] and not data.has_mask(0) and "3 files are left aside" in data.notices[0]
    assert examine(f"voc:{tmp_path}").of_kind("notice")[0].message == data.notices[0]


@posix
@pytest.mark.skipif(sys.platform == "darwin", reason="macOS refuses such names itself")
def test_names_that_are_not_utf8(tmp_path, monkeypatch, capfd) -> None:
    """They are left aside in each verb, and named with the bytes spelled out; the repair is to rename them."""
    monkeypatch.setenv("MASKWRIGHT_CACHE", str(tmp_path / "cache"))
    root = write_tiny_folder(tmp_path / "tiny", 4)
    for folder in ("images", "masks"):
        os.rename(os.fsencode(root / folder / "picture_00.png"), os.fsencode(root / folder) + b"/b\xe9ton.png")
    os.mkdir(os.fsencode(root / "images") + b"/d\xff")
    os.remove(root / "tags.csv")
    os.remove(root / "captions.csv")
    for split in (root / "splits").iterdir():
        split.unlink()
    data = open_folder(root)
    assert len(data) == 3 and "images/b\\xe9ton.png" in data.notices[0] and "rename" in data.notices[0]
    data.fingerprint()
    code, out, _ = run(monkeypatch, capfd, "doctor", root)
    assert code == 0 and "b\\xe9ton.png" in out
    code, out, _ = run(monkeypatch, capfd, "doctor", root, "--json")
    assert json.loads(out)["labels"]["images"] == 3
    code, _, err = run(monkeypatch, capfd, "train", root, "--method", "kmeans", "--out", tmp_path / "run", *FAST)
    assert code == 0 and "b\\xe9ton.png" in err
    code, _, err = run(monkeypatch, capfd, "predict", tmp_path / "run", root, "--out", tmp_path / "out")
    assert code == 0 and "b\\xe9ton.png" in err and len(list((tmp_path / "out").glob("*.png"))) == 3
    (root / "masks" / "picture_03.png").unlink()
    code, out, err = run(
        monkeypatch, capfd, "suggest", tmp_path / "run", root, "--count", 1, "--by", "entropy", "--out", tmp_path / "s"
    )
    assert code == 0 and "picture_03" in out and "b\\xe9ton.png" in err
    code, out, _ = run(monkeypatch, capfd, "evaluate", tmp_path / "out", root, "--protocol", "hungarian")
    assert code == 0 and "b\\xe9ton.png" in out
    alone = os.fsdecode(os.fsencode(root / "images") + b"/b\xe9ton.png")
    code, _, err = run(monkeypatch, capfd, "predict", tmp_path / "run", alone, "--out", tmp_path / "o")
    assert code == 2 and "not UTF-8" in err and "rename it" in err
    os.rename(os.fsencode(root), os.fsencode(tmp_path) + b"/t\xe9ny")
    code, _, err = run(monkeypatch, capfd, "doctor", os.fsdecode(os.fsencode(tmp_path) + b"/t\xe9ny"))
    assert code == 2 and "t\\xe9ny" in err and "rename the folder" in err


@posix
def test_what_a_terminal_would_obey_is_spelled_out(tmp_path, monkeypatch, capfd) -> None:
    name = "\x1b[31mred\x07"
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / f"{name}.png").write_bytes(b"")
    picture(tmp_path / "images" / "\u5199\u771f \u00e9.png")
    (tmp_path / "images" / f"{name}.heic").write_bytes(b"x")
    code, out, err = run(monkeypatch, capfd, "doctor", tmp_path)
    assert code in (0, 2) and "\x1b" not in out + err and "\x07" not in out + err and "\\x1b[31mred\\x07" in out
    with pytest.raises(MaskwrightError) as error:
        open_folder(tmp_path).image(0)
    assert "\x1b" not in str(error.value) and "\\x1b[31m" in str(error.value)
    bar = Progress()
    bar.say(f"skipped {name} \u202e \u5199\u771f")
    assert capfd.readouterr().err == "skipped \\x1b[31mred\\x07 \\u202e \u5199\u771f\n"
    code, _, err = run(monkeypatch, capfd, "doctor", tmp_path / name)
    assert code == 2 and "\x1b" not in err


def test_shown() -> None:
    assert (
        shown("caf\u00e9 \u5199\u771f\U0001f9d1\u200d\U0001f33e") == "caf\u00e9 \u5199\u771f\U0001f9d1\u200d\U0001f33e"
    )
    assert shown("a\nb\tc\x9b") == "a\\nb\\tc\\x9b" and shown("a\nb\tc\x9b", lines=True) == "a\nb\tc\\x9b"
    assert shown(os.fsdecode(b"\xff")) == "\\xff" and shown("\ud800") == "\\ud800" and shown("\u2028") == "\\u2028"
    assert is_utf8("caf\u00e9") and not is_utf8(os.fsdecode(b"\xff"))
    assert str(MaskwrightError("a \x1b[2J b", "c\x00", "d\n e")) == "a \\x1b[2J b; expected c\\x00; d e"


def test_a_value_of_megabytes_is_shortened_in_a_message() -> None:
    told = str(MaskwrightError("x" * 10**6, "y", "maskwright doctor " + "z" * 1000))
    assert len(told) < 4000 and " ... " in told and told.endswith("z" * 1000)


@pytest.mark.parametrize(("image", "other"), [(NFC, NFD), (NFD, NFC)])
def test_forms_of_text_meet(tmp_path, image: str, other: str) -> None:
    """Masks, tables and lists in one form find images in the other; names written keep the form of the image's file."""
    picture(tmp_path / "images" / f"{image}.png")
    (tmp_path / "masks").mkdir()
    Image.new("L", (48, 40), 1).save(tmp_path / "masks" / f"{other}.png")
    (tmp_path / "tags.csv").write_text(f"name,tags\n{other}.png,cat\n")
    (tmp_path / "captions.csv").write_text(f"name,caption\n{other},a cat\n")
    (tmp_path / "splits").mkdir()
    (tmp_path / "splits" / "train.txt").write_text(f"{other}\n")
    (tmp_path / "classes.txt").write_text("dog\ncat\n")
    data = open_folder(tmp_path)
    assert data.names == [image] and data.has_mask(0) and data.tags(0) == ("cat",) and data.captions(0) == ("a cat",)
    assert data.split("train").names == [image] and data.labeled([other]).has_mask(0)
    assert data.notices == () and data.lone == ()
    assert examine(tmp_path).of_kind("split-missing-image") == []
    predictions = tmp_path.parent / f"predicted-{tmp_path.name}"
    predictions.mkdir()
    Image.new("L", (48, 40), 1).save(predictions / f"{other}.png")
    assert api.evaluate(predictions, tmp_path).miou == 1


def test_two_names_that_differ_in_their_form(tmp_path) -> None:
    picture(tmp_path / "images" / f"{NFC}.png")
    picture(tmp_path / "images" / f"{NFD}.png", 1)
    if len(list((tmp_path / "images").iterdir())) < 2:
        pytest.skip("this file system takes them for one")
    data = open_folder(tmp_path)
    assert len(data) == 1 and "another Unicode form" in data.skipped[0][1]
    assert examine(tmp_path).of_kind("left-out")[0].count == 1


def test_the_nearest_name_is_another_name(tmp_path) -> None:
    picture(tmp_path / "images" / f"{NFC}s.png")
    with pytest.raises(MaskwrightError, match=f"the nearest is '{NFC}s'"):
        open_folder(tmp_path).labeled([NFD])


def test_name_index_forms() -> None:
    index = NameIndex([f"d/{NFD}", f"e/{NFC}x", "plain"], {".jpg"})
    assert index.find(f"d/{NFC}.jpg") == index.find(NFC) == f"d/{NFD}" and index.find(f"{NFD}x") == f"e/{NFC}x"


def test_folders_that_links_lead_to_come_once(tmp_path) -> None:
    picture(tmp_path / "a" / "x.png")
    os.symlink(tmp_path, tmp_path / "a" / "up")
    os.symlink(tmp_path / "a", tmp_path / "b")
    found = names_below(Folder(tmp_path), frozenset({".png"}))
    assert list(found.found) == ["a/x"]
    assert names_below(Folder(tmp_path / "b"), frozenset({".png"})).found == {"x": tmp_path / "b" / "x.png"}
