"""Maps of several shapes in one batch."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from maskwright.recipes.frozen.batches import stacked_by_shape, windows


def maps(*sizes: tuple[int, int]) -> list[torch.Tensor]:
    return [torch.arange(2 * h * w).float().reshape(2, h, w) + 1000 * k for k, (h, w) in enumerate(sizes)]


def test_what_is_stacked_is_everything_once_in_its_order():
    drawn = maps((2, 3), (3, 3), (2, 3), (3, 2))
    groups = stacked_by_shape([(f, f[0]) for f in drawn])
    assert [tuple(f.shape) for f, _ in groups] == [(2, 2, 2, 3), (1, 2, 3, 3), (1, 2, 3, 2)]
    assert torch.equal(groups[0][0], torch.stack([drawn[0], drawn[2]]))
    assert all(torch.equal(f[:, 0], y) for f, y in groups)


def test_groups_weighed_by_their_number_give_the_mean_over_photographs():
    torch.manual_seed(0)
    drawn = [(torch.randn(4, h, 3), torch.randint(4, (h, 3))) for h in (2, 3, 2, 5, 2)]
    expected = torch.stack([F.cross_entropy(f[None], y[None]) for f, y in drawn]).mean()
    groups = stacked_by_shape(drawn)
    found = sum(F.cross_entropy(f, y) * len(y) / len(drawn) for f, y in groups)
    assert float(found) == pytest.approx(float(expected), rel=1e-6)


def test_a_window_is_a_part_of_its_map_and_maps_of_its_size_draw_nothing():
    drawn = maps((6, 9), (4, 5), (7, 5))
    random = torch.Generator().manual_seed(0)
    found = windows(drawn, random)
    assert found.shape == (3, 2, 4, 5) and torch.equal(found[1], drawn[1])
    for one, f in zip(found, drawn):
        top, left = divmod(int(one[0, 0, 0]) % 1000, f.shape[2])
        assert torch.equal(one, f[:, top : top + 4, left : left + 5])
    before = random.get_state()
    assert torch.equal(windows(drawn[1:2], random), drawn[1][None]) and torch.equal(random.get_state(), before)
