"""Superpixels: connectivity, numbering and edges against closed forms; votes against a loop."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from scipy import ndimage
from skimage.color import rgb2lab
from skimage.segmentation import slic as slic_of_skimage

from maskwright.ops.refinement import superpixels as module
from maskwright.ops.refinement.superpixels import slic, superpixel_vote


def _picture(h: int = 90, w: int = 120, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    small = rng.integers(0, 256, (5, 6, 3)).astype(np.float64)
    image = np.stack([ndimage.zoom(small[..., c], (h / 5, w / 6), order=1) for c in range(3)], -1)
    return (image + rng.normal(0, 6, image.shape)).clip(0, 255).astype(np.uint8)


def _check(labels: np.ndarray, shape: tuple[int, int]) -> None:
    assert labels.dtype == np.uint16
    assert labels.shape == shape
    ids = np.unique(labels)
    assert np.array_equal(ids, np.arange(len(ids)))
    # Numbered in order of the first pixel.
    first = [int(np.argmax(labels.ravel() == i)) for i in ids]
    assert first == sorted(first)
    for i in ids:
        assert ndimage.label(labels == i)[1] == 1


@pytest.mark.slow
@settings(max_examples=12, deadline=None)
@given(st.integers(1, 60), st.integers(1, 60), st.integers(1, 80), st.integers(0, 100))
def test_contiguous_ids_and_connected_parts_at_any_size(h: int, w: int, segments: int, seed: int):
    image = np.random.default_rng(seed).integers(0, 256, (h, w, 3), dtype=np.uint8)
    _check(slic(image, segments), (h, w))


def test_number_and_least_size():
    labels = slic(_picture(), 100)
    _check(labels, (90, 120))
    sizes = np.bincount(labels.ravel())
    assert 70 <= len(sizes) <= 140
    assert sizes.min() >= 0.2 * 108


def test_repeats_exactly():
    assert np.array_equal(slic(_picture(), 50), slic(_picture(), 50))


def test_a_flat_image_gives_the_grid():
    labels = slic(np.full((80, 120, 3), 130, np.uint8), 96)
    sizes = np.bincount(labels.ravel())
    assert len(sizes) == 96
    assert sizes.min() >= 60
    assert sizes.max() <= 150


def test_superpixels_stop_at_a_strong_edge():
    image = np.zeros((64, 64, 3), np.uint8)
    image[:, 29:] = (200, 180, 40)
    labels = slic(image, 60)
    assert not set(labels[:, :29].ravel()) & set(labels[:, 29:].ravel())


def test_one_segment_and_one_pixel():
    assert not slic(_picture(), 1).any()
    assert slic(np.zeros((1, 1, 3), np.uint8), 400).tolist() == [[0]]


def test_lab_is_that_of_skimage():
    image = np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8)
    lab = module._to_lab(image, module._GAMMA, module._CUBE_ROOT)
    np.testing.assert_allclose(lab.transpose(1, 2, 0), rgb2lab(image), atol=0.4)
    white = module._to_lab(np.full((1, 1, 3), 255, np.uint8), module._GAMMA, module._CUBE_ROOT)
    np.testing.assert_allclose(white.ravel(), [100, 0, 0], atol=0.05)


def test_refuses():
    with pytest.raises(ValueError, match="uint8"):
        slic(np.zeros((4, 4, 3)))
    with pytest.raises(ValueError, match="16-bit"):
        slic(_picture(), 70000)
    with pytest.raises(ValueError, match="compactness"):
        slic(_picture(), compactness=0)


@pytest.mark.data
def test_upper_bound_of_accuracy_on_photographs_is_that_of_skimage(data_root: Path):
    masks = sorted((data_root / "voc_part" / "masks").glob("*.png"))[:3]
    if not masks:
        pytest.skip("no voc_part")
    for path in masks:
        truth = np.asarray(Image.open(path)).astype(np.int64)
        image = np.asarray(Image.open(data_root / "voc_part" / "images" / f"{path.stem}.jpg").convert("RGB"))
        other = slic_of_skimage(image, 400, start_label=0)
        ours = slic(image, int(other.max()) + 1)
        accuracy = [(superpixel_vote(truth, s)[0] == truth).mean() for s in (ours, other)]
        assert accuracy[0] > accuracy[1] - 0.01


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000), st.booleans(), st.booleans())
def test_vote_equals_a_loop(seed: int, weighted: bool, ignoring: bool):
    rng = np.random.default_rng(seed)
    ids = rng.integers(0, 4, (6, 7)).astype(np.uint8)
    parts = rng.integers(0, 9, (6, 7))
    weights = rng.integers(0, 4, (6, 7)) / 4 if weighted else None
    out, share = superpixel_vote(ids, parts, weights, 3 if ignoring else None)
    for p in np.unique(parts):
        inside = parts == p
        mass = [0.0] * 4
        for i in range(4):
            here = inside & (ids == i)
            if not (ignoring and i == 3):
                mass[i] = float(here.sum() if weights is None else weights[here].sum())
        if sum(mass) > 0:
            assert (out[inside] == int(np.argmax(mass))).all()
            np.testing.assert_allclose(share[inside], max(mass) / sum(mass), rtol=1e-6)
        else:
            assert (share[inside] == 0).all()
            assert np.isin(out[inside], ids[inside]).all()


def test_vote_is_idempotent_and_keeps_constant_superpixels():
    parts = slic(_picture(), 40)
    ids = np.random.default_rng(0).integers(0, 5, parts.shape)
    once, _ = superpixel_vote(ids, parts)
    assert np.array_equal(superpixel_vote(once, parts)[0], once)
    assert (superpixel_vote(once, parts)[1] == 1).all()
    assert once.dtype == ids.dtype


def test_ties_go_to_the_lowest_and_ignored_pixels_follow_the_rest():
    parts = np.zeros((1, 4), np.uint16)
    assert superpixel_vote(np.array([[2, 1, 1, 2]]), parts)[0].tolist() == [[1, 1, 1, 1]]
    assert superpixel_vote(np.array([[255, 255, 255, 7]]), parts, ignore=255)[0].tolist() == [[7] * 4]
    assert superpixel_vote(np.array([[255] * 4]), parts, ignore=255)[0].tolist() == [[255] * 4]
    with pytest.raises(ValueError, match="same shape"):
        superpixel_vote(np.zeros((2, 2), int), parts)
