"""The second stage of methods whose classes are words: MaskCLIP+ and what it shares."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tests.conftest import write_tiny_folder
from tests.golden.formulas import draw
from tests.models.towers.tiny import config, write_folder

import maskwright as mw
from maskwright.data.training.labels import LabelStore
from maskwright.engine import loop, resuming
from maskwright.engine.config import configure
from maskwright.engine.progress import Progress
from maskwright.errors import MaskwrightError
from maskwright.models.parts.heads import LinearClassifier
from maskwright.models.parts.table import build_part
from maskwright.models.towers.parts import WordHead

FROZEN = {"words.short_side": 48, "words.prompts": "scene"}
SMALL = FROZEN | {
    "plus.train": True, "student.crops.size": 32, "student.precision": "fp32", "student.network.name": "unet",
}  # fmt: skip


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Photographs `photos` without labels, and `towers`."""
    root = tmp_path_factory.mktemp("student")
    write_tiny_folder(root / "photos", count=4, masks=False)
    write_folder(root / "towers", config())
    return root


def train(place, out, settings=None, backbone="mobilenetv3_small_050@random", steps=4, **options):
    return mw.train(
        place / "photos", options.pop("method", "maskclip"), names="a red disc|ball,blue squares,grass",
        backbone="clip", weights=place / "towers", out=out, device="cpu", steps=steps,
        inputs={"student": backbone} if backbone else None, settings=options.pop("base", SMALL) | (settings or {}),
        report=False,
        progress=Progress(quiet=True), **options,
    )  # fmt: skip


@pytest.fixture(scope="module")
def done(place, tmp_path_factory):
    """A run with one round."""
    out = tmp_path_factory.mktemp("runs") / "run"
    return out, train(place, out)


def test_a_network_learns_the_towers_masks_and_then_its_own(place, done):
    run, model = done
    record = json.loads((run / "run.json").read_text())
    assert [s["name"] for s in record["stages"]] == ["vocabulary", "pseudo", "student", "pseudo_1", "student_1"]
    assert not any(record["labels_read"]["train"].values()), "no mask, tag or caption is read"
    frozen = train(place, run.parent / "frozen", base=FROZEN, backbone=None, steps=None)
    store = LabelStore(run / "pseudo" / "labels")
    for path in sorted((place / "photos" / "images").iterdir()):
        assert np.array_equal(store.read(path.stem).ids.numpy(), frozen.predict(path).mask), "labels are its masks"
        ours, again = model.predict(path), mw.load(run).predict(path)
        assert np.array_equal(ours.mask, again.mask) and np.array_equal(ours.confidence, again.confidence)
    assert "which saw image captions" in mw.load(run).segmenter.provenance.labels_seen
    assert model.classes.names == ("a red disc", "blue squares", "grass")
    words = load_file(run / "vocabulary" / "vocabulary.safetensors")
    kept = load_file(run / "model.safetensors")
    assert torch.equal(kept["classifier.vectors"], words["vectors"]), "words do not learn"
    inner = [v for k, v in kept.items() if k.startswith("classifier.inner.")]
    assert {len(v) for v in inner} == {words["vectors"].shape[1]}, "its layer gives vectors of the words' width"


@pytest.mark.slow
def test_killed_at_each_checkpoint_it_ends_in_the_same_weights(place, done, tmp_path, monkeypatch):
    real_fit, real_save, saved = loop.fit, resuming.save_checkpoint, []

    def interrupting(path, state):
        real_save(path, state)
        if (path.parent.name, state["step"]) not in saved:
            saved.append((path.parent.name, state["step"]))
            raise KeyboardInterrupt

    monkeypatch.setattr("maskwright.engine.context.fit", lambda *g, **o: real_fit(*g, **(o | {"checkpoint_every": 1})))
    monkeypatch.setattr(resuming, "save_checkpoint", interrupting)
    for _ in range(12):
        try:
            train(place, tmp_path / "run", resume=True)
            break
        except KeyboardInterrupt:
            continue
    assert {stage for stage, _ in saved} == {"student", "student_1"}
    one, two = (load_file(folder / "model.safetensors") for folder in (done[0], tmp_path / "run"))
    assert one.keys() == two.keys() and all(torch.equal(one[k], two[k]) for k in one)


def test_what_does_not_fit_is_one_line(place, done, tmp_path):
    with pytest.raises(MaskwrightError, match="a saved model"):
        train(place, tmp_path / "a", backbone=str(done[0]))
    with pytest.raises(MaskwrightError, match="no use for"):
        train(place, tmp_path / "b", base=FROZEN)


