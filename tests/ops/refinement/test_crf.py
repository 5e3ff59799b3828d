"""Dense CRF against exact mean field over all pairs, its lattice against a plain one, and what both must keep."""

from __future__ import annotations

from collections import defaultdict

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numba import njit

from maskwright.ops.lanes import add8, axpy8, exp8, largest8, load8, max8, same8, scale8, store8, sum8
from maskwright.ops.refinement.crf import CRF_SETTINGS, color_points, dense_crf, label_probs, spatial_points
from maskwright.ops.refinement.permutohedral import build_lattices
from maskwright.ops.threads import Threads


def _exact_mean_field(
    probs: np.ndarray, image: np.ndarray, iterations: int, ss: float, sw: float, cxy: float, crgb: float, cw: float
) -> np.ndarray:
    """Mean field with dense N x N kernels in float64."""
    channels, height, width = probs.shape
    kernels = []
    for points, weight in ((spatial_points(height, width, ss), sw), (color_points(image, cxy, crgb), cw)):
        distance = ((points[:, None].astype(float) - points[None]) ** 2).sum(-1)
        kernel = np.exp(-distance / 2)
        norm = 1 / np.sqrt(kernel.sum(1))
        kernels.append(weight * norm[:, None] * kernel * norm[None])
    kernel = sum(kernels)
    unary = np.log(probs.reshape(channels, -1).clip(1e-5, 1).astype(float))
    scores = unary
    for _ in range(iterations + 1):
        q = np.exp(scores - scores.max(0))
        q /= q.sum(0)
        scores = unary + q @ kernel
    return q.reshape(probs.shape)


def _plain_filter(points: np.ndarray, values: np.ndarray) -> np.ndarray:
    """The lattice filter as the paper writes it, with a dictionary and (d + 1)-coordinate vertices, in float64."""
    dim = points.shape[1]
    corners = dim + 1
    basis = np.zeros((corners, dim))
    for i in range(dim):
        basis[: i + 1, i] = 1.0
        basis[i + 1, i] = -(i + 1)
        basis[:, i] /= np.sqrt((i + 1) * (i + 2))
    elevated = points.astype(float) @ basis.T * np.sqrt(2 / 3) * corners
    places = []
    grid: dict[tuple[int, ...], np.ndarray] = defaultdict(lambda: np.zeros(values.shape[1]))
    for y, v in zip(elevated, values):
        zero = np.rint(y / corners) * corners
        excess = round(zero.sum() / corners)
        order = np.argsort(-(y - zero), kind="stable")
        if excess > 0:
            zero[order[-excess:]] -= corners
        elif excess < 0:
            zero[order[:-excess]] += corners
        order = np.argsort(-(y - zero), kind="stable")
        sorted_rest = (y - zero)[order]
        share = np.empty(corners)
        share[0] = 1 - (sorted_rest[0] - sorted_rest[-1]) / corners
        for k in range(1, corners):
            share[k] = (sorted_rest[dim - k] - sorted_rest[corners - k]) / corners
        keys = []
        for k in range(corners):
            vertex = zero + k
            vertex[order[corners - k :]] -= corners
            keys.append(tuple(vertex.astype(int)))
            grid[keys[-1]] += share[k] * v
        places.append((keys, share))
    for axis in range(corners):
        step = np.ones(corners, int)
        step[axis] = -dim
        none = np.zeros(values.shape[1])
        grid_ = dict(grid)
        blurred = {}
        for key, value in grid_.items():
            before = grid_.get(tuple(np.array(key) - step), none)
            after = grid_.get(tuple(np.array(key) + step), none)
            blurred[key] = value + 0.5 * (before + after)
        grid = blurred  # type: ignore[assignment]
    gain = 1 / (1 + 2.0**-dim)
    return np.array([sum(s * grid[k] for k, s in zip(keys, share)) for keys, share in places]) * gain


def _disc(height: int = 24, width: int = 30, seed: int = 0, noise: float = 1.0) -> tuple[np.ndarray, ...]:
    """Noisy probabilities, a photograph and the true labels of a disc, a square and their ground."""
    rng = np.random.default_rng(seed)
    yy, xx = np.mgrid[:height, :width]
    truth = ((yy - height * 0.4) ** 2 + (xx - width * 0.3) ** 2 < (height * 0.25) ** 2).astype(int)
    truth[int(height * 0.5) : int(height * 0.9), int(width * 0.6) : int(width * 0.9)] = 2
    colors = np.array([(90, 140, 90), (210, 70, 50), (50, 80, 210)])
    image = (colors[truth] + rng.normal(0, 4, (height, width, 3))).clip(0, 255).astype(np.uint8)
    logits = 1.5 * np.eye(3)[truth].transpose(2, 0, 1) + rng.normal(0, noise, (3, height, width))
    probs = np.exp(logits) / np.exp(logits).sum(0)
    return probs.astype(np.float32), image, truth


