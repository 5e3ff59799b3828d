"""Affinity graphs against loops, brute-force neighbours and their invariants."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.sparse as sp
import torch
from sklearn.neighbors import NearestNeighbors

from maskwright.ops.graphs.affinity import color_knn_affinity, combine, feature_affinity


def _features(n: int = 30, d: int = 8, seed: int = 0) -> torch.Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed))


def test_zero_threshold_is_the_clipped_cosine():
    f = _features()
    w = feature_affinity(f)
    unit = f.numpy() / np.linalg.norm(f.numpy(), axis=1, keepdims=True)
    np.testing.assert_allclose(w.numpy(), np.maximum(unit @ unit.T, 0), atol=1e-6)


def test_without_normalisation_the_largest_entry_is_one():
    f = _features() * 3
    w = feature_affinity(f, normalise=False)
    raw = np.maximum(f.numpy() @ f.numpy().T, 0)
    np.testing.assert_allclose(w.numpy(), raw / raw.max(), atol=1e-6)
    assert w.max() == pytest.approx(1.0)


def test_tokencut_has_two_values():
    f = _features()
    w = feature_affinity(f, threshold=0.2)
    cosine = torch.nn.functional.normalize(f, dim=1) @ torch.nn.functional.normalize(f, dim=1).T
    assert torch.equal(w, torch.where(cosine > 0.2, 1.0, 1e-5))


def test_a_batch_is_its_images_and_half_is_computed_in_float():
    f = torch.stack([_features(seed=i) for i in range(3)])
    for normalise in (True, False):
        together = feature_affinity(f, normalise=normalise)
        for one, alone in zip(together, f):
            torch.testing.assert_close(one, feature_affinity(alone, normalise=normalise), atol=1e-6, rtol=1e-5)
    assert feature_affinity(f.bfloat16()).dtype == torch.float32


def test_zero_features_give_zeros():
    assert not feature_affinity(torch.zeros(4, 3)).any()
    assert not feature_affinity(torch.zeros(4, 3), normalise=False).any()


@pytest.mark.parametrize("bad", [torch.zeros(3), torch.zeros(1, 2, 3, 4)])
def test_features_of_a_wrong_shape(bad: torch.Tensor):
    with pytest.raises(ValueError, match=r"expected \(N, D\)"):
        feature_affinity(bad)


def test_unknown_threshold():
    with pytest.raises(ValueError, match="expected 'zero' or a number"):
        feature_affinity(_features(), threshold="one")  # type: ignore[arg-type]


def _brute_knn(image: np.ndarray, neighbors: tuple[int, ...], weights: tuple[float, ...]) -> np.ndarray:
    h, w = image.shape[:2]
    n = h * w
    out = np.zeros((n, n), np.float32)
    for k, weight in zip(neighbors, weights):
        x, y = np.tile(np.linspace(0, 1, w), h), np.repeat(np.linspace(0, 1, h), w)
        f = np.column_stack([image.reshape(n, 3), weight * x, weight * y])
        found = NearestNeighbors(n_neighbors=k, algorithm="brute").fit(f).kneighbors(f, return_distance=False)
        for i in range(n):
            for j in found[i]:
                out[i, j] += 1
                out[j, i] += 1
    return out


def test_color_neighbours_equal_brute_force():
    image = np.random.default_rng(0).random((9, 11, 3))
    w = color_knn_affinity(image)
    np.testing.assert_array_equal(w.toarray(), _brute_knn(image, (20, 10), (2.0, 0.1)))
    assert w.sum() == 2 * 30 * 99


def test_color_affinity_is_symmetric_and_does_not_depend_on_threads():
    image = np.random.default_rng(1).integers(0, 256, (12, 10, 3), dtype=np.uint8)
    one, two = color_knn_affinity(image, workers=1), color_knn_affinity(torch.from_numpy(image), workers=2)
    assert abs(one - one.T).nnz == 0
    assert abs(one - two).nnz == 0
    assert abs(one - color_knn_affinity(image / 255.0)).nnz == 0


def test_color_affinity_refuses():
    with pytest.raises(ValueError, match="divide by 255"):
        color_knn_affinity(np.full((4, 4, 3), 200.0))
    with pytest.raises(ValueError, match=r"\(h, w, 3\)"):
        color_knn_affinity(np.zeros((4, 4)))
    with pytest.raises(ValueError, match="as many"):
        color_knn_affinity(np.zeros((4, 4, 3)), neighbors=(3,))


def test_more_neighbours_than_pixels():
    w = color_knn_affinity(np.random.default_rng(0).random((2, 3, 3)))
    assert np.array_equal(w.toarray(), np.full((6, 6), 4.0))


def test_combine_adds_and_keeps_symmetry():
    f, image = _features(35), np.random.default_rng(2).random((5, 7, 3))
    color = color_knn_affinity(image)
    w = feature_affinity(f)
    both = combine(w, color, 10.0)
    np.testing.assert_allclose(both.numpy(), w.numpy() + 10 * color.toarray(), rtol=1e-6)
    assert torch.equal(both, both.T)
    batch = combine(torch.stack([w, w]), [color, color], 10.0)
    assert torch.equal(batch[1], both)
    sparse = combine(sp.csr_matrix(w.numpy()), color, 10.0)
    np.testing.assert_allclose(sparse.toarray(), both.numpy(), rtol=1e-6)
    with pytest.raises(ValueError, match="expected"):
        combine(w[:4, :4], color, 1.0)
