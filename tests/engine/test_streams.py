"""How `--source` is written and opened, from the command line and from Python; the ledgers of several streams."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shlex
import sys
from pathlib import Path

import numpy as np
import pytest
from tests.conftest import write_tiny_folder

from maskwright import api, cli
from maskwright.data.examining.reading import Reading
from maskwright.data.folders.folder import open_folder
from maskwright.data.trust.ledger import Ledger
from maskwright.engine.ledgers import Ledgers
from maskwright.engine.progress import Progress
from maskwright.engine.streams import apart, open_sources, split_name, split_place
from maskwright.errors import MaskwrightError
from maskwright.methods import TABLE

TOYS = {"two_domains": "tests.engine.two_domains:TwoDomains", "day_and_night": "tests.engine.two_domains:DayAndNight"}
FAST = ["--backbone", "mobilenetv3_small_050", "--weights", "random", "--device", "cpu", "--steps", "2"]


@pytest.fixture
def toys(monkeypatch, tmp_path_factory):
    """The toy methods, as if they were in the table."""
    monkeypatch.setenv("MASKWRIGHT_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))
    for name, where in TOYS.items():
        monkeypatch.setitem(TABLE, name, where)


def train(monkeypatch, *words: object) -> int:
    monkeypatch.setattr(sys, "argv", ["maskwright", "train", *map(str, words), *FAST])
    try:
        cli.main()
    except SystemExit as stop:
        return int(stop.code or 0)
    return 0


def record_of(out: Path) -> dict:
    return json.loads((out / "run.json").read_text())


# ---------------------------------------------------------------------- as written


@pytest.mark.parametrize(
    ("text", "name", "rest"),
    [
        ("camvid", "source", "camvid"),
        ("day=camvid@val", "day", "camvid@val"),
        ("a-b_2=voc:x/y", "a-b_2", "voc:x/y"),
        ("runs/a=b", "source", "runs/a=b"),
        ("=camvid", "source", "=camvid"),
        ("2=camvid", "source", "2=camvid"),
    ],
)
def test_names(text, name, rest):
    assert split_name(text) == (name, rest)


@pytest.mark.parametrize(
    ("text", "data", "split"),
    [
        ("camvid", "camvid", None),
        ("camvid@val", "camvid", "val"),
        ("voc:data/VOC2012@train_aug", "voc:data/VOC2012", "train_aug"),
        ("a@b/c@val", "a@b/c", "val"),
        ("data@lists/few.txt", "data", "lists/few.txt"),
    ],
)
def test_splits(text, data, split):
    assert split_place(text) == (data, split)


@pytest.mark.parametrize("text", ["camvid@", "@val"])
def test_half_a_split(text):
    with pytest.raises(MaskwrightError) as raised:
        split_place(text)
    assert raised.value.expected == "[NAME=]DATA[@SPLIT]" and "--source" in raised.value.repair


def test_what_exists_is_a_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("day=tiny", "tiny@home"):
        write_tiny_folder(tmp_path / name, count=2)
    assert split_name("day=tiny") == ("source", "day=tiny")
    assert split_place("tiny@home") == ("tiny@home", None)
    assert split_place("tiny@home@train") == ("tiny@home", "train")
    assert split_place(f"camvid:{tmp_path / 'tiny@home'}") == (f"camvid:{tmp_path / 'tiny@home'}", None)
    assert len(open_sources("x=tiny@home@train")["x"].data) == 1


# ---------------------------------------------------------------------- opened


def test_every_way_to_give_sources(tiny_folder):
    data, path = open_folder(tiny_folder), str(tiny_folder)

    def told(given) -> dict[str, tuple[int, str | None]]:
        return {name: (len(source.data), source.split) for name, source in open_sources(given).items()}

    assert told(None) == {}
    for whole in (path, tiny_folder, data, {"source": path}, [path]):
        assert told(whole) == {"source": (8, None)}
    for half in (
        f"{path}@train",
        (path, "train"),
        (tiny_folder, "train"),
        (data, "train"),
        {"source": f"{path}@train"},
    ):
        assert told(half) == {"source": (4, "train")}
    assert told({"source": (path, "train"), "day": (path, "test")}) == told([f"{path}@train", f"day={path}@test"])
    assert list(told([f"day={path}", path])) == ["day", "source"]


def test_names_that_clash(tiny_folder):
    with pytest.raises(MaskwrightError, match="two data sets called source") as raised:
        open_sources([str(tiny_folder), str(tiny_folder)])
    assert "--source NAME=DATA" in raised.value.repair
    with pytest.raises(MaskwrightError, match="--source target=") as raised:
        open_sources(f"target={tiny_folder}")
    assert raised.value.expected == "another name"


def test_errors_of_opening_name_what_is_missing(tiny_folder, tmp_path):
    with pytest.raises(MaskwrightError, match="unknown split 'trian'"):
        open_sources(f"{tiny_folder}@trian")
    with pytest.raises(MaskwrightError, match="nowhere"):
        open_sources(str(tmp_path / "nowhere"))
    with pytest.raises(MaskwrightError, match="vok"):
        open_sources("vok:data@train")


def test_what_was_said_of_a_folder_holds_for_its_other_splits(tiny_folder, tmp_path):
    (tmp_path / "link").symlink_to(tiny_folder)
    said = open_folder(tiny_folder).with_reading(Reading(labels="ids", void=(2,)))
    assert open_sources(f"{tmp_path / 'link'}@train", beside=said)["source"].data.reading == said.reading
    other = write_tiny_folder(tmp_path / "other", count=2)
    assert open_sources(str(other), beside=said)["source"].data.reading == Reading()


def carried_out(monkeypatch, capfd, repair: str, out: Path) -> None:
    """Runs the doctor's command of a repair, with a folder for OUT."""
    (command,) = re.findall(r"maskwright (doctor .*? --fix OUT), and give --source OUT", repair)
    monkeypatch.setattr(sys, "argv", ["maskwright", *shlex.split(command.replace("OUT", str(out)))])
    with contextlib.suppress(SystemExit):
        cli.main()
    assert out.is_dir(), capfd.readouterr().err


