"""Mean Teacher under its perturbations."""

from __future__ import annotations

import pytest
import torch
from tests.methods.semi.checks import batch_of, check_resumes, sharpen

from maskwright.data.training.labels import LabelMap
from maskwright.data.training.mixing import MASKS, class_mask, complex_mask
from maskwright.data.training.sources import MaskLabels
from maskwright.engine.config import configure
from maskwright.errors import MaskwrightError
from maskwright.methods.semi.mean_teacher import (
    PERTURBATIONS,
    MeanTeacherConfig,
    MeanTeacherTraining,
    consistency,
    sureness,
)
from maskwright.recipes.training.forward import Forward


def training(context, **options):
    config = configure(MeanTeacherConfig, {"crop": 32, "batch": 2, "precision": "fp32", **options})
    return MeanTeacherTraining(context, config, MaskLabels(context.data, context.classes), 10)


def test_kl_is_the_divergence_of_the_student_from_the_teacher():
    g = torch.Generator().manual_seed(0)
    logits, weight = torch.randn(2, 4, 3, 5, generator=g), torch.rand(2, 3, 5, generator=g)
    q = torch.randn(2, 4, 3, 5, generator=g).softmax(1)
    slow = (weight * (q * (q.log() - logits.log_softmax(1))).sum(1)).sum() / weight.numel()
    assert float(consistency(logits, q, weight, "kl")) == pytest.approx(float(slow), rel=1e-5)


def test_class_255_is_no_ignored_class():
    logits = torch.zeros(1, 300, 2, 2)
    q = torch.zeros(1, 300, 2, 2)
    q[:, 255] = 1
    assert float(consistency(logits, q, torch.ones(1, 2, 2), "hard")) == pytest.approx(5.7038, rel=1e-4)


def test_one_crop_alone_is_told(semi_context):
    training(semi_context, perturb="cutmix", batch_unlabeled=1)
    assert any("nothing is mixed" in n for n in semi_context.notes)
    semi_context.notes.clear()
    training(semi_context, perturb="photometric", batch_unlabeled=1)
    assert not semi_context.notes


def test_a_teacher_that_keeps_its_first_statistics_is_refused():
    with pytest.raises(MaskwrightError, match="teacher_mode=train"):
        configure(MeanTeacherConfig, {"ema_buffers": "own"})
    configure(MeanTeacherConfig, {"ema_buffers": "own", "teacher_mode": "train"})


@pytest.mark.parametrize("distance", ["square_sum", "square_mean", "hard"])
def test_consistency_against_a_loop(distance):
    g = torch.Generator().manual_seed(0)
    logits, weight = torch.randn(2, 4, 3, 5, generator=g), torch.rand(2, 3, 5, generator=g)
    q = torch.randn(2, 4, 3, 5, generator=g).softmax(1)
    total = 0.0
    for b in range(2):
        for i in range(3):
            for j in range(5):
                p, t = logits[b, :, i, j].softmax(0), q[b, :, i, j]
                d = -p[t.argmax()].log() if distance == "hard" else (p - t).square().sum()
                total += float(weight[b, i, j] * d) / (4 if distance == "square_mean" else 1)
    assert float(consistency(logits, q, weight, distance)) == pytest.approx(total / 30, rel=1e-5)


def test_sureness():
    valid = torch.ones(2, 2, 2, dtype=torch.bool)
    valid[0, 0, 0] = False
    confidence = torch.tensor([[[1.0, 0.9], [0.2, 0.9]], [[0.1, 0.1], [0.1, 0.9]]])
    y = LabelMap(torch.zeros(2, 2, 2).long(), confidence, valid)
    v = valid.float()
    assert torch.equal(sureness(y, 0.9, "none"), v)
    assert torch.allclose(sureness(y, 0.9, "image"), v * torch.tensor([2 / 3, 1 / 4])[:, None, None])
    assert torch.allclose(sureness(y, 0.9, "batch"), v * 3 / 7)
    assert torch.equal(sureness(y, 0.9, "pixel"), ((confidence >= 0.9) & valid).float())


