"""RoIAlign: torchvision's, coordinates, boxes without area."""

from __future__ import annotations

import pytest
import torch
from torchvision.ops import roi_align as reference

from maskwright.ops.roi_align import bin_weights, roi_align


def boxes_of(n: int, w: int, h: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    ends = torch.rand(n, 2, 2, dtype=torch.float64, generator=generator) * torch.tensor([w, h])
    low, high = ends.amin(1), ends.amax(1)
    return torch.cat((low, high + 0.05), 1)


@pytest.mark.parametrize(("h", "w", "bins"), [(14, 14, 7), (6, 9, 7), (5, 3, 2), (30, 1, 4)])
def test_torchvisions(h, w, bins):
    generator = torch.Generator().manual_seed(3)
    maps = torch.randn(40, 2, h, w, dtype=torch.float64, generator=generator)
    boxes = boxes_of(40, w, h, seed=1)
    boxes[0] = torch.tensor([0, 0, w, h])
    ours, theirs = maps.clone().requires_grad_(), maps.clone().requires_grad_()
    a = roi_align(ours, boxes, bins)
    b = reference(theirs, torch.cat((torch.arange(40.0)[:, None], boxes), 1), bins, aligned=True)
    torch.testing.assert_close(a, b)
    weight = torch.randn(a.shape, dtype=torch.float64, generator=generator)
    (a * weight).sum().backward()
    (b * weight).sum().backward()
    torch.testing.assert_close(ours.grad, theirs.grad)


def test_a_map_of_coordinates_gives_the_bins_centres():
    at = torch.arange(12) + 0.5
    x = torch.stack((at.expand(12, 12), at[:, None].expand(12, 12)))[None]
    found = roi_align(x, torch.tensor([[2.0, 3.0, 9.0, 10.0]]), 7)[0]
    torch.testing.assert_close(found[0], (2.5 + torch.arange(7.0)).expand(7, 7))
    torch.testing.assert_close(found[1], (3.5 + torch.arange(7.0))[:, None].expand(7, 7))


def test_boxes_without_area_and_bad_shapes():
    assert not roi_align(torch.ones(1, 1, 4, 4), torch.tensor([[2.0, 0.0, 2.0, 4.0]]), 3).any()
    assert roi_align(torch.ones(0, 1, 4, 4), torch.ones(0, 4), 3).shape == (0, 1, 3, 3)
    torch.testing.assert_close(bin_weights(torch.zeros(1), torch.full((1,), 4.0), 4, 7).sum(2), torch.ones(1, 7))
    with pytest.raises(ValueError, match="expected"):
        roi_align(torch.ones(2, 1, 4, 4), torch.ones(1, 4), 3)
