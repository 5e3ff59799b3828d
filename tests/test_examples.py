"""The scripts of examples/, each run to its end on drawn photographs."""

from __future__ import annotations

import importlib.util
import json
import types

import numpy as np
import pytest
from PIL import Image
from tests.conftest import REPOSITORY, write_tiny_folder

FOLDER = REPOSITORY / "examples"
SMALL = ["--set", "crop=32", "--set", "batch=2", "--steps", "2"]


def example(name: str) -> types.ModuleType:
    spec = importlib.util.spec_from_file_location(f"example_{name}", FOLDER / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def data(tmp_path):
    return write_tiny_folder(tmp_path / "tiny", count=6)


def masks(folder) -> list[str]:
    return sorted(p.stem for p in folder.glob("*.png"))


def test_each_is_short_and_says_what_it_is_for():
    for path in sorted(set(FOLDER.glob("*.py")) - {FOLDER / "serve.py"}):  # a program: tests/test_serve.py
        text = path.read_text()
        assert 30 <= len(text.splitlines()) <= 50 and text.startswith('"""'), path.name
        assert f"python examples/{path.name} " in text, "how it is called"


def test_few_masks(data, tmp_path, capsys):
    (tmp_path / "few.txt").write_text("picture_00\npicture_01\n")
    out = tmp_path / "run"
    example("few_masks").main(
        [str(data), "--split", "train", "--labeled", str(tmp_path / "few.txt"), "--test", "test", "--out", str(out),
         "--method", "supervised", *SMALL]
    )  # fmt: skip
    assert masks(out / "predictions") == ["picture_03", "picture_04", "picture_05"]
    assert json.loads((out / "run.json").read_text())["labels_read"]["train"]["masks"] == 2
    said = capsys.readouterr().out
    assert said.startswith("3 masks in ") and "mIoU" in said and "3 of split test" in said


def test_no_labels(data, tmp_path, capsys):
    out = tmp_path / "run"
    example("no_labels").main(
        [str(data / "images"), "--clusters", "3", "--method", "kmeans", "--out", str(out), "--set", "short_side=64"]
    )
    largest = sorted((out / "largest").iterdir())
    assert largest and all(Image.open(p).size == (64, 48) for p in largest)
    assert len(capsys.readouterr().out.splitlines()) >= len(largest)


@pytest.mark.slow
def test_tags(data, tmp_path, capsys):
    out = tmp_path / "run"
    example("tags").main([str(data), "--out", str(out), *SMALL])
    assert masks(out / "predictions") == [f"picture_{i:02d}" for i in range(6)]
    for i in range(6):
        ids = set(np.unique(np.array(Image.open(out / "predictions" / f"picture_{i:02d}.png"))).tolist())
        assert ids <= {0, 1 + i % 2}, "its tag and the background"
    assert "the tags of 6 photographs" in capsys.readouterr().out
    assert json.loads((out / "run.json").read_text())["labels_read"]["train"]["masks"] == 0


@pytest.mark.slow
def test_two_domains(data, tmp_path, capsys):
    out = tmp_path / "runs"
    example("two_domains").main(
        [str(data), "--source", f"{data}@train", "--split", "test", "--test", "test", "--out", str(out), *SMALL]
    )
    said = capsys.readouterr().out
    assert "source_only" in said and "dacs" in said and "(n=1)" in said
    assert (out / "compare.html").stat().st_size > 10_000


@pytest.mark.slow
def test_compare_seeds(data, tmp_path, capsys):
    out = tmp_path / "runs"
    arguments = [str(data), "--methods", "kmeans", "--seeds", "0", "1", "--split", "train", "--test", "test",
                 "--protocol", "hungarian", "--out", str(out), "--set", "short_side=64"]  # fmt: skip
    example("compare_seeds").main(arguments)
    said = capsys.readouterr().out
    assert "0, 1 (n=2)" in said and "±" in said
    assert (out / "compare.html").exists()
