from __future__ import annotations

import sys
import types

import numpy as np
import pytest
import torch
from fakes import scene

from maskwright.errors import MaskwrightError
from maskwright.predict.refine import refine


def noisy(h: int = 60, w: int = 80) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    image, ids = scene(h, w)
    logits = np.random.default_rng(1).normal(0, 1, (3, h, w)) + 1.5 * (ids == np.arange(3)[:, None, None])
    probs = np.exp(logits) / np.exp(logits).sum(0)
    return probs.astype(np.float32), image, ids


def test_none_changes_nothing():
    probs, image, _ = noisy()
    np.testing.assert_array_equal(refine(torch.from_numpy(probs), image), probs)


@pytest.mark.parametrize("how", ["crf", "guided"])
def test_refinement_removes_noise_and_keeps_probabilities(how):
    probs, image, ids = noisy()
    refined = refine(probs, image, how)
    assert refined.shape == probs.shape and refined.dtype == np.float32
    assert refined.min() >= 0
    np.testing.assert_allclose(refined.sum(0), 1, atol=1e-4)
    assert (refined.argmax(0) == ids).mean() > (probs.argmax(0) == ids).mean() + 0.05


@pytest.mark.parametrize("how", ["crf", "guided"])
@pytest.mark.parametrize("size", [(1, 1), (1, 40), (2, 2)])
def test_tiny_images(how, size):
    probs = np.full((2, *size), 0.5, np.float32)
    refined = refine(probs, np.zeros((*size, 3), np.uint8), how)
    np.testing.assert_allclose(refined, 0.5, atol=1e-3)


def test_guided_result_is_brought_back_to_probabilities(monkeypatch):
    module = types.ModuleType("maskwright.ops.refinement.guided")
    module.guided_filter = lambda x, image, **settings: x * 3 - 1  # leaves [0, 1]
    monkeypatch.setitem(sys.modules, "maskwright.ops.refinement.guided", module)
    probs, image, _ = noisy(8, 9)
    refined = refine(probs, image, "guided")
    assert refined.min() > 0
    np.testing.assert_allclose(refined.sum(0), 1, atol=1e-5)


def test_bad_arguments():
    probs, image, _ = noisy(8, 9)
    with pytest.raises(MaskwrightError, match="did you mean 'crf'"):
        refine(probs, image, "crff")
    with pytest.raises(MaskwrightError, match="same size"):
        refine(probs, image[:4], "crf")
