"""Runs side by side: what joins them, what keeps them apart, and the page and table that show them."""

from __future__ import annotations

import base64
import io
import json
import math
import statistics
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tests.app.test_report import EVIL, Page
from tests.conftest import write_tiny_folder

import maskwright as mw
from maskwright.app.comparing.tables import print_comparison
from maskwright.app.report import write_report
from maskwright.data.folders.folder import open_folder
from maskwright.data.masking.classes import ClassTable
from maskwright.data.masking.masks import write_mask
from maskwright.data.trust.artefacts import write_record
from maskwright.errors import MaskwrightError, shown
from maskwright.evaluate.scores import hash_names

NAMES = ("sky", "road")


@pytest.fixture(autouse=True)
def wide(monkeypatch):
    """As wide as a pipe's, whatever the terminal of the tests."""
    monkeypatch.delenv("COLUMNS", raising=False)


def scores(miou: float, **changes: object) -> dict:
    return {
        "protocol": "direct", "matching": "none: ids are classes", "miou": miou, "pixel_accuracy": miou,
        "mean_accuracy": miou, "per_class": [{"name": "sky", "iou": miou}, {"name": "road", "iou": miou / 2}],
        "mapping": None, "extra": {}, "images": 4, "predicted": 2, "classes": 2, "names_hash": "ab" * 32,
        "labels_hash": "cd" * 32, "split": "test",
    } | changes  # fmt: skip


