"""`maskwright convert` as a user meets it, and the verbs that read what it reads."""

from __future__ import annotations

import json
import shutil
import zipfile

import numpy as np
import pytest
from PIL import Image
from tests.conftest import write_tiny_folder

import maskwright as mw
from maskwright.engine.progress import Progress


def test_convert_doctor_and_evaluate(maskwright, tmp_path):
    data = write_tiny_folder(tmp_path / "tiny", count=4)
    code, out, err = maskwright("convert", data, tmp_path / "coco", "--to", "coco", "--tolerance", 0)
    assert code == 0 and "4 masks in" in out, err
    code, out, _ = maskwright("doctor", tmp_path / "coco")
    assert code == 0 and "masks     4" in out and f"convert {tmp_path / 'coco'} OUT --from coco --to masks" in out
    command = next(line for line in out.splitlines() if "--from coco" in line).partition("maskwright ")[2]
    words = [str(tmp_path / "masks") if word == "OUT" else word for word in command.split(" writes")[0].split()]
    assert maskwright(*words)[0] == 0  # what the doctor says is what works
    for path in (data / "masks").iterdir():
        ours = tmp_path / "masks" / "masks" / path.name
        assert np.array_equal(np.asarray(Image.open(ours)), np.asarray(Image.open(path)))
    code, _, err = maskwright(
        "evaluate", data / "masks", f"coco:{tmp_path / 'coco'}", "--json", tmp_path / "scores.json"
    )
    assert code == 0 and json.loads((tmp_path / "scores.json").read_text())["miou"] == 1, err


def test_a_changed_annotation_is_a_changed_label(tmp_path):
    """A run is not continued on other labels without a word, though one file holds the labels of all photographs."""
    data = write_tiny_folder(tmp_path / "tiny", count=4)
    mw.convert(data, tmp_path / "coco", "coco")
    options = {
        "backbone": "mobilenetv3_small_050", "weights": "random", "steps": 1, "device": "cpu", "report": False,
        "settings": {"crop": 32, "batch": 2}, "progress": Progress(quiet=True), "out": tmp_path / "run",
    }  # fmt: skip
    assert mw.train(tmp_path / "coco", "supervised", **options).classes.names == ("ground", "disc", "square")
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert record["labels_read"]["train"]["masks"] == 2 and "COCO annotations of 4 photographs" in str(record["notes"])
    path = tmp_path / "coco" / "annotations.json"
    value = json.loads(path.read_text())
    value["annotations"][0]["category_id"] = 3
    path.write_text(json.dumps(value))
    with pytest.raises(mw.MaskwrightError, match=r"the masks of 1 image changed .*picture_00"):
        mw.train(tmp_path / "coco", "supervised", resume=True, **options)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--to", "cocco"), ("unknown format", "did you mean 'coco'")),
        (("--to", "coco", "--from", "labelme"), ("no annotations of LabelMe",)),
        (("--to", "coco", "--colors", "none.csv"), ("none.csv",)),
        (("--to", "masks", "--add", "--labels", "idz"), ("unknown way to read labels",)),
        ((), ("--to",)),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(maskwright, tmp_path, arguments, words):
    data = write_tiny_folder(tmp_path / "tiny", count=2)
    code, _, err = maskwright("convert", data, tmp_path / "out", *arguments)
    assert code == 2 and not (tmp_path / "out").exists()
    (line,) = [line for line in err.splitlines() if line.startswith("maskwright: ")]
    assert all(word in line for word in words), line


def test_archives_colours_and_a_folder_that_is_in_use(maskwright, tmp_path):
    data = write_tiny_folder(tmp_path / "tiny", count=2)
    assert maskwright("convert", data, tmp_path / "c", "--to", "cvat-masks", "--without-images")[0] == 0
    archive = shutil.make_archive(str(tmp_path / "export"), "zip", tmp_path / "c")
    assert zipfile.is_zipfile(archive)
    code, out, err = maskwright("convert", archive, tmp_path / "back", "--to", "masks", "--images", data / "images")
    assert code == 0 and "labelmap.txt" in out, err
    for path in (data / "masks").iterdir():
        ours = tmp_path / "back" / "masks" / path.name
        assert np.array_equal(np.asarray(Image.open(ours)), np.asarray(Image.open(path)))
    code, _, err = maskwright("convert", data, tmp_path / "back", "--to", "masks")
    assert code == 2 and "is not empty" in err
    code, _, err = maskwright("convert", data, data / "inside", "--to", "masks")
    assert code == 2 and "lies in" in err
