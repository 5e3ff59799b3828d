"""PCA against scikit-learn and its own definition."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.decomposition import PCA as PCAOfSklearn
from tests.ops.clustering.test_kmeans import together
from torch import Tensor

from maskwright.ops.clustering.pca import fit_pca


def draw(n: int = 500, d: int = 12, seed: int = 0) -> Tensor:
    g = torch.Generator().manual_seed(seed)
    mix = torch.linalg.qr(torch.randn(d, d, generator=g))[0] * torch.linspace(3, 0.2, d)
    return torch.randn(n, d, generator=g) @ mix.T + torch.randn(d, generator=g) * 5


def test_equals_scikit_learn():
    x = draw()
    ours = fit_pca(x, 5, chunk=77)
    theirs = PCAOfSklearn(5, svd_solver="full").fit(x.double().numpy())
    sign = np.sign((ours.components.numpy() * theirs.components_).sum(1, keepdims=True))
    np.testing.assert_allclose(ours.components, theirs.components_ * sign, atol=1e-5)
    np.testing.assert_allclose(ours.variance, theirs.explained_variance_ * 499 / 500, rtol=1e-5)
    np.testing.assert_allclose(ours.share, theirs.explained_variance_ratio_, rtol=1e-5)
    np.testing.assert_allclose(ours.apply(x), theirs.transform(x.numpy()) * sign.T, atol=1e-4)


def test_whitened_components_have_unit_covariance():
    y = fit_pca(draw(), 6, whiten=True).apply(draw()).double()
    torch.testing.assert_close(y.T @ y / len(y), torch.eye(6).double(), atol=1e-4, rtol=0)
    torch.testing.assert_close(y.mean(0), torch.zeros(6).double(), atol=1e-5, rtol=0)


@pytest.mark.parametrize("whiten", [False, True])
def test_all_components_invert(whiten: bool):
    x = draw()
    pca = fit_pca(x, 12, whiten=whiten)
    torch.testing.assert_close(pca.inverse(pca.apply(x)), x, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(fit_pca(x, 3).inverse(fit_pca(x, 3).apply(x[:2])), PCA3(x)[:2], atol=1e-3, rtol=1e-3)


def PCA3(x: Tensor) -> Tensor:
    """The nearest rows of rank 3 about the mean, by the singular values."""
    mean = x.double().mean(0)
    u, s, v = torch.linalg.svd(x.double() - mean, full_matrices=False)
    return ((u[:, :3] * s[:3]) @ v[:3] + mean).float()


@settings(max_examples=20, deadline=None)
@given(n=st.integers(1, 9), d=st.integers(1, 8), rank=st.integers(0, 3), whiten=st.booleans(), seed=st.integers(0, 50))
def test_any_rank(n: int, d: int, rank: int, whiten: bool, seed: int):
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(n, rank, generator=g) @ torch.randn(rank, d, generator=g) + 100
    pca = fit_pca(x, d, whiten=whiten)
    torch.testing.assert_close(pca.components @ pca.components.T, torch.eye(d), atol=1e-5, rtol=0)
    assert torch.isfinite(pca.apply(x)).all() and torch.isfinite(pca.inverse(pca.apply(x))).all()
    torch.testing.assert_close(pca.inverse(pca.apply(x)), x, atol=1e-2, rtol=1e-4)
    assert (pca.variance[:-1] >= pca.variance[1:]).all() and (pca.variance >= 0).all()


def test_equal_rows_carry_no_variance():
    pca = fit_pca(torch.full((10, 3), 7.0), 2, whiten=True)
    assert (pca.variance == 0).all() and (pca.share == 0).all() and (pca.apply(torch.randn(4, 3)) == 0).all()


def test_sign_does_not_depend_on_order_or_chunk():
    x = draw()
    a = fit_pca(x, 12)
    assert (a.components.gather(1, a.components.abs().argmax(1, keepdim=True)) > 0).all()
    for other in (fit_pca(x.flip(0), 12), fit_pca(x, 12, chunk=3)):
        torch.testing.assert_close(other.components, a.components, atol=1e-5, rtol=0)


def test_far_from_the_origin():
    x = draw()
    torch.testing.assert_close(fit_pca(x.double() + 1e7, 12).variance, fit_pca(x.double(), 12).variance)


def test_shares_equal_one_process():
    x = draw()
    whole = fit_pca(x, 4, whiten=True)
    for part in together([x[:0], x[:123], x[123:]], lambda p, at, reduce: fit_pca(p, 4, True, all_reduce=reduce)):
        torch.testing.assert_close(part.components, whole.components, atol=1e-6, rtol=0)
        torch.testing.assert_close(part.scale, whole.scale)


def test_precisions():
    assert fit_pca(draw().bfloat16(), 2).mean.dtype == torch.float32
    assert fit_pca(draw().double(), 2).mean.dtype == torch.float64


@pytest.mark.parametrize(
    "x, dim, message",
    [
        (torch.zeros(0, 3), 1, "no rows"),
        (torch.zeros(5, 3), 4, "dim is 4"),
        (torch.zeros(5, 3), 0, "dim is 0"),
        (torch.full((5, 3), torch.nan), 1, "NaN"),
        (torch.full((5, 3), torch.inf), 1, "NaN, infinite"),
        (torch.zeros(5), 1, "expected floating"),
    ],
)
def test_bad_arguments(x: Tensor, dim: int, message: str):
    with pytest.raises(ValueError, match=message):
        fit_pca(x, dim)
