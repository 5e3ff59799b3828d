"""The shared semi-supervised step: views of one crop, validity, teacher, ramp."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch
from maskwright.recipes.consistency.consistency import SemiConfig, SemiTraining, share_confident
from maskwright.recipes.training.segmenting import SegmentationTraining

from maskwright.data.training.labels import LabelMap
from maskwright.data.training.sources import MaskLabels
from maskwright.engine.config import configure, describe
from maskwright.errors import MaskwrightError
from maskwright.methods import METHODS


def training(context, cls=SemiTraining, steps=10, **options):
    config = SemiConfig(crop=32, batch=2, precision="fp32", **options)
    return cls(context, config, MaskLabels(context.data, context.classes), steps)


def draw(t, seed=0):
    return t.batch(t.sampler.next(), torch.Generator().manual_seed(seed))


def test_without_photometric_change_the_strong_view_is_the_weak_one(semi_context):
    t = training(semi_context, strong="none", batch_unlabeled=3)
    b = draw(t)
    assert b.w.shape == (3, 3, 32, 32) and b.x.shape == (2, 3, 32, 32) and b.y.ids.shape == (2, 32, 32)
    assert torch.equal(b.w, b.s[0])
    assert not torch.equal(*(lambda c: (c.w, c.s[0]))(draw(training(semi_context))))


def test_batches_are_a_function_of_the_generator(semi_context):
    t = training(semi_context)
    indices = t.sampler.next()
    a, b = (t.batch(indices, torch.Generator().manual_seed(3)) for _ in range(2))
    assert torch.equal(a.x, b.x) and torch.equal(a.s[0], b.s[0]) and torch.equal(a.y.ids, b.y.ids)


def test_outside_the_photograph_is_mean_colour_and_not_valid(semi_context):
    t = training(semi_context, scale_min=0.2, scale_max=0.3)
    b = draw(t)
    outside = ~b.valid
    assert outside.any() and b.valid.any()
    assert float(b.w.permute(0, 2, 3, 1)[outside].abs().max()) < 0.02  # half a grey level of the mean, over std
    assert not b.y.valid.all()


def test_unlabelled_images_are_the_rest_or_all(semi_context):
    context = semi_context
    assert training(context).unlabeled_images() == [3, 4, 5, 6, 7]
    assert training(context, unlabeled="all").unlabeled_images() == list(range(8))
    held = training(context, holdout=0.4)
    assert len(held.held) == 1 and held.unlabeled_images() == [3, 4, 5, 6, 7]
    full = dataclasses.replace(context, data=context.data.subset([0, 1, 2]))
    assert training(full).unlabeled_images() == [0, 1, 2]


def test_chances_decide_which_labelled_images_come(semi_context, monkeypatch):
    from maskwright.methods.semi.st_plus_plus import RetrainTraining, STPlusPlusConfig
    from maskwright.methods.semi.unimatch import FixMatchTraining, UniMatchConfig

    context, labels = semi_context, MaskLabels(semi_context.data, semi_context.classes)
    assert training(context).chances() is None
    chances = training(context, sample="classes").chances()
    assert chances.shape == (3,) and chances.sum() == pytest.approx(len({0, 1, 2})), "one for each class that occurs"
    monkeypatch.setattr(SegmentationTraining, "chances", lambda self: np.array([0.0, 0.0, 1.0]))
    config = SemiConfig(crop=32, batch=2)
    made = [
        SemiTraining(context, config, labels, 4),
        RetrainTraining(labels, context, STPlusPlusConfig(crop=32, batch=2), labels, 4),
        FixMatchTraining(context, UniMatchConfig(crop=32, batch=2, version="fixmatch"), labels, 4),
    ]
    for t in made:
        assert all(t.sampler.next()[0].tolist() == [2, 2] for _ in range(3)), type(t).__name__


def test_unlabelled_crops_read_no_mask(semi_context):
    t = training(semi_context)
    for _ in range(8):
        draw(t)
    assert semi_context.data.ledger.counts()["train"]["masks"] == 3


@pytest.mark.parametrize("start", [0.0, 0.5])
def test_ramp(semi_context, start):
    t = training(semi_context, steps=100, weight=3.0, ramp_up=0.2, start=start)
    first = int(100 * start)
    assert t.ramp(first - 1) == 0 if start else True
    assert t.ramp(first) == pytest.approx(3 * math.exp(-5))
    assert t.ramp(first + 10) == pytest.approx(3 * math.exp(-5 * 0.25))
    assert t.ramp(first + 20) == t.ramp(99) == 3
    assert training(semi_context, weight=2.0).ramp(0) == 2


def test_teacher_is_a_copy_without_shared_storage_or_gradient(semi_context):
    t = training(semi_context)
    b = draw(t)
    assert torch.equal(t.teach(b.w), t.teach(b.w))
    own = {p.data_ptr() for p in t.network.state_dict().values()}
    assert t.teacher is not None
    assert not own & {p.data_ptr() for p in t.teacher.module.state_dict().values() if p.numel() > 1}
    held = {id(p) for o in t.optimizers.values() for g in o.param_groups for p in g["params"]}
    assert held == {id(p) for p in t.network.parameters()}
    assert not t.teach(b.w).requires_grad and t.network.training and not t.teacher.module.training


def test_the_teacher_is_a_copy_until_the_unsupervised_loss_sets_in(semi_context):
    t = training(semi_context, steps=8, start=0.5, ema=0.9)
    values, first = [], next(t.network.parameters())
    for step in range(8):
        with torch.no_grad():
            first.fill_(float(step))
        t.after_step(step)
        values.append(float(next(t.teacher.module.parameters()).flatten()[0]))
    # copies, and from step 4 on the means of the students since: 4, (4 + 5) / 2, ...
    assert values == pytest.approx([0, 1, 2, 3, 4, 4.5, 5, 5.5])
    never = training(semi_context, steps=8, weight=0.0)
    for step in range(3):
        with torch.no_grad():
            next(never.network.parameters()).fill_(float(step))
        never.after_step(step)
    assert float(next(never.teacher.module.parameters()).flatten()[0]) == 1  # the mean of 0, 1, 2


def test_without_a_teacher_the_student_labels_in_evaluation_mode_and_keeps_its_statistics(semi_context):
    class Own(SemiTraining):
        has_teacher = False

    t = training(semi_context, Own)
    b = draw(t)
    before = {k: v.clone() for k, v in t.network.named_buffers()}
    q = t.teach(b.w)
    assert all(torch.equal(v, before[k]) for k, v in t.network.named_buffers())
    t.network.eval()
    assert torch.equal(q, t.probabilities(t.network, b.w))


def test_frozen_norms_stay_in_evaluation(semi_context):
    t = training(semi_context, freeze_norm=True)
    norms = [m for m in t.network.encoder.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    assert norms and not any(m.training for m in norms)
    assert any(m.training for m in t.network.decoder.modules() if isinstance(m, torch.nn.BatchNorm2d))


def test_share_confident_counts_valid_pixels_only():
    valid = torch.tensor([[[True, True], [False, True]], [[False, False], [False, False]]])
    y = LabelMap(torch.zeros(2, 2, 2).long(), torch.tensor([[[0.9, 0.2], [1.0, 0.9]], [[1.0, 1], [1, 1]]]), valid)
    assert share_confident(y, 0.9).tolist() == pytest.approx([2 / 3, 0])


@pytest.mark.parametrize(("images", "unlabeled"), [(8, "all"), (8, "rest"), (3, "all"), (3, "rest")])
def test_held_out_images_are_never_unlabelled_ones(semi_context, images, unlabeled):
    """Three of the images have masks: all of them where there are three."""
    context = dataclasses.replace(semi_context, data=semi_context.data.subset(range(images)))
    t = training(context, holdout=0.4, unlabeled=unlabeled)
    left = [i for i in range(images) if i not in t.held]
    expected = left[-5:] if (images, unlabeled) == (8, "rest") else left
    assert len(t.held) == 1 and t.unlabeled_images() == expected
    assert {int(i) for _ in range(8) for i in t.sampler.next()[1]} == set(expected)


def test_no_method_asks_which_photographs_statistics_are_of():
    """Training looks at all of them: `norm_from` would change nothing."""
    semi = [cls for cls in METHODS.values() if cls.family == "semi"]
    assert len(semi) >= 9
    for cls in semi:
        with pytest.raises(MaskwrightError, match="norm_from=all: nothing here depends on it"):
            configure(cls.Config, {"norm_from": "all"})
        assert "norm_from" not in {o["name"] for o in describe(cls.Config)}, cls.name
