"""What every method must do, whichever it is: the suite runs over the whole table and knows no method by name."""

from __future__ import annotations

import dataclasses
import functools
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tests.conftest import write_tiny_folder
from tests.models.towers.tiny import register

import maskwright as mw
from maskwright.engine import loop, resuming
from maskwright.engine.config import configure, describe, idle_options
from maskwright.engine.needs import StreamNeed
from maskwright.engine.progress import Progress
from maskwright.engine.resuming import DONE
from maskwright.errors import MaskwrightError
from maskwright.methods import TABLE
from maskwright.predict.model import Model

PARTS = {
    "crops.size": 32, "crops.batch": 4, "precision": "fp32", "ramp.start": 0.0, "features.short_side": 64,
    "clusters.restarts": 2, "head.batch": 4, "head.hidden": 16, "classifier.size": 32, "classifier.batch": 4,
    "maps.scales": (0.5, 1.0), "student.crops.size": 32, "student.crops.batch": 4, "student.precision": "fp32",
}  # fmt: skip
"""What makes the parts of any method small, by the options' whole names; losses that set in later raise the total."""
OWN: dict[str, dict[str, object]] = {
    "deep_spectral": {"short_side": 64, "segments.count": 4},
    "stego": {"pairs.batch": 4, "iterate.keep": "last"},
    "primaps": {"em.batch": 4},
    "iic": {"heads.sub_heads": 2, "heads.turn": 2, "information.displacement": 1},
    "infoseg": {"vectors.dim": 16},
    "picie": {"rounds.rows": 64},
    "redo": {
        "networks.width": 2, "networks.judge_width": 8, "networks.mask_width": 8, "networks.mask_blocks": 1,
        "networks.noise": 4, "rates.generators": 2e-3, "rates.recovery": 2e-3, "restart.below": 0.5,
        "restart.every": 3, "restart.until": 0.5,
    },
    "slotcon": {"groups.hidden": 16, "groups.width": 8},
    "maskcontrast": {
        "objects.short_side": 64, "contrast.queue": 6, "contrast.momentum": 0.9, "contrast.temperature": 0.1,
    },
    "looking_beyond": {
        "labels.count": 6, "labels.superpixels": 20, "labels.side": 64, "contrast.hidden": 16, "contrast.width": 8,
        "contrast.anchors": 8, "optimizer.lr": 0.003,
    },
    "leopart": {
        "crops.local_size": 32, "head.hidden": 16, "head.width": 16, "head.prototypes": 4, "head.queue": 16,
        "cbfe.count": 8, "communities.count": 8, "communities.grid": 20,
    },
    "hsg": {
        "dim": 16, "levels.fine": 3, "levels.coarse": 2, "levels.inner": 16, "levels.start": 0.0, "segments.grid": 2,
        "readout.grid": 4,
    },
    "segsort": {"loss.memory": 20, "segments.grid": 2},
    "pass": {
        "crops.local_size": 32, "instance.hidden": 16, "instance.prototypes": 4, "labels.short_side": 64,
        "labels.restarts": 2,
    },
    "seam": {"er_ramp": 0.0},
    "toco": {"local.side": 16, "projector.hidden": 16, "branch.width": 32},
    "clip_es": {"classifier.long_side": 48, "names.prompts": "name", "seeds.sure": 0.5, "seeds.crf": False},
    "maskclip": {"words.short_side": 64, "words.prompts": "scene"},
    "clip_seg": {"words.short_side": 64, "words.prompts": "scene"},
    "reco": {
        "words.short_side": 64, "words.prompts": "photo", "archive.images": 2, "archive.side": 32, "context": "tree",
        "crf": False,
    },
    "groupvit": {"words.short_side": 64, "crops.scale_min": 0.5, "optimizer.lr": 2e-3},
    "dannet": {"static.classes": "ground,square", "light.width": 4, "d_width": 4},
    "st_plus_plus": {"scales": (0.5, 1.0)},
    "cbst": {"rounds": 1},
    "u2pl": {"representation": 32},
    "reco_semi": {"representation": 32, "queries": 64},
    "cyclegan": {"generators.width": 4, "generators.blocks": 1, "generators.side": 32, "generators.g_lr": 2e-3},
    "cycada": {
        "generators.width": 4, "generators.blocks": 1, "generators.side": 32, "generators.g_lr": 2e-3,
        "semantic.limit": 9.0, "align.gate": 0.0, "align.slower": 1.0, "align.share": 0.5,
    },
    "uda_sod": {"rounds": 1, "source_share": 0.25, "composites.count": 12, "crops.long_side": 48},
}  # fmt: skip
"""What makes methods small that have more than common parts."""
STEPS = 8
NAMES = sorted(TABLE)
WHOLE = {"kmeans", "stego", "maskclip", "supervised", "cam", "dacs"}
"""One method of each kind: a clustering, words, heads on frozen features, networks on masks, tags, two domains
with a teacher. The default run asks these everything. Of the others it leaves out what takes trainings of its own,
which `-m slow` asks them."""
KILLED = WHOLE | {"adv_semi", "cbst"}
"""And those that the default run stops at every checkpoint: players against each other, rounds of trainings."""
SIBLINGS = {"grad_cam", "grad_cam_pp", "cyclegan", "source_only"}
"""Methods that another of the table holds whole (`cam`, `cycada`, `dacs`), asked by `-m slow` alone."""


