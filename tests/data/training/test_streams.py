"""Streams: what they draw is a function of indices and generator, and their position is a state."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tests.conftest import write_tiny_folder

from maskwright.data.folders.folder import open_folder
from maskwright.data.training.augment import photometric
from maskwright.data.training.sampler import Sampler
from maskwright.data.training.sources import MaskLabels
from maskwright.data.training.streams import CropRecipe, Joined, Stream, Streams
from maskwright.errors import MaskwrightError

MEAN = (0.2, 0.4, 0.6)
GREY = torch.tensor([51, 102, 153], dtype=torch.uint8)
"""The mean colour in bytes."""


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def data(tmp_path):
    """Eight photographs of 48 x 64 pixels with masks of three classes."""
    return open_folder(write_tiny_folder(tmp_path / "tiny"))


def stream(data, indices=(1, 4, 6, 7), labeled=False, batch=2, seed=0, scale=(0.4, 0.8), **options):
    order = Sampler(len(indices), batch, seed)
    labels = MaskLabels(data, 3) if labeled else None
    return Stream(data, indices, order, CropRecipe(32, scale, 64), MEAN, labels, **options)


def same(a, b):
    """Whether two draws hold the same pixels, labels and geometry."""
    tensors = [(a.weak, b.weak), (a.valid, b.valid), *zip(a.strong, b.strong, strict=True)]
    if a.labels is not None:
        tensors += [(a.y.ids, b.y.ids), (a.y.confidence, b.y.confidence), (a.y.valid, b.y.valid)]
    tensors += [(v.matrix, w.matrix) for v, w in zip(a.geometry, b.geometry, strict=True)]
    return a.images == b.images and all(torch.equal(*pair) for pair in tensors)


# ---------------------------------------------------------------------- crops


@pytest.mark.parametrize(
    ("size", "long_side", "scale", "expected"),
    [
        ((96, 128), 64, 1.0, 0.5),
        ((128, 96), 64, 1.0, 0.5),
        ((96, 128), 64, 2.0, 1.0),
        ((48, 64), 64, 1.0, 1.0),
        ((48, 64), 1024, 1.0, 1.0),  # a smaller image is not enlarged
        ((48, 64), 1024, 0.5, 0.5),
    ],
)
def test_larger_images_are_first_scaled_to_the_long_side(size, long_side, scale, expected):
    view = CropRecipe(24, (scale, scale), long_side).view(size, seeded())
    assert view.size == (24, 24) and view.source_size == size
    assert (abs(float(view.matrix[0, 0])), float(view.matrix[1, 1])) == (expected, expected)


def test_scales_flips_and_places_vary_with_the_draw():
    recipe, random = CropRecipe(24, (0.5, 2.0), 64), seeded()
    drawn = torch.stack([recipe.view((48, 64), random).matrix for _ in range(200)])
    flipped, scale = drawn[:, 0, 0] < 0, drawn[:, 1, 1]
    assert 0.4 < float(flipped.float().mean()) < 0.6
    assert 0.5 <= float(scale.min()) < 0.55 and 1.9 < float(scale.max()) <= 2.01
    assert len(drawn.flatten(1).unique(dim=0)) > 190


# ---------------------------------------------------------------------- one stream


def test_a_draw_is_a_function_of_the_images_and_the_generator(data):
    options = {"labeled": True, "change": photometric("unimatch"), "strong_views": 2}
    s = stream(data, **options)
    a = s.draw([4, 1, 4], seeded(3))
    for _ in range(3):  # what was drawn in between, and how far the order is, changes nothing
        s.draw(s.next(), seeded(9))
    torch.manual_seed(77)
    before = torch.get_rng_state()
    assert same(a, s.draw(np.array([4, 1, 4]), seeded(3)))
    assert torch.equal(before, torch.get_rng_state()), "no draw from torch's own generator"
    assert same(a, stream(data, **options).draw([4, 1, 4], seeded(3)))
    assert not torch.equal(a.weak, s.draw([4, 1, 4], seeded(4)).weak)
    assert a.images == (4, 1, 4) and not torch.equal(a.weak[0], a.weak[2]), "each time another crop"


def test_views_are_what_their_geometry_says(data):
    views = stream(data, labeled=True).draw([1, 4, 6], seeded())
    assert views.weak.dtype == torch.uint8 and views.weak.shape == (3, 3, 32, 32) and views.strong == ()
    for k, (i, view) in enumerate(zip(views.images, views.geometry, strict=True)):
        inside = view.valid()
        expected = torch.from_numpy(np.asarray(view.render(data.image(i)))).permute(2, 0, 1)
        assert int((views.weak[k].int() - expected.int()).abs()[:, inside].max()) <= 1
        assert (views.weak[k][:, ~inside] == GREY[:, None]).all()
        ids = torch.from_numpy(np.asarray(view.render(data.mask(i)[..., None], mode="nearest")))[..., 0]
        assert torch.equal(views.y.ids[k][inside], ids.long()[inside])
        assert torch.equal(views.y.valid[k], inside)
    assert 0 < int(views.valid.sum()) < views.valid.numel()


def test_valid_is_what_has_a_label_or_else_what_lies_in_the_photograph(data):
    void = MaskLabels(data, 3)
    read = void.read
    void.read = lambda i: read(i).restrict(read(i).ids != 0)  # the ground is void
    labeled, bare = stream(data), stream(data)
    labeled.labels = void
    a, b = labeled.draw([1, 4], seeded()), bare.draw([1, 4], seeded())
    assert torch.equal(a.valid, a.y.valid) and torch.equal(a.weak, b.weak)
    assert torch.equal(b.valid, torch.stack([v.valid() for v in b.geometry])) and b.labels is None
    assert 0 < int(a.valid.sum()) < int((a.valid & b.valid).sum()) + 1 <= int(b.valid.sum())
    with pytest.raises(AssertionError, match="without labels"):
        b.y  # noqa: B018


def test_an_unlabelled_stream_reads_no_mask(data):
    stream(data).draw(range(8), seeded())
    assert not data.ledger.counts()["train"].get("masks")
    stream(data, labeled=True).draw([1, 4], seeded())
    assert data.ledger.counts()["train"]["masks"] == 2


def test_strong_views_are_changes_of_the_same_crops_each_drawn_anew(data):
    asked = []

    def change(pixels, random):
        asked.append(pixels.clone())
        return 255 - pixels + torch.randint(0, 2, (), generator=random, dtype=torch.uint8)

    views = stream(data, change=change, strong_views=3).draw([1, 4], seeded())
    assert len(views.strong) == 3 and all(torch.equal(x, views.weak) for x in asked)
    assert all(s.shape == views.weak.shape and s.dtype == torch.uint8 for s in views.strong)
    one, two = (stream(data, change=photometric("unimatch"), strong_views=2).draw([1, 4], seeded())).strong
    assert not torch.equal(one, two)
    assert torch.equal(views.weak, stream(data).draw([1, 4], seeded()).weak), "crops are drawn first"


def test_strong_views_need_a_recipe(data):
    with pytest.raises(ValueError, match="2 strong views without a photometric recipe"):
        stream(data, strong_views=2)
    assert stream(data, change=photometric("none")).draw([1], seeded()).strong == ()


def test_next_gives_indices_in_the_data_set(data):
    s = stream(data, indices=[7, 2, 5], batch=3)
    drawn = [s.next() for _ in range(4)]
    assert all(sorted(d.tolist()) == [2, 5, 7] and d.dtype == np.int64 for d in drawn)


# ---------------------------------------------------------------------- orders


def test_joined_orders_follow_each_other_and_resume():
    def make():
        return Joined(Sampler(9, 2, seed=1), Sampler(9, 3, seed=2))

    both, first, second = make(), Sampler(9, 2, seed=1), Sampler(9, 3, seed=2)
    for _ in range(7):
        assert np.array_equal(both.next(), np.concatenate([first.next(), second.next()]))
    again = make()
    again.load_state_dict(both.state_dict())
    assert all(np.array_equal(again.next(), both.next()) for _ in range(7))
    swapped = Joined(Sampler(9, 3, seed=2), Sampler(9, 2, seed=1))
    with pytest.raises(MaskwrightError, match="resume with"):
        swapped.load_state_dict(both.state_dict())


# ---------------------------------------------------------------------- several streams


@pytest.fixture
def other(tmp_path):
    """A second data set: four larger photographs, without masks."""
    return open_folder(write_tiny_folder(tmp_path / "other", count=4, size=(90, 70), masks=False))


def three(data, other):
    """A labelled and an unlabelled stream of one data set, and one of another."""
    return Streams(
        x=stream(data, labeled=True, seed=1),
        u=stream(data, indices=[0, 2, 3], batch=4, seed=2),
        t=stream(other, indices=range(4), batch=3, seed=3),
    )


def test_streams_of_any_number_and_of_several_data_sets(data, other):
    streams = three(data, other)
    indices = streams.next()
    assert {name: len(d) for name, d in indices.items()} == {"x": 2, "u": 4, "t": 3}
    views = streams.draw(indices, seeded())
    assert list(views) == ["x", "u", "t"] and [v.labels is None for v in views.values()] == [False, True, True]
    for name, v in views.items():
        assert v.images == tuple(indices[name].tolist())
        assert all(g.source_size == streams[name].data.size(i) for i, g in zip(v.images, v.geometry))
    assert {g.source_size for g in views["t"].geometry} == {(90, 70)}
    assert data.ledger.counts()["train"]["masks"] == len(set(views["x"].images))
    assert not other.ledger.counts()["train"].get("masks")


def test_a_stream_that_joins_leaves_those_before_it_as_they_were(data, other):
    alone, all_ = Streams(x=stream(data, labeled=True, seed=1)), three(data, other)
    for seed in range(3):
        a, b = alone.draw(alone.next(), seeded(seed)), all_.draw(all_.next(), seeded(seed))
        assert same(a["x"], b["x"])


def test_each_list_is_cycled_on_its_own(data, other):
    streams = three(data, other)
    drawn = [streams.next() for _ in range(12)]
    for name, images, often in (("x", [1, 4, 6, 7], 6), ("u", [0, 2, 3], 16), ("t", [0, 1, 2, 3], 9)):
        counts = np.bincount(np.concatenate([d[name] for d in drawn]), minlength=8)
        assert {i: int(n) for i, n in enumerate(counts) if n} == dict.fromkeys(images, often)


def test_streams_go_on_where_their_state_was_taken(data, other):
    streams = three(data, other)
    for _ in range(5):
        streams.next()
    again = three(data, other)
    again.load_state_dict(streams.state_dict())
    for _ in range(5):
        a, b = streams.next(), again.next()
        assert list(a) == list(b) and all(np.array_equal(a[k], b[k]) for k in a)


def test_a_state_of_other_streams_is_refused(data, other):
    state = three(data, other).state_dict()
    shorter = three(data, other)
    shorter["t"] = stream(other, indices=range(3), batch=3, seed=3)
    with pytest.raises(MaskwrightError, match="n 4"):
        shorter.load_state_dict(state)
    fewer = {k: v for k, v in state.items() if k != "t"}
    with pytest.raises(MaskwrightError, match=r"drew from the streams x, u.*x, u, t as now"):
        three(data, other).load_state_dict(fewer)
    two = three(data, other)
    del two["t"]
    with pytest.raises(MaskwrightError, match=r"x, u, t.*x, u as now"):
        two.load_state_dict(state)
