"""What was said of a folder's values: options in, options out."""

from __future__ import annotations

import os

import pytest

from maskwright.data.examining.reading import LABELS, Reading
from maskwright.data.trust.remembered import Remembered, cache_root
from maskwright.errors import MaskwrightError


@pytest.mark.parametrize(
    ("void", "means"),
    [(None, None), ("255", (255,)), ("0,255", (0, 255)), ("none", ()), (7, (7,)), ([1, 2], (1, 2)), ((), ())],
)
def test_void_takes_text_and_numbers(void, means):
    assert Reading.parse(void=void).void == means


@pytest.mark.parametrize("void", ["x", "-1", "70000", "1.5", ""])
def test_void_that_is_no_value_of_a_mask_is_refused(void):
    with pytest.raises(MaskwrightError, match="--void"):
        Reading.parse(void=void)


@pytest.mark.parametrize(("said", "means"), [("0,4095", (0.0, 4095.0)), ((-1, 1), (-1.0, 1.0)), (None, None)])
def test_range_takes_text_and_numbers(said, means):
    assert Reading.parse(range=said).range == means


@pytest.mark.parametrize("said", ["5", "5,5", "9,1", "nan,1", "0,inf", "a,b", "1,2,3", 4])
def test_range_that_is_none_is_refused(said):
    with pytest.raises(MaskwrightError, match="--range"):
        Reading.parse(range=said)


def test_an_unknown_way_to_read_labels_names_the_nearest():
    with pytest.raises(MaskwrightError, match="binary255"):
        Reading.parse("binary")


@pytest.mark.parametrize("labels", LABELS)
def test_json_and_options_repeat_what_was_said(labels):
    said = Reading.parse(labels, "0,255", "0,4095")
    assert Reading.from_json(said.to_json()) == said
    words = said.options().split()
    options = dict(zip(words[::2], words[1::2]))
    assert Reading.parse(options.get("--labels"), options["--void"], options["--range"]) == said
    assert Reading.parse(void="none").options() == "--void none"


@pytest.mark.parametrize("record", [3, [], {"void": {}}, {"labels": 4}, {"range": "x"}])
def test_a_record_of_another_shape_is_one_line(record):
    with pytest.raises(MaskwrightError):
        Reading.from_json(record)


def test_files_are_remembered_until_they_change(tmp_path, monkeypatch):
    monkeypatch.setenv("MASKWRIGHT_CACHE", str(tmp_path / "cache"))
    file = tmp_path / "a.png"
    file.write_bytes(b"one")
    memory = Remembered("test-1", tmp_path)
    assert memory.get(file, file.stat()) is None
    memory.put(file, file.stat(), {"values": [1]})
    memory.save()
    again = Remembered("test-1", tmp_path)
    assert again.get(file, file.stat()) == {"values": [1]}
    file.write_bytes(b"other")
    assert again.get(file, file.stat()) is None


def test_a_damaged_or_forbidden_memory_is_forgotten_without_a_word(tmp_path, monkeypatch):
    monkeypatch.setenv("MASKWRIGHT_CACHE", str(tmp_path / "cache"))
    file = tmp_path / "a.png"
    file.write_bytes(b"one")
    memory = Remembered("test-1", tmp_path)
    memory.put(file, file.stat(), 5)
    memory.save()
    data = bytearray(memory.path.read_bytes())
    data[-3] ^= 1
    memory.path.write_bytes(bytes(data))
    assert Remembered("test-1", tmp_path).get(file, file.stat()) is None
    (tmp_path / "plain").write_bytes(b"")
    monkeypatch.setenv("MASKWRIGHT_CACHE", str(tmp_path / "plain" / "below"))
    blocked = Remembered("test-1", tmp_path)
    blocked.put(file, file.stat(), 5)
    blocked.save()
    assert blocked.get(file, file.stat()) == 5


def test_there_is_a_cache_where_no_home_is_known(monkeypatch):
    for name in ("MASKWRIGHT_CACHE", "XDG_CACHE_HOME", "HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)
    assert "maskwright" in cache_root().name
