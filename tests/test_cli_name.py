"""`maskwright name` as a user meets it: from clusters to classes, by hand and from masks."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import load_file
from tests.conftest import write_tiny_folder

import maskwright as mw
from maskwright import api
from maskwright.app import pictures
from maskwright.data.masking.masks import read_mask
from maskwright.engine.progress import Progress
from maskwright.errors import MaskwrightError
from maskwright.evaluate.scores import hash_names

NAMES = ["lawn", "thing", "void", "lawn"]
QUIET = {"device": "cpu", "progress": Progress(quiet=True)}


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> tuple[Path, Path, str]:
    """A dataset folder, a k-means run of four clusters on its split `train`, and what the training said."""
    data = write_tiny_folder(tmp_path_factory.mktemp("name") / "tiny")
    said: list[str] = []
    bar = Progress(quiet=True)
    bar.say = said.append
    api.train(
        data, "kmeans", out=data.parent / "run", split="train", classes=4, backbone="mobilenetv3_small_050",
        weights="random", device="cpu", settings={"short_side": 64}, progress=bar,
    )  # fmt: skip
    return data, data.parent / "run", "\n".join(said)


@pytest.fixture
def run(trained, tmp_path) -> Path:
    shutil.copytree(trained[1], tmp_path / "run")
    return tmp_path / "run"


def fill(path: Path, names: list[str]) -> Path:
    with path.open() as file:
        rows = list(csv.DictReader(file))
    with path.open("w") as file:
        writer = csv.DictWriter(file, rows[0].keys())
        writer.writeheader()
        writer.writerows(row | {"name": name} for row, name in zip(rows, names))
    return path


def record_of(run: Path) -> dict:
    return json.loads((run / "run.json").read_text())


def test_training_leaves_the_map_and_says_what_to_do_with_it(trained):
    _, run, said = trained
    told = f"maskwright name {run} --map {run / 'map.csv'} --out NAMED"
    assert said.splitlines()[-1].endswith(told)
    page = (run / "report.html").read_text()
    assert told in page and "What the clusters are" in page and 'class="sheet"' in page
    with (run / "map.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [r["name"] for r in rows] == [""] * 4
    shares = [c["share"] for c in record_of(run)["classes"]]
    assert [float(r["share"]) for r in rows] == pytest.approx(shares, abs=1e-4)


def test_a_run_of_named_classes(maskwright, trained, run, tmp_path):
    data = trained[0]
    fill(run / "map.csv", NAMES)
    out = tmp_path / "named"
    code, _, err = maskwright("name", run, "--map", run / "map.csv", "--out", out, "--device", "cpu")
    assert code == 0, err
    before, model = mw.load(run), mw.load(out)
    assert model.classes.names == ("lawn", "thing")
    lookup = np.array([0, 1, 255, 0])
    names = (data / "splits" / "train.txt").read_text().split()
    assert sorted(p.stem for p in (out / "masks").glob("*.png")) == sorted(names), "the photographs of the run's split"
    for name in names:
        mask = before.predict(data / "images" / f"{name}.png").mask
        assert np.array_equal(read_mask(out / "masks" / f"{name}.png"), lookup[mask])
    record, was = record_of(out), record_of(run)
    assert record["status"] == "finished" and record["named"]["run"] == str(run)
    assert [row["name"] for row in record["named"]["map"]] == NAMES
    assert record["labels_read"]["train"] == {"masks": 0, "tags": 0, "captions": 0, "names": 4}
    assert record["provenance"] == was["provenance"] and record["data"] == was["data"]
    assert was["labels_read"]["train"] == {"masks": 0, "tags": 0, "captions": 0}
    assert model.extra["labels_read"] == record["labels_read"]
    page = (out / "report.html").read_text()
    assert "4 names for training" in page and str(run) in page and "What the clusters are" not in page
    assert (out / "map.csv").read_bytes() == (run / "map.csv").read_bytes()
    assert len(list((out / "previews").glob("*.png"))) == 4

    code, _, err = maskwright("predict", out, data, "--split", "test", "--out", tmp_path / "p", "--device", "cpu")
    assert code == 0 and len(list((tmp_path / "p").glob("*.png"))) == 4, err
    code, said, err = maskwright("evaluate", tmp_path / "p", data, "--split", "test", "--protocol", "direct")
    assert code == 0 and "direct" in said, err
    code, _, err = maskwright(
        "suggest", out, data, "--labeled", "train", "--count", 1, "--out", tmp_path / "s", "--device", "cpu"
    )
    assert code == 0, err
    with pytest.raises(MaskwrightError, match=r"was made with .*names"):  # a training does not take it for its own
        api.train(
            data, "kmeans", out=out, split="train", classes=4, backbone="mobilenetv3_small_050", weights="random",
            settings={"short_side": 64}, resume=True, **QUIET,
        )  # fmt: skip


def test_names_from_masks_are_the_majority_and_the_ledger_says_so(maskwright, trained, run, tmp_path):
    data = trained[0]
    (tmp_path / "few.txt").write_text("picture_04\npicture_05\npicture_06\n")
    code, _, err = maskwright("name", run, "--from-masks", tmp_path / "few.txt", "--device", "cpu")
    assert code == 0 and "names from 3 masks" in err, err
    model, counts = mw.load(run), np.zeros((4, 3), int)
    for k in (4, 5, 6):
        pair = (model.predict(data / "images" / f"picture_0{k}.png").mask, read_mask(data / f"masks/picture_0{k}.png"))
        np.add.at(counts, tuple(x.ravel() for x in pair), 1)
    classes = ["ground", "disc", "square"]
    expected = [classes[c.argmax()] if c.any() else "void" for c in counts]
    with (run / "map.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [r["name"] for r in rows] == expected
    assert [float(r["agreement"]) for r in rows] == pytest.approx(counts.max(1) / counts.sum(1).clip(1), abs=0.006)
    out = tmp_path / "named"
    code, _, err = maskwright("name", run, "--map", run / "map.csv", "--out", out, "--no-masks", "--device", "cpu")
    assert code == 0 and not (out / "masks").exists(), err
    record = record_of(out)
    assert record["labels_read"]["train"] == {"masks": 3, "tags": 0, "captions": 0, "names": 4}
    digest = hash_names(["picture_04", "picture_05", "picture_06"])
    assert record["named"]["masks_hash"] == digest and digest[:12] in record["notes"][0]
    assert mw.load(out).classes.names == tuple(classes), "ids of the class table, also of classes without a cluster"
    ledger = json.loads((out / "ledger.json").read_text())
    assert ledger["train"]["masks"] == ["picture_04", "picture_05", "picture_06"]

    # Once more gives the same table, and with --out the run at once.
    before = (run / "map.csv").read_bytes()
    done = mw.name(run, from_masks=tmp_path / "few.txt", out=tmp_path / "again", masks=False, **QUIET)
    assert (run / "map.csv").read_bytes() == before and done.map == run / "map.csv"
    a, b = (load_file(folder / "model.safetensors") for folder in (out, tmp_path / "again"))
    assert all(np.array_equal(a[k], b[k]) for k in a) and a.keys() == b.keys()
    # What a person wrote is not overwritten; the repair keeps both.
    fill(run / "map.csv", NAMES)
    code, _, err = maskwright("name", run, "--from-masks", "all", "--device", "cpu")
    assert code == 2 and "has names already" in err and "map-new.csv" in err
    assert "lawn" in (run / "map.csv").read_text()
    code, _, err = maskwright("name", run, "--from-masks", "all", "--map", run / "map-new.csv", "--device", "cpu")
    assert code == 0 and "names from 8 masks" in err and (run / "map-new.masks.txt").exists(), err


def test_a_run_of_before_gets_its_map(maskwright, run, tmp_path):
    (run / "map.csv").unlink()
    (run / "montage.jpg").unlink()
    (run / "config.yaml").unlink()
    (run / "ledger.json").unlink()
    code, _, err = maskwright("name", run, "--out", tmp_path / "named", "--device", "cpu")
    assert code == 2 and "there is no" in err and "maskwright name RUN" in err
    code, _, err = maskwright("name", run, "--device", "cpu")  # the repair
    assert code == 0 and (run / "map.csv").exists() and (run / "montage.jpg").exists(), err
    fill(run / "map.csv", NAMES)
    assert mw.name(run, out=tmp_path / "named", masks=False, **QUIET).model.classes.names == ("lawn", "thing")
    assert record_of(tmp_path / "named")["labels_read"]["train"]["names"] == 4


def test_what_cannot_be_is_told_in_one_line_and_mended(maskwright, trained, run, tmp_path):
    data = trained[0]

    def bad(*arguments: object, words: tuple[str, ...]) -> None:
        code, _, err = maskwright("name", *arguments, "--device", "cpu")
        lines = [line for line in err.splitlines() if line.startswith("maskwright: ")]
        assert code == 2 and len(lines) == 1 and all(word in lines[0] for word in words), err
        assert not (tmp_path / "out").exists()

    out = ("--out", tmp_path / "out")
    bad(run, *out, words=("clusters 0, 1, 2, 3 without a name", "void"))
    fill(run / "map.csv", ["a", "1", "b", "c"])
    bad(run, *out, words=("cluster 1 has the name 1", "a word"))
    bad(run, *out, "--map", tmp_path / "map.csv", words=("there is no", f"--map {run / 'map.csv'}"))
    bad(tmp_path, *out, words=("holds no run",))
    fill(run / "map.csv", NAMES)
    bad(run, "--out", run, words=("the run itself", "another --out"))
    bad(run, "--out", trained[1], words=("already holds a run that is finished", "another --out"))
    bad(run, data.parent / "nowhere", *out, words=("nowhere",))
    bad(run, *out, "--from-masks", "trian", "--map", tmp_path / "new.csv", words=("trian", "train"))
    record = record_of(run)
    record["data"]["root"] = str(tmp_path / "gone")
    (run / "run.json").write_text(json.dumps({k: v for k, v in record.items() if k != "checksum"}))
    (run / "config.yaml").unlink()
    bad(run, *out, words=("are not at", "gone", f"maskwright name {run} DATA"))
    code, _, err = maskwright("name", run, data, *out, "--no-masks", "--device", "cpu")  # the repair
    assert code == 0, err


@pytest.mark.parametrize(("where", "how"), [("before the pictures", "interrupted"), ("among the masks", "killed")])
def test_what_ends_half_way_breaks_nothing_and_is_repeated(trained, run, tmp_path, monkeypatch, where, how):
    fill(run / "map.csv", NAMES)
    before = {p: p.read_bytes() for p in run.rglob("*") if p.is_file() and p.name != ".lock"}
    out, kept = tmp_path / "out", tmp_path / "kept"

    def stop(*_: object, **__: object):
        shutil.copytree(out, kept)  # the disk as it is at this moment
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        if where == "before the pictures":
            patch.setattr(pictures, "write_previews", stop)
        else:
            patch.setattr(mw.predict.model, "write_mask", stop)
        with pytest.raises(KeyboardInterrupt):
            mw.name(run, out=out, **QUIET)
    assert record_of(out)["status"] == "interrupted" and record_of(kept)["status"] == "running"
    assert before == {p: p.read_bytes() for p in run.rglob("*") if p.is_file() and p.name != ".lock"}
    place = out if how == "interrupted" else kept
    other = shutil.copytree(run, tmp_path / "other")
    fill(other / "map.csv", ["x", "y", "void", "x"])
    with pytest.raises(MaskwrightError, match="names"):
        mw.name(other, out=place, **QUIET)
    mw.name(run, out=place, **QUIET)
    whole = tmp_path / "whole"
    mw.name(run, out=whole, **QUIET)
    files = [sorted(p.relative_to(d).as_posix() for p in d.rglob("*") if p.is_file()) for d in (place, whole)]
    assert files[0] == files[1] and record_of(place)["status"] == "finished"
    for path in sorted((whole / "masks").iterdir()):
        assert (place / "masks" / path.name).read_bytes() == path.read_bytes()
