"""How a run is opened: its data sets, its classes, its record, and what is counted when it is killed and resumed."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from tests.conftest import write_tiny_folder
from tests.engine.two_domains import DayAndNight, TwoDomains, TwoDomainsConfig, TwoDomainsTraining, request, run

from maskwright.data.folders.folder import open_folder
from maskwright.data.masking.classes import ClassTable
from maskwright.engine.classes import object_table
from maskwright.engine.context import Context
from maskwright.engine.ending import stopped
from maskwright.engine.ledgers import Ledgers
from maskwright.engine.needs import StreamNeed
from maskwright.engine.opening import open_run
from maskwright.engine.request import RunRequest
from maskwright.engine.streams import Source
from maskwright.errors import MaskwrightError
from maskwright.methods.supervised import Supervised
from maskwright.methods.unsupervised.kmeans import KMeans

NONE = {"masks": 0, "tags": 0, "captions": 0}


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("MASKWRIGHT_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))


@pytest.fixture
def source(tmp_path) -> Path:
    return write_tiny_folder(tmp_path / "labelled", count=6)


@pytest.fixture
def target(tmp_path) -> Path:
    """Without a class table, with masks that nothing may read."""
    root = write_tiny_folder(tmp_path / "target", count=4)
    (root / "classes.txt").unlink()
    return root


def record_of(out: Path) -> dict[str, Any]:
    return json.loads((out / "run.json").read_text())


def opened(*given: Any, **options: Any) -> Context:
    context = open_run(request(*given, **options))
    context.run.release()
    return context


def two(target: Path, source: Path, out: Path, **options: Any) -> RunRequest:
    return request(open_folder(target), out, **({"sources": {"source": Source(open_folder(source))}} | options))


# ---------------------------------------------------------------------- requests


def test_features_that_stay_are_said_where_a_run_is_stopped(tiny_folder, tmp_path):
    """They lie in the cache; "nothing yet, the run starts over" made people wait for the end."""
    context = opened(open_folder(tiny_folder), tmp_path / "run", Supervised)
    assert "kept: nothing yet" in stopped(context.run, features="features" in context.progress.begun)[0]
    with context.progress.task("features", 3):
        said = stopped(context.run, features="features" in context.progress.begun)[0]
    assert said == "interrupted; kept: the features computed so far"


def test_a_request_has_defaults(tiny_folder):
    asked = RunRequest(data=open_folder(tiny_folder), method=TwoDomains)
    assert asked.config == TwoDomainsConfig() and asked.folder == Path("runs/two_domains-tiny")
    assert (asked.backbone_name, asked.seed, asked.sources) == ("auto", 0, {})


def test_more_processes_than_photographs_are_refused_before_anything_is_written(target, tmp_path, monkeypatch):
    monkeypatch.setattr("maskwright.engine.opening.make_fabric", lambda _: SimpleNamespace(world_size=5))
    with pytest.raises(MaskwrightError, match=r"5 processes for 4 photograph\(s\); expected at least one .* start 4"):
        open_run(request(open_folder(target), tmp_path / "run", KMeans))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("options", "words"), [({"seed": -1}, "--seed -1"), ({"steps": 0}, "--steps 0"), ({"classes": 0}, "--classes 0")]
)
def test_numbers_out_of_range(tiny_folder, tmp_path, options, words):
    with pytest.raises(MaskwrightError, match=words):
        open_run(request(open_folder(tiny_folder), tmp_path / "run", Supervised, **options))
    assert not (tmp_path / "run").exists()


# ---------------------------------------------------------------------- which data sets


def test_a_method_gets_the_data_sets_that_it_takes_and_no_others(target, source, tmp_path):
    data, other = open_folder(target), Source(open_folder(source))
    with pytest.raises(MaskwrightError, match="two_domains needs a labelled source folder") as raised:
        open_run(request(data, tmp_path / "run"))
    assert raised.value.expected == "--source DATA"
    with pytest.raises(MaskwrightError, match="day_and_night needs a data set called day: unlabelled photographs"):
        open_run(request(data, tmp_path / "run", DayAndNight, sources={"source": other}))
    with pytest.raises(
        MaskwrightError, match=r"two_domains and the data set night .*, which it has no use for"
    ) as raised:
        open_run(request(data, tmp_path / "run", sources={"source": other, "night": other}))
    assert raised.value.expected == "data sets called source"
    with pytest.raises(MaskwrightError, match="kmeans and the data set source"):
        open_run(request(data, tmp_path / "run", KMeans, sources={"source": other}))
    assert not (tmp_path / "run").exists()


def test_streams_by_name(target, source, tmp_path):
    day = write_tiny_folder(tmp_path / "day", count=3)
    sources = {"source": Source(open_folder(source)), "day": Source(open_folder(day))}
    context = opened(open_folder(target), tmp_path / "run", DayAndNight, sources=sources)
    assert list(context.streams) == ["target", "source", "day"]
    assert context.streams["target"] is context.data and context.sources["source"] is context.data_of("source")
    assert [len(data) for data in context.streams.values()] == [4, 6, 3]
    assert context.data_of("source").has_mask(0)
    assert not any(context.data_of("day").has_mask(i) for i in range(3)), "what the method does not take is hidden"
    assert context.data_of("day").labels_present() == NONE
    with pytest.raises(KeyError, match="dusk"):
        context.data_of("dusk")
    told = [note for note in record_of(tmp_path / "run")["notes"] if note.startswith(("Source:", "Day:"))]
    assert told[0] == f"Source: 6 images of {source}; their masks may be read."
    assert f"Day: 3 images of {day}; no label of theirs may be read." in told


def test_the_source_is_fully_labelled(target, source, tmp_path):
    (source / "masks" / "picture_02.png").unlink()
    with pytest.raises(
        MaskwrightError, match=r"1 of 6 images in source .* have no masks \(first: picture_02\)"
    ) as raised:
        open_run(two(target, source, tmp_path / "run"))
    assert f"--source {source}@SPLIT" in raised.value.repair
    # The repair: a split of the labelled ones.
    data = open_folder(source).split("test")
    found = opened(open_folder(target), tmp_path / "run", sources={"source": Source(data, "test")})
    assert len(found.sources["source"]) == 3


def test_a_broken_image_of_the_source_is_skipped_and_named(target, source, tmp_path):
    (source / "images" / "broken.jpg").write_bytes(b"no photograph")
    context = open_run(two(target, source, tmp_path / "run"))
    context.run.release()
    assert len(context.sources["source"]) == 6
    assert [name for name, _ in record_of(tmp_path / "run")["sources"]["source"]["skipped"]] == ["broken"]


def test_masks_of_the_source_are_understood(target, source, tmp_path):
    Image.fromarray(np.full((48, 64), 7, np.uint8)).save(source / "masks" / "picture_00.png")
    with pytest.raises(MaskwrightError, match=r"^source: ") as raised:
        open_run(two(target, source, tmp_path / "run"))
    assert "maskwright doctor" in raised.value.repair and "--source OUT" in raised.value.repair


# ---------------------------------------------------------------------- splits of one folder


def test_two_splits_of_one_folder(tiny_folder, tmp_path):
    data = open_folder(tiny_folder)
    sources = {"source": Source(data.split("train"), "train")}
    context = run(request(data.split("test"), tmp_path / "run", split="test", sources=sources))
    record = record_of(tmp_path / "run")
    assert record["sources"]["source"]["split"] == "train" and record["split"] == "test"
    assert record["labels_read_by_stream"]["source"]["train"] == {**NONE, "masks": 4}
    assert record["labels_read_by_stream"]["target"]["train"] == NONE, "what is read of the source counts there"
    assert record["labels_read"]["train"]["masks"] == 4
    assert context.data.ledger is data.ledger and data.ledger.counts()["train"]["masks"] == 0


def test_splits_that_share_an_image_are_refused(tiny_folder, tmp_path):
    (tiny_folder / "splits" / "most.txt").write_text("\n".join(f"picture_{i:02d}" for i in range(5)))
    (tmp_path / "link").symlink_to(tiny_folder)
    asked = two(tiny_folder, tiny_folder, tmp_path / "run")
    with pytest.raises(MaskwrightError, match="8 images are both in the run's own data and in source") as raised:
        open_run(asked)
    assert "--split NAME" in raised.value.repair
    sources = {"source": Source(open_folder(tmp_path / "link").split("most"))}
    with pytest.raises(MaskwrightError, match=r"1 images are both .* \(first: .*picture_04\.png\)"):
        open_run(request(open_folder(tiny_folder).split("test"), tmp_path / "run", sources=sources))


def test_a_list_of_labelled_images_is_for_the_target_alone(tiny_folder, source, tmp_path):
    data = open_folder(tiny_folder).labeled("train")
    sources = {"source": Source(open_folder(source))}
    context = opened(data, tmp_path / "run", sources=sources, labeled="train")
    assert context.sources["source"].labels_present()["masks"] == 6, "of these names, train has four"
    assert context.data.labels_present()["masks"] == 4


# ---------------------------------------------------------------------- classes


def test_the_class_table_is_that_of_the_source(target, source, tmp_path):
    data = open_folder(source)
    table = ClassTable(data.classes.names, np.array([[1, 2, 3], [40, 50, 60], [7, 8, 9]], np.uint8))
    context = opened(
        open_folder(target), tmp_path / "run", sources={"source": Source(data.with_classes(table))}
    )  # fmt: skip
    assert context.table == table, "names and colours"
    assert "Classes: the 3 of the class table of source." in record_of(tmp_path / "run")["notes"]
    assert context.data.classes == table


def test_classes_of_two_tables_are_the_same_by_their_names(target, source, tmp_path):
    """`square` of one set is `square` of the other whatever its number; what only one has is told and left out."""
    (target / "classes.txt").write_text("sky\nsquare\nground\n")
    stored = open_folder(source).mask(1)
    context = open_run(two(target, source, tmp_path / "run"))
    context.run.release()
    assert context.table.names == ("sky", "square", "ground"), "the ids of the target's own masks"
    expected = np.array([2, 255, 1, 255])[np.minimum(stored, 3)]  # ground, disc, square
    assert np.array_equal(context.sources["source"].mask(1), expected) and context.sources["source"].taught == (1, 2)
    notes = record_of(tmp_path / "run")["notes"]
    said = "its classes are taken by their names, 2 of 3 of which the run has; pixels of disc mean no class."
    assert f"Source: {said}" in notes
    assert "Source: no mask here teaches sky; evaluate --without sky leaves it out of all figures." in notes
    read = context.ledgers.by_stream()["source"]["train"]["masks"]
    assert context.sources["source"].labels_present()["masks"] == read + 5
    with pytest.raises(MaskwrightError, match="they stand in another order"):  # resumed on other ids of the source
        (source / "classes.txt").write_text("disc\nground\nsquare\n")
        open_run(two(target, source, tmp_path / "run", resume=True))


def test_class_tables_without_a_common_name(target, source, tmp_path):
    (target / "classes.txt").write_text("sea\nsky\n")
    with pytest.raises(MaskwrightError) as raised:
        open_run(two(target, source, tmp_path / "run"))
    assert raised.value.found == (
        "no class of the run's own data (sea, sky) is a class of source (ground, disc, square)"
    )
    assert not (tmp_path / "run").exists()
    # The repairs: names for both, or one mended table.
    context = open_run(two(target, source, tmp_path / "named", names=("a", "b", "c")))
    context.run.release()
    beside = context.sources["source"]
    assert context.table.names == beside.classes.names == context.data.classes.names == ("a", "b", "c")
    assert context.sources["source"].taught is None
    (target / "classes.txt").write_text("ground\ndisc\nsquare\n")
    open_run(two(target, source, tmp_path / "run")).run.release()


def test_a_common_name_that_no_pixel_of_the_source_has(target, source, tmp_path):
    """All pixels would mean no class once they are renamed, and the run would learn from none."""
    (source / "classes.txt").write_text("ground\ndisc\nsquare\ntower\n")
    (target / "classes.txt").write_text("tower\nlake\n")
    with pytest.raises(MaskwrightError) as raised:
        open_run(two(target, source, tmp_path / "run"))
    assert raised.value.found == (
        f"masks in {source} that show ground, disc, square alone: no pixel is of a class that the run has too (tower)"
    )
    assert "(the run's: tower, lake)" in raised.value.expected and not (tmp_path / "run").exists()
    assert "call what is one class by one name in both classes.txt" in raised.value.repair
    (target / "classes.txt").write_text("tower\nground\n")  # the repair
    context = open_run(two(target, source, tmp_path / "run"))
    context.run.release()
    assert (context.sources["source"].mask(0) == 1).any()


def test_a_source_that_names_no_classes_is_told_by_number(target, source, tmp_path):
    """Its ids are those of the run's table, which may say otherwise than whoever drew its masks."""
    (source / "classes.txt").rename(target / "classes.txt")
    (target / "classes.txt").write_text("square\ndisc\nground\na\nb\nc\nd\n")
    context = open_run(two(target, source, tmp_path / "run"))
    context.run.release()
    said = "Source: It names no classes: its ids are taken as 0 = square, 1 = disc, 2 = ground, 3 = a, 4 = b, 5 = c and"
    assert f"{said} 1 more." in record_of(tmp_path / "run")["notes"]


