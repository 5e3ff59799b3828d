"""Deep Spectral Methods (Melas-Kyriazi et al., CVPR 2022): affinity and eigenvectors; k-means' objective."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.linalg
import scipy.sparse
import torch
from tests.golden.formulas import as64, draw, unit

from maskwright.ops.clustering.kmeans import kmeans
from maskwright.ops.graphs.affinity import combine, feature_affinity
from maskwright.ops.graphs.spectral import eigengap, spectral_embedding

N = 30


def affinity() -> np.ndarray:
    f = unit(as64(draw(N, 4) + 2 * torch.eye(3).repeat_interleave(10, 0) @ draw(3, 4, seed=1)))
    return np.maximum(f @ f.T, 0)


def test_affinity_of_features_and_colours():
    f = draw(N, 4)
    cosines = np.maximum(unit(as64(f)) @ unit(as64(f)).T, 0)
    np.testing.assert_allclose(as64(feature_affinity(f)), cosines, rtol=1e-4, atol=1e-6)
    plain = np.maximum(as64(f) @ as64(f).T, 0)
    np.testing.assert_allclose(as64(feature_affinity(f, normalise=False)), plain / plain.max(), rtol=1e-4, atol=1e-6)
    color = scipy.sparse.csr_matrix(np.eye(N)[::-1])
    both = combine(feature_affinity(f), color, 10.0)
    np.testing.assert_allclose(as64(both), cosines + 10 * np.eye(N)[::-1], rtol=1e-4, atol=1e-5)


def test_eigenvectors_of_the_generalised_problem():
    """(D - W) v = mu D v by LAPACK in float64."""
    w, k = affinity(), 5
    d = np.diag(w.sum(1))
    mu, v = scipy.linalg.eigh(d - w, d)
    values, vectors = spectral_embedding(torch.from_numpy(w).float(), k, "dense")
    np.testing.assert_allclose(as64(values), mu[:k], atol=1e-5)
    for a, b in zip(as64(vectors).T, v[:, :k].T):
        cosine = abs(a @ d @ b) / np.sqrt((a @ d @ a) * (b @ d @ b))
        assert cosine == pytest.approx(1, abs=1e-4)
    gaps = np.diff(mu[:8])
    assert int(eigengap(torch.from_numpy(mu[:8]))) == 1 + int(gaps[1:].argmax()) + 1


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
def test_objective_of_k_means(metric):
    """Inertia is the sum over rows of 1 - cosine, or of the squared distance, to the nearest centre."""
    x = draw(60, 3) + 4 * draw(3, 3, seed=1).repeat_interleave(20, 0)
    found = kmeans(x, 3, metric=metric, restarts=4)
    rows, centers = as64(x), as64(found.centers)
    if metric == "cosine":
        cost = 1 - unit(rows) @ unit(centers).T
    else:
        cost = ((rows[:, None] - centers[None]) ** 2).sum(2)
    assert found.labels.tolist() == cost.argmin(1).tolist()
    assert found.inertia == pytest.approx(cost.min(1).sum(), rel=1e-4)
    for k in range(3):
        mean = (unit(rows) if metric == "cosine" else rows)[found.labels.numpy() == k].mean(0)
        np.testing.assert_allclose(centers[k], unit(mean) if metric == "cosine" else mean, rtol=1e-3, atol=1e-3)