@pytest.mark.parametrize("perturb", PERTURBATIONS)
def test_pixels_labels_confidence_and_validity_come_from_the_same_place(semi_context, perturb):
    """Every pixel carries its own address in the picture, in the probabilities and in the labels."""
    t = training(semi_context, perturb=perturb)
    n = 3
    address = torch.arange(n * 32 * 32).view(n, 32, 32)
    ids = torch.randint(0, 3, (n, 32, 32))
    labels = LabelMap(ids, address / address.max(), address % 7 > 0)
    s, q = address[:, None].float().expand(n, 3, 32, 32).clone(), address[:, None].float().expand(n, 4, 32, 32).clone()
    before = (s.clone(), q.clone(), labels.confidence.clone())
    x, p, y = t.perturb(s, q, labels)
    assert torch.equal(s, before[0]) and torch.equal(q, before[1]) and torch.equal(labels.confidence, before[2])
    source = p[:, 0].long()
    if perturb.startswith("cutout"):
        hole = (x[:, 0] == 0) & (source > 0)
        assert hole.any() and not y.valid[hole].any()
        assert torch.equal(x[:, 0][~hole], p[:, 0][~hole])
    else:
        assert torch.equal(x[:, 0], p[:, 0])
        assert torch.equal(y.valid, (labels.valid.flatten())[source])
    assert torch.equal(y.ids, ids.flatten()[source])
    assert torch.allclose(y.confidence, labels.confidence.flatten()[source])
    mixed = source // 1024 != torch.arange(n)[:, None, None]
    assert mixed.any() == (perturb in ("cutmix", "cowmix", "classmix", "complexmix"))


@pytest.mark.parametrize("perturb", ["cutout", "cutout_hole"])
def test_cutout_keeps_a_box_or_empties_it(semi_context, perturb):
    """French et al. keep the box: what is left is a rectangle, and asked about; the other name empties it."""
    t = training(semi_context, perturb=perturb)
    x, valid = torch.ones(40, 3, 32, 32), torch.ones(40, 32, 32, dtype=torch.bool)
    labels = LabelMap(torch.zeros(40, 32, 32, dtype=torch.int64), torch.ones(40, 32, 32), valid)
    torch.manual_seed(0)
    out, _, y = t.perturb(x, torch.ones(40, 2, 32, 32), labels)
    kept = out[:, 0] == 1
    assert torch.equal(y.valid, kept)
    box = kept if perturb == "cutout" else ~kept
    # A box is the product of its rows and columns, and the rest of a picture never is, unless it is all or nothing.
    filled = box.any(2)[:, :, None] & box.any(1)[:, None, :]
    assert torch.equal(box, filled)
    assert 0.35 < float(box.float().mean()) < 0.65


def test_no_perturbation_and_an_equal_teacher_give_zero(semi_context):
    t = training(semi_context, perturb="photometric", strong="none", confidence="none")
    t.setup.network.eval()
    assert float(t.losses(batch_of(t), 0)["u"].detach()) == pytest.approx(0, abs=1e-10)


@pytest.mark.parametrize("perturb", PERTURBATIONS)
def test_gradient_reaches_the_student_alone(semi_context, perturb):
    t = training(semi_context, perturb=perturb, threshold=0.0)
    t.losses(batch_of(t), 0)["u"].backward()
    assert all(p.grad is None for p in t.teacher.average.parameters())
    assert sum(float(p.grad.abs().sum()) for p in t.setup.network.parameters() if p.grad is not None) > 0


# ---------------------------------------------------------------------- the step


def padded(context, perturb, **options):
    """A training with a teacher unlike the student, and three unlabelled crops that reach beyond their photographs."""
    t = training(context, perturb=perturb, batch_unlabeled=3, scale_min=0.3, scale_max=0.5, **options)
    b = batch_of(t)
    sharpen(t.teacher.network, b["u"].weak)
    sharpen(t.setup.network, b["u"].strong[0])
    assert all(0.2 < float(v.float().mean()) < 0.8 for v in b["u"].valid)
    return t, b


def perturbed_by_hand(t, b):
    """Draws the mask again; the student's views (3, 3, S, S), the teacher's probabilities for them, and validity."""
    c, u = t.config, b["u"]
    s = u.strong[0]
    with torch.no_grad():
        q = t.setup.student.through(t.teacher.network, u.weak).logits.softmax(1)
        torch.manual_seed(2)
        t.setup.student(b["x"].weak)  # whose dropout is drawn first
    if c.perturb == "photometric":
        return s, q, u.valid
    if c.perturb in ("cutout", "cutout_hole", "cutmix", "cowmix"):
        m = MASKS[{"cowmix": "cow"}.get(c.perturb, c.perturb)](3, (32, 32))
    else:
        labels = LabelMap(q.argmax(1), q.amax(1), u.valid)
        m = class_mask(labels) if c.perturb == "classmix" else complex_mask(labels, grid=c.grid, base=c.cells)
    assert all(0 < float(k.float().mean()) < 1 for k in m)
    if c.perturb.startswith("cutout"):
        return s * m[:, None], q, u.valid & m
    donor = torch.tensor([1, 2, 0])
    mixed = (torch.where(m[:, None], part, part[donor]) for part in (s, q, u.valid[:, None]))
    x, q, valid = mixed
    return x, q, valid[:, 0]


