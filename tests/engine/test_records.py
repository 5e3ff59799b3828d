from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from maskwright.data.folders.folder import open_folder
from maskwright.data.trust import files
from maskwright.engine.records import (
    IDENTITY,
    LOCK,
    METRICS,
    RECORD,
    RunFolder,
    Stopwatch,
    command,
    labels_note,
    versions,
)
from maskwright.errors import MaskwrightError
from maskwright.models.tensors import save_tensors

RECORD_OF = {
    "method": {"name": "toy"},
    "config": {"clusters": 3, "layers": (1, 2)},
    "seed": 0,
    "steps": None,
    "classes_asked": 3,
    "split": None,
    "labeled": None,
    "weights_key": "abc",
    "data": {"fingerprint": "f00", "root": "photos"},
    "command": "maskwright train photos",
    "started": "2026-01-01T00:00:00+00:00",
    "status": "running",
}


def on_disk(folder: Path) -> dict:
    record = json.loads((folder / RECORD).read_text())
    assert len(record.pop("checksum")) == 8
    return record


def test_new_run(tmp_path):
    run = RunFolder.start(tmp_path / "a" / "b", RECORD_OF, resume=False)
    assert on_disk(run.path) == json.loads(json.dumps(RECORD_OF))
    run.save(status="finished")
    assert on_disk(run.path)["status"] == "finished" and on_disk(run.path)["seed"] == 0
    folder = run.stage_folder("distill")
    assert folder.is_dir() and folder.parent == run.path


def test_an_empty_folder_will_do_and_resume_without_a_run_starts_one(tmp_path):
    RunFolder.start(tmp_path, RECORD_OF, resume=False)
    RunFolder.start(tmp_path / "new", RECORD_OF, resume=True)
    assert "resumed" not in on_disk(tmp_path / "new")


def test_an_existing_run_is_refused(tmp_path):
    RunFolder.start(tmp_path, RECORD_OF, resume=False)
    before = (tmp_path / RECORD).read_bytes()
    with pytest.raises(MaskwrightError, match=r"already holds a run.*--resume"):
        RunFolder.start(tmp_path, RECORD_OF | {"seed": 1}, resume=False)
    assert (tmp_path / RECORD).read_bytes() == before


def test_places_that_cannot_be_a_run(tmp_path):
    (tmp_path / "photo.jpg").touch()
    with pytest.raises(MaskwrightError, match=r"not empty and holds no run.*choose another --out"):
        RunFolder.start(tmp_path, RECORD_OF, resume=False)
    for resume in (False, True):
        with pytest.raises(MaskwrightError, match="is a file"):
            RunFolder.start(tmp_path / "photo.jpg", RECORD_OF, resume=resume)
        with pytest.raises(MaskwrightError, match="cannot make"):
            RunFolder.start(tmp_path / "photo.jpg" / "run", RECORD_OF, resume=resume)
    assert [p.name for p in tmp_path.iterdir()] == ["photo.jpg"]


def test_what_may_differ_on_resume(tmp_path):
    RunFolder.start(tmp_path, RECORD_OF, resume=False).save(notes=["kept"], stages=[{"name": "a"}])
    changed = RECORD_OF | {
        "command": "maskwright train photos --resume", "started": "2027-01-01T00:00:00+00:00", "device": "cuda:0",
        "data": {"fingerprint": "f00", "root": "elsewhere/photos"}, "config": {"clusters": 3, "layers": [1, 2]},
    }  # fmt: skip
    run = RunFolder.start(tmp_path, changed, resume=True)
    assert on_disk(tmp_path) == json.loads(json.dumps(run.record))
    assert run.record["command"] == RECORD_OF["command"] and run.record["started"] == RECORD_OF["started"]
    assert run.record["device"] == "cuda:0" and run.record["data"]["root"] == "elsewhere/photos"
    assert run.record["notes"] == ["kept"] and len(run.record["resumed"]) == 1
    assert len(RunFolder.start(tmp_path, changed, resume=True).record["resumed"]) == 2


