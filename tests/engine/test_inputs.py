"""Second networks and proposals as inputs of a run: named, in its record and identity, with the labels they saw."""

from __future__ import annotations

import contextlib
import json
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
import yaml
from safetensors.torch import save_file
from tests.conftest import write_tiny_folder

from maskwright import api, cli
from maskwright.data.folders.folder import open_folder
from maskwright.data.training.labels import LabelMap
from maskwright.data.training.proposals import Proposals
from maskwright.engine.contract import Stage
from maskwright.engine.inputs import check_inputs, inputs_as_written, named_inputs, open_inputs
from maskwright.engine.needs import InputNeed
from maskwright.engine.progress import Progress
from maskwright.errors import MaskwrightError
from maskwright.methods import TABLE
from maskwright.methods.unsupervised.kmeans import KMeans
from maskwright.models.backbones.build import build_backbone
from maskwright.models.backbones.dense import Backbone
from maskwright.models.segmenter import Segmenter
from maskwright.recipes.proposals.making import propose

BACKBONE = "mobilenetv3_small_050"
USUAL: dict[str, Any] = {"backbone": BACKBONE, "weights": "random", "device": "cpu", "report": False}
SMALL = {"short_side": 64}


class Guided(KMeans):
    """Clusters, after a look at its inputs; its first stage leaves proposals."""

    name: ClassVar[str] = "guided"
    inputs: ClassVar[Mapping[str, InputNeed]] = {
        "teacher": InputNeed(says="a network that knows better", kind="network"),
        "regions": InputNeed(says="superpixels", kind="proposals", required=False),
    }
    seen: ClassVar[list[tuple[str, object]]] = []

    def stages(self) -> list[Stage]:
        """Looks, then clusters."""
        return [Stage("look", "label", self.look, "a look at the inputs"), *super().stages()]

    def look(self, folder: Path) -> None:
        """Each photograph is one region."""
        type(self).seen += [(name, self.context.input(name)) for name in self.context.inputs]
        sizes = [self.context.data.size(i) for i in range(len(self.context.data))]
        propose(self.context, folder, "regions", "a toy", lambda i: LabelMap.from_mask(torch.zeros(sizes[i]).long()))


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    """A data set, and a run on its masks that is an input of others."""
    root = tmp_path_factory.mktemp("inputs")
    data = write_tiny_folder(root / "tiny")
    api.train(
        data, "supervised", out=root / "teacher", split="train", steps=2, progress=Progress(quiet=True),
        settings={"crop": 32, "batch": 2, "precision": "fp32"}, **USUAL,
    )  # fmt: skip
    return root


