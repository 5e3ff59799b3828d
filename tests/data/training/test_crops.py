"""Windows around wanted places of a map."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st

from maskwright.data.training.crops import random_scale_crop, windows_where
from maskwright.data.training.views import View, resample


def boxes(view: View, windows: list[View]) -> list[tuple[int, int]]:
    """Upper left corners in the view."""
    found = []
    for window in windows:
        m = view.matrix_to(window)
        assert torch.allclose(m[:2, :2], torch.eye(2, dtype=m.dtype))
        found.append((round(-float(m[1, 2])), round(-float(m[0, 2]))))
    return found


@examples(max_examples=20)
@given(st.integers(0, 99), st.sampled_from([8, 16, 31]), st.integers(1, 12))
def test_windows_lie_in_the_view_and_are_exact_slices(seed, size, count):
    g = torch.Generator().manual_seed(seed)
    view = random_scale_crop((70, 90), (48, 48), generator=g)
    wanted = torch.rand(24, 24, generator=g) < 0.2
    windows = windows_where(wanted, torch.ones_like(wanted), view, size, count, g)
    x = torch.randn(3, 48, 48, generator=g)
    inside = view.valid()
    assert len(windows) == count
    for (top, left), window in zip(boxes(view, windows), windows):
        assert 0 <= top <= 48 - size and 0 <= left <= 48 - size
        seen, valid = resample(x, view, window)
        part = (slice(top, top + size), slice(left, left + size))
        assert torch.equal(valid, inside[part])
        assert torch.equal(seen, torch.where(valid, x[:, part[0], part[1]], 0.0))


def test_wanted_places_come_first_then_allowed_ones():
    view = View.identity((40, 40))
    wanted = torch.zeros(20, 20, dtype=torch.bool)
    wanted[7, 9] = wanted[12, 6] = wanted[0, 0] = True  # the last is too near the border for a window of 10
    allowed = torch.zeros_like(wanted)
    allowed[:, :10] = True
    g = torch.Generator().manual_seed(0)
    corners = boxes(view, windows_where(wanted, allowed, view, 10, 30, g))
    assert {corners[0], corners[1]} == {(10, 14), (20, 8)}
    assert all(left + 5 <= 20 for _, left in corners)
    assert len(set(corners)) == 30


def test_more_windows_than_places():
    view = View.identity((16, 16))
    windows = windows_where(torch.ones(2, 2).bool(), torch.ones(2, 2).bool(), view, 16, 7)
    assert boxes(view, windows) == [(0, 0)] * 7


def test_draws_follow_the_generator():
    view, marked = View.identity((64, 64)), torch.ones(32, 32).bool()
    draws = []
    for seed in (1, 1, 2):
        random = torch.Generator().manual_seed(seed)
        draws.append(boxes(view, windows_where(marked, marked, view, 8, 5, random)))
    assert draws[0] == draws[1] != draws[2]


def test_refuses():
    view, marked = View.identity((16, 16)), torch.ones(4, 4).bool()
    with pytest.raises(ValueError, match="windows of 17"):
        windows_where(marked, marked, view, 17, 1)
    with pytest.raises(ValueError, match="same"):
        windows_where(marked, marked[:2], view, 8, 1)
