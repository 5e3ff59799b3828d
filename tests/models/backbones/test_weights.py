"""Checkpoints as training scripts write them: with an optimiser, whose learning rate is a numpy number."""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np
import pytest
import timm
import torch

from maskwright.errors import MaskwrightError
from maskwright.models.backbones.build import build_backbone
from maskwright.models.backbones.weights import read_weights_file


class Danger:
    """Runs code when it is unpickled."""

    def __init__(self, flag: Path) -> None:
        self.flag = flag

    def __reduce__(self):
        return (Path.touch, (self.flag,))


def training_state(**beside) -> dict:
    """What DINO's loop saves: networks with prefixes, and an optimiser after a step of a numpy schedule."""
    torch.manual_seed(0)
    network = timm.create_model("resnet18", num_classes=0)
    optimizer = torch.optim.AdamW(network.parameters(), lr=0.1)
    schedule = np.linspace(0.1, 0.2, 5)
    optimizer.param_groups[0]["lr"] = schedule[3]
    for p in network.parameters():
        p.grad = torch.ones_like(p)
    optimizer.step()
    assert isinstance(optimizer.state_dict()["param_groups"][0]["lr"], np.float64)
    names = {f"module.backbone.{k}": v for k, v in network.state_dict().items()}
    return {"student": names, "teacher": names, "optimizer": optimizer.state_dict(), "epoch": 4, **beside}


def as_numpy_1(path: Path) -> None:
    """Gives the pickle in a checkpoint the module names that numpy 1 wrote."""
    with zipfile.ZipFile(path) as file:
        entries = [(i, file.read(i)) for i in file.infolist()]
    with zipfile.ZipFile(path, "w") as file:
        for info, data in entries:
            if info.filename.endswith("data.pkl"):
                assert b"cnumpy._core.multiarray\nscalar\n" in data
                data = data.replace(b"cnumpy._core.multiarray\n", b"cnumpy.core.multiarray\n")
            file.writestr(info.filename, data)


@pytest.mark.parametrize("numpy", [1, 2])
def test_optimiser_with_a_numpy_rate(tmp_path, numpy):
    path, state = tmp_path / "checkpoint.pth", training_state()
    torch.save(state, path)
    if numpy == 1:
        as_numpy_1(path)
    tensors = read_weights_file(path).tensors
    rate = tensors["optimizer"]["param_groups"][0]["lr"]
    assert isinstance(rate, np.float64) and rate == np.linspace(0.1, 0.2, 5)[3]
    loaded = build_backbone("resnet18", str(path)).model.state_dict()
    assert all(torch.equal(v, state["teacher"][f"module.backbone.{k}"]) for k, v in loaded.items())


@pytest.mark.parametrize("numpy", [1, 2])
def test_code_beside_the_numpy_rate_is_refused(tmp_path, numpy):
    path, flag = tmp_path / "checkpoint.pth", tmp_path / "owned"
    torch.save(training_state(more=Danger(flag)), path)
    if numpy == 1:
        as_numpy_1(path)
    with pytest.raises(MaskwrightError, match="more than tensors"):
        read_weights_file(path)
    assert not flag.exists()
    torch.load(path, weights_only=False)
    assert flag.exists()


@pytest.mark.parametrize(
    "value",
    [np.zeros(3), np.int64(1), np.float32(1), np.ma.masked, np.random.default_rng(0)],
    ids=lambda v: type(v).__name__,
)
def test_no_other_part_of_numpy_is_taken(tmp_path, value):
    path = tmp_path / "checkpoint.pth"
    torch.save({"state_dict": {"w": torch.ones(2)}, "rate": np.float64(0.1), "more": value}, path)
    with pytest.raises(MaskwrightError, match="more than tensors"):
        read_weights_file(path)


def test_permission_ends_with_the_read(tmp_path):
    path = tmp_path / "checkpoint.pth"
    torch.save({"w": torch.ones(2), "rate": np.float64(0.1)}, path)
    # A set of torch's own: its order means nothing. Entries may be (callable, name) pairs.
    before = set(torch.serialization.get_safe_globals())
    read_weights_file(path)
    assert set(torch.serialization.get_safe_globals()) == before
    with pytest.raises(Exception, match="Weights only"):
        torch.load(path, weights_only=True)
