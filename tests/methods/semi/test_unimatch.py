"""UniMatch's losses, mixing and three versions, on tiny pictures and random networks."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from tests.conftest import write_tiny_folder
from tests.methods.semi.checks import batch_of, check_is_supervised

import maskwright as mw
from maskwright.data.folders.folder import open_folder
from maskwright.data.training.labels import LabelMap
from maskwright.data.training.sources import MaskLabels
from maskwright.data.training.streams import Views
from maskwright.engine import loop, resuming
from maskwright.engine.config import configure
from maskwright.engine.opening import open_run
from maskwright.engine.progress import Progress
from maskwright.engine.request import RunRequest
from maskwright.errors import MaskwrightError
from maskwright.methods.semi import unimatch as um
from maskwright.recipes.training.forward import Forward, Output

VIT = "vit_tiny_patch16_224"


def label_map(batch: int = 3, size: int = 6, classes: int = 4, seed: int = 0) -> LabelMap:
    g = torch.Generator().manual_seed(seed)
    shape = (batch, size, size)
    ids, conf = torch.randint(0, classes, shape, generator=g), torch.rand(shape, generator=g)
    return LabelMap(ids, conf, torch.rand(shape, generator=g) < 0.7)


def training(context, version: str, **options):
    config = configure(um.UniMatchConfig, {"crop": 32, "batch": 2, "version": version, "precision": "fp32", **options})
    method = um.UniMatch(config, context)
    return method.trainer(context, method.config, MaskLabels(context.data, context.classes), 4)


@pytest.fixture
def vit_context(tmp_path):
    data = open_folder(write_tiny_folder(tmp_path / "tiny"))
    request = RunRequest(
        data=data.labeled(data.names[:3]), method=um.UniMatch, out=tmp_path / "vit", backbone=VIT, weights="random",
        steps=4, device="cpu", progress=Progress(quiet=True),
    )  # fmt: skip
    return open_run(request)


# ---------------------------------------------------------------------- losses


def test_confident_loss_against_a_loop():
    labels, threshold = label_map(), 0.6
    logits = torch.randn(3, 4, 6, 6, generator=torch.Generator().manual_seed(1))
    total, valid = 0.0, 0
    for b in range(3):
        for i in range(6):
            for j in range(6):
                if not labels.valid[b, i, j]:
                    continue
                valid += 1
                if labels.confidence[b, i, j] >= threshold:
                    z = logits[b, :, i, j].tolist()
                    total += math.log(sum(map(math.exp, z))) - z[int(labels.ids[b, i, j])]
    found = um.confident_cross_entropy(logits, labels, threshold)
    assert math.isclose(float(found), total / valid, rel_tol=1e-5)


def test_nothing_is_learnt_above_certainty_or_outside_the_photograph():
    labels, logits = label_map(), torch.randn(3, 4, 6, 6, requires_grad=True)
    assert float(um.confident_cross_entropy(logits, labels, 1.01).detach()) == 0
    nothing = labels.restrict(torch.zeros_like(labels.valid))
    loss = um.confident_cross_entropy(logits, nothing, 0.0)
    loss.backward()
    assert float(loss.detach()) == 0 and float(logits.grad.abs().sum()) == 0


def test_halves_at_weight_one_and_supervised_at_zero():
    x, u = torch.tensor(3.0), torch.tensor(5.0)
    assert float(um.total_loss(x, u, 1.0)) == 4
    assert float(um.total_loss(x, u, 0.0)) == 3


# ---------------------------------------------------------------------- mixing


@pytest.mark.parametrize("boxed", [False, True])
def test_label_confidence_and_validity_come_from_where_the_pixel_comes(monkeypatch, boxed):
    """Every image and its labels are filled with its own number."""
    if boxed:
        monkeypatch.setitem(um.MASKS, "unimatch", lambda n, size: torch.rand(n, *size) < 0.5)
    else:
        monkeypatch.setitem(um.MASKS, "unimatch", lambda n, size: torch.zeros(n, *size, dtype=torch.bool))
    number = torch.arange(4).view(4, 1, 1).expand(4, 8, 8)
    own = LabelMap(number, number / 10, number % 2 == 0)
    donor = LabelMap(number + 4, (number + 4) / 10, number % 2 == 1)
    s = number[:, None].expand(4, 3, 8, 8).float()
    x, labels = um.cutmix(s, own, s + 4, donor)
    assert torch.equal(x[:, 0].long(), labels.ids)
    torch.testing.assert_close(labels.confidence, x[:, 0] / 10)
    assert torch.equal(labels.valid, torch.where(x[:, 0] < 4, own.valid, donor.valid))
    assert bool((x >= 4).any()) == boxed
    if not boxed:
        assert torch.equal(x, s) and torch.equal(labels.ids, own.ids)


@pytest.mark.parametrize("n", range(1, 9))
def test_no_image_is_its_own_donor(n):
    order = um.reversed_partner(n)
    if n > 1:
        assert not (order == torch.arange(n)).any()
    if n % 2 == 0:
        assert torch.equal(order, torch.arange(n).flip(0))
    assert order.min() >= 0 and order.max() < n


@pytest.mark.parametrize("version", ["v1", "fixmatch"])
def test_donors_have_an_order_of_their_own_that_resumes(semi_context, version):
    def make():
        return training(semi_context, version, batch_unlabeled=4).sampler

    sampler = make()
    drawn = [np.split(sampler.next()["u"], 2) for _ in range(6)]
    assert all(len(own) == len(donors) == 4 for own, donors in drawn)
    assert not all(np.array_equal(own, donors) for own, donors in drawn)
    assert {int(i) for _, donors in drawn for i in donors} == {3, 4, 5, 6, 7} == {int(i) for o, _ in drawn for i in o}
    early = make()
    early.next()
    later = make()
    later.load_state_dict(early.state_dict())
    assert np.array_equal(later.next()["u"], np.concatenate(drawn[1]))


def test_processes_share_donors_as_they_share_images(semi_context, monkeypatch):
    monkeypatch.setattr("maskwright.engine.distributed.world_size", lambda: 2)
    for rank, share in ((0, 3), (1, 2)):
        monkeypatch.setattr("maskwright.engine.distributed.rank", lambda rank=rank: rank)
        orders = training(semi_context, "fixmatch", batch_unlabeled=5).setup.streams["u"].order
        assert len(orders.first.next()) == len(orders.second.next()) == share


def numbered(n: int, views: int) -> dict[str, Views]:
    """Unlabelled crops filled with their number; the second channel of a strong view holds the view's."""
    number = torch.zeros(n, 3, 32, 32)
    number[:, 0] = torch.arange(n).view(n, 1, 1)
    s = [number.clone() for _ in range(views)]
    for v, x in enumerate(s):
        x[:, 1] = v
    y = LabelMap.stack([LabelMap.unlabeled((32, 32))] * 2)
    return {
        "x": Views(torch.zeros(2, 3, 32, 32), y, y.valid, (), (), (0, 1)),
        "u": Views(number, None, torch.rand(n, 32, 32) < 0.8, tuple(s), (), tuple(range(n))),
    }


