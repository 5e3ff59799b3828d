"""The command line as a user meets it: verbs, exit codes, and one clear line for bad input."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tests.conftest import write_tiny_folder

import maskwright as mw
from maskwright import cli
from maskwright.engine.config import describe

FAST = ["--backbone", "tf_efficientnet_lite0", "--weights", "random", "--set", "short_side=64", "--device", "cpu"]


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("MASKWRIGHT_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> tuple[Path, Path]:
    """A dataset folder and a k-means run on it."""
    os.environ.setdefault("MASKWRIGHT_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))
    from maskwright import api
    from maskwright.engine.progress import Progress

    data = write_tiny_folder(tmp_path_factory.mktemp("cli") / "tiny")
    out = data.parent / "run"
    api.train(
        data, "kmeans", out=out, classes=3, backbone="tf_efficientnet_lite0", weights="random",
        settings={"short_side": 64}, progress=Progress(quiet=True), report=False,
    )  # fmt: skip
    return data, out


def bad(result: tuple[int, str, str], *words: str) -> None:
    """Asserts exit code 2 and one line that holds the words."""
    code, _, err = result
    assert code == 2, err
    lines = [line for line in err.splitlines() if line.startswith("maskwright: ")]
    assert len(lines) == 1, err
    assert "Traceback" not in err
    for word in words:
        assert word in lines[0], lines[0]


def test_without_a_verb_a_short_help_is_shown(maskwright):
    code, out, err = maskwright()
    assert code == 0 and not err and len(out.splitlines()) < 20
    assert all(len(line) <= 82 for line in out.splitlines())
    assert all(f"maskwright {verb.name or verb.callback.__name__}" in out for verb in cli.app.registered_commands)


def test_version(maskwright):
    assert maskwright("--version") == (0, f"maskwright {mw.__version__}\n", "")


def test_a_shell_completes_verbs_options_and_methods():
    def offered(*words: str) -> list[str]:
        asked = {
            "_MASKWRIGHT_COMPLETE": "complete_bash",
            "COMP_WORDS": " ".join(words),
            "COMP_CWORD": f"{len(words) - 1}",
        }
        command = [sys.executable, "-m", "maskwright"]
        done = subprocess.run(command, env=os.environ | asked, capture_output=True, text=True, check=False)
        return done.stdout.split()

    assert offered("maskwright", "pre") == ["predict"]
    assert offered("maskwright", "train", "--meth") == ["--method"]
    assert offered("maskwright", "train", "--method", "ste") == ["stego"]
    assert offered("maskwright", "methods", "mean") == ["mean_teacher"]


def test_the_table_of_methods_has_one_line_a_method_and_fits_a_screen(maskwright, monkeypatch):
    for columns in ("80", "100", "200", "60"):
        monkeypatch.setenv("COLUMNS", columns)
        code, out, err = maskwright("methods")
        lines = out.splitlines()
        assert code == 0 and not err and len(lines) <= 50
        rows = {line.split()[0]: line for line in lines[1:-2]}
        assert list(rows) == list(mw.METHODS)
        if columns != "60":
            assert all(m.summary in rows[name] for name, m in mw.METHODS.items())
        assert all(len(line) <= max(int(columns), 80) for line in lines)
    assert rows["stego"].split()[:4] == ["stego", "none", "ICLR", "2022"]
    assert rows["cam"].split()[1] == "tags" and rows["unimatch"].split()[1] == "masks"


@pytest.mark.parametrize("name", mw.METHODS)
def test_one_method_shows_the_options_to_know_on_a_screen_and_all_where_asked(maskwright, monkeypatch, name):
    monkeypatch.setenv("COLUMNS", "80")
    rows = describe(mw.METHODS[name].Config)
    code, out, _ = maskwright("methods", name)
    assert code == 0 and len(out.splitlines()) <= 50
    assert all(len(line) <= 80 or line.startswith("https://") for line in out.splitlines()), "an address stays whole"
    listed = [line.split("=")[0].strip() for line in out.splitlines() if line.startswith("  ") and line[2] != " "]
    assert sorted(listed) == sorted(o["name"] for o in rows if o["main"])
    code, out, _ = maskwright("methods", name, "--all")
    listed = [line.split("=")[0].strip() for line in out.splitlines() if line.startswith("  ") and line[2] != " "]
    assert code == 0 and sorted(listed) == sorted(o["name"] for o in rows)


def test_options_are_shown_by_part_with_their_default_range_and_former_name():
    from maskwright.cli import methods

    row = {"name": "teacher.mode", "type": "str", "default": "eval", "says": "batch norm", "choices": ["eval", "train"],
           "low": None, "high": None, "old": "teacher_mode", "main": True, "group": "teacher"}  # fmt: skip
    assert methods.lines_of(row, 100) == ["  teacher.mode=eval         eval | train; batch norm; also teacher_mode"]
    row |= {
        "name": "a.very.long.name.of.an.option",
        "choices": None,
        "low": 0,
        "high": 1.0,
        "default": 0.5,
        "old": "option",
    }
    assert methods.lines_of(row, 100) == ["  a.very.long.name.of.an.option=0.5", " " * 28 + "0 to 1; batch norm"]
    row |= {"name": "scales", "default": (0.5, 1.0), "low": 0.1, "high": None, "old": "scales"}
    assert methods.lines_of(row, 100) == ["  scales=0.5,1              at least 0.1; batch norm"]


def test_methods_as_json(maskwright):
    code, out, _ = maskwright("methods", "--json")
    rows = json.loads(out)
    assert code == 0 and [r["name"] for r in rows] == list(mw.METHODS)
    fields = {"name", "title", "paper", "link", "family", "needs", "inputs", "options", "summary"}
    assert all(set(r) == fields and r["title"] and r["link"] and r["options"] and r["summary"] for r in rows)
    code, out, _ = maskwright("methods", "stego", "--json")
    assert code == 0 and json.loads(out) == [r for r in rows if r["name"] == "stego"]


def test_train_predict_evaluate(maskwright, tmp_path):
    data = write_tiny_folder(tmp_path / "tiny")
    run = tmp_path / "run"
    code, _, err = maskwright(
        "train", data, "--split", "train", "--method", "kmeans", "--classes", 3, "--out", run, *FAST
    )
    assert code == 0, err
    assert "labels its weights saw" in err
    record = json.loads((run / "run.json").read_text())
    assert record["data"]["images"] == 4
    assert not any(record["labels_read"]["train"].values()) and not any(record["labels_read"]["select"].values())
    for part in ("model.safetensors", "report.html", "metrics.jsonl", "cluster"):
        assert (run / part).exists()

    code, _, err = maskwright("predict", run, data, "--split", "test", "--out", tmp_path / "masks")
    assert code == 0, err
    assert sorted(p.name for p in (tmp_path / "masks").glob("*.png")) == [f"picture_{i:02d}.png" for i in range(4, 8)]

    code, out, err = maskwright(
        "evaluate",
        tmp_path / "masks",
        data,
        "--split",
        "test",
        "--protocol",
        "hungarian",
        "--json",
        tmp_path / "s.json",
    )
    assert code == 0, err
    scores = json.loads((tmp_path / "s.json").read_text())
    assert scores["protocol"] == "hungarian" and 0 <= scores["miou"] <= 1 and 0 <= scores["pixel_accuracy"] <= 1
    assert [c["name"] for c in scores["per_class"]] == ["ground", "disc", "square"]
    assert "hungarian" in out
    assert (scores["images"], scores["split"]) == (4, "test") and len(scores["names_hash"]) == 64
    assert f"4 of split test (sha256 of their names {scores['names_hash'][:12]})" in out


@pytest.mark.slow
def test_semi_supervised_from_a_list_of_names_and_predictions_at_several_scales(maskwright, tmp_path):
    data, run = write_tiny_folder(tmp_path / "tiny"), tmp_path / "run"
    small = ["--set", "crop=32", "--set", "batch=2", "--steps", 2, "--weights", "random", "--device", "cpu"]
    encoder = ["--set", "encoder=mobilenetv3_small_050", "--set", "perturb=classmix"]
    code, _, err = maskwright(
        "train", data, "--method", "mean_teacher", "--labeled", "train", "--out", run, *small, *encoder
    )
    assert code == 0, err
    record = json.loads((run / "run.json").read_text())
    assert record["labels_read"]["train"]["masks"] <= 4 and record["labeled_hash"]
    assert record["backbone"]["architecture"] == "mobilenetv3_small_050"
    code, _, err = maskwright("predict", run, data, "--out", tmp_path / "one")
    assert code == 0, err
    code, _, err = maskwright("predict", run, data, "--out", tmp_path / "three", "--scales", "0.5,1,2", "--flips")
    assert code == 0, err
    one, three = (np.array(Image.open(tmp_path / d / "picture_00.png")) for d in ("one", "three"))
    assert one.shape == three.shape == (48, 64)
    for wrong in ("half", "0", "1,,nan"):
        code, _, err = maskwright("predict", run, data, "--out", tmp_path / "x", "--scales", wrong)
        assert code == 2 and "--scales" in err and err.count("\n") == 1
    code, _, err = maskwright(
        "train", data, "--method", "supervised", "--set", "encoder=resnet18", "--backbone", "vgg16"
    )
    assert code == 2 and "one of the two" in err


def test_doctor(maskwright, tmp_path):
    data = write_tiny_folder(tmp_path / "tiny")
    (data / "images" / "empty.jpg").write_bytes(b"")
    code, out, _ = maskwright("doctor", data, "--json")
    assert code == 2 and "empty" in json.dumps(json.loads(out))


def test_one_image(maskwright, trained, tmp_path):
    data, run = trained
    code, _, err = maskwright("predict", run, data / "images" / "picture_00.png", "--out", tmp_path / "one")
    assert code == 0, err
    assert (tmp_path / "one" / "picture_00.png").exists()


def test_predict_keeps_to_tags(maskwright, trained, tmp_path):
    data, run = trained
    code, _, err = maskwright("predict", run, data, "--out", tmp_path / "x", "--tags")
    assert code == 2 and "tag(s) are no class" in err and err.count("\n") == 1, "clusters have no tags"
    own = tmp_path / "own"
    shutil.copytree(data, own)
    rows = ["name,tags", *(f"picture_0{k},cluster {k % 3}" for k in range(3))]
    (own / "tags.csv").write_text("\n".join(rows) + "\n")
    code, _, err = maskwright("predict", run, own, "--out", tmp_path / "y", "--tags")
    assert code == 0 and "3 of 8 images" in err
    for k in range(3):
        assert set(np.unique(np.array(Image.open(tmp_path / "y" / f"picture_0{k}.png")))) == {k}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["methods", "stegoo"], ["stegoo", "'stego'"]),
        (["trian", "DATA"], ["trian", "'train'", "see maskwright --help"]),
        (["train", "DATA", "--metod", "kmeans"], ["--metod", "--method", "see maskwright train --help"]),
        (["--versio"], ["--versio", "--version"]),
        (["train", "NOWHERE"], ["NOWHERE"]),
        (["train", "DATA", "--method", "stegoo"], ["stegoo", "'stego'"]),
        (["train", "DATA", "--method", "kmeans", "--set", "restartz=3"], ["restartz", "'clusters.restarts'"]),
        (["train", "DATA", "--method", "kmeans", "--set", "restarts=many"], ["restarts=many", "a whole number"]),
        (["train", "DATA", "--method", "kmeans", "--set", "restarts"], ["key=value"]),
        (["train", "DATA", "--method", "kmeans", "--set", "restarts=0"], ["restarts", "at least 1"]),
        (["train", "DATA", "--method", "kmeans", "--split", "trian"], ["trian", "train"]),
        (["train", "DATA", "--method", "kmeans", "--labeled", "nolist"], ["nolist"]),
        (["train", "DATA", "--method", "kmeans", "--backbone", "resnet5O"], ["resnet5O", "resnet50"]),
        (["train", "DATA", "--method", "kmeans", "--weights", "missing.pth"], ["missing.pth"]),
        (["train", "DATA", "--method", "kmeans", "--classes", "0"], ["--classes 0"]),
        (["train", "DATA", "--method", "kmeans", "--steps", "0"], ["--steps 0"]),
        (["train", "DATA", "--method", "kmeans", "--device", "tpu"], ["tpu"]),
        (["train", "nosuchlayout:DATA"], ["nosuchlayout"]),
        (["predict", "missing.safetensors", "DATA", "--out", "o"], ["missing.safetensors"]),
        (["predict", "RUN", "DATA", "--out", "o", "--refine", "crff"], ["crff", "crf"]),
        (["predict", "RUN", "NOWHERE", "--out", "o"], ["NOWHERE"]),
        (["evaluate", "NOWHERE", "DATA"], ["NOWHERE"]),
        (["evaluate", "DATA/masks", "DATA", "--protocol", "hungarain"], ["hungarain", "hungarian"]),
        (["doctor", "NOWHERE"], ["NOWHERE"]),
    ],
)  # fmt: skip
def test_bad_input_is_one_line_and_exit_code_2(maskwright, trained, tmp_path, monkeypatch, arguments, words):
    monkeypatch.chdir(tmp_path)
    data, run = trained
    places = {"DATA": str(data), "RUN": str(run), "NOWHERE": str(tmp_path / "NOWHERE")}
    filled = []
    for a in arguments:
        for key, value in places.items():
            a = a.replace(key, value)
        filled.append(a)
    if filled[0] == "train" and "--out" not in filled:
        filled += ["--out", "new-run"]
        if "--backbone" not in filled and "--weights" not in filled:
            filled += ["--backbone", "tf_efficientnet_lite0", "--weights", "random"]
    bad(maskwright(*filled), *words)
    assert not (tmp_path / "new-run" / "model.safetensors").exists()


def test_more_clusters_than_pixels(maskwright, tmp_path):
    data = write_tiny_folder(tmp_path / "one", count=1)
    result = maskwright("train", data, "--method", "kmeans", "--classes", 5000, "--out", tmp_path / "run", *FAST)
    bad(result, "5000 clusters", "--classes")


def test_existing_run_is_left_alone(maskwright, trained):
    data, run = trained
    before = {p: p.read_bytes() for p in run.rglob("*") if p.is_file()}
    bad(
        maskwright("train", data, "--method", "kmeans", "--classes", 3, "--out", run, *FAST),
        "already holds a run",
        "--resume",
    )
    bad(
        maskwright("train", data, "--method", "kmeans", "--classes", 4, "--out", run, "--resume", *FAST),
        "same settings",
    )
    assert before == {p: p.read_bytes() for p in run.rglob("*") if p.is_file()}


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04zip", b"\x80\x04K\x01.", b"\xff" * 100, b"{}"])
def test_bundle_that_is_none(maskwright, trained, tmp_path, content):
    data, _ = trained
    (tmp_path / "model.safetensors").write_bytes(content)
    bad(maskwright("predict", tmp_path / "model.safetensors", data, "--out", tmp_path / "o"), "model.safetensors")


def test_truncated_bundle(maskwright, trained, tmp_path):
    data, run = trained
    whole = (run / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(whole[: len(whole) // 2])
    bad(maskwright("predict", tmp_path / "model.safetensors", data, "--out", tmp_path / "o"), "model.safetensors")


def test_odd_images(maskwright, trained, tmp_path):
    """Grey, RGBA, 16-bit, palette, CMYK, one pixel and a thin strip are all photographs."""
    _, run = trained
    folder = tmp_path / "odd"
    folder.mkdir()
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 256, (20, 30), np.uint8)).save(folder / "grey.png")
    Image.fromarray(rng.integers(0, 256, (20, 30, 4), np.uint8)).save(folder / "rgba.png")
    Image.fromarray(rng.integers(0, 65536, (20, 30)).astype(np.uint16)).save(folder / "deep.png")
    Image.fromarray(rng.integers(0, 256, (20, 30, 3), np.uint8)).convert("P").save(folder / "palette.png")
    Image.fromarray(rng.integers(0, 256, (20, 30, 3), np.uint8)).convert("CMYK").save(folder / "cmyk.jpg")
    Image.fromarray(rng.integers(0, 256, (1, 1, 3), np.uint8)).save(folder / "pixel.png")
    Image.fromarray(rng.integers(0, 256, (1, 5000, 3), np.uint8)).save(folder / "strip.png")
    (folder / "text.jpg").write_text("hello")
    code, _, err = maskwright("predict", run, folder, "--out", tmp_path / "masks")
    assert code == 0, err
    assert "skipped text" in err
    sizes = {p.stem: Image.open(p).size for p in (tmp_path / "masks").glob("*.png")}
    assert sizes == {
        "grey": (30, 20), "rgba": (30, 20), "deep": (30, 20), "palette": (30, 20), "cmyk": (30, 20),
        "pixel": (1, 1), "strip": (5000, 1),
    }  # fmt: skip


def test_disk_full_while_training_keeps_what_was_there(maskwright, tmp_path, monkeypatch):
    import errno

    from maskwright.data.trust import files

    data = write_tiny_folder(tmp_path / "tiny")
    run = tmp_path / "run"
    real = os.replace

    def full(source, target):
        if str(target).endswith("model.safetensors"):
            raise OSError(errno.ENOSPC, "No space left on device", str(target))
        return real(source, target)

    monkeypatch.setattr(files.os, "replace", full)
    arguments = ("train", data, "--method", "kmeans", "--classes", 3, "--out", run, *FAST)
    bad(maskwright(*arguments), "space")
    assert (run / "cluster" / "stage.json").exists()
    monkeypatch.setattr(files.os, "replace", real)
    code, _, err = maskwright(*arguments, "--resume")
    assert code == 0, err
    assert "already done" in err


def test_names_of_any_bytes_go_through_every_verb(maskwright, trained, tmp_path):
    data = write_tiny_folder(tmp_path / "odd", count=4)
    names = ["café".encode(), b"esc\x1b[31m", "航空写真".encode() * 20 + b"aaaaaaaaaaa", b"=1+2"]
    for k, name in enumerate(names):
        for folder in ("images", "masks"):
            (data / folder / f"picture_{k:02d}.png").rename(data / folder / f"{os.fsdecode(name)}.png")
    for file in ("tags.csv", "captions.csv", "splits/train.txt", "splits/test.txt"):
        (data / file).unlink()
    (data / "images" / "bad\x1b[31m.png").write_text("no image")
    (data / "images" / os.fsdecode(b"raw\xe9.png")).write_text("left aside")
    hidden = tmp_path / "none.txt"
    hidden.write_text('"caf\\u00e9"\n')
    run = tmp_path / "run"
    train = ["train", data, "--method", "kmeans", "--classes", 3, "--out", run, *FAST]
    predict = ["predict", run, data, "--out", tmp_path / "masks", "--confidence", "--overlays"]
    suggest = ["suggest", run, data, "--labeled", hidden, "--count", 9, "--out", tmp_path / "next", "--device", "cpu"]
    evaluate = ["evaluate", tmp_path / "masks", data, "--protocol", "hungarian"]
    said = {}
    for arguments in (["doctor", data], train, predict, suggest, evaluate):
        code, out, err = maskwright(*arguments)
        said[arguments[0]] = err
        assert code in (0, 2 if arguments[0] == "doctor" else 0), err
        assert "\x1b" not in out + err and "Traceback" not in err, arguments
    assert len(list((tmp_path / "masks").glob("*.png"))) == 4
    assert "raw\\xe9.png" in said["predict"] and "not UTF-8" in said["predict"]
    assert "bad\\x1b[31m" in said["predict"]
    assert len((tmp_path / "next" / "names.txt").read_text().splitlines()) == 3


@pytest.mark.slow
def test_the_choice_of_tiles_is_said_and_can_be_made(maskwright, trained, tmp_path):
    data, run = trained
    large = tmp_path / "large"
    large.mkdir()
    for name in ("picture_00", "picture_01"):
        Image.open(data / "images" / f"{name}.png").resize((640, 480)).save(large / f"{name}.png")
    shutil.copy(data / "images" / "picture_02.png", large)
    masks = {}
    for tile in ("auto", "none", "0", "48", ""):
        option = ["--tile", tile] if tile else []
        code, _, err = maskwright("predict", run, large, "--out", tmp_path / f"out{tile}", *option)
        assert code == 0, err
        assert err.count("2 of 3 images") == (tile in ("auto", "")) and ("--tile none" in err) == (tile in ("auto", ""))
        masks[tile] = np.array(Image.open(tmp_path / f"out{tile}" / "picture_00.png"))
    assert (masks["auto"] == masks["48"]).all() and (masks["auto"] == masks[""]).all()
    assert (masks["none"] == masks["0"]).all() and (masks["none"] != masks["48"]).any()
    for wrong, words in (("some", "--tile some"), ("3", "tile is 3"), ("-8", "tile is")):
        bad(maskwright("predict", run, large, "--out", tmp_path / "x", "--tile", wrong), words)
    bad(maskwright("predict", run, large, "--out", tmp_path / ("x" * 300)), "longer than this system takes")
    bad(maskwright("predict", run, tmp_path / ("x" * 300), "--out", tmp_path / "x"), "longer than this")
    bad(maskwright("train", large, "--method", "kmeans", "--out", tmp_path / ("x" * 300), *FAST), "longer than this")


def test_each_verb_says_once_what_lies_aside(maskwright, trained, tmp_path):
    data, run = trained
    own = tmp_path / "own"
    shutil.copytree(data, own)
    (own / "photo.heic").write_bytes(b"x")
    shutil.copy(next((own / "masks").iterdir()), own / "masks" / "alone.png")
    for verb in (
        ("predict", run, own, "--out", tmp_path / "x"),
        ("suggest", run, own, "--count", 1, "--by", "random", "--labeled", own / "none.txt", "--out", tmp_path / "y"),
        ("evaluate", own / "masks", own),
    ):
        (own / "none.txt").write_text("picture_00\n")
        code, out, err = maskwright(*verb)
        assert code == 0, err
        for word in ("photo.heic", "masks/alone.png"):
            assert (out + err).count(word) == 1, (verb[0], word, out + err)


def test_predict_takes_patterns_goes_on_and_counts_what_it_could_not_read(maskwright, trained, tmp_path):
    data, run = trained
    for day, names in (("day1", ("picture_00", "picture_01")), ("day2", ("picture_00",))):
        (tmp_path / "in" / day).mkdir(parents=True)
        for name in names:
            shutil.copy(data / "images" / f"{name}.png", tmp_path / "in" / day)
    out, broken = tmp_path / "out", tmp_path / "in" / "day2" / "broken.jpg"
    predict = ("predict", run, f"{tmp_path}/in/*/*", "--out", out, "--batch", 2)
    code, _, err = maskwright(*predict)
    assert code == 0 and f"3 masks in {out}\n" in err, err
    assert sorted(p.relative_to(out).as_posix() for p in out.rglob("*.png")) == [
        "day1/picture_00.png", "day1/picture_01.png", "day2/picture_00.png"
    ]  # fmt: skip
    (out / "day2" / "picture_00.png").unlink()
    broken.write_bytes(b"x")
    code, _, err = maskwright(*predict)
    assert code == 0 and f"3 masks in {out} (2 of them kept), 1 images skipped" in err, err
    assert "2 of 4 masks were made by this model before and are kept" in err and "skipped day2/broken" in err
    bad(maskwright(*predict, "--strict"), "1 of 4 images could not be read", "day2/broken")
    bad(maskwright("predict", run, broken, "--out", tmp_path / "none"), "none of the 1 images could be read")
    bad(maskwright("predict", run, tmp_path / "in/day1", tmp_path / "in/day2", "--out", tmp_path / "both"), "both have")
    assert not (tmp_path / "both").exists()
    broken.unlink()
    assert maskwright("predict", run, f"{tmp_path}/in/*/", "--out", tmp_path / "both", "--strict")[0] == 0
    (out / "day1" / "picture_00.png").write_bytes((out / "day1" / "picture_01.png").read_bytes())
    bad(maskwright(*predict), "1 masks in", "were changed since", "--anew")
    code, _, err = maskwright(*predict, "--anew")
    assert code == 0 and "kept" not in err


def test_evaluate_says_what_the_run_was_trained_on(maskwright, trained, tmp_path):
    data, run = trained
    assert maskwright("predict", run, data, "--split", "test", "--out", tmp_path / "m")[0] == 0
    judge = ("evaluate", tmp_path / "m", data, "--split", "test", "--protocol", "hungarian")
    code, out, err = maskwright(*judge)
    assert code == 0 and "4 of the 4 photographs judged are among those that" in out, out + err
    bad(maskwright(*judge, "--exclude-run", run), "saw all of the 4 photographs")
    bad(maskwright(*judge, "--exclude-run", data), "holds no run")
