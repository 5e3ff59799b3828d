"""`train --seeds` and `compare` as a user meets them: what is printed is carried out."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import pytest
from tests.conftest import write_tiny_folder

import maskwright as mw
from maskwright import api
from maskwright.engine.progress import Progress
from maskwright.errors import MaskwrightError

FAST = {"backbone": "tf_efficientnet_lite0", "weights": "random", "device": "cpu", "settings": {"short_side": 64}}
WORDS = ["--backbone", "tf_efficientnet_lite0", "--weights", "random", "--set", "short_side=64", "--device", "cpu"]


@pytest.fixture(autouse=True)
def wide(monkeypatch):
    """As wide as a pipe's, whatever the terminal of the tests."""
    monkeypatch.delenv("COLUMNS", raising=False)


def test_seeds_are_trained_judged_by_the_printed_commands_and_joined(maskwright, tmp_path):
    data, out = write_tiny_folder(tmp_path / "tiny ones", count=4), tmp_path / "runs of it"
    train = ["train", data, "--split", "train", "--method", "kmeans", "--classes", 3, "--out", out, *WORDS]
    code, said, err = maskwright(*train, "--seeds", "0,1")
    assert code == 0, err
    assert sorted(p.name for p in out.iterdir()) == ["seed-0", "seed-1"]
    assert [json.loads((out / f"seed-{k}" / "run.json").read_text())["seed"] for k in (0, 1)] == [0, 1]
    assert "Without a judgement: 2 runs" in said and "–" in said
    assert "seed 0 (1 of 2)" in err and "seed 1 (2 of 2)" in err

    commands = [shlex.split(line) for line in said.splitlines() if line.startswith("  maskwright ")]
    assert [c[1] for c in commands] == ["predict", "evaluate"] * 2
    for command in commands:
        code, _, err = maskwright(*command[1:])
        assert code == 0, err
    page, record = tmp_path / "page.html", tmp_path / "compared.json"
    code, said, err = maskwright("compare", out, "--out", page, "--json", record)
    assert code == 0, err
    assert "0, 1 (n=2)" in said and "hungarian" in said and "Without a judgement" not in said
    (table,) = json.loads(record.read_text())["judgements"]
    each = [json.loads((out / f"seed-{k}" / "scores.json").read_text())["miou"] for k in (0, 1)]
    miou = table["rows"][0]["figures"]["mIoU"]
    assert miou["each"] == each and miou["mean"] == pytest.approx(sum(each) / 2)
    assert table["protocol"] == "hungarian" and table["images"] == 2 and len(table["labels_hash"]) == 64
    assert page.stat().st_size > 10_000 and "side by side" not in said

    report = (out / "seed-0" / "report.html").stat().st_mtime_ns
    code, said, err = maskwright(*train, "--seeds", "0,1,2", "--resume")
    assert code == 0, err
    assert "which is finished" in err and (out / "seed-0" / "report.html").stat().st_mtime_ns == report
    assert "Without a judgement: 1 run" in said and "0, 1 (n=2)" in said
    # The third is to be judged as the others were.
    assert [shlex.split(s)[-1] for s in said.splitlines() if "evaluate" in s] == [str(out / "seed-2" / "scores.json")]
    assert "--split test --protocol hungarian" in said
    code, _, err = maskwright(*train[:-8], *WORDS, "--set", "dim=8", "--seeds", "0,1", "--resume")
    assert code == 2 and "was made with" in err and "dim" in err


def test_what_stopped_goes_on_where_it_stopped(tmp_path, monkeypatch):
    data, out = write_tiny_folder(tmp_path / "tiny", count=4), tmp_path / "runs"
    from maskwright.api import comparing

    begun = []

    def stops(*arguments, seed: int, **options):
        begun.append(seed)
        if len(begun) == 2:
            raise KeyboardInterrupt
        return api.train(*arguments, seed=seed, **options)

    monkeypatch.setattr(comparing, "train", stops)
    options = FAST | {"classes": 2, "report": False, "progress": Progress(quiet=True), "out": out}
    with pytest.raises(KeyboardInterrupt):
        mw.train_seeds(data, "kmeans", seeds=[3, 4], **options)
    assert [p.name for p in out.iterdir()] == ["seed-3"]
    with pytest.raises(MaskwrightError, match=r"seed-3 already holds a run that is finished.*--resume"):
        mw.train_seeds(data, "kmeans", seeds=[3, 4], **options)
    assert begun == [3, 4], "nothing began"
    found = mw.train_seeds(data, "kmeans", seeds=[3, 4], resume=True, **options)
    assert [run.seed for run in found.runs] == [3, 4] and begun[2:] == [3, 4] and len(found.groups) == 1


def test_seeds_that_are_none(maskwright, tmp_path):
    data = write_tiny_folder(tmp_path / "tiny", count=2)
    for seeds in ("", "0,0", "a", "0,-1", "1.5"):
        code, _, err = maskwright("train", data, "--seeds", seeds, "--out", tmp_path / "x")
        assert code == 2 and err.count("\n") == 1 and "--seeds" in err and "0,1,2" in err, err
    assert not (tmp_path / "x").exists()
    Path(tmp_path / "y").mkdir()
    (tmp_path / "y" / "run.json").write_text("{}")
    code, _, err = maskwright("train", data, "--seeds", "0,1", "--out", tmp_path / "y")
    assert code == 2 and "holds a run of its own" in err


def test_places_that_hold_no_run(maskwright, tmp_path):
    code, _, err = maskwright("compare", tmp_path / "none")
    assert code == 2 and err.startswith("maskwright: nothing at ") and err.count("\n") == 1