def names_but(asked: set[str]) -> list[Any]:
    """All methods; those that are not asked for are marked slow."""
    return [pytest.param(name, marks=[] if name in asked else pytest.mark.slow) for name in NAMES]


ALL, COSTLY, STOPPED = names_but(set(NAMES) - SIBLINGS), names_but(WHOLE), names_but(KILLED)
LONGEST = "空" * 82 + "photo"
assert len(LONGEST.encode()) + len(".png") == 255


def options_of(name: str) -> set[str]:
    """The options of a method by their whole names."""
    return {o["name"] for o in describe(mw.METHODS[name].Config)}


def settings_for(name: str, more: Mapping[str, object] | None = None) -> dict[str, object]:
    """Those of the parts that the method holds, its own, and more; a student's only where one is trained."""
    known, own = options_of(name), OWN.get(name, {}) | dict(more or {})
    idle = idle_options(configure(mw.METHODS[name].Config, own))
    return {k: v for k, v in PARTS.items() if k in known and k not in idle} | own


def classes_for(name: str) -> int:
    """Those of the pictures, or the two of methods that tell objects from background."""
    return 2 if mw.METHODS[name].classes_from == "objects" else 3


def backbone_for(name: str) -> str:
    """One with features worth clustering, or, for methods that train theirs, the smallest."""
    if mw.METHODS[name].backbones == "vit":
        return "test_vit"
    if mw.METHODS[name].backbones == "joint":
        return register()
    if mw.METHODS[name].backbones == "groups":
        return "groupvit:image=32/patch=8/width=24/heads=2/depths=2+1+1/groups=6+4/embed=16/hidden=32/words=64/layers=1"
    return "mobilenetv3_small_050" if "network.name" in options_of(name) else "tf_efficientnet_lite0"


def beside(name: str) -> dict[str, StreamNeed]:
    """What a method takes of other data sets, by their names, with its options as they are."""
    method = mw.METHODS[name]
    return method.terms(method.Config()).taken


def read_of(name: str) -> set[str]:
    """The kinds of labels that a method reads, in whichever data set they lie."""
    needs = set(mw.METHODS[name].needs) & {"masks", "tags", "captions"}
    return needs.union(*(need.labels for need in beside(name).values()))


def run(name: str, data: Path, out: Path, **options):
    """A small training; a method that takes other data sets gets one beside its own for each."""
    sources = {}
    for other in beside(name):
        sources[other] = data.parent / f"beside-{other}"
        if not sources[other].exists():
            write_tiny_folder(sources[other])
    defaults = {
        "source": {other: str(path) for other, path in sources.items()} or None,
        "classes": classes_for(name),
        "backbone": backbone_for(name),
        "weights": "random",
        "steps": STEPS,
        "device": "cpu",
        "settings": settings_for(name),
        "progress": Progress(quiet=True),
        "report": False,
    }
    return mw.train(data, name, out=out, **(defaults | options))


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory):
    patch = pytest.MonkeyPatch()
    patch.setenv("MASKWRIGHT_CACHE", str(tmp_path_factory.mktemp("cache")))
    yield
    patch.undo()


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """Ten pictures, one of which has the longest name that the system takes: 251 bytes and its suffix."""
    root = write_tiny_folder(tmp_path_factory.mktemp("data") / "tiny", count=10)
    for folder in ("images", "masks"):
        (root / folder / "picture_09.png").rename(root / folder / f"{LONGEST}.png")
    for file in ("tags.csv", "captions.csv", "splits/test.txt"):
        (root / file).write_text((root / file).read_text().replace("picture_09", LONGEST))
    return root


