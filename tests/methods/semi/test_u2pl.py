"""U2PL: which pixels are learnt, which are negatives, and the step."""

from __future__ import annotations

import math
from typing import NamedTuple

import pytest
import torch
import torch.nn.functional as F
from tests.methods.semi.checks import batch_of, check_is_supervised, labels_of, seeded
from torch import Tensor, nn

from maskwright.data.training.labels import LabelMap
from maskwright.data.training.sources import MaskLabels
from maskwright.engine.config import configure
from maskwright.errors import MaskwrightError
from maskwright.methods.semi import u2pl
from maskwright.ops.losses.thresholds import entropy_masks
from maskwright.recipes.consistency.parts import joined
from maskwright.recipes.consistency.representation import RepresentationHead, at_size, labels_at


def training(context, **options):
    settings = {"crop": 32, "batch": 2, "precision": "fp32", **options}
    if options.get("weight") != 0:
        settings = {"start": 0.0, "representation": 16, **settings}
    config = configure(u2pl.U2PLConfig, settings)
    return u2pl.U2PLTraining(context, config, MaskLabels(context.data, context.classes), 4)


class Pass(NamedTuple):
    """The student's pass over the next batch: its representations, labels (B + U, h, w) of their places, and B."""

    r: Tensor
    labels: LabelMap
    n: int


def together(t) -> Pass:
    batch = batch_of(t)
    views, labels = t.mixed(batch["u"])
    x = batch["x"]
    r = t.represent(t.head, t.setup.student(torch.cat([x.weak, views])).embedding)
    return Pass(r, labels_at(joined([x.y, labels]), (r.shape[-2], r.shape[-1])), len(x.weak))


# ---------------------------------------------------------------------- which pixels


def test_ranks_count_the_likelier_classes():
    q = torch.randn(2, 6, 3, 4, generator=seeded()).softmax(1)
    expected = (q[:, None] > q[:, :, None]).sum(2)  # of class c the classes that are likelier
    assert torch.equal(u2pl.ranks(q), expected)


@pytest.mark.parametrize(
    ("classes", "window"), [(2, (1, 2)), (3, (2, 3)), (4, (3, 4)), (19, (3, 19)), (21, (3, 20)), (150, (3, 20))]
)
def test_ranks_are_capped_by_the_classes(classes, window):
    assert u2pl.rank_window(3, 20, classes) == window


@pytest.mark.parametrize("classes", [2, 3, 7])
def test_negatives_against_a_loop(classes):
    q = torch.randn(4, classes, 3, 5, generator=seeded()).softmax(1)
    labels, unsure = labels_of(4, 3, 5, classes), torch.rand(4, 3, 5, generator=seeded(1)) < 0.5
    low, high = u2pl.rank_window(3, 5, classes)
    found = u2pl.negative_pixels(q, labels, unsure, 2, (low, high))
    for b in range(4):
        for i in range(3):
            for j in range(5):
                order = q[b, :, i, j].argsort(descending=True).tolist()
                for c in range(classes):
                    rank = order.index(c)
                    if b < 2:
                        expected = bool(labels.valid[b, i, j]) and int(labels.ids[b, i, j]) != c and rank < low
                    else:
                        expected = bool(unsure[b, i, j]) and low <= rank < high
                    assert bool(found[b, c, i, j]) == expected
    assert bool(found[:2].any()) and bool(found[2:].any())


def test_no_pixel_is_a_negative_of_a_class_that_the_teacher_is_certain_of():
    """Labelled pixels of class 0, of which the teacher says 1 with certainty, then almost."""
    labels = LabelMap(torch.zeros(2, 1, 1).long(), torch.ones(2, 1, 1), torch.ones(2, 1, 1) > 0)
    q = torch.tensor([[0.0, 1.0, 0.0], [1e-6, 1 - 2e-6, 1e-6]]).view(2, 3, 1, 1)
    found = u2pl.negative_pixels(q, labels, labels.valid, 2, (3, 4)).flatten(1)
    assert found.tolist() == [[False, False, True], [False, True, True]]


