"""Mean Teacher (Tarvainen & Valpola, 2017) with the mixes of French et al., ClassMix and ComplexMix."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from tests.golden.formulas import as64, draw, labels, pixels, softmax
from torch import nn

from maskwright.data.training.mixing import MASKS, class_mask, cut_out, mix, partner
from maskwright.methods.semi.mean_teacher import consistency, sureness
from maskwright.recipes.ema import EMATeacher

LOGITS, Q, Y = draw(3, 4, 5, 5), (draw(3, 4, 5, 5, seed=1) * 2).softmax(1), labels(3, 4)


@pytest.mark.parametrize("how", ["batch", "image", "pixel", "none"])
def test_sureness_weighs_pixels(how):
    """Shares of the valid pixels whose confidence reaches 0.6: of the batch, of their image, or one by one."""
    found, t = sureness(Y, 0.6, how), 0.6
    sure = {x: float(Y.confidence[x]) >= t for x in pixels(Y)}
    for b, i, j in np.ndindex(3, 5, 5):
        x = (b, i, j)
        share = {
            "batch": np.mean(list(sure.values())),
            "image": np.mean([v for p, v in sure.items() if p[0] == b]),
            "pixel": float(sure.get(x, False)), "none": 1.0,
        }[how]  # fmt: skip
        assert float(found[x]) == pytest.approx(share if x in sure else 0.0)


@pytest.mark.parametrize("distance", ["square_sum", "square_mean", "kl", "hard"])
def test_consistency(distance):
    weight = sureness(Y, 0.6, "image")
    p, q, total = softmax(as64(LOGITS)), as64(Q), 0.0
    for b, i, j in np.ndindex(3, 5, 5):
        a, t = p[b, :, i, j], q[b, :, i, j]
        d = {
            "square_sum": ((a - t) ** 2).sum(), "square_mean": ((a - t) ** 2).mean(),
            "kl": sum(v * math.log(v / u) for v, u in zip(t, a)), "hard": -math.log(a[t.argmax()]),
        }[distance]  # fmt: skip
        total += float(weight[b, i, j]) * d
    assert float(consistency(LOGITS, Q, weight, distance)) == pytest.approx(total / 75, rel=1e-4)


@pytest.mark.parametrize("how", ["cutmix", "cutout", "cutout_hole", "cow", "classmix"])
def test_each_pixel_of_a_mix_comes_from_one_of_two(how):
    x, m = draw(3, 3, 5, 5, seed=2), None
    torch.manual_seed(0)
    m = class_mask(Y) if how == "classmix" else MASKS[how](3, (5, 5))
    other = partner(3)
    mixed = cut_out(x, m) if how.startswith("cutout") else mix(x, x[other], m)
    for b, i, j in np.ndindex(3, 5, 5):
        away = torch.zeros(3) if how.startswith("cutout") else x[(b + 1) % 3, :, i, j]
        assert torch.equal(mixed[b, :, i, j], x[b, :, i, j] if m[b, i, j] else away)


@pytest.mark.parametrize("warm", [False, True])
def test_teacher_is_the_moving_average(warm):
    """theta <- a theta + (1 - a) theta_s; a = min(1 - 1 / (n + 1), 0.6) with a warm start."""
    student = nn.Linear(3, 2)
    teacher, expected = EMATeacher(student, 0.6, warm=warm), as64(student.weight).copy()
    for n in range(4):
        with torch.no_grad():
            student.weight.add_(n + 1.0)
        teacher.update(student)
        a = min(1 - 1 / (n + 1), 0.6) if warm else 0.6
        expected = a * expected + (1 - a) * as64(student.weight)
    np.testing.assert_allclose(as64(teacher.module.weight), expected, rtol=1e-5)
