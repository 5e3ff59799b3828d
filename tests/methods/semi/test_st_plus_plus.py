"""ST and ST++: stages, reliability, strong changes of pseudo-labelled crops, budgets, resuming."""

from __future__ import annotations

import dataclasses
import itertools
import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file
from tests.conftest import write_tiny_folder
from tests.methods.semi.checks import seeded

import maskwright as mw
from maskwright import api
from maskwright.data.training.labels import LabelMap, LabelStore
from maskwright.data.training.sources import MaskLabels
from maskwright.engine.checkpoint import load_checkpoint, save_checkpoint
from maskwright.engine.config import configure
from maskwright.engine.progress import Progress
from maskwright.engine.records import RunFolder
from maskwright.errors import MaskwrightError
from maskwright.methods.semi import st_plus_plus as module
from maskwright.methods.semi.st_plus_plus import (
    RetrainTraining,
    STPlusPlus,
    STPlusPlusConfig,
    TeacherTraining,
    snapshot_steps,
    split_by_reliability,
    split_steps,
    stability,
)
from maskwright.predict.inference import predict_probs
from maskwright.recipes.self_training.labelling import Labelling
from maskwright.recipes.training import network as network_module
from maskwright.recipes.training.options import NetworkConfig


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = write_tiny_folder(tmp_path_factory.mktemp("data") / "tiny", count=10)
    (folder / "splits" / "few.txt").write_text("picture_00\npicture_01\npicture_02\n")
    return folder


SMALL = {"crop": 32, "batch": 2, "precision": "fp32"}


def configured(**options):
    return configure(STPlusPlusConfig, {**SMALL, **options})


def run(data, out, steps=8, resume=False, **settings):
    return mw.train(
        data, "st_plus_plus", out=out, classes=3, backbone="mobilenetv3_small_050", weights="random", steps=steps,
        device="cpu", labeled="few", report=False, progress=Progress(quiet=True), resume=resume,
        settings={**SMALL, **settings},
    )  # fmt: skip


