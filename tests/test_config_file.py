"""`train --config`: what a file may say, what wins, and the file that repeats a run."""

from __future__ import annotations

import json
import os
import sys
from inspect import signature
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file
from tests.conftest import write_tiny_folder

import maskwright as mw
from maskwright import cli
from maskwright.cli.train import train
from maskwright.cli.train_options import NOT_IN_A_FILE
from maskwright.engine.config_file import lasting, read_config, write_config
from maskwright.engine.progress import Progress
from maskwright.errors import MaskwrightError

VERB = ("data", "method", "steps", "seed", "split")


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("MASKWRIGHT_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))


@pytest.fixture
def maskwright(monkeypatch, capfd):
    """Runs the command line in this process; gives exit code and standard error."""

    def run(*arguments: object) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["maskwright", *map(str, arguments)])
        code = 0
        try:
            cli.main()
        except SystemExit as stop:
            code = int(stop.code or 0)
        return code, capfd.readouterr().err

    return run


def record_of(run: Path) -> dict:
    return json.loads((run / "run.json").read_text())


def same_weights(a: Path, b: Path) -> bool:
    x, y = (load_file(run / "model.safetensors") for run in (a, b))
    return x.keys() == y.keys() and all(torch.equal(x[k], y[k]) for k in x)


# ----------------------------------------------------------------------------------------------------------- reading


@pytest.mark.parametrize(
    "name, text",
    [
        ("a.yaml", "method: stego\nsteps: 5\nteacher:\n  ema: 0.9\nsettings:\n  crop: 32\n  layers: [1, 2]\n"),
        ("a.toml", 'method = "stego"\nsteps = 5\nteacher.ema = 0.9\n[settings]\ncrop = 32\nlayers = [1, 2]\n'),
        ("a.json", '{"method": "stego", "steps": 5, "teacher.ema": 0.9, "settings": {"crop": 32, "layers": [1, 2]}}'),
    ],
)
def test_forms_of_a_file(tmp_path, name, text):
    (tmp_path / name).write_text(text)
    options, settings = read_config(tmp_path / name, VERB)
    assert options == {"method": "stego", "steps": 5}
    ema = settings.pop("teacher.ema") if name == "a.json" else settings.pop("teacher")["ema"]
    assert ema == 0.9 and settings == {"crop": 32, "layers": [1, 2]}


def test_an_empty_file_says_nothing(tmp_path):
    (tmp_path / "a.yaml").write_text("# nothing\nsettings:\n")
    assert read_config(tmp_path / "a.yaml", VERB) == ({}, {})


@pytest.mark.parametrize(
    "name, text, words",
    [
        ("a.yaml", "stepz: 5\n", "unknown key 'stepz'; expected one of data, .*did you mean 'steps'"),
        ("a.yaml", "crop: 5\n", "unknown key 'crop'.*below settings:"),
        ("a.yaml", "settings: 5\n", "settings is 5"),
        ("a.yaml", "- steps\n", "holds list"),
        ("a.yaml", "a: [\n", r"cannot read .*a\.yaml: .*expected a YAML file"),
        ("a.toml", "steps: 5\n", r"cannot read .*a\.toml"),
        ("a.yaml", "a: \xff", "not UTF-8"),
    ],
)
def test_what_a_file_may_not_say(tmp_path, name, text, words):
    (tmp_path / name).write_bytes(text.encode("latin-1"))
    with pytest.raises(MaskwrightError, match=words):
        read_config(tmp_path / name, VERB)
    with pytest.raises(MaskwrightError, match="No such file"):
        read_config(tmp_path / "missing.yaml", VERB)


def test_what_is_written_is_read_back(tmp_path):
    options = {"data": os.fsdecode(b"/ph\xc3\xb6tos: \xe9"), "steps": None, "seed": 3, "split": "a\nb"}
    settings = {"lr": 1e-7, "scales": (0.5, 1.0), "limit": None, "on": "yes", "part": {"deep": {"x": 0.1 + 0.2}}}
    write_config(tmp_path / "a.yaml", options, settings)
    read, back = read_config(tmp_path / "a.yaml", VERB)
    assert read == {k: v for k, v in options.items() if v is not None}
    assert back == settings | {"scales": [0.5, 1.0]}


def test_paths_that_hold_from_anywhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photos").mkdir()
    assert lasting("photos") == lasting(Path("photos")) == str(tmp_path / "photos")
    assert lasting("voc:photos") == f"voc:{tmp_path / 'photos'}"
    assert lasting("train") == "train" and lasting("voc:elsewhere") == "voc:elsewhere" and lasting(None) is None


# ------------------------------------------------------------------------------------------------------- the command