@pytest.mark.parametrize(
    "key, value, told",
    [
        ("method", {"name": "other"}, 'method: name = "toy", not "other"'),
        ("config", {"clusters": 4, "layers": (1, 2)}, "config: clusters = 3, not 4"),
        ("seed", 1, "seed = 0, not 1"),
        ("steps", 10, "steps = null, not 10"),
        ("classes_asked", 4, "classes_asked = 3, not 4"),
        ("split", "train", 'split = null, not "train"'),
        ("labeled", "few", 'labeled = null, not "few"'),
        ("weights_key", "def", 'weights_key = "abc", not "def"'),
        ("data", {"fingerprint": "f11"}, 'data = "f00", not "f11"'),
    ],
)
def test_other_settings_are_another_run(tmp_path, key, value, told):
    RunFolder.start(tmp_path, RECORD_OF, resume=False)
    before = (tmp_path / RECORD).read_bytes()
    with pytest.raises(MaskwrightError, match=f"made with {told}; expected the same settings"):
        RunFolder.start(tmp_path, RECORD_OF | {key: value}, resume=True)
    assert (tmp_path / RECORD).read_bytes() == before
    assert key in IDENTITY or key == "data"


def test_of_many_settings_those_that_differ_are_named(tmp_path):
    many = {f"setting_{i:03}": i for i in range(100)}
    RunFolder.start(tmp_path, RECORD_OF | {"config": many | {"gone": True}}, resume=False)
    with pytest.raises(MaskwrightError) as error:
        RunFolder.start(tmp_path, RECORD_OF | {"config": many | {"setting_090": "x", "newer": None}}, resume=True)
    told = 'config: gone = true, not unknown; newer = unknown, not null; setting_090 = 90, not "x";'
    assert told in str(error.value) and "setting_001" not in str(error.value)


def test_masks_of_other_images_are_another_run(tmp_path):
    run = RunFolder.start(tmp_path, RECORD_OF | {"labeled_hash": None}, resume=False)
    RunFolder.start(tmp_path, RECORD_OF | {"labeled_hash": "abc" * 9}, resume=True)
    assert on_disk(tmp_path)["labeled_hash"] == "abc" * 9, "recorded from now on"
    before = (tmp_path / RECORD).read_bytes()
    told = r"masks of other images \(sha256 of their names abcabcabcabc, not defdefdefdef\); expected the same masks"
    with pytest.raises(MaskwrightError, match=told):
        RunFolder.start(tmp_path, RECORD_OF | {"labeled_hash": "def" * 9}, resume=True)
    with pytest.raises(MaskwrightError, match="masks of other images"):
        RunFolder.start(tmp_path, RECORD_OF, resume=True)
    assert (tmp_path / RECORD).read_bytes() == before
    run.release()


def test_what_is_said_of_labelled_images(tiny_folder):
    data, digest = open_folder(tiny_folder), "0123456789abcdef"
    assert labels_note(data.labeled(data.names[:3]), None, digest) == (
        "Labelled: 3 of 8 images have a mask (sha256 of their names 0123456789ab)."
    )
    assert labels_note(data.labeled("train"), "train", digest) == (
        "Labelled: 4 images by train (sha256 of their names 0123456789ab)."
    )
    few = labels_note(data.split("test").labeled("train"), "train", digest)
    assert few.startswith("Labelled: 0 images by train of the 4 that it names; the others are not of this split")


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe\x00", b"[1]", b"null"])
def test_a_damaged_record_is_told(tmp_path, content):
    (tmp_path / RECORD).write_bytes(content)
    with pytest.raises(MaskwrightError, match=r"run\.json"):
        RunFolder.start(tmp_path, RECORD_OF, resume=True)
    assert (tmp_path / RECORD).read_bytes() == content


def test_the_record_is_whole_or_not_at_all(tmp_path, monkeypatch):
    run = RunFolder.start(tmp_path, RECORD_OF, resume=False)

    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    before = (tmp_path / RECORD).read_bytes()
    for where in ("fsync", "replace"):
        with monkeypatch.context() as patch:
            patch.setattr(files.os, where, full)
            with pytest.raises(MaskwrightError, match="no space left"):
                run.save(status="finished")
        assert (tmp_path / RECORD).read_bytes() == before
        assert sorted(p.name for p in tmp_path.iterdir()) == [LOCK, RECORD]


