"""Repairs of tables, lists and files that the doctor prints: each edit is made as told, and the finding is gone."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tests.conftest import write_tiny_folder

from maskwright.data.examining.doctor import examine
from maskwright.data.examining.findings import Finding
from maskwright.data.folders.folder import open_folder
from maskwright.errors import MaskwrightError

Edit = Callable[[Path], object]


def write(file: str, text: str) -> Edit:
    return lambda root: (root / file).write_text(text)


def remove(*files: str) -> Edit:
    return lambda root: [(root / file).unlink() for file in files]


def copy(source: str, target: str) -> Edit:
    return lambda root: shutil.copy(root / source, root / target)


def noise(file: str) -> Edit:
    pixels = np.random.default_rng(7).integers(0, 256, (48, 64, 3), dtype=np.uint8)
    return lambda root: Image.fromarray(pixels).save(root / file)


FIRST, SECOND = "images/picture_00.png", "images/picture_01.png"
TRAIN, TEST = "splits/train.txt", "splits/test.txt"

FOUND: dict[str, tuple[str, Edit, str, Edit]] = {
    "a list that names no image": (
        "split-missing-image", write(TRAIN, "picture_00\nnone\n"), "correct or delete those lines",
        write(TRAIN, "picture_00\n"),
    ),
    "a list with a line twice": (
        "split-repeats", write(TRAIN, "picture_00\npicture_00\n"), "delete the repeated lines",
        write(TRAIN, "picture_00\n"),
    ),
    "an empty list": ("split-empty", write(TRAIN, "\n"), "fill it in or delete it", remove(TRAIN)),
    "an image in two lists": (
        "split-overlap", write(TEST, "picture_00\n"), "take them out of one of them", write(TEST, "picture_05\n"),
    ),
    "a copy in another list": (
        "leak", lambda root: [copy(FIRST, "images/copy.png")(root), write(TEST, "copy\n")(root)],
        "move them into one split", write(TEST, "picture_05\n"),
    ),
    "copies": ("duplicate-image", copy(FIRST, "images/copy.png"), "keep one of each group", remove("images/copy.png")),
    "rows of no image": (
        "tags-without-image", write("tags.csv", "name,tags\nnone,disc\n"), "correct the names or delete the rows",
        write("tags.csv", "name,tags\npicture_00,disc\n"),
    ),
    "tags in another case": (
        "unknown-tag", write("tags.csv", "name,tags\npicture_00,Disc\n"), "change 'Disc' to 'disc'",
        write("tags.csv", "name,tags\npicture_00,disc\n"),
    ),
    "tags of no class": (
        "unknown-tag", write("tags.csv", "name,tags\npicture_00,xyz\n"), "correct them, or add them to classes.txt",
        write("classes.txt", "ground\ndisc\nsquare\nxyz\n"),
    ),
    "a table without its header": (
        "bad-table", write("tags.csv", "picture_00,disc\n"), "add the header as its first line",
        write("tags.csv", "name,tags\npicture_00,disc\n"),
    ),
    "a blank line among the classes": (
        "bad-table", write("classes.txt", "ground\n\nsquare\n"), "fill it in or delete it",
        write("classes.txt", "ground\ndisc\nsquare\n"),
    ),
    "a class twice": (
        "bad-table", write("classes.txt", "ground\nground\nsquare\n"), "rename one of them",
        write("classes.txt", "ground\ndisc\nsquare\n"),
    ),
    "an image that is none": (
        "unreadable-image", write("images/x.png", ""), "export them again", noise("images/x.png"),
    ),
    "two images of one name": (
        "left-out", lambda root: Image.open(root / FIRST).save(root / "images" / "picture_00.bmp"),
        "give each image a name of its own",
        lambda root: [remove("images/picture_00.bmp")(root), noise("images/own.bmp")(root)],
    ),
    "a mask of no image": (
        "mask-without-image", lambda root: (root / "masks/picture_00.png").rename(root / "masks/other.png"),
        "rename them as their images", lambda root: (root / "masks/other.png").rename(root / "masks/picture_00.png"),
    ),
    "no classes.txt": ("no-classes", remove("classes.txt", "tags.csv"), "write ", write("classes.txt", "a\nb\nc\n")),
}  # fmt: skip


def of_kind(root: Path, kind: str) -> list[Finding]:
    return examine(root).of_kind(kind)


@pytest.mark.parametrize("situation", FOUND)
def test_the_edit_that_is_told_mends_it(tmp_path: Path, situation: str) -> None:
    kind, spoil, told, mend = FOUND[situation]
    root = write_tiny_folder(tmp_path / "set")
    assert not of_kind(root, kind)
    spoil(root)
    (found,) = of_kind(root, kind)
    assert told in found.repair
    mend(root)
    assert not of_kind(root, kind)


@pytest.mark.parametrize("missing", ["nowhere", "tran"])
def test_a_split_that_is_not_there(tmp_path: Path, missing: str) -> None:
    """With other splits the nearest is named; without any, the file to write."""
    root = write_tiny_folder(tmp_path / "set")
    if missing == "tran":
        with pytest.raises(MaskwrightError, match="did you mean 'train'"):
            open_folder(root).split(missing)
        assert len(open_folder(root).split("train")) == 4
        return
    shutil.rmtree(root / "splits")
    with pytest.raises(MaskwrightError, match="one image name a line") as told:
        open_folder(root).split(missing)
    file = Path(told.value.expected)
    file.parent.mkdir()
    file.write_text("picture_03\n")
    assert open_folder(root).split(missing).names == ["picture_03"]