@pytest.fixture(scope="module")
def trained(tmp_path_factory, data):
    """The folder of one finished run a method, made when first asked for, and the model that training gave."""
    made: dict[str, tuple[Path, Model]] = {}

    def get(name: str) -> tuple[Path, Model]:
        if name not in made:
            folder = tmp_path_factory.mktemp("runs") / name
            made[name] = folder, run(name, data, folder, report=True)
        return made[name]

    return get


@pytest.fixture(scope="module")
def finished(trained):
    """The folder alone."""
    return lambda name: trained(name)[0]


@pytest.fixture(scope="module")
def loaded(finished):
    """The model that a finished run saved, loaded when first asked for."""
    return functools.cache(lambda name: mw.load(finished(name) / "model.safetensors"))


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def same(a: Path, b: Path) -> bool:
    x, y = tensors(a), tensors(b)
    return x.keys() == y.keys() and all(torch.equal(x[k], y[k]) for k in x)


@pytest.mark.parametrize("name", NAMES)
def test_identity(name):
    method = mw.METHODS[name]
    assert method.name == name
    assert method.title and method.venue and method.link.startswith("https://")
    assert method.summary.endswith(".") and 20 <= len(method.summary) <= 43, "one sentence"
    assert 3 <= sum(o["main"] for o in describe(method.Config)) <= 12, "a handful of options that a user should know"
    assert method.family in ("unsupervised", "semi", "weak", "adapt", "language", "supervised")
    assert method.needs <= {"masks", "tags", "captions", "names", "source"}
    assert all(f.kw_only for f in dataclasses.fields(method.Config))
    assert all(o["says"] for o in describe(method.Config)), "every option says its unit and reason"
    header = __import__(method.__module__, fromlist=["x"]).__doc__
    assert method.link in header and "Deviates" in header


@pytest.mark.parametrize("name", ALL)
def test_leaves_a_readable_run(name, finished):
    folder = finished(name)
    record = json.loads((folder / "run.json").read_text())
    assert record["status"] == "finished"
    assert record["method"]["name"] == name
    assert [s["name"] for s in record["stages"]]
    for stage in record["stages"]:
        assert stage["kind"] in ("train", "fit", "label")
        assert stage["seconds"] >= 0
        assert (folder / stage["name"] / DONE).exists()
        assert len(list((folder / stage["name"]).iterdir())) > 1, "a stage leaves an artefact"
    assert record["versions"]["torch"] and record["data"]["fingerprint"]
    assert record["backbone"]["labels_seen"]
    assert (folder / "report.html").stat().st_size > 1000


@pytest.mark.parametrize("name", ALL)
def test_ledger_holds_what_the_method_needs_and_nothing_else(name, finished):
    read = json.loads((finished(name) / "run.json").read_text())["labels_read"]
    for kind in ("masks", "tags", "captions"):
        count = read["train"].get(kind, 0)
        assert count > 0 if kind in read_of(name) else count == 0
    assert not any(read["select"].values())


@pytest.mark.parametrize("name", ALL)
def test_predicts_at_the_size_of_the_image(name, loaded):
    model = loaded(name)
    for size in ((48, 64), (33, 91), (1, 1)):
        image = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
        result = model.predict(image)
        assert result.mask.shape == size and result.mask.dtype == np.uint16
        assert result.mask.max() < len(model.classes)
        assert result.confidence.shape == size and result.confidence.dtype == np.float32
        assert result.confidence.min() >= 0 and result.confidence.max() <= 1


@pytest.mark.parametrize("name", COSTLY)
def test_same_seed_same_weights_other_seed_other_weights(name, finished, data, tmp_path):
    """Also with two threads that read ahead for one."""
    run(name, data, tmp_path / "again", workers=2)
    assert same(finished(name), tmp_path / "again")
    run(name, data, tmp_path / "other", seed=1)
    assert not same(finished(name), tmp_path / "other")


@pytest.mark.parametrize("name", ALL)
def test_saved_model_predicts_what_the_trained_one_did(name, trained, loaded, data):
    path = next((data / "images").iterdir())
    a, b = trained(name)[1].predict(path), loaded(name).predict(path)
    assert np.array_equal(a.mask, b.mask) and np.array_equal(a.confidence, b.confidence)


