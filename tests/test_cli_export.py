"""`maskwright export` as a user meets it."""

from __future__ import annotations

import json

import pytest
from tests.one_convolution import colours, network_graph
from typer.testing import CliRunner

import maskwright as mw
from maskwright.cli.program import app
from maskwright.errors import MaskwrightError
from maskwright.models import tracing
from maskwright.predict.model import Model


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setattr(tracing, "network_graph", network_graph)
    Model(colours(), {"refine": "crf"}).save_pretrained(tmp_path / "model")
    return tmp_path


def run(*words: object):
    return CliRunner().invoke(app, ["export", *map(str, words)])


def test_export(folder):
    done = run(folder / "model", "--out", folder / "new" / "model.onnx")
    assert done.exit_code == 0, done.output
    assert (folder / "new" / "model.onnx").is_file()
    said = " ".join(done.output.split())
    assert "checked against torch at 33 x 44, 41 x 25, 61 x 47" in said
    assert "refines by crf" in said and "EXIF" in said


def test_export_json(folder):
    done = run(folder / "model" / "model.safetensors", "--format", "onnx", "--out", folder / "m.onnx", "--json")
    told = json.loads(done.output)
    assert told["bytes"] == (folder / "m.onnx").stat().st_size and told["largest_difference"] <= 1e-4
    assert [p["unequal"] for p in told["parity"]] == [0, 0, 0]


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--format", "onyx", "--out", "x.onnx"], "onnx"),
        (["--out", "."], "a file"),
        (["--out", "{folder}"], "is a folder"),
    ],
)
def test_bad_requests(folder, words, told):
    done = run(folder / "model", *(w.format(folder=folder) for w in words))
    assert isinstance(done.exception, MaskwrightError) and told in str(done.exception)
    assert not (folder / "x.onnx").exists()


def test_a_missing_model(folder):
    done = run(folder / "none", "--out", folder / "m.onnx")
    assert isinstance(done.exception, MaskwrightError) and "none" in str(done.exception)
    assert mw.load(folder / "model").classes == colours().classes
