"""Every repair that is printed for a run, its files or its model is carried out here as it stands, and works."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from tests.conftest import write_tiny_folder

import maskwright as mw
from maskwright.engine.progress import Progress
from maskwright.errors import MaskwrightError

KMEANS = {"dim": 8, "restarts": 1, "iterations": 5, "short_side": 32, "max_rows": 500}
SUPERVISED = {"crop": 32, "batch": 2}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    patch = pytest.MonkeyPatch()
    root = tmp_path_factory.mktemp("repairs")
    patch.setenv("MASKWRIGHT_CACHE", str(root / "cache"))
    yield root
    patch.undo()


def train(data: Path, out: Path, method: str = "kmeans", **options):
    mine = {
        "kmeans": {"classes": 3, "backbone": "test_vit", "settings": KMEANS},
        "supervised": {"backbone": "mobilenetv3_small_050", "settings": SUPERVISED, "steps": 2},
        "cam": {
            "backbone": "mobilenetv3_small_050",
            "steps": 2,
            "settings": {"tag_crop": 32, "tag_batch": 2, "crop": 32, "batch": 2, "scales": (1.0,), "seed_crf": False},
        },
    }[method]
    common = {"weights": "random", "device": "cpu", "report": False, "progress": Progress(quiet=True)}
    return mw.train(data, method, out=out, **(common | mine | options))  # fmt: skip


@pytest.fixture(scope="module")
def finished(root):
    made: dict[str, tuple[Path, Path]] = {}

    def get(method: str) -> tuple[Path, Path]:
        if method not in made:
            data = write_tiny_folder(root / method / "data", count=4, size=(32, 40))
            train(data, root / method / "run", method)
            made[method] = data, root / method / "run"
        return made[method]

    return get


def same(a: Path, b: Path) -> bool:
    x, y = (load_file(p / "model.safetensors") for p in (a, b))
    return x.keys() == y.keys() and all(torch.equal(x[k], y[k]) for k in x)


def damage(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 16
    path.write_bytes(content)


def told(data: Path, run: Path, method: str) -> str:
    with pytest.raises(MaskwrightError) as error:
        train(data, run, method, resume=True)
    assert "\n" not in str(error.value)
    return error.value.repair


@pytest.mark.parametrize(
    "method, file",
    [
        ("kmeans", "cluster/clusters.safetensors"),
        ("supervised", "train/checkpoint.pt"),
        ("cam", "classify/tags.json"),
        ("cam", "retrain/checkpoint.pt"),
    ],
)
def test_delete_its_stage_and_resume(finished, tmp_path, method, file):
    data, done = finished(method)
    run = tmp_path / "run"
    shutil.copytree(done, run)
    damage(run / file)
    repair = told(data, run, method)
    found = re.search(r"delete (?:its folder )?(\S+) and repeat the command with --resume", repair)
    assert found and found[1] == str((run / file).parent), repair
    shutil.rmtree(found[1])
    train(data, run, method, resume=True)
    assert same(done, run)


def test_maps_of_class_activations(finished, tmp_path):
    data, done = finished("cam")
    run = tmp_path / "run"
    shutil.copytree(done, run)
    shutil.rmtree(run / "seeds")
    damage(next((run / "cams" / "maps").glob("*.npz")))
    found = re.fullmatch(r"delete (\S+) and (\S+), and repeat the command with --resume", told(data, run, "cam"))
    for path in found.groups():
        assert Path(path).is_relative_to(run / "cams")
        Path(path).unlink()
    train(data, run, "cam", resume=True)
    assert same(done, run)


def test_the_line_of_the_checksum(finished, tmp_path):
    data, done = finished("kmeans")
    run = tmp_path / "run"
    shutil.copytree(done, run)
    text = (run / "run.json").read_text()
    (run / "run.json").write_text(text.replace('"status": "finished"', '"status": "failed"'))
    assert 'delete its line "checksum"' in told(data, run, "kmeans")
    lines = [line for line in (run / "run.json").read_text().splitlines() if '"checksum"' not in line]
    lines[-2] = lines[-2].rstrip(",")
    (run / "run.json").write_text("\n".join(lines))
    train(data, run, resume=True)
    assert json.loads((run / "run.json").read_text())["status"] == "finished"


@pytest.mark.parametrize("file", ["run.json", "ledger.json"])
def test_choose_another_out(finished, tmp_path, file):
    data, done = finished("kmeans")
    run = tmp_path / "run"
    shutil.copytree(done, run)
    (run / file).write_text("{")
    assert "choose another --out" in told(data, run, "kmeans")
    train(data, tmp_path / "another")
    assert same(done, tmp_path / "another")


def invert(path: Path) -> None:
    Image.fromarray(2 - np.asarray(Image.open(path))).save(path)


def test_put_the_masks_back_or_choose_another_out(finished, tmp_path):
    data, run = tmp_path / "data", tmp_path / "run"
    shutil.copytree(finished("supervised")[0], data)
    train(data, run, "supervised")
    invert(data / "masks" / "picture_02.png")
    with pytest.raises(MaskwrightError) as error:
        train(data, run, "supervised", resume=True)
    assert str(error.value) == (
        f"since {run} was begun, the masks of 1 image changed (first: picture_02); expected the labels that it was "
        "begun with; put them back as they were to continue it, or choose another --out to train on those of today"
    )
    train(data, tmp_path / "another", "supervised")
    assert not same(run, tmp_path / "another")
    shutil.copy(finished("supervised")[0] / "masks" / "picture_02.png", data / "masks")
    train(data, run, "supervised", resume=True)

    (data / "classes.txt").write_text("disc\nground\nsquare\n")
    with pytest.raises(MaskwrightError, match=r"class 0 was 'ground' and is 'disc'.*put them back"):
        train(data, run, "supervised", resume=True)
    (data / "classes.txt").write_text("ground\ndisc\nsquare\n")
    with pytest.raises(MaskwrightError, match="reading: void = null, not"):
        train(data, run, "supervised", resume=True, void="254")


def test_the_list_of_labels(finished, tmp_path):
    data, run = tmp_path / "data", tmp_path / "run"
    shutil.copytree(finished("supervised")[0], data)
    train(data, run, "supervised")
    damage(run / "labels.json")
    repair = told(data, run, "supervised")
    assert repair.startswith(f"delete {run / 'labels.json'} and repeat the command")
    (run / "labels.json").unlink()
    invert(data / "masks" / "picture_02.png")
    with pytest.raises(MaskwrightError, match=r"since .* was begun, the masks changed;"):
        train(data, run, "supervised", resume=True)
    shutil.copy(finished("supervised")[0] / "masks" / "picture_02.png", data / "masks")
    train(data, run, "supervised", resume=True)
    assert (run / "labels.json").exists()


def test_masks_do_not_matter_to_a_run_that_reads_none(finished, tmp_path):
    data, run = tmp_path / "data", tmp_path / "run"
    shutil.copytree(finished("kmeans")[0], data)
    train(data, run)
    assert not json.loads((run / "labels.json").read_text())["kinds"]
    invert(data / "masks" / "picture_02.png")
    train(data, run, resume=True)


def test_a_run_of_an_earlier_version_goes_on(finished, tmp_path):
    data, done = finished("supervised")
    run = tmp_path / "run"
    shutil.copytree(done, run)
    record = json.loads((run / "run.json").read_text())
    for known in ("checksum", "reading"):
        del record[known]
    del record["data"]["labels"]
    (run / "run.json").write_text(json.dumps(record))
    (run / "labels.json").unlink()
    train(data, run, "supervised", resume=True)
    assert same(done, run) and json.loads((run / "run.json").read_text())["data"]["labels"]["masks"]


def test_a_damaged_model_is_trained_again(finished, tmp_path):
    data, done = finished("kmeans")
    run = tmp_path / "run"
    shutil.copytree(done, run)
    damage(run / "model.safetensors")
    with pytest.raises(MaskwrightError, match="copy or train it again"):
        mw.load(run)
    shutil.copy(done / "model.safetensors", run)
    mw.load(run)
    damage(run / "model.safetensors")
    train(data, run, resume=True)
    assert same(done, run)