@pytest.mark.parametrize("dim", [1, 2, 3, 5])
def test_the_lattice_equals_a_plain_one(dim: int) -> None:
    rng = np.random.default_rng(dim)
    points = rng.uniform(-4, 6, (150, dim)).astype(np.float32)
    values = rng.random((150, 11)).astype(np.float32)
    expected = _plain_filter(points, values)
    (lattice,) = build_lattices([points])
    np.testing.assert_allclose(lattice.filter(values), expected, rtol=2e-4, atol=1e-5)
    np.testing.assert_allclose(lattice.weight.reshape(-1, dim + 1).sum(1), 1, atol=1e-5)
    with Threads(3) as threads:
        (same,) = build_lattices([points], threads)
        np.testing.assert_array_equal(same.filter(values, threads), lattice.filter(values))


@pytest.mark.parametrize("sigmas", [(2.0, None), (8.0, 30.0)])
def test_the_filter_is_nearly_proportional_to_the_gaussian(sigmas: tuple[float, float | None]) -> None:
    probs, image, _ = _disc()
    xy, rgb = sigmas
    points = spatial_points(24, 30, xy) if rgb is None else color_points(image, xy, rgb)
    values = probs.reshape(3, -1).T
    exact = np.exp(-((points[:, None] - points[None]) ** 2).sum(-1) / 2) @ values
    got = build_lattices([points])[0].filter(values)
    ratio = got / got.sum(1, keepdims=True), exact / exact.sum(1, keepdims=True)
    assert np.corrcoef(got.ravel(), exact.ravel())[0, 1] > 0.98
    assert np.corrcoef(ratio[0].ravel(), ratio[1].ravel())[0, 1] > 0.99
    scale = (got * exact).sum() / (got * got).sum()
    assert np.abs(scale * got / exact - 1).mean() < 0.15


@pytest.mark.parametrize(
    "setting", [(1.0, 3.0, 67.0, 3.0, 4.0), (3.0, 3.0, 80.0, 13.0, 10.0), (1.0, 1.0, 121.0, 5.0, 4.0)]
)
def test_labels_equal_exact_mean_field(setting: tuple[float, ...]) -> None:
    probs, image, _ = _disc(noise=0.7)
    names = ("spatial_sigma", "spatial_weight", "color_xy_sigma", "color_rgb_sigma", "color_weight")
    got = dense_crf(probs, image, iterations=5, **dict(zip(names, setting)))  # type: ignore[arg-type]
    expected = _exact_mean_field(probs, image, 5, *setting)
    assert (got.argmax(0) == expected.argmax(0)).mean() >= 0.99
    assert np.corrcoef(got.ravel(), expected.ravel())[0, 1] > 0.98
    assert got.dtype == np.float32 and got.shape == probs.shape


def test_equals_pydensecrf_where_there_is_one() -> None:
    densecrf = pytest.importorskip("pydensecrf.densecrf", reason="pydensecrf has no wheels; compared where installed")
    probs, image, _ = _disc(60, 75)
    other = densecrf.DenseCRF2D(75, 60, 3)
    other.setUnaryEnergy(np.ascontiguousarray(-np.log(probs.reshape(3, -1).clip(1e-5, 1))))
    other.addPairwiseGaussian(sxy=1, compat=3)
    other.addPairwiseBilateral(sxy=67, srgb=3, rgbim=image, compat=4)
    expected = np.array(other.inference(10)).reshape(probs.shape)
    got = dense_crf(probs, image)
    assert (got.argmax(0) == expected.argmax(0)).mean() >= 0.999
    assert np.abs(got - expected).mean() < 1e-4


def test_noisy_probabilities_snap_to_the_edge() -> None:
    probs, image, truth = _disc(90, 120)
    refined = dense_crf(probs, image, **CRF_SETTINGS["seam"])  # type: ignore[arg-type]
    assert (probs.argmax(0) == truth).mean() < 0.85
    assert (refined.argmax(0) == truth).mean() > 0.99


