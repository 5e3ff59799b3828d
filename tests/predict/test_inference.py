from __future__ import annotations

import numpy as np
import pytest
import torch
from fakes import ColorSegmenter, scene
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from maskwright.errors import MaskwrightError
from maskwright.predict import inference
from maskwright.predict.inference import predict_mask, predict_probs, resize_part


@settings(max_examples=40, deadline=None)
@given(st.integers(2, 30), st.integers(2, 30), st.integers(2, 90), st.integers(2, 90), st.data())
def test_resize_part_equals_torch(h, w, height, width, data):
    x = torch.randn(2, h, w)
    whole = F.interpolate(x[None], (height, width), mode="bilinear", antialias=True, align_corners=False)[0]
    top, left = data.draw(st.integers(0, height - 1)), data.draw(st.integers(0, width - 1))
    bottom, right = data.draw(st.integers(top + 1, height)), data.draw(st.integers(left + 1, width))
    part = resize_part(x, (height, width), (top, bottom), (left, right))
    torch.testing.assert_close(part, whole[:, top:bottom, left:right], atol=2e-4, rtol=1e-3)


def test_resize_part_of_maps_one_cell_wide():
    # Torch's antialiased kernel repeats the first row when a map of width 1 stays that wide: no oracle here.
    x = torch.tensor([0.0, 1.0]).view(1, 2, 1)
    assert resize_part(x, (4, 3), (0, 4), (0, 3))[0, :, 1].tolist() == [0.0, 0.25, 0.75, 1.0]
    assert resize_part(x.transpose(1, 2), (1, 4), (0, 1), (1, 3)).flatten().tolist() == [0.25, 0.75]
    assert resize_part(x, (1, 1), (0, 1), (0, 1)).item() == 0.5


def test_whole_prediction_is_softmax_of_resized_logits():
    segmenter, (image, _) = ColorSegmenter(short_side=48), scene(90, 121)
    probs = predict_probs(segmenter, image)
    x = segmenter.preprocess.apply(image)[None]
    logits = F.interpolate(segmenter.eval()(x), (90, 121), mode="bilinear", align_corners=False)
    np.testing.assert_allclose(probs, logits.softmax(1)[0].detach().numpy(), atol=1e-5)
    found = predict_mask(segmenter, image)
    np.testing.assert_array_equal(found.ids, probs.argmax(0))
    np.testing.assert_allclose(found.confidence, probs.max(0), atol=1e-6)
    assert found.ids.dtype == np.uint8 and found.confidence.dtype == np.float32 and found.classes == 3


@pytest.mark.parametrize("tile", [None, 64, 100])
def test_masks_are_right_with_and_without_tiles(tile):
    image, ids = scene(230, 310)
    found = predict_mask(ColorSegmenter(), image, tile=tile)
    assert (found.ids == ids).mean() > 0.98


def test_tiles_agree_with_the_whole_where_windows_see_the_same_cells():
    image, _ = scene(256, 384)
    segmenter = ColorSegmenter()
    whole, tiled = predict_probs(segmenter, image), predict_probs(segmenter, image, tile=128, overlap=0.5)
    np.testing.assert_allclose(tiled.sum(0), 1, atol=1e-5)
    # Only the last half cell of a window is extrapolated, and there the window hardly counts.
    assert np.abs(whole - tiled).max() < 0.06 and np.abs(whole - tiled).mean() < 1e-3


def test_blend_has_no_seams():
    segmenter = ColorSegmenter()
    image = np.broadcast_to(np.linspace(40, 220, 400).astype(np.uint8)[None, :, None], (96, 400, 3)).copy()
    tiled = predict_probs(segmenter, image, tile=96, overlap=0.4)
    whole = predict_probs(segmenter, image)
    assert np.abs(np.diff(tiled, axis=2)).max() < np.abs(np.diff(whole, axis=2)).max() + 0.02


@pytest.mark.parametrize("max_bytes", [1 << 20, 1 << 30])
def test_memory_limit_does_not_change_the_result(max_bytes, monkeypatch):
    image, _ = scene(350, 450)
    segmenter = ColorSegmenter(stride=2, classes=20)
    reference = predict_probs(segmenter, image, tile=64)
    segmenter.seen.clear()
    found = predict_mask(segmenter, image, tile=64, max_bytes=max_bytes)
    np.testing.assert_array_equal(found.ids, reference.argmax(0))
    np.testing.assert_allclose(found.confidence, reference.max(0), atol=1e-6)


def test_held_logits_stay_within_the_budget(monkeypatch):
    held = []
    original = inference._Windows._fill

    def watched(self, places):
        original(self, places)
        held.append(sum(m.numel() * 4 for maps in self.held.values() for m in maps))

    monkeypatch.setattr(inference._Windows, "_fill", watched)
    image, _ = scene(300, 2500)
    predict_mask(ColorSegmenter(stride=1), image, tile=64, max_bytes=8 << 20)
    assert max(held) <= 3 << 20  # a quarter of the budget, and the windows at a stripe's ends
    assert len(held) > 10


