"""`maskwright suggest` as a user meets it."""

from __future__ import annotations

import csv
import sys
from pathlib import Path

import pytest
from tests.conftest import write_tiny_folder

from maskwright import api, cli
from maskwright.engine.progress import Progress


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> tuple[Path, Path]:
    """A dataset folder and a supervised run on half of its masks."""
    data = write_tiny_folder(tmp_path_factory.mktemp("cli") / "tiny")
    out = data.parent / "run"
    api.train(
        data, "supervised", out=out, labeled="train", backbone="tf_efficientnet_lite0", weights="random", steps=2,
        device="cpu", settings={"crop": 32, "batch": 2}, progress=Progress(quiet=True), report=False,
    )  # fmt: skip
    return data, out


@pytest.fixture
def maskwright(monkeypatch, capfd):
    """Runs the command line in this process; gives exit code, standard output and error."""

    def run(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["maskwright", *map(str, arguments)])
        with pytest.raises(SystemExit) as stop:
            cli.main()
        out, err = capfd.readouterr()
        return int(stop.value.code or 0), out, err

    return run


def test_prints_and_writes_what_to_label(maskwright, trained, tmp_path):
    data, run = trained
    code, out, err = maskwright(
        "suggest", run, data, "--count", 2, "--labeled", "train", "--by", "entropy", "--regions", 1, "--out", tmp_path,
        "--device", "cpu",
    )  # fmt: skip
    assert code == 0, err
    with (tmp_path / "suggestions.csv").open() as file:
        names = [row["name"] for row in csv.DictReader(file)]
    assert [line.split()[-1] for line in out.splitlines()] == names and len(names) == 2
    assert not set(names) & set((data / "splits" / "train.txt").read_text().split())
    assert sorted(p.name for p in tmp_path.iterdir()) == ["names.txt", "regions.csv", "sheet.png", "suggestions.csv"]
    assert "2 of 4 images" in err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--by", "entropie", "--labeled", "train"], ("entropie", "entropy")),
        (["--by", "disagreement", "--labeled", "train"], ("one network", "teacher", "--by")),
        ([], ("have masks", "--labeled")),
        (["--labeled", "trian"], ("trian", "train")),
    ],
)
def test_bad_questions_are_told_in_one_line(maskwright, trained, tmp_path, arguments, words):
    data, run = trained
    code, _, err = maskwright(
        "suggest", run, data, "--count", 2, "--out", tmp_path / "out", "--device", "cpu", *arguments
    )
    assert code == 2
    lines = [line for line in err.splitlines() if line.startswith("maskwright: ")]
    assert len(lines) == 1 and all(word in lines[0] for word in words), err
    assert not (tmp_path / "out").exists()
