"""What the report shows of pseudo masks: counted and judged against slow versions, drawn, written, and read back."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from tests.conftest import write_tiny_folder

from maskwright.app.stage_view import stage_views
from maskwright.data.folders.folder import open_folder
from maskwright.data.training.labels import LabelMap, LabelStore
from maskwright.data.training.tag_targets import find_targets
from maskwright.engine.shown import PICTURES, SHOWN, Curve, Shown, Strip
from maskwright.errors import MaskwrightError
from maskwright.evaluate.seeds import ThresholdSweep
from maskwright.recipes.tags.maps import CamStore, ImageCams
from maskwright.recipes.tags.showing import (
    EVEN,
    FAILED,
    LINE,
    Way,
    count_labels,
    heated,
    judge_labels,
    lost_sentence,
    what_is_shown,
)
from maskwright.recipes.tags.thresholds import Threshold

AT = Threshold(0.4, "as asked")


@pytest.fixture
def way(tmp_path) -> Way:
    """Eight photographs of discs and squares, masks of which two lack their tag and one a part of its pixels."""
    data = open_folder(write_tiny_folder(tmp_path / "tiny"))
    targets = find_targets(data, data.classes)
    labels, maps = LabelStore(tmp_path / "seeds", data.classes), CamStore(tmp_path / "maps")
    for i, item in enumerate(data.items):
        true = torch.from_numpy(np.array(open_mask(data, i)).astype(np.int64))
        ids = torch.zeros_like(true) if i in (2, 5) else true
        valid = torch.ones_like(true, dtype=torch.bool)
        valid[: 10 * (i == 3)] = False
        labels.write(item.name, LabelMap(torch.where(valid, ids, 0), valid.float(), valid), item.image)
        keys = torch.tensor([targets.ids[k] for k in targets.tagged[item.name]])
        maps.write(item.name, ImageCams(keys, torch.linspace(0, 1, 12 * 16).view(1, 12, 16), (48, 64)))
    return Way(data=data, table=data.classes, targets=targets, labels=labels, maps=maps)


def open_mask(data, i: int) -> np.ndarray:
    from PIL import Image

    return np.asarray(Image.open(data.items[i].mask))


def test_tags_without_a_pixel_are_counted_and_named(way):
    count = count_labels(way)
    assert count.lost == {"picture_02": [1], "picture_05": [2]} and count.unlabelled == 10 * 64
    total = 0
    for i in range(8):
        found = way.labels.read(f"picture_{i:02d}")
        total += int((found.ids[found.valid] == 1).sum())
    assert count.pixels[1] == total and count.pixels.sum() + count.unlabelled == 8 * 48 * 64
    said = lost_sentence(way, count)
    assert said.startswith("2 of 8 tags have not a single pixel") and "disc 1, square 1" in said
    assert "picture_02, picture_05" in said


def test_judged_against_a_slow_count_and_noted_as_reading_to_judge(way):
    before = way.data.ledger.counts()
    found = judge_labels(way)
    expected = np.zeros((4, 3), int)
    for i in range(8):
        labels, true = way.labels.read(f"picture_{i:02d}"), open_mask(way.data, i)
        for y in range(48):
            for x in range(64):
                expected[int(labels.ids[y, x]) if labels.valid[y, x] else 3, true[y, x]] += 1
    assert np.array_equal(found, expected)
    read = way.data.ledger.counts()
    assert read["evaluate"]["masks"] == 8 and read["train"] == before["train"] and read["select"] == before["select"]


def test_masks_are_read_only_where_they_are_judged(way):
    shown = what_is_shown(way, threshold=AT)
    assert way.data.ledger.counts()["evaluate"]["masks"] == 0
    assert not any("mIoU" in name for name, _ in shown.facts) and "IoU" not in shown.head
    judged = what_is_shown(way, threshold=AT, judge=True)
    facts = dict(judged.facts)
    counts = judge_labels(way)
    ious = [counts[c, c] / (counts[c].sum() + counts[:, c].sum() - counts[c, c]) for c in range(3)]
    assert facts["mIoU of the masks"] == f"{100 * np.mean(ious):.1f} %" and judged.head[-1] == "IoU"
    fn = np.mean([(counts[:, c].sum() - counts[c, c]) / counts[c, c] for c in (1, 2)])
    fp = np.mean([(counts[c].sum() - counts[c, c]) / counts[c, c] for c in (1, 2)])
    assert (facts["mFN"], facts["mFP"]) == (f"{fn:.2f}", f"{fp:.2f}")
    rows = {row[0]: row for row in judged.table}
    assert rows["disc"][1:3] == ["4", "1"] and rows["ground"][1] == "no tag"
    assert rows["square"][-1] == f"{100 * ious[2]:.1f} %"


def test_judging_without_a_mask_is_refused(way):
    bare = Way(
        data=way.data.labeled([]), table=way.table, targets=way.targets, labels=way.labels, maps=way.maps
    )  # fmt: skip
    with pytest.raises(MaskwrightError, match=r"judge=true, and no tagged image has a mask.*leave judge out"):
        judge_labels(bare)


def test_photographs_are_spread_and_some_that_failed_follow(way, monkeypatch):
    from maskwright.recipes.tags import showing

    assert EVEN + FAILED == 12
    monkeypatch.setattr(showing, "EVEN", 2)
    shown = what_is_shown(way, threshold=AT)
    assert [s.name for s in shown.strips] == ["picture_00", "picture_07", "picture_02", "picture_05"]
    ((said, color),) = shown.strips[2].says
    assert said == "disc (no pixel)" and list(color) == list(way.table.colors[1])
    assert [word for word, _ in shown.strips[0].says] == ["disc"]
    assert [c for c, _ in shown.strips[0].pictures] == ["photograph", "class maps", "pseudo mask"]
    walked = Way(**{**vars(way), "walked": way.maps, "sure": way.labels})
    captions = [c for c, _ in what_is_shown(walked, threshold=AT).strips[0].pictures]
    assert captions == ["photograph", "class maps", "walked maps", "sure pixels", "pseudo mask"]


def test_heat_grows_with_the_map_and_lines_enclose_what_reaches_the_threshold():
    photo = np.full((8, 8, 3), 120, np.uint8)
    maps = torch.zeros(2, 8, 8)
    maps[0, :, :4], maps[1, :, 4:] = 0.9, 0.3
    cams = ImageCams(torch.tensor([1, 2]), maps, (8, 8))
    drawn = heated(photo, cams, 0.5)
    on_line = (drawn == LINE).all(2)
    assert on_line[:, 3:5].any(1).all() and not on_line[:, :3].any() and not on_line[:, 5:].any()
    assert drawn[0, 0].astype(int).sum() > drawn[0, 7].astype(int).sum()
    assert not (heated(photo, ImageCams(torch.tensor([1]), maps[:1], (8, 8)), 0.95) == LINE).all(2).any()
    empty = ImageCams(torch.zeros(0, dtype=torch.int64), torch.zeros(0, 2, 2), (8, 8))
    assert np.array_equal(heated(photo, empty), photo)


def test_the_curve_is_shown_when_asked_for_and_the_trade_off_where_nothing_is_background(way):
    sweep = ThresholdSweep(3, 0)
    for i in range(8):
        value, top = way.maps.read(f"picture_{i:02d}").top(0)
        sweep.update(value.numpy(), top.numpy(), open_mask(way.data, i))
    assert what_is_shown(way, threshold=AT).curves == []
    curves = what_is_shown(way, threshold=AT, sweep=sweep).curves
    assert [c.label for c in curves] == ["mIoU of the maps, percent", "mFN of the maps", "mFP of the maps"]
    assert all(c.mark == 0.4 for c in curves)
    assert list(curves[0].y) == [100 * p.miou for p in sweep.curve()]
    bare = find_targets(way.data, way.data.classes, background="none")
    (trade,) = what_is_shown(Way(**{**vars(way), "targets": bare}), threshold=Threshold(0.0, "x")).curves
    expected = [100 * float((torch.linspace(0, 1, 192) >= t).logical_and(torch.linspace(0, 1, 192) > 0).float().mean())
                for t in trade.x]  # fmt: skip
    assert np.allclose(trade.y, expected, atol=0.6) and trade.mark == 0.0


EVIL = '<b>"x"</b>'


def test_what_is_written_is_read_back_as_text(tmp_path):
    picture = np.full((6, 9, 3), 200, np.uint8)
    shown = Shown(
        title="T", sentences=[EVIL], facts=[("a", EVIL)], head=["class", "n"], table=[[EVIL, "3"]] * 14,
        curves=[Curve(EVIL, "threshold", [0.0, 0.5, 1.0], [1.0, float("nan"), 3.0], 0.5)],
        strips=[Strip(EVIL, [(EVIL, (1, 2, 255)), ("tag", None)], [("maps", picture), (EVIL, picture)])],
    )  # fmt: skip
    shown.write(tmp_path / "seeds")
    ((title, page),) = stage_views(tmp_path, ["none", "seeds", "../seeds/.."])
    assert title == "T" and "<b>&quot;" not in page and EVIL not in page
    assert page.count("<img") == 2 and page.count("data:image/jpeg") == 2 and "2 more" in page
    assert "background:rgb(1,2,255)" in page and page.count("swatch") == 1
    assert page.count("&lt;b&gt;") > 20 and 'class="mark"' in page


def test_what_is_missing_or_damaged_is_left_out(tmp_path):
    picture = np.zeros((4, 4, 3), np.uint8)
    folder = tmp_path / "seeds"
    Shown(title="T", sentences=["s"], strips=[Strip("n", [], [("a", picture), ("b", picture)])]).write(folder)
    (folder / PICTURES / "0-0.jpg").unlink()
    ((_, page),) = stage_views(tmp_path, ["seeds"])
    assert page.count("<img") == 1 and ">b<" in page
    (folder / PICTURES / "0-1.jpg").write_bytes(b"no picture")
    ((_, page),) = stage_views(tmp_path, ["seeds"])
    assert "<img" not in page and "<figure" not in page and "<p>s</p>" in page
    record = json.loads((folder / SHOWN).read_text())
    odd = {"name": "n", "says": [["w", "url(x)"], ["v"]], "pictures": [["a"], ["b", "../../0-0.jpg"]]}
    (folder / SHOWN).write_text(json.dumps({k: v for k, v in {**record, "rows": [odd]}.items() if k != "checksum"}))
    ((_, page),) = stage_views(tmp_path, ["seeds"])
    assert "url(x)" not in page and "<img" not in page
    for wrong in ({**record, "rows": 3}, {**record, "title": None}):
        (folder / SHOWN).write_text(json.dumps({k: v for k, v in wrong.items() if k != "checksum"}))
        assert stage_views(tmp_path, ["seeds"]) == []
