"""Run files and bundles that are damaged or made to hurt: one line, or something sound; never a traceback.

Structure is kept and values are swapped for others, with fitting checksums, as a person would who means harm; bytes are
changed as a bad disk would.
"""

from __future__ import annotations

import copy
import json
import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tests.engine.test_damage import finished, flipped, kmeans  # noqa: F401 - the fixture
from tests.engine.test_records import RECORD_OF

from maskwright.app.report import write_report
from maskwright.data.masking.classes import ClassTable
from maskwright.data.training.tag_targets import TagTargets
from maskwright.data.trust.artefacts import write_record
from maskwright.data.trust.identity import LabelIdentity
from maskwright.data.trust.ledger import Ledger
from maskwright.engine.records import RunFolder
from maskwright.errors import MaskwrightError
from maskwright.evaluate.distance import EmbeddingBank
from maskwright.evaluate.luss import LussMatching
from maskwright.evaluate.scores import Scores
from maskwright.models.backbones.build import build_backbone
from maskwright.models.bundle import load_bundle, save_bundle
from maskwright.models.parts.encoder import BackboneEncoder
from maskwright.models.parts.heads import CosineClassifier, LinearClassifier, Sequential
from maskwright.models.preprocess import Preprocess
from maskwright.models.provenance import Provenance
from maskwright.models.segmenter import Segmenter
from maskwright.recipes.tags.pipeline import read_threshold
from maskwright.recipes.training.norm_statistics import retake_as_recorded

HUGE = "9" * 400
STRANGE: list[Any] = [
    None, True, -1, 0, 1, 2**63, 10**19, 1e308, "", "x" * 5000, "../../etc", "\ud800", [], [[]], [None], {}, {"a": []},
    [[[[[]]]]], {"": {"": {"": {}}}}, 100_000, 1.5, "null",
]  # fmt: skip


def places(value: Any, at: tuple = ()) -> Iterator[tuple]:
    yield at
    for key, inner in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
        yield from places(inner, (*at, key))


def mutated(value: Any, draw: random.Random) -> Any:
    """The value with something strange in one place, or one place gone."""
    value = copy.deepcopy(value)
    at = draw.choice([p for p in places(value) if p])
    inner = value
    for key in at[:-1]:
        inner = inner[key]
    if draw.random() < 0.15:
        del inner[at[-1]]
    else:
        inner[at[-1]] = copy.deepcopy(draw.choice(STRANGE))
    return value


def only_told(read: Callable[[], object]) -> bool:
    """Whether it was refused; anything but one line is an error of the test."""
    try:
        read()
    except MaskwrightError as error:
        assert "\n" not in str(error) and len(str(error)) < 20_000
        return True
    return False


LABELS = LabelIdentity({"masks": {"a": "0" * 16}, "tags": {"a": "1" * 16}}, ("x", "y"), "ab")
RUN = json.loads(json.dumps(RECORD_OF)) | {
    "labels_read": {"train": {"masks": 3}},
    "notes": ["a"],
    "stages": [{"name": "a", "kind": "fit", "says": "x", "seconds": 1.0}],
    "backbone": {"architecture": "a", "labels_seen": "none", "input_size": [2, 2]},
    "classes": [{"name": "a", "color": [1, 2, 3], "share": 0.5}],
    "data": {"fingerprint": "f00", "root": "photos", "skipped": [["a", "b"]], "images": 3, "labels": LABELS.summary()},
    "versions": {"maskwright": "1"},
}
ASKED = RECORD_OF | {"data": {"fingerprint": "f00", "labels": LABELS.summary()}}
SCORES = {
    "protocol": "direct", "matching": "none", "miou": 0.5, "pixel_accuracy": 0.5, "mean_accuracy": None, "images": 1,
    "per_class": [{"name": "a", "iou": 0.5}], "mapping": {"0": 1}, "predicted": 2, "classes": 2, "extra": {"x": None},
}  # fmt: skip


class Nothing:
    encoder = preprocess = None


