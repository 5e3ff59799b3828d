"""Labels of class maps by two thresholds, before and after refinement."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st

from maskwright.ops.cam_labels import IGNORE, cam_labels, cam_regions, refined_cam_labels
from maskwright.ops.refinement.par import pixel_adaptive_refine


def test_classes_background_and_what_lies_between():
    cams = torch.tensor([[[[0.9, 0.1, 0.5, 0.7]], [[0.2, 0.25, 0.6, 0.8]]]])  # (1, 2, 1, 4)
    assert cam_labels(cams, 0.7, 0.25).tolist() == [[[1, 0, IGNORE, 2]]]
    assert cam_regions(cams, 0.7, 0.25).tolist() == [[[2, 0, 1, 2]]]
    valid = torch.tensor([[[True, False, True, False]]])
    assert cam_labels(cams, 0.7, 0.25, valid).tolist() == [[[1, IGNORE, IGNORE, IGNORE]]]
    with pytest.raises(ValueError, match="low"):
        cam_labels(cams, 0.2, 0.3)


@examples(max_examples=5)
@given(st.integers(0, 99))
def test_labels_of_two_refinements_of_softmaxed_scores(seed):
    """The authors' way: background and maps through a softmax, a refinement for each of the background's scores."""
    g = torch.Generator().manual_seed(seed)
    high, low, rounds = 0.6, 0.3, 3
    images = torch.rand(2, 3, 9, 11, generator=g)
    tags = torch.tensor([[1, 0, 1], [0, 1, 0]])
    cams = torch.rand(2, 3, 9, 11, generator=g) * tags[..., None, None]
    found = refined_cam_labels(cams, tags, images, high, low, rounds=rounds)
    for b in range(2):
        own = tags[b].bool()
        ids = torch.cat([torch.zeros(1, dtype=torch.int64), own.nonzero()[:, 0] + 1])
        tops = []
        for score in (high, low):
            stacked = torch.cat([torch.full((1, 1, 9, 11), score), cams[b : b + 1, own]], 1).exp()
            stacked = stacked / stacked.sum(1, keepdim=True)
            top = pixel_adaptive_refine(stacked, images[b : b + 1], iterations=rounds, original_sum=True)
            tops.append(ids[top[0].argmax(0)])
        expected = torch.where(tops[0] > 0, tops[0], torch.where(tops[0] + tops[1] == 0, 0, IGNORE))
        assert torch.equal(found[b], expected)


def test_the_softmax_decides_labels():
    """Maps that are refined as they are and compared afterwards give other labels, on a few pixels of a hundred."""
    g = torch.Generator().manual_seed(0)
    images, tags = torch.rand(1, 3, 40, 40, generator=g), torch.ones(1, 3)
    cams = torch.rand(1, 3, 40, 40, generator=g)
    found = refined_cam_labels(cams, tags, images, 0.6, 0.3, rounds=3)
    plain = cam_labels(pixel_adaptive_refine(cams, images, iterations=3), 0.6, 0.3)
    assert 0.002 < float((found != plain).float().mean()) < 0.2


def test_thresholds_in_the_wrong_order_are_refused():
    with pytest.raises(ValueError, match="low"):
        refined_cam_labels(torch.zeros(1, 1, 4, 4), torch.ones(1, 1), torch.rand(1, 3, 4, 4), 0.2, 0.3)


def test_an_image_without_tags_is_background():
    found = refined_cam_labels(torch.zeros(1, 2, 4, 4), torch.zeros(1, 2), torch.rand(1, 3, 4, 4), 0.7, 0.25)
    assert not found.any()


def test_constant_photographs_keep_the_mass_of_the_original_weights():
    """On a photograph of one colour every round multiplies by the weights' sum, 1.01 in the original's code."""
    x = torch.full((1, 2, 6, 7), 0.4)
    image = torch.full((1, 3, 6, 7), 80.0)
    assert torch.allclose(pixel_adaptive_refine(x, image, iterations=10, original_sum=True), x * 1.01**10, rtol=1e-4)
    assert torch.allclose(pixel_adaptive_refine(x, image, iterations=10), x, rtol=1e-5)
