"""Crops of photographs that belong together: one window, also of another size, and its partner's own pixels."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from maskwright.data.folders.folder import open_folder
from maskwright.data.training.crops import random_scale_crop
from maskwright.data.training.sampler import Sampler
from maskwright.data.training.streams import CropRecipe, Stream
from maskwright.data.training.twins import TwinStream, same_window
from maskwright.data.training.views import View, transform_points

MEAN = (0.5, 0.5, 0.5)


def folder_of(root: Path, size: tuple[int, int], colours: dict[str, int]) -> Path:
    """Photographs whose red and green tell the place, in 256ths of the sides, and whose blue tells which it is."""
    (root / "images").mkdir(parents=True)
    h, w = size
    y, x = np.mgrid[:h, :w]
    for name, colour in colours.items():
        planes = [(x + 0.5) * 256 / w, (y + 0.5) * 256 / h, np.full(size, colour)]
        Image.fromarray(np.stack(planes, 2).astype(np.uint8)).save(root / "images" / f"{name}.png")
    return root


def stream(root: Path, indices, batch: int) -> Stream:
    data = open_folder(root)
    return Stream(data, indices, Sampler(len(indices), batch), CropRecipe(32, (0.5, 2.0), 1024), MEAN)


def test_the_same_part_of_another_size():
    g = torch.Generator().manual_seed(0)
    for _ in range(20):
        view = random_scale_crop((48, 64), (32, 32), generator=g)
        other = same_window(view, (96, 160))
        corners = view.corners() / torch.tensor([64.0, 48.0])
        torch.testing.assert_close(other.corners() / torch.tensor([160.0, 96.0]), corners)
        assert other.flipped == view.flipped and other.size == view.size
        assert same_window(view, (48, 64)) is view
    there = transform_points(same_window(View.identity((48, 64)), (96, 128)).matrix, torch.tensor([[128.0, 96.0]]))
    assert there.tolist() == [[64.0, 48.0]]


@pytest.mark.parametrize("size", [(48, 64), (90, 100)])
def test_partners_show_the_same_place(tmp_path, size):
    night = folder_of(tmp_path / "night", (48, 64), {"a": 10, "b": 20, "c": 30})
    day = folder_of(tmp_path / "day", size, {"p": 110, "q": 120})
    partner = np.array([1, -1, 0])
    twins = TwinStream(stream(night, [0, 2], 2), stream(day, [0, 1], 2), partner)
    for seed in range(4):
        images = twins.next()
        first, second = twins.draw(images, torch.Generator().manual_seed(seed))
        assert second.images == tuple(partner[list(first.images)])
        for k in range(2):
            assert int(first.weak[k, 2][first.valid[k]].median()) == {0: 10, 2: 30}[first.images[k]]
            assert int(second.weak[k, 2][second.valid[k]].median()) == {0: 110, 1: 120}[second.images[k]]
            both = first.valid[k] & second.valid[k]
            assert torch.equal(first.valid[k], second.valid[k])
            gap = (first.weak[k, :2].int() - second.weak[k, :2].int()).abs()[:, both].float()
            assert gap.mean() < 3, "places in 256ths of the photographs"
        again = twins.draw(images, torch.Generator().manual_seed(seed))
        assert torch.equal(again.first.weak, first.weak) and torch.equal(again.second.weak, second.weak)


def test_an_image_without_a_partner_is_not_drawn(tmp_path):
    night = folder_of(tmp_path / "night", (48, 64), {"a": 10, "b": 20})
    with pytest.raises(ValueError, match="without a partner"):
        TwinStream(stream(night, [0, 1], 1), stream(night, [0, 1], 1), np.array([0, -1]))


def test_both_go_to_the_device(tmp_path):
    night = folder_of(tmp_path / "night", (48, 64), {"a": 10})
    twins = TwinStream(stream(night, [0], 1), stream(night, [0], 1), np.array([0]))
    drawn = twins.draw(twins.next(), torch.Generator().manual_seed(0))
    there = drawn.as_input(lambda x: x.float() / 255, torch.device("cpu"))
    assert there.first.weak.dtype == there.second.weak.dtype == torch.float32
