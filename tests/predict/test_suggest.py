"""Suggestions: never an image that has a mask, the order of the strategy, and files that can be read back."""

from __future__ import annotations

import copy
import csv
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tests.conftest import write_tiny_folder

import maskwright as mw
from maskwright import api
from maskwright.data.folders.folder import open_folder
from maskwright.data.folders.tables import read_csv
from maskwright.data.masking.classes import ClassTable
from maskwright.engine.progress import Progress
from maskwright.errors import MaskwrightError
from maskwright.models.preprocess import Preprocess
from maskwright.ops import acquisition as aq
from maskwright.predict import suggest as sg
from maskwright.predict.sheet import Shown, draw_sheet, heat_colors


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return write_tiny_folder(tmp_path_factory.mktemp("suggest") / "tiny", count=9)


@pytest.fixture(scope="module")
def run(data) -> Path:
    """A student and its teacher after a few steps."""
    return train(data, "mean_teacher")


def train(data: Path, method: str) -> Path:
    out = data.parent / method
    mw.train(
        data, method, out=out, labeled="train", backbone="tf_efficientnet_lite0", weights="random", steps=6,
        device="cpu", settings={"crop": 32, "batch": 2, "lr": 0.05, "precision": "fp32"},
        progress=Progress(quiet=True), report=False,
    )  # fmt: skip
    return out


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize(
    "by", [pytest.param(by, marks=[] if by == "coreset" else pytest.mark.slow) for by in sg.STRATEGIES]
)
def test_suggests_images_without_masks_and_writes_them(run, data, tmp_path, by):
    folder = open_folder(data).labeled("train")
    found = mw.suggest(run, folder, 3, by=by, regions=2, out=tmp_path, device="cpu", seed=3)
    assert len(set(found.names)) == len(found) == 3 and found.pool == 5 and not found.skipped
    assert not set(found.names) & set(folder.list_names("train")[0])
    assert not any(folder.ledger.counts()[k]["masks"] for k in ("train", "select", "evaluate")), "no mask is opened"
    table = rows_of(tmp_path / "suggestions.csv")
    assert [(int(r["rank"]), r["name"], r["strategy"]) for r in table] == [
        (k + 1, n, by) for k, n in enumerate(found.names)
    ]
    assert (tmp_path / "names.txt").read_text().split() == found.names
    assert Image.open(tmp_path / "sheet.png").size[0] > 900
    for row in rows_of(tmp_path / "regions.csv"):
        top, left, height, width = (int(row[k]) for k in ("top", "left", "height", "width"))
        assert top >= 0 and left >= 0 and top + height <= 48 and left + width <= 64
        assert height >= 8 and width >= 8
    again = mw.suggest(run, folder, 3, by=by, device="cpu", seed=3)
    assert [(r.name, r.score) for r in again] == [(r.name, r.score) for r in found]


@pytest.mark.slow
def test_order_of_entropy_is_that_of_the_predictions(run, data):
    folder = open_folder(data).labeled("train")
    model = mw.load(run)
    found = mw.suggest(model, folder, 99, by="entropy")
    assert len(found) == 5 and [r.rank for r in found] == [1, 2, 3, 4, 5]
    assert [r.score for r in found] == sorted((r.score for r in found), reverse=True)
    x = model.segmenter.preprocess.apply(folder.image(folder.index(found.names[0])))[None]
    with torch.inference_mode():
        logits = torch.nn.functional.interpolate(model.segmenter(x), (12, 16), mode="bilinear")
    assert np.isclose(found.rows[0].score, float(aq.entropy(logits[0].softmax(0)).mean()), rtol=1e-5)


def test_coreset_starts_from_what_is_labelled(run, data):
    folder = open_folder(data).labeled("train")
    model = mw.load(run)
    eye = sg._Eye(model, None, "coreset")
    vectors = torch.stack([eye.vector(folder.image(i)) for i in range(len(folder))])
    taken = [i for i in range(len(folder)) if folder.has_mask(i)]
    free = [i for i in range(len(folder)) if not folder.has_mask(i)]
    order, _ = aq.k_center_greedy(vectors[free], 3, vectors[taken])
    assert mw.suggest(model, folder, 3, by="coreset").names == [folder.names[free[k]] for k in order]


def test_images_labelled_outside_the_split_count_as_labelled(run, data, monkeypatch):
    looked = {}
    monkeypatch.setattr(sg, "suggest", lambda model, images, count, **o: looked.update(images=images))
    mw.suggest(run, data, 2, by="coreset", split="test", labeled="train", device="cpu")
    masks = [looked["images"].has_mask(i) for i in range(9)]
    names = looked["images"].names
    assert names[:5] == open_folder(data).split("test").names and masks == [False] * 5 + [True] * 4
    mw.suggest(run, open_folder(data).labeled("train"), 2, by="coreset", split="test", device="cpu")
    assert looked["images"].names == names[:5]