def test_percentages_fall_linearly_to_nothing():
    assert [u2pl.annealed(20, s, 80) for s in (0, 20, 40, 80, 90)] == [20, 15, 10, 0, 0]
    q = torch.randn(3, 4, 8, 8, generator=seeded()).softmax(1)
    at_the_end = entropy_masks(q, 100 - u2pl.annealed(20, 80, 80), 100).reliable
    at_first = entropy_masks(q, 100 - u2pl.annealed(20, 0, 80), 100).reliable
    assert bool(at_the_end.all())
    assert float(at_first.float().mean()) == pytest.approx(0.8, abs=0.01)


def test_reliable_loss_against_its_formula():
    logits, labels = torch.randn(2, 3, 6, 6, generator=seeded()), labels_of(2, 6, 6, 3)
    kept = labels.restrict(torch.rand(2, 6, 6, generator=seeded(2)) < 0.5)
    nll = F.cross_entropy(logits, labels.ids, reduction="none")
    n, k = int(labels.valid.sum()), int(kept.valid.sum())
    loss = u2pl.reliable_cross_entropy(logits, kept, labels.valid)
    assert 0 < k < n and float(loss) == pytest.approx(n / k * float(nll[kept.valid].mean()), rel=1e-5)
    nothing = labels.restrict(torch.zeros_like(labels.valid))
    assert float(u2pl.reliable_cross_entropy(logits, nothing, labels.valid)) == 0


# ---------------------------------------------------------------------- queues


def test_queues_share_the_rows_and_never_exceed_the_papers(semi_context):
    t = training(semi_context, bank=111)
    assert t.banks.sizes.tolist() == [51, 30, 30] and t.banks.rows.dtype == torch.float16
    assert training(semi_context, bank=300_000, representation=1).banks.sizes.tolist() == [50_000, 30_000, 30_000]


def test_the_newest_rows_stay_and_of_too_many_random_ones(semi_context):
    t = training(semi_context, bank=12)  # 6, 3, 3
    rows = F.normalize(torch.randn(40, 16, generator=seeded()), dim=1)
    negatives = torch.zeros(3, 40, dtype=torch.bool)
    negatives[0, :4] = negatives[1, 10:] = True
    t.enqueue(rows, negatives)
    assert t.banks.counts.tolist() == [4, 3, 0]
    assert torch.equal(t.banks.get(0), rows[:4].half())
    from_all = [torch.equal(r, s) for r in t.banks.get(1) for s in rows[10:].half()]
    assert sum(from_all) == 3
    negatives[0] = False
    negatives[0, 20:23] = True
    t.enqueue(rows, negatives)
    assert torch.equal(t.banks.get(0), torch.cat([rows[1:4], rows[20:23]]).half())
    t.enqueue(rows, negatives)
    assert torch.equal(t.banks.get(0), torch.cat([rows[20:23], rows[20:23]]).half())


def test_queues_never_hold_labelled_pixels_of_their_class(semi_context):
    """Every feature is the pixel's own label; the teacher is unsure of everything."""
    t = training(semi_context)
    all_ = together(t)
    b, (h, w) = len(all_.r), all_.r.shape[-2:]
    r = F.one_hot(all_.labels.ids, 16).permute(0, 3, 1, 2).float()
    q = torch.full((b, 3, h, w), 1 / 3) + 1e-3 * torch.rand(b, 3, h, w)
    nothing = torch.zeros(2, h, w, dtype=torch.bool)
    t.contrast(*all_, q, r, nothing, nothing)
    assert len(t.banks) > 0
    for c in range(3):
        assert bool((t.banks.get(c)[:, c] == 0).all())


