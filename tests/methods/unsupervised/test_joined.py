"""Clusters that are joined, and the iterate of STEGO that is kept: what the run leaves and what the bundle predicts."""

from __future__ import annotations

import json

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from tests.methods.unsupervised.small import trainer

import maskwright as mw
from maskwright.engine import resuming
from maskwright.engine.checkpoint import load_checkpoint
from maskwright.engine.progress import Progress
from maskwright.methods.unsupervised.stego import method as S
from maskwright.methods.unsupervised.stego.options import StegoConfig
from maskwright.models.bundle import load_bundle
from maskwright.ops.clustering.joining import ward_groups
from maskwright.recipes.clustering import FEWEST, FineClusterOptions

FEW = {"features.short_side": 64, "clusters.restarts": 2}
kmeans = trainer("kmeans", FEW)
stego = trainer("stego", {**FEW, "pairs.batch": 4})


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("MASKWRIGHT_CACHE", str(tmp_path / "cache"))


def test_a_pixel_has_the_class_of_its_nearest_fine_cluster(data, tmp_path):
    kmeans(data, tmp_path / "run", steps=None, fine=3, dim=8, whiten=False)
    t = load_file(tmp_path / "run" / "cluster" / "clusters.safetensors")
    assert len(t["centers"]) == 9 and torch.equal(t["class_of"], ward_groups(t["centers"], 3))
    segmenter = load_bundle(tmp_path / "run" / "model.safetensors")
    assert len(segmenter.classes) == 3
    x = torch.randn(2, 3, 64, 96, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        embedded = segmenter.decode(segmenter.features(x))
        found = segmenter(x).argmax(1)
    nearest = (F.normalize(t["centers"], dim=1) @ F.normalize(embedded, dim=1).flatten(2)).argmax(1)  # (B, h * w)
    assert torch.equal(found.flatten(1), t["class_of"][nearest])


def test_fine_clusters_have_some_rows_each_and_classes_one_cluster_at_least():
    options = FineClusterOptions(fine=5)
    assert options.count(3, 10_000) == 15
    assert options.count(3, FEWEST * 7) == 7 and options.count(3, 2) == 3


@pytest.mark.parametrize(
    ("train", "settings"), [(kmeans, {"max_rows": 40, "crop": 1}), (stego, {"reduction.max_rows": 40, "crop": 1})]
)
def test_fewer_fine_clusters_than_asked_for_are_said(train, settings, data, tmp_path):
    """Eight photographs of five positions each."""
    train(data, tmp_path / "run", **{"clusters.fine": 5, "reduction.dim": 4}, **settings)
    notes = json.loads((tmp_path / "run" / "run.json").read_text())["notes"]
    assert "10 clusters in place of 15: 4 positions of the photographs for each." in notes
    train(data, tmp_path / "all", **{"clusters.fine": 2, "reduction.dim": 4}, **settings)
    notes = json.loads((tmp_path / "all" / "run.json").read_text())["notes"]
    assert not any("clusters in place of" in note for note in notes)


def test_stego_keeps_the_iterate_that_agrees_most_and_says_the_others(data, tmp_path):
    run = tmp_path / "run"
    stego(data, run, steps=101)
    found = json.loads((run / "choose" / S.CHOICE).read_text())
    agreement = {int(k): v for k, v in found["agreement"].items()}
    assert list(agreement) == [0, 25, 50, 100, S.LAST]
    assert found["iterate"] == max(agreement, key=lambda k: agreement[k])
    notes = json.loads((run / "run.json").read_text())["notes"]
    assert any(note.startswith("Iterate: ") and "100 0." in note for note in notes)
    kinds = [type(part).__name__ for part in load_bundle(run / "model.safetensors").decoder.parts]
    assert kinds == ["Projection", *(["StegoHead"] if found["iterate"] else []), "L2Norm"]


@pytest.mark.parametrize("best", [0, 50])
def test_the_chosen_head_is_what_the_bundle_holds(best, data, tmp_path, monkeypatch):
    """Agreement that is as if: the model holds the head of that step, or none."""
    values = iter([float(done == best) for done in (0, 25, 50, S.LAST)])
    monkeypatch.setattr(S, "pair_agreement", lambda f, labels: next(values))
    stego(data, tmp_path / "run", steps=60)
    held = {k: v for k, v in load_file(tmp_path / "run" / "model.safetensors").items() if k.startswith("decoder.")}
    heads = {k.removeprefix("decoder.parts.1."): v for k, v in held.items() if k.startswith("decoder.parts.1.")}
    if not best:
        assert not heads
        return
    state = load_checkpoint(S.iterate_file(tmp_path / "run" / "distill", best))["head"]
    assert heads.keys() == state.keys() and all(torch.equal(heads[k], state[k]) for k in state)


def test_the_last_iterate_and_the_probe_choose_nothing(data, tmp_path):
    for name, settings in (("last", {"iterate.keep": "last"}), ("probe", {"readout.by": "probe"})):
        stego(data, tmp_path / name, **settings)
        assert not (tmp_path / name / "choose").exists()


class Killed(BaseException):
    """Stands for a kill: nothing catches it."""


def in_turn(patch: pytest.MonkeyPatch) -> None:
    """Checkpoints every 15 steps; iterates agree so that the one after 50 steps is chosen."""
    values = iter([0.1, 0.2, 0.9, 0.3])
    patch.setattr(resuming, "every", lambda steps: 15)
    patch.setattr(S, "pair_agreement", lambda f, labels: next(values))


@pytest.fixture(scope="module")
def whole(data, tmp_path_factory):
    """A run that nothing stopped."""
    folder = tmp_path_factory.mktemp("whole")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MASKWRIGHT_CACHE", str(folder / "cache"))
        in_turn(patch)
        stego(data, folder / "run", steps=60)
    return folder / "run"


@pytest.mark.parametrize("at", [20, 40, 57])
def test_a_run_that_is_killed_keeps_and_chooses_what_it_would_have(at, whole, data, tmp_path, monkeypatch):
    """Before the first iterate, between two with a checkpoint behind the first, and behind the last of them."""
    in_turn(monkeypatch)
    run = tmp_path / "run"
    real = S.Distillation.after_step

    def after(self, step):
        if step == at:
            raise Killed
        real(self, step)

    monkeypatch.setattr(S.Distillation, "after_step", after)
    with pytest.raises(Killed):
        stego(data, run, steps=60)
    monkeypatch.setattr(S.Distillation, "after_step", real)
    mw.train(
        data, "stego", out=run, classes=3, backbone="mobilenetv3_small_050", weights="random", steps=60, device="cpu",
        settings={**FEW, "pairs.batch": 4}, progress=Progress(quiet=True), report=False, resume=True,
    )  # fmt: skip
    assert (run / "choose" / S.CHOICE).read_bytes() == (whole / "choose" / S.CHOICE).read_bytes()
    a, b = (load_file(folder / "model.safetensors") for folder in (whole, run))
    assert any(k.startswith("decoder.parts.1.") for k in a), "the model holds a head"
    assert a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def test_steps_follow_the_photographs_up_to_the_option():
    def own(config, images):
        return S.Stego.terms(config, images).steps

    assert [own(StegoConfig(), n) for n in (10, 100, 367, 5000)] == [100, 400, 1468, 2000]
    assert own(StegoConfig(passes=0), 10) == 2000 and own(StegoConfig(steps=50), 10) == 50