def test_random_is_a_function_of_its_seed(run, data):
    folder = open_folder(data).labeled("train")
    model = mw.load(run)
    draws = {tuple(mw.suggest(model, folder, 5, by="random", seed=s).names) for s in range(6)}
    assert len(draws) > 1 and all(len(set(d)) == 5 for d in draws)


def test_second_network_is_the_one_that_was_not_kept(run):
    model = mw.load(run)
    state = torch.load(run / "train" / "checkpoint.pt", weights_only=True)
    other = api.other_network(model, run)
    student, teacher = state["parts"]["module.network"], state["parts"]["module.teacher"]
    for key, value in model.segmenter.named_parameters():
        assert torch.equal(value, teacher[f"module.{key}"])
    assert other is not None
    assert all(torch.equal(v, student[k]) for k, v in other.state_dict().items())
    assert not {v.data_ptr() for v in other.parameters()} & {v.data_ptr() for v in model.segmenter.parameters()}
    kept_student = sg.second_network(other, state["parts"])
    assert kept_student is not None
    assert all(torch.equal(v, teacher[f"module.{k}"]) for k, v in kept_student.state_dict().items())


def test_the_last_iterate_of_a_run_that_chose_another_is_no_second_network(run):
    """Of two iterates of one network neither is a committee's second member."""
    model = mw.load(run)
    parts = torch.load(run / "train" / "checkpoint.pt", weights_only=True)["parts"]
    assert sg.second_network(model.segmenter, parts) is not None
    assert sg.second_network(model.segmenter, {**parts, "extra.selection": {"scores": [], "best": {}}}) is None


def test_both_networks_see_with_statistics_of_photographs(run, data, monkeypatch):
    """A teacher that equals its student but for its running averages disagrees with nothing."""
    model, images = mw.load(run), open_folder(data).labeled("train")
    twin = copy.deepcopy(model.segmenter)
    for name, buffer in twin.named_buffers():
        if name.endswith("running_mean"):
            buffer += 3
    monkeypatch.setattr("maskwright.api.suggesting.other_network", lambda *_: copy.deepcopy(twin))
    far = sg.suggest(model, images, 5, by="disagreement", other=twin)
    found = mw.suggest(run, images, 5, by="disagreement", device="cpu")
    assert max(s.score for s in far) > 1e-3 and max(s.score for s in found) < 1e-6


@pytest.mark.slow
def test_disagreement_without_a_teacher_is_told(data):
    alone = train(data, "supervised")
    with pytest.raises(MaskwrightError, match=r"one network.*teacher.*--by"):
        mw.suggest(alone, data, 2, by="disagreement", labeled="train", device="cpu")
    with pytest.raises(MaskwrightError, match="one network"):
        mw.suggest(mw.load(alone), data, 2, by="disagreement", labeled="train")
    assert len(mw.suggest(alone, data, 2, by="mixed", labeled="train", device="cpu")) == 2


def test_bad_questions(run, data):
    model = mw.load(run)
    with pytest.raises(MaskwrightError, match=r"have masks.*--labeled"):
        mw.suggest(model, data, 2)
    with pytest.raises(MaskwrightError, match="did you mean 'entropy'"):
        mw.suggest(model, data, 2, by="entropie", labeled="train")
    for options in ({"count": 0}, {"count": 1, "regions": -1}):
        with pytest.raises(MaskwrightError, match="at least"):
            mw.suggest(model, data, **options, labeled="train")


def test_unreadable_and_tiny_images(run, tmp_path):
    folder = write_tiny_folder(tmp_path / "odd", count=3, masks=False)
    (folder / "images" / "broken.jpg").write_bytes(b"")
    Image.new("RGB", (1, 1)).save(folder / "images" / "dot.png")
    Image.new("RGB", (500, 3)).save(folder / "images" / "strip.png")
    found = mw.suggest(run, folder, 9, by="margin", regions=2, out=tmp_path / "out", device="cpu")
    assert len(found) == 5 and [n for n, _ in found.skipped] == ["broken"]
    for row in found:
        height, width = np.asarray(Image.open(folder / "images" / f"{row.name}.png")).shape[:2]
        assert row.regions
        assert all(g.top + g.height <= height and g.left + g.width <= width and min(g[2:4]) > 0 for g in row.regions)


def test_regions_of_earlier_suggestions_do_not_stay(run, data, tmp_path):
    model = mw.load(run)
    for regions in (2, 0):
        mw.suggest(model, data, 2, labeled="train", regions=regions, out=tmp_path, by="random")
        assert (tmp_path / "regions.csv").exists() == bool(regions)