def test_names_above_tables_of_two_orders(target, source, tmp_path):
    """By name where the names are those of the tables; else nobody can know which class is which."""
    (target / "classes.txt").write_text("square\nground\ndisc\n")
    stored = open_folder(source).mask(1)
    context = open_run(two(target, source, tmp_path / "run", names=("square", "ground", "disc")))
    context.run.release()
    expected = np.array([1, 2, 0, 255])[np.minimum(stored, 3)]  # ground, disc, square
    assert np.array_equal(context.sources["source"].mask(1), expected)
    notes = record_of(tmp_path / "run")["notes"]
    assert "Source: its classes are taken by their names, 3 of 3 of which the run has." in notes
    for names in (("a", "b", "c"), ("ground", "disc", "square")):
        with pytest.raises(MaskwrightError, match="number a class differently") as raised:
            open_run(two(target, source, tmp_path / "refused", names=names))
        assert "leave --names out" in raised.value.repair and "--names square,ground,disc" in raised.value.repair
        assert "\n" not in str(raised.value) and not (tmp_path / "refused").exists()


def test_names_above_a_table_of_other_names_are_told(target, source, tmp_path):
    context = open_run(two(target, source, tmp_path / "run", names=("ground", "ball", "box")))
    context.run.release()
    said = "lasses are taken by their numbers, as --names goes above the class table: disc is ball, square is box."
    assert f"Source: C{said}" in record_of(tmp_path / "run")["notes"]
    own = opened(open_folder(source), tmp_path / "own", Supervised, names=("disc", "ground", "box"))
    assert any("ground is disc, disc is ground, square is box" in note for note in own.notes)


