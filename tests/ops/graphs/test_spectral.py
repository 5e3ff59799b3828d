"""Spectral embeddings against scipy's generalised eigensolver, closed forms and their invariants."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.linalg
import scipy.sparse as sp
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy.sparse.linalg import eigsh

from maskwright.ops.graphs.affinity import color_knn_affinity, feature_affinity
from maskwright.ops.graphs.spectral import (
    eigengap,
    fix_signs,
    spectral_embedding,
    subspace_angle,
)


def _scene(side: int, parts: int = 5, seed: int = 0, width: int = 48) -> torch.Tensor:
    """Features (side^2, width) of a grid in `parts` regions with noise."""
    g = torch.Generator().manual_seed(seed)
    yy, xx = torch.meshgrid(torch.arange(side) / side, torch.arange(side) / side, indexing="ij")
    at = torch.rand(parts, 2, generator=g)
    region = ((yy[..., None] - at[:, 0]) ** 2 + (xx[..., None] - at[:, 1]) ** 2).argmin(-1).reshape(-1)
    proto = torch.randn(parts, width, generator=g) + 0.7 * torch.randn(1, width, generator=g)
    return proto[region] + 0.6 * torch.randn(side * side, width, generator=g)


def _oracle(w: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    degrees = w.sum(1)
    return scipy.linalg.eigh(np.diag(degrees) - w, np.diag(degrees), subset_by_index=(0, k - 1))


def _blocks(sizes: list[int], between: float = 0.0) -> torch.Tensor:
    label = torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes))
    return torch.where(label[:, None] == label, 1.0, between).double()


@pytest.mark.parametrize("method", ["dense", "krylov"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_equals_the_generalised_eigensolver(method: str, dtype: torch.dtype):
    w = feature_affinity(_scene(18).to(dtype))
    values, vectors = _oracle(w.double().numpy(), 5)
    result = spectral_embedding(w, 5, method)
    assert result.method == method
    assert result.vectors.dtype == dtype
    np.testing.assert_allclose(result.values.numpy(), values, atol=1e-5)
    assert subspace_angle(result.vectors, torch.from_numpy(vectors)) < 1e-3
    for j in range(5):
        assert subspace_angle(result.vectors[:, j : j + 1], torch.from_numpy(vectors[:, j : j + 1])) < 1e-3
    assert result.residual.shape == (5,)
    assert result.residual.max() < 1e-3


def test_agrees_with_eigsh_of_the_paper():
    w = feature_affinity(_scene(14, seed=3)).double()
    degrees = np.diag(w.sum(1).numpy())
    values, vectors = eigsh(degrees - w.numpy(), k=4, sigma=-1e-6, which="LM", M=degrees)
    mu, v = spectral_embedding(w, 4, "krylov", tol=1e-7)
    np.testing.assert_allclose(mu.numpy(), values, atol=1e-8)
    assert subspace_angle(v, torch.from_numpy(vectors)) < 1e-6


@pytest.mark.parametrize("method", ["dense", "krylov"])
def test_first_vector_is_constant_and_all_are_d_orthonormal(method: str):
    w = feature_affinity(_scene(16)).double()
    mu, v = spectral_embedding(w, 4, method, tol=1e-8)
    assert abs(float(mu[0])) < 1e-6
    torch.testing.assert_close(v[:, 0], torch.full((256,), float(w.sum() ** -0.5), dtype=torch.float64))
    gram = v.T @ (w.sum(1)[:, None] * v)
    torch.testing.assert_close(gram, torch.eye(4, dtype=torch.float64), atol=1e-7, rtol=0)


def test_two_blocks_are_told_apart():
    w = _blocks([40, 24], between=0.05)
    v = spectral_embedding(w, 2).vectors[..., 1]
    assert (v[40:] > 0).all()
    assert (v[:40] < 0).all()


@pytest.mark.parametrize("method", ["dense", "krylov"])
@pytest.mark.parametrize("sizes", [[30, 20], [60, 50, 40, 30]])
def test_multiplicity_of_zero_is_the_number_of_components(method: str, sizes: list[int]):
    rng = np.random.default_rng(0)
    noise = torch.from_numpy(rng.random((sum(sizes), sum(sizes))))
    w = _blocks(sizes) * (0.5 + noise + noise.T)
    mu, v = spectral_embedding(w, len(sizes) + 2, method)
    assert (mu[: len(sizes)] < 1e-9).all()
    assert mu[len(sizes)] > 0.1
    # Vectors of the null space are constant on each component.
    for part in torch.split(v[:, : len(sizes)], sizes):
        assert (part - part[0]).abs().max() < 1e-8 * v.abs().max() + 1e-8


def test_a_degenerate_space_gets_one_basis_whatever_way_it_was_found():
    w = _blocks([70, 60, 50, 40])
    dense = spectral_embedding(w, 4, "dense").vectors
    for seed in range(3):
        torch.testing.assert_close(spectral_embedding(w, 4, "krylov", seed=seed).vectors, dense, atol=1e-8, rtol=0)


def test_scale_leaves_the_eigenpairs_up_to_normalisation():
    w = feature_affinity(_scene(15)).double()
    mu, v = spectral_embedding(w, 4, tol=1e-8)
    mu2, v2 = spectral_embedding(9 * w, 4, tol=1e-8)
    torch.testing.assert_close(mu2, mu, atol=1e-9, rtol=0)
    torch.testing.assert_close(3 * v2, v, atol=1e-7, rtol=1e-5)


def test_nodes_in_another_order_give_the_same_pairs():
    w = feature_affinity(_scene(15)).double()
    order = torch.randperm(225, generator=torch.Generator().manual_seed(0))
    mu, v = spectral_embedding(w, 4, tol=1e-8)
    mu2, v2 = spectral_embedding(w[order][:, order], 4, tol=1e-8)
    torch.testing.assert_close(mu2, mu, atol=1e-9, rtol=0)
    torch.testing.assert_close(v2, v[order], atol=1e-6, rtol=0)


def test_a_batch_is_its_images():
    w = torch.stack([feature_affinity(_scene(15, parts=3 + i, seed=i)) for i in range(3)])
    together = spectral_embedding(w, 4)
    assert together.vectors.shape == (3, 225, 4)
    for i in range(3):
        alone = spectral_embedding(w[i], 4)
        torch.testing.assert_close(together.values[i], alone.values)
        torch.testing.assert_close(together.vectors[i], alone.vectors)


def test_repeats_exactly():
    w = feature_affinity(_scene(16))
    assert torch.equal(spectral_embedding(w, 5).vectors, spectral_embedding(w, 5).vectors)


def test_isolated_nodes_have_degree_one():
    w = feature_affinity(_scene(15)).double()
    w[[3, 70]] = 0
    w[:, [3, 70]] = 0
    for method in ("dense", "krylov"):
        mu, v = spectral_embedding(w, 3, method, tol=1e-9)
        assert mu[0] < 1e-9
        torch.testing.assert_close(v[:3, 0], (w.sum() ** -0.5).expand(3))
        assert (v[[3, 70]].abs() < 1e-6 * v.abs().max()).all()
    mu, v = spectral_embedding(torch.zeros(6, 6), 3)
    torch.testing.assert_close(mu, torch.ones(3))
    torch.testing.assert_close(v.T @ v, torch.eye(3))


def test_a_low_rank_graph_exhausts_the_krylov_space():
    f = torch.nn.functional.normalize(torch.rand(300, 2, generator=torch.Generator().manual_seed(0)), dim=1)
    w = (f @ f.T).double()
    result = spectral_embedding(w, 4, "krylov")
    torch.testing.assert_close(result.values, spectral_embedding(w, 4, "dense").values, atol=1e-6, rtol=0)


def test_where_krylov_does_not_converge_dense_takes_over():
    n = 260  # a ring: gaps of 1e-4, far from converged in five products
    ring = torch.roll(torch.eye(n), 1, 0) + torch.roll(torch.eye(n), -1, 0)
    mu, _ = spectral_embedding(ring.double(), 5, "krylov", max_products=5)
    exact = np.sort(1 - np.cos(2 * np.pi * np.arange(n) / n))[:5]
    np.testing.assert_allclose(mu.numpy(), exact, atol=1e-9)


def test_thick_restarts_converge_on_a_small_gap():
    n = 400
    path = torch.diag(torch.ones(n - 1), 1)
    w = (path + path.T).double()
    result = spectral_embedding(w + torch.eye(n), 3, "krylov", max_products=400)
    assert result.method == "krylov"
    torch.testing.assert_close(
        result.values, spectral_embedding(w + torch.eye(n), 3, "dense").values, atol=1e-8, rtol=0
    )


def test_sparse_and_dense_agree():
    color = color_knn_affinity(np.random.default_rng(0).random((16, 15, 3)))
    result = spectral_embedding(color, 5)
    assert result.method == "krylov"
    dense = spectral_embedding(torch.from_numpy(color.toarray()).double(), 5, "dense")
    torch.testing.assert_close(result.values, dense.values, atol=1e-6, rtol=0)
    assert subspace_angle(result.vectors, dense.vectors) < 1e-3


def test_sparse_components_are_counted():
    w = sp.block_diag([np.ones((90, 90)), np.ones((80, 80)), np.ones((70, 70))]).tocsr()
    mu, v = spectral_embedding(w, 4)
    assert (mu[:3] < 1e-6).all()
    assert mu[3] > 0.5
    torch.testing.assert_close(
        v[:, :3], spectral_embedding(torch.from_numpy(w.toarray()), 3, "dense").vectors, atol=1e-6, rtol=0
    )


@pytest.mark.parametrize(
    ("w", "k", "message"),
    [
        (torch.ones(3, 4), 1, r"expected \(N, N\)"),
        (torch.ones(4, 4), 5, "the number of nodes"),
        (torch.ones(4, 4), 0, "the number of nodes"),
        (torch.triu(torch.ones(9, 9)), 2, "not symmetric"),
        (torch.full((4, 4), float("nan")), 2, "not finite"),
        (-torch.ones(4, 4), 2, "negative"),
        (sp.csr_matrix(np.triu(np.ones((4, 4)))), 2, "not symmetric"),
    ],
)
def test_refuses(w: object, k: int, message: str):
    with pytest.raises(ValueError, match=message):
        spectral_embedding(w, k)


def test_unknown_method():
    with pytest.raises(ValueError, match="expected 'auto'"):
        spectral_embedding(torch.ones(4, 4), 2, "magic")  # type: ignore[arg-type]


@settings(max_examples=60, deadline=None)
@given(hnp.arrays(np.float64, st.tuples(st.integers(1, 9), st.integers(1, 3)), elements=st.integers(-3, 3)))
def test_sign_rule_is_idempotent_and_a_function_of_the_line(v: np.ndarray):
    fixed = fix_signs(torch.from_numpy(v))
    assert torch.equal(fix_signs(fixed), fixed)
    assert torch.equal(fix_signs(-torch.from_numpy(v)), fixed)
    share = (fixed > 0).double().mean(0)
    assert ((share <= 0.5) | (share == 1)).all()


def test_sign_rule_keeps_and_flips():
    v = torch.tensor([[1.0, -1.0, 2.0, -1.0], [1.0, -2.0, -1.0, 1.0], [-3.0, -1.0, -1.0, 1.0]])
    expected = torch.tensor([[-1.0, 1.0, 2.0, 1.0], [-1.0, 2.0, -1.0, -1.0], [3.0, 1.0, -1.0, -1.0]])
    assert torch.equal(fix_signs(v), expected)
    assert fix_signs(v[None]).shape == (1, 3, 4)


def test_eigengap_passes_over_the_first_gap():
    assert int(eigengap(torch.tensor([0.0, 0.5, 0.55, 0.8, 0.81]))) == 3
    assert int(eigengap(torch.tensor([0.0, 0.0, 0.0, 0.9, 0.95]))) == 3
    assert eigengap(torch.rand(4, 6).sort(-1)[0]).shape == (4,)
    with pytest.raises(ValueError, match="at least 3"):
        eigengap(torch.tensor([0.0, 1.0]))


def test_eigengap_counts_blocks():
    w = _blocks([30, 25, 20, 35], between=0.02)
    assert int(eigengap(spectral_embedding(w, 8, "dense").values)) == 4


def test_subspace_angle_closed_form():
    a = torch.eye(5, dtype=torch.float64)[:, :2]
    turned = a.clone()
    turned[:, 1] = torch.tensor([0, np.cos(1e-5), 0, np.sin(1e-5), 0])
    assert float(subspace_angle(a, turned)) == pytest.approx(np.sin(1e-5), rel=1e-6)
    mixed = a @ torch.tensor([[2.0, 1.0], [0.5, 3.0]], dtype=torch.float64)
    assert subspace_angle(a, mixed) < 1e-12
    assert float(subspace_angle(a, torch.eye(5, dtype=torch.float64)[:, 2:4])) == pytest.approx(1.0)