def write_run(
    folder: Path, seed: int = 0, miou: float | None = 0.5, method: str = "supervised", options: dict | None = None,
    judged: dict | None = None, picture: int = 100, **changes: object,
) -> Path:  # fmt: skip
    """A run's folder as `train`, `predict` and `evaluate` leave it, with one preview."""
    folder.mkdir(parents=True)
    record = {
        "status": "finished", "command": "maskwright train photos --out x", "seed": seed, "steps": 20,
        "method": {"name": method, "title": method, "family": "supervised"}, "classes_asked": 2,
        "options": {"crops": {"size": 32}, "lr": 0.1} | (options or {}), "weights_key": "w1", "split": "train",
        "backbone": {"architecture": "net"}, "labeled_hash": "ef" * 32, "reading": {"labels": "auto"},
        "data": {"root": "/nowhere/photos", "images": 4, "fingerprint": "f1", "labels_present": {"masks": 3}},
        "labels_read": {"train": {"masks": 3}, "select": {"masks": 0}}, "device": "cpu",
        "stages": [{"name": "train", "seconds": 10.0 + seed}], "versions": {"maskwright": "0.1.0", "torch": "2.11"},
        "classes": [{"name": n, "color": [200 * k, 0, 90], "share": 0.5} for k, n in enumerate(NAMES)],
    } | changes  # fmt: skip
    write_record(folder / "run.json", record)
    write_record(folder / "ledger.json", {"train": {"masks": ["a", "b", "c"]}, "select": {}, "evaluate": {}})
    (folder / "model.safetensors").touch()
    if miou is not None or judged:
        (folder / "scores.json").write_text(json.dumps(judged or scores(miou)))
    lines = [{"stage": "train", "step": s, "loss": (1 + seed) / (s + 1)} for s in range(20)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (folder / "previews").mkdir()
    Image.new("RGB", (40, 30), (picture, 50, 20)).save(folder / "previews" / "p <i>.jpg")
    ids = np.repeat([[0], [1]], [10, 20], 0).repeat(40, 1)
    write_mask(folder / "previews" / "p <i>.png", ids, ClassTable.numbered(2))
    return folder


def test_seeds_of_equal_settings_are_joined_to_mean_and_sample_deviation(tmp_path):
    values = [0.41, 0.47, 0.5]
    for seed, miou in zip((2, 0, 1), values):
        write_run(tmp_path / f"seed-{seed}", seed, miou)
    found = mw.compare(tmp_path)
    assert repr(found) == "Comparison(3 runs, 1 setting)" and found.columns == []
    (table,) = found.tables
    (row,) = table.rows
    assert row.seeds == "0, 1, 2 (n=3)" and row.figures["mIoU"].each == (0.47, 0.5, 0.41)
    assert row.figures["mIoU"].mean == pytest.approx(statistics.mean(values))
    assert row.figures["mIoU"].spread == pytest.approx(statistics.stdev(values))
    assert row.per_class["road"].spread == pytest.approx(statistics.stdev(values) / 2)
    said = str(found)
    assert "46.00 ± 4.58" in said and "0, 1, 2 (n=3)" in said and "direct" in said and "sky" in said


def test_a_run_is_to_be_judged_without_the_classes_that_others_left_out(tiny_folder, tmp_path):
    data = {"root": str(tiny_folder), "images": 8, "fingerprint": "f1", "labels_present": {"masks": 8}}
    names = hash_names(open_folder(tiny_folder).split("test").names)
    judged = scores(0.5, names_hash=names, without=["square"])
    write_run(tmp_path / "a", 0, judged=judged, data=data)
    write_run(tmp_path / "b", 1, None, data=data)
    ((_, (_, judge)),) = mw.compare(tmp_path).unjudged
    assert "--split test --protocol direct --without square --json" in judge


def test_one_run_has_no_spread_and_absent_classes_are_not_counted(tmp_path):
    absent = scores(0.5, per_class=[{"name": "sky", "iou": 0.5}, {"name": "road", "iou": None}])
    write_run(tmp_path / "a", 0, judged=absent)
    write_run(tmp_path / "b", 1, 0.7)
    (row,) = mw.compare(tmp_path).tables[0].rows
    assert row.per_class["road"].n == 1 and row.per_class["road"].mean == 0.35
    assert math.isnan(row.per_class["road"].spread) and row.per_class["road"].to_json()["spread"] is None
    assert "50.00" in str(mw.compare(tmp_path / "a")) and "±" not in str(mw.compare(tmp_path / "a")).split("highest")[1]


def test_what_differs_names_the_groups(tmp_path):
    write_run(tmp_path / "a", 0, 0.5)
    write_run(tmp_path / "b", 1, 0.6)
    write_run(tmp_path / "c", 0, 0.7, options={"crops": {"size": 64}})
    write_run(tmp_path / "d", 0, 0.4, method="other", options={"ema": 0.9, "lr": 0.3})
    found = mw.compare(tmp_path)
    assert found.columns == ["method", "--set crops.size"], "lr differs between methods alone, ema is one's own"
    rows = found.tables[0].rows
    assert [(r.group.name, len(r.runs)) for r in rows] == [
        ("supervised, crops.size 64", 1), ("supervised, crops.size 32", 2), ("other, crops.size 32", 1),
    ]  # fmt: skip
    assert found.tables[0].ranked and "crops.size" in str(found) and "lr" not in str(found)


@pytest.mark.parametrize(
    ("change", "column"),
    [
        ({"weights_key": "w2"}, "backbone"), ({"steps": 40}, "steps"), ({"labeled_hash": "00" * 32}, "labelled"),
        ({"split": "dusk"}, "split"), ({"classes_asked": 3}, "classes"),
        ({"inputs": {"teacher": {"kind": "network", "place": "runs/a", "hash": "x"}}}, "input teacher"),
        ({"data": {"root": "/nowhere/photos", "fingerprint": "f2", "labels": {"masks": "h"}}}, "data"),
    ],
)  # fmt: skip
def test_any_other_setting_keeps_runs_apart(tmp_path, change, column):
    write_run(tmp_path / "a", 0)
    write_run(tmp_path / "b", 1, **change)
    found = mw.compare(tmp_path)
    assert len(found.groups) == 2 and column in found.columns
    assert len({group.name for group in found.groups}) == 2, "contents of one name are told apart"
    out = tmp_path / "page.html"
    mw.compare(tmp_path, out=out)
    text = Page(out.read_text()).text
    assert "and in their seeds." in text and "Seeds" in text
    write_run(tmp_path / "c", 0, **change)
    mw.compare(tmp_path / "a", tmp_path / "c", out=out)
    text = Page(out.read_text()).text
    assert f"They differ in {column}." in text and "Seeds" not in text, "both are of seed 0"
    assert all(len(row.runs) == 1 for row in found.tables[0].rows)


def test_weights_that_are_drawn_are_part_of_the_seed(tmp_path):
    for seed in (0, 1):
        drawn = {"architecture": "net", "source": "random"}
        write_run(tmp_path / f"{seed}", seed, backbone=drawn, weights_key=f"w{seed}")
    assert [row.seeds for row in mw.compare(tmp_path).tables[0].rows] == ["0, 1 (n=2)"]


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"names_hash": "11" * 32, "images": 9}, "images"), ({"labels_hash": "22" * 32}, "labels"),
        ({"protocol": "luss"}, "protocol"), ({"resolution": "320 x 240"}, "resolution"),
        ({"names_hash": "", "split": "val"}, "images"),
    ],
)  # fmt: skip
def test_other_judgements_are_neither_joined_nor_ranked_together_and_said(tmp_path, change, word):
    write_run(tmp_path / "a", 0, 0.5)
    write_run(tmp_path / "b", 1, 0.6)
    write_run(tmp_path / "c", 2, judged=scores(0.9, **change))
    found = mw.compare(tmp_path)
    assert [[len(row.runs) for row in table.rows] for table in found.tables] == [[2], [1]]
    (notice,) = [n for n in found.notices if "2 ways" in n]
    assert "neither joined nor ranked" in notice and word in notice
    assert notice in str(found)