def test_anchors_are_sure_pixels_of_low_entropy(semi_context, monkeypatch):
    t = training(semi_context, anchor=0.4)
    all_ = together(t)
    h, w = all_.r.shape[-2:]
    q = torch.randn(4, 3, h, w, generator=seeded()).softmax(1)
    low, high = (torch.rand(2, h, w, generator=seeded(s)) < 0.5 for s in (1, 2))
    low &= all_.labels.valid[2:]
    drawn = []
    real = u2pl.draw_queries
    monkeypatch.setattr(u2pl, "draw_queries", lambda *a: drawn.append(real(*a)) or drawn[-1])
    t.contrast(*all_, q, all_.r.detach(), low, high)
    mask = torch.cat([all_.labels.valid[:2], low]).flatten()
    p = q.gather(1, all_.labels.ids[:, None]).flatten()
    assert len(drawn[0].places) and bool(mask[drawn[0].places].all()) and float(p[drawn[0].places].min()) > 0.4
    assert torch.equal(all_.labels.ids.flatten()[drawn[0].places], drawn[0].ids)


def test_contrast_against_a_loop(semi_context, monkeypatch):
    """Of five classes 0 and 1 have anchors, 3 has none that is sure, 2 has no pixel of low entropy, 4 none at all."""
    monkeypatch.setattr(type(semi_context), "classes", 5)
    t = training(semi_context, anchors=8, negatives=6, temperature=0.4)
    h, w = 5, 6
    reliable, unreliable, kept = (torch.rand(2, h, w, generator=seeded(s)) < 0.5 for s in (1, 2, 3))
    y, u = labels_of(2, h, w, 5), labels_of(2, h, w, 5, seed=4)
    low = torch.cat([y.valid, reliable])
    ids = torch.tensor([0, 1, 3, 0, 1])[torch.cat([y.ids, u.ids])]
    ids = torch.where(low | torch.cat([kept, ~kept]), ids, 2)
    y, u = LabelMap(ids[:2], y.confidence, y.valid), LabelMap(ids[2:], u.confidence, u.valid)
    logits = torch.randn(4, 5, h, w, generator=seeded(5))
    logits[:, 3] -= 3
    q = logits.softmax(1)
    student, r = (torch.randn(4, 16, h, w, generator=seeded(s)) for s in (6, 7))
    asked, drawn, places = [], [], []
    draw, index = u2pl.draw_queries, t.banks.index
    monkeypatch.setattr(u2pl, "draw_queries", lambda *a: asked.append(a) or drawn.append(draw(*a)) or drawn[-1])
    monkeypatch.setattr(t.banks, "index", lambda *a: places.append(index(*a)) or places[-1])
    loss = t.contrast(student, joined([y, u]), 2, q, r, reliable, unreliable)

    pixels = [(b, i, j) for b in range(4) for i in range(h) for j in range(w)]
    queues, members, anchors = [[] for _ in range(5)], [[] for _ in range(5)], []
    for b, i, j in pixels:
        own, order = int(ids[b, i, j]), q[b, :, i, j].argsort(descending=True).tolist()
        for c in range(5):
            if b < 2:
                negative = bool(y.valid[b, i, j]) and own != c and order.index(c) < 3
            else:
                negative = bool(unreliable[b - 2, i, j]) and order.index(c) >= 3
            if negative:
                queues[c].append(r[b, :, i, j] / r[b, :, i, j].norm())
        if low[b, i, j]:
            members[own].append(r[b, :, i, j])
        anchors.append(bool(low[b, i, j]) and float(q[b, own, i, j]) > 0.3)
    assert [bool(m) for m in members] == [True, True, False, True, False]
    for c, rows in enumerate(queues):
        torch.testing.assert_close(t.banks.get(c), torch.stack(rows).half())
    assert torch.equal(asked[0][0], ids.flatten()) and asked[0][1].tolist() == anchors
    assert drawn[0].classes.tolist() == [0, 1] and places[0].shape == (2 * 8, 6)

    total = 0.0
    for place, c, others in zip(drawn[0].places.tolist(), drawn[0].ids.tolist(), places[0].tolist()):
        b, i, j = pixels[place]
        first = int(t.banks.offsets[c])
        assert all(first <= k < first + len(queues[c]) for k in others)
        mean = torch.stack(members[c]).mean(0)
        near, *far = (
            math.exp(float(F.cosine_similarity(student[b, :, i, j], v, dim=0)) / 0.4)
            for v in (mean, *(queues[c][k - first] for k in others))
        )
        total -= math.log(near / (near + sum(far)))
    assert float(loss) == pytest.approx(total / 8 / 3, rel=1e-3)  # three classes are there; rows are in half precision


