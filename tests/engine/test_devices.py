from __future__ import annotations

import pytest
import torch

from maskwright.engine.devices import cpu_has_bf16, make_fabric, pick_device
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


def test_precision():
    fabric = make_fabric("cpu", "bf16-mixed")
    with fabric.autocast():
        assert torch.nn.Linear(3, 3)(torch.randn(2, 3)).dtype == torch.bfloat16
    with make_fabric("cpu").autocast():
        assert torch.nn.Linear(3, 3)(torch.randn(2, 3)).dtype == torch.float32
