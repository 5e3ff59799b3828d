"""Sizes and normalisation of inputs."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from maskwright.errors import MaskwrightError
from maskwright.models.preprocess import MAX_ASPECT, STRIP_PIXELS, Preprocess
from maskwright.models.provenance import Provenance


@pytest.mark.parametrize(
    ("arguments", "size", "expected"),
    [
        ({"short_side": 320, "multiple_of": 16}, (360, 480), (320, 432)),
        ({"short_side": 320, "multiple_of": 16}, (480, 360), (432, 320)),
        ({"short_side": 224}, (375, 500), (224, 299)),
        ({"long_side": 224, "multiple_of": 14}, (100, 1000), (28, 224)),
        ({"long_side": 224}, (1, 1), (1, 1)),
        ({"size": 518, "multiple_of": 14}, (375, 500), (518, 518)),
        ({"size": (100, 200), "multiple_of": 14}, (375, 500), (98, 196)),
        ({}, (37, 41), (37, 41)),
        ({"multiple_of": 14}, (1, 1), (14, 14)),
    ],
)
def test_target_sizes(arguments, size, expected):
    assert Preprocess(**arguments).target_size(size) == expected


@settings(max_examples=200, deadline=None)
@given(
    h=st.integers(1, 6000),
    w=st.integers(1, 6000),
    short=st.integers(16, 512),
    multiple=st.sampled_from([1, 8, 14, 16, 32]),
)
def test_target_size_invariants(h: int, w: int, short: int, multiple: int):
    th, tw = Preprocess(short_side=short, multiple_of=multiple).target_size((h, w))
    assert th % multiple == 0 and tw % multiple == 0 and min(th, tw) >= multiple
    assert th * tw <= (short * MAX_ASPECT + multiple) * (short + multiple) + multiple * (max(th, tw) + multiple)
    if max(h, w) <= MAX_ASPECT * min(h, w):
        assert abs(min(th, tw) - short) <= multiple / 2 or min(th, tw) == multiple
        assert abs(tw - th * w / h) <= multiple * (1 + w / h)
    assert Preprocess(short_side=short, multiple_of=multiple).target_size((w, h)) == (tw, th)


def test_strips_keep_their_area_and_photographs_their_size():
    """Up to an aspect of 16 sizes are what they always were, by the rule written out; strips stay near their area."""
    rng = np.random.default_rng(0)
    for _ in range(20_000):
        multiple, short = int(rng.choice([1, 8, 14, 16, 32, 64])), int(rng.choice([0, 224, 320, 518]))
        h, w = (int(v) for v in np.exp(rng.uniform(0, np.log(40_000), 2)))
        preprocess = Preprocess(short_side=short or None, multiple_of=multiple)
        got = preprocess.target_size((h, w))
        scale = min(short / min(h, w), (MAX_ASPECT / (h * w)) ** 0.5 * short) if short else 1.0
        usual = tuple(max(1, math.floor(v * scale / multiple + 0.5)) * multiple for v in (h, w))
        if max(h, w) <= MAX_ASPECT * min(h, w):
            assert got == usual
        else:
            assert got[0] <= usual[0] and got[1] <= usual[1] and min(got) == min(usual)
            wanted = max(h * w * scale * scale, MAX_ASPECT * min(got) ** 2)
            assert got[0] * got[1] <= wanted + multiple * min(got)
    assert Preprocess(short_side=320, multiple_of=32).target_size((1, 100_000)) == (32, STRIP_PIXELS // 32)


def test_resize_is_pil_within_a_grey_level():
    rng = np.random.default_rng(0)
    image = np.asarray(
        Image.fromarray(rng.integers(0, 256, (12, 16, 3), np.uint8)).resize((160, 120), Image.Resampling.BICUBIC)
    )
    preprocess = Preprocess(mean=(0, 0, 0), std=(1, 1, 1), size=(50, 70))
    ours = (preprocess.apply(image) * 255).permute(1, 2, 0).numpy()
    theirs = np.asarray(Image.fromarray(image).resize((70, 50), Image.Resampling.BILINEAR))
    assert np.abs(ours - theirs).max() <= 1.001


def test_normalisation_and_its_inverse():
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (20, 30, 3), np.uint8)
    preprocess = Preprocess()
    x = preprocess.apply(image)
    expected = (image.transpose(2, 0, 1) / 255 - np.array(preprocess.mean)[:, None, None]) / np.array(preprocess.std)[
        :, None, None
    ]
    np.testing.assert_allclose(x.numpy(), expected, atol=1e-5)
    assert np.array_equal(preprocess.denormalise(x).permute(1, 2, 0).numpy(), image)
    assert np.array_equal(preprocess.apply(image[:, ::-1]).flip(-1).numpy(), x.numpy())


def test_many_images_make_one_batch():
    images = [np.full((40, 60, 3), v, np.uint8) for v in (0, 128, 255)]
    preprocess = Preprocess(short_side=32, multiple_of=16)
    batch = preprocess.apply_many(images)
    assert batch.shape == (3, 3, 32, 48)
    for one, image in zip(batch, images):
        assert torch.equal(one, preprocess.apply(image))
    with pytest.raises(ValueError, match="differ"):
        preprocess.apply_many([*images, np.zeros((60, 40, 3), np.uint8)])
    assert preprocess.apply_many([*images, np.zeros((60, 40, 3), np.uint8)], size=(32, 32)).shape == (
        4,
        3,
        32,
        32,
    )
    with pytest.raises(ValueError, match="no images"):
        preprocess.apply_many([])


@pytest.mark.parametrize(
    "image", [np.zeros((4, 4), np.uint8), np.zeros((4, 4, 4), np.uint8), np.zeros((4, 4, 3), np.float32)]
)
def test_other_images_are_refused(image):
    with pytest.raises(ValueError, match="expected uint8"):
        Preprocess().apply(image)


@pytest.mark.parametrize(
    "arguments",
    [
        {"std": (0, 1, 1)},
        {"mean": (1,)},
        {"size": 3, "short_side": 2},
        {"multiple_of": 0},
        {"short_side": 0},
        {"size": 0},
    ],
)
def test_arguments_out_of_range(arguments):
    with pytest.raises(ValueError):
        Preprocess(**arguments)


def test_json_both_ways():
    for preprocess in (
        Preprocess(short_side=320, multiple_of=16),
        Preprocess(size=(98, 196)),
        Preprocess((0, 0, 0), (1, 1, 1)),
    ):
        assert Preprocess.from_json(preprocess.to_json()) == preprocess
    provenance = Provenance("test_vit", "hub: a", "MIT", "none", "ab", (0.5,) * 3, (0.5,) * 3, (518, 518))
    assert Provenance.from_json(provenance.to_json()) == provenance
    assert Preprocess.for_backbone(provenance, short_side=224).mean == (0.5, 0.5, 0.5)
    assert "labels seen in pretraining: none" in provenance.summary()


@pytest.mark.parametrize(
    "change",
    [
        {"mean": "x"},
        {"std": [0, 0, 0]},
        {"size": [1, 2, 3]},
        {"short_side": "big"},
        {"multiple_of": None},
        {"code": "1"},
        {"std": None},
    ],
)
def test_damaged_json_is_refused(change):
    with pytest.raises(MaskwrightError):
        Preprocess.from_json({**Preprocess().to_json(), **change})


@pytest.mark.parametrize("record", ["{", "[1]", {}, {"architecture": 3}, {"architecture": "a", "mean": [1, 2]}])
def test_damaged_provenance_is_refused(record):
    with pytest.raises(MaskwrightError):
        Provenance.from_json(record)