def test_without_any_class_table_the_masks_of_the_source_say_how_many(target, source, tmp_path):
    (source / "classes.txt").unlink()
    context = open_run(two(target, source, tmp_path / "run"))
    context.run.release()
    assert context.table == ClassTable.numbered(3)
    assert context.ledgers.by_stream()["source"]["train"]["masks"] == 6, "a number that is learned from masks is noted"
    assert context.ledgers.by_stream()["target"]["train"]["masks"] == 0
    with pytest.raises(MaskwrightError, match="--classes 2 and masks with ids up to 2"):
        open_run(two(target, source, tmp_path / "fewer", classes=2))


def test_names_go_above_the_class_table(tiny_folder, tmp_path):
    context = opened(open_folder(tiny_folder), tmp_path / "run", Supervised, names=("grass", "ball", "box"))
    assert context.table.names == ("grass", "ball", "box")
    assert np.array_equal(context.table.colors, open_folder(tiny_folder).classes.colors)
    assert "Classes: the 3 that --names gives." in record_of(tmp_path / "run")["notes"]
    assert record_of(tmp_path / "run")["names"] == ["grass", "ball", "box"]
    with pytest.raises(MaskwrightError, match="class 0 was 'grass' and is 'lawn'"):
        opened(open_folder(tiny_folder), tmp_path / "run", Supervised, names=("lawn", "ball", "box"), resume=True)


