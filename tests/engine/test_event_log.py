"""TensorBoard's events hold what `metrics.jsonl` holds, whatever happened between."""

from __future__ import annotations

import json
import logging

import pytest
from tests.conftest import write_tiny_folder

import maskwright as mw
from maskwright.engine.event_log import EventLog, check_log
from maskwright.engine.progress import Progress
from maskwright.engine.records import RunFolder
from maskwright.errors import MaskwrightError


def events(folder) -> dict[tuple[str, str], list[tuple[int, float]]]:
    """All that lies there, {(stage, tag): [(step, value)]}, read by TensorBoard's own reader without its purging."""
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    found: dict[tuple[str, str], list[tuple[int, float]]] = {}
    for stage in sorted(p for p in (folder / "logs").iterdir() if p.is_dir()):
        reader = accumulator.EventAccumulator(
            str(stage), size_guidance={"scalars": 0}, purge_orphaned_data=False
        ).Reload()
        for tag in reader.Tags()["scalars"]:
            found[stage.name, tag] = [(e.step, e.value) for e in reader.Scalars(tag)]
    return found


def metrics(folder) -> dict[tuple[str, str], list[tuple[int, float]]]:
    found: dict[tuple[str, str], list[tuple[int, float]]] = {}
    for line in map(json.loads, (folder / "metrics.jsonl").read_text().splitlines()):
        stage, step = line.pop("stage"), line.pop("step")
        for tag, value in line.items():
            if value is not None:
                found.setdefault((stage, tag), []).append((step, pytest.approx(value, rel=1e-6)))
    return found


def test_a_resumed_run_has_no_step_twice_and_its_first_steps_too(tmp_path):
    pytest.importorskip("tensorboard")
    run = RunFolder(tmp_path / "run")
    run.path.mkdir()
    for step in range(3):
        run.log("train", step, {"loss": 1 / (step + 1), "odd": float("nan")})
    run.log("../up", 0, {"x": 1.0})
    again = RunFolder(tmp_path / "run")
    again.log_events(EventLog(again.path))
    again.forget_metrics("train", 2)
    for step in range(2, 5):
        again.log("train", step, {"loss": 0.1 * step})
    again.events.close()
    assert len(metrics(run.path)["train", "loss"]) == 5
    assert events(run.path) == {
        ("_up", "x"): [(0, 1.0)], ("train", "loss"): metrics(run.path)["train", "loss"],
    }  # fmt: skip
    assert not (tmp_path / "up").exists() and not (tmp_path / "run" / "up").exists()


def test_a_training_gets_them_and_python_hears_of_it(tmp_path, caplog):
    pytest.importorskip("tensorboard")
    data, out = write_tiny_folder(tmp_path / "tiny", count=4), tmp_path / "run"
    with caplog.at_level(logging.INFO, logger="maskwright"):
        mw.train(
            data, "supervised", out=out, backbone="mobilenetv3_small_050", weights="random", steps=3, device="cpu",
            settings={"crop": 32, "batch": 2}, report=False, progress=Progress(quiet=True), log="tensorboard",
        )  # fmt: skip
    assert events(out) == metrics(out) and len(metrics(out)["train", "loss"]) == 3
    records = [r.getMessage() for r in caplog.records if r.name == "maskwright.metrics"]
    assert records == (out / "metrics.jsonl").read_text().splitlines()
    sentences = [r.getMessage() for r in caplog.records if r.name == "maskwright"]
    assert f"model: {out / 'model.safetensors'}" in sentences and any("4 of 4 images" in s for s in sentences)
    assert "log: tensorboard" in (out / "config.yaml").read_text()
    assert all(isinstance(h, logging.NullHandler) for h in logging.getLogger("maskwright").handlers)


def test_what_is_missing_is_said_before_anything_begins(tmp_path, monkeypatch):
    with pytest.raises(MaskwrightError, match=r"unknown log 'tensorbord'.*did you mean 'tensorboard'"):
        check_log("tensorbord")
    monkeypatch.setattr("maskwright.engine.event_log.importlib.util.find_spec", lambda name: None)
    data = write_tiny_folder(tmp_path / "tiny", count=2)
    with pytest.raises(MaskwrightError, match=r"pip install 'maskwright\[log\]'"):
        mw.train(data, "supervised", out=tmp_path / "run", log="tensorboard")
    assert not (tmp_path / "run").exists()
