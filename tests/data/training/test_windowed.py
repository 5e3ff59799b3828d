"""Crops and windows inside them."""

from __future__ import annotations

import pytest
import torch
from tests.conftest import write_tiny_folder

from maskwright.data.folders.folder import open_folder
from maskwright.data.training.sampler import Sampler
from maskwright.data.training.streams import CropRecipe, Stream
from maskwright.data.training.views import overlap
from maskwright.data.training.windowed import WindowStream


def random(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def photographs(tmp_path) -> Stream:
    data = open_folder(write_tiny_folder(tmp_path / "tiny", count=4, size=(96, 128)))
    return Stream(data, range(4), Sampler(4, 4, seed=0), CropRecipe(64, (1.0, 1.0), 128), (0.5, 0.5, 0.5))


def test_windows_lie_in_their_crop_and_are_what_their_geometry_says(photographs):
    stream = WindowStream(photographs, (0.5, 0.9), hflip=0.5, vflip=0.5)
    flips = set()
    for seed in range(6):
        u = stream.draw(range(4), random(seed))
        assert u.u1.shape == u.u2.shape == (4, 3, 64, 64)
        for n, (a, b) in enumerate(zip(u.views1, u.views2)):
            shared = overlap(a, b)
            assert shared is not None
            assert shared.area == pytest.approx(overlap(b, b).area), "nothing of it is outside of the crop"
            side = (shared.area / overlap(a, a).area) ** 0.5
            assert 0.5 <= side <= 0.9
            flips.add((a.flipped[0] != b.flipped[0], a.flipped[1] != b.flipped[1]))
            image = torch.from_numpy(photographs.data.image(n)).permute(2, 0, 1)
            assert int((b.render(image).int() - u.u2[n].int()).abs().max()) <= 1
    assert len(flips) == 4


def test_without_a_window_the_pair_is_one_crop_and_colours_are_drawn_for_each(photographs):
    u = WindowStream(photographs, None).draw([0, 1], random(0))
    assert torch.equal(u.u1, u.u2) and u.views1 == u.views2
    photographs.change = lambda x, r: x // 2 + torch.randint(100, (len(x), 1, 1, 1), generator=r).to(x.dtype)
    v = WindowStream(photographs, None).draw([0, 1], random(0))
    assert not torch.equal(v.u1, v.u2) and not torch.equal(v.u1, u.u1)
    w = WindowStream(photographs, None).draw([0, 1], random(0))
    assert torch.equal(v.u1, w.u1) and torch.equal(v.u2, w.u2)