@pytest.fixture(scope="module")
def finished(data, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "plus"
    run(data, out, class_balanced=True)
    return out


@pytest.fixture
def method(data, finished, semi_context):
    """The method on what the finished run left; it writes nothing there."""
    images, record = api.open_folder(data).labeled("few"), RunFolder(finished, writes=False)
    config = configured(class_balanced=True)
    return STPlusPlus(config, dataclasses.replace(semi_context, data=images, run=record, steps=8))


def same(a, b):
    return all(torch.equal(v, b[k]) for k, v in a.items())


def names_in(folder):
    return set(LabelStore(folder / "labels").names)


# ---------------------------------------------------------------------- parts


@given(st.integers(1, 5000), st.floats(0.01, 0.45), st.floats(0.01, 0.45))
def test_steps_add_up(total, a, b):
    steps = split_steps(total, [a, b])
    assert min(steps) >= 1 and sum(steps) == max(total, 3)
    if total > 300:
        assert steps[0] == round(a * total) and steps[1] == round(b * total)
    assert split_steps(total, [a])[0] == max(1, min(round(a * total), total - 1))


def test_each_network_gets_a_schedule_where_the_steps_are_not_given(semi_context):
    others, own = NetworkConfig().steps, STPlusPlusConfig()
    assert own.steps == 3 * others, "three trainings"

    def trained(given, **options):
        method = STPlusPlus(STPlusPlusConfig(**options), dataclasses.replace(semi_context, steps=given))
        return [method.steps_of(s.name) for s in method.stages() if s.name in ("teacher", "first", "retrain")]

    assert sum(trained(None)) == own.steps and sum(trained(None, plus=False)) == own.steps
    assert trained(8) == [2, 2, 4] and trained(8, plus=False) == [2, 6], "--steps counts all of them"
    assert trained(None, steps=40) == [10, 10, 20]


def test_snapshots_at_each_third():
    assert snapshot_steps(9) == [3, 6, 9] and snapshot_steps(10) == [4, 7, 10]
    assert snapshot_steps(1) == [1, 1, 1] and snapshot_steps(2) == [1, 2, 2]


def test_stability_against_a_loop():
    rng = np.random.default_rng(0)
    a, b = (rng.integers(0, 3, (9, 7)).astype(np.uint8) for _ in range(2))
    scores = []
    for c in range(5):  # classes 3 and 4 are in neither
        union = sum(int(x == c or y == c) for x, y in zip(a.ravel(), b.ravel()))
        both = sum(int(x == c and y == c) for x, y in zip(a.ravel(), b.ravel()))
        if union:
            scores.append(both / union)
    assert stability(a, b, 5) == pytest.approx(np.mean(scores))
    assert stability(a, a, 5) == 1 and stability(a, b, 5) == stability(b, a, 5)
    assert stability(np.zeros((2, 2), np.uint8), np.ones((2, 2), np.uint8), 5) == 0


def test_split_by_reliability():
    scores = {"d": 0.5, "a": 0.9, "c": 0.5, "b": 0.1, "e": 0.7}
    assert split_by_reliability(scores, 0.5) == (["a", "e", "c"], ["d", "b"])
    assert split_by_reliability(scores, 1.0)[1] == []
    assert split_by_reliability(scores, 0.0)[0] == ["a"]
    assert split_by_reliability({"a": 1.0}, 0.5) == (["a"], [])


def test_contradictory_options():
    with pytest.raises(MaskwrightError, match="less than 1"):
        STPlusPlusConfig(teacher_share=0.6, first_share=0.5).check()
    STPlusPlusConfig(teacher_share=0.6, first_share=0.5, plus=False).check()
    with pytest.raises(MaskwrightError, match="scales"):
        STPlusPlusConfig(scales=()).check()


class Stored:
    """Pseudo-labels: class 2 everywhere, of low confidence."""

    def __init__(self, data, indices):
        self.data, self.indices = data, indices

    def read(self, i):
        size = self.data.size(i)
        return LabelMap(torch.full(size, 2), torch.full(size, 0.4), torch.ones(size, dtype=torch.bool))


def retraining(context, **options):
    config = configured(**{"crop": 64, "batch_unlabeled": 3, **options})
    labels = MaskLabels(context.data, context.classes)
    return RetrainTraining(Stored(context.data, [3, 4, 5, 6, 7]), context, config, labels, 10)


def test_strong_changes_of_pseudo_labelled_crops_alone(semi_context, monkeypatch):
    t = retraining(semi_context, cutout=1.0)
    seen = []
    strong = t.setup.streams["u"]
    real = strong.strengthen
    monkeypatch.setattr(strong, "strengthen", lambda pixels, random: seen.append(len(pixels)) or real(pixels, random))
    indices = t.sampler.next()
    x, u = t.batch(indices, seeded()).values()
    assert seen == [3] and x.weak.shape == (2, 3, 64, 64) and u.weak.shape == (3, 3, 64, 64)
    plain = t.setup.streams["x"].draw(indices["x"], seeded())
    assert torch.equal(x.weak, plain.weak) and torch.equal(x.y.ids, plain.y.ids)
    assert torch.equal(x.y.valid, plain.y.valid)


def test_the_loss_is_that_of_both_kinds_of_crops_together(semi_context, monkeypatch):
    t = retraining(semi_context)
    x, u = t.on_device(t.batch(t.sampler.next(), seeded())).values()
    asked, real = [], t.setup.student
    monkeypatch.setattr(t, "student", lambda crops: asked.append((crops, real(crops))) or asked[-1][1])
    loss = t.losses({"x": x, "u": u}, 0)["loss"]
    ((crops, out),) = asked
    assert torch.equal(crops, torch.cat([x.weak, u.weak]))
    ids, valid = torch.cat([x.y.ids, u.y.ids]), torch.cat([x.y.valid, u.y.valid])
    nll = F.cross_entropy(out.logits, ids, reduction="none")
    assert valid[:2].any() and valid[2:].any() and not valid.all()
    torch.testing.assert_close(loss, nll[valid].mean())


def test_the_box_of_noise_is_as_small_as_the_authors(semi_context):
    """Their area is drawn anew with each place that is refused: 0.138 on average, 0.205 where it is drawn once."""
    t = retraining(semi_context, cutout=1.0, strong="none")
    pixels = torch.zeros(1000, 3, 64, 64, dtype=torch.uint8)
    share = t.setup.streams["u"].strengthen(pixels, seeded())[1].float().mean((1, 2))
    assert 0.12 < float(share.mean()) < 0.148 and float((share > 0.3).float().mean()) < 0.11


def test_the_box_of_noise_has_no_label_and_the_rest_keeps_its_pixels(semi_context, monkeypatch):
    t = retraining(semi_context, cutout=1.0, strong="none")
    pixels = torch.full((6, 3, 64, 64), 7, dtype=torch.uint8)
    stream = t.setup.streams["u"]
    strong, box = stream.strengthen(pixels, seeded())
    assert box.flatten(1).any(1).all() and not box.flatten(1).all(1).any()
    changed = (strong != 7).any(1)
    assert not (changed & ~box).any() and changed[box].float().mean() > 0.95
    share = box.float().mean((1, 2))
    assert share.min() > 0.01 and share.max() < 0.41
    boxes, real = [], stream.strengthen

    def caught(pixels, random):
        strong, box = real(pixels, random)
        boxes.append(box)
        return strong, box

    monkeypatch.setattr(stream, "strengthen", caught)
    indices = [3, 4, 5]
    views = stream.draw(indices, seeded())
    y, uncut = views.y, retraining(semi_context, cutout=0.0, strong="none").setup.streams["u"].draw(indices, seeded()).y
    assert torch.equal(views.valid, y.valid)
    assert torch.equal(y.valid, uncut.valid & ~boxes[0])
    assert (uncut.valid & boxes[0]).any() and not uncut.valid.all()


def test_pseudo_labels_count_fully(semi_context):
    y = retraining(semi_context).batch({"x": [0, 1], "u": [3, 4, 5]}, seeded())["u"].y
    assert y.valid.any() and (y.confidence[y.valid] == 1).all() and (y.ids[y.valid] == 2).all()


def test_snapshots_are_the_networks_of_their_steps(semi_context, tmp_path):
    config = configured()
    labels = MaskLabels(semi_context.data, semi_context.classes)
    seen = []

    class Watching(TeacherTraining):
        def after_step(self, step):
            super().after_step(step)
            seen.append({k: v.clone() for k, v in self.setup.network.state_dict().items()})

    t = Watching(tmp_path, semi_context, config, labels, 6, stage="teacher")
    semi_context.fit(t, "teacher", tmp_path, 6)
    for k, step in ((1, 2), (2, 4)):
        kept = load_checkpoint(tmp_path / f"snapshot_{k}.pt")["network"]
        assert all(torch.equal(v, seen[step - 1][name]) for name, v in kept.items())


def test_reliability_is_one_for_identical_networks(semi_context):
    method = STPlusPlus(configured(), semi_context)
    network = module.make_network(semi_context, method.config)
    segmenters = [method.as_segmenter(network)] * 3
    assert [method.reliability(segmenters, i) for i in range(3)] == [1.0, 1.0, 1.0]


def test_the_last_of_the_teachers_is_that_of_the_last_step(semi_context):
    """Also where `holdout` chose an earlier one to label."""
    method = STPlusPlus(configured(holdout=0.4), semi_context)
    folder = semi_context.run.stage_folder("teacher")
    one = module.make_network(semi_context, method.config).state_dict()
    first, second, last, best = ({name: v + n for name, v in one.items()} for n in range(4))
    for k, weights in enumerate((first, second), 1):
        save_checkpoint(folder / f"snapshot_{k}.pt", {"network": weights})
    parts = {"module.network": last, "extra.selection": {"scores": [], "best": best}}
    save_checkpoint(folder / "checkpoint.pt", {"step": 3, "parts": parts})
    assert same(module.trained_network(semi_context, method.config, folder).state_dict(), best)
    for network, expected in zip(method.teachers(), (first, second, last), strict=True):
        assert same(network.state_dict(), expected)


@pytest.mark.parametrize("lam", [None, torch.full((3,), 0.2)], ids=["hard", "class_balanced"])
def test_labels_are_of_the_photograph_and_its_mirror_image(semi_context, lam):
    method = STPlusPlus(configured(), semi_context)
    network = module.make_network(semi_context, method.config)
    with torch.no_grad():
        for p in network.classifier.parameters():
            p.mul_(10)  # probabilities that differ from place to place
    segmenter, image = method.as_segmenter(network), semi_context.data.image(4)
    plain, mirrored = (
        torch.from_numpy(predict_probs(segmenter, np.ascontiguousarray(x))) for x in (image, image[:, ::-1])
    )
    both = (plain + mirrored.flip(-1)) / 2
    assert (both.max(0)[0] - plain.max(0)[0]).abs().max() > 0.02 and not torch.equal(both.argmax(0), plain.argmax(0))
    y = method.labelling.pseudo_label(segmenter, image, lam)  # equal thresholds below all probabilities change nothing
    torch.testing.assert_close(y.confidence, both.max(0)[0], rtol=0, atol=2e-3)
    assert y.valid.all() and (y.ids == both.argmax(0)).float().mean() > 0.99
    once = method.labelling.predict(segmenter, image, plain=True).ids
    assert np.array_equal(once, plain.argmax(0).numpy()), "reliability is of the photograph alone"
    method.config.flips = False
    torch.testing.assert_close(method.labelling.pseudo_label(segmenter, image, lam).confidence, plain.max(0)[0])


def test_held_out_images_get_no_pseudo_labels(data, tmp_path, semi_context):
    method = STPlusPlus(configured(holdout=0.4, unlabeled="all"), semi_context)
    _, held = module.hold_out(method.labels(), 0.4, semi_context.seed)
    assert held and not set(held) & set(method.unlabeled())
    assert STPlusPlus(STPlusPlusConfig(), semi_context).unlabeled() == [3, 4, 5, 6, 7]


# ---------------------------------------------------------------------- whole runs


def test_stages_labels_and_budget(finished):
    record = json.loads((finished / "run.json").read_text())
    assert [s["name"] for s in record["stages"]] == ["teacher", "rank", "label", "first", "relabel", "retrain"]
    lines = [json.loads(line) for line in (finished / "metrics.jsonl").read_text().splitlines()]
    done = {s: sum(m["stage"] == s for m in lines) for s in ("teacher", "first", "retrain")}
    assert done == {"teacher": 2, "first": 2, "retrain": 4}, "eight steps in all"
    ranking = json.loads((finished / "rank" / "ranking.json").read_text())
    everyone = {f"picture_{i:02d}" for i in range(3, 10)}
    assert len(ranking["reliable"]) == 4 and set(ranking["reliable"]) | set(ranking["unreliable"]) == everyone
    assert min(ranking["reliability"][n] for n in ranking["reliable"]) >= max(
        ranking["reliability"][n] for n in ranking["unreliable"]
    )
    assert names_in(finished / "label") == set(ranking["reliable"])
    assert names_in(finished / "relabel") == set(ranking["unreliable"])
    assert record["labels_read"]["train"]["masks"] == 3, "the other images' masks stay closed"


def test_the_named_network_labels(method, finished):
    """The teacher the reliable half, the first student the other."""
    segmenters = {
        stage: method.as_segmenter(module.trained_network(method.context, method.config, finished / stage))
        for stage in ("teacher", "first")
    }
    for stage, by, other in (("label", "teacher", "first"), ("relabel", "first", "teacher")):
        stored, lam = method.stored(stage), load_file(finished / stage / "thresholds.safetensors")["lam"]
        i = stored.indices[0]
        y, image = stored.read(i), method.context.data.image(i)
        ours, theirs = (method.labelling.pseudo_label(segmenters[s], image, lam) for s in (by, other))
        assert torch.equal(y.ids, ours.ids) and torch.equal(y.valid, ours.valid)
        torch.testing.assert_close(y.confidence, ours.confidence, rtol=0, atol=1e-5)  # 16 bit
        assert (y.confidence - theirs.confidence).abs().max() > 1e-3


@pytest.mark.slow
def test_each_training_starts_anew_on_its_own_labels(method, monkeypatch):
    trainings = {}
    monkeypatch.setattr(method.context, "fit", lambda t, name, folder, steps: trainings.update({name: t}))
    for stage, train in (("teacher", method.train_teacher), ("first", method.train_first), ("retrain", method.retrain)):
        train(method.folder(stage))
    reliable, others = method.stored("label"), method.stored("relabel")
    pseudo = {stage: trainings[stage].streams["u"].photographs for stage in ("first", "retrain")}
    assert pseudo["first"].indices.tolist() == pseudo["first"].labels.indices == reliable.indices
    assert pseudo["retrain"].indices.tolist() == sorted(reliable.indices + others.indices) == list(range(3, 10))
    for stored in (reliable, others):
        i = stored.indices[-1]
        assert torch.equal(pseudo["retrain"].labels.read(i).ids, stored.read(i).ids)
    pretrained = module.make_network(method.context, method.config).encoder.state_dict()
    networks = [t.setup.network for t in trainings.values()]
    assert all(same(network.encoder.state_dict(), pretrained) for network in networks)
    heads = [[p for p in network.head_parameters() if p.ndim > 1] for network in networks]
    for a, b in itertools.combinations(heads, 2):
        assert a and not any(torch.equal(p, q) for p, q in zip(a, b))


def test_class_balanced_labels_reach_the_threshold_of_their_class(finished):
    lam = load_file(finished / "label" / "thresholds.safetensors")["lam"]
    assert lam.shape == (3,) and ((lam > 0) & (lam <= 1)).all()
    for name in names_in(finished / "label"):
        y = LabelStore(finished / "label" / "labels").read(name)
        assert (y.confidence[y.valid] >= lam[y.ids[y.valid]].float() - 1e-4).all()


def test_plain_st_labels_everything_once(data, tmp_path):
    run(data, tmp_path / "st", steps=4, plus=False)
    record = json.loads((tmp_path / "st" / "run.json").read_text())
    assert [s["name"] for s in record["stages"]] == ["teacher", "label", "retrain"]
    assert names_in(tmp_path / "st" / "label") == {f"picture_{i:02d}" for i in range(3, 10)}
    y = LabelStore(tmp_path / "st" / "label" / "labels").read("picture_05")
    assert y.valid.all() and y.size == (48, 64), "no threshold"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("function", "after"),
    [("reliability", "teacher"), ("predict", "rank"), ("pseudo_label", "rank"), ("pseudo_label", "first")],
)
def test_interrupted_inside_a_stage_without_training(function, after, finished, data, tmp_path, monkeypatch):
    """Stopped at the third image of ranking, of counting confidences and of either labelling, then resumed."""
    monkeypatch.setattr(module, "CHUNK", 2)
    owner = STPlusPlus if function == "reliability" else Labelling
    real, calls = getattr(owner, function), []

    def interrupted(self, *args, **kwargs):
        if (self.context.run.path / after / "stage.json").exists():
            calls.append(args)
            if len(calls) == 3:
                raise KeyboardInterrupt
        return real(self, *args, **kwargs)

    monkeypatch.setattr(owner, function, interrupted)
    folder = tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):
        run(data, folder, class_balanced=True)
    if function == "reliability":
        assert len(list((folder / "rank" / "reliability").iterdir())) == 1, "a chunk is kept"
    if function == "pseudo_label":
        assert len(names_in(folder / ("label" if after == "rank" else "relabel"))) == 2
    run(data, folder, class_balanced=True, resume=True)
    a, b = (load_file(d / "model.safetensors") for d in (finished, folder))
    assert all(torch.equal(a[k], b[k]) for k in a)
    rankings = [json.loads((d / "rank" / "ranking.json").read_text()) for d in (finished, folder)]
    assert rankings[0] == rankings[1]
    for stage in ("label", "relabel"):
        assert names_in(finished / stage) == names_in(folder / stage)
        for name in names_in(finished / stage):
            p, q = (LabelStore(d / stage / "labels").read(name) for d in (finished, folder))
            assert torch.equal(p.ids, q.ids) and torch.equal(p.valid, q.valid)


def test_a_missing_snapshot_is_told(semi_context):
    method = STPlusPlus(STPlusPlusConfig(), semi_context)
    with pytest.raises(MaskwrightError, match=r"snapshot_1\.pt"):
        method.teachers()


def test_statistics_are_those_of_all_photographs(semi_context, tmp_path, monkeypatch):
    """As of all semi-supervised methods: the labelled ones are a dozen. Held-out images judge such networks too."""
    method, asked = STPlusPlus(configured(), semi_context), []
    monkeypatch.setattr(network_module, "retake_statistics", lambda network, data, chosen, *_: asked.append(chosen))
    teacher = TeacherTraining(tmp_path, semi_context, method.config, method.labels(), 4, stage="teacher")
    for training in (teacher, retraining(semi_context)):
        training.setup.with_statistics(training.setup.network)
    method.as_segmenter(teacher.setup.network)
    network_module.make_segmenter(semi_context, method.config, teacher.setup.network, method.name, method.seen())
    assert asked == [list(range(len(semi_context.data)))] * 4