def test_region_lies_where_the_doubt_is():
    """Two classes that mingle in one corner, certain elsewhere."""
    probs = torch.zeros(2, 30, 40)
    probs[0] = 1
    board = (torch.arange(8)[:, None] + torch.arange(8)) % 2 == 0
    probs[0, 20:28, 30:38] = torch.where(board, 0.6, 0.4)
    probs[1] = 1 - probs[0]
    look = sg._Look(probs, aq.entropy(probs), None, torch.zeros(1))
    (box,) = look.regions(1, 32, (120, 160))
    assert (box.top, box.left, box.height, box.width) == (80, 120, 32, 32)


def test_regions_of_an_image_share_no_pixel():
    """Cells of 4.09 pixels: edges are rounded, and each alike."""
    torch.manual_seed(0)
    for _ in range(10):
        coarse = torch.randn(1, 3, 6, 8)
        probs = torch.nn.functional.interpolate(coarse, (88, 120), mode="bicubic")[0].softmax(0)
        look = sg._Look(probs, aq.entropy(probs), None, torch.zeros(2))
        taken = np.zeros((360, 480), int)
        regions = look.regions(20, 0, (360, 480))
        for r in regions:
            taken[r.top : r.top + r.height, r.left : r.left + r.width] += 1
        assert len(regions) > 5 and taken.max() == 1


def test_sheet_shows_photo_overlay_and_heat():
    table = ClassTable.numbered(3)
    photo = np.full((90, 200, 3), 120, np.uint8)
    heat = np.zeros((23, 50), np.float32)
    heat[:, 25:] = 1
    shown = [
        Shown.of(f"{k}  a very long name indeed " * 4, "0.5", photo, np.zeros((23, 50), int), heat, [(10, 20, 30, 30)])
        for k in range(3)
    ]
    sheet = np.asarray(draw_sheet(shown, table, "entropy"))
    assert sheet.ndim == 3 and sheet.shape[1] > 1800
    pixels = {tuple(p) for p in sheet.reshape(-1, 3)}
    assert {tuple(heat_colors(np.array(v))) for v in (0.0, 1.0)} <= pixels
    assert (120, 120, 120) in pixels and (0, 230, 255) in pixels


def test_heat_of_no_number_is_the_lowest():
    assert np.array_equal(heat_colors(np.array([np.nan, 2.0])), heat_colors(np.array([0.0, 1.0])))


def test_heat_is_ordered_by_lightness():
    grey = heat_colors(np.linspace(0, 1, 50)) @ np.array([0.299, 0.587, 0.114])
    assert (np.diff(grey) > 0).all()


def test_names_come_back_whatever_they_are(run, tmp_path):
    odd = [
        "=cmd|' calc'!A0",
        "-1",
        "a,b",
        'say "hi"',
        "two\nlines",
        " blank ",
        "tab\t",
        "空" * 83,
    ]
    data = write_tiny_folder(tmp_path / "odd", count=len(odd), masks=False)
    for k, name in enumerate(odd):
        (data / "images" / f"picture_{k:02d}.png").rename(data / "images" / f"{name}.png")
    for file in ("tags.csv", "captions.csv"):
        (data / file).unlink()
    shutil.copy(data / "images" / "-1.png", os.fsdecode(bytes(data / "images") + b"/caf\xe9.png"))  # no name for a list
    found = mw.suggest(run, data, 99, by="entropy", regions=1, out=tmp_path / "out", device="cpu")
    assert sorted(found.names) == sorted(odd)
    assert len(found.notices) == 1 and r"caf\xe9.png (its name is not UTF-8 text)" in found.notices[0]
    for file in ("suggestions.csv", "regions.csv"):
        assert [r["name"] for r in read_csv(tmp_path / "out" / file)] == found.names
    chosen = open_folder(data).list_names(tmp_path / "out" / "names.txt")[0]
    assert chosen == found.names
    again = mw.suggest(run, data, 99, by="entropy", split=tmp_path / "out" / "names.txt", device="cpu")
    assert again.names == found.names


def test_photographs_that_are_looked_at_shrunk_are_said(run, data):
    said: list[str] = []

    class Heard(Progress):
        def say(self, text: str) -> None:
            said.append(text)

    model, folder = mw.load(run), open_folder(data).labeled("train").with_notices("of the data set")
    for find in (sg.suggest, mw.suggest):
        found = find(model, folder, 2, by="entropy", progress=Heard(quiet=True))
        assert said == ["of the data set"] == found.notices
        said.clear()
    model.segmenter.extra |= {"image_size": [10, 12], "largest_size": [10, 12]}
    model.segmenter.preprocess = Preprocess(short_side=16, multiple_of=16)
    sg.suggest(model, folder, 2, by="entropy", progress=Heard(quiet=True))
    assert (
        len(said) == 2 and said[1].startswith("5 of 5 images without a mask are much larger") and "(10 x 12)" in said[1]
    )