def test_a_word_on_masks_that_nothing_reads_is_refused(toys, tmp_path, monkeypatch, capfd):
    """`--void` is of the run's own masks, which no method of two domains reads; its repair mends the source."""
    source, target, out = write_tiny_folder(tmp_path / "source"), tmp_path / "target", tmp_path / "run"
    write_tiny_folder(target, masks=False)
    words = [target, "--method", "two_domains", "--out", out]
    assert train(monkeypatch, *words, "--source", source, "--void", "255,2") == 2
    said = capfd.readouterr().err
    assert f"--void 255,2, which says what masks in {target} mean: none of these is read" in said
    assert "leave it out; or if it is meant for source" in said and not out.exists()
    carried_out(monkeypatch, capfd, said, tmp_path / "mended")
    assert train(monkeypatch, *words, "--source", tmp_path / "mended") == 0
    masks = open_sources(str(tmp_path / "mended"))["source"].data.with_reading(Reading(labels="ids"))
    assert {int(v) for i in range(len(masks)) for v in np.unique(masks.mask(i))} == {0, 1, 255}
    # Splits of one folder: the word is of the source's masks too.
    both = [source, "--split", "test", "--source", f"{source}@train", "--method", "two_domains"]
    assert train(monkeypatch, *both, "--out", tmp_path / "one", "--void", "255,2") == 0


def test_fewer_classes_than_a_source_has_ids(toys, tmp_path, monkeypatch, capfd):
    """The repair mends the source where it lies elsewhere, and is an option where it lies in the same folder."""
    source, target = write_tiny_folder(tmp_path / "source"), write_tiny_folder(tmp_path / "target", masks=False)
    (source / "classes.txt").unlink()
    (target / "classes.txt").unlink()
    words = ["--method", "two_domains", "--classes", "2"]
    assert train(monkeypatch, target, *words, "--source", source, "--out", tmp_path / "run") == 2
    said = capfd.readouterr().err
    assert "add --classes 3, or if ids from 2 on mean no class: maskwright doctor" in said and "--void 2 --fix" in said
    carried_out(monkeypatch, capfd, said, tmp_path / "mended")
    assert train(monkeypatch, target, *words, "--source", tmp_path / "mended", "--out", tmp_path / "run") == 0
    both = [source, "--split", "test", "--source", f"{source}@train", *words, "--out", tmp_path / "one"]
    assert train(monkeypatch, *both) == 2
    assert "if ids from 2 on mean no class: --void 2\n" in capfd.readouterr().err
    assert train(monkeypatch, *both, "--labels", "ids", "--void", "2") == 0


def test_each_stream_has_a_ledger_of_its_own(tiny_folder):
    data = open_folder(tiny_folder)
    a, b = data.split("train").subset([0, 1]), data.split("train").subset([2, 3])
    found = apart(data.split("test"), {"a": a, "b": b, "c": open_folder(tiny_folder).subset([1])})
    assert len({id(d.ledger) for d in (data, *found.values())}) == 4
    found["a"].mask(0)
    assert [d.ledger.counts()["train"]["masks"] for d in (data, *found.values())] == [0, 1, 0, 0]


# ---------------------------------------------------------------------- ledgers