def test_a_method_of_objects_has_two_classes_whatever_the_labels_have():
    two_named, three = ClassTable(("background", "salient")), ClassTable(("ground", "disc", "square"))
    assert object_table(two_named)[0] is two_named
    for other in (None, three, ClassTable(("cow", "dog"))):
        assert object_table(other)[0].names == ("background", "object")
    assert object_table(two_named, names=("none", "thing"), classes=2)[0].names == ("none", "thing")
    with pytest.raises(MaskwrightError, match="--classes 3"):
        object_table(None, classes=3)
    with pytest.raises(MaskwrightError, match="1 names"):
        object_table(None, names=("thing",))


def test_fewer_names_than_the_masks_have_ids(tiny_folder, tmp_path):
    with pytest.raises(MaskwrightError, match="id 2 occurs"):
        opened(open_folder(tiny_folder), tmp_path / "run", Supervised, names=("grass", "ball"))


def test_names_for_clusters_are_refused(tiny_folder, tmp_path):
    with pytest.raises(MaskwrightError, match="--names and kmeans, whose clusters have no names") as raised:
        opened(open_folder(tiny_folder), tmp_path / "run", KMeans, names=("a", "b"))
    assert "--classes 2" in raised.value.repair


def test_steps_that_nothing_takes_are_said(tiny_folder, tmp_path):
    context = opened(open_folder(tiny_folder), tmp_path / "run", KMeans, steps=8)
    said = "--steps 8: not used, kmeans trains nothing step by step with these options."
    assert said in context.notes and said in record_of(tmp_path / "run")["notes"]
    context = opened(open_folder(tiny_folder), tmp_path / "other", KMeans, steps=None)
    assert not any("--steps" in note for note in context.notes)
    context = opened(open_folder(tiny_folder), tmp_path / "trains", Supervised, steps=8)
    assert not any("--steps" in note for note in context.notes)


