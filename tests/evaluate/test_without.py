"""Classes left out of all figures by their names, whatever stored values stand for them: `evaluate --without`."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

import maskwright as mw
from maskwright.cli import app
from maskwright.engine.classes import without
from maskwright.errors import MaskwrightError
from maskwright.evaluate.scores import Scores, seeds_summary

NAMES = ("road", "tree", "sky", "car")
TRUE = np.repeat(np.uint8([[0, 1, 2, 3], [0, 1, 2, 2], [255, 1, 0, 0], [0, 1, 2, 3]]), 4, 0)  # (16, 4)
SAID = TRUE.copy()
SAID[TRUE == 255] = 0
SAID[:4, 2], SAID[8:12, 2], SAID[12:, 3] = 1, 2, 1  # sky taken for a tree, road for sky, a car for a tree
ROAD, TREE, CAR = 16 / 20, 16 / 20, 4 / 8
"""IoU where pixels of the sky count nowhere: a predicted sky is a road missed, a sky taken for a tree is nothing."""
COLOURS = np.uint8([[10, 20, 30], [0, 200, 0], [0, 0, 250], [250, 0, 0]])


def folder(root: Path, masks: dict[str, np.ndarray]) -> Path:
    for sub in ("images", "masks"):
        (root / sub).mkdir(parents=True)
    (root / "classes.txt").write_text("\n".join(NAMES) + "\n")
    for name, mask in masks.items():
        Image.fromarray(np.zeros((16, 4, 3), np.uint8)).save(root / "images" / f"{name}.png")
        Image.fromarray(mask).save(root / "masks" / f"{name}.png")
    return root


@pytest.fixture
def predicted(tmp_path) -> Path:
    (tmp_path / "predicted").mkdir()
    Image.fromarray(SAID).save(tmp_path / "predicted" / "a.png")
    return tmp_path / "predicted"


def as_ids(root: Path) -> tuple[Path, list[str]]:
    """Ids, and 255 for void."""
    return folder(root, {"a": TRUE}), []


def from_1(root: Path) -> tuple[Path, list[str]]:
    return folder(root, {"a": np.where(TRUE == 255, 0, TRUE + 1).astype(np.uint8)}), ["--labels", "from1"]


def in_colours(root: Path) -> tuple[Path, list[str]]:
    lines = [f"{r} {g} {b}" for r, g, b in COLOURS] + ["9 9 9 void"]
    folder(root, {"a": np.concatenate([COLOURS, np.full((252, 3), 9, np.uint8)])[TRUE]})
    (root / "colors.txt").write_text("\n".join(lines) + "\n")
    return root, ["--labels", "colours"]


@pytest.mark.parametrize("drawn", [as_ids, from_1, in_colours])
def test_what_a_run_prints_leaves_the_class_out(drawn, predicted, tmp_path):
    """By the option of the note, however the masks hold the class, and though it is predicted somewhere."""
    truth, said = drawn(tmp_path / "truth")
    words = ["evaluate", str(predicted), str(truth), *said, *shlex.split(without(["sky"]))]
    found = CliRunner().invoke(app, [*words, "--json", str(tmp_path / "scores.json")])
    assert found.exit_code == 0, found.exception
    assert "(all 3), without sky: pixels of it do not count" in found.output
    scores = Scores.from_json((tmp_path / "scores.json").read_text())
    assert {c["name"]: c["iou"] for c in scores.per_class} == {"road": ROAD, "tree": TREE, "car": CAR}
    assert scores.miou == pytest.approx((ROAD + TREE + CAR) / 3) == scores.extra["miou_all"]
    assert scores.pixel_accuracy == pytest.approx(36 / 44) and scores.without == ["sky"] and scores.classes == 3
    record = json.loads((tmp_path / "scores.json").read_text())
    del record["without"]
    assert Scores.from_json(record).without == [], "of an earlier version"


def test_several_names_and_a_name_with_a_comma(predicted, tmp_path):
    truth = folder(tmp_path / "truth", {"a": TRUE})
    two = mw.evaluate(predicted, truth, without="sky, car")
    assert two.without == ["sky", "car"] and two.classes == 2 and "pixels of these do not count" in two.averaging
    assert mw.evaluate(predicted, truth, without=["car", "sky"]).to_json() == two.to_json()
    (truth / "classes.txt").write_text("road\ntree\nsky\ncar, lorry\n")
    assert without(["sky", "car, lorry"]) == "--without sky --without 'car, lorry'"
    assert mw.evaluate(predicted, truth, without=["sky", "car, lorry"]).miou == two.miou
    assert without(["sky", "a road"]) == "--without 'sky,a road'"
    with pytest.raises(MaskwrightError, match="kinds"):
        seeds_summary([two, mw.evaluate(predicted, truth, without=["road", "tree"])])


def test_clusters_are_matched_to_the_classes_that_are_left(predicted, tmp_path):
    truth = folder(tmp_path / "truth", {"a": TRUE})
    scores = mw.evaluate(predicted, truth, "hungarian", without="sky")
    assert [c["name"] for c in scores.per_class] == ["road", "tree", "car"] and scores.miou > 0


def test_what_cannot_be_left_out(predicted, tmp_path):
    truth = folder(tmp_path / "truth", {"a": TRUE})
    with pytest.raises(MaskwrightError, match="unknown class 'sku'") as raised:
        mw.evaluate(predicted, truth, without="sku")
    assert "did you mean 'sky'" in raised.value.repair
    with pytest.raises(MaskwrightError, match="--without road,tree,sky,car"):
        mw.evaluate(predicted, truth, without=NAMES)
    with pytest.raises(MaskwrightError, match="--without sky with --protocol luss"):
        mw.evaluate(predicted, truth, "luss", without="sky")