# ---------------------------------------------------------------------- the step


def test_total_is_the_sum_and_gradients_stay_with_the_student(semi_context):
    t = training(semi_context, contrast=0.5)
    terms = t.losses(batch_of(t), 0)
    torch.testing.assert_close(terms["u"], terms["reliable"] + 0.5 * terms["contrast"])
    torch.testing.assert_close(terms["loss"], terms["x"] + terms["u"])
    assert float(terms["contrast"].detach()) > 0
    terms["loss"].backward()
    assert all(p.grad is None for m in (t.teacher.average, t.teacher_head) for p in m.parameters())
    assert all(p.grad is not None for p in t.head.parameters())
    assert not t.banks.rows.requires_grad


def test_contrast_alone_trains_the_head_and_not_the_classifier(semi_context):
    t = training(semi_context)
    terms = t.losses(batch_of(t), 0)
    terms["contrast"].backward()
    assert all(p.grad is None for p in t.setup.network.classifier.parameters())
    assert any(float(p.grad.abs().sum()) > 0 for p in t.head.parameters())


@pytest.mark.parametrize(("step", "drop", "alpha"), [(1, 15, 7.5), (3, 5, 2.5)])
def test_pixels_are_chosen_by_the_entropy_of_the_pass_for_features(semi_context, monkeypatch, step, drop, alpha):
    t = training(semi_context, drop=20.0, alpha=10.0, contrast=0.5)
    batch, labels = batch_of(t), labels_of(2, 32, 32, 3)
    views = torch.randn(2, 3, 32, 32, generator=seeded(2))
    q = torch.randn(4, 3, 32, 32, generator=seeded()).softmax(1)
    r = torch.randn(4, 16, 8, 8, generator=seeded(1))
    asked, seen, passes, said = [], [], [], []
    student, represent = t.setup.student, t.represent
    monkeypatch.setattr(t, "mixed", lambda u: (views, labels))
    monkeypatch.setattr(t, "student", lambda x: passes.append((x, student(x))) or passes[-1][1])
    monkeypatch.setattr(t, "represent", lambda *a: said.append(represent(*a)) or said[-1])
    monkeypatch.setattr(t, "teach_features", lambda x: asked.append(x) or (q, r))
    monkeypatch.setattr(t, "contrast", lambda *a: seen.append(a) or torch.tensor(2.0))
    terms = t.losses(batch, step)
    ((x, out),) = passes
    assert torch.equal(x, torch.cat([batch["x"].weak, views])) and torch.equal(asked[0], x)
    valid = labels.valid
    kept = labels.restrict(entropy_masks(q[2:], 100 - drop, 100, valid).reliable)
    assert float(kept.valid.sum() / valid.sum()) == pytest.approx(1 - drop / 100, abs=0.01)
    loss_u = u2pl.reliable_cross_entropy(out.logits[2:], kept, valid)
    torch.testing.assert_close(terms["reliable"], loss_u)
    torch.testing.assert_close(terms["u"], loss_u + 1)
    low, high, _ = entropy_masks(q[2:], alpha, 100 - alpha, valid)
    of_student, everything, n, at, features, reliable, unreliable = seen[0]
    assert of_student is said[0] and features is r and n == 2
    assert torch.equal(everything.ids, torch.cat([batch["x"].y.ids, labels.ids])[..., 2::4, 2::4])
    assert torch.equal(everything.valid, torch.cat([batch["x"].y.valid, valid])[..., 2::4, 2::4])
    for found, whole in ((at, q), (reliable, low), (unreliable, high)):
        assert torch.equal(found, whole[..., 2::4, 2::4])


