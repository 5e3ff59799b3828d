"""A method with a part that no saved model could be loaded with is refused before its first step."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

import pytest
from tests.methods import plugged
from tests.methods.faint import Faint

import maskwright as mw
from maskwright.engine.progress import Progress
from maskwright.errors import MaskwrightError
from maskwright.methods import TABLE
from maskwright.models.parts import table


class Fainter(Faint):
    """A part in the file of its method."""


class Inside(plugged.Plugged):
    """A method in the file of its part."""

    name: ClassVar[str] = "inside"


def train(name: str, data: Path, out: Path) -> mw.Model:
    plugged.STEPS.clear()
    return mw.train(
        data, name, out=out, backbone="mobilenetv3_small_050", weights="random", steps=2, device="cpu", report=False,
        settings={"crop": 32, "batch": 4, "precision": "fp32"}, progress=Progress(quiet=True),
    )  # fmt: skip


@pytest.mark.parametrize("name, part", [("plugged", "Faint"), ("inside", "Fainter")])
def test_it_is_refused_before_the_first_step(name, part, tiny_folder, tmp_path, monkeypatch):
    home = "tests.methods.plugged:Plugged" if name == "plugged" else f"{__name__}:Inside"
    monkeypatch.setitem(TABLE, name, home)
    with pytest.raises(MaskwrightError, match=f"part {part} of tests.methods.* is not in the table") as error:
        train(name, tiny_folder, tmp_path / "run")
    assert "\n" not in str(error.value) and "table.py" in error.value.repair
    assert plugged.STEPS == []


def test_it_trains_and_loads_once_the_table_knows_it(tiny_folder, tmp_path, monkeypatch):
    monkeypatch.setitem(TABLE, "plugged", "tests.methods.plugged:Plugged")
    monkeypatch.setitem(table.TABLE, "Faint", "tests.methods.faint:Faint")
    train("plugged", tiny_folder, tmp_path / "run")
    assert plugged.STEPS == [0, 1]
    assert isinstance(mw.load(tmp_path / "run").segmenter.classifier, Faint)