@pytest.mark.parametrize("n", [2, 3])
@pytest.mark.parametrize("version", um.VERSIONS)
def test_each_pixel_of_each_view_is_taught_the_label_of_its_image(semi_context, monkeypatch, version, n):
    """Networks hand their input through, and pseudo-labels are the images' numbers."""
    t = training(semi_context, version)
    asked: list[tuple[torch.Tensor, LabelMap]] = []
    boxes: list[torch.Tensor] = []

    def box(n, size):
        boxes.append(torch.rand(n, *size) < 0.5)
        return boxes[-1]

    monkeypatch.setitem(um.MASKS, "unimatch", box)
    monkeypatch.setattr(Forward, "through", lambda self, network, x: Output([], x, x))
    monkeypatch.setattr(t, "supervised", lambda out, y: torch.zeros(()))

    if version == "v1":  # the feature stream sees the same crops
        monkeypatch.setattr(t, "forward_weak", lambda x, w: (Output([], x, x), w, w))
    if version == "v2":
        monkeypatch.setattr(t, "forward_strong", lambda x: x)

    def labels(q, valid):
        return LabelMap((q[:, 0] / q[:, 1]).log().round().long(), q[:, 0], valid)

    monkeypatch.setattr(um, "pseudo_labels", labels)
    monkeypatch.setattr(um, "confident_cross_entropy", lambda f, k, t: asked.append((f, k)) or 0 * f.sum())
    batch = numbered(n if version == "v2" else 2 * n, t.setup.streams["u"].strong_views)
    t.losses(batch, 0)
    donors = {2: [1, 0], 3: [2, 0, 0]}[n] if version == "v2" else list(range(n, 2 * n))
    if version == "v1":
        f, k = asked.pop()
        assert torch.equal(f[:, 0].long(), k.ids) and torch.equal(f, batch["u"].weak[:n])
    assert len(asked) == len(boxes) == (1 if version == "fixmatch" else 2)
    for v, ((f, k), inside) in enumerate(zip(asked, boxes)):
        expected = torch.where(inside, torch.tensor(donors).view(n, 1, 1), torch.arange(n).view(n, 1, 1))
        assert torch.equal(f[:, 0].long(), expected) and bool((f[:, 1] == v).all())
        assert torch.equal(k.ids, expected)
        assert torch.equal(k.valid, batch["u"].valid.gather(0, expected))


