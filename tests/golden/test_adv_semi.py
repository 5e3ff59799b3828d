"""AdvSemiSeg (Hung et al., BMVC 2018) and s4GAN (Mittal et al., TPAMI 2019): the losses around a discriminator."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from tests.golden.formulas import as64, draw, labels, pixels, softmax

from maskwright.methods.semi.adv_semi import feature_matching, real_maps, self_training, unit_range
from maskwright.recipes.adversarial.adversary import adversarial


def test_adversarial_is_binary_cross_entropy_with_one_for_peoples_labels():
    verdicts, y = draw(2, 5, 5), labels(2, 3)
    for real in (True, False):
        s = 1 / (1 + np.exp(-as64(verdicts)))
        terms = [-math.log(s[x] if real else 1 - s[x]) for x in pixels(y)]
        assert float(adversarial(verdicts, real, y.valid)) == pytest.approx(np.mean(terms), rel=1e-5)
    assert float(adversarial(verdicts, True)) == pytest.approx(np.log1p(np.exp(-as64(verdicts))).mean(), rel=1e-5)


def test_self_training_of_adv_semi_seg():
    logits = draw(2, 3, 5, 5, seed=1)
    selected = draw(2, 5, 5, seed=2) > 0.2
    p = softmax(as64(logits))
    terms = [-math.log(p[b, :, i, j].max()) for b, i, j in selected.nonzero().tolist()]
    assert float(self_training(logits, selected)) == pytest.approx(np.mean(terms), rel=1e-5)


def test_feature_matching_of_s4gan():
    real, fake = draw(4, 6, seed=1), draw(3, 6, seed=2)
    expected = np.abs(as64(real).mean(0) - as64(fake).mean(0)).mean()
    assert float(feature_matching(real, fake)) == pytest.approx(expected, rel=1e-5)


def test_what_the_discriminators_see():
    y, p = labels(2, 3), draw(2, 3, 5, 5).softmax(1)
    maps = real_maps(y, p, 0.9)
    for b in range(2):
        for i in range(5):
            for j in range(5):
                own = [0.9 if c == int(y.ids[b, i, j]) else 0.05 for c in range(3)]
                expected = own if y.valid[b, i, j] else p[b, :, i, j].tolist()
                assert maps[b, :, i, j].tolist() == pytest.approx(expected)
    x = draw(2, 3, 5, 5)
    for image, found in zip(as64(x), as64(unit_range(x))):
        np.testing.assert_allclose(found, (image - image.min()) / (image.max() - image.min()), rtol=1e-5, atol=1e-6)
    assert not unit_range(torch.full((1, 3, 2, 2), 4.0)).any()