def test_the_command_line_wins_over_the_file(maskwright, tmp_path, monkeypatch):
    asked = {}
    monkeypatch.setattr("maskwright.api.train", lambda data, method, **o: asked.update(o, data=data, method=method))
    (tmp_path / "a.yaml").write_text(
        "data: photos\nmethod: kmeans\nseed: 3\nvoid: [0, 255]\nout: there\nlabels: ids\n"
        "teacher: {ema: 0.5}\nsettings: {dim: 4, lr: 1}\n"
    )
    words = ["--seed", 5, "--set", "teacher.ema=0.9", "--set", "lr=2"]
    code, err = maskwright("train", "--config", tmp_path / "a.yaml", *words)
    assert code == 0, err
    assert (asked["data"], asked["method"], asked["seed"], asked["void"]) == ("photos", "kmeans", 5, "0,255")
    assert asked["out"] == Path("there") and asked["steps"] is None and asked["labels"] == "ids"
    settings = asked["settings"]
    assert settings == {"dim": 4, "teacher": {"ema": 0.5}, "teacher.ema": "0.9", "lr": "2"}
    assert list(settings).index("teacher") < list(settings).index("teacher.ema"), "the later counts"
    maskwright("train", "others", "--config", tmp_path / "a.yaml")
    assert asked["data"] == "others" and asked["seed"] == 3


@pytest.mark.parametrize(
    "text, words",
    [
        ("data: photos\nmetod: kmeans\n", ["'metod'", "'method'"]),
        ("data: photos\nsteps: many\n", ["--steps", "integer"]),
        ("data: photos\nseed: true\n", ["--seed", "integer"]),
        ("method: kmeans\n", ["no DATA", "maskwright train DATA"]),
        ("resume: true\n", ["'resume'"]),
    ],
)
def test_bad_files_are_one_line_and_exit_code_2(maskwright, tmp_path, text, words):
    (tmp_path / "a.yaml").write_text(text)
    code, err = maskwright("train", "--config", tmp_path / "a.yaml", "--out", tmp_path / "run")
    assert code == 2 and err.count("\n") == 1 and err.startswith("maskwright: ")
    assert all(word in err for word in words), err
    assert not (tmp_path / "run").exists()


def test_a_file_of_settings_offers_the_nearest(maskwright, tmp_path):
    data = write_tiny_folder(tmp_path / "tiny")
    (tmp_path / "a.yaml").write_text(f"data: {data}\nmethod: kmeans\nsettings:\n  restartz: 3\n")
    code, err = maskwright("train", "--config", tmp_path / "a.yaml", "--out", tmp_path / "run")
    assert code == 2 and "unknown setting 'restartz'" in err and "'clusters.restarts'" in err


def test_the_file_of_a_run_repeats_it(maskwright, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_tiny_folder(tmp_path / "tiny")
    words = [
        "--method", "kmeans", "--classes", 3, "--backbone", "tf_efficientnet_lite0", "--weights", "random", "--seed", 7,
        "--device", "cpu", "--set", "short_side=64", "--set", "dim=8", "--split", "train", "--void", "none",
    ]  # fmt: skip
    code, err = maskwright("train", "tiny", *words, "--out", "run")
    assert code == 0, err
    said = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    assert said["data"] == str(tmp_path / "tiny") and said["split"] == "train" and said["weights"] == "random"
    assert said["void"] == "none" and said["settings"]["reduction"]["dim"] == 8
    assert "out" not in said and "source" not in said
    assert said.keys() - {"settings"} <= set(signature(train).parameters) - {*NOT_IN_A_FILE}
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    code, err = maskwright("train", "--config", tmp_path / "run" / "config.yaml", "--out", "again")
    assert code == 0, err
    assert same_weights(tmp_path / "run", Path("again"))
    first, second = record_of(tmp_path / "run"), record_of(Path("again"))
    for key in ("config", "options", "seed", "classes_asked", "split", "reading", "weights_key"):
        assert first[key] == second[key], key
    assert yaml.safe_load(Path("again", "config.yaml").read_text()) == said
    code, err = maskwright("train", "--config", tmp_path / "run" / "config.yaml", "--out", "other", "--seed", 8)
    assert code == 0 and record_of(Path("other"))["seed"] == 8


def test_a_run_from_python_leaves_the_file_too(maskwright, tmp_path):
    data = write_tiny_folder(tmp_path / "tiny")
    opened = mw.open_folder(data, labels="ids")
    mw.train(
        opened, "supervised", out=tmp_path / "run", backbone="mobilenetv3_small_050", weights="random", steps=2,
        device="cpu", labeled="train", settings={"crop": 32, "batch": 2}, progress=Progress(quiet=True), report=False,
    )  # fmt: skip
    said = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    assert (said["data"], said["labels"], said["labeled"], said["steps"]) == (str(data), "ids", "train", 2)
    code, err = maskwright("train", "--config", tmp_path / "run" / "config.yaml", "--out", tmp_path / "again")
    assert code == 0, err
    assert same_weights(tmp_path / "run", tmp_path / "again")