class Worded(TwoDomains):
    name: ClassVar[str] = "worded"
    needs: ClassVar[frozenset[str]] = frozenset({"names", "captions"})


def test_names_and_captions_that_a_method_needs(tiny_folder, tmp_path):
    (tiny_folder / "classes.txt").unlink()
    with pytest.raises(MaskwrightError, match=r"worded needs names of the classes and .*tiny has none") as raised:
        opened(open_folder(tiny_folder), tmp_path / "run", Worded)
    assert "--names LIST_OR_FILE" in raised.value.repair
    context = opened(open_folder(tiny_folder), tmp_path / "run", Worded, names=("grass", "ball"))
    assert context.table.names == ("grass", "ball")
    assert set(record_of(tmp_path / "run")["data"]["labels"]) == {"captions", "classes"}
    (tiny_folder / "captions.csv").unlink()
    with pytest.raises(MaskwrightError, match=r"worded needs captions and .*tiny has none"):
        opened(open_folder(tiny_folder), tmp_path / "other", Worded, names=("grass", "ball"))


def test_captions_are_known_by_their_contents(tiny_folder, tmp_path):
    opened(open_folder(tiny_folder), tmp_path / "run", Worded)
    text = (tiny_folder / "captions.csv").read_text().replace("red disc", "round thing", 1)
    (tiny_folder / "captions.csv").write_text(text)
    with pytest.raises(MaskwrightError, match="the captions of 1 image changed"):
        opened(open_folder(tiny_folder), tmp_path / "run", Worded, resume=True)


# ---------------------------------------------------------------------- identity and the ledger


def test_a_run_tells_of_each_data_set_and_of_labels_by_stream(target, source, tmp_path):
    run(two(target, source, tmp_path / "run"))
    record = record_of(tmp_path / "run")
    told = record["sources"]["source"]
    assert (told["root"], told["images"], told["split"]) == (str(source), 6, None)
    assert told["fingerprint"] == open_folder(source).fingerprint() != record["data"]["fingerprint"]
    assert told["labels_present"] == {**NONE, "masks": 6} and set(told["labels"]) == {"masks", "classes"}
    assert record["labels_read"]["train"] == {**NONE, "masks": 6}
    assert {k: v["train"]["masks"] for k, v in record["labels_read_by_stream"].items()} == {"target": 0, "source": 6}
    assert not any(n for p in ("select", "evaluate") for n in record["labels_read"][p].values())
    assert load_file(tmp_path / "run" / "model.safetensors")


