"""The example of docs/methods.md is a method: it trains, resumes, saves, and reads what it says it reads. The README's
commands and its Python do as they stand there what they say."""

from __future__ import annotations

import importlib.util
import json
import math
import re
import shlex
import shutil
import sys

import pytest
import torch
from benchmarks.unsupervised import ENTRIES
from PIL import Image
from safetensors.torch import load_file
from tests.conftest import REPOSITORY, write_tiny_folder

import maskwright as mw
from maskwright import cli
from maskwright.engine.progress import Progress
from maskwright.methods import TABLE

TEXT = (REPOSITORY / "docs" / "methods.md").read_text()
CODE = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)


@pytest.fixture
def entropy(tmp_path, monkeypatch):
    """The module of the page's example, in the table for one test."""
    assert len(CODE) == 1 and 50 <= len(CODE[0].splitlines()) <= 75, "one example of about 60 lines"
    path = tmp_path / "entropy_of_the_page.py"
    path.write_text(CODE[0])
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, path.stem, module)
    spec.loader.exec_module(module)
    monkeypatch.setitem(TABLE, "entropy", f"{path.stem}:Entropy")
    return module


def test_the_example_trains_and_repeats(entropy, tmp_path):
    data = write_tiny_folder(tmp_path / "tiny")
    (tmp_path / "few.txt").write_text("picture_00\npicture_01\n")
    options = {
        "labeled": tmp_path / "few.txt", "backbone": "mobilenetv3_small_050", "weights": "random", "steps": 20,
        "device": "cpu", "report": False, "progress": Progress(quiet=True),
        "settings": {"crops.size": 32, "crops.batch": 2, "precision": "fp32"},
    }  # fmt: skip
    for out in ("a", "b"):
        mw.train(data, "entropy", out=tmp_path / out, **options)
    a, b = (load_file(tmp_path / out / "model.safetensors") for out in ("a", "b"))
    assert all(torch.equal(a[k], b[k]) for k in a)
    record = json.loads((tmp_path / "a" / "run.json").read_text())
    assert record["labels_read"]["train"]["masks"] == 2
    lines = [json.loads(line) for line in (tmp_path / "a" / "metrics.jsonl").read_text().splitlines()]
    assert {"loss", "x", "u"} <= set(lines[-1]) and lines[-1]["loss"] < lines[0]["loss"]
    assert mw.load(tmp_path / "a").predict(next((data / "images").iterdir())).mask.shape == (48, 64)


def test_the_examples_loss(entropy):
    logits, valid = torch.zeros(1, 4, 2, 2), torch.tensor([[[True, True], [True, False]]])
    assert float(entropy.mean_entropy(logits, valid)) == pytest.approx(math.log(4))


def test_files_that_the_page_names_exist():
    named = re.findall(r"`((?:data|ops|models|engine|recipes|methods|evaluate|predict)/[\w/]+(?:\.py)?)", TEXT)
    assert named
    for name in named:
        path = REPOSITORY / "src" / "maskwright" / name
        assert path.exists() or path.with_suffix(".py").exists(), name


README = (REPOSITORY / "README.md").read_text()
CHEAP = ("doctor", "predict", "evaluate", "suggest", "methods")
"""Verbs of the README's command lines that are run here; what they go on by is a k-means of random features."""


def test_the_commands_and_the_python_of_the_readme_work_as_printed(tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    write_tiny_folder(tmp_path / "photos")
    for name in masks_but(2, tmp_path / "photos" / "masks"):
        name.unlink()
    write_tiny_folder(tmp_path / "more", count=3)
    shutil.copytree(tmp_path / "more" / "images", tmp_path / "more_photos")
    shutil.copytree(tmp_path / "more" / "masks", tmp_path / "truth")
    Image.open(tmp_path / "more_photos" / "picture_00.png").save(tmp_path / "a.jpg")
    mw.train(
        "photos", "kmeans", out="runs/photos", classes=3, backbone="mobilenetv3_small_050", weights="random",
        settings={"short_side": 64}, device="cpu", report=False, progress=Progress(quiet=True),
    )  # fmt: skip
    lines = [line.strip() for line in README.splitlines() if line.startswith("    maskwright ")]
    ran = []
    for line in lines:
        words = shlex.split(line, comments=True)
        if words[1] not in CHEAP:
            continue
        monkeypatch.setattr(sys, "argv", words)
        try:
            cli.main()
        except SystemExit as stop:
            assert not stop.code, (line, capfd.readouterr().err)
        ran.append(words[1])
    assert set(ran) == set(CHEAP) and ran.count("predict") == 2
    told = capfd.readouterr().out
    assert "mIoU" in told and "unimatch" in told
    assert sorted(p.name for p in (tmp_path / "masks").iterdir()) == [
        "picture_00.png", "picture_01.png", "picture_02.png", "predicted.jsonl"
    ]  # fmt: skip
    assert (tmp_path / "some" / "a.png").is_file() and (tmp_path / "some" / "overlays" / "picture_02.jpg").is_file()
    assert (tmp_path / "next" / "suggestions.csv").is_file()
    (code,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    exec(compile(code, "README.md", "exec"), {})
    assert "(48, 64)" in capfd.readouterr().out and (tmp_path / "a_mask.png").is_file()


def masks_but(count: int, folder):
    return sorted(folder.iterdir())[count:]


def test_the_readme_is_short_and_its_links_lead_somewhere():
    assert len(README.splitlines()) <= 120
    for page in (REPOSITORY / "README.md", REPOSITORY / "docs" / "table.md"):
        text = page.read_text()
        links = [link for link in re.findall(r"\]\(([^)#]+)", text) if "://" not in link]
        assert links and all((page.parent / link).exists() for link in links)
    table = (REPOSITORY / "docs" / "table.md").read_text()
    rows = {name for row in re.findall(r"^\| (`.*?) \|", table, re.M) for name in re.findall(r"`(\w+)`", row)}
    assert rows == set(TABLE), "each method has its row"
    named = set(re.findall(r"`([a-z]\w+)`", README.split("## Which method")[1].split("## What")[0]))
    assert {n for n in named if n in TABLE} >= {"stego", "supervised", "dacs"}


def test_each_record_without_labels_is_a_row_that_can_be_run_again():
    rows = {entry.name for entry in ENTRIES}
    sets = tuple({name.partition("-")[0] + "-" for name in rows})
    records = {p.name.rpartition("-")[0] for p in (REPOSITORY / "docs" / "runs").iterdir() if p.name.startswith(sets)}
    assert len(records) > 50 and records <= rows