def test_a_uniform_image_with_one_hot_unaries_keeps_its_labels() -> None:
    _, _, truth = _disc()
    one_hot = np.eye(3, dtype=np.float32)[truth].transpose(2, 0, 1)
    got = dense_crf(one_hot, np.full((24, 30, 3), 128, np.uint8))
    np.testing.assert_array_equal(got.argmax(0), truth)


@settings(max_examples=6, deadline=None)
@given(seed=st.integers(0, 1000), height=st.integers(1, 12), width=st.integers(1, 12), classes=st.integers(1, 40))
def test_sums_to_one_and_follows_a_permutation_of_the_classes(seed: int, height: int, width: int, classes: int) -> None:
    rng = np.random.default_rng(seed)
    probs = rng.dirichlet(np.ones(classes), (height, width)).transpose(2, 0, 1)
    image = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
    got = dense_crf(probs, image, iterations=4, threads=1)
    np.testing.assert_allclose(got.sum(0), 1, atol=1e-5)
    assert got.min() >= 0
    order = rng.permutation(classes)
    np.testing.assert_allclose(dense_crf(probs[order], image, iterations=4, threads=1), got[order], atol=1e-5)


@pytest.mark.parametrize("axis", [0, 1])
def test_flips_give_nearly_the_same_labels(axis: int) -> None:
    probs, image, _ = _disc(48, 60)
    flipped = dense_crf(np.flip(probs, axis + 1), np.flip(image, axis))
    same = np.flip(flipped, axis + 1).argmax(0) == dense_crf(probs, image).argmax(0)
    assert same.mean() > 0.99


def test_groups_of_channels_and_threads_do_not_change_the_result() -> None:
    rng = np.random.default_rng(0)
    probs = rng.dirichlet(np.ones(45) * 0.2, (60, 80)).transpose(2, 0, 1).astype(np.float32)
    image = np.kron(rng.integers(0, 256, (12, 16, 3)), np.ones((5, 5, 1))).astype(np.uint8)
    whole = dense_crf(probs, image, iterations=3, group=48, threads=1)
    for group in (8, 24, 32):
        np.testing.assert_allclose(dense_crf(probs, image, iterations=3, group=group), whole, atol=2e-6)
    np.testing.assert_array_equal(dense_crf(probs, image, iterations=3, group=48, threads=3), whole)


@pytest.mark.parametrize("size", [(1, 1), (1, 17), (17, 1), (2, 2)])
@pytest.mark.parametrize("classes", [1, 2, 9])
def test_tiny_images(size: tuple[int, int], classes: int) -> None:
    probs = np.random.default_rng(0).dirichlet(np.ones(classes), size).transpose(2, 0, 1)
    got = dense_crf(probs, np.zeros((*size, 3), np.uint8))
    assert got.shape == (classes, *size)
    np.testing.assert_allclose(got.sum(0), 1, atol=1e-6)


def test_a_lone_pixel_is_drawn_to_its_own_label_by_the_closed_form() -> None:
    # both kernels are 1 after normalisation: Q <- softmax(log p + 7 Q)
    q = p = np.array([0.6, 0.4])
    for _ in range(10):
        q = p * np.exp(7 * q)
        q /= q.sum()
    got = dense_crf(p[:, None, None], np.zeros((1, 1, 3), np.uint8))
    np.testing.assert_allclose(got[:, 0, 0], q, atol=1e-5)


def test_without_iterations_or_weights_the_normalised_input_comes_back() -> None:
    probs, image, _ = _disc()
    np.testing.assert_allclose(dense_crf(probs, image, iterations=0), probs, atol=1e-5)
    np.testing.assert_allclose(dense_crf(probs, image, spatial_weight=0, color_weight=0), probs, atol=1e-5)
    spatial = dense_crf(probs, image, color_weight=0)
    np.testing.assert_array_equal(spatial, dense_crf(probs, np.zeros_like(image), color_weight=0))
    assert np.abs(dense_crf(probs, image, spatial_weight=0) - spatial).max() > 0.1


def test_inputs_stay_as_they_were_and_any_strides_do() -> None:
    probs, image, _ = _disc()
    before = probs.copy(), image.copy()
    got = dense_crf(probs, image)
    np.testing.assert_array_equal(probs, before[0])
    np.testing.assert_array_equal(image, before[1])
    strided = np.asfortranarray(probs.astype(np.float64))
    np.testing.assert_allclose(dense_crf(strided, np.asfortranarray(image)), got, atol=1e-5)


