"""ReCo: regional contrast, the weighted consistency, and the step."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from tests.methods.semi.checks import batch_of, check_is_supervised, labels_of, seeded

from maskwright.data.training.labels import LabelMap
from maskwright.data.training.sources import MaskLabels
from maskwright.engine.config import configure
from maskwright.methods.semi import reco_semi as rs
from maskwright.ops.losses.region_contrast import Queries


def training(context, **options):
    settings = {"crop": 32, "batch": 2, "precision": "fp32"}
    if options.get("weight") != 0:
        settings |= {"representation": 16, "queries": 8, "negatives": 6}
    config = configure(rs.ReCoConfig, {**settings, **options})
    return rs.ReCoTraining(context, config, MaskLabels(context.data, context.classes), 4)


def loss_of(r, p, labels, **options):
    settings = {"threshold": 0.97, "temperature": 0.5, "queries": 32, "negatives": 512, **options}
    return rs.reco_loss(r, p, labels, **settings)


# ---------------------------------------------------------------------- L_u


def test_consistency_against_a_loop():
    logits, labels = torch.randn(3, 4, 5, 5, generator=seeded()), labels_of(3, 5, 5, 4)
    nll = F.cross_entropy(logits, labels.ids, reduction="none")
    total = 0.0
    for n in range(3):
        valid = labels.valid[n]
        eta = int((labels.confidence[n][valid] >= 0.6).sum()) / int(valid.sum())
        total += eta * float(nll[n][valid].sum())
    found = rs.weighted_consistency(logits, labels, 0.6)
    assert float(found) == pytest.approx(total / int(labels.valid.sum()), rel=1e-5)


def test_pixels_that_are_certain_stay_in_the_mean():
    labels = LabelMap(torch.zeros(1, 1, 4).long(), torch.ones(1, 1, 4), torch.ones(1, 1, 4) > 0)
    logits = torch.zeros(1, 2, 1, 4)
    logits[0, 0, 0, :2] = 1e4
    assert float(rs.weighted_consistency(logits, labels, 0.9)) == pytest.approx(math.log(2) / 2)


# ---------------------------------------------------------------------- L_reco


def test_one_class_alone_is_zero():
    r = torch.randn(12, 4, generator=seeded()).requires_grad_()
    labels = LabelMap(torch.ones(1, 3, 4).long(), torch.ones(1, 3, 4), torch.ones(1, 3, 4) > 0)
    loss = loss_of(r, torch.full((12, 3), 1 / 3), labels)
    loss.backward()
    assert float(loss.detach()) == 0 and float(r.grad.abs().sum()) == 0


def test_opposite_regions_give_the_closed_form():
    """Positive cosines of 1, negative ones of -1: -log 1 / (1 + 512 e^{-2 / tau})."""
    ids = torch.arange(16).view(1, 4, 4) % 2
    r = torch.where(ids.flatten()[:, None] == 0, 1.0, -1.0) * torch.tensor([[0.6, 0.8]])
    labels = LabelMap(ids, torch.ones(1, 4, 4), torch.ones(1, 4, 4) > 0)
    for tau in (0.5, 0.25):
        found = loss_of(r, torch.full((16, 2), 0.5), labels, temperature=tau)
        assert float(found) == pytest.approx(math.log(1 + 512 * math.exp(-2 / tau)), rel=1e-5)


def test_queries_are_hard_and_gradients_flow_through_them_alone(monkeypatch):
    labels = labels_of(2, 6, 6, 4)
    r = torch.randn(72, 5, generator=seeded()).requires_grad_()
    p = (3 * torch.randn(72, 4, generator=seeded(1))).softmax(1).requires_grad_()
    seen: list[Queries] = []
    real = rs.draw_queries
    monkeypatch.setattr(rs, "draw_queries", lambda *a: seen.append(real(*a)) or seen[-1])
    loss_of(r, p, labels, threshold=0.5).backward()
    assert p.grad is None
    own = p.detach().gather(1, labels.ids.flatten()[:, None])[:, 0]
    hard = labels.valid.flatten() & (own < 0.5)
    moved = r.grad.abs().sum(1) > 0
    assert bool(hard[moved].all()) and int(moved.sum()) > 10
    assert not bool(moved[~labels.valid.flatten()].any())


def test_classes_without_a_hard_pixel_count_as_zero():
    ids = torch.arange(16).view(1, 4, 4) % 2
    r = torch.where(ids.flatten()[:, None] == 0, 1.0, -1.0) * torch.tensor([[0.6, 0.8]])
    labels = LabelMap(ids, torch.ones(1, 4, 4), torch.ones(1, 4, 4) > 0)
    p = torch.tensor([[0.5, 0.5], [0.001, 0.999]])[ids.flatten()]
    found = loss_of(r, p, labels)
    assert float(found) == pytest.approx(math.log(1 + 512 * math.exp(-4)) / 2, rel=1e-5)
    assert float(loss_of(r, torch.ones(16, 2), labels)) == 0


def test_easily_confused_classes_are_drawn_more_often(monkeypatch):
    """Classes 0 and 1 point the same way, class 2 away."""
    directions = torch.tensor([[1.0, 0.0], [0.9, 0.1], [-1.0, 0.0]])
    ids = (torch.arange(36) % 3).view(1, 6, 6)
    labels = LabelMap(ids, torch.ones(1, 6, 6), torch.ones(1, 6, 6) > 0)
    drawn = []
    real = rs.draw_negatives

    def recording(queries, weights, sorted_ids, count):
        index = real(queries, weights, sorted_ids, count)
        drawn.append((queries.ids, sorted_ids[index]))
        return index

    monkeypatch.setattr(rs, "draw_negatives", recording)
    loss_of(directions[ids.flatten()], torch.full((36, 3), 1 / 3), labels)
    own, classes = drawn[0]
    assert not bool((classes == own[:, None]).any())
    share = float((classes[own == 0] == 1).float().mean())
    a, b = (math.exp(2 * float(F.cosine_similarity(directions[0], directions[j], dim=0))) for j in (1, 2))
    assert share == pytest.approx(a / (a + b), abs=0.01)


# ---------------------------------------------------------------------- the step


@pytest.mark.parametrize("how", rs.MIXES)
def test_views_labels_confidence_and_validity_come_from_one_place(semi_context, monkeypatch, how):
    t = training(semi_context, mix=how, strong="none")
    u = batch_of(t)["u"]
    address = torch.arange(2 * 32 * 32).view(2, 32, 32)
    own = LabelMap(torch.randint(3, (2, 32, 32)), address / address.max(), address % 5 > 0)
    monkeypatch.setattr(rs, "pseudo_labels", lambda q, valid: own)
    views, labels = t.mixed(u._replace(strong=(address[:, None].expand(2, 3, 32, 32).float(),)))
    at = views[:, 0].long()
    if how == "cutout":
        hole = (at == 0) & (address > 0)
        assert not bool(labels.valid[hole].any()) and 0.3 < float(hole.float().mean()) < 0.7
        at = torch.where(hole, address, at)
        expected = own.valid & ~hole
    else:
        expected = own.valid.flatten()[at]
        assert bool((at != address).any()) == (how != "none")
    assert torch.equal(labels.valid, expected)
    torch.testing.assert_close(labels.confidence, own.confidence.flatten()[at])
    assert torch.equal(labels.ids, own.ids.flatten()[at])


def test_total_is_the_sum_and_gradients_stay_with_the_student(semi_context):
    t = training(semi_context, contrast=0.5)
    terms = t.losses(batch_of(t), 0)
    torch.testing.assert_close(terms["u"], terms["consistency"] + 0.5 * terms["contrast"])
    torch.testing.assert_close(terms["loss"], terms["x"] + terms["u"])
    assert float(terms["contrast"].detach()) > 0
    terms["loss"].backward()
    assert all(p.grad is None for p in t.teacher.average.parameters())
    assert all(p.grad is not None for p in t.head.parameters())


def test_the_contrast_is_asked_for_the_students_pixels_with_the_configured_numbers(semi_context, monkeypatch):
    """Unlabelled pixels enter it from the weak threshold on."""
    t = training(semi_context, weak_threshold=1.0, strong_threshold=0.4, temperature=0.3)
    passes, said, mixes, weighted, seen = [], [], [], [], []

    def spied(found, function):
        """Keeps what a function of the step returns."""
        return lambda *args: found.append(function(*args)) or found[-1]

    monkeypatch.setattr(t, "student", spied(passes, t.setup.student))
    monkeypatch.setattr(t, "represent", spied(said, t.represent))
    monkeypatch.setattr(t, "mixed", spied(mixes, t.mixed))
    consistency = rs.weighted_consistency
    monkeypatch.setattr(rs, "weighted_consistency", lambda *a: weighted.append(a) or consistency(*a))
    monkeypatch.setattr(rs, "reco_loss", lambda r, p, labels, **o: seen.append((r, p, labels, o)) or 0 * r.sum())
    batches = [batch_of(t), batch_of(t)]
    t.losses(batches[0], 0)
    t.config.weak_threshold = 0.0
    t.losses(batches[1], 0)
    for batch, out, r_all, (_, own), (f, k, threshold), (r, p, labels, options) in zip(
        batches, passes, said, mixes, weighted, seen, strict=True
    ):
        assert options == {"threshold": 0.4, "temperature": 0.3, "queries": 8, "negatives": 6}
        assert torch.equal(f, out.logits[2:]) and k is own and threshold == 0.4
        assert len(r) == len(p) == labels.ids.numel() and not p.requires_grad
        at = out.logits.softmax(1)[..., 2::4, 2::4]  # the student's
        torch.testing.assert_close(p.view(4, 8, 8, 3).permute(0, 3, 1, 2), at)
        assert torch.equal(r.view(4, 8, 8, 16).permute(0, 3, 1, 2), r_all)
        assert torch.equal(labels.ids, torch.cat([batch["x"].y.ids, own.ids])[..., 2::4, 2::4])
    assert not bool(seen[0][2].valid[2:].any()) and bool(seen[1][2].valid[2:].any())
    assert bool(seen[0][2].valid[:2].any())


def test_without_weight_it_is_supervised_training(semi_context):
    check_is_supervised(semi_context, training(semi_context, weight=0.0))