@pytest.mark.parametrize("chance", [0.0, 1.0])
def test_cutmix_moves_views_and_labels_together(semi_context, monkeypatch, chance):
    t = training(semi_context, cutmix=chance)
    batch = batch_of(t)
    own = LabelMap(torch.arange(2).view(2, 1, 1).expand(2, 32, 32), torch.ones(2, 32, 32), torch.ones(2, 32, 32) > 0)
    monkeypatch.setattr(u2pl, "pseudo_labels", lambda q, valid: own)
    s = own.ids[:, None].expand(2, 3, 32, 32).float()
    views, labels = t.mixed(batch["u"]._replace(strong=(s,)))
    assert torch.equal(views[:, 0].long(), labels.ids)
    share = float((labels.ids != own.ids).float().mean())
    assert share == pytest.approx(0.5, abs=0.03) if chance else share == 0


def test_the_teachers_head_follows(semi_context):
    t = training(semi_context)
    with torch.no_grad():
        for p in t.head.parameters():
            p.add_(1.0)
    t.after_step(0)
    for a, b in zip(t.teacher_head.module.parameters(), t.head.parameters(), strict=True):
        assert torch.equal(a, b) and a.data_ptr() != b.data_ptr()


@pytest.mark.parametrize("mode", ["eval", "train"])
def test_features_are_taken_in_training_mode_and_labels_as_asked(semi_context, mode):
    t = training(semi_context, teacher_mode=mode, ema_buffers="own")
    w, norm = batch_of(t)["u"].weak, next(m for m in t.teacher.network.modules() if isinstance(m, nn.BatchNorm2d))
    count = int(norm.num_batches_tracked)
    t.teach(w)
    assert int(norm.num_batches_tracked) == count + (mode == "train")
    before = norm.running_mean.clone()
    t.teach_features(w)
    assert int(norm.num_batches_tracked) == count + 1 + (mode == "train") and not torch.equal(norm.running_mean, before)
    t.after_step(0)
    assert torch.equal(norm.num_batches_tracked, torch.tensor(count + 1 + (mode == "train")))  # its own
    assert not any(m.training for m in t.teacher.average.modules() if isinstance(m, nn.Dropout))


def test_a_window_of_no_ranks_is_refused():
    with pytest.raises(MaskwrightError, match="rank_low"):
        configure(u2pl.U2PLConfig, {"rank_low": 5, "rank_high": 3})


def test_without_weight_it_is_supervised_training(semi_context):
    t = training(semi_context, weight=0.0)
    terms = check_is_supervised(semi_context, t)
    assert set(terms) == {"loss", "x"} and len(t.banks) == 0


# ---------------------------------------------------------------------- representations


def test_the_head_and_its_place(semi_context):
    head = RepresentationHead(24, 16)
    assert head(torch.randn(2, 24, 7, 9)).shape == (2, 16, 7, 9)
    t = training(semi_context)
    assert t.represent(t.head, torch.randn(2, t.setup.network.width, 32, 32)).shape == (2, 16, 8, 8)
    assert t.represent(t.head, torch.randn(2, t.setup.network.width, 4, 4)).shape == (2, 16, 4, 4)
    assert not any("head" in k for k in t.setup.network.state_dict() if k.startswith("head"))


def test_maps_at_another_size():
    x = torch.randn(1, 2, 8, 8, generator=seeded())
    torch.testing.assert_close(at_size(x, (4, 4)), F.avg_pool2d(x, 2))
    assert at_size(x, (8, 8)) is x
    assert at_size(x, (16, 16)).shape == (1, 2, 16, 16)