def test_settings_are_options_of_dense_crf() -> None:
    probs, image, _ = _disc(12, 12)
    for name, setting in CRF_SETTINGS.items():
        assert dense_crf(probs, image, **setting).shape == probs.shape, name  # type: ignore[arg-type]
    assert CRF_SETTINGS["stego"]["color_xy_sigma"] == 67
    assert {"stego", "deep_spectral", "seam", "irn", "toco", "clip_es"} <= set(CRF_SETTINGS)


def test_label_probs() -> None:
    ids = np.array([[0, 2], [255, 1]])
    probs = label_probs(ids, 3, certainty=0.7, unsure=255)
    np.testing.assert_allclose(probs[:, 0, 1], [0.15, 0.15, 0.7])
    np.testing.assert_allclose(probs[:, 1, 0], 1 / 3)
    np.testing.assert_allclose(probs.sum(0), 1, atol=1e-6)
    with pytest.raises(ValueError, match="expected in"):
        label_probs(ids, 3)
    with pytest.raises(ValueError, match="certainty"):
        label_probs(ids, 3, certainty=1.0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"probs": np.ones((4, 5))}, "probabilities of shape"),
        ({"probs": np.full((2, 4, 5), np.nan)}, "finite"),
        ({"image": np.zeros((5, 4, 3), np.uint8)}, "size of the probabilities"),
        ({"image": np.zeros((4, 5, 3))}, "uint8"),
        ({"iterations": -1}, "iterations"),
        ({"color_rgb_sigma": 0.0}, "sigmas"),
        ({"spatial_weight": -1.0}, "weights"),
        ({"clip": 0.0}, "clip"),
        ({"group": 12}, "multiple of 8"),
        ({"threads": 0}, "threads 0"),
    ],
)
def test_refusals(change: dict, message: str) -> None:
    given_ = {"probs": np.full((2, 4, 5), 0.5), "image": np.zeros((4, 5, 3), np.uint8), **change}
    with pytest.raises(ValueError, match=message):
        dense_crf(given_.pop("probs"), given_.pop("image"), **given_)


def test_points_that_no_lattice_holds_are_refused() -> None:
    with pytest.raises(ValueError, match="finite"):
        build_lattices([np.array([[0.0, np.inf]], np.float32)])
    with pytest.raises(ValueError, match="larger sigmas"):
        build_lattices([np.array([[0.0] * 5, [1e7] * 5], np.float32)])
    with pytest.raises(ValueError, match="expected"):
        build_lattices([np.zeros((0, 2), np.float32)])


@njit
def _lanes(a, exps, sums):  # type: ignore[no-untyped-def]
    top, total = same8(np.float32(-1e30)), same8(np.float32(0.0))
    for i in range(0, len(a), 8):
        row = load8(a, i)
        top = max8(top, row)
        total = axpy8(total, np.float32(0.5), row)
        store8(exps, i, exp8(row))
        store8(sums, i, add8(row, scale8(np.float32(3.0), row)))
    return largest8(top), sum8(total)


def test_lanes() -> None:
    a = np.r_[np.linspace(-86.9, 80, 1596), 0, -1e30, -87.5, 88].astype(np.float32)
    exps, sums = np.empty_like(a), np.empty_like(a)
    top, total = _lanes(a, exps, sums)
    expected = np.exp(a.astype(np.float64))
    np.testing.assert_allclose(exps[:-4], expected[:-4], rtol=2e-7)
    assert exps[-4] == 1 and exps[-3] == 0 and exps[-2] == 0
    np.testing.assert_allclose(exps[-1], expected[-1], rtol=2e-7)
    np.testing.assert_array_equal(sums, 4 * a)
    assert top == 88 and total == pytest.approx(-0.5e30)


def test_threads_hand_on_errors_and_run_every_task_once() -> None:
    with Threads(4) as threads:
        seen: list[int] = []
        threads.run([lambda k=k: seen.append(k) for k in range(50)])  # type: ignore[misc]
        assert sorted(seen) == list(range(50))
        assert [high - low for low, high in threads.split(100_001)] and threads.split(100_001)[-1][1] == 100_001
        with pytest.raises(ZeroDivisionError):
            threads.run([lambda: None, lambda: 1 // 0, lambda: None])  # type: ignore[list-item,return-value]
