"""Pairs of a crop and what it is changed to: geometry that is recorded leads back."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tests.conftest import write_tiny_folder

from maskwright.data.folders.folder import open_folder
from maskwright.data.training.augment import photometric
from maskwright.data.training.sampler import Sampler
from maskwright.data.training.streams import CropRecipe, Stream
from maskwright.data.training.warped import WarpedStream

GREY = (0.5, 0.5, 0.5)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def stream(root, change=None, scale=(1.0, 1.0)) -> Stream:
    data = open_folder(write_tiny_folder(root / "tiny", count=4))
    return Stream(data, range(4), Sampler(4, 2, 0), CropRecipe(32, scale, 1024), GREY, change=change)


def pair(tmp_path, seed: int = 0, **options):
    return WarpedStream(stream(tmp_path, **options.pop("stream", {})), **options).draw([0, 1], generator(seed))


def test_mirrored_pairs_lead_back_exactly(tmp_path):
    u = pair(tmp_path, flip=1.0)
    assert torch.equal(u.u2, u.u1.flip(-1)) and not torch.equal(u.u1, u.u2)
    back, valid = u.back(u.u2.float())
    assert bool(valid.all()) and torch.equal(back, u.u1.float())


@pytest.mark.parametrize("options", [{"rotate": 30.0}, {"zoom": (0.7, 0.7)}, {"rotate": 20.0, "zoom": (0.8, 1.4)}])
def test_turned_and_enlarged_pairs_lead_back_where_they_are_valid(tmp_path, options):
    """Maps that are smooth: coordinates of the photograph that each view itself computes."""
    u = pair(tmp_path, flip=0.5, **options)

    def coordinates(views):
        maps = []
        for view in views:
            y, x = torch.meshgrid(*[torch.arange(32, dtype=torch.float64) + 0.5] * 2, indexing="ij")
            at = torch.stack((x, y, torch.ones_like(x))).flatten(1)
            maps.append((view.inverse @ at)[:2].reshape(2, 32, 32))
        return torch.stack(maps)

    back, valid = u.back(coordinates(u.views2))
    inner = valid.clone()
    inner[:, 1:-1, 1:-1] &= valid[:, :-2, 1:-1] & valid[:, 2:, 1:-1] & valid[:, 1:-1, :-2] & valid[:, 1:-1, 2:]
    inner[:, [0, -1]] = inner[:, :, [0, -1]] = False
    assert 0.3 < float(inner.float().mean()) < 1
    torch.testing.assert_close(
        back.movedim(1, -1)[inner], coordinates(u.views1).movedim(1, -1)[inner], atol=0.35, rtol=0
    )


def test_what_lies_outside_the_photograph_is_not_valid(tmp_path):
    """Photographs of 48 x 64 at half their size fill 24 of 32 rows."""
    u = pair(tmp_path, flip=0.0, stream={"scale": (0.5, 0.5)})
    _, valid = u.back(u.u2.float())
    assert valid.sum((1, 2)).tolist() == [24 * 32] * 2
    expected = [v.valid().numpy() for v in u.views1]
    assert np.array_equal(valid.numpy(), np.stack(expected))


def test_colours_change_in_the_second_view_alone_and_a_seed_gives_the_same_pairs(tmp_path):
    plain = pair(tmp_path, flip=0.0)
    changed = pair(tmp_path, flip=0.0, stream={"change": photometric("iic_coco")})
    assert torch.equal(plain.u1, changed.u1) and torch.equal(plain.u1, plain.u2)
    assert not torch.equal(changed.u1, changed.u2)
    again = pair(tmp_path, flip=0.0, stream={"change": photometric("iic_coco")})
    assert torch.equal(again.u2, changed.u2)
    assert not torch.equal(pair(tmp_path, seed=1).u1, plain.u1)
