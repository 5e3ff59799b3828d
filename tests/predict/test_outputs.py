"""Where predictions lie: never over one another, never over what they were made from, whatever images are called."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from fakes import ColorSegmenter, scene
from PIL import Image

from maskwright.data.folders.folder import Dataset, Item, open_folder
from maskwright.data.masking.masks import read_mask
from maskwright.data.trust import files
from maskwright.errors import MaskwrightError
from maskwright.predict.model import Model


@pytest.fixture
def model() -> Model:
    return Model(ColorSegmenter())


class Heard:
    """Stands for a `Progress`: keeps what was said."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def say(self, text: str) -> None:
        self.said.append(text)


def write_images(root: Path, *names: str, size: tuple[int, int] = (16, 24)) -> Path:
    for k, name in enumerate(names):
        path = root / "images" / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.roll(scene(*size, seed=k)[0], 3 * k, 1)).save(path)
    return root


def below(folder: Path) -> list[str]:
    """Files of a folder but for the record of what made them."""
    files = (p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())
    return sorted(f for f in files if f != "predicted.jsonl")


def test_images_in_folders_called_as_side_maps_lose_nothing(model, tmp_path):
    data, heard = write_images(tmp_path / "d", "a", "confidence/a", "confidence-2/b", "Overlays/a"), Heard()
    done = model.predict_folder(data, tmp_path / "out", confidence=True, overlays=True, progress=heard)
    names = open_folder(data).names
    assert done.written == 4
    assert below(tmp_path / "out") == sorted(
        [f"{n}.png" for n in names] + [f"confidence-3/{n}.png" for n in names] + [f"overlays-2/{n}.jpg" for n in names]
    )
    for k, name in enumerate(names):
        expected = model.predict(open_folder(data).image(k))
        np.testing.assert_array_equal(read_mask(tmp_path / "out" / f"{name}.png"), expected.mask)
        sure = np.asarray(Image.open(tmp_path / "out" / "confidence-3" / f"{name}.png"))
        np.testing.assert_allclose(sure / 255, expected.confidence, atol=0.003)
    assert heard.said == done.notices and len(heard.said) == 2 and "confidence-3" in heard.said[0]


def test_a_split_has_its_maps_where_the_whole_has_them(model, tmp_path):
    data = open_folder(write_images(tmp_path / "d", "a", "confidence/a"))
    model.predict_folder(data.subset([0]), tmp_path / "out", confidence=True)
    assert below(tmp_path / "out") == ["a.png", "confidence-2/a.png"]


def test_ordinary_names_have_their_maps_where_scripts_look_for_them(model, tmp_path):
    data = write_images(tmp_path / "d", "a", "sub/confidence", "confidence", "overlays")
    done = model.predict_folder(data, tmp_path / "out", confidence=True)
    assert not done.notices and (tmp_path / "out" / "confidence" / "sub" / "confidence.png").is_file()


def test_photographs_are_not_overwritten_by_side_maps(model, tmp_path):
    root = tmp_path / "set"
    write_images(tmp_path / "d", "a")
    (root / "overlays").mkdir(parents=True)
    Image.open(tmp_path / "d" / "images" / "a.png").save(root / "overlays" / "a.jpg")
    before = (root / "overlays" / "a.jpg").read_bytes()
    with pytest.raises(MaskwrightError, match="is an image of the data set"):
        model.predict_folder(root / "overlays", root, overlays=True)
    (tmp_path / "link").symlink_to(root)
    with pytest.raises(MaskwrightError, match="is an image of the data set"):
        model.predict_folder(root / "overlays", tmp_path / "link", overlays=True)
    assert (root / "overlays" / "a.jpg").read_bytes() == before and below(root) == ["overlays/a.jpg"]
    model.predict_folder(root / "overlays", root)


def test_names_that_the_disk_does_not_tell_apart_are_refused(model, tmp_path, monkeypatch):
    data = write_images(tmp_path / "d", "a", "A", "é", "e")
    assert model.predict_folder(data, tmp_path / "out").written == 4
    assert len(below(tmp_path / "out")) == 4, "this disk tells them apart, and the trial leaves nothing"
    real = files.file_for
    monkeypatch.setattr("maskwright.predict.outputs.file_for", lambda f, name, s: real(f, name.casefold(), s))
    with pytest.raises(MaskwrightError, match="does not tell the names 'A' and 'a' apart"):
        model.predict_folder(data, tmp_path / "folding")
    assert not below(tmp_path / "folding")


@pytest.mark.parametrize("size", [200, 240, 250, 251])
@pytest.mark.parametrize("char", ["x", "空", "🙂"])
def test_long_names_have_all_their_files(model, tmp_path, size, char):
    name = char * (size // len(char.encode())) + "a" * (size % len(char.encode()))
    data = write_images(tmp_path / "d", name, f"{name}/{name}")
    done = model.predict_folder(data, tmp_path / "out", confidence=True, overlays=True)
    assert done.written == 2 and not done.notices
    assert below(tmp_path / "out") == sorted(
        f"{side}{n}.{suffix}"
        for n in (name, f"{name}/{name}")
        for side, suffix in (("", "png"), ("confidence/", "png"), ("overlays/", "jpg"))
    )


def test_names_too_long_for_a_mask_are_shortened_and_said(model, tmp_path):
    data = open_folder(write_images(tmp_path / "d", "a", "b"))
    names = ["n" * 253 + "1", "n" * 253 + "2"]  # as a Python caller may name them
    renamed = Dataset(data.root, [Item(n, i.image) for n, i in zip(names, data.items)])
    done = model.predict_folder(renamed, tmp_path / "out")
    made = [files.file_for(tmp_path / "out", n, ".png") for n in names]
    assert done.written == 2 and all(p.is_file() for p in made) and len(set(made)) == 2
    assert len(done.notices) == 1 and made[0].name in done.notices[0] and "2 names are too long" in done.notices[0]


def test_what_a_killed_run_left_goes_with_the_next(model, tmp_path, monkeypatch):
    data, out, heard = write_images(tmp_path / "d", "a", "sub/b"), tmp_path / "out", Heard()
    (out / "sub").mkdir(parents=True)
    mine = files.temporary_beside(out / "a.png")
    left = [mine, out / "sub" / mine.name.replace(".a.", ".b.")]
    for path in left:
        path.write_bytes(b"half")
    model.predict_folder(data, out)
    assert all(p.exists() for p in left), "this process lives"
    monkeypatch.setattr(files, "is_running", lambda pid: pid != os.getpid())
    model.predict_folder(data, out, progress=heard)
    assert below(out) == ["a.png", "sub/b.png"]
    assert heard.said[0] == f"removed 2 temporary files that killed runs had left in {out}" and len(heard.said) == 2


@pytest.mark.parametrize("stop", [KeyboardInterrupt(), OSError(28, "No space left on device")])
def test_a_stop_at_the_last_file_leaves_what_was_written_whole(model, tmp_path, monkeypatch, stop):
    data, out, real, count = write_images(tmp_path / "d", "a", "b", "c"), tmp_path / "out", os.replace, [0]

    def replace(*arguments):
        count[0] += 1
        if count[0] == 6:  # the mask of the last image; its confidence is there
            raise stop
        real(*arguments)

    monkeypatch.setattr(files.os, "replace", replace)
    with pytest.raises((KeyboardInterrupt, MaskwrightError)):
        model.predict_folder(data, out, confidence=True)
    assert below(out) == ["a.png", "b.png", "confidence/a.png", "confidence/b.png", "confidence/c.png"]
    for path in out.rglob("*.png"):
        assert read_mask(path).shape == (16, 24)
