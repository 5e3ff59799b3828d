"""The example of docs/methods.md is a method: it trains, resumes, saves, and reads what it says it reads."""

from __future__ import annotations

import importlib.util
import json
import math
import re
import sys

import pytest
import torch
from safetensors.torch import load_file
from tests.conftest import REPOSITORY, write_tiny_folder

import maskwright as mw
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
