from __future__ import annotations

import importlib
import subprocess
import sys

import pytest
import torch

from maskwright.engine.devices import cpu_has_bf16, make_fabric, pick_device, unseen
from maskwright.errors import MaskwrightError


@pytest.mark.parametrize("choose", [make_fabric, pick_device])
def test_unknown_and_absent_devices(choose, monkeypatch):
    with pytest.raises(MaskwrightError, match="unknown device 'tpu'"):
        choose("tpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(MaskwrightError, match=r"torch sees no GPU.*--device cpu"):
        choose("cuda")


def test_auto(monkeypatch):
    assert pick_device("cpu") == "cpu"
    for there, chosen in ((False, "cpu"), (True, "cuda")):
        monkeypatch.setattr(torch.cuda, "is_available", lambda there=there: there)
        assert pick_device() == chosen
    assert isinstance(cpu_has_bf16(), bool)


def test_it_is_true_fp32_and_says_nothing(capfd):
    with make_fabric("cpu").autocast():
        assert torch.nn.Linear(3, 3)(torch.randn(2, 3)).dtype == torch.float32
    assert capfd.readouterr() == ("", "")


def test_a_package_is_unseen_for_a_while(monkeypatch):
    monkeypatch.delitem(sys.modules, "colorsys", raising=False)
    with unseen("colorsys"), pytest.raises(ImportError):
        importlib.import_module("colorsys")
    seen = importlib.import_module("colorsys")
    with unseen("colorsys"):
        assert importlib.import_module("colorsys") is seen, "what is imported already stays"
    assert sys.modules["colorsys"] is seen


def test_it_imports_nothing_for_metrics():
    """With transformers behind it torchmetrics takes as long as all else."""
    code = "import sys; from maskwright.engine.devices import make_fabric; make_fabric('cpu'); print('torch' in "
    code += "sys.modules, *{'torchmetrics', 'transformers'} & set(sys.modules))"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).split() == ["True"]


SLURM = {
    "SLURM_JOB_ID": "7", "SLURM_NTASKS": "4", "SLURM_NTASKS_PER_NODE": "4", "SLURM_PROCID": "0", "SLURM_LOCALID": "0",
    "SLURM_NODEID": "0", "SLURM_JOB_NAME": "masks", "SLURM_JOB_NODELIST": "node1", "SLURM_NODELIST": "node1",
}  # fmt: skip


def test_in_a_slurm_job_one_command_is_one_process(monkeypatch):
    for name, value in SLURM.items():
        monkeypatch.setenv(name, value)
    fabric = make_fabric("cpu")
    assert (fabric.world_size, fabric.global_rank, fabric.is_global_zero) == (1, 0, True)
