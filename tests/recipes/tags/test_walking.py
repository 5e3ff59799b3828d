"""Sure labels from maps, and walks of maps against a dense power."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from maskwright.data.training.tag_targets import TagTargets
from maskwright.engine.config import configure
from maskwright.errors import MaskwrightError
from maskwright.methods import METHODS
from maskwright.ops.graphs.walk import affinity_from_edges, local_feature_affinity, random_walk
from maskwright.recipes.tags import walking
from maskwright.recipes.tags.maps import ImageCams
from maskwright.recipes.tags.pairs import pair_bounds, power_at, sure_by_power, sure_by_threshold, sure_labels
from maskwright.recipes.tags.walk_options import WalkConfig
from maskwright.recipes.tags.walking import Walk, walk_length, walk_with_boundaries, walk_with_features


def cams_of(values: list[list[list[float]]]) -> ImageCams:
    maps = torch.tensor(values)
    return ImageCams(torch.arange(2, 2 + len(maps)), maps, (maps.shape[1], maps.shape[2]))


def test_sure_by_threshold_leaves_the_band_between():
    ids, ground = sure_by_threshold(cams_of([[[0.9, 0.3, 0.05, 0.0]], [[0.1, 0.2, 0.04, 0.6]]]), 0.1, 0.5)
    assert ids.tolist() == [[2, -1, -1, 3]] and ground.tolist() == [[False, False, True, False]]
    labels = sure_labels(ids, ground, 0)
    assert labels.ids.tolist() == [[2, 0, 0, 3]] and labels.valid.tolist() == [[True, False, True, True]]
    without = sure_labels(ids, ground, None)
    assert without.valid.tolist() == [[True, False, False, True]]


def test_sure_by_power_against_a_loop():
    generator = torch.Generator().manual_seed(0)
    cams = ImageCams(torch.tensor([1, 4]), torch.rand(2, 6, 7, generator=generator), (6, 7))
    ids, ground = sure_by_power(cams, 2.0, 24.0)
    for y in range(6):
        for x in range(7):
            values = cams.maps[:, y, x].tolist()
            rest = 1 - max(values)
            expected = cams.keys[int(np.argmax(values))] if max(values) > rest**2 else -1
            assert int(ids[y, x]) == int(expected)
            assert bool(ground[y, x]) == (rest**24 >= max(values))
    assert not (ground & (ids >= 0)).any()


def test_images_without_tags_are_all_background():
    empty = ImageCams(torch.zeros(0, dtype=torch.int64), torch.zeros(0, 3, 4), (6, 8))
    for sure in (sure_by_threshold, sure_by_power):
        ids, ground = sure(empty, 0.1, 0.5)
        assert ids.shape == ground.shape == (6, 8) and (ids == -1).all() and ground.all()


def test_crf_keeps_what_is_clear():
    image = np.zeros((16, 16, 3), np.uint8)
    image[:, 8:] = 255
    maps = torch.zeros(1, 16, 16)
    maps[0, :, 8:] = 0.9
    for sure, low, high in ((sure_by_threshold, 0.1, 0.5), (sure_by_power, 4.0, 24.0)):
        ids, ground = sure(ImageCams(torch.tensor([1]), maps, (16, 16)), low, high, image)
        assert (ids[:, 9:] == 1).all() and ground[:, :7].all()


@settings(max_examples=6)
@given(st.integers(0, 99), st.integers(1, 12))
def test_boundary_walk_equals_the_dense_power(seed, steps):
    generator = torch.Generator().manual_seed(seed)
    cams, edge = torch.rand(2, 5, 6, generator=generator), torch.rand(5, 6, generator=generator)
    a = affinity_from_edges(edge, 3).toarray().astype(np.float64)
    power = np.where(a > 0, a**4, 0)
    t = np.linalg.matrix_power(power / power.sum(0), steps)
    expected = (cams * (1 - edge)).reshape(2, -1).double().numpy() @ t
    got = walk_with_boundaries(cams, edge, 3, 4.0, steps).reshape(2, -1).numpy()
    np.testing.assert_allclose(got, expected / (expected.max() + 1e-5), rtol=1e-3, atol=1e-5)


def test_feature_walk_equals_the_dense_power_and_half_is_where_the_background_wins():
    generator = torch.Generator().manual_seed(0)
    cams, f = torch.rand(2, 8, 8, generator=generator), torch.randn(3, 4, 4, generator=generator)
    rest = (1 - cams.amax(0, keepdim=True)) ** 6
    scores = torch.cat([rest, cams]).reshape(3, 4, 2, 4, 2).mean((2, 4)).reshape(3, -1).double().numpy()
    a = local_feature_affinity(f, 3).toarray().astype(np.float64)
    power = np.where(a > 0, a**8, 0)
    walked = scores @ np.linalg.matrix_power(power / power.sum(0), 16)
    got = walk_with_features(cams, f, 3, 8.0, 16, 6.0).reshape(2, -1).numpy()
    np.testing.assert_allclose(got, walked[1:] / (walked[1:] + walked[0]), rtol=1e-3, atol=1e-5)
    assert np.array_equal(got.max(0) > 0.5, walked[1:].max(0) > walked[0])
    assert np.array_equal(got.argmax(0), walked[1:].argmax(0))


def test_a_wall_stops_the_walk_and_no_wall_does_not():
    cams = torch.zeros(1, 8, 12)
    cams[0, :, :3] = 1
    edge = torch.zeros(8, 12)
    edge[:, 5] = 1
    stopped = walk_with_boundaries(cams, edge, 5, 10.0, 256)
    assert not stopped[0, :, 5:].any() and (stopped[0, :, :5] > 0.5).all()
    assert (walk_with_boundaries(cams, torch.zeros(8, 12), 5, 10.0, 256) > 0.5).all()


def test_maps_without_tags_stay_empty():
    empty = torch.zeros(0, 5, 6)
    assert walk_with_boundaries(empty, torch.rand(5, 6)).shape == (0, 5, 6)
    assert walk_with_features(empty, torch.rand(3, 4, 4)).shape == (0, 4, 4)


def test_power_meets_the_map_at_the_threshold():
    for threshold in (0.05, 0.2, 0.5, 0.9):
        assert (1 - threshold) ** power_at(threshold) == pytest.approx(threshold)


def test_bounds_of_what_is_sure():
    """As asked for; else around the threshold found, for psa as the exponents that draw the same lines."""
    o = configure(WalkConfig, {}).pairs
    assert pair_bounds(o, "irn", 0.3) == pytest.approx((0.15, 0.45))
    assert pair_bounds(o, "irn", 0.8) == pytest.approx((0.4, 0.9))
    low, high = pair_bounds(o, "psa", 0.3)
    assert (1 - 0.45) ** low == pytest.approx(0.45) and (1 - 0.15) ** high == pytest.approx(0.15)
    asked = configure(WalkConfig, {"walk": "irn", "pair_thresholds": "0.05,0.3"}).pairs
    assert pair_bounds(asked, "irn", 0.8) == (0.05, 0.3)
    asked = configure(WalkConfig, {"walk": "psa", "pair_alphas": "4,24"}).pairs
    assert pair_bounds(asked, "psa", 0.3) == (4.0, 24.0)


def test_contradictions():
    assert configure(WalkConfig, {"walk": "irn", "pair_thresholds": "0.05,0.3"}).pairs.thresholds == (0.05, 0.3)
    for key, value in (("pair_thresholds", "0.3,0.05"), ("pair_thresholds", "0.3"), ("pair_alphas", "24,4")):
        part, _, name = key.partition("_")
        with pytest.raises(MaskwrightError, match=rf"{part}s: {name}=.*two, ascending.*--set {part}s.{name}="):
            configure(WalkConfig, {key: value})
    with pytest.raises(MaskwrightError, match="affinity: radius=1"):
        configure(WalkConfig, {"affinity_radius": 1})
    with pytest.raises(MaskwrightError, match="scales"):
        configure(WalkConfig, {"scales": ""})


def test_the_published_length_at_the_published_size_and_in_proportion():
    assert walk_length("irn", 94 * 125) == 256 and walk_length("psa", 47 * 63) == 256
    assert walk_length("irn", 47 * 125) == 128 and walk_length("psa", 4 * 47 * 63) == 1024
    assert walk_length("irn", 1) == walk_length("psa", 0) == 1


def test_constants_are_each_papers_own():
    """AffinityNet walks 2^8 steps with a background of power 16; SEAM's copy of it 2^6 with 6."""
    assert METHODS["affinity"].published == {"irn": 2**8, "psa": 2**8}
    assert METHODS["seam"].published == {"irn": 2**8, "psa": 2**6}
    cams, f = torch.rand(1, 8, 8), torch.randn(3, 4, 4)
    assert torch.equal(walk_with_features(cams, f), walk_with_features(cams, f, 5, 8.0, 2**8, 16.0))