def as_records(folder: Path) -> dict[str, tuple[dict[str, Any], Callable[[Path], object]]]:
    """{file: (a sound record, what reads it)}."""
    resume = lambda _: RunFolder.start(folder, ASKED, resume=True, labels=LABELS).metrics()  # noqa: E731
    report = lambda _: write_report(folder)  # noqa: E731
    retake = lambda _: retake_as_recorded(Nothing(), folder, [], torch.device("cpu"))  # noqa: E731
    ledger = Ledger()
    ledger.note("masks", "a")
    targets = {"ids": [1, 2], "names": ["a", "b"], "background": 0, "tagged": {"p": [0, 1]}, "source": "tags"}
    return {
        "run.json resumed": (RUN, resume),
        "run.json reported": (RUN, report),
        "run.json retaken": (RUN | {"config": {"norm_images": 0, "freeze_norm": False}}, retake),
        "labels.json": (LABELS.to_json(), resume),
        "scores.json": (SCORES, report),
        "tags.json": (targets, lambda path: TagTargets.load(path.parent).counts()),
        "threshold.json": ({"threshold": 0.5, "why": "x"}, lambda path: read_threshold(path.parent)),
        "matching.json": (
            {"cost": "miou", "classes": 2, "images": 3, "mapping": {"0": 0, "1": 1}},
            LussMatching.load,
        ),
        "a.json scores": (SCORES, lambda path: Scores.from_json(path.read_text())),
        "a.json provenance": (Provenance("a").to_json(), lambda path: Provenance.from_json(path.read_text())),
        "a.json preprocess": (
            Preprocess(short_side=32).to_json(),
            lambda path: Preprocess.from_json(path.read_text()).target_size((30, 40)),
        ),
    }


@pytest.mark.parametrize("what", list(as_records(Path())))
def test_records(tmp_path, what):
    record, read = as_records(tmp_path)[what]
    path, draw, refused = tmp_path / what.split()[0], random.Random(what), 0
    write_record(tmp_path / "run.json", RUN)
    (tmp_path / "metrics.jsonl").write_text(
        '{"stage": "a", "step": 0}\n{"stage": [], "step": {}}\n' + "[" * 9999 + "\n"
    )
    write = write_record if "a.json" not in what else lambda path, value: path.write_text(json.dumps(value))
    write(path, record)
    read(path)
    for k in range(20):
        if k < 15:
            write(path, mutated(record, draw))
        else:
            text = json.dumps(record)
            path.write_text(
                draw.choice([text[: draw.randrange(len(text))], text.replace("1", HUGE), "[" * 99_999, "1", ""])
            )
        refused += only_told(lambda: read(path))
    for _ in flipped(path, 5, seed=1) if "a.json" not in what and path.stat().st_size else ():
        only_told(lambda: read(path))
    assert refused >= (0 if what in ("scores.json",) else 3)


@pytest.mark.parametrize(
    "state",
    [
        [], {"train": []}, {"train": {"masks": "a"}}, {"train": {"masks": [[]]}}, {"x": {}}, {"train": {"select": []}},
        {"masks": {"train": ["a"]}}, {"train": {"masks": [1]}},
    ],
)  # fmt: skip
def test_states_of_no_ledger(state):
    ledger = Ledger()
    ledger.note("tags", "a")
    before = ledger.state_dict()
    for read in (ledger.merge, ledger.load_state_dict):
        with pytest.raises(ValueError, match="no state of a ledger"):
            read(state)
    assert ledger.state_dict() == before


@pytest.fixture(scope="module")
def bundle(tmp_path_factory) -> Path:
    vit = build_backbone("test_vit", "random")
    table = ClassTable(("a", "b", "c"), np.arange(9, dtype=np.uint8).reshape(-1, 3))
    model = Segmenter(
        BackboneEncoder(vit, -1), LinearClassifier(64, 8), CosineClassifier(torch.randn(3, 8)), table,
        Preprocess(short_side=32, multiple_of=16), vit.provenance, "x",
    )  # fmt: skip
    path = tmp_path_factory.mktemp("bundle") / "model.safetensors"
    return save_bundle(path, model, {"refine": "none", "image_size": [32, 40], "reading": {"labels": "auto"}})