@pytest.mark.parametrize(
    ("method", "preset", "expected"),
    [
        ("maskclip", "paper", ("deeplabv2", 512, 16, "sgd", 0.01, None, 5e-4, 2000, 0, True)),
        ("maskclip", "paper_context", ("deeplabv2", 480, 16, "sgd", 0.01, None, 5e-4, 4000, 0, True)),
        ("maskclip", "paper_stuff", ("deeplabv2", 512, 16, "sgd", 0.01, None, 5e-4, 8000, 0, True)),
        ("maskclip", "small", ("auto", 256, 4, "adamw", 0.0, None, None, 2000, 1, True)),
        ("reco", "paper", ("deeplabv3plus", 320, 8, "adamw", 5e-4, 0.1, 2e-4, 20_000, 0, False)),
        ("reco", "small", ("auto", 256, 4, "adamw", 0.0, None, None, 2000, 0, False)),
    ],
)
def test_presets_are_the_papers(method, preset, expected):
    c = configure(mw.METHODS[method].Config, {"preset": preset, "plus.train": True})
    s, o = c.student, c.student.optimizer
    found = (s.network.name, s.crops.size, s.crops.batch, o.name, o.lr, o.encoder_lr, o.weight_decay, s.steps)
    assert (*found, c.plus.rounds, c.plus.words) == expected
    assert configure(mw.METHODS[method].Config, {"preset": preset, "plus.train": True, "steps": 7}).student.steps == 7
    if preset != "small":
        with pytest.raises(MaskwrightError, match=r"--set plus\.train=true"):
            configure(mw.METHODS[method].Config, {"preset": preset})


def test_options_of_what_is_not_done_are_refused():
    for method, settings, said in (
        ("maskclip", {"student.steps": 5}, "student.steps=5 with plus.train=false"),
        ("reco", {"plus.train": True, "plus.share": 0.3}, "plus.share=0.3 with plus.rounds=0"),
        ("clip_seg", {"variant": "sclip", "std": 2.0}, "std=2.0 with variant=sclip"),
        ("clip_seg", {"proxy.gamma": 2.0}, "proxy.gamma=2.0 with variant=naclip"),
        ("groupvit", {"preset": "zero_shot", "crops.batch": 3}, "crops.batch=3 with preset=zero_shot"),
        ("groupvit", {"steps": 0, "crops.batch": 3}, "crops.batch=3 with steps=0"),
        ("groupvit", {"contrast.words": 0, "contrast.weight": 2.0}, "contrast.weight=2.0 with contrast.words=0"),
    ):
        with pytest.raises(MaskwrightError, match=f"{said}.*leave it out"):
            configure(mw.METHODS[method].Config, settings)
    for method, settings in (
        ("clip_seg", {"std": 2.0}), ("clip_seg", {"variant": "proxyclip", "proxy.gamma": 2.0}),
        ("groupvit", {"preset": "zero_shot"}), ("maskclip", {"plus.train": True, "plus.share": 0.3}),
    ):  # fmt: skip
        configure(mw.METHODS[method].Config, settings)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["maskclip", "reco"])
def test_the_papers_networks_learn(place, tmp_path, method):
    """With their layers and rates, on a small backbone and few crops."""
    few = {"student.crops.size": 64, "student.crops.batch": 2, "student.precision": "fp32", "preset": "paper"}
    archive = {"archive.images": 2, "archive.side": 32, "crf": False} if method == "reco" else {}
    model = train(
        place, tmp_path / "run", few | archive | {"plus.train": True}, base=FROZEN, method=method, steps=3,
        backbone="resnet18@random",
    )  # fmt: skip
    options = json.loads((tmp_path / "run" / "run.json").read_text())["options"]
    assert options["preset"] == "paper" and options["plus"]["rounds"] == 0
    path = next((place / "photos" / "images").iterdir())
    assert np.array_equal(model.predict(path).mask, mw.load(tmp_path / "run").predict(path).mask)


def test_word_head_is_the_best_dot_product():
    inner, vectors, owner = LinearClassifier(6, 5), draw(4, 5), torch.tensor([0, 1, 1, 2])
    head = WordHead(inner, vectors, owner, 3)
    x = draw(2, 6, 2, 3, seed=1)
    found, places = head(x), inner(x)
    for b, c, i, j in np.ndindex(2, 3, 2, 3):
        expected = max(float(places[b, :, i, j].detach() @ vectors[p]) for p in range(4) if owner[p] == c)
        assert float(found[b, c, i, j]) == pytest.approx(expected, rel=1e-5, abs=1e-6)
    twin = build_part(json.loads(json.dumps(head.spec())))
    twin.load_state_dict(head.state_dict())
    assert torch.equal(twin(x), found)
    assert not any(name in ("vectors", "owner") for name, _ in head.named_parameters())
