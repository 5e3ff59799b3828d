"""`maskwright suggest` as a user meets it."""

from __future__ import annotations

import csv
import json
import shlex
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest
from tests.conftest import write_tiny_folder

from maskwright import api
from maskwright.data.folders.folder import open_folder
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


@pytest.mark.parametrize("to", ["labelme", "cvat"])
def test_the_whole_round_of_correction(maskwright, trained, tmp_path, to):
    """The model's masks go to an annotation tool's folder, a person corrects one, and the folder learns from it."""
    source, run = trained
    data = tmp_path / "photos"
    shutil.copytree(source, data)
    for name in (data / "splits" / "test.txt").read_text().split():
        (data / "masks" / f"{name}.png").unlink()
    shutil.copy(data / "splits" / "train.txt", data / "splits" / "labeled.txt")
    arguments = ("suggest", run, data, "--count", 2, "--by", "entropy", "--out", tmp_path / "next", "--device", "cpu")
    code, _, err = maskwright(*arguments, "--to", to)
    assert code == 0, err
    start = tmp_path / "next" / to
    names = (tmp_path / "next" / "names.txt").read_text().split()
    told = next(line for line in err.splitlines() if "maskwright convert" in line)
    back = shlex.split(told[told.index("maskwright convert") :])[1:]
    assert back[1:3] == [str(start), str(data)] and back[-1] == str(start / "classes.txt")

    drawn = open_folder(start)  # what the tool shows is what the model says, outlines and specks aside
    model = api.load(run)
    for name in names:
        seen, said = drawn.mask(drawn.index(name)), model.predict(drawn.image(drawn.index(name))).mask
        assert (seen != said).mean() < 0.1

    if to == "labelme":  # the person draws one square and saves; the other photograph is left as it is, and taken out
        path = start / f"{names[0]}.json"
        value = json.loads(path.read_text())
        square = {
            "label": "square",
            "points": [[8, 8], [40, 8], [40, 40], [8, 40]],
            "shape_type": "polygon",
            "flags": {},
        }
        ground = {
            "label": "ground",
            "points": [[0, 0], [64, 0], [64, 48], [0, 48]],
            "shape_type": "polygon",
            "flags": {},
        }
        path.write_text(json.dumps(value | {"shapes": [ground, square]}))
        (start / f"{names[1]}.json").unlink()
    else:  # CVAT gives an archive without photographs
        image = f'<image id="0" name="{names[0]}.png" width="64" height="48">'
        shapes = '<box label="ground" xtl="0" ytl="0" xbr="64" ybr="48" z_order="0"></box>' \
                 '<box label="square" xtl="8" ytl="8" xbr="40" ybr="40" z_order="1"></box>'  # fmt: skip
        with zipfile.ZipFile(tmp_path / "export.zip", "w") as archive:
            archive.writestr(
                "annotations.xml", f"<annotations><version>1.1</version>{image}{shapes}</image></annotations>"
            )
        back[1] = str(tmp_path / "export.zip")
    code, out, err = maskwright(*back)
    assert code == 0, err
    assert "masks added to" in out and ": 1; splits/labeled.txt" in out
    corrected = open_folder(data)
    expected = np.zeros((48, 64), int)
    expected[8:40, 8:40] = 2
    assert np.array_equal(corrected.mask(corrected.index(names[0])), expected)
    assert set(corrected.labeled("labeled").split("labeled").names) >= {names[0]} and not corrected.has_mask(
        corrected.index(names[1])
    )
    code, _, err = maskwright(*arguments, "--to", to)
    assert code == 2 and "may be corrected by now" in err


def test_the_printed_way_back_holds_where_masks_are(maskwright, trained, tmp_path):
    """`--labeled` leaves aside masks that the folder has: the printed command replaces these, and is carried out."""
    source, run = trained
    data = tmp_path / "some photos"
    shutil.copytree(source, data)
    code, _, err = maskwright(
        "suggest", run, data, "--count", 1, "--labeled", "train", "--out", tmp_path / "next", "--to", "labelme",
        "--device", "cpu",
    )  # fmt: skip
    assert code == 0 and "1 of them have a mask there, which --replace writes over" in err, err
    (name,) = (tmp_path / "next" / "names.txt").read_text().split()
    told = next(line for line in err.splitlines() if "maskwright convert" in line)
    before = (data / "masks" / f"{name}.png").read_bytes()
    code, out, err = maskwright(*shlex.split(told[told.index("maskwright convert") :])[1:])
    assert code == 0 and "masks added to" in out, err
    assert (data / "masks" / f"{name}.png").read_bytes() != before


def test_a_start_needs_a_format_of_outlines(maskwright, trained, tmp_path):
    data, run = trained
    code, _, err = maskwright(
        "suggest", run, data, "--count", 1, "--labeled", "train", "--out", tmp_path / "x", "--to", "labelm"
    )
    assert code == 2 and "did you mean 'labelme'" in err and not (tmp_path / "x").exists()
