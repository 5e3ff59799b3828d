"""A training killed outright in the middle and resumed ends in the weights of one that was left alone, bit for bit.

By the command line, three processes a method. The default run kills a training of the engine's own in
`tests/engine/test_loop.py`, and stops and resumes each method within one process in `test_contract.py`."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tests.conftest import write_tiny_folder
from tests.methods.test_contract import backbone_for, beside, classes_for, settings_for
from tests.models.towers.tiny import config, write_folder

from maskwright.methods import METHODS

STEPS = 90
"""Of a stage; its first checkpoint is at step 50."""


OWN: dict[str, dict[str, object]] = {
    "picie": {"rounds.every": 30},
    "dannet": {"ramp.start": 0.4},
    "redo": {"restart.every": 20},
    "hsg": {"levels.start": 0.5},
    "cbst": {"source_share": 0.05},
    "uda_sod": {"source_share": 0.05},
    "maskclip": {"plus.train": True, "plus.share": 0.05},
    "reco": {"plus.train": True, "plus.rounds": 0},
}
"""What differs from the small runs of the contract suite: parts that set in, or look back, in the middle."""


def command(data: Path, out: Path, method: str, *more: str) -> list[str]:
    """A training; of a method that takes other data sets, on those in the folders beside its data, and of one that
    takes a tower, on the one in the folder beside it."""
    source = [word for name, need in beside(method).items() if need.required
              for word in ("--source", f"{name}={data.with_name(name)}")]  # fmt: skip
    towers = METHODS[method].backbones == "joint"
    backbone, weights = ("clip", data.with_name("towers")) if towers else (backbone_for(method), "random")
    given = [word for k, v in settings_for(method, OWN.get(method)).items()
             for word in ("--set", f"{k}={','.join(map(str, v)) if isinstance(v, tuple) else v}")]  # fmt: skip
    return [
        sys.executable, "-m", "maskwright.cli", "train", str(data), "--method", method,
        "--classes", str(classes_for(method)), "--out", str(out), "--backbone", backbone, "--weights", str(weights),
        "--steps", str(STEPS), "--device", "cpu", *given, *source, *more,
    ]  # fmt: skip


def last_step(out: Path, stage: str) -> int:
    """The last recorded step of a stage, -1 before its first."""
    file = out / "metrics.jsonl"
    steps = [-1]
    for line in file.read_text().splitlines() if file.exists() else []:
        try:
            record = json.loads(line)
        except json.JSONDecodeError:
            continue
        if record["stage"] == stage:
            steps.append(record["step"])
    return max(steps)


STAGES = (
    ("stego", "distill"),
    ("dacs", "train"), ("cbst", "round_1"), ("advent", "train"), ("dannet", "train"), ("uda_sod", "round_1"),
    ("deep_spectral", "self_train"), ("primaps", "em"), ("picie", "train"), ("cyclegan", "generators"),
    ("looking_beyond", "train"), ("segsort", "train"), ("hsg", "train"), ("maskcontrast", "train"), ("redo", "train"),
    ("slotcon", "train"), ("leopart", "train"), ("maskclip", "student_1"), ("reco", "student"), ("groupvit", "train"),
    ("clip_es", "retrain"),
)  # fmt: skip
"""Methods and the stage in which they are killed."""


@pytest.mark.slow
@pytest.mark.parametrize(("method", "stage"), STAGES)
def test_kill_and_resume(method, stage, tmp_path):
    data = write_tiny_folder(tmp_path / "tiny")
    for name in beside(method):
        write_tiny_folder(tmp_path / name)
    if METHODS[method].backbones == "joint":
        write_folder(tmp_path / "towers", config())
    environment = os.environ | {"MASKWRIGHT_CACHE": str(tmp_path / "cache"), "OMP_NUM_THREADS": "1"}
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "env": environment}

    process = subprocess.Popen(command(data, tmp_path / "killed", method), **quiet)
    deadline = time.monotonic() + 900
    while last_step(tmp_path / "killed", stage) < 54:  # past the first checkpoint
        assert process.poll() is None, "ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert last_step(tmp_path / "killed", stage) < STEPS - 1
    assert not (tmp_path / "killed" / "model.safetensors").exists()

    subprocess.run(command(data, tmp_path / "killed", method, "--resume"), check=True, **quiet)
    subprocess.run(command(data, tmp_path / "whole", method), check=True, **quiet)
    a, b = (load_file(tmp_path / d / "model.safetensors") for d in ("killed", "whole"))
    assert a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)
    record = json.loads((tmp_path / "killed" / "run.json").read_text())
    assert record["status"] == "finished" and len(record["resumed"]) == 1
    whole = json.loads((tmp_path / "whole" / "run.json").read_text())
    assert record["labels_read"] == whole["labels_read"], "the ledger is that of an uninterrupted run"
    lines = [json.loads(t) for t in (tmp_path / "killed" / "metrics.jsonl").read_text().splitlines()]
    steps = [m["step"] for m in lines if m["stage"] == stage]
    assert steps == sorted(set(steps))
