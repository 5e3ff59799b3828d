from __future__ import annotations

import numpy as np
import pytest
from fakes import scene
from PIL import Image

from maskwright.data.masking.classes import ClassTable
from maskwright.data.masking.masks import read_mask, write_mask
from maskwright.predict.writers import (
    boundaries,
    narrow,
    overlay,
    shrink,
    write_confidence,
    write_overlay,
)


@pytest.mark.parametrize(
    ("classes", "mode", "dtype"), [(3, "P", np.uint8), (255, "P", np.uint8), (256, "I;16", np.uint16)]
)
def test_index_masks_are_exact_and_have_one_depth(tmp_path, classes, mode, dtype):
    ids = np.random.default_rng(0).integers(0, classes, (13, 17)).astype(np.uint16)
    ids[0, 0] = classes - 1
    write_mask(tmp_path / "a.png", ids, ClassTable.numbered(classes))
    with Image.open(tmp_path / "a.png") as image:
        assert image.mode == mode
    found = read_mask(tmp_path / "a.png")
    assert found.dtype == dtype
    np.testing.assert_array_equal(found, ids)
    assert [p.name for p in tmp_path.iterdir()] == ["a.png"]


def test_palette_is_the_classes_colours(tmp_path):
    table = ClassTable(("a", "b"), np.array([(1, 2, 3), (200, 100, 50)], np.uint8))
    write_mask(tmp_path / "a.png", np.array([[0, 1]]), table)
    np.testing.assert_array_equal(np.array(Image.open(tmp_path / "a.png").convert("RGB"))[0], table.colors)


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_confidence_is_written_in_8_bits(tmp_path, dtype):
    write_confidence(tmp_path / "c.png", np.array([[0, 0.5, 1, 2, np.nan]], dtype))
    assert np.array(Image.open(tmp_path / "c.png")).tolist() == [[0, 128, 255, 255, 0]]
    write_confidence(tmp_path / "d.png", np.array([[7]], np.uint8))
    assert np.array(Image.open(tmp_path / "d.png")).tolist() == [[7]]


def test_boundaries_lie_between_segments():
    ids = np.zeros((6, 8), np.uint8)
    ids[:, 5:] = 1
    assert np.argwhere(boundaries(ids).all(0)).tolist() == [[4]]
    assert boundaries(ids, 2).any(0).tolist() == [False] * 4 + [True, True] + [False] * 2
    assert not boundaries(np.zeros((1, 1))).any()


def test_overlay_tints_classes_and_leaves_ignored_pixels():
    table = ClassTable.numbered(3)
    image, ids = scene(40, 50)
    shown = overlay(image, ids, table, strength=0.5)
    inside = ~boundaries(ids)
    expected = (image.astype(float) + table.colors[ids]) / 2
    assert np.abs(shown[inside] - expected[inside]).max() <= 1
    np.testing.assert_array_equal(overlay(image, np.full_like(ids, 255), table), image)


def test_overlays_of_large_images_are_shrunk(tmp_path):
    image, ids = scene(300, 600)
    small, few = shrink(image, ids, 100)
    assert small.shape == (50, 100, 3) and few.shape == (50, 100)
    assert set(np.unique(few)) <= {0, 1, 2}
    write_overlay(tmp_path / "o.jpg", image, ids, ClassTable.numbered(3), side=200)
    assert Image.open(tmp_path / "o.jpg").size == (200, 100)
    assert shrink(image[:1], ids[:1], 100)[0].shape == (1, 100, 3)


def test_narrow_is_what_no_square_holds():
    """Against the definition, pixel by pixel."""
    rng = np.random.default_rng(0)
    for width in (1, 2, 3, 5):
        ids = np.kron(rng.integers(0, 3, (5, 6)), np.ones((4, 3), int)).astype(np.uint8)
        ids[rng.random(ids.shape) < 0.02] = 7
        wide = np.zeros(ids.shape, bool)
        for y in range(ids.shape[0] - width + 1):
            for x in range(ids.shape[1] - width + 1):
                square = np.s_[y : y + width, x : x + width]
                wide[square] |= (ids[square] == ids[y, x]).all()
        assert (narrow(ids, width) == ~wide).all()
    assert not narrow(np.zeros((2, 9), np.uint8), 3).any()


def test_a_mask_is_shrunk_by_area_and_keeps_lines():
    ids = np.zeros((90, 120), np.uint8)
    ids[:, 61:] = 1  # a pixel of the small mask holds one column of 0 and two of 1
    ids[30, :] = 2  # one pixel in three
    image, small = shrink(np.zeros((90, 120, 3), np.uint8), ids, 40)
    expected = np.zeros((30, 40), np.uint8)
    expected[:, 20:] = 1
    expected[10] = 2
    assert image.shape == (30, 40, 3) and (small == expected).all() and small.dtype == ids.dtype


def test_thin_classes_have_their_colour_and_no_light_lines():
    table = ClassTable(("ground", "line"), np.array([(0, 0, 0), (250, 200, 0)], np.uint8))
    ids = np.zeros((60, 60), np.uint8)
    for k, width in enumerate((1, 2, 4)):
        ids[:, 10 + 16 * k : 10 + 16 * k + width] = 1
    seen = overlay(np.full((60, 60, 3), 100, np.uint8), ids, table).astype(int)
    assert np.abs(seen[ids == 1] - (235, 190, 10)).max() <= 1, "nine tenths of the colour"
    assert (seen[ids == 0] == 50).all(), "and nothing light beside it"
    ids[:] = np.arange(60) >= 30
    assert (overlay(np.full((60, 60, 3), 100, np.uint8), ids, table)[:, 29] > 150).all(), "wide classes have a line"
