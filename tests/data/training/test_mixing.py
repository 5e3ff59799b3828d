"""Mixing masks: the statistics of each generator, and mixing of images and labels together."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from maskwright.data.training import mixing
from maskwright.data.training.labels import LabelMap

CASES = settings(max_examples=25, deadline=None)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def mean(name: str, n: int, size: tuple[int, int]) -> float:
    return float(mixing.MASKS[name](n, size, generator()).float().mean())


def test_statistics_of_the_boxes():
    assert abs(mean("cutmix", 300, (96, 128)) - 0.5) < 0.01
    assert abs(mean("cutout", 4000, (32, 32)) - 0.5) < 0.01
    assert abs(mean("cps", 2000, (96, 96)) - 0.747) < 0.01
    assert abs(mean("half_box", 300, (64, 96)) - 0.5) < 0.01
    assert abs(mean("cow", 40, (64, 64)) - 0.5) < 0.03
    assert abs(mean("mic", 60, (512, 512)) - 0.3) < 0.02


def test_every_cutmix_box_has_half_the_area():
    masks = mixing.MASKS["cutmix"](200, (200, 200), generator())
    areas = (~masks).float().mean((1, 2))
    assert (areas - 0.5).abs().max() < 0.01
    heights = (~masks).any(2).float().mean(1)
    assert 0.49 <= heights.min() < 0.55 and 0.9 < heights.max() <= 1


def test_unimatch_boxes():
    masks = mixing.unimatch_box(4000, (80, 80), generator=generator())
    boxes = masks.flatten(1).any(1)
    assert abs(boxes.float().mean() - 0.5) < 0.025
    area = masks[boxes].float().mean((1, 2))
    assert abs(area.mean() - 0.21) < 0.012 and area.min() > 0.012 and area.max() <= 0.4
    assert mixing.unimatch_box(50, (20, 400), p=1.0, generator=generator()).flatten(1).any(1).all()


def areas_that_fit(redraw: bool) -> tuple[float, float]:
    """Mean of a square's box and how many exceed 0.3, by integration: (h, w) fits in (1 - h) (1 - w) of places."""
    a = torch.linspace(0.02, 0.4, 2001, dtype=torch.float64)[:, None]
    ratio = torch.linspace(0.3, 1 / 0.3, 2001, dtype=torch.float64)
    fits = ((1 - (a * ratio).sqrt()).clamp(min=0) * (1 - (a / ratio).sqrt()).clamp(min=0)).mean(1)
    weight = fits / fits.sum() if redraw else torch.full_like(fits, 1 / len(fits))
    return float((weight * a[:, 0]).sum()), float(weight[a[:, 0] > 0.3].sum())


@pytest.mark.parametrize("redraw", [False, True])
def test_area_of_boxes_that_must_fit(redraw):
    mean_area, large = areas_that_fit(redraw)
    assert (mean_area, large) == pytest.approx((0.142, 0.086) if redraw else (0.21, 0.263), abs=0.001)
    masks = mixing.unimatch_box(4000, (96, 96), p=1.0, redraw=redraw, generator=generator())
    area = masks.float().mean((1, 2))
    # Sides are rounded down to pixels, which takes a fiftieth of such boxes: 0.138 and 0.079 in the papers' crops.
    assert float(area.mean()) == pytest.approx(mean_area, rel=0.06)
    assert float((area > 0.3).float().mean()) == pytest.approx(large, abs=0.025)
    assert mixing.unimatch_box(50, (20, 400), p=1.0, redraw=redraw, generator=generator()).flatten(1).any(1).all()


