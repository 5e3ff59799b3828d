from __future__ import annotations

import base64
import json
import os
import re
from html.parser import HTMLParser
from io import BytesIO

import numpy as np
import pytest
from PIL import Image

from maskwright.app.report import write_report
from maskwright.data.masking.classes import ClassTable
from maskwright.data.masking.masks import write_mask
from maskwright.data.trust.files import file_for
from maskwright.errors import MaskwrightError, shown

EVIL = "<script>alert(1)</script>\"&'"
VOID = {"meta", "link", "img", "br", "line", "rect", "polyline"}


class Page(HTMLParser):
    """Checks that tags nest, and collects them with their text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.text = ""
        self.feed(text)
        assert not self.open, self.open

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if "style" not in self.open:
            self.text += data

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attrs for name, attrs in self.tags if name == tag]


def record() -> dict:
    zero = {"masks": 0, "tags": 0, "captions": 0}
    return {
        "status": "finished",
        "command": f"maskwright train photos --out '{EVIL}'",
        "method": {"name": "kmeans", "title": f"k-means {EVIL}", "paper": "a paper", "link": "https://arxiv.org/abs/1"},
        "config": {"dim": 32, "layers": None, "odd": EVIL},
        "seed": 7,
        "steps": None,
        "versions": {"python": "3.11", "maskwright": "0.1.0"},
        "data": {"root": EVIL, "images": 30, "fingerprint": "abc123", "skipped": [["bad", f"is {EVIL}"]]},
        "labels_read": {"train": dict(zero), "select": dict(zero), "evaluate": {**zero, "masks": 5}},
        "backbone": {
            "architecture": "net",
            "source": "package: x",
            "license": "Apache-2.0",
            "labels_seen": "ImageNet-1k",
        },
        "classes": [
            {"name": EVIL, "color": [0, 0, 0], "share": 0.25},
            {"name": "sky", "color": [10, 200, 30], "share": 0.75},
        ],
        "stages": [{"name": "cluster", "kind": "fit", "says": "clusters", "seconds": 61.2}],
        "device": "cpu",
        "started": "2025-01-01T00:00:00+00:00",
        "notes": [f"A note {EVIL}."],
    }


@pytest.fixture
def run(tmp_path):
    (tmp_path / "run.json").write_text(json.dumps(record()))
    lines = [{"stage": "cluster", "step": s, "loss": 5 / (s + 1), "acc": float("nan")} for s in range(60)]
    text = "".join(json.dumps(line) + "\n" for line in lines) + '{"stage": "clu'
    (tmp_path / "metrics.jsonl").write_text(text)
    scores = {
        "protocol": "hungarian", "matching": f"Hungarian {EVIL}", "miou": 0.5, "pixel_accuracy": 0.75,
        "per_class": [{"name": "sky", "iou": 0.5}, {"name": EVIL, "iou": None}],
    }  # fmt: skip
    (tmp_path / "scores.json").write_text(json.dumps(scores))
    table = ClassTable(("a", "b"), np.array([(0, 0, 0), (10, 200, 30)], np.uint8))
    for i in range(27):
        name = f"a.b {i} <i>" if i else "sub/x"
        path = tmp_path / "previews" / f"{name}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (40, 30), (100, 50, 20 + i)).save(path)
        write_mask(tmp_path / "previews" / f"{name}.png", np.repeat([[0], [1]], [10, 20], 0).repeat(40, 1), table)
    return tmp_path


def test_report_is_whole_and_needs_nothing_beside_it(run):
    path = write_report(run)
    text = path.read_text()
    page = Page(text)
    assert path.name == "report.html" and text.startswith("<!doctype html>")
    assert "script" not in {tag for tag, _ in page.tags} and "<script" not in text
    for image in page.all("img"):
        assert image["src"].startswith("data:image/") and image["alt"]
    assert [a["href"] for a in page.all("a") if not a["href"].startswith("#")] == ["https://arxiv.org/abs/1"]
    assert "url(" not in text and "@import" not in text and 'http-equiv="Content-Security-Policy"' in text
    assert len(page.all("figure")) == 27 and len(page.all("img")) == 81
    assert len({f["id"] for f in page.all("figure")}) == 27
    for told in (
        "0 labels read for training and selection", "1 min 1 s", "abc123", "ImageNet-1k", "Apache-2.0", "75.0 %",
        "50.00 %", "hungarian", "seed 7", "3 more pictures", "A note", "Skipped images (1)", "k-means", EVIL,
    ):  # fmt: skip
        assert told in page.text, told
    assert len([s for s in page.all("svg") if s.get("class") == "curve"]) == 1  # `acc` has no finite value
    assert all(s.get("aria-label") for s in page.all("svg"))
    assert page.all("html")[0]["lang"] == "en" and "prefers-color-scheme" in text


def test_masks_are_shown_in_the_classes_colours(run):
    page = Page(write_report(run).read_text())
    mask = next(i for i in page.all("img") if i.get("class") == "mask")
    data = base64.b64decode(mask["src"].split(",", 1)[1])
    pixels = np.array(Image.open(BytesIO(data)).convert("RGB"))
    assert pixels[0, 0].tolist() == [0, 0, 0] and pixels[-1, -1].tolist() == [10, 200, 30]
    assert "sky 67 %" in mask["alt"]


def test_labels_that_were_read_are_said(run):
    changed = record()
    changed["labels_read"]["train"]["masks"] = 12
    changed["labels_read"]["select"]["tags"] = 3
    (run / "run.json").write_text(json.dumps(changed))
    page = Page(write_report(run).read_text())
    assert "0 labels read" not in page.text
    assert "12 masks for training, 3 tags for selection" in page.text


OWN = {"architecture": "ddrnet", "source": "random", "license": "none needed", "labels_seen": "none"}


@pytest.mark.parametrize(
    "added, told, untold",
    [
        ({}, ["features come from net, whose weights saw: ImageNet-1k."], ["Earlier stages", "ddrnet"]),
        ({"provenance": record()["backbone"]}, ["features come from net,"], ["Earlier stages", "ddrnet"]),
        (
            {"provenance": OWN, "backbone_unused": "not used"},
            ["features come from ddrnet, whose weights saw: no labels.", "none needed"],
            ["Earlier stages", "ImageNet-1k", "Apache-2.0"],
        ),
        (
            {"provenance": OWN, "backbone_unused": ""},
            ["come from ddrnet, whose", "Earlier stages used the backbone net, whose weights saw: ImageNet-1k.",
             "Backbone of earlier stages", "Apache-2.0"],
            [],
        ),
        ({"backbone_unused": "not used"}, [], ["ImageNet-1k", "features come from"]),
        ({"provenance": "odd"}, ["features come from net,"], []),
    ],
)  # fmt: skip
def test_weights_are_those_that_the_model_has(run, added, told, untold):
    (run / "run.json").write_text(json.dumps(record() | added))
    text = Page(write_report(run).read_text()).text
    assert all(t in text for t in told) and not any(t in text for t in untold)


def test_the_time_is_that_of_stages_and_of_what_follows_them(run):
    """Statistics and pictures took 66 s of a run of three minutes, of which the report told two."""
    (run / "run.json").write_text(json.dumps(record() | {"seconds_after_stages": 150.0}))
    assert "<dt>Time</dt><dd>3 min 31 s</dd>" in write_report(run).read_text()


def test_lists_are_told_by_their_hash(run):
    (run / "run.json").write_text(json.dumps(record() | {"labeled_hash": "feed" * 16}))
    scores = json.loads((run / "scores.json").read_text()) | {"split": "held_out", "names_hash": "f00d" * 16}
    (run / "scores.json").write_text(json.dumps(scores))
    text = Page(write_report(run).read_text()).text
    assert "feed" * 16 in text and "f00d" * 16 in text and "held_out" in text


@pytest.mark.parametrize(
    "odd",
    [
        {},
        {
            "method": "kmeans",
            "data": [],
            "labels_read": None,
            "classes": {},
            "stages": "x",
            "notes": "y",
            "versions": 3,
        },
        {
            "method": {"link": "javascript:alert(1)"},
            "classes": [{"name": 3, "color": "red"}],
            "labels_read": {"train": 4},
        },
        {"data": {"skipped": ["ab", [], ["x"]]}, "stages": [{}], "backbone": {"input_size": [1]}, "config": {"a": [1]}},
        {"status": "running", "labels_read": {"train": {"boxes": 4}, "other": {"masks": 1}}},
    ],
)
def test_missing_and_odd_pieces_are_tolerated(tmp_path, odd):
    (tmp_path / "run.json").write_text(json.dumps(odd))
    (tmp_path / "scores.json").write_text("[1, 2")
    (tmp_path / "metrics.jsonl").write_text('3\n{"loss": true}\n\xff\n{"step": 1, "loss": 2}\n')
    (tmp_path / "previews").mkdir()
    (tmp_path / "previews" / "a.jpg").write_bytes(b"broken")
    Image.new("RGB", (4, 4)).save(tmp_path / "previews" / "b.jpg")
    page = Page(write_report(tmp_path).read_text())
    assert not any("javascript" in (a.get("href") or "") for a in page.all("a"))
    assert page.all("figure") == []


def test_no_run_is_told(tmp_path):
    with pytest.raises(MaskwrightError, match=r"run\.json"):
        write_report(tmp_path)
    (tmp_path / "run.json").write_text("[]")
    with pytest.raises(MaskwrightError):
        write_report(tmp_path)


@pytest.mark.parametrize(
    "name", [EVIL, "a\x1b[2Jb", "\u202egnp.exe", os.fsdecode(b"caf\xe9"), "=cmd|'x'!A0", "空" * 82]
)
def test_names_are_shown_as_text(tmp_path, name):
    (tmp_path / "run.json").write_text(
        json.dumps(record() | {"data": {"images": 1, "skipped": [[name, f"{name} is bad"]]}})
    )
    photo = file_for(tmp_path / "previews", name.replace("/", "|"), ".jpg")
    photo.parent.mkdir()
    Image.new("RGB", (8, 6)).save(photo)
    write_mask(photo.with_suffix(".png"), np.zeros((6, 8), np.uint8))
    page = Page(write_report(tmp_path).read_bytes().decode("utf-8"))
    assert page.text.count(shown(name)) >= 2 and len(page.all("figure")) == 1
    assert shown(name.replace("/", "|")) in next(i["alt"] for i in page.all("img"))
    assert "script" not in {tag for tag, _ in page.tags} and not set(page.text) & set("\x1b\u202e\udce9")


def test_the_title_is_of_the_data_and_nothing_is_said_twice(run):
    changed = record() | {"split": "dusk", "notes": ["A note.", "Backbone: net, as asked.", "A note."]}
    changed["data"]["root"] = "/some/where/camvid/"
    changed["method"]["title"] = "k-means"
    changed |= {"steps": 27, "options": {"steps": 2017, "dim": 5}}
    changed["labels_read"]["evaluate"]["masks"] = 0
    (run / "run.json").write_text(json.dumps(changed))
    text = write_report(run).read_text()
    assert "<title>camvid, dusk: k-means</title>" in text and "<h1>camvid, dusk: k-means</h1>" in text
    words = Page(text).text
    assert "2017" not in words and "27" in words and "dim" in words, "the steps that were made, not those of the option"
    assert words.count("A note.") == 1 and "as asked" not in words and "run report" not in words
    body = re.split("What was done", words)[1]
    sentences = [s.strip() for s in re.split(r"(?<=[.:])\s", body) if len(s.strip()) > 20]
    assert len(sentences) == len(set(sentences)) > 5
    assert "k-means was run" not in words and words.count("1 min 1 s") == 2, "in all, and of its one stage"
    assert words.count("0 labels read for training and selection") == 1 and "whose labels were read" not in words


def test_what_place_predicts_stands_with_the_montage(run):
    assert "Place in the frame" not in Page(write_report(run).read_text()).text
    Image.new("RGB", (40, 30)).save(run / "montage.jpg")
    told = record() | {"places": {"accuracy": 0.6, "chance": 0.2, "says": f"Place in the frame {EVIL}."}}
    page = Page(write_report(run, told).read_text())
    assert f"Place in the frame {EVIL}." in page.text
    assert "Place in" not in Page(write_report(run, record() | {"places": ["damaged"]}).read_text()).text
