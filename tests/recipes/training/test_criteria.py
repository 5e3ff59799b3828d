"""Supervised losses on label maps."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from maskwright.data.training.labels import LabelMap
from maskwright.data.training.sampler import Sampler
from maskwright.errors import MaskwrightError
from maskwright.recipes.training.criteria import class_aware_chances, class_weights, make_criterion


def labels(seed: int = 0) -> LabelMap:
    g = torch.Generator().manual_seed(seed)
    valid = torch.rand(2, 8, 8, generator=g) > 0.3
    ids = torch.where(valid, torch.randint(0, 4, (2, 8, 8), generator=g), 0)
    return LabelMap(ids, torch.where(valid, torch.rand(2, 8, 8, generator=g), 0), valid)


def test_cross_entropy_weighs_by_confidence_over_valid_pixels():
    y, logits = labels(), torch.randn(2, 4, 8, 8)
    total, count = 0.0, 0
    for b in range(2):
        for i in range(8):
            for j in range(8):
                if y.valid[b, i, j]:
                    p = logits[b, :, i, j].softmax(0)[y.ids[b, i, j]]
                    total, count = total - float(y.confidence[b, i, j] * p.log()), count + 1
    assert float(make_criterion("ce")(logits, y)) == pytest.approx(total / count, rel=1e-5)


def test_class_255_is_a_class():
    y = LabelMap(torch.full((1, 2, 2), 255), torch.ones(1, 2, 2), torch.ones(1, 2, 2, dtype=torch.bool))
    logits = torch.zeros(1, 300, 2, 2)
    assert float(make_criterion("ce")(logits, y)) == pytest.approx(float(torch.tensor(300.0).log()), rel=1e-5)


def test_terms_add_up_and_unknown_names_are_told():
    y, logits = labels(), torch.randn(2, 4, 8, 8)
    parts = [float(make_criterion(n)(logits, y)) for n in ("ce", "ohem", "dice", "lovasz")]
    assert float(make_criterion("ce + ohem+dice+lovasz")(logits, y)) == pytest.approx(sum(parts), rel=1e-5)
    assert all(p > 0 for p in parts)
    with pytest.raises(MaskwrightError, match="dice"):
        make_criterion("dise")


def test_ohem_weighs_by_confidence_and_its_numbers_are_options():
    y, logits = labels(), torch.randn(2, 4, 8, 8)
    half = LabelMap(y.ids, y.confidence / 2, y.valid)
    assert float(make_criterion("ohem")(logits, half)) == pytest.approx(float(make_criterion("ohem")(logits, y)) / 2)
    all_kept = make_criterion("ohem", ohem_threshold=1.0)(logits, y)
    assert float(all_kept) == pytest.approx(float(make_criterion("ce")(logits, y)), rel=1e-5)
    assert float(make_criterion("ohem", ohem_threshold=0.0, ohem_kept=0.1)(logits, y)) != pytest.approx(float(all_kept))


def test_nothing_valid_is_zero_with_a_gradient():
    y = LabelMap.stack([LabelMap.unlabeled((8, 8))])
    logits = torch.randn(1, 4, 8, 8, requires_grad=True)
    for name in ("ce", "ohem", "dice", "lovasz"):
        loss = make_criterion(name)(logits, y)
        (gradient,) = torch.autograd.grad(loss, logits)
        assert float(loss.detach()) == 0 and not gradient.any()


def test_class_weights_are_inverse_square_roots_with_mean_one():
    class Two:
        indices = [0, 1]  # noqa: RUF012

        def read(self, i):
            ids = torch.zeros(10, 10, dtype=torch.long)
            ids[:1] = 1 if i == 0 else 0
            ids[9] = 2
            return LabelMap.from_mask(ids, 255)

    w = class_weights(Two(), 4)
    share = torch.tensor([170, 10, 20]) / 200
    expected = share.rsqrt() / share.rsqrt().mean()
    assert torch.allclose(w, F.pad(expected, (0, 1), value=1.0))


class Rows:
    """One row of ids an image; -1 is no label."""

    def __init__(self, *rows):
        self.rows, self.indices = rows, list(range(len(rows)))

    def read(self, i):
        ids = torch.tensor([self.rows[i]])
        return LabelMap(ids.clamp(min=0), (ids >= 0).float(), ids >= 0)


def test_class_aware_sampling_shows_every_class_as_often():
    labels_ = Rows([0, 0], [0, 1], [0, 1], [0, 2], [-1, -1])
    chances = class_aware_chances(labels_)
    assert chances == pytest.approx([1 / 4, 1 / 4 + 1 / 2, 1 / 4 + 1 / 2, 1 / 4 + 1, 0])
    drawn = np.concatenate([Sampler(5, 5, seed=s, weights=chances).next() for s in range(4000)])
    often = np.bincount(drawn, minlength=5) / len(drawn)
    # a class by lot (1 of 3), then an image that shows it by lot
    assert often == pytest.approx([1 / 12, 1 / 12 + 1 / 6, 1 / 12 + 1 / 6, 1 / 12 + 1 / 3, 0], abs=0.01)
    with pytest.raises(MaskwrightError, match="no valid pixel"):
        class_aware_chances(Rows([-1, -1]))
