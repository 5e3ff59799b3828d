"""Predictions go on where they stopped: a record of what made each mask decides what is kept."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import torch
from fakes import ColorSegmenter, scene
from PIL import Image

from maskwright.data.folders.folder import open_folder
from maskwright.data.masking.masks import read_mask
from maskwright.engine.progress import Progress
from maskwright.errors import MaskwrightError
from maskwright.predict.kept import RECORD, Record, model_key
from maskwright.predict.model import Model


class Counting(ColorSegmenter):
    """Counts the pictures that it saw."""

    pictures = 0

    def forward(self, x):
        self.pictures += len(x)
        return super().forward(x)


@pytest.fixture
def photos(tmp_path):
    (tmp_path / "in").mkdir()
    for k in range(4):
        Image.fromarray(np.roll(scene(16, 24, seed=k)[0], 3 * k, 1)).save(tmp_path / "in" / f"{k}.png")
    return tmp_path / "in"


def seen(model: Model, photos, out, **options) -> int:
    before = model.segmenter.pictures
    done = model.predict_folder(photos, out, **options)
    assert done.written + done.kept == 4 and done.shares.sum() == pytest.approx(1)
    assert model.segmenter.pictures - before == done.written
    return done.written


def test_what_is_finished_is_kept_and_the_rest_is_made(photos, tmp_path):
    model, out = Model(Counting()), tmp_path / "out"
    assert seen(model, photos, out) == 4
    shares = model.predict_folder(photos, out).shares
    np.testing.assert_allclose(
        shares, sum(np.bincount(read_mask(p).ravel(), minlength=3) for p in out.glob("*.png")) / (4 * 16 * 24)
    )
    text = (out / RECORD).read_text()
    assert seen(model, photos, out) == 0 and (out / RECORD).read_text() == text
    (out / "2.png").unlink()
    assert seen(model, photos, out) == 1
    Image.fromarray(scene(16, 24, seed=8)[0]).save(photos / "1.png")  # another photograph of the same name
    assert seen(model, photos, out) == 1
    assert np.array_equal(read_mask(out / "1.png"), model.predict(photos / "1.png").mask)
    assert seen(model, photos, out, overlays=True) == 4 and seen(model, photos, out, overlays=True) == 0
    shutil.copytree(out, tmp_path / "moved")
    assert seen(model, photos, tmp_path / "moved") == 0, "times and places of files do not count"


def test_an_interrupted_call_goes_on(photos, tmp_path, monkeypatch):
    model, out = Model(Counting()), tmp_path / "out"
    real = Record.note

    def stopping(self, name, *rest):
        if name == "2":
            raise KeyboardInterrupt
        real(self, name, *rest)

    monkeypatch.setattr(Record, "note", stopping)
    with pytest.raises(KeyboardInterrupt):
        model.predict_folder(photos, out)
    monkeypatch.undo()
    assert sorted(p.name for p in out.glob("*.png")) == ["0.png", "1.png", "2.png"]
    with open(out / RECORD, "a") as file:
        file.write('{"name": "3", "sou')  # cut by a kill
    assert seen(model, photos, out) == 2, "2.png lies there, but no record says what made it"
    assert seen(model, photos, out) == 0


def test_progress_goes_on_from_what_is_kept(photos, tmp_path, capfd):
    model, out = Model(Counting()), tmp_path / "out"
    model.predict_folder(photos, out)
    (out / "2.png").unlink()
    capfd.readouterr()
    for left in (1, 0):
        done = model.predict_folder(photos, out, progress=Progress(every=0.0))
        said = capfd.readouterr().err
        assert (done.written, done.kept) == (left, 4 - left) and f"{4 - left} of 4 masks" in said
        assert "0/4" not in said and ("predict: 4 in " in said) == bool(left)


def test_a_kill_between_a_new_mask_and_its_line_is_no_correction_by_hand(photos, tmp_path, monkeypatch):
    one, two, out = Model(Counting()), Model(Counting()), tmp_path / "out"
    with torch.no_grad():
        two.segmenter.centers[0] += 0.25
    one.predict_folder(photos, out)
    before = (out / "0.png").read_bytes()

    def killed(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(Record, "note", killed)
    with pytest.raises(KeyboardInterrupt):
        two.predict_folder(photos, out)
    monkeypatch.undo()
    assert (out / "0.png").read_bytes() != before
    assert seen(two, photos, out) == 4
    text = (out / RECORD).read_text()
    (out / RECORD).write_text(text.replace('"pixels": {"0"', '"pixels": {"99"'))
    assert two.predict_folder(photos, out).kept == 4, "a class that is none breaks nothing"


def test_another_model_or_setting_makes_all_anew_and_says_so(photos, tmp_path):
    one, out = Model(Counting()), tmp_path / "out"
    two = Model(Counting())
    with torch.no_grad():
        two.segmenter.centers[0] += 0.25
    assert model_key(one.segmenter) != model_key(two.segmenter) and model_key(one.segmenter) == model_key(Counting())
    one.predict_folder(photos, out)
    done = two.predict_folder(photos, out)
    assert done.written == 4 and f"4 masks in {out} were made by another model; they are made anew" in done.notices
    assert np.array_equal(read_mask(out / "0.png"), two.predict(photos / "0.png").mask)
    done = two.predict_folder(photos, out, flips=True)
    assert done.written == 4 and any("other settings (flips)" in n for n in done.notices)
    assert seen(two, photos, out, flips=True) == 0 and seen(two, photos, out) == 4
    two.segmenter.extra["refine"] = "guided"
    assert seen(two, photos, out) == 4


def test_masks_made_by_something_else_are_replaced(photos, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "0.png").write_bytes(b"old")
    (out / RECORD).write_text('{"model": 3}\n[]\n{"name": "0"}\n\xff\n')
    assert seen(Model(Counting()), photos, out) == 4 and read_mask(out / "0.png").shape == (16, 24)
    assert seen(Model(Counting()), photos, out) == 0


def test_masks_corrected_by_hand_are_not_written_over(photos, tmp_path):
    model, out = Model(Counting()), tmp_path / "out"
    model.predict_folder(photos, out)
    Image.fromarray(np.full((16, 24), 2, np.uint8)).save(out / "1.png")
    for options in ({}, {"flips": True}):
        with pytest.raises(
            MaskwrightError, match=r"1 masks in .* were changed since they were predicted \(1\)"
        ) as told:
            model.predict_folder(photos, out, **options)
    assert (read_mask(out / "1.png") == 2).all() and "--anew" in told.value.repair
    assert model.predict_folder(photos, out, anew=True).written == 4
    assert np.array_equal(read_mask(out / "1.png"), model.predict(photos / "1.png").mask)


def test_tags_and_other_images_of_the_folder_have_their_own_lines(photos, tmp_path):
    model, out = Model(Counting()), tmp_path / "out"
    data = open_folder(photos)
    model.predict_folder(data.subset([0, 1]), out)
    assert model.predict_folder(data.subset([2, 3]), out).written == 2
    assert seen(model, photos, out) == 0
    (photos / "tags.csv").write_text("name,tags\n0,cluster 1\n")
    model.segmenter.extra["background"] = "none"
    model.predict_folder(photos, out)
    assert seen(model, photos, out, tags=True) == 1, "only what the tag limits"
    assert set(np.unique(read_mask(out / "0.png"))) == {1}
    lines = [json.loads(line) for line in (out / RECORD).read_text().splitlines()]
    assert lines[-1]["only"] == [1] and lines[-1]["pixels"] == {"1": 16 * 24}


def test_pictures_in_memory_are_known_by_their_pixels(photos, tmp_path):
    model, out = Model(Counting()), tmp_path / "out"
    arrays = [np.asarray(Image.open(p)) for p in sorted(photos.iterdir())]
    assert model.predict_folder(arrays, out).written == 4
    arrays[2] = arrays[1]
    done = model.predict_folder(arrays, out)
    assert done.kept == 3 and done.written == 1