@pytest.mark.parametrize("version", ["v1", "fixmatch"])
def test_donors_follow_the_unlabelled_crops(semi_context, monkeypatch, version):
    t = training(semi_context, version)
    orders = t.setup.streams["u"].order  # positions in 3, 4, ... 7
    monkeypatch.setattr(orders.first, "next", lambda: np.array([0, 1]))
    monkeypatch.setattr(orders.second, "next", lambda: np.array([3, 2]))
    u = batch_of(t)["u"]
    assert u.images == (3, 4, 6, 5) and all(len(s) == len(u.valid) == len(u.weak) == 4 for s in u.strong)


# ---------------------------------------------------------------------- totals


@pytest.mark.parametrize("version", um.VERSIONS)
def test_the_total_is_the_papers_sum_of_streams(semi_context, monkeypatch, version):
    t = training(semi_context, version, threshold=0.4, teacher_mode="train")
    batch, asked = batch_of(t), []
    real = um.confident_cross_entropy
    monkeypatch.setattr(um, "confident_cross_entropy", lambda *a: asked.append(a) or real(*a))
    for weight in (1.0, 3.0):
        t.ramp.options = dataclasses.replace(t.ramp.options, weight=weight)
        asked.clear()
        terms = t.losses(batch, 0)
        streams = []
        for f, k, threshold in asked:
            nll = F.cross_entropy(f.detach(), k.ids, reduction="none")
            streams.append(nll[k.valid & (k.confidence >= 0.4)].sum() / k.valid.sum())
            assert threshold == 0.4 and streams[-1] > 0
        if version == "fixmatch":
            (loss_u,) = streams
            torch.testing.assert_close(terms["s"].detach(), loss_u)
        elif version == "v1":
            s1, s2, fp = streams
            loss_u = s1 / 4 + s2 / 4 + fp / 2
            torch.testing.assert_close(terms["s"].detach(), (s1 + s2) / 2)
            torch.testing.assert_close(terms["fp"].detach(), fp)
        else:
            s1, s2 = streams
            loss_u = (s1 + s2) / 2
            torch.testing.assert_close(terms["u"].detach(), loss_u)
        assert version == "fixmatch" or abs(float(s1 - s2)) > 1e-4
        torch.testing.assert_close(terms["loss"].detach(), (terms["x"].detach() + weight * loss_u) / (1 + weight))


# ---------------------------------------------------------------------- v1 and FixMatch


