from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
import torch
from tests.engine.toys import equal
from torch import nn

from maskwright.engine import checkpoint
from maskwright.engine.checkpoint import CHECKPOINT, load_checkpoint, save_checkpoint, stage_parts, trained
from maskwright.errors import MaskwrightError

STATE = {
    "step": 3,
    "parts": {"w": torch.arange(6.0).view(2, 3), "b": torch.tensor([1], dtype=torch.bfloat16)},
    "rest": [1, "x", None, {"a": (0.5, True)}],
}


def test_round_trip(tmp_path):
    path = tmp_path / "c.pt"
    assert load_checkpoint(path) is None
    save_checkpoint(path, STATE)
    assert equal(load_checkpoint(path), STATE)
    save_checkpoint(path, STATE | {"step": 4})
    assert load_checkpoint(path)["step"] == 4
    assert [p.name for p in tmp_path.iterdir()] == ["c.pt"]


@pytest.mark.parametrize("damage", ["empty", "text", "half", "flipped"])
def test_damage_is_told_in_one_line(tmp_path, damage):
    path = tmp_path / "c.pt"
    save_checkpoint(path, STATE)
    whole = path.read_bytes()
    middle = whole.index(b"PK", 4)
    path.write_bytes({
        "empty": b"", "text": b"hello", "half": whole[: len(whole) // 2],
        "flipped": whole[:middle] + b"\0" * 40 + whole[middle + 40 :],
    }[damage])  # fmt: skip
    with pytest.raises(MaskwrightError, match=r"c\.pt cannot be read.*delete it"):
        load_checkpoint(path)


class Malicious:
    def __init__(self, flag: Path) -> None:
        self.flag = flag

    def __reduce__(self):
        return (Path.touch, (self.flag,))


def test_a_malicious_pickle_is_not_run(tmp_path):
    path, flag = tmp_path / "c.pt", tmp_path / "owned"
    torch.save({"step": 1, "parts": Malicious(flag)}, path)
    with pytest.raises(MaskwrightError):
        load_checkpoint(path)
    assert not flag.exists()
    torch.load(path, weights_only=False)
    assert flag.exists(), "the trap works where it is let"


def full(*_args, **_options):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def half_written(_state, out) -> None:
    out.write(b"PK\x03\x04 the disk ends he")
    raise RuntimeError("[enforce fail at inline_container.cc:664] . unexpected pos 64 vs 0")


@pytest.mark.parametrize("where, fault", [("os.replace", full), ("torch.save", full), ("torch.save", half_written),
                                          ("os.fsync", full)])  # fmt: skip
def test_a_full_disk_keeps_the_old_checkpoint(tmp_path, monkeypatch, where, fault):
    path = tmp_path / "c.pt"
    save_checkpoint(path, STATE)
    module, _, name = where.partition(".")
    monkeypatch.setattr(getattr(checkpoint, module), name, fault)
    with pytest.raises(MaskwrightError, match=r"cannot write .*room on the disk.*--resume"):
        save_checkpoint(path, STATE | {"step": 4})
    monkeypatch.undo()
    assert equal(load_checkpoint(path), STATE)
    assert [p.name for p in tmp_path.iterdir()] == ["c.pt"], "no scratch is left"


def test_a_place_that_cannot_be_written(tmp_path):
    with pytest.raises(MaskwrightError, match="cannot write"):
        save_checkpoint(tmp_path / "missing" / "c.pt", STATE)


def test_what_a_stage_left_is_loaded_in_evaluation_mode_and_another_build_is_refused(tmp_path):
    torch.manual_seed(0)
    left = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))
    folder = tmp_path / "first"
    folder.mkdir()
    save_checkpoint(folder / CHECKPOINT, {"step": 1, "parts": {"module.head": left.state_dict()}})
    found = trained(folder, "head", nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3)))
    assert torch.equal(found[0].weight, left[0].weight) and not found.training
    assert set(stage_parts(folder / CHECKPOINT)) == {"module.head"}
    for part, module in (("head", nn.Linear(2, 3)), ("tail", left)):
        with pytest.raises(MaskwrightError, match="another network"):
            trained(folder, part, module)
    with pytest.raises(MaskwrightError, match="second stage left no"):
        trained(tmp_path / "second", "head", left)
