"""Repairs that messages print are carried out as they are printed, and the problem is gone."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tests.data.masking.test_label_check import ASKED, TRUE, H, W, grey, write_set

from maskwright import cli
from maskwright.data.examining.doctor import examine
from maskwright.data.examining.mending import is_mended
from maskwright.data.examining.reading import Reading
from maskwright.data.examining.understanding import understand
from maskwright.data.folders.folder import open_folder
from maskwright.data.masking.masks import read_mask
from maskwright.data.pictures.images import orient
from maskwright.errors import MaskwrightError


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MASKWRIGHT_CACHE", str(tmp_path / "cache"))


def run(monkeypatch: pytest.MonkeyPatch, *words: object) -> int:
    """Exit code of a command line."""
    monkeypatch.setattr(sys, "argv", ["maskwright", *map(str, words)])
    with pytest.raises(SystemExit) as left:
        cli.main()
    return int(left.value.code or 0)


def options(repair: str) -> list[list[str]]:
    """The groups of options that a repair names."""
    return [m.split() for m in re.findall(r"(?:--(?:labels|void) [\w:]+(?:,\w+)* ?)+", repair)]


@pytest.mark.parametrize("situation", ASKED)
def test_options_that_an_error_names_settle_it(tmp_path: Path, monkeypatch, capsys, situation: str) -> None:
    draw, names, _, _ = ASKED[situation]
    root = write_set(tmp_path / "set", draw, names)
    assert run(monkeypatch, "doctor", root) == 2
    (error,) = [f for f in examine(root).findings if f.severity == "error"]
    assert run(monkeypatch, "doctor", root, "--fix", tmp_path / "asked") == 2, "the doctor asks as the verbs do"
    assert error.repair in capsys.readouterr().err and not (tmp_path / "asked").exists()
    settled = 0
    for k, words in enumerate(options(error.repair)):
        out = tmp_path / f"mended{k}"
        if run(monkeypatch, "doctor", root, *words, "--fix", out) == 0:
            settled += 1
            # Where 255 means no class, the copy looks as the original does; what was said is said of it too.
            assert examine(out, reading=Reading(labels="ids")).healthy
            assert words[1] == "ids" or (examine(out).healthy and understand(open_folder(out), masks=True))
            capsys.readouterr()
        else:  # the ids of drawn grey levels go beyond the table, which is told in turn
            assert not out.exists() and words[1] == "ids" and error.repair not in capsys.readouterr().err
    assert settled


def test_the_mended_copy_holds_the_ids(tmp_path: Path, monkeypatch, capsys) -> None:
    root = write_set(tmp_path / "set", lambda i, t: grey(255 * t))
    (root / "splits").mkdir()
    (root / "splits" / "train.txt").write_text("p0\np1\n")
    (root / "tags.csv").write_text("name,tags\np0,thing\n")
    (root / "masks" / "spare.png").write_bytes((root / "masks" / "p0.png").read_bytes())
    before = {p: p.read_bytes() for p in root.rglob("*") if p.is_file()}
    out = tmp_path / "out"
    assert run(monkeypatch, "doctor", root, "--labels", "binary255", "--fix", out) == 0
    said = capsys.readouterr().out
    for i, true in enumerate(TRUE):
        np.testing.assert_array_equal(read_mask(out / "masks" / f"p{i}.png"), true)
        assert f"masks/p{i}.png: values 255 to 1" in said
    changes = (out / "changes.txt").read_text()
    assert is_mended(out) and not is_mended(root) and not is_mended(tmp_path / "nowhere")
    assert all(line in said for line in changes.splitlines()[1:]) and "spare.png (no image of its name)" in changes
    for part in ("images/p0.png", "splits/train.txt", "tags.csv", "classes.txt"):
        assert (out / part).read_bytes() == before[root / part]
    assert before == {p: p.read_bytes() for p in root.rglob("*") if p.is_file()}, "nothing is mended in place"
    for place in (out, root, root / "inside"):
        assert run(monkeypatch, "doctor", root, "--labels", "binary255", "--fix", place) == 2
    assert "not empty" in (err := capsys.readouterr().err) and "lies in" in err
    assert not [p for p in tmp_path.iterdir() if p.name.startswith(".")]


def test_unturned_masks_are_turned_by_the_printed_command(tmp_path: Path, monkeypatch) -> None:
    root = tmp_path / "set"
    for sub in ("images", "masks"):
        (root / sub).mkdir(parents=True)
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (W, H), (90, 9, 9)).save(root / "images" / "a.jpg", exif=exif)
    grey(TRUE[1]).save(root / "masks" / "a.png")
    (root / "classes.txt").write_text("ground\nthing\n")
    (error,) = examine(root).of_kind("mask-not-turned")
    command = shlex.split(error.repair.partition(" turns")[0].replace("OUT", str(tmp_path / "out")))
    assert run(monkeypatch, *command[1:]) == 0
    np.testing.assert_array_equal(read_mask(tmp_path / "out" / "masks" / "a.png"), orient(TRUE[1], 6))


def test_what_cannot_be_mended_is_left_and_named(tmp_path: Path, monkeypatch, capsys) -> None:
    root = write_set(tmp_path / "set", lambda i, t: grey(t))
    (root / "masks" / "p0.png").unlink()
    grey(TRUE[0]).save(root / "masks" / "p0.jpg")
    grey(TRUE[1][1:]).save(root / "masks" / "p1.png")
    assert run(monkeypatch, "doctor", root, "--fix", tmp_path / "out") == 2
    said = capsys.readouterr().out
    assert "left as it is: masks/p0.jpg" in said and "masks/p1.png: size left as it is" in said
    assert {f.kind for f in examine(tmp_path / "out").findings if f.severity == "error"} == {
        "lossy-mask",
        "size-mismatch",
    }
    # The printed edits: export as PNG, write again at the size of the image.
    grey(TRUE[0]).save(root / "masks" / "p0.png")
    (root / "masks" / "p0.jpg").unlink()
    grey(TRUE[1]).save(root / "masks" / "p1.png")
    assert examine(root).healthy


@pytest.mark.parametrize("zero", [True, False])
def test_a_missing_name_is_added(tmp_path: Path, zero: bool) -> None:
    root = write_set(tmp_path / "set", lambda i, t: grey(t + (not zero)), "ground\n" if zero else "ground\nthing\n")
    (error,) = examine(root).of_kind("off-by-one")
    assert (
        "add the missing name to classes.txt" if zero else "put a name for id 0 first in classes.txt"
    ) in error.repair
    path = root / "classes.txt"
    path.write_text(path.read_text() + "thing\n" if zero else "none\n" + path.read_text())
    assert examine(root).healthy


def test_colours_are_written_down(tmp_path: Path) -> None:
    colors = np.array([[1, 2, 3], [250, 250, 0]], np.uint8)
    root = write_set(tmp_path / "set", lambda i, t: grey(colors[t]))
    (error,) = examine(root).of_kind("colour-mask")
    assert str(root / "colors.txt") in error.repair and "(1, 2, 3)" in error.message
    (root / "colors.txt").write_text("".join("{} {} {}\n".format(*c) for c in colors))
    (again,) = examine(root).of_kind("colour-mask")
    assert options(again.repair) == [["--labels", "colours"]]


@pytest.mark.parametrize("protocol", ["direct", "saliency", "hungarian", "majority", "luss"])
def test_predictions_of_0_and_255_are_asked_about(tmp_path: Path, monkeypatch, capsys, protocol: str) -> None:
    root = write_set(tmp_path / "set", lambda i, t: grey(t))
    pred = tmp_path / "pred"
    pred.mkdir()
    for i, true in enumerate(TRUE):
        grey(255 * true).save(pred / f"p{i}.png")
        (pred / f"._p{i}.png").write_bytes(b"of a system")
    assert run(monkeypatch, "evaluate", pred, root, "--protocol", protocol) == 2
    asked = capsys.readouterr()
    assert "--predicted-labels binary255" in asked.err and "mIoU" not in asked.out
    words = ("--predicted-labels", "binary255")
    assert run(monkeypatch, "evaluate", pred, root, "--protocol", protocol, *words) == 0
    assert re.search(r"^mIoU +100\.00", capsys.readouterr().out, re.M)
    assert run(monkeypatch, "evaluate", pred, root, "--predicted-labels", "ids") == 0
    assert "no predicted class" in capsys.readouterr().out


def test_missing_predictions_and_masks_are_counted_and_named(tmp_path: Path, monkeypatch, capsys) -> None:
    root = write_set(tmp_path / "set", lambda i, t: grey(t))
    pred = tmp_path / "pred"
    pred.mkdir()
    for i in (0, 1, 3):
        grey(TRUE[i]).save(pred / f"p{i}.png")
    grey(TRUE[0]).save(pred / "stranger.png")
    grey(TRUE[0]).save(root / "masks" / "orphan.png")
    assert run(monkeypatch, "evaluate", pred, root) == 2
    option = re.search(r"--allow-missing", capsys.readouterr().err)
    assert option and run(monkeypatch, "evaluate", pred, root, option[0]) == 0
    said = capsys.readouterr().out
    for words in ("1 of 4 images left out: no prediction (p2)", "1 masks have no image of the same name", "(stranger)"):
        assert words in said
    (root / "masks" / "p3.png").unlink()
    assert run(monkeypatch, "evaluate", pred, root, "--allow-missing") == 0
    assert "have no mask and are left out (p3)" in capsys.readouterr().out


def test_a_source_whose_masks_are_asked_about_is_mended_by_the_printed_command(tmp_path: Path, monkeypatch) -> None:
    from maskwright import api
    from maskwright.engine.needs import LABELLED_SOURCE
    from maskwright.engine.streams import understood_source

    root = write_set(tmp_path / "source", lambda i, t: grey(255 * t))
    with pytest.raises(MaskwrightError) as raised:
        understood_source("source", api.open_folder(root), LABELLED_SOURCE)
    command = re.search(r"maskwright (doctor \S+ --fix) OUT", raised.value.repair)
    assert command and "--labels binary255" in raised.value.repair
    words = [*shlex.split(command[1]), str(tmp_path / "out"), "--labels", "binary255"]
    assert run(monkeypatch, *words) == 0
    mended = understood_source("source", api.open_folder(tmp_path / "out"), LABELLED_SOURCE)
    np.testing.assert_array_equal(mended.mask(0), TRUE[0])


def test_train_asks_before_anything_is_made(tmp_path: Path, monkeypatch, capsys) -> None:
    root = write_set(tmp_path / "set", lambda i, t: grey(255 * t))
    words = ("train", root, "--method", "supervised", "--weights", "random", "--out", tmp_path / "run")
    assert run(monkeypatch, *words) == 2
    assert "--labels binary255" in capsys.readouterr().err and not (tmp_path / "run").exists()
    wide = write_set(tmp_path / "wide", lambda i, t: grey(t * 3), "")
    assert run(monkeypatch, "train", wide, *words[2:], "--classes", 2) == 2
    assert "add --classes 4" in capsys.readouterr().err and not (tmp_path / "run").exists()


def test_the_doctor_says_errors_by_its_exit_code(tmp_path: Path) -> None:
    root = write_set(tmp_path / "set", lambda i, t: grey(255 * t))
    words = [sys.executable, "-m", "maskwright.cli", "doctor", str(root), "--json"]
    done = subprocess.run(words, capture_output=True, text=True)
    assert done.returncode == 2 and '"binary-mask"' in done.stdout and not done.stderr
    done = subprocess.run([*words, "--labels", "binary255"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_pages_of_an_image_become_images(tmp_path: Path, monkeypatch, capsys) -> None:
    root = tmp_path / "set"
    (root / "images" / "deep").mkdir(parents=True)
    (root / "splits").mkdir()
    frames = [Image.fromarray(np.full((8, 9, 3), 40 * k, np.uint8)) for k in range(1, 4)]
    frames[0].save(root / "images" / "deep" / "stack.tif", save_all=True, append_images=frames[1:])
    frames[0].save(root / "images" / "one.png")
    (root / "splits" / "train.txt").write_text("deep/stack\none\n")
    (repair,) = [f.repair for f in examine(root).findings if f.kind == "pages"]
    words = shlex.split(repair[: repair.index(" writes")].replace("OUT", str(tmp_path / "out")))
    assert words[0] == "maskwright" and run(monkeypatch, *words[1:]) == 0
    assert "its 3 pages are images" in capsys.readouterr().out
    copy = open_folder(tmp_path / "out")
    assert not [f for f in examine(tmp_path / "out").findings if f.kind == "pages"]
    pages = [f"deep/stack_{k}" for k in (1, 2, 3)]
    assert copy.names == [*pages, "one"] and copy.split("train").names == [*pages, "one"]
    assert [int(copy.image(i).mean()) for i in range(3)] == [40, 80, 120]


def test_the_list_of_changes_is_not_told_as_left_aside(tmp_path: Path, monkeypatch, capsys) -> None:
    root = write_set(tmp_path / "set", lambda i, true: grey(255 * true))
    assert run(monkeypatch, "doctor", root, "--labels", "binary255", "--fix", tmp_path / "mended") == 0
    assert (tmp_path / "mended" / "changes.txt").is_file()
    assert "left aside" not in capsys.readouterr().out