def test_metrics(tmp_path):
    run = RunFolder(tmp_path)
    assert run.metrics() == []
    run.forget_metrics("a", 0)
    for step in range(4):
        run.log("a", step, {"loss": 0.1 * step})
        run.log("b", step, {"loss": float("nan"), "other": 1.0})
    assert run.metrics()[2:4] == [
        {"stage": "a", "step": 1, "loss": 0.1},
        {"stage": "b", "step": 1, "loss": None, "other": 1.0},
    ]
    run.forget_metrics("a", 2)
    assert [m["stage"] + str(m["step"]) for m in run.metrics()] == ["a0", "b0", "a1", "b1", "b2", "b3"]
    run.forget_metrics("b", 0)
    assert [m["step"] for m in run.metrics()] == [0, 1]
    assert [p.name for p in tmp_path.iterdir()] == [METRICS]


@pytest.mark.parametrize("rest", [b"{", b'{"stage": "a", "ste', b'{"stage": "a"', b"1", b"\x00\x00\x00", b"\xc3"])
def test_a_line_cut_off_by_a_kill(tmp_path, rest):
    run = RunFolder(tmp_path)
    run.log("a", 0, {"loss": 1.0})
    with (tmp_path / METRICS).open("ab") as out:
        out.write(rest)
    assert [m["step"] for m in run.metrics()] == [0]
    run.forget_metrics("a", 1)
    run.log("a", 1, {"loss": 1.0})
    assert [m["step"] for m in run.metrics()] == [0, 1]
    assert len((tmp_path / METRICS).read_text().splitlines()) == 2


def test_a_process_that_does_not_write(tmp_path):
    run = RunFolder.start(tmp_path / "run", RECORD_OF, resume=False, writes=False)
    assert run.record == RECORD_OF
    run.save(status="x")
    run.log("a", 0, {"loss": 1.0})
    run.forget_metrics("a", 0)
    run.stage_folder("a")
    assert not (tmp_path / "run").exists()


def test_save_tensors(tmp_path):
    x = torch.rand(4, 6)
    save_tensors(tmp_path / "a.safetensors", {"x": x.T, "n": torch.tensor(3)}, {"kind": "test"})
    found = load_file(tmp_path / "a.safetensors")
    assert torch.equal(found["x"], x.T) and int(found["n"]) == 3


def test_versions_and_stopwatch():
    assert {"python", "torch", "numpy", "maskwright"} <= set(versions())
    assert 10 <= Stopwatch(10.0).seconds < 11


def test_one_process_a_run(tmp_path):
    """A second process is told; once the first is gone, killed even, the run can be resumed."""
    run = RunFolder.start(tmp_path / "run", RECORD_OF, resume=False)
    run.release()
    holds = (
        "import sys, time; from pathlib import Path; from maskwright.engine.records import RunFolder;"
        "run = RunFolder(Path(sys.argv[1])); run._hold(); print('held', flush=True); time.sleep(60)"
    )
    other = subprocess.Popen([sys.executable, "-c", holds, str(tmp_path / "run")], stdout=subprocess.PIPE, text=True)
    try:
        assert other.stdout.readline() == "held\n"
        before = (tmp_path / "run" / "run.json").read_bytes()
        with pytest.raises(MaskwrightError, match="in use by another process"):
            RunFolder.start(tmp_path / "run", RECORD_OF, resume=True)
        assert (tmp_path / "run" / "run.json").read_bytes() == before
    finally:
        other.kill()
        other.wait()
    RunFolder.start(tmp_path / "run", RECORD_OF, resume=True)
    assert len(RunFolder.start(tmp_path / "run", RECORD_OF, resume=True).record["resumed"]) == 2, "not its own enemy"


@pytest.mark.parametrize(
    "program, told",
    [
        ("/usr/bin/maskwright", "maskwright train 'my photos'"),
        ("/lib/maskwright/__main__.py", "maskwright train 'my photos'"),
        ("/lib/maskwright/cli/__main__.py", "maskwright train 'my photos'"),
        ("/home/me/script.py", "maskwright.train"),
        ("/lib/pytest/__main__.py", "maskwright.train"),
    ],
)
def test_the_command_that_made_a_run(monkeypatch, program, told):
    monkeypatch.setattr("sys.argv", [program, "train", "my photos"])
    assert command() == told
