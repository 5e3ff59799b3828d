"""Files named after images, temporary names, and what killed processes leave."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.conftest import write_tiny_folder

from maskwright.data.folders.folder import open_folder
from maskwright.data.training.labels import LabelMap, LabelStore
from maskwright.data.training.sources import StoredLabels
from maskwright.data.trust.files import (
    atomic_write,
    file_for,
    is_running,
    sweep,
    temporary_beside,
    write_bytes,
    write_json,
)
from maskwright.errors import MaskwrightError
from maskwright.recipes.tags.maps import CamStore, ImageCams

LONG = {
    f"{kind} {size}": (char * (size // len(char.encode())) + "a" * (size % len(char.encode())))
    for kind, char in (("ascii", "x"), ("cjk", "空"), ("emoji", "🙂"))
    for size in (200, 239, 240, 250, 251)
}
"""Names of so many bytes, which with `.png` are the longest that the system takes."""


@pytest.mark.parametrize("name", LONG.values(), ids=LONG)
def test_long_names_are_written_as_they_are(name, tmp_path):
    path = file_for(tmp_path / "deep", f"{name}/{name}", ".png")
    assert path == tmp_path / "deep" / name / f"{name}.png"
    write_bytes(path, b"whole")
    assert path.read_bytes() == b"whole" and [p.name for p in path.parent.iterdir()] == [f"{name}.png"]


@settings(max_examples=40)
@given(st.text(st.characters(blacklist_characters="\0/", blacklist_categories=["Cs"]), min_size=1, max_size=300))
def test_every_name_has_one_file_that_the_system_takes(name):
    if name in (".", ".."):
        return
    for suffix in (".png", ".safetensors", ""):
        made = file_for("f", name, suffix)
        assert len(os.fsencode(made.name)) <= 255 and made.name.endswith(suffix)
        assert made == file_for("f", name, suffix)
        fits = len(os.fsencode(name)) + len(suffix) <= 255
        assert (made.name == name + suffix) == fits
        beside = temporary_beside(made)
        assert len(os.fsencode(beside.name)) <= 255 and (not suffix or beside.suffix == suffix)


def test_long_names_that_differ_at_the_end_have_files_of_their_own():
    names = ["空" * 90 + str(k) for k in range(50)]
    made = {file_for("f", name, ".png") for name in names}
    assert len(made) == 50 and all(len(os.fsencode(p.name)) <= 255 for p in made)
    assert file_for("f", names[0], ".jpg").stem == file_for("f", names[0], ".png").stem, "a photograph finds its mask"


@pytest.mark.parametrize("name", ["../a", "a/../b", "/a", "a//b", "a/", ".", ""])
def test_no_name_leads_out_of_its_folder(name):
    with pytest.raises(MaskwrightError, match="below the folder"):
        file_for("f", name, ".png")


def test_stores_of_a_run_take_long_names(tmp_path):
    data = write_tiny_folder(tmp_path / "tiny", count=3)
    names = ["空" * 83 + "ab", "🙂" * 62, "x" * 251]
    for k, name in enumerate(names):
        (data / "images" / f"picture_{k:02d}.png").rename(data / "images" / f"{name}.png")
    labels, cams = LabelStore(tmp_path / "labels"), CamStore(tmp_path / "cams")
    for name in [*names, "y" * 300]:
        labels.write(name, LabelMap.from_mask(np.ones((4, 5), np.uint8)), data / "images" / f"{names[2]}.png")
        cams.write(name, ImageCams(torch.tensor([1]), torch.ones(1, 2, 2), (4, 5)))
        assert name in labels and name in cams
        assert labels.read(name).ids.shape == (4, 5) and cams.read(name).size == (4, 5)
    assert StoredLabels(open_folder(data), labels).indices == [0, 1, 2]
    assert StoredLabels(open_folder(data), labels, {names[1]}).indices == [open_folder(data).names.index(names[1])]


def test_a_path_that_is_too_long_is_told_in_one_line(tmp_path):
    deep = tmp_path.joinpath(*["d" * 200] * 21)
    with pytest.raises(MaskwrightError, match="longer than this system takes") as caught:
        write_bytes(deep / "a.png", b"")
    assert "shorter path" in str(caught.value) and len(str(caught.value)) < 500
    write_bytes(tmp_path / "a.png", b"")


def test_the_longest_path_that_the_system_takes_is_written(tmp_path):
    folder = tmp_path
    while len(os.fsencode(folder)) < 3800:
        folder = folder / ("d" * 100)
    folder = folder / ("e" * (4095 - len(os.fsencode(folder)) - 1 - 60))
    path = folder / ("a" * 55 + ".png")
    assert len(os.fsencode(path)) == 4095
    write_bytes(path, b"whole")
    assert path.read_bytes() == b"whole"


def test_json_keeps_names_that_are_no_text(tmp_path):
    value = {"name": os.fsdecode(b"a\xff"), "other": "é"}
    write_json(tmp_path / "a.json", value)
    assert json.loads((tmp_path / "a.json").read_text()) == value


WRITER = """
import sys, time
from maskwright.data.trust.files import atomic_write
with atomic_write(sys.argv[1]) as beside:
    beside.write_bytes(b"half")
    print(beside, flush=True)
    time.sleep(60)
"""


def test_only_what_dead_processes_of_ours_left_is_swept(tmp_path):
    writer = subprocess.Popen(
        [sys.executable, "-c", WRITER, str(tmp_path / "a.png")], stdout=subprocess.PIPE, text=True
    )
    assert writer.stdout is not None
    left = writer.stdout.readline().strip()
    others = [f".a.{writer.pid}-123.tmp.png", ".a.tmp", "a.tmp.png", f".a.{writer.pid}-0123456789abcdef.tmp.png"]
    for name in others:
        (tmp_path / name).write_bytes(b"")
    with atomic_write(tmp_path / "mine.png") as beside:
        beside.write_bytes(b"")
        assert is_running(writer.pid) and sweep([tmp_path]) == 0
        writer.send_signal(signal.SIGKILL)
        writer.wait()
        assert os.path.exists(left)
        assert sweep([tmp_path, tmp_path, tmp_path / "missing"]) == 1
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted([*others, "mine.png"])
    assert not is_running(writer.pid)