def test_ledgers_are_saved_restored_and_summed():
    both = Ledgers({"target": Ledger(), "day": Ledger()})
    both.ledgers["target"].note("masks", "a")
    both.ledgers["day"].note("masks", "a")
    both.ledgers["day"].note("tags", "b", purpose="select")
    assert both.counts()["train"] == {"masks": 2, "tags": 0, "captions": 0} and both.counts()["select"]["tags"] == 1
    assert both.record()["labels_read_by_stream"]["day"]["select"]["tags"] == 1
    state = json.loads(json.dumps(both.state_dict()))
    again = Ledgers({"target": Ledger(), "day": Ledger()})
    again.ledgers["day"].note("masks", "c")
    again.load_state_dict(state)
    assert again.ledgers["day"].names("train", "masks") == ["a", "c"], "it adds"
    assert again.ledgers["target"].state_dict() == both.ledgers["target"].state_dict()


def test_ledgers_of_one_stream_are_what_a_ledger_is():
    one = Ledgers({"target": Ledger()})
    one.ledgers["target"].note("captions", "a")
    assert one.state_dict() == one.ledgers["target"].state_dict() and list(one.record()) == ["labels_read"]


@pytest.mark.parametrize(
    "state", [{"streams": {"night": {}}}, {"streams": 3}, {"train": {"masks": 3}}, {"streams": {"day": {"trian": {}}}}]
)
def test_states_that_are_none_add_nothing(state):
    both = Ledgers({"target": Ledger(), "day": Ledger()})
    with pytest.raises(ValueError, match="no state"):
        both.load_state_dict({"select": {"tags": ["a"]}} | state)
    assert not any(n for counts in both.counts().values() for n in counts.values())


# ---------------------------------------------------------------------- from end to end


def test_from_the_command_line(toys, tmp_path, monkeypatch, capfd):
    data = write_tiny_folder(tmp_path / "tiny")
    (data / "splits" / "more.txt").write_text("picture_06\npicture_07\n")
    (data / "splits" / "few.txt").write_text("picture_04\npicture_05\n")
    words = [data, "--method", "day_and_night", "--split", "few", "--source", f"{data}@train"]
    out = tmp_path / "run"
    names = tmp_path / "names.txt"
    names.write_text("grass\nball\nbox\n")
    assert train(monkeypatch, *words, "--source", f"day={data}@more", "--names", names, "--out", out) == 0
    capfd.readouterr()
    record = record_of(out)
    assert {n: (s["images"], s["split"]) for n, s in record["sources"].items()} == {
        "source": (4, "train"),
        "day": (2, "more"),
    }
    assert record["labels_read"]["train"]["masks"] == 2 == record["labels_read_by_stream"]["source"]["train"]["masks"]
    assert [c["name"] for c in record["classes"]] == ["grass", "ball", "box"]
    assert "<p>Of these, from source: 2 masks.</p>" in (out / "report.html").read_text()

    assert train(monkeypatch, *words, "--out", tmp_path / "other") == 2
    assert "day_and_night needs a data set called day" in capfd.readouterr().err
    assert train(monkeypatch, *words, "--source", f"day={data}@test", "--out", tmp_path / "other") == 2
    assert "2 images are both in the run's own data and in day" in capfd.readouterr().err


def test_from_python(toys, tmp_path):
    data = write_tiny_folder(tmp_path / "tiny")
    usual = {"backbone": "mobilenetv3_small_050", "weights": "random", "device": "cpu", "steps": 2, "report": False}
    model = api.train(
        data, "two_domains", out=tmp_path / "run", split="test", source=(data, "train"), names="a, b ,c",
        progress=Progress(quiet=True), **usual,
    )  # fmt: skip
    assert model.classes.names == ("a", "b", "c")
    assert record_of(tmp_path / "run")["sources"]["source"]["images"] == 4


def test_auto_says_that_no_method_uses_the_source_and_leaves_it_out(tmp_path, capfd):
    os.environ.setdefault("MASKWRIGHT_CACHE", str(tmp_path / "cache"))
    data, source = (write_tiny_folder(tmp_path / name, count=3) for name in ("tiny", "labelled"))
    (data / "tags.csv").unlink()
    for mask in (data / "masks").iterdir():
        mask.unlink()
    if any(name in TABLE for name in ("dacs", "source_only")):
        pytest.skip("a method of the table uses it")
    api.train(
        data, out=tmp_path / "run", source=source, backbone="tf_efficientnet_lite0", weights="random", classes=2,
        device="cpu", short_side=64, report=False,
    )  # fmt: skip
    assert "; no method here uses the source" in capfd.readouterr().err
    record = record_of(tmp_path / "run")
    assert record["method"]["name"] == "kmeans" and record["sources"] == {}
