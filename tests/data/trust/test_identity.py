"""What a run's labels are: contents, not names; and what is said when they change."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image

from maskwright.data.folders.folder import open_folder
from maskwright.data.trust import identity
from maskwright.data.trust.identity import LabelIdentity, label_identity
from maskwright.errors import MaskwrightError


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("MASKWRIGHT_CACHE", str(tmp_path / "cache"))


def of(folder, **kinds) -> LabelIdentity:
    return label_identity(open_folder(folder), **({"masks": True, "tags": True, "captions": True} | kinds))


def changes(folder, was: LabelIdentity) -> list[str]:
    return of(folder).changes_since(was)


def invert(path) -> None:
    Image.fromarray(2 - np.asarray(Image.open(path))).save(path)


def test_the_same_folder_is_the_same(tiny_folder):
    was = of(tiny_folder)
    assert of(tiny_folder) == was and changes(tiny_folder, was) == []
    again = LabelIdentity.from_json(json.loads(json.dumps(was.to_json())))
    assert again == was and again.summary() == was.summary()
    assert set(was.kinds) == {"masks", "tags", "captions"} and len(was.kinds["masks"]) == 8
    assert {len(h) for found in was.kinds.values() for h in found.values()} == {16}
    assert sum(sum(c.values()) for c in open_folder(tiny_folder).ledger.counts().values()) == 0


def test_contents_of_masks(tiny_folder):
    was = of(tiny_folder)
    for i in (1, 3):
        invert(tiny_folder / "masks" / f"picture_{i:02d}.png")
    assert changes(tiny_folder, was) == ["the masks of 2 images changed (first: picture_01)"]
    (tiny_folder / "masks" / "picture_00.png").unlink()
    assert changes(tiny_folder, was)[1] == "the masks of 1 image are gone (first: picture_00)"
    assert of(tiny_folder).changes_since(of(tiny_folder)) == []
    without = LabelIdentity({k: v for k, v in was.kinds.items() if k != "masks"}, was.classes, was.colours)
    assert changes(tiny_folder, without) == [], "what was not recorded is not compared"


def test_masks_that_are_new(tiny_folder):
    moved = (tiny_folder / "masks" / "picture_05.png").rename(tiny_folder / "kept.png")
    was = of(tiny_folder)
    moved.rename(tiny_folder / "masks" / "picture_05.png")
    assert changes(tiny_folder, was) == ["the masks of 1 image are new (first: picture_05)"]


def test_only_masks_that_may_be_read(tiny_folder):
    data = open_folder(tiny_folder)
    was = label_identity(data.labeled(["picture_00"]), masks=True, tags=False, captions=False)
    invert(tiny_folder / "masks" / "picture_01.png")
    now = label_identity(data.labeled(["picture_00"]), masks=True, tags=False, captions=False)
    assert was == now and list(was.kinds["masks"]) == ["picture_00"]


def test_tags_captions_and_classes(tiny_folder):
    was = of(tiny_folder)
    text = (tiny_folder / "tags.csv").read_text().replace("square", "disc", 1)
    (tiny_folder / "tags.csv").write_text(text)
    assert [t.split(" (")[0] for t in changes(tiny_folder, was)] == ["the tags of 1 image changed"]
    lines = (tiny_folder / "captions.csv").read_text().splitlines()
    (tiny_folder / "captions.csv").write_text("\n".join([*lines[:-1], lines[-1] + " at night"]) + "\n")
    assert [t.split(" (")[0] for t in changes(tiny_folder, was)][1] == "the captions of 1 image changed"
    (tiny_folder / "classes.txt").write_text("disc\nground\nsquare\n")
    assert changes(tiny_folder, was)[2] == (
        "the class names changed (they stand in another order): class 0 was 'ground' and is 'disc'"
    )
    (tiny_folder / "classes.txt").write_text("ground\ndisc\n")
    assert changes(tiny_folder, was)[2] == "the number of classes changed from 3 to 2"
    (tiny_folder / "classes.txt").unlink()
    assert changes(tiny_folder, was)[2] == "classes.txt is gone"


def test_the_data_sets_beside_it(tiny_folder, tmp_path):
    from tests.conftest import write_tiny_folder

    roots = {name: write_tiny_folder(tmp_path / name) for name in ("source", "day")}

    def both() -> LabelIdentity:
        beside = {n: label_identity(open_folder(r), masks=True, tags=False, captions=False) for n, r in roots.items()}
        return of(tiny_folder, sources=beside)

    was = both()
    invert(roots["day"] / "masks" / "picture_02.png")
    now = both()
    assert now.changes_since(was) == ["in the day data the masks of 1 image changed (first: picture_02)"]
    assert now.summary()["sources"]["day"] != was.summary()["sources"]["day"]
    assert now.summary()["sources"]["source"] == was.summary()["sources"]["source"]
    again = LabelIdentity.from_json(json.loads(json.dumps(now.to_json())))
    assert again == now and both().changes_since(again) == []


def test_files_are_read_once(tiny_folder, monkeypatch):
    was = of(tiny_folder)
    monkeypatch.setattr(identity.hashlib, "file_digest", lambda *_: pytest.fail("a file was read again"))
    assert of(tiny_folder) == was


def test_a_mask_that_is_gone_by_now(tiny_folder):
    data = open_folder(tiny_folder)
    (tiny_folder / "masks" / "picture_00.png").unlink()
    with pytest.raises(MaskwrightError, match=r"cannot read .*picture_00\.png"):
        label_identity(data, masks=True, tags=False, captions=False)


@pytest.mark.parametrize("record", [{}, {"kinds": [], "classes": None, "colours": None}, {"kinds": {"masks": 3}}])
def test_a_list_of_another_shape(record):
    with pytest.raises(MaskwrightError, match="list of labels"):
        LabelIdentity.from_json(record)
