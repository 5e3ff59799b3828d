"""Cut-outs: where they may lie, what they leave of the ground, borders, and windows without objects."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from maskwright.data.training.cutouts import Placing, free_window, paste, read_cutout, soft_border
from maskwright.data.training.views import transform_points
from maskwright.errors import MaskwrightError

BOX = (8, 10, 28, 42)


def random(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@given(st.integers(0, 10**6), st.integers(5, 90), st.integers(5, 90), st.integers(0, 40))
def test_the_object_lies_wholly_inside_the_ground(seed, height, width, rotate):
    """A hair wider where pixels are rounded to whole ones."""
    view = Placing(rotate=rotate).draw((40, 60), BOX, (height, width), random(seed))
    assert view.size == (height, width) and view.source_size == (40, 60)
    top, left, bottom, right = BOX
    corners = transform_points(view.matrix, torch.tensor([[left, top], [right, top], [right, bottom], [left, bottom]]))
    assert corners.min() >= -1e-6
    assert corners[:, 0].max() <= width + 1e-6 and corners[:, 1].max() <= height + 1e-6
    scale = abs(float(torch.linalg.det(view.matrix))) ** 0.5
    assert scale <= 1.1 + 1 / 20, "never enlarged more than asked for, but for whole pixels"


def test_in_the_middle_the_margins_differ_by_a_pixel_at_most():
    placing = Placing(rotate=0, flip=0, size=(0.5, 0.5), centred=1)
    view = placing.draw((40, 60), BOX, (31, 45), random(1))
    (left, top), (right, bottom) = transform_points(view.matrix, torch.tensor([[10, 8], [42, 28]])).tolist()
    assert top == int(31 - (bottom - top)) // 2 and left == int(45 - (right - left)) // 2


def test_whole_pixels_are_copied_exactly():
    """At its own size, unturned, an object is the same pixels elsewhere, and the ground is untouched around it."""
    g = random(0)
    pixels, ground = (torch.randint(256, (3, 40, 60), generator=g, dtype=torch.uint8) for _ in range(2))
    alpha = torch.zeros(40, 60)
    alpha[8:28, 10:42] = 1
    alpha[8:12, 10:14] = 0
    placing = Placing(rotate=0, flip=0, size=(1, 1), enlarge=1.0)
    view = placing.draw((40, 60), BOX, (40, 60), random(3))
    x, y = (int(v) for v in view.matrix[:2, 2])
    image, mask = paste(pixels, alpha, ground, view)
    expected, inside = ground.clone(), torch.zeros(40, 60, dtype=torch.bool)
    for i, j in np.ndindex(40, 60):
        if alpha[i, j]:
            expected[:, i + y, j + x], inside[i + y, j + x] = pixels[:, i, j], True
    assert torch.equal(image, expected) and torch.equal(mask, inside)


def test_soft_borders_fade_inwards():
    mask = torch.zeros(30, 30)
    mask[6:24, 6:24] = 1
    soft = soft_border(mask, 0.7)
    assert not soft[mask == 0].any(), "nothing of the old ground comes along"
    assert torch.equal(soft[10:20, 10:20], torch.ones(10, 10)) or soft[10:20, 10:20].min() > 0.999
    assert 0 < float(soft[6, 15]) < float(soft[7, 15]) <= 1
    assert torch.equal(soft_border(mask, 0), mask)


def test_transparency_of_a_picture(tmp_path):
    values = np.random.default_rng(0).integers(0, 256, (6, 7, 4), dtype=np.uint8)
    Image.fromarray(values).save(tmp_path / "a.png")
    pixels, alpha = read_cutout(tmp_path / "a.png")
    assert np.array_equal(pixels, values[..., :3]) and np.allclose(alpha, values[..., 3] / 255)
    Image.fromarray(values[..., :3]).save(tmp_path / "b.png")
    (tmp_path / "c.png").write_text("no picture")
    with pytest.raises(MaskwrightError, match="has no transparency"):
        read_cutout(tmp_path / "b.png")
    with pytest.raises(MaskwrightError, match="cannot be read"):
        read_cutout(tmp_path / "c.png")


@pytest.mark.parametrize("seed", range(6))
def test_the_largest_free_window_against_all_windows(seed):
    free = np.random.default_rng(seed).random((7, 9)) < 0.75
    best = max(
        (b - t) * (r - left)
        for t in range(7) for b in range(t + 1, 8) for left in range(9) for r in range(left + 1, 10)
        if free[t:b, left:r].all()
    )  # fmt: skip
    top, left, bottom, right = free_window(free)
    assert free[top:bottom, left:right].all() and (bottom - top) * (right - left) == best


def test_on_a_grid_all_pixels_of_a_window_are_free():
    free = np.ones((100, 130), bool)
    free[40:55, 60] = False
    top, left, bottom, right = free_window(free, cells=20)
    assert free[top:bottom, left:right].all() and (bottom - top) * (right - left) >= 0.4 * free.size
    assert free_window(np.zeros((5, 5), bool)) is None