def test_a_run_without_a_source_has_the_record_that_it_had(tiny_folder, tmp_path):
    opened(open_folder(tiny_folder), tmp_path / "run", Supervised)
    record = record_of(tmp_path / "run")
    assert record["sources"] == {} and "labels_read_by_stream" not in record
    del record["sources"], record["names"], record["checksum"]  # as an earlier version wrote it
    (tmp_path / "run" / "run.json").write_text(json.dumps(record | {"source": None}))
    opened(open_folder(tiny_folder), tmp_path / "run", Supervised, resume=True)


@pytest.mark.parametrize("what", ["mask", "image", "class", "split", "gone"])
def test_a_run_is_not_resumed_on_another_source(target, source, tmp_path, what):
    before = {"source": Source(open_folder(source))}
    opened(open_folder(target), tmp_path / "run", sources=before)
    opened(open_folder(target), tmp_path / "run", sources=before, resume=True)
    now, expected = open_folder(source), ""
    if what == "mask":
        Image.fromarray(np.zeros((48, 64), np.uint8)).save(source / "masks" / "picture_03.png")
        expected = r"in the source data the masks of 1 image changed \(first: picture_03\)"
    if what == "image":
        Image.fromarray(np.zeros((48, 64, 3), np.uint8)).save(source / "images" / "picture_03.png")
        expected = "sources: source = "
    if what == "class":
        (source / "classes.txt").write_text("ground\ndisc\nbox\n")
        now, expected = open_folder(source), "class 2 was 'square' and is 'box'"
    if what == "split":
        now, expected = now.split("train"), "in the source data the masks of 3 images are gone"
    sources = {"source": Source(now)}
    method: Any = TwoDomains
    if what == "gone":
        sources, method, expected = {}, Optional, "sources: source = "
        opened(open_folder(target), tmp_path / "other", method, sources=before)
        with pytest.raises(MaskwrightError, match=expected):
            opened(open_folder(target), tmp_path / "other", method, sources=sources, resume=True)
        return
    with pytest.raises(MaskwrightError, match=expected):
        opened(open_folder(target), tmp_path / "run", method, sources=sources, resume=True)


class Optional(TwoDomains):
    name: ClassVar[str] = "optional"
    needs: ClassVar[frozenset[str]] = frozenset()
    streams: ClassVar[dict[str, StreamNeed]] = {"source": DayAndNight.streams["dusk"]}


class Killed(BaseException):
    """What no handler expects."""


@pytest.mark.parametrize("at", [0, 3, 5])
def test_a_killed_and_resumed_run_counts_the_same_labels_and_ends_in_the_same_weights(
    target, source, tmp_path, monkeypatch, at
):
    whole = run(two(target, source, tmp_path / "whole")).ledgers

    losses = TwoDomainsTraining.losses

    def killed(self, batch, step):
        if step == at:
            raise Killed
        return losses(self, batch, step)

    with monkeypatch.context() as patch:
        patch.setattr(TwoDomainsTraining, "losses", killed)
        patch.setattr(Ledgers, "save", lambda *_: None)  # a kill leaves no time for it
        with pytest.raises(Killed):
            run(two(target, source, tmp_path / "killed"))
    assert not (tmp_path / "killed" / "ledger.json").exists()
    resumed = run(two(target, source, tmp_path / "killed", resume=True)).ledgers
    assert resumed.state_dict() == whole.state_dict()
    assert resumed.by_stream()["source"]["train"]["masks"] == 6
    a, b = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "killed"))
    assert a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)
    first, second = record_of(tmp_path / "whole"), record_of(tmp_path / "killed")
    for key in ("labels_read", "labels_read_by_stream", "sources", "data"):
        assert first[key] == second[key]