def described(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    with safe_open(path, "pt") as file:
        metadata = dict(file.metadata())
    del metadata["checksum"]
    return load_file(path), metadata


def predicted(path: Path) -> None:
    model = load_bundle(path)
    with torch.inference_mode():
        h, w = model.preprocess.target_size((32, 32))
        assert model(torch.zeros(1, 3, h, w)).shape[1] == len(model.classes)


def test_bundles(bundle, tmp_path):
    tensors, metadata = described(bundle)
    path, draw, refused = tmp_path / "m.safetensors", random.Random(0), 0
    predicted(bundle)
    for _ in range(60):
        name = draw.choice([k for k, v in metadata.items() if v.startswith("{")])
        value = mutated({"x": json.loads(metadata[name])}, draw).get("x", [])
        save_file(tensors, path, metadata | {name: json.dumps(value)})
        refused += only_told(lambda: predicted(path))
    assert refused > 30


@pytest.mark.parametrize(
    "metadata, told",
    [
        ({"shared": '{"x": []}'}, "shared.x is a list"),
        ({"preprocess": '{"mean": [0, 0, 0], "std": [1, 1, 1], "size": [100000, 100000]}'}, "4096"),
        ({"preprocess": '{"mean": [0, 0, 0], "std": [1, 1, 1], "short_side": 100000}'}, "4096"),
        ({"preprocess": '{"mean": [0, 0, 0], "std": [1, 1, 1], "multiple_of": 1000000}'}, "1024"),
        ({"preprocess": '{"mean": [0, 0, 0], "std": [1, 1, 1], "long_side": ' + HUGE + "}"}, "400 digits"),
        ({"extra": '{"image_size": "x"}'}, "extra.image_size is text"),
        ({"extra": '{"refine": []}'}, "extra.refine is a list"),
        ({"extra": "[" * 50_000}, "nested"),
        ({"classes": json.dumps({"names": ["a", "b", "c" * 1001], "colors": [[0, 0, 0]] * 3})}, "class table"),
        ({"classes": json.dumps({"names": ["a"] * 4, "colors": [[0, 0, 0]] * 4})}, "3 classes and the table 4"),
    ],
)
def test_descriptions_that_hurt(bundle, tmp_path, metadata, told):
    tensors, known = described(bundle)
    save_file(tensors, tmp_path / "m.safetensors", known | metadata)
    with pytest.raises(MaskwrightError, match=told) as error:
        load_bundle(tmp_path / "m.safetensors")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("width, wrong", [(7, True), (8, False)])
def test_parts_whose_widths_do_not_fit(tmp_path, width, wrong):
    vit = build_backbone("test_vit", "random")
    model = Segmenter(
        BackboneEncoder(vit, -1), Sequential(LinearClassifier(64, 8)), LinearClassifier(width, 3),
        ClassTable.numbered(3), Preprocess(multiple_of=16), vit.provenance,
    )  # fmt: skip
    save_bundle(tmp_path / "m.safetensors", model)
    if wrong:
        with pytest.raises(MaskwrightError, match=r"its parts do not fit each other \(.*copy or train it again"):
            load_bundle(tmp_path / "m.safetensors")
    else:
        predicted(tmp_path / "m.safetensors")


def test_banks(tmp_path):
    bank, path = EmbeddingBank(1), tmp_path / "bank.npz"
    bank.add(torch.randn(4, 3, 3), np.arange(9, dtype=np.uint8).reshape(3, 3))
    bank.save(path)
    for _ in flipped(path, 60):
        only_told(lambda: EmbeddingBank.load(path))
    for arrays in ({"upsample": np.array(10**9)}, {"labels": np.array([-1] * 9)}, {"labels": np.zeros(3, int)},
                   {"features": np.zeros((9, 4), complex)}, {"features": np.full((9, 4), np.nan)}):  # fmt: skip
        sound = {"features": bank.features, "labels": bank.labels, "upsample": np.array(1)}
        np.savez(path, **(sound | arrays))
        assert only_told(lambda: EmbeddingBank.load(path))


def test_files_of_a_finished_run(finished, tmp_path):  # noqa: F811
    data, done = finished
    run, draw = tmp_path / "run", random.Random(3)
    for file in ("ledger.json", "cluster/stage.json", "cluster/clusters.safetensors"):
        for content in (b"", b"[]", b"{}", (done / file).read_bytes()[: draw.randrange(1, 90)]):
            shutil.rmtree(run, ignore_errors=True)
            shutil.copytree(done, run)
            (run / file).write_bytes(content)
            only_told(lambda: kmeans(data, run, resume=True))
