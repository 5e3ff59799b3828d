"""What class names are good for, by the towers that can be had."""

from __future__ import annotations

import shutil
import sys

import pytest
from tests.conftest import write_tiny_folder
from tests.models.towers.tiny import config, write_folder

import maskwright as mw
from maskwright.recipes.language.at_hand import words_at_hand

NAMES = ("road", "sky")


@pytest.fixture(autouse=True)
def no_hub(monkeypatch, tmp_path):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))


def test_names_without_towers_say_what_to_do(monkeypatch):
    assert words_at_hand((), False) == ("", "")
    assert words_at_hand((), True).lacking == "captions alone name no classes: give --names"
    found = words_at_hand(NAMES, False)
    assert found.method == "" and "HF_HUB_OFFLINE" in found.lacking and "--backbone clip:NAME" in found.lacking
    assert "class 3" in words_at_hand(("class 3", "sky"), False).lacking
    for given in ({"backbone": "deit_small"}, {"weights": "random"}, {"weights": "package"}):
        assert "know no words" in words_at_hand(NAMES, True, **given).lacking
    monkeypatch.setitem(sys.modules, "open_clip", None)
    assert "pip install 'maskwright[clip]'" in words_at_hand(NAMES, False).lacking


def test_auto_takes_towers_that_are_given(tmp_path, capsys):
    folder = write_tiny_folder(tmp_path / "photos", masks=False)
    shutil.rmtree(folder / "masks", ignore_errors=True)
    for file in ("tags.csv", "captions.csv"):
        (folder / file).unlink()
    write_folder(tmp_path / "towers", config())
    assert words_at_hand(NAMES, True, weights=tmp_path / "towers") == ("maskclip", "")
    file = tmp_path / "towers" / "open_clip_model.safetensors"  # which is no GroupViT's
    assert words_at_hand(NAMES, True, weights=file) == ("maskclip", "")
    given = {"names": "road,sky", "device": "cpu", "report": False, "settings": {"words.short_side": 64}}
    model = mw.train(folder, out=tmp_path / "words", weights=tmp_path / "towers", **given)
    assert model.segmenter.extra["method"]["name"] == "maskclip" and model.classes.names == ("road", "sky")
    assert "maskclip, because class names are all there is" in capsys.readouterr().err
