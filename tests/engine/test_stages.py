from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from tests.engine.toys import PlainFabric, Toy

from maskwright.data.folders.folder import open_folder
from maskwright.data.masking.classes import ClassTable
from maskwright.engine.context import Context
from maskwright.engine.contract import Method, Stage
from maskwright.engine.progress import Progress
from maskwright.engine.records import LEDGER, RunFolder
from maskwright.engine.resuming import DONE
from maskwright.engine.stages import run_stages
from maskwright.errors import MaskwrightError


class Failed(Exception):
    pass


class Scripted(Method):
    """Stages that say when they run, read a mask each, and fail where asked."""

    name = "scripted"

    def __init__(self, context: Context, fails: str = "") -> None:
        super().__init__(None, context)
        self.fails, self.ran = fails, []

    def stages(self) -> list[Stage]:
        return [self.stage(i, n) for i, n in enumerate(("prepare", "distill", "cluster"))]

    def stage(self, i: int, name: str) -> Stage:
        def run(folder: Path) -> None:
            self.ran.append(name)
            self.context.data.mask(i)
            self.context.run.log(name, 0, {"loss": float(i)})
            if name == self.fails:
                raise Failed
            (folder / "artefact").write_text(name)

        return Stage(name, "fit", run, f"does {name}")

    def segmenter(self):
        raise NotImplementedError


def context(data: Path, out: Path, resume: bool = False, **options) -> Context:
    images = open_folder(data)
    return Context(
        data=images, table=ClassTable.numbered(3), seed=0, steps=None, fabric=PlainFabric(),
        run=RunFolder.start(out, {"seed": 0}, resume=resume), cache=None, backbone=None,
        progress=Progress(quiet=True), **options,
    )  # fmt: skip


def test_one_value_a_channel_is_one_line(tiny_folder, tmp_path):
    method = Scripted(context(tiny_folder, tmp_path / "run"))
    norm = torch.nn.BatchNorm2d(2)
    method.stages = lambda: [Stage("train", "train", lambda folder: norm(torch.zeros(1, 2, 1, 1)), "normalises")]
    with pytest.raises(MaskwrightError, match=r"stage train leaves a batch norm one value a channel.*larger batch or"):
        run_stages(method, method.context)


def test_all_stages_in_order(tiny_folder, tmp_path):
    given = context(tiny_folder, tmp_path / "run")
    method = Scripted(given)
    run_stages(method, given)
    assert method.ran == ["prepare", "distill", "cluster"]
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert [s["name"] for s in record["stages"]] == method.ran
    assert record["labels_read"]["train"] == {"masks": 3, "tags": 0, "captions": 0}
    for stage in record["stages"]:
        assert json.loads((tmp_path / "run" / stage["name"] / DONE).read_text()).items() > stage.items()
        assert stage["kind"] == "fit" and stage["says"] == f"does {stage['name']}" and stage["seconds"] >= 0


def test_a_failing_stage_is_not_done_and_the_rest_is_kept(tiny_folder, tmp_path):
    out = tmp_path / "run"
    first = context(tiny_folder, out)
    with pytest.raises(Failed):
        run_stages(Scripted(first, fails="distill"), first)
    assert (out / "prepare" / DONE).exists() and not (out / "distill" / DONE).exists()
    assert not (out / "cluster").exists()

    second = context(tiny_folder, out, resume=True)
    assert second.data.ledger.counts()["train"]["masks"] == 0
    method = Scripted(second)
    run_stages(method, second)
    assert method.ran == ["distill", "cluster"]
    record = json.loads((out / "run.json").read_text())
    assert [s["name"] for s in record["stages"]] == ["prepare", "distill", "cluster"]
    assert record["labels_read"]["train"]["masks"] == 3, "what the first part read still counts"
    assert [m["stage"] for m in second.run.metrics()] == ["prepare", "distill", "cluster"], "no line twice"

    third = context(tiny_folder, out, resume=True)
    method = Scripted(third)
    run_stages(method, third)
    assert method.ran == [] and third.data.ledger.counts() == record["labels_read"]


def test_what_a_failed_stage_read_is_remembered(tiny_folder, tmp_path):
    out = tmp_path / "run"
    first = context(tiny_folder, out)
    with pytest.raises(Failed):
        run_stages(Scripted(first, fails="prepare"), first)
    assert json.loads((out / LEDGER).read_text())["train"]["masks"] == ["picture_00"]
    second = context(tiny_folder, out, resume=True)
    run_stages(NoStages(None, second), second)
    assert json.loads((out / "run.json").read_text())["labels_read"]["train"]["masks"] == 1


class NoStages(Method):
    name = "none"

    def stages(self) -> list[Stage]:
        return []

    def segmenter(self):
        raise NotImplementedError


def test_labels_of_the_source_count(tiny_folder, tmp_path):
    given = context(tiny_folder, tmp_path / "run", sources={"source": open_folder(tiny_folder)})

    class Reads(NoStages):
        def stages(self) -> list[Stage]:
            def run(folder: Path) -> None:
                self.context.data.tags(0)
                for i in (0, 1):
                    self.context.sources["source"].mask(i)

            return [Stage("read", "fit", run, "reads")]

    run_stages(Reads(None, given), given)
    assert json.loads((tmp_path / "run" / "run.json").read_text())["labels_read"]["train"] == {
        "masks": 2, "tags": 1, "captions": 0,
    }  # fmt: skip


def test_what_a_killed_training_read_comes_back_with_its_checkpoint(tiny_folder, tmp_path):
    """A kill leaves no time to save the ledger: the checkpoint holds it."""

    class Killed(BaseException):
        pass

    def reads(ledger_of: Context, last: int):
        def hook(place: str, step: int) -> None:
            if place == "batch":
                ledger_of.data.mask(step)
            if (place, step) == ("losses", last):
                raise Killed

        return hook

    def fit(given: Context, last: int) -> None:
        toy = Toy(7, hook=reads(given, last))
        given.fit(toy, "toy", given.run.stage_folder("toy"), 7, checkpoint_every=2)

    first = context(tiny_folder, tmp_path / "run")
    with pytest.raises(Killed):
        fit(first, 4)
    second = context(tiny_folder, tmp_path / "run", resume=True)
    fit(second, -1)
    assert second.data.ledger.names("train", "masks") == [f"picture_{i:02d}" for i in range(7)]


def test_notes_are_kept_once(tiny_folder, tmp_path):
    given = context(tiny_folder, tmp_path / "run")
    for sentence in ("a", "b", "a"):
        given.note(sentence)
    assert json.loads((tmp_path / "run" / "run.json").read_text())["notes"] == ["a", "b"]
    assert given.classes == 3 and given.device.type == "cpu"
