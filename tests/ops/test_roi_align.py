"""RoIAlign against torchvision's, the identity, and boxes of nothing."""

from __future__ import annotations

import pytest
import torch
from torchvision.ops import roi_align as torchvisions

from maskwright.ops.roi_align import roi_align


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("size", [(5, 7), (2, 3), (9, 4)])
def test_values_and_gradients_are_torchvisions(size):
    g = generator()
    x = torch.randn(40, 3, 5, 7, generator=g, dtype=torch.float64)
    corners = torch.rand(40, 2, 2, generator=g, dtype=torch.float64) * 10 - 2  # beyond the map, too
    boxes = torch.cat((corners.amin(1), corners.amax(1)), 1)
    rows = torch.cat((torch.arange(40.0, dtype=torch.float64)[:, None], boxes), 1)
    leaves = [x.clone().requires_grad_() for _ in range(2)]
    ours, theirs = roi_align(leaves[0], boxes, size), torchvisions(leaves[1], rows, size, aligned=True)
    torch.testing.assert_close(ours, theirs)
    up = torch.randn(ours.shape, generator=g, dtype=torch.float64)
    (ours * up).sum().backward()
    (theirs * up).sum().backward()
    torch.testing.assert_close(leaves[0].grad, leaves[1].grad)


def test_the_whole_map_is_itself_bit_by_bit_and_an_empty_box_is_nothing():
    x = torch.randn(3, 4, 5, 7, generator=generator())
    whole = torch.tensor([0.0, 0, 7, 5]).expand(3, 4)
    assert torch.equal(roi_align(x, whole, (5, 7)), x)
    assert torch.equal(roi_align(x, whole * (1 + 1e-9), (5, 7)).float(), x), "a box that was computed"
    assert not roi_align(x, torch.tensor([4.0, 0, 2, 5]).expand(3, 4), (5, 7)).any()
    assert not roi_align(x, torch.zeros(3, 4), (5, 7)).any()
    assert roi_align(x[:0], whole[:0], (5, 7)).shape == (0, 4, 5, 7)
    with pytest.raises(ValueError, match="boxes"):
        roi_align(x, whole[:2], (5, 7))
