"""Class names, towers and captions as people have them: one clear line and exit code 2, or what was made of them."""

from __future__ import annotations

import itertools
import json
import os
import shutil
import subprocess
import sys
import tomllib

import numpy as np
import pytest
from PIL import Image
from tests.conftest import REPOSITORY, write_tiny_folder
from tests.models.towers.test_groupvit import TINY, random_tensors
from tests.models.towers.tiny import config, write_folder

from maskwright.data.folders.tables import read_captions
from maskwright.models.towers.groupvit.files import write_pair

HEAD = "name,caption\n"
GROUPS = ("--method", "groupvit", "--backbone", TINY.text(), "--weights", "random", "--steps", 2,
          "--set", "words.short_side=48", "--set", "crops.batch=4")  # fmt: skip


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Photographs `photos` without any label, and `towers`."""
    root = tmp_path_factory.mktemp("odd")
    write_tiny_folder(root / "photos", count=4, masks=False)
    for name in ("tags.csv", "captions.csv", "classes.txt"):
        (root / "photos" / name).unlink()
    for name in ("masks", "splits"):
        shutil.rmtree(root / "photos" / name)
    write_folder(root / "towers", config())
    return root


@pytest.fixture
def photos(place, tmp_path):
    return shutil.copytree(place / "photos", tmp_path / "photos")


def words(place, *more):
    return ("--method", "maskclip", "--backbone", "clip", "--weights", place / "towers", "--device", "cpu",
            "--set", "words.short_side=48", "--set", "words.prompts=photo", *more)  # fmt: skip


@pytest.mark.parametrize(
    ("table", "said"),
    [
        ("picture_00,a dog\n", "add the header as its first line"),
        ("", "is empty"),
        ("name\npicture_00\n", "begins with 'name'; expected a header line name,caption"),
        ("name;caption\npicture_00;a dog\n", "separated by semicolons"),
        (HEAD + 'picture_00,"a dog\npicture_01,a cat\npicture_02,a cow\n', "line 2 that does not end, so the 2 lines"),
        ((HEAD + "picture_00,ein Bär\n").encode("latin-1"), "save it again as UTF-8"),
        (HEAD, "needs captions"),
        (HEAD + "picture_00,\npicture_01,  \n", "needs captions"),
        (HEAD + "nobody,a dog\n", "needs captions"),
        (None, "needs captions"),
    ],
)
def test_captions_that_cannot_be_read_are_one_line(photos, tmp_path, maskwright, table, said):
    if table is not None:
        (photos / "captions.csv").write_bytes(table if isinstance(table, bytes) else table.encode())
    code, _, told = maskwright("train", photos, *GROUPS, "--names", "dog,cat", "--out", tmp_path / "run")
    assert code == 2 and said in told.splitlines()[-1], told
    assert not (tmp_path / "run").exists()


def test_captions_keep_their_quotes_and_newlines_are_blanks(tmp_path):
    path = tmp_path / "captions.csv"
    path.write_bytes(
        ('\ufeffname,caption\na,"a ""red"" disc\non green, ground"\nb,a 12" disc\nb,a 12" disc\n').encode()
    )
    assert read_captions(path) == {"a": ('a "red" disc on green, ground',), "b": ('a 12" disc',) * 2}
    path.write_bytes((HEAD + "a,ein Bär\r\n").encode("utf-16"))
    assert read_captions(path) == {"a": ("ein Bär",)}
    path.write_text(HEAD + 'a,a dog\nb,"the last')
    assert read_captions(path)["b"] == ("the last",), "nothing lies behind it"


@pytest.mark.slow
def test_what_is_left_out_of_captions_is_said(photos, tmp_path, maskwright):
    rows = ['picture_00,"a ""red"" disc\non green"', "picture_01,", f"picture_02,{'word ' * 400}", "nobody,a dog"]
    (photos / "captions.csv").write_text("\ufeff" + HEAD + "\n".join([*rows, rows[0]]) + "\n")
    code, _, told = maskwright(
        "train", photos, *GROUPS, "--set", "crops.batch=2", "--names", "disc,square", "--out", tmp_path / "run"
    )
    assert code == 0, told
    assert "captions.csv: 1 of 3 photographs that it names are not here, as nobody." in told, told
    assert "2 of 4 photographs have no caption and are not trained on." in told
    assert "1 of 3 captions are longer than the 77 tokens that the text tower reads." in told


@pytest.mark.slow
def test_a_threshold_does_not_help_a_single_name(photos, tmp_path, maskwright):
    (photos / "captions.csv").write_text(HEAD + "picture_00,a disc\npicture_01,a square\n")
    given = ("train", photos, *GROUPS, "--set", "crops.batch=2", "--names", "disc,background", "--out")
    code, _, told = maskwright(*given, tmp_path / "run")
    assert code == 0 and "Each pixel of each photograph will be disc" in told, told
    repair = told.split("probability 1: ")[1].split(" takes")[0].split()
    code, _, told = maskwright(*given, tmp_path / "again", *repair)
    assert code == 0 and "Each pixel" not in told, told


def test_one_name_is_all_that_there_is_and_a_background_repairs_it(place, tmp_path, maskwright):
    code, _, told = maskwright("train", place / "photos", *words(place), "--names", "disc", "--out", tmp_path / "one")
    assert code == 0 and "Each pixel of each photograph will be disc" in told, told
    repair = told.split("as --names '")[1].split("'")[0]
    code, _, told = maskwright("train", place / "photos", *words(place), "--names", repair, "--out", tmp_path / "two")
    assert code == 0 and "Each pixel" not in told, told
    record = json.loads((tmp_path / "two" / "run.json").read_text())
    assert any(note.startswith("Background (class 1): any of") for note in record["notes"])
    predict = ("predict", tmp_path / "two", place / "photos", "--out", tmp_path / "masks", "--device", "cpu")
    code, _, told = maskwright(*predict, "--names", "square")
    assert code == 0 and "Each pixel of each photograph will be square" in told, told


def test_a_tower_of_another_width_is_one_line(place, tmp_path, maskwright):
    towers = shutil.copytree(place / "towers", tmp_path / "towers")
    for change, said in (({"width": 64}, "does not fit the text tower"), ({"embed": 24}, "another shape")):
        (towers / "open_clip_config.json").write_text(json.dumps({"model_cfg": config(**change)}))
        given = [towers if w == place / "towers" else w for w in words(place)]
        code, _, told = maskwright(
            "train", place / "photos", *given, "--names", "disc,square", "--out", tmp_path / f"run-{said[:4]}"
        )
        assert code == 2 and said in told.splitlines()[-1], told


def test_what_auto_says_where_the_extra_is_missing(place, photos, tmp_path, maskwright, monkeypatch):
    """Towers that lie there are of no use without what reads names; the command that is told installs it."""
    write_pair(tmp_path / "groups", TINY, random_tensors())
    (photos / "captions.csv").write_text(HEAD + "picture_00,a dog\n")
    monkeypatch.setitem(sys.modules, "open_clip", None)
    for folder, weights in ((place / "photos", place / "towers"), (photos, tmp_path / "groups")):
        given = ("train", folder, "--weights", weights, "--out", tmp_path / "run")
        code, _, told = maskwright(*given, "--names", "disc,square")
        last = told.splitlines()[-1]
        assert code == 2 and "because open_clip is not installed: pip install 'maskwright[clip]'; " in last, told
        # Names that only lie there are left aside, which the reason says.
        (folder / "classes.txt").write_text("disc\nsquare\n")
        told = maskwright(*given)[2]
        (folder / "classes.txt").unlink()
        line = next(line for line in told.splitlines() if line.startswith("Method: kmeans"))
        assert line.endswith("because open_clip is not installed: pip install 'maskwright[clip]'."), told
    extras = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert extras["clip"] == ["open_clip_torch"] and extras["hf"] == ["transformers"]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_ten_thousand_names_in_bounded_memory(place, tmp_path):
    """On a photograph of 250 x 188, whose probabilities alone would take 1.9 GB."""
    (tmp_path / "photos").mkdir()
    pixels = np.random.default_rng(0).integers(0, 255, (188, 250, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "photos" / "p0.png")
    two = ["".join(letters) for letters in itertools.product("bdfgklmnpt", "aeiou", "bdfgk", "aeou")]
    names = [f"{colour} {word}" for colour in ("red", "blue", "old", "new", "wet", "dry", "hot", "big", "tiny", "far")
             for word in two]  # fmt: skip
    assert len(set(names)) == 10_000
    (tmp_path / "names.txt").write_text("\n".join(names))

    def typed(*arguments: object) -> int:
        """Runs the command in a process of its own; gives its peak memory, bytes, libraries included."""
        process = subprocess.Popen(
            [sys.executable, "-m", "maskwright", *map(str, arguments)], stderr=subprocess.DEVNULL
        )
        _, status, used = os.wait4(process.pid, 0)
        assert os.waitstatus_to_exitcode(status) == 0
        return used.ru_maxrss * 1024

    run, listed = tmp_path / "run", tmp_path / "names.txt"
    assert typed("train", tmp_path / "photos", *words(place), "--names", listed, "--out", run) < 1.8e9
    assert typed("predict", run, tmp_path / "photos", "--out", tmp_path / "masks", "--device", "cpu") < 1.8e9
    mask = np.asarray(Image.open(next((tmp_path / "masks").rglob("p0.png"))))
    assert mask.shape == (188, 250) and mask.dtype == np.uint16 and mask.max() > 255
