"""Two random crops of each photograph: what they record is what both show."""

from __future__ import annotations

import pytest
import torch
from tests.conftest import write_tiny_folder

from maskwright.data.folders.folder import open_folder
from maskwright.data.training.augment import photometric
from maskwright.data.training.sampler import Sampler
from maskwright.data.training.streams import CropRecipe, Stream
from maskwright.data.training.two_crops import TwoCropStream
from maskwright.data.training.views import View, overlap
from maskwright.ops.roi_align import roi_align

GREY = (0.5, 0.5, 0.5)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return open_folder(write_tiny_folder(tmp_path_factory.mktemp("two") / "tiny", count=4))


def stream(data, changes=(None, None), scale=(0.2, 1.0), **options) -> TwoCropStream:
    return TwoCropStream(
        Stream(data, range(4), Sampler(4, 2, 0), CropRecipe(32, scale, 1024), GREY), changes, **options
    )


def places(view: View) -> torch.Tensor:
    """(2, 32, 32): the photograph's x and y at each pixel of a view, as it computes them."""
    y, x = torch.meshgrid(*[torch.arange(32, dtype=torch.float64) + 0.5] * 2, indexing="ij")
    return (view.inverse @ torch.stack((x, y, torch.ones_like(x))).flatten(1))[:2].reshape(2, 32, 32)


def test_boxes_of_both_crops_show_the_same_places(data):
    """Maps of the photograph's coordinates, read off in the boxes and turned back, are equal in both views."""
    for seed in range(6):
        u = stream(data).draw([0, 1, 2, 3], generator(seed))
        seen = []
        for views, boxes, flips in ((u.views1, u.boxes1, u.flips1), (u.views2, u.boxes2, u.flips2)):
            maps = roi_align(torch.stack([places(v) for v in views]), boxes * 32, (8, 8))
            seen.append(torch.where(flips[:, None, None, None], maps.flip(-1), maps))
        inner = (seen[0] - seen[1])[u.shared][..., 1:-1, 1:-1]
        assert len(inner) >= 3 and float(inner.abs().max()) < 0.75  # a border is read where a sample leaves the map


def test_second_crops_overlap_the_first_by_their_own_share(data):
    """Where ten tries do not find one the crop is taken as it comes, and pairs that share nothing say so."""
    for share in (0.01, 0.6):
        met = []
        for seed in range(12):
            u = stream(data, scale=(0.1, 0.3), overlap=share).draw([0, 1], generator(seed))
            for k, (a, b) in enumerate(zip(u.views1, u.views2)):
                found = overlap(a, b)
                low, high = b.corners().amin(0), b.corners().amax(0)
                met.append(found is not None and found.area >= share * float((high - low).prod()))
                assert bool(u.shared[k]) == (found is not None)
                assert bool(u.shared[k]) or not u.boxes1[k].any()
        assert sum(met) / len(met) > (0.95 if share < 0.1 else 0.5)
    free = [stream(data, scale=(0.05, 0.1), overlap=0.0).draw([0, 1], generator(s)).shared.all() for s in range(8)]
    assert not all(free)


def test_recipes_fall_on_their_own_view(data):
    plain = stream(data).draw([0, 1], generator())
    grey = stream(data, changes=(None, lambda x, random: x // 2)).draw([0, 1], generator())
    assert torch.equal(plain.u1, grey.u1) and torch.equal(plain.u2 // 2, grey.u2)
    recipes = (photometric("slotcon_1"), photometric("slotcon_2"))
    assert (recipes[0].blur_p, recipes[1].blur_p, recipes[0].solarise_p, recipes[1].solarise_p) == (1.0, 0.1, 0.0, 0.2)
    one, two = (stream(data, changes=recipes).draw([0, 1], generator(3)) for _ in range(2))
    assert torch.equal(one.u1, two.u1) and torch.equal(one.u2, two.u2) and torch.equal(one.boxes1, two.boxes1)
    mirrored = stream(data, flip=1.0).draw([0, 1], generator())
    assert bool(mirrored.flips1.all() and mirrored.flips2.all())
    assert one.u1.dtype == torch.uint8 and one.u1.shape == (2, 3, 32, 32)
