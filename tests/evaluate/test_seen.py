"""Judging photographs that a run was trained on: said, by contents where both sides know them; left out if asked."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tests.conftest import write_tiny_folder

import maskwright as mw
from maskwright.data.folders.folder import Dataset
from maskwright.data.trust.photographs import IMAGES, write_photographs
from maskwright.errors import MaskwrightError
from maskwright.predict.kept import RECORD


def run_on(folder: Path, data: Dataset, masks: list[str]) -> Path:
    """The records of a run on some photographs, which read some masks."""
    folder.mkdir()
    (folder / "run.json").write_text("{}")
    write_photographs(folder, {"target": data})
    (folder / "ledger.json").write_text(json.dumps({"train": {"masks": masks}, "select": {"masks": []}}))
    return folder


@pytest.fixture
def tiny(tmp_path) -> Path:
    return write_tiny_folder(tmp_path / "tiny")


def predicted(tiny: Path, run: Path, out: Path) -> Path:
    """Masks as `predict` leaves them: the truth, and a record that names the run's model."""
    shutil.copytree(tiny / "masks", out)
    head = {"model": {"key": "k", "file": str(run / "model.safetensors")}, "settings": {}}
    line = {"name": "picture_00", "source": "", "files": {}, "only": None, "pixels": {}}
    (out / RECORD).write_text(json.dumps(head) + "\n" + json.dumps(line) + "\n")
    return out


def test_masks_of_an_earlier_model_are_said(tiny, tmp_path):
    """The run that made them went on since; the scores say which model they are of."""
    run = run_on(tmp_path / "run", mw.open_folder(tiny).split("train"), [])
    out = predicted(tiny, run, tmp_path / "out")
    for record, stale in (({}, False), ({"model_key": "k", "resumed": ["x"]}, False),
                          ({"model_key": "new", "resumed": ["x"]}, True), ({"model_key": "new"}, False)):  # fmt: skip
        (run / "run.json").write_text(json.dumps(record))
        found = mw.evaluate(out, tiny)
        assert found.models == ["k"] and any("earlier model" in n for n in found.notes) == stale


def test_photographs_trained_on_are_said_and_left_out(tiny, tmp_path):
    data = mw.open_folder(tiny)
    run = run_on(tmp_path / "run", data.split("train"), data.split("train").names[:3])
    out = predicted(tiny, run, tmp_path / "out")
    told = f"4 of the 8 photographs judged are among those that {run} was trained on and on the masks of 3"
    (note,) = [n for n in mw.evaluate(out, tiny).notes if "trained on" in n]
    assert note == f"{told}; --exclude-run {run} leaves them out"
    assert not [n for n in mw.evaluate(out, tiny, split="test").notes if "trained on" in n]
    scores = mw.evaluate(out, tiny, exclude_run=run)
    assert scores.images == 4 and f"4 of 8 images left out: {run} was trained on them" in " ".join(scores.notes)
    assert scores.names_hash == mw.evaluate(out, tiny, split="test").names_hash
    assert not [n for n in scores.notes if "photographs judged" in n]
    with pytest.raises(MaskwrightError, match="saw all of the 4 photographs"):
        mw.evaluate(out, tiny, split="train", exclude_run=[run])
    with pytest.raises(MaskwrightError, match="holds no run"):
        mw.evaluate(out, tiny, exclude_run=tmp_path)


def test_contents_decide_not_names_where_both_are_known(tiny, tmp_path):
    data = mw.open_folder(tiny)
    run = run_on(tmp_path / "run", data.split("train"), [])
    other = tmp_path / "other"
    shutil.copytree(tiny, other)
    for name in data.split("train").names[1:]:  # other photographs of the same names
        Image.fromarray(255 - np.array(Image.open(other / "images" / f"{name}.png"))).save(
            other / "images" / f"{name}.png"
        )
    first = data.split("train").names[0]
    (other / "images" / f"{first}.png").rename(other / "images" / "copied.png")
    (other / "masks" / f"{first}.png").rename(other / "masks" / "copied.png")
    out = predicted(other, run, tmp_path / "out")
    (note,) = [n for n in mw.evaluate(out, other).notes if "trained on" in n]
    assert note.startswith("1 of the 8 photographs judged") and "on no mask of theirs" in note
    # A bare folder of masks has no photographs to compare: names.
    (note,) = [n for n in mw.evaluate(out, other / "masks").notes if "trained on" in n]
    assert note.startswith("3 of the 8 photographs judged")


def test_masks_in_a_run_and_runs_that_cannot_be_had(tiny, tmp_path):
    data = mw.open_folder(tiny)
    run = run_on(tmp_path / "run", data, data.names)
    inside = run / "stage" / "masks"
    shutil.copytree(tiny / "masks", inside)
    assert any("8 of the 8" in n and "masks of 8" in n for n in mw.evaluate(inside, tiny).notes)
    (run / IMAGES).unlink()  # of an earlier version: the ledger knows names
    assert any("8 of the 8" in n for n in mw.evaluate(inside, tiny).notes)
    out = predicted(tiny, tmp_path / "gone", tmp_path / "out")
    assert any("is not known of the predictions: no run in" in n for n in mw.evaluate(out, tiny).notes)
    shutil.copytree(tiny / "masks", tmp_path / "plain")
    assert not mw.evaluate(tmp_path / "plain", tiny).notes
