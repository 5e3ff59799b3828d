"""A training killed outright in the middle and resumed ends in the weights of one that was left alone, bit for bit."""

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

from maskwright.methods import METHODS

STEPS = 120


OPTIONS = {
    "stego": ("--backbone", "tf_efficientnet_lite0", "--set", "short_side=64", "--set", "batch=4"),
    "deep_spectral": ("--backbone", "tf_efficientnet_lite0", "--set", "short_side=64", "--set", "batch=4"),
    "primaps": ("--backbone", "tf_efficientnet_lite0", "--set", "short_side=64", "--set", "batch=4"),
    "picie": (
        "--backbone",
        "mobilenetv3_small_050",
        "--set",
        "crops.size=32",
        "--set",
        "crops.batch=2",
        "--set",
        "rounds.every=30",
    ),
    "dacs": ("--backbone", "mobilenetv3_small_050", "--set", "crops.size=32", "--set", "crops.batch=2"),
    "advent": ("--backbone", "mobilenetv3_small_050", "--set", "crops.size=32", "--set", "crops.batch=2"),
    "dannet": (
        "--backbone",
        "mobilenetv3_small_050",
        "--set",
        "crops.size=32",
        "--set",
        "crops.batch=2",
        "--set",
        "d_width=4",
        "--set",
        "light.width=4",
        "--set",
        "static.classes=ground,square",
        "--set",
        "ramp.start=0.4",
    ),
    "cbst": (
        "--backbone",
        "mobilenetv3_small_050",
        "--set",
        "crops.size=32",
        "--set",
        "crops.batch=2",
        "--set",
        "rounds=1",
        "--set",
        "source_share=0.2",
    ),
    "cyclegan": (
        "--backbone", "mobilenetv3_small_050", "--set", "crops.size=32", "--set", "crops.batch=2",
        "--set", "generators.width=4", "--set", "generators.blocks=1", "--set", "generators.side=32",
    ),
    "uda_sod": (
        "--backbone", "mobilenetv3_small_050", "--set", "crops.size=32", "--set", "crops.batch=2",
        "--set", "rounds=1", "--set", "composites.count=8",
    ),
}  # fmt: skip
"""What makes a method's run small."""


def command(data: Path, out: Path, method: str, *more: str) -> list[str]:
    """A training; of a method that takes other data sets, on those in the folders beside its data."""
    taken = METHODS[method].streams_taken(METHODS[method].Config())
    wanted = [name for name, need in taken.items() if need.required]
    source = [word for name in wanted for word in ("--source", f"{name}={data.with_name(name)}")]
    classes = "2" if METHODS[method].classes_from == "objects" else "3"
    return [
        sys.executable, "-m", "maskwright.cli", "train", str(data), "--method", method, "--classes", classes,
        "--out", str(out), "--weights", "random", "--steps", str(STEPS), "--device", "cpu", *OPTIONS[method], *source,
        *more,
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


@pytest.mark.parametrize(
    ("method", "stage"),
    [
        ("stego", "distill"), pytest.param("dacs", "train", marks=pytest.mark.slow),
        pytest.param("cbst", "round_1", marks=pytest.mark.slow),
        pytest.param("advent", "train", marks=pytest.mark.slow),
        pytest.param("dannet", "train", marks=pytest.mark.slow),
        pytest.param("uda_sod", "round_1", marks=pytest.mark.slow),
        pytest.param("deep_spectral", "self_train", marks=pytest.mark.slow),
        pytest.param("primaps", "em", marks=pytest.mark.slow), pytest.param("picie", "train", marks=pytest.mark.slow),
        pytest.param("cyclegan", "generators", marks=pytest.mark.slow),
    ],
)  # fmt: skip
def test_kill_and_resume(method, stage, tmp_path):
    data = write_tiny_folder(tmp_path / "tiny")
    for name in METHODS[method].streams_taken(METHODS[method].Config()):
        write_tiny_folder(tmp_path / name)
    environment = os.environ | {"MASKWRIGHT_CACHE": str(tmp_path / "cache"), "OMP_NUM_THREADS": "1"}
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "env": environment}

    process = subprocess.Popen(command(data, tmp_path / "killed", method), **quiet)
    deadline = time.monotonic() + 120
    while last_step(tmp_path / "killed", stage) < 70:  # past the first checkpoint, at step 50
        assert process.poll() is None, "ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.005)
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
    steps = [
        json.loads(t)["step"] for t in (tmp_path / "killed" / "metrics.jsonl").read_text().splitlines() if stage in t
    ]
    assert steps == sorted(set(steps))
