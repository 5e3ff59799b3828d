"""Predictions whose classes are the truth's in another order: asked, and judged by name."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

import maskwright as mw
from maskwright.cli import app
from maskwright.errors import MaskwrightError
from maskwright.predict.kept import RECORD

TRUE = np.repeat(np.uint8([[0, 1, 2, 2]]), 8, 0)  # (8, 4): sky, road, tree, tree


@pytest.fixture
def truth(tmp_path) -> Path:
    for folder in ("images", "masks"):
        (tmp_path / "truth" / folder).mkdir(parents=True)
    (tmp_path / "truth/classes.txt").write_text("sky\nroad\ntree\n")
    Image.fromarray(np.zeros((8, 4, 3), np.uint8)).save(tmp_path / "truth/images/a.png")
    Image.fromarray(TRUE).save(tmp_path / "truth/masks/a.png")
    return tmp_path / "truth"


def predicted(folder: Path, names: list[str], ids: np.ndarray) -> Path:
    """A mask, the record that `predict` leaves, and that of the run whose model made it."""
    (folder / "run").mkdir(parents=True)
    (folder / "run/run.json").write_text(json.dumps({"classes": [{"name": n, "color": [0, 0, 0]} for n in names]}))
    (folder / "masks").mkdir()
    Image.fromarray(ids).save(folder / "masks/a.png")
    head = {"model": {"key": "k", "file": str(folder / "run/model.safetensors")}, "settings": {}}
    line = {"name": "a", "source": "", "files": {}, "only": None, "pixels": {}}
    (folder / "masks" / RECORD).write_text(f"{json.dumps(head)}\n{json.dumps(line)}\n")
    return folder / "masks"


def test_another_order_is_asked_and_each_printed_repair_judges(truth, tmp_path):
    """A perfect prediction with its classes in the order of clusters got 25 % without a word."""
    masks = predicted(tmp_path / "p", ["Road", "tree", "sky"], np.uint8([2, 0, 1])[TRUE])
    asked = CliRunner().invoke(app, ["evaluate", str(masks), str(truth)]).exception
    assert isinstance(asked, MaskwrightError), "exit code 2 of the program"
    assert "id 0 is Road in the predictions and sky in the truth" in str(asked)
    assert "--by-name" in str(asked) and "--predicted-labels ids" in str(asked)
    named = CliRunner().invoke(app, ["evaluate", str(masks), str(truth), "--by-name"])
    assert named.exit_code == 0 and "by name: an id is the truth's class" in named.output
    assert mw.evaluate(masks, truth, by_name=True).miou == 1
    as_they_stand = mw.evaluate(masks, truth, predicted_labels="ids")
    assert as_they_stand.miou == 0 and any("ids are judged as they stand" in n for n in as_they_stand.notes)


def test_a_class_that_the_truth_lacks_is_said_and_wrong(truth, tmp_path):
    masks = predicted(tmp_path / "p", ["tree", "lamp", "sky"], np.uint8([2, 1, 0])[TRUE])
    scores = mw.evaluate(masks, truth, by_name=True)
    assert [round(c["iou"], 3) for c in scores.per_class] == [1, 0, 1]
    assert any("not a class of the truth" in n and "lamp" in n for n in scores.notes)


def test_the_same_order_and_names_that_only_differ_are_judged(truth, tmp_path):
    same = mw.evaluate(predicted(tmp_path / "p", ["sky", "road", "tree"], TRUE), truth)
    assert same.miou == 1 and not any("stand" in n for n in same.notes)
    other = mw.evaluate(predicted(tmp_path / "q", ["sky", "street", "tree"], TRUE), truth)
    assert other.miou == 1 and any("id 1 is street in the predictions and road in the truth" in n for n in other.notes)


def test_names_that_cannot_be_matched_are_one_line(truth, tmp_path):
    masks = predicted(tmp_path / "p", ["cluster 0", "cluster 1", "cluster 2"], TRUE)
    with pytest.raises(MaskwrightError, match=r"no class of the predictions .*--protocol hungarian"):
        mw.evaluate(masks, truth, by_name=True)
    with pytest.raises(MaskwrightError, match="--by-name with --protocol hungarian"):
        mw.evaluate(masks, truth, "hungarian", by_name=True)
    (masks / RECORD).unlink()
    with pytest.raises(MaskwrightError, match="not known"):
        mw.evaluate(masks, truth, by_name=True)