@pytest.mark.parametrize("size", [(1, 1), (1, 5000), (5000, 1), (2, 3), (7, 4)])
@pytest.mark.parametrize("sizes", [{}, {"short_side": 32}, {"size": (32, 48)}])
@pytest.mark.parametrize("tile", [None, 64])
def test_any_size(size, sizes, tile):
    image = np.full((*size, 3), (220, 60, 40), np.uint8)
    found = predict_mask(ColorSegmenter(stride=16, **sizes), image, tile=tile)
    assert found.ids.shape == size and (found.ids == 1).all()
    assert np.isfinite(found.confidence).all()


def test_flips_make_the_prediction_symmetric():
    image, _ = scene(64, 95)
    segmenter = ColorSegmenter(sharpness=5.0)
    both = predict_probs(segmenter, image, flips=True)
    mirrored = predict_probs(segmenter, np.ascontiguousarray(image[:, ::-1]), flips=True)
    np.testing.assert_allclose(both, mirrored[..., ::-1], atol=5e-3)


class SlopedSegmenter(ColorSegmenter):
    """Finds class 1 likelier towards the right of its input, whatever is there."""

    def forward(self, x):
        logits = super().forward(x)
        slope = torch.linspace(-20, 20, logits.shape[-1])
        return torch.cat([logits[:, :1], logits[:, 1:2] + slope, logits[:, 2:]], 1)


@pytest.mark.parametrize("tile", [None, 64])
def test_flips_are_averaged_on_probabilities(tile):
    image, _ = scene(64, 96)
    mirrored = np.ascontiguousarray(image[:, ::-1])
    segmenter = SlopedSegmenter()
    both = predict_probs(segmenter, image, flips=True, tile=tile)
    one, two = predict_probs(segmenter, image, tile=tile), predict_probs(segmenter, mirrored, tile=tile)[..., ::-1]
    assert np.abs(one - two).max() > 0.9
    np.testing.assert_allclose(both, (one + two) / 2, atol=1e-5)


def test_scales_are_averaged_on_probabilities():
    image, _ = scene(64, 96)
    segmenter = ColorSegmenter(short_side=64)
    both = predict_probs(segmenter, image, scales=(1.0, 0.5))
    half = ColorSegmenter(short_side=32)
    expected = (predict_probs(segmenter, image) + predict_probs(half, image)) / 2
    np.testing.assert_allclose(both, expected, atol=1e-5)


def test_more_than_255_classes_need_uint16():
    image, _ = scene(40, 40)
    segmenter = ColorSegmenter(classes=300)
    assert predict_mask(segmenter, image).ids.dtype == np.uint16
    assert predict_mask(segmenter, image, confidence=None).confidence is None
    assert predict_mask(segmenter, image, confidence=np.uint8).confidence.dtype == np.uint8


def test_training_mode_is_put_back():
    segmenter = ColorSegmenter().train()
    predict_mask(segmenter, scene(16, 16)[0])
    assert segmenter.training


def test_bad_input_is_told():
    segmenter, image = ColorSegmenter(), np.zeros((8, 8, 3), np.uint8)
    for bad in (image.astype(np.float32), image[..., :2], image[:0], "a.jpg"):
        with pytest.raises(MaskwrightError):
            predict_mask(segmenter, bad)
    with pytest.raises(MaskwrightError, match="did you mean 'guided'"):
        predict_mask(segmenter, image, refine="guidet")
    with pytest.raises(MaskwrightError):
        predict_mask(segmenter, image, precision="fp16")
    with pytest.raises(MaskwrightError):
        predict_mask(segmenter, image, max_bytes=5)


def test_refinement_in_blocks_sees_every_pixel_once_with_context(monkeypatch):
    calls = []

    def fake(probs, image, how, **settings):
        calls.append(tuple(probs.shape))
        assert probs.shape[1:] == image.shape[:2]
        return probs.numpy()

    monkeypatch.setattr(inference, "refine", fake)
    image, _ = scene(700, 500)
    segmenter = ColorSegmenter()
    plain = predict_mask(segmenter, image)
    refined = predict_mask(segmenter, image, refine="crf", max_bytes=8 << 20)
    np.testing.assert_array_equal(plain.ids, refined.ids)
    assert len(calls) > 1
    calls.clear()
    predict_mask(segmenter, image, refine="crf")
    assert calls == [(3, 700, 500)]


def test_a_gpu_that_is_too_small_sees_fewer_windows_at_a_time(monkeypatch):
    """The same prediction with half as many and fewer; one window that does not fit is told."""
    segmenter, image = ColorSegmenter(), np.random.default_rng(0).integers(0, 256, (96, 160, 3), dtype=np.uint8)
    whole = predict_mask(segmenter, image, tile=32)
    real, fits = inference._Windows._logits, [3]

    def small(self, places, size):
        if len(places) > fits[0]:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return real(self, places, size)

    monkeypatch.setattr(inference._Windows, "_logits", small)
    assert np.array_equal(predict_mask(segmenter, image, tile=32).ids, whole.ids)
    fits[0] = 0
    with pytest.raises(MaskwrightError, match=r"one window of 32 x 32 pixels does not fit.*add --tile 16"):
        predict_mask(segmenter, image, tile=32)
