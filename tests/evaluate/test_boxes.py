"""Boxes and CorLoc against hand-made cases and torchvision."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torchvision.ops import box_iou as torchvision_box_iou

from maskwright.errors import MaskwrightError
from maskwright.evaluate.boxes import box_iou, boxes_from_masks, corloc, mask_box


def test_box_iou() -> None:
    rng = np.random.default_rng(0)
    a, b = (np.sort(rng.random((n, 2, 2)) * 50, axis=1).reshape(n, 4) for n in (7, 9))
    expected = torchvision_box_iou(torch.tensor(a), torch.tensor(b)).numpy()
    assert np.allclose(box_iou(a, b), expected)
    assert box_iou([0, 0, 0, 0], [0, 0, 0, 0]).tolist() == [[0]]
    assert box_iou([], a).shape == (0, 7)


def test_boxes_of_masks() -> None:
    ids = np.zeros((6, 8), np.uint8)
    ids[2, 3] = 5
    ids[1:4, 6:] = 2
    assert boxes_from_masks(ids) == {2: (6, 1, 8, 4), 5: (3, 2, 4, 3)}
    assert mask_box(np.zeros((3, 3), bool)) is None


def test_corloc() -> None:
    predicted = [[0, 0, 10, 10], None, [0, 0, 4, 4], [0, 0, 1, 1]]
    true = [[[50, 50, 60, 60], [0, 0, 10, 20]], [[0, 0, 1, 1]], [[0, 0, 4, 9]], []]
    assert corloc(predicted, true) == pytest.approx(1 / 3)  # exactly one half counts; the last has no truth
    assert np.isnan(corloc([], []))
    with pytest.raises(MaskwrightError):
        corloc([[0, 0, 1, 1]], [])
    with pytest.raises(MaskwrightError, match="one"):
        corloc([[[0, 0, 1, 1], [0, 0, 2, 2]]], [[[0, 0, 1, 1]]])