def test_feature_stream_without_dropout_is_the_clean_loss(semi_context):
    t = training(semi_context, "v1", threshold=0.3, dropout=0.0)
    x, w = (views.weak[:2] for views in batch_of(t).values())
    _, logits_w, logits_fp = t.forward_weak(x, w)
    torch.testing.assert_close(logits_fp, logits_w)
    t = training(semi_context, "v1", threshold=0.3)
    _, logits_w, logits_fp = t.forward_weak(x, w)
    assert (logits_fp - logits_w).abs().max().item() > 1e-3
    t.setup.network.eval()
    _, logits_w, logits_fp = t.forward_weak(x, w)
    clean = t.setup.student(w).logits  # that labels
    torch.testing.assert_close(logits_w, clean)
    assert (logits_fp - clean).abs().max().item() > 1e-4


def test_labels_of_the_own_image_come_from_training_mode_and_of_the_donor_from_evaluation(semi_context, monkeypatch):
    t = training(semi_context, "fixmatch")
    batch = batch_of(t)
    assert len(batch["u"].weak) == 4 and len(batch["u"].strong) == 1
    seen: list[tuple[bool, int]] = []
    through = Forward.through

    def spied(self, network, x):
        seen.append((network.training, len(x)))
        return through(self, network, x)

    monkeypatch.setattr(Forward, "through", spied)
    t.losses(batch, 0)
    assert seen == [(False, 2), (True, 4), (True, 2)]


def test_donors_leave_the_running_statistics_alone(semi_context):
    t = training(semi_context, "v1")
    before = {k: v.clone() for k, v in t.setup.network.named_buffers()}
    t.setup.student.ask(batch_of(t)["u"].weak[2:], t.config.teacher.mode)
    assert all(torch.equal(before[k], v) for k, v in t.setup.network.named_buffers())
    assert t.setup.network.training


@pytest.mark.parametrize("version", um.VERSIONS)
def test_without_unsupervised_weight_it_is_supervised_training(semi_context, version):
    """Without dropout in FixMatch and v1, whose pass that learns also labels."""
    t = training(semi_context, version, weight=0.0)
    assert set(check_is_supervised(semi_context, t, dropout=version == "v2")) == {"loss", "x"}


@pytest.mark.parametrize("version", ["v1", "fixmatch"])
def test_no_gradient_reaches_the_weak_views_logits(semi_context, monkeypatch, version):
    t = training(semi_context, version, threshold=0.0)
    weak, graphs = [], []
    forward, label = t.forward_weak, um.pseudo_labels
    monkeypatch.setattr(t, "forward_weak", lambda *a: weak.append(forward(*a)) or weak[-1])
    monkeypatch.setattr(um, "pseudo_labels", lambda q, *a: graphs.append(q.requires_grad) or label(q, *a))
    loss = t.losses(batch_of(t), 0)["loss"]
    logits_w = weak[0][1]
    assert logits_w.requires_grad and graphs == [False, False]
    assert torch.autograd.grad(loss, logits_w, allow_unused=True) == (None,)


def test_where_nothing_is_sure_half_of_the_supervised_gradient_is_left(semi_context):
    t = training(semi_context, "v1", threshold=1.5, freeze_norm=True)
    batch = batch_of(t)
    t.setup.network.eval()  # batch statistics would couple the two halves
    t.setup.student.learn = lambda: None
    t.losses(batch, 0)["loss"].backward()
    found = [p.grad.clone() for p in t.setup.network.parameters() if p.grad is not None]
    t.setup.network.zero_grad()
    (t.setup.supervised(t.setup.student(batch["x"].weak), batch["x"].y) / 2).backward()
    plain = [p.grad for p in t.setup.network.parameters() if p.grad is not None]
    for a, b in zip(found, plain, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-6)


# ---------------------------------------------------------------------- v2


def test_v2_is_the_default_on_any_encoder(semi_context, vit_context):
    for context in (semi_context, vit_context):
        method = um.UniMatch(configure(um.UniMatchConfig, {"crop": 32}), context)
        assert method.trainer is um.UniMatchV2Training and method.result == "teacher"