@pytest.fixture(autouse=True)
def guided(monkeypatch, tmp_path_factory):
    monkeypatch.setenv("MASKWRIGHT_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))
    monkeypatch.setitem(TABLE, "guided", "tests.engine.test_inputs:Guided")


def store(folder: Path, names: list[str], value: int = 0) -> Path:
    made = Proposals.begin(folder, "regions", "SLIC", "none")
    for name in names:
        made.write(name, LabelMap.from_mask(torch.full((48, 64), value)))
    return folder


def train(root: Path, out: Path, inputs: Any, **options: Any) -> Any:
    return api.train(
        root / "tiny", "guided", out=out, inputs=inputs, classes=3, progress=Progress(quiet=True), **SMALL, **USUAL,
        **options,
    )  # fmt: skip


def record_of(out: Path) -> dict[str, Any]:
    return json.loads((out / "run.json").read_text())


# ---------------------------------------------------------------------- as written


def test_ways_to_give_inputs():
    expected = {"teacher": "runs/a=b", "regions": "store"}
    for given in (["teacher=runs/a=b", "regions=store"], {"teacher": "runs/a=b", "regions": Path("store")}):
        assert named_inputs(given) == expected
    assert named_inputs(None) == {} == named_inputs([]) and named_inputs("a=b") == {"a": "b"}


@pytest.mark.parametrize("text", ["teacher", "=runs/a", "teacher=", ""])
def test_half_an_input(text):
    with pytest.raises(MaskwrightError, match="expected NAME=PLACE"):
        named_inputs([text])


def test_two_of_one_name():
    with pytest.raises(MaskwrightError, match="two inputs called a"):
        named_inputs(["a=b", "a=c"])


def test_paths_are_written_so_that_they_hold_from_anywhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("run", "w.pth", "odd@name"):
        Path(name).touch()
    given = {"a": "run", "b": "dinov2_small", "c": "dinov2_small@w.pth", "d": "resnet50@random", "e": "odd@name"}
    assert inputs_as_written(given) == [
        f"a={tmp_path}/run", "b=dinov2_small", f"c=dinov2_small@{tmp_path}/w.pth", "d=resnet50@random",
        f"e={tmp_path}/odd@name",
    ]  # fmt: skip


def test_names_that_a_method_takes():
    check_inputs(Guided, Guided.inputs, {"teacher": "a"})
    with pytest.raises(MaskwrightError, match="guided needs an input called teacher: a network that") as raised:
        check_inputs(Guided, Guided.inputs, {"regions": "a"})
    assert raised.value.repair == "add --input teacher=PLACE" and "a finished run" in raised.value.expected
    with pytest.raises(MaskwrightError, match="no use for; expected inputs called teacher, regions") as raised:
        check_inputs(Guided, Guided.inputs, {"techer": "a"})
    assert raised.value.repair == "did you mean 'teacher'?"
    with pytest.raises(MaskwrightError, match=r"kmeans and the input x .a., which it has no use for; expected no --in"):
        check_inputs(KMeans, KMeans.inputs, {"x": "a"})


def test_the_page_of_a_method_names_them(monkeypatch, capfd):
    monkeypatch.setattr(sys, "argv", ["maskwright", "methods", "guided"])
    with contextlib.suppress(SystemExit):
        cli.main()
    told = capfd.readouterr().out
    assert "--input teacher=PLACE: a network that knows better\n" in told
    assert "--input regions=PLACE: superpixels (may be left out)\n" in told


# ---------------------------------------------------------------------- opened


@pytest.mark.parametrize("place", ["teacher", "teacher/model.safetensors"])
def test_a_run_and_its_model_are_a_segmenter(shared, place):
    one = open_inputs(Guided.inputs, {"teacher": str(shared / place)}, 0)["teacher"]
    assert isinstance(one.thing, Segmenter) and not one.thing.training
    assert not any(p.requires_grad for p in one.thing.parameters())
    assert one.place == str(shared / "teacher" / "model.safetensors") and len(one.hash) == 64
    assert one.labels_read["train"]["masks"] == 4 and one.labels_seen == "none", "4 masks on random weights"
    assert one.says().endswith("(labels seen: none; its own run read 4 masks).")


def test_a_model_tells_what_its_run_read_wherever_it_goes(shared, tmp_path):
    shutil.copy(shared / "teacher" / "model.safetensors", tmp_path / "moved.safetensors")
    one = open_inputs(Guided.inputs, {"teacher": str(tmp_path / "moved.safetensors")}, 0)["teacher"]
    assert one.labels_read["train"]["masks"] == 4


def test_a_backbone_by_its_name(shared):
    found = [open_inputs(Guided.inputs, {"teacher": f"{BACKBONE}@random"}, seed)["teacher"] for seed in (0, 0, 1)]
    assert isinstance(found[0].thing, Backbone) and found[0].labels_read is None
    assert found[0].hash == found[1].hash != found[2].hash, "random weights are a function of the seed"


def test_a_backbone_with_a_file_of_weights(tmp_path):
    """A file's ending is not taken for the ending of a model's file."""
    made = build_backbone(BACKBONE, "random")
    save_file({k: v.contiguous() for k, v in made.model.state_dict().items()}, tmp_path / "w.safetensors")
    one = open_inputs(Guided.inputs, {"teacher": f"{BACKBONE}@{tmp_path / 'w.safetensors'}"}, 0)["teacher"]
    assert isinstance(one.thing, Backbone) and one.hash == made.key


@pytest.mark.parametrize(
    ("place", "told"),
    [
        ("nowhere/model.safetensors", "does not exist"),
        ("tiny", "holds no model.safetensors"),
        ("mobilenetv3_smal_050", r"unknown backbone .* did you mean"),
    ],
)
def test_no_network(shared, monkeypatch, place, told):
    monkeypatch.chdir(shared)
    with pytest.raises(MaskwrightError, match=rf"--input teacher.*{told}") as raised:
        open_inputs(Guided.inputs, {"teacher": place}, 0)
    assert "a finished run, or the name of a backbone" in raised.value.expected


def test_a_run_that_is_not_finished(shared, tmp_path):
    shutil.copytree(shared / "teacher", tmp_path / "teacher")
    (tmp_path / "teacher" / "model.safetensors").unlink()
    with pytest.raises(MaskwrightError, match="holds a run without a model: it is finished"):
        open_inputs(Guided.inputs, {"teacher": str(tmp_path / "teacher")}, 0)


def test_no_proposals(shared, tmp_path):
    (tmp_path / "empty").mkdir()
    cases = {"nowhere": "is not there", "empty": "holds no PNG files", str(shared / "teacher"): "it holds none of a"}
    for place, told in cases.items():
        with pytest.raises(MaskwrightError, match=f"--input regions: .*{told}"):
            open_inputs(Guided.inputs, {"regions": str(tmp_path / place)}, 0)


# ---------------------------------------------------------------------- a run


def test_a_run_with_inputs(shared, tmp_path, capsys):
    names = open_folder(shared / "tiny").names
    places = {"teacher": shared / "teacher", "regions": store(tmp_path / "store", names)}
    Guided.seen.clear()
    model = train(shared, tmp_path / "run", places)
    (first, teacher), (second, regions) = Guided.seen
    assert (first, second) == ("teacher", "regions") and isinstance(teacher, Segmenter)
    assert isinstance(regions, Proposals) and regions.read(names[0]).size == (48, 64)
    record = record_of(tmp_path / "run")
    assert record["inputs"]["teacher"]["labels_read"]["train"]["masks"] == 4
    assert record["inputs"]["regions"] == {
        "kind": "proposals", "place": str(tmp_path / "store"), "hash": regions.fingerprint(), "labels_seen": "none",
        "labels_read": None,
    }  # fmt: skip
    assert not any(record["labels_read"]["train"].values()), "the run itself read none"
    assert any(note.startswith("Input teacher: ") for note in record["notes"])
    assert model.extra["inputs"]["teacher"]["labels_read"]["train"]["masks"] == 4

    # What an input of an input saw is told too; its proposals are found in its one stage that made some.
    inner = open_inputs(Guided.inputs, {"teacher": str(tmp_path / "run"), "regions": str(tmp_path / "run")}, 0)
    for one in inner.values():
        assert one.inputs["teacher"]["labels_read"]["train"]["masks"] == 4
    assert inner["regions"].place == str(tmp_path / "run" / "look" / "proposals")
    by_folder = open_inputs(Guided.inputs, {"regions": str(tmp_path / "run" / "look" / "proposals")}, 0)["regions"]
    assert by_folder == inner["regions"] or by_folder.record() == inner["regions"].record()
    (tmp_path / "run" / "look" / "stage.json").unlink()
    with pytest.raises(MaskwrightError, match="is not finished"):
        open_inputs(Guided.inputs, {"regions": by_folder.place}, 0)


def test_a_changed_input_is_refused(shared, tmp_path):
    names = open_folder(shared / "tiny").names
    random = f"{BACKBONE}@random"
    places = {"teacher": random, "regions": store(tmp_path / "store", names)}
    train(shared, tmp_path / "run", places)
    shutil.copytree(tmp_path / "store", tmp_path / "moved")
    train(shared, tmp_path / "run", {"teacher": random, "regions": tmp_path / "moved"}, resume=True)
    assert record_of(tmp_path / "run")["inputs"]["regions"]["place"] == str(tmp_path / "moved")
    store(tmp_path / "moved", names[3:4], value=1)
    for other, named in (
        ({"teacher": random, "regions": tmp_path / "moved"}, "input regions .*moved"),
        ({"teacher": shared / "teacher", "regions": tmp_path / "store"}, "input teacher .*@random"),
        ({"teacher": random}, r"input regions .*; now none\)"),
    ):
        with pytest.raises(MaskwrightError, match=f"was made with another {named}") as raised:
            train(shared, tmp_path / "run", other, resume=True)
        assert "\n" not in str(raised.value) and raised.value.repair.startswith("give it as it was")


def test_from_the_command_line_and_its_config(shared, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(shared)

    def run(*words: object) -> int:
        monkeypatch.setattr(sys, "argv", ["maskwright", "train", *map(str, words)])
        try:
            cli.main()
        except SystemExit as stop:
            return int(stop.code or 0)
        return 0

    words = ["tiny", "--method", "guided", "--classes", 3, "--backbone", BACKBONE, "--weights", "random", "--set"]
    words += ["short_side=64", "--device", "cpu"]
    assert run(*words, "--input", "teacher=teacher", "--out", tmp_path / "a") == 0
    page = (tmp_path / "a" / "report.html").read_text()
    assert "its own run read 4 masks" in page
    assert yaml.safe_load((tmp_path / "a" / "config.yaml").read_text())["input"] == [f"teacher={shared}/teacher"]
    monkeypatch.chdir(tmp_path)
    assert run("--config", tmp_path / "a" / "config.yaml", "--out", tmp_path / "b") == 0
    assert record_of(tmp_path / "b")["inputs"] == record_of(tmp_path / "a")["inputs"]
    text = yaml.safe_load((tmp_path / "a" / "config.yaml").read_text()) | {"input": {"teacher": f"{BACKBONE}@random"}}
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(text))
    assert run("--config", tmp_path / "c.yaml", "--out", tmp_path / "c") == 0
    assert record_of(tmp_path / "c")["inputs"]["teacher"]["place"] == f"{BACKBONE}@random"
    capfd.readouterr()
    monkeypatch.chdir(shared)
    assert run(*words, "--out", tmp_path / "d") == 2
    assert run(*words, "--input", "techer=teacher", "--out", tmp_path / "d") == 2
    lines = [line for line in capfd.readouterr().err.splitlines() if "guided" in line]
    assert len(lines) == 2 and "needs an input called teacher" in lines[0] and "did you mean 'teacher'?" in lines[1]