DISTANCE = {
    "square_sum": lambda p, q: (p - q).square().sum(0),
    "square_mean": lambda p, q: (p - q).square().mean(0),
    "kl": lambda p, q: (q * (q / p).log()).sum(0),
    "hard": lambda p, q: -p.gather(0, q.argmax(0)[None])[0].log(),
}


@pytest.mark.parametrize(
    ("perturb", "distance", "options"),
    [
        *[(p, "hard" if p in ("classmix", "complexmix") else "square_sum", {}) for p in PERTURBATIONS],
        ("complexmix", "hard", {"cells": "box", "confidence": "pixel"}),
        ("cowmix", "kl", {"distance": "kl", "confidence": "batch"}),
        ("classmix", "square_mean", {"distance": "square_mean", "confidence": "none"}),
        ("cutmix", "hard", {"distance": "hard"}),
    ],
)
def test_the_student_learns_on_the_strong_view_what_the_teacher_says_of_the_weak_one(
    semi_context, perturb, distance, options
):
    used = {"threshold": 0.6} if options.get("confidence") != "none" else {}
    t, b = padded(semi_context, perturb, **used, **({"grid": 3} if perturb == "complexmix" else {}), **options)
    torch.manual_seed(2)
    terms = t.losses(b, 0)
    x, q, valid = perturbed_by_hand(t, b)
    p = t.setup.student(x).logits.softmax(1).detach()  # under the same dropout
    sure = (q.amax(1) >= 0.6) & valid
    total = 0.0
    for i in range(3):
        d, v = DISTANCE[distance](p[i], q[i]), valid[i]
        assert 0 < int(sure[i].sum()) < int(v.sum()) < 1024
        weight = {
            "image": sure[i].sum() / v.sum(),
            "batch": sure.sum() / valid.sum(),
            "pixel": sure[i][v].float(),
            "none": 1.0,
        }[t.config.confidence]
        total += float((weight * d[v]).sum())
    assert float(terms["u"].detach()) == pytest.approx(total / (3 * 32 * 32), rel=1e-4)


@pytest.mark.parametrize("perturb", PERTURBATIONS)
def test_nothing_is_asked_in_padding_and_in_the_hole(semi_context, monkeypatch, perturb):
    """Whatever the teacher says of padding, and the student of it and of the hole, the loss is the same."""
    t, b = padded(semi_context, perturb, threshold=0.6)
    _, _, valid = perturbed_by_hand(t, b)
    through, noise = Forward.through, 9 * torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))

    def loss(of_teacher, of_student):
        """L_u with noise on what either network says of some pixels."""

        def noisy(self, network, x):
            where = of_student if network is t.setup.network else of_teacher
            out = through(self, network, x)
            if len(x) == 2:  # the labelled crops
                return out
            return out._replace(logits=out.logits + noise * where[:, None])

        monkeypatch.setattr(Forward, "through", noisy)
        torch.manual_seed(2)
        return float(t.losses(b, 0)["u"].detach())

    nowhere = torch.zeros_like(valid)
    plain = loss(nowhere, nowhere)
    assert loss(~b["u"].valid, ~valid) == pytest.approx(plain, rel=1e-5)
    assert loss(b["u"].valid, nowhere) != pytest.approx(plain, rel=1e-2)
    assert loss(nowhere, valid) != pytest.approx(plain, rel=1e-2)


@pytest.mark.slow
@pytest.mark.parametrize("perturb", ["cutmix", "classmix"])
def test_interrupted_and_resumed_while_the_teacher_is_followed(semi_context, perturb, tmp_path, monkeypatch):
    asked, losses = [], MeanTeacherTraining.losses

    def watched(self, batch, step):
        terms = losses(self, batch, step)
        asked.append(float(terms["u"].detach()))
        return terms

    monkeypatch.setattr(MeanTeacherTraining, "losses", watched)
    check_resumes(
        semi_context, lambda: training(semi_context, perturb=perturb, threshold=0.0, weight=30.0), tmp_path, monkeypatch
    )
    assert min(asked) > 0
