"""Rare class sampling and mining: chances against counting, crops that show what they were drawn for."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch

from maskwright.data.training.labels import LabelMap
from maskwright.data.training.streams import CropRecipe, Stream
from maskwright.errors import MaskwrightError
from maskwright.recipes.training.rare_classes import (
    Mining,
    RareClasses,
    RareOptions,
    mined_classes,
    rare_class_chances,
)

CROPS = CropRecipe(side=16, scale=(1.0, 1.0), long_side=64)


class Drawn:
    """Labels made by hand: image 0 all of class 0, image 1 with a spot of class 2, images 2 and 3 half of class 1."""

    def __init__(self, side: int = 48) -> None:
        self.data, self.indices, self.maps = None, [3, 5, 6, 9], []
        for k in range(4):
            ids = torch.zeros(side, side, dtype=torch.int64)
            if k == 1:
                ids[-6:, -6:] = 2
            if k > 1:
                ids[:, : side // 2] = 1
            self.maps.append(LabelMap.from_mask(ids))

    def read(self, i: int) -> LabelMap:
        return self.maps[self.indices.index(i)]


def rare(temperature: float = 0.2, pixels: float = 32 / 256) -> RareClasses:
    return RareClasses(Drawn(), 4, RareOptions(temperature=temperature, pixels=pixels), CROPS)


def test_class_and_photograph_have_the_joint_chances_of_drawing_the_class_first():
    r = rare()
    counts = np.array([sum(int((y.ids == c).sum()) for y in Drawn().maps) for c in range(4)])
    p = rare_class_chances(counts, 0.2)
    assert p[3] == 0 and p[2] > p[1] > 0
    shown = [{0}, {0, 2}, {0, 1}, {0, 1}]
    images = Counter(c for classes in shown for c in classes)
    joint = [{c: p[c] / images[c] for c in classes} for classes in shown]
    np.testing.assert_allclose(r.chances, [sum(chances.values()) for chances in joint])
    assert r.chances.sum() == pytest.approx(1)
    for n in range(4):
        np.testing.assert_allclose([r._odds[n, c] for c in shown[n]], [joint[n][c] for c in shown[n]])


def test_crops_show_the_class_that_they_were_drawn_for():
    r, y, g = rare(temperature=0.001), Drawn().maps[1], torch.Generator().manual_seed(0)
    assert r.probabilities[2] > 0.99

    def spots(choose) -> float:
        views = [choose() for _ in range(60)]
        return sum(int((y.through(v).ids == 2).sum()) > 16 for v in views) / 60

    plain, chosen = spots(lambda: CROPS.view(y.size, g)), spots(lambda: r(5, y, CROPS, g))
    assert plain < 0.25 and chosen > 3 * plain, "up to eleven tries"
    again = [r(5, y, CROPS, torch.Generator().manual_seed(3)).matrix for _ in range(2)]
    assert torch.equal(*again), "a function of the generator"


def test_a_class_of_which_no_photograph_shows_enough_is_looked_for_where_most_of_it_is():
    shown = rare(pixels=64 / 256).shown  # the spot has 36 pixels
    assert shown[:, 2].tolist() == [False, True, False, False] and shown[:, 0].all() and not shown[:, 3].any()
    nothing = Drawn()
    nothing.maps = [y.restrict(torch.zeros_like(y.valid)) for y in nothing.maps]
    with pytest.raises(MaskwrightError, match="no valid pixel"):
        RareClasses(nothing, 4, RareOptions(temperature=1.0), CROPS)


def test_large_photographs_are_counted_as_crops_see_them():
    large = RareClasses(Drawn(side=128), 4, RareOptions(temperature=0.2, pixels=32 / 256), CROPS)
    assert not large.shown[0, 2] and large.shown[1, 2], "36 pixels of 128 x 128 are 9 of 64 x 64: the fallback"
    assert large.shown[2, 1]


def test_mined_crops_lie_around_a_pixel_of_a_rare_class():
    y, g = Drawn().maps[1], torch.Generator().manual_seed(0)
    for _ in range(10):
        seen = y.through(Mining([1, 2], 1.0)(5, y, CROPS, g))
        assert int((seen.ids == 2).sum()) == 36 and seen.valid.all(), "moved inside at the border"
    never = [Mining([2], 0.0)(5, y, CROPS, torch.Generator().manual_seed(k)).matrix for k in range(20)]
    shares = np.mean([int((y.through(Mining([2], 0.5)(5, y, CROPS, g)).ids == 2).sum()) == 36 for _ in range(200)])
    assert len({tuple(m.flatten().tolist()) for m in never}) > 5
    assert 0.4 < shares < 0.75, "half of them, and a few by chance"
    elsewhere = Mining([3], 1.0)(5, y, CROPS, g)
    assert elsewhere.size == (16, 16), "a photograph without a mined class is cropped as any"


def test_what_is_mined_are_classes_below_a_share_and_those_never_predicted():
    counts = torch.tensor([900, 99, 1, 0])
    assert mined_classes(counts, 0.01) == [2, 3] and mined_classes(counts, 0.0) == []


def test_a_stream_without_labels_cannot_choose_by_them():
    with pytest.raises(ValueError, match="chosen by labels"):
        Stream(None, [0], None, CROPS, (0, 0, 0), choose=Mining([1], 1.0))