def test_figures_that_rise_with_the_number_of_clusters_do_not_share_a_table(tmp_path):
    many = {"protocol": "majority", "matching": "many-to-one, each id its most frequent class"}
    for k in (2, 5):
        names = [{"name": f"cluster {i}", "color": [0, 0, 0]} for i in range(k)]
        write_run(tmp_path / f"k{k}", 0, judged=scores(0.1 * k, **many), classes=names, classes_asked=k)
    found = mw.compare(tmp_path)
    assert len(found.tables) == 2 and "number of clusters" in found.notices[-1]


def test_judgements_of_before_labels_were_hashed_stay_apart_and_it_is_said(tmp_path):
    write_run(tmp_path / "a", 0)
    old = scores(0.6)
    del old["labels_hash"]
    write_run(tmp_path / "b", 1, judged=old)
    found = mw.compare(tmp_path)
    assert len(found.tables) == 2 and any("judge those runs again" in n for n in found.notices)


def test_labels_that_were_used_rank_nothing(tmp_path):
    data = write_tiny_folder(tmp_path / "tiny")
    names = (data / "splits" / "test.txt").read_text().split()
    judged = scores(0.9, names_hash=hash_names(names))
    place = {"root": str(data), "fingerprint": "f1"}
    write_run(tmp_path / "runs" / "a", 0, judged=judged | {"miou": 0.2}, data=place)
    used = write_run(tmp_path / "runs" / "b", 0, judged=judged, data=place, steps=40)
    assert mw.compare(tmp_path / "runs").tables[0].ranked
    write_record(used / "ledger.json", {"train": {"masks": ["picture_00"]}, "select": {"masks": names[:3]}})
    found = mw.compare(tmp_path / "runs")
    assert not found.tables[0].ranked and "not ranked" in str(found)
    write_run(tmp_path / "runs" / "c", 0, judged=judged, data=place | {"root": str(tmp_path / "runs")}, steps=60)
    assert any("c had read" in n and "not of the run's own data" in n for n in mw.compare(tmp_path / "runs").notices)
    assert [row.figures["mIoU"].mean for row in found.tables[0].rows] == [0.2, 0.9], "as the runs were named"
    assert f"{used} read the masks of 3 of the 4 judged images for selection" in str(found)


def test_a_seed_counts_once_and_so_does_a_folder(tmp_path):
    write_run(tmp_path / "a", 0, 0.5)
    write_run(tmp_path / "b", 0, 0.5)
    found = mw.compare(tmp_path, tmp_path / "a", f"{tmp_path}/*")
    assert len(found.runs) == 2 and found.tables[0].rows[0].seeds == "0 (n=1)"
    assert any(n.startswith("Seed 0 of supervised stands 2 times") for n in found.notices)
    assert not found.unjudged


def test_a_run_without_a_judgement_has_a_dash_and_what_mends_it(tmp_path):
    write_run(tmp_path / "a", 0, None)
    write_run(tmp_path / "b", 1, None, status="interrupted")
    found = mw.compare(tmp_path)
    assert found.tables == [] and len(found.unjudged) == 2
    assert found.unjudged[0][1] == ["its data /nowhere/photos is not at its place"]
    assert found.unjudged[1][1] == ["maskwright train photos --out x --resume"]
    assert "–" in str(found) and "was interrupted" in str(found)


def test_a_judgement_of_an_earlier_model_is_left_out_and_said(tmp_path):
    """A run that was judged and then lengthened has another model; one whose record does not tell stays as it is."""
    later = {"resumed": ["then"], "model_key": "new"}
    write_run(tmp_path / "a", 0, judged=scores(0.5, models=["old"]), **later)
    write_run(tmp_path / "b", 1, judged=scores(0.6, models=["new"]), **later)
    write_run(tmp_path / "c", 2, judged=scores(0.7, models=["old"]), model_key="new")
    write_run(tmp_path / "d", 3, 0.8, resumed=["then"])
    found = mw.compare(tmp_path)
    assert [run.path.name for run, _ in found.unjudged] == ["a"] and found.tables[0].rows[0].seeds == "1, 2, 3 (n=3)"
    told = [n for n in found.notices if "earlier model" in n]
    assert len(told) == 1 and told[0].startswith(f"{tmp_path / 'a' / 'scores.json'} judges an earlier model of the run")
    for name, stale in (("a", True), ("b", False)):
        page = write_report(tmp_path / name).read_text()
        assert ("are of an earlier model of the run" in page) == stale


def test_time_is_that_of_the_stages_and_of_what_comes_behind_them(tmp_path):
    write_run(tmp_path / "a", 0, seconds_after_stages=70.0)
    found = mw.compare(tmp_path)
    assert found.runs[0].seconds == 80.0 and found.to_json()["runs"][0]["seconds"] == 80.0