@pytest.mark.parametrize("name", STOPPED)
def test_interrupted_at_any_checkpoint_and_resumed_gives_the_same_weights(name, finished, data, tmp_path, monkeypatch):
    """Stopped right after each checkpoint of each training stage, and at the start of each stage; now and then reading
    ahead, now and then not, as the uninterrupted run did."""
    real_fit, real_save = loop.fit, resuming.save_checkpoint
    saved: list[int] = []

    def frequent(*given, **options):
        real_fit(*given, **(options | {"checkpoint_every": 3}))

    def interrupting(path, state):
        real_save(path, state)
        if state["step"] not in saved:
            saved.append(state["step"])
            raise KeyboardInterrupt

    monkeypatch.setattr("maskwright.engine.context.fit", frequent)
    monkeypatch.setattr(resuming, "save_checkpoint", interrupting)
    folder = tmp_path / "run"
    for attempt in range(20):
        try:
            run(name, data, folder, resume=True, workers=attempt % 3)
            break
        except KeyboardInterrupt:
            continue
    assert same(finished(name), folder)
    ledgers = [json.loads((f / "run.json").read_text())["labels_read"] for f in (finished(name), folder)]
    assert ledgers[0] == ledgers[1], "what was read before a kill still counts"
    trains = any(s["kind"] == "train" for s in json.loads((folder / "run.json").read_text())["stages"])
    assert bool(saved) == trains, "a training stage was interrupted"
    steps = [m["step"] for m in map(json.loads, (folder / "metrics.jsonl").read_text().splitlines()) if "loss" in m]
    assert len(steps) == len(set(zip(steps, range(len(steps)))))
    assert steps or not trains


@pytest.mark.parametrize("name", COSTLY)
def test_resumes_behind_every_stage(name, finished, data, tmp_path):
    done = finished(name)
    stages = [s["name"] for s in json.loads((done / "run.json").read_text())["stages"]]
    for k in range(1, len(stages)):  # from the first on it is another run of the same seed
        folder = tmp_path / f"from_{k}"
        shutil.copytree(done, folder)
        for later in stages[k:]:
            shutil.rmtree(folder / later)
        (folder / "model.safetensors").unlink()
        run(name, data, folder, resume=True)
        assert same(done, folder), f"resumed at stage {stages[k]}"


@pytest.mark.parametrize("name", COSTLY)
def test_loss_falls(name, data, tmp_path, monkeypatch):
    falls: dict[str, str] = {}

    def watched(training, context, stage, *given, **options):
        falls[stage] = training.must_fall
        loop.fit(training, context, stage, *given, **options)

    monkeypatch.setattr("maskwright.engine.context.fit", watched)
    run(name, data, tmp_path / "run", steps=40)
    lines = [json.loads(t) for t in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    for stage in (s["name"] for s in record["stages"] if s["kind"] == "train"):
        losses = [m[falls[stage]] for m in lines if m["stage"] == stage]
        third = len(losses) // 3
        assert np.mean(losses[-third:]) < np.mean(losses[:third]), stage


@pytest.mark.parametrize("name", COSTLY)
def test_images_without_labels_are_unlabelled_images(name, tmp_path):
    folder = write_tiny_folder(tmp_path / "bare", masks=False)
    shutil.rmtree(folder / "masks")
    for file in ("tags.csv", "captions.csv", "classes.txt"):
        (folder / file).unlink()
    needs = mw.METHODS[name].needs
    if needs & {"masks", "tags", "captions", "names"}:
        with pytest.raises(MaskwrightError, match="needs"):
            run(name, folder, tmp_path / "run")
        return
    model = run(name, folder, tmp_path / "run")
    assert len(model.classes) == classes_for(name)


@pytest.mark.parametrize("name", COSTLY)
def test_a_broken_image_among_good_ones_is_skipped_and_named(name, tmp_path):
    folder = write_tiny_folder(tmp_path / "mixed")
    (folder / "images" / "broken.jpg").write_bytes(b"")
    (folder / "images" / "text.jpg").write_text("not a photograph")
    run(name, folder, tmp_path / "run", report=True, steps=2)
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert sorted(n for n, _ in record["data"]["skipped"]) == ["broken", "text"]
    assert "broken" in (tmp_path / "run" / "report.html").read_text()


@pytest.mark.parametrize("name", NAMES)
def test_unknown_option_offers_the_nearest(name, data, tmp_path):
    option = describe(mw.METHODS[name].Config)[0]["name"]
    with pytest.raises(MaskwrightError, match=option):
        run(name, data, tmp_path / "run", settings={option + "x": 1})
    assert not (tmp_path / "run").exists()