@CASES
@given(st.integers(0, 10**6), st.integers(1, 6), st.sampled_from(["floor", "ceil"]))
def test_class_mask_is_a_union_of_whole_regions(seed, classes, rule):
    labels = torch.randint(0, classes, (3, 9, 11), generator=generator(seed))
    labels[:, 0, 0] = 255
    mask = mixing.class_mask(labels, rule=rule, generator=generator(seed))
    for ids, m in zip(labels, mask):
        present = [c for c in ids.unique().tolist() if c != 255]
        chosen = [c for c in present if m[ids == c].all()]
        assert all(m[ids == c].all() or not m[ids == c].any() for c in [*present, 255])
        assert len(chosen) == (len(present) // 2 if rule == "floor" else (len(present) + 1) // 2)
        assert not m[ids == 255].any()


def test_class_mask_of_one_class_and_of_the_batch():
    labels = torch.zeros(2, 4, 4, dtype=torch.int64)
    assert not mixing.class_mask(labels).any()
    assert mixing.class_mask(labels, rule="ceil").all()
    labels[1] = 1
    seen = torch.stack([mixing.class_mask(labels, pool="batch", generator=generator(s)) for s in range(200)])
    assert abs(seen[:, 0].float().mean() - 0.5) < 0.1
    batch = LabelMap(labels, torch.ones(2, 4, 4), labels == 1)
    assert not mixing.class_mask(batch, rule="ceil")[0].any() and mixing.class_mask(batch, rule="ceil")[1].all()


def test_complex_mask_of_one_cell_is_classmix():
    labels = torch.randint(0, 5, (4, 24, 24), generator=generator(1))
    one = mixing.complex_mask(labels, grid=1, generator=generator(2))
    assert torch.equal(one, mixing.class_mask(labels, generator=generator(2)))
    fine = mixing.complex_mask(labels, grid=3, generator=generator(2))
    for top in (0, 8, 16):
        for left in (0, 8, 16):
            cell, m = labels[0, top : top + 8, left : left + 8], fine[0, top : top + 8, left : left + 8]
            assert all(m[cell == c].all() or not m[cell == c].any() for c in cell.unique())
    boxes = mixing.complex_mask(labels, grid=2, base="box", generator=generator(3))
    assert abs(boxes.float().mean() - 0.5) < 0.06


@CASES
@given(st.integers(0, 10**6))
def test_mixing_keeps_image_and_labels_from_one_source(seed):
    g = generator(seed)
    ids = torch.randint(0, 9, (2, 3, 8, 8), generator=g)
    labels = [LabelMap(x, x / 9, x % 2 == 0) for x in ids]
    images = [x[:, None].expand(-1, 3, -1, -1).float() for x in ids]
    mask = torch.rand(3, 8, 8, generator=g) < 0.5
    before = [images[0].clone(), ids.clone()]
    mixed, target = mixing.mix((images[0], labels[0]), (images[1], labels[1]), mask)
    assert torch.equal(mixed[:, 0].long(), target.ids) and torch.equal(target.valid, target.ids % 2 == 0)
    assert torch.equal(target.ids, torch.where(mask, ids[0], ids[1]))
    assert torch.equal(images[0], before[0]) and torch.equal(ids, before[1])
    same = mixing.mix({"x": images[0]}, {"x": images[0]}, mask)["x"]
    assert torch.equal(same, images[0]) and same.data_ptr() != images[0].data_ptr()
    assert torch.equal(mixing.mix(images[0], images[1], torch.ones(3, 8, 8, dtype=torch.bool)), images[0])


def test_cut_out_and_partner():
    x = torch.rand(2, 3, 6, 6) + 1
    mask = mixing.MASKS["cutout"](2, (6, 6), generator())
    out = mixing.cut_out(x, mask)
    assert (out[:, 0][~mask] == 0).all() and torch.equal(out[:, 0][mask], x[:, 0][mask])
    assert mixing.partner(3).tolist() == [1, 2, 0]
    for n in (2, 3, 7):
        chosen = mixing.partner(n, "shuffle", generator(n))
        assert sorted(chosen.tolist()) == list(range(n)) and (chosen != torch.arange(n)).all()


def test_composite_is_exact_where_alpha_is_0_or_1():
    a, b = (torch.randint(0, 256, (3, 5, 5), dtype=torch.uint8) for _ in range(2))
    alpha = torch.zeros(5, 5)
    alpha[1:3], alpha[3] = 1, 0.5
    out, mask = mixing.composite(a, alpha, b)
    assert torch.equal(out[:, :1], b[:, :1]) and torch.equal(out[:, 1:3], a[:, 1:3]) and torch.equal(out[:, 4], b[:, 4])
    assert torch.equal(mask, alpha > 0)
    assert (out[:, 3].float() - (a[:, 3].float() + b[:, 3].float()) / 2).abs().max() <= 0.5


def test_masks_repeat_with_the_generator():
    for name, make in mixing.MASKS.items():
        a, b = make(2, (40, 30), generator(4)), make(2, (40, 30), generator(4))
        assert a.shape == (2, 40, 30) and a.dtype == torch.bool and torch.equal(a, b), name


def test_unlike_things_are_not_mixed():
    with pytest.raises(ValueError, match="cannot mix"):
        mixing.mix(torch.zeros(2, 3, 4, 4), torch.zeros(2, 3, 4, 5), torch.ones(2, 4, 4))


def test_class_255_is_drawn_like_any_other():
    """What is not valid is said by the label map, not by an id that 16-bit labels use."""
    ids = torch.tensor([[[255, 300], [255, 300]]])
    labels = LabelMap(ids, torch.ones(1, 2, 2), torch.ones(1, 2, 2, dtype=torch.bool))
    drawn = {
        int(c) for k in range(20) for c in ids[mixing.class_mask(labels, generator=torch.Generator().manual_seed(k))]
    }
    assert drawn == {255, 300}
    cells = [mixing.complex_mask(labels, grid=1, generator=torch.Generator().manual_seed(k)) for k in range(20)]
    assert {int(c) for m in cells for c in ids[m]} == {255, 300}