def test_what_is_damaged_is_left_out_and_said(tmp_path):
    write_run(tmp_path / "a", 0)
    write_run(tmp_path / "b", 1)
    write_run(tmp_path / "c", 2)
    (tmp_path / "b" / "run.json").write_text("[1")
    (tmp_path / "c" / "scores.json").write_text('{"protocol": 3, "matching": [], "miou": "x", "per_class": {}}')
    found = mw.compare(tmp_path)
    assert len(found.runs) == 2 and len(found.unjudged) == 1
    assert found.notices[0].startswith("Left out: ") and any("scores.json cannot be read" in n for n in found.notices)
    with pytest.raises(MaskwrightError, match=r"run\.json"):
        mw.compare(tmp_path / "b")


def test_places_without_runs(tmp_path):
    for place in (tmp_path, tmp_path / "none", f"{tmp_path}/x*"):
        with pytest.raises(MaskwrightError) as error:
            mw.compare(place)
        assert str(place) in str(error.value) and error.value.expected
    with pytest.raises(MaskwrightError, match="no run to compare"):
        mw.compare()
    write_run(tmp_path / "deep" / "er" / "run")
    assert len(mw.compare(tmp_path).runs) == 1
    (tmp_path / "page.html").touch()
    found = mw.compare(*sorted(tmp_path.iterdir()))
    assert len(found.runs) == 1 and found.notices[0] == f"No run in {tmp_path / 'page.html'}."
    with pytest.raises(MaskwrightError, match=r"is a folder.*--out"):
        mw.compare(tmp_path, out=tmp_path)


def test_the_page_is_whole_and_needs_nothing_beside_it(tmp_path):
    for seed in (0, 1):
        write_run(tmp_path / f"a{seed}", seed, 0.5 + seed / 10)
    evil = scores(0.3, per_class=[{"name": EVIL, "iou": 0.25}])
    write_run(tmp_path / "b", 0, judged=evil, options={"note": EVIL})
    write_run(tmp_path / "c", 0, None, method="other", picture=240, options={"steps": 2017})
    out = tmp_path / "page.html"
    found = mw.compare(tmp_path, out=out)
    text = out.read_text()
    assert "They differ in method and note, and in their seeds." in text
    assert "2017" not in text, "the steps of the option, where --steps said others"
    page = Page(text)
    assert "<script" not in text and "url(" not in text and "@import" not in text and "Content-Security" in text
    assert not page.all("a")
    images = page.all("img")
    assert len(images) == 1 + 3 and all(i["src"].startswith("data:image/jpeg") and i["alt"] for i in images)
    assert "another photograph of this name" in page.text, "c's is of another colour"
    plots = [s for s in page.all("svg") if s.get("class") == "curve"]
    assert len(plots) == 1 and "3 settings" in plots[0]["aria-label"]
    lines = [p["class"] for p in page.all("polyline")]
    assert sorted(lines) == ["each c0", "each c0", "mean c0", "mean c1", "mean c2"]
    for told in (
        EVIL,
        "55.00",
        "± 7.07",
        "0, 1 (n=2)",
        "sky",
        "4 runs compared",
        "crops.size",
        "3 masks",
        "11 s",
        "cpu",
    ):
        assert told in page.text, told
    json.loads(json.dumps(found.to_json(), allow_nan=False))
    assert "<table" in found._repr_html_()


def test_clusters_are_shown_in_the_colours_of_the_classes_that_they_were_matched_to(tmp_path):
    names = [{"name": f"cluster {i}", "color": [9, 9, 9]} for i in range(2)]
    matched = scores(0.5, protocol="hungarian", matching="one-to-one", mapping={"0": 1, "1": -1})
    write_run(tmp_path / "a", 0, judged=matched, classes=names)
    mw.compare(tmp_path, out=tmp_path / "page.html")
    page = Page((tmp_path / "page.html").read_text())
    photo, tinted = (
        np.array(Image.open(BytesIO(base64.b64decode(i["src"].split(",", 1)[1])))).astype(int) for i in page.all("img")
    )
    red = (photo[0, 0] + (128, 0, 0)) // 2
    assert np.abs(tinted[3, 20] - red).max() <= 6, "road is the palette's second colour"
    assert np.abs(tinted[20, 20] - photo[20, 20]).max() <= 6, "matched to none"
    assert "Clusters have the colours of the classes" in page.text


def test_names_do_not_steer_the_terminal(tmp_path):
    write_run(tmp_path / "a", 0, judged=scores(0.5, per_class=[{"name": "s\x1b[2Jky", "iou": 0.5}]))
    text = io.StringIO()
    print_comparison(mw.compare(tmp_path), text)
    assert "\x1b" not in text.getvalue() and shown("s\x1b[2Jky") in text.getvalue()