@pytest.mark.parametrize(
    ("name", "settings", "steps"), [("affinity", {"variant": "psa"}, 256), ("seam", {"walk": "psa"}, 64)]
)
def test_default_length_of_a_methods_walk(monkeypatch, name, settings, steps):
    """On a photograph of 376 x 504 pixels, which has 47 x 63 cells."""
    method = object.__new__(METHODS[name])
    method.config = configure(METHODS[name].Config, {**settings, "walk_alpha": 6.0, "precision": "fp32"})
    method.context = SimpleNamespace(device=torch.device("cpu"))
    assert isinstance(method.walk, Walk) and method.walk.kind == "psa"
    seen = []
    monkeypatch.setattr(walking, "walk_with_features", lambda *a: seen.append(a[4]) or a[0])
    cams = ImageCams(torch.tensor([1]), torch.rand(1, 8, 8), (376, 504))
    method.walk.walked(lambda x: torch.zeros(1, 2, 47, 63), torch.zeros(3, 376, 504), cams)
    assert seen == [steps]


@pytest.mark.parametrize(("kind", "ground", "value"), [("psa", 0, 0.5), ("psa", None, None), ("irn", 0, None)])
def test_one_half_is_the_threshold_where_the_background_walked_along(kind, ground, value):
    config = configure(METHODS["seam"].Config, {"walk": kind})
    targets = TagTargets((1,), ("a",), ground, {})
    found = Walk(SimpleNamespace(), config, lambda: targets).threshold(targets)
    assert (None if found is None else found.value) == value


@pytest.mark.parametrize("kind", ["irn", "psa"])
def test_a_walk_spreads_over_the_same_share_of_grids_of_any_size(kind):
    """On a grid without boundaries, from its centre: the spread in units of its side."""
    shares = []
    for side in (31, 93):
        graph = affinity_from_edges(torch.zeros(side, side), 5)
        scores = torch.zeros(1, side, side)
        scores[0, side // 2, side // 2] = 1
        steps = max(1, walk_length(kind, side * side) // 8)  # before the edges of the grid hold the walk back
        out = random_walk(scores, graph, 1.0, steps)[0].double().numpy()
        place = np.arange(side) - side // 2
        shares.append(np.sqrt((out.sum(0) * place**2).sum() / out.sum()) / side)
    assert shares[0] == pytest.approx(shares[1], rel=0.12)
