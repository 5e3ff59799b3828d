"""Pairs of overlapping crops as a stream draws them."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from tests.conftest import write_tiny_folder

from maskwright.data.folders.folder import open_folder
from maskwright.data.training.augment import photometric
from maskwright.data.training.overlap import Pairs, PairStream
from maskwright.data.training.sampler import Sampler
from maskwright.data.training.streams import CropRecipe, Stream

CELL = 8


@pytest.fixture
def data(tmp_path):
    return open_folder(write_tiny_folder(tmp_path / "tiny", count=4, masks=False))


def pairs_of(data, change=None) -> PairStream:
    crops = CropRecipe(32, (1.0, 1.0), 64)
    order = Sampler(len(data), 4, seed=0)
    return PairStream(Stream(data, range(len(data)), order, crops, (0, 0, 0), change=change), CELL, (0.9, 1.1))


def cell_means(u: torch.Tensor) -> torch.Tensor:
    """(U n n, 3): alike for cells that are mirrored."""
    return F.avg_pool2d(u.float(), CELL).permute(0, 2, 3, 1).flatten(0, 2)


def drawn(stream: PairStream) -> Pairs:
    return stream.draw(stream.next(), torch.Generator().manual_seed(0))


def test_without_a_recipe_shared_cells_show_the_same_pixels(data):
    u = drawn(pairs_of(data))
    assert len(u.cells1) == len(u.cells2) > 0
    assert any(a.flipped != b.flipped for a, b in u.views), "some pair is mirrored"
    one, two = cell_means(u.u1), cell_means(u.u2)
    torch.testing.assert_close(one[u.cells1], two[u.cells2], atol=0.5, rtol=0)
    assert (one - two).abs().max() > 20, "the crops themselves differ"


def test_a_recipe_changes_each_crop_on_its_own_and_moves_none(data):
    plain, changed = drawn(pairs_of(data)), drawn(pairs_of(data, photometric("iic_coco")))
    assert torch.equal(plain.cells1, changed.cells1) and torch.equal(plain.cells2, changed.cells2)
    assert not torch.equal(plain.u1, changed.u1) and not torch.equal(plain.u2, changed.u2)
    one, two = cell_means(changed.u1)[changed.cells1], cell_means(changed.u2)[changed.cells2]
    assert (one - two).abs().mean() > 2


def test_as_input_normalises_pixels_and_keeps_the_rest(data):
    u = drawn(pairs_of(data))
    x = u.as_input(lambda pixels: pixels.float() / 255, torch.device("cpu"))
    assert torch.equal(x.u1, u.u1.float() / 255) and torch.equal(x.u2, u.u2.float() / 255)
    assert all(torch.equal(a, b) for a, b in zip(x[2:6], u[2:6])) and x.views == u.views
