"""Parts of semi-supervised methods: the unlabelled stream, who labels, the weight of the loss."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from maskwright.data.training.labels import LabelMap
from maskwright.data.training.sources import MaskLabels
from maskwright.engine.config import configure, describe, part
from maskwright.engine.loop import Training
from maskwright.errors import MaskwrightError
from maskwright.methods import METHODS
from maskwright.methods.semi.st_plus_plus import RetrainTraining, STPlusPlusConfig
from maskwright.methods.semi.unimatch import FixMatchTraining, UniMatchConfig
from maskwright.recipes.consistency.options import RampOptions, SemiConfig
from maskwright.recipes.consistency.parts import (
    Ramp,
    Teacher,
    joined,
    note_unmixed,
    pseudo_labels,
    share_confident,
    unlabeled_images,
    unlabeled_stream,
)
from maskwright.recipes.consistency.teacher_options import TeacherOptions
from maskwright.recipes.training import setup as setups
from maskwright.recipes.training.setup import NetworkSetup


@dataclasses.dataclass(kw_only=True)
class TeacherConfig(SemiConfig):
    """Options of what most methods hold."""

    teacher: TeacherOptions = part(TeacherOptions)


class SemiTraining(Training):
    """What most methods hold."""

    def __init__(self, context, config, labels, steps):
        setup = NetworkSetup(context, config, labels, steps)
        super().__init__(setup)
        setup.streams["u"] = unlabeled_stream(setup)
        self.teacher = Teacher.of(setup)
        self.ramp = Ramp(setup.config.ramp, steps)

    def after_step(self, step):
        self.teacher.follow(self.ramp.waits(step))
        super().after_step(step)


def training(context, steps=10, **options):
    config = configure(TeacherConfig, {"crop": 32, "batch": 2, "precision": "fp32", **options})
    return SemiTraining(context, config, MaskLabels(context.data, context.classes), steps)


def draw(t, seed=0):
    return t.on_device(t.batch(t.sampler.next(), torch.Generator().manual_seed(seed)))


def unlabeled(t):
    """The images that are used without their labels."""
    return unlabeled_images(t.setup, t.setup.config.unlabeled.images)


def test_without_photometric_change_the_strong_view_is_the_weak_one(semi_context):
    t = training(semi_context, strong="none", batch_unlabeled=3)
    x, u = draw(t).values()
    assert u.weak.shape == (3, 3, 32, 32) and x.weak.shape == (2, 3, 32, 32) and x.y.ids.shape == (2, 32, 32)
    assert torch.equal(u.weak, u.strong[0]) and len(u.strong) == 1 and not x.strong
    changed = draw(training(semi_context))["u"]
    assert not torch.equal(changed.weak, changed.strong[0])


def test_batches_are_a_function_of_the_generator(semi_context):
    t = training(semi_context)
    indices = t.sampler.next()
    a, b = (t.batch(indices, torch.Generator().manual_seed(3)) for _ in range(2))
    assert torch.equal(a["x"].weak, b["x"].weak) and torch.equal(a["x"].y.ids, b["x"].y.ids)
    assert torch.equal(a["u"].weak, b["u"].weak) and torch.equal(a["u"].strong[0], b["u"].strong[0])


def test_outside_the_photograph_is_mean_colour_and_not_valid(semi_context):
    t = training(semi_context, scale_min=0.2, scale_max=0.3)
    x, u = draw(t).values()
    outside = ~u.valid
    assert outside.any() and u.valid.any()
    assert float(u.weak.permute(0, 2, 3, 1)[outside].abs().max()) < 0.02  # half a grey level of the mean, over std
    assert not x.y.valid.all() and torch.equal(x.valid, x.y.valid)


def test_unlabelled_images_are_the_rest_or_all(semi_context):
    context = semi_context
    assert unlabeled(training(context)) == [3, 4, 5, 6, 7]
    assert unlabeled(training(context, unlabeled="all")) == list(range(8))
    held = training(context, holdout=0.4)
    assert len(held.setup.held) == 1 and unlabeled(held) == [3, 4, 5, 6, 7]
    full = dataclasses.replace(context, data=context.data.subset([0, 1, 2]))
    assert unlabeled(training(full)) == [0, 1, 2]


def test_donors_follow_in_an_order_of_their_own(semi_context):
    t = training(semi_context, batch_unlabeled=4)
    stream = unlabeled_stream(t.setup, strong_views=2, donors=True)
    drawn = [np.split(stream.next(), 2) for _ in range(5)]
    own, donors = (np.concatenate(part) for part in zip(*drawn))
    for images in (own, donors):
        assert np.bincount(images, minlength=8).tolist() == [0, 0, 0, 4, 4, 4, 4, 4]
    assert not np.array_equal(own, donors)
    alone = unlabeled_stream(t.setup)
    assert np.array_equal(np.concatenate([alone.next() for _ in range(5)]), own)
    assert unlabeled_stream(t.setup, strong_views=0).draw([3], torch.Generator()).strong == ()


def test_a_lone_crop_that_cannot_be_mixed_is_told(semi_context):
    semi_context.notes.clear()
    note_unmixed(training(semi_context).setup)
    assert not semi_context.notes
    note_unmixed(training(semi_context, batch_unlabeled=1).setup)
    (note,) = semi_context.notes
    assert "nothing is mixed" in note and "--set batch_unlabeled=2 mends it" in note


def test_chances_decide_which_labelled_images_come(semi_context, monkeypatch):
    context, labels = semi_context, MaskLabels(semi_context.data, semi_context.classes)
    assert training(context).setup.streams["x"].order.weights is None
    chances = training(context, sample="classes").setup.streams["x"].order.weights
    assert chances.shape == (3,) and chances.sum() == pytest.approx(len({0, 1, 2})), "one for each class that occurs"
    monkeypatch.setattr(setups, "class_aware_chances", lambda labels: np.array([0.0, 0.0, 1.0]))
    small = {"crop": 32, "batch": 2, "sample": "classes"}
    made = [
        training(context, sample="classes"),
        RetrainTraining(labels, context, configure(STPlusPlusConfig, small), labels, 4),
        FixMatchTraining(context, configure(UniMatchConfig, small | {"version": "fixmatch"}), labels, 4),
    ]
    for t in made:
        drawn = [t.sampler.next() for _ in range(3)]
        assert all(d["x"].tolist() == [2, 2] for d in drawn), type(t).__name__
        assert len(np.unique(np.concatenate([d["u"] for d in drawn]))) > 2, "of the labelled ones alone"


def test_unlabelled_crops_read_no_mask(semi_context):
    t = training(semi_context)
    for _ in range(8):
        draw(t)
    assert semi_context.data.ledger.counts()["train"]["masks"] == 3


@pytest.mark.parametrize("start", [0.0, 0.5])
def test_ramp(semi_context, start):
    ramp = training(semi_context, steps=100, weight=3.0, ramp_up=0.2, start=start).ramp
    first = int(100 * start)
    assert ramp(first - 1) == 0 if start else True
    assert ramp(first) == pytest.approx(3 * math.exp(-5))
    assert ramp(first + 10) == pytest.approx(3 * math.exp(-5 * 0.25))
    assert ramp(first + 20) == ramp(99) == 3
    assert training(semi_context, weight=2.0).ramp(0) == 2


def test_a_loss_waits_before_its_start_if_it_is_to_count_at_all():
    ramp = Ramp(RampOptions(start=0.5, up=0.5), 10)
    assert [ramp.waits(step) for step in range(10)] == [True] * 5 + [False] * 5
    assert not any(Ramp(RampOptions(weight=0.0, start=0.5), 10).waits(step) for step in range(10))
    assert not Ramp(RampOptions(), 0).waits(0) and Ramp(RampOptions(), 0)(0) == 1, "a stage without steps"


@given(weight=st.floats(0, 100), up=st.floats(0, 1), start=st.floats(0, 1), steps=st.integers(1, 200))
def test_the_weight_never_falls_and_never_exceeds_its_option(weight, up, start, steps):
    ramp = Ramp(RampOptions(weight=weight, up=up, start=start), steps)
    values = [ramp(step) for step in range(steps + 1)]
    assert values == sorted(values) and values[0] >= 0 and values[-1] <= weight
    assert all(v == 0 for step, v in enumerate(values) if step / steps < start)
    if weight > 0 and start + up < 1:
        assert values[-1] == weight


def test_teacher_is_a_copy_without_shared_storage_or_gradient(semi_context):
    t = training(semi_context)
    w = draw(t)["u"].weak
    assert torch.equal(t.teacher(w), t.teacher(w))
    own = {p.data_ptr() for p in t.setup.network.state_dict().values()}
    assert not own & {p.data_ptr() for p in t.teacher.network.state_dict().values() if p.numel() > 1}
    held = {id(p) for o in t.optimizers.values() for g in o.param_groups for p in g["params"]}
    assert held == {id(p) for p in t.setup.network.parameters()}
    assert not t.teacher(w).requires_grad and t.setup.network.training and not t.teacher.network.training


def test_the_teacher_gives_probabilities_in_the_students_precision(semi_context):
    t = training(semi_context)
    w = draw(t)["u"].weak
    t.setup.network.eval()
    assert torch.equal(t.teacher(w), t.setup.student.probabilities(w)), "a copy, in evaluation mode"
    assert torch.equal(t.teacher(w), t.teacher.run(w).logits.softmax(1))
    assert t.modules["teacher"] is t.teacher.average, "in the checkpoint"


@pytest.mark.parametrize("final", ["student", "teacher"])
def test_the_network_that_is_kept_is_the_one_that_the_options_say(semi_context, final):
    t = training(semi_context, final=final)
    assert t.setup.kept is (t.teacher.network if final == "teacher" else t.setup.network)
    kept = t.modules[t.setup.config.teacher.kept]
    assert (kept.module if final == "teacher" else kept) is t.setup.kept


def test_the_mode_of_the_teachers_norms_is_the_options_unless_the_method_says(semi_context):
    def learning(teacher):
        return any(m.training for m in teacher.network.modules() if isinstance(m, torch.nn.BatchNorm2d))

    t, u = training(semi_context), training(semi_context, teacher_mode="train")
    assert not learning(t.teacher) and learning(u.teacher)
    assert learning(Teacher.of(t.setup, "train")) and not learning(Teacher.of(u.setup, "eval"))


def test_statistics_that_nothing_moves_are_refused():
    with pytest.raises(MaskwrightError, match="teacher_mode=train"):
        configure(TeacherConfig, {"teacher.buffers": "own"})
    configure(TeacherConfig, {"ema_buffers": "own", "teacher_mode": "train"})


def test_the_teacher_is_a_copy_until_the_unsupervised_loss_sets_in(semi_context):
    t = training(semi_context, steps=8, start=0.5, ema=0.9)
    values, first = [], next(t.setup.network.parameters())
    for step in range(8):
        with torch.no_grad():
            first.fill_(float(step))
        t.after_step(step)
        values.append(float(next(t.teacher.network.parameters()).flatten()[0]))
    # copies, and from step 4 on the means of the students since: 4, (4 + 5) / 2, ...
    assert values == pytest.approx([0, 1, 2, 3, 4, 4.5, 5, 5.5])
    never = training(semi_context, steps=8, weight=0.0)
    for step in range(3):
        with torch.no_grad():
            next(never.setup.network.parameters()).fill_(float(step))
        never.after_step(step)
    assert float(next(never.teacher.network.parameters()).flatten()[0]) == 1  # the mean of 0, 1, 2


def test_without_a_teacher_the_student_labels_in_evaluation_mode_and_keeps_its_statistics(semi_context):
    t = training(semi_context)
    w = draw(t)["u"].weak
    before = {k: v.clone() for k, v in t.setup.network.named_buffers()}
    q = t.setup.student.ask(w, t.setup.config.teacher.mode)
    assert all(torch.equal(v, before[k]) for k, v in t.setup.network.named_buffers())
    t.setup.network.eval()
    assert torch.equal(q, t.setup.student.probabilities(w))


def test_frozen_norms_stay_in_evaluation(semi_context):
    t = training(semi_context, freeze_norm=True)
    norms = [m for m in t.setup.network.encoder.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    assert norms and not any(m.training for m in norms)
    assert any(m.training for m in t.setup.network.decoder.modules() if isinstance(m, torch.nn.BatchNorm2d))


def test_share_confident_counts_valid_pixels_only():
    valid = torch.tensor([[[True, True], [False, True]], [[False, False], [False, False]]])
    y = LabelMap(torch.zeros(2, 2, 2).long(), torch.tensor([[[0.9, 0.2], [1.0, 0.9]], [[1.0, 1], [1, 1]]]), valid)
    assert share_confident(y, 0.9).tolist() == pytest.approx([2 / 3, 0])


def test_pseudo_labels_are_the_likeliest_classes_inside_the_photograph():
    q = torch.randn(2, 4, 5, 5, generator=torch.Generator().manual_seed(0)).softmax(1)
    valid = torch.rand(2, 5, 5, generator=torch.Generator().manual_seed(1)) < 0.5
    y = pseudo_labels(q, valid, 0.4)
    assert torch.equal(y.ids[y.valid], q.argmax(1)[y.valid]) and torch.equal(y.confidence[y.valid], q.amax(1)[y.valid])
    assert torch.equal(y.valid, valid & (q.amax(1) >= 0.4)) and 0 < y.valid.sum() < valid.sum()
    assert torch.equal(pseudo_labels(q, valid).valid, valid)


def test_joined_maps_come_one_after_the_other():
    def numbered(first, n):
        ids = torch.arange(first, first + n)[:, None, None].expand(n, 2, 2)
        return LabelMap(ids, ids / 10, ids % 2 == 0)

    y = joined([numbered(0, 2), numbered(2, 3)])
    expected = numbered(0, 5)
    assert torch.equal(y.ids, expected.ids)
    assert torch.equal(y.confidence, expected.confidence) and torch.equal(y.valid, expected.valid)


@pytest.mark.parametrize(("images", "which"), [(8, "all"), (8, "rest"), (3, "all"), (3, "rest")])
def test_held_out_images_are_never_unlabelled_ones(semi_context, images, which):
    """Three of the images have masks: all of them where there are three."""
    context = dataclasses.replace(semi_context, data=semi_context.data.subset(range(images)))
    t = training(context, holdout=0.4, unlabeled=which)
    left = [i for i in range(images) if i not in t.setup.held]
    expected = left[-5:] if (images, which) == (8, "rest") else left
    assert len(t.setup.held) == 1 and unlabeled(t) == expected
    assert {int(i) for _ in range(8) for i in t.sampler.next()["u"]} == set(expected)


def test_no_method_asks_which_photographs_statistics_are_of():
    """Training looks at all of them: `norm_from` would change nothing."""
    semi = [cls for cls in METHODS.values() if cls.family == "semi"]
    assert len(semi) >= 9
    for cls in semi:
        with pytest.raises(MaskwrightError, match="norm_from=all: nothing here depends on it"):
            configure(cls.Config, {"norm_from": "all"})
        assert "norm_from" not in {o["old"] for o in describe(cls.Config)}, cls.name
