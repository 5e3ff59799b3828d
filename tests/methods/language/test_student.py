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
from maskwright.engine.progress import Progress
from maskwright.errors import MaskwrightError
from maskwright.models.parts.heads import LinearClassifier
from maskwright.models.parts.table import build_part
from maskwright.models.towers.parts import WordHead

SMALL = {
    "words.short_side": 48, "words.prompts": "scene", "plus.train": True, "student.crops.size": 32,
    "student.precision": "fp32", "student.network.name": "unet",
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
        inputs={"student": backbone} if backbone else None, settings=SMALL | (settings or {}), report=False,
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
    frozen = train(place, run.parent / "frozen", {"plus.train": False}, backbone=None, steps=None)
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

    monkeypatch.setattr("maskwright.engine.context.fit", lambda t, **o: real_fit(t, **(o | {"checkpoint_every": 1})))
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
        train(place, tmp_path / "b", {"plus.train": False})


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