@pytest.mark.parametrize("version", um.VERSIONS)
def test_statistics_that_nothing_moves_are_refused(version):
    """The versions without a teacher refuse the option itself."""
    settings = {"version": version, "ema_buffers": "own"}
    if version == "v2":
        configure(um.UniMatchConfig, {**settings, "teacher_mode": "train"})
    found = "ema_buffers=own" if version == "v2" else f"teacher.buffers=own with version={version}: nothing depends"
    with pytest.raises(MaskwrightError, match=found):
        configure(um.UniMatchConfig, settings)


@pytest.mark.parametrize("unlabeled", [1, 2, 3])
def test_v2_takes_any_number_of_unlabelled_crops(vit_context, unlabeled):
    t = training(vit_context, "v2", batch_unlabeled=unlabeled, threshold=0.0)
    assert type(t) is um.UniMatchV2Training and t.setup.crop == 32
    batch = batch_of(t)
    assert [len(s) for s in batch["u"].strong] == [unlabeled, unlabeled]
    terms = t.losses(batch, 0)
    torch.testing.assert_close(terms["loss"], (terms["x"] + terms["u"]) / 2)
    terms["loss"].backward()
    assert all(p.grad is None for p in t.teacher.average.parameters())


def test_dropout_reaches_the_student_and_not_the_teacher(vit_context):
    t = training(vit_context, "v2", whole=0.0)
    w = batch_of(t)["u"].weak
    torch.manual_seed(0)
    a, clean = t.teacher(w), t.setup.student(w).logits.detach()
    torch.manual_seed(1)
    assert torch.equal(a, t.teacher(w))
    with torch.no_grad():
        both = t.forward_strong(torch.cat([w, w]))
    assert float((both[: len(w)] - clean).abs().max()) > 1e-4
    t.config = dataclasses.replace(t.config, whole=1.0)
    torch.testing.assert_close(t.forward_strong(w).detach(), clean)


def test_the_first_update_of_the_teacher_copies(vit_context):
    t = training(vit_context, "v2")
    with torch.no_grad():
        for p in t.setup.network.parameters():
            p.add_(1.0)
    t.after_step(0)
    pairs = list(zip(t.teacher.network.parameters(), t.setup.network.parameters(), strict=True))
    assert all(torch.equal(a, b) and a.data_ptr() != b.data_ptr() for a, b in pairs)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("version", "backbone", "part"), [("v2", VIT, "teacher"), ("fixmatch", "tf_efficientnet_lite0", "network")]
)
def test_killed_and_resumed_to_the_same_weights(tmp_path, monkeypatch, version, backbone, part):
    data = write_tiny_folder(tmp_path / "tiny")

    def run(out: Path, **more):
        return mw.train(
            data, "unimatch", out=out, labeled="train", backbone=backbone, weights="random", steps=4, device="cpu",
            settings={"crop": 32, "batch": 2, "version": version}, progress=Progress(quiet=True), report=False, **more,
        )  # fmt: skip

    model = run(tmp_path / "whole")
    assert model.predict(np.zeros((41, 50, 3), np.uint8)).mask.shape == (41, 50)
    real_fit, real_save, stops = loop.fit, resuming.save_checkpoint, []

    def stopping(path, state):
        real_save(path, state)
        if not stops:
            stops.append(state["step"])
            raise KeyboardInterrupt

    monkeypatch.setattr("maskwright.engine.context.fit", lambda *g, **o: real_fit(*g, **(o | {"checkpoint_every": 2})))
    monkeypatch.setattr(resuming, "save_checkpoint", stopping)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "killed")
    run(tmp_path / "killed", resume=True)
    a, b = (load_file(tmp_path / k / "model.safetensors") for k in ("whole", "killed"))
    assert stops == [2] and all(torch.equal(a[k], b[k]) for k in a)
    state = torch.load(tmp_path / "whole" / "train" / "checkpoint.pt", weights_only=True)
    assert f"module.{part}" in state["parts"]
