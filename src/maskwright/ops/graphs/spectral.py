"""Smallest generalised eigenpairs of graph Laplacians: (D - W) v = mu D v.

They are the largest eigenpairs of the normalised affinity S = D^-1/2 W D^-1/2, with theta = 1 - mu and
v = D^-1/2 u. Two ways: a full dense decomposition, and block Krylov iteration (block Lanczos with full
orthogonalisation, Rayleigh-Ritz and thick restarts), which needs only products with a few vectors and stops
at an error bound. On sparse graphs the products are solves with the shifted Laplacian, because colour graphs
have spectra so dense near zero that products with W alone converge slowly.

What is made deterministic, since eigenvectors are free up to sign and rotation:
  * the constant vector comes first and is exact: mu_0 = 0, v_0 = 1 / sqrt(sum D) on all nodes with edges;
  * eigenvalues closer than `DEGENERATE` share one eigenspace, whose basis is canonical: the projections of
    the node with the largest share in the space, then of the node with the largest share of what is left, and
    so on (lowest index on ties). It depends on the space alone, not on how it was found;
  * signs follow `fix_signs`.

Legend: B batch, N nodes (patches or pixels), k eigenpairs, b block width.

Source: Melas-Kyriazi et al., Deep Spectral Methods, CVPR 2022; Shi and Malik, Normalized Cuts, 2000.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import scipy.linalg
import scipy.sparse as sp
import scipy.sparse.linalg as spla
import torch
from torch import Tensor

# Degrees below this count as isolated nodes, whose degree becomes 1 (and mu becomes 1).
ISOLATED = 1e-12
# Eigenvalues closer than this are one eigenspace: float32 products cannot tell their vectors apart.
DEGENERATE = {torch.float32: 2e-6, torch.float64: 1e-9}
# Below this many nodes a full decomposition is as fast as iterating.
DENSE_BELOW = 192

Method = Literal["auto", "dense", "krylov"]
Product = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class SpectralResult:
    """Eigenpairs in order of mu; unpacks as `mu, v = result`.

    Attributes:
        values: (..., k) mu, ascending, in [0, 2].
        vectors: (..., N, k) v with v_i^T D v_j = delta_ij.
        residual: (..., k) norms of S u - theta u, which bound the error of mu.
        method: "dense" or "krylov", which way gave them.
    """

    values: Tensor
    vectors: Tensor
    residual: Tensor
    method: str

    def __iter__(self) -> Iterator[Tensor]:
        return iter((self.values, self.vectors))


def spectral_embedding(
    w: Any, k: int, method: Method = "auto", *, seed: int = 0, tol: float = 5e-4, max_products: int = 240
) -> SpectralResult:
    """The k smallest generalised eigenpairs of (D - W) v = mu D v.

    Args:
        w: symmetric nonnegative affinity: tensor (N, N) or (B, N, N), or scipy sparse (N, N).
        k: number of pairs, the constant one among them.
        method: "dense" (float64 on the CPU, exact to rounding), "krylov", or "auto": krylov for large N, and
            dense where it would not pay or does not converge.
        seed: of the starting vectors; the answer depends on it only within `tol`.
        tol: bound on the sine of the angle between each vector found and its exact eigenspace.
        max_products: products of the matrix with a block of vectors before krylov gives up: then dense takes
            over.

    Returns:
        `SpectralResult` in the precision and on the device of `w` (float32 for half precision; float64, on
        the CPU, for sparse).

    Raises:
        ValueError: if `w` is not square, symmetric and finite, has negative degrees, or k is not in [1, N].
    """
    if method not in ("auto", "dense", "krylov"):
        raise ValueError(f"method {method!r}: expected 'auto', 'dense' or 'krylov'")
    shape = tuple(w.shape)
    if len(shape) not in (2, 3) or shape[-1] != shape[-2]:
        raise ValueError(f"affinity of shape {shape}: expected (N, N) or (B, N, N)")
    n = shape[-1]
    if not 1 <= k <= n:
        raise ValueError(f"k = {k}: expected 1 to {n}, the number of nodes")
    if sp.issparse(w):
        return _sparse(w.tocsr().astype(np.float64), k, method, seed, tol, max_products)
    w = w.detach()
    w = w if w.dtype in (torch.float32, torch.float64) else w.float()
    batch = w if w.ndim == 3 else w[None]
    inverse_root, first = _normalisation(batch.sum(-1))
    iterate = method == "krylov" or (method == "auto" and n > DENSE_BELOW and 4 * k < n)
    if iterate and k > 1 and n >= 4 * k:
        theta, u, residual, converged = _each_krylov(batch, inverse_root, first, k, seed, tol, max_products)
    else:
        theta, u, residual = _dense(batch, inverse_root, k)
        iterate, converged = False, torch.ones(batch.shape[0], dtype=torch.bool)
    edgeless = ~first.flatten(1).any(-1).cpu()
    for i in torch.nonzero(~converged | edgeless).flatten().tolist():
        one = slice(i, i + 1)
        theta[one], u[one], residual[one] = _dense(batch[one], inverse_root[one], k)
    result = _finish(theta, u, residual, inverse_root, first, "krylov" if iterate else "dense")
    if w.ndim == 2:
        return SpectralResult(result.values[0], result.vectors[0], result.residual[0], result.method)
    return result


def fix_signs(v: Tensor, zero: float = 1e-6) -> Tensor:
    """Flips vectors with more than half, but not all, of their entries positive (the rule of Deep Spectral).

    So a segment is positive and the rest negative. Made a function of the line alone, so that v and -v give
    the
    same: a vector of one sign throughout becomes positive, and where neither sign holds more than half of the
    entries, the largest entry by magnitude (the first on ties) becomes positive. Idempotent.

    Args:
        v: (..., N, k) vectors in columns.
        zero: entries below this share of the largest count as zero, neither positive nor negative.

    Returns:
        (..., N, k).
    """
    n = v.shape[-2]
    magnitude = v.abs()
    largest = magnitude.amax(-2, keepdim=True)
    positive = (v > zero * largest).sum(-2)
    negative = (v < -zero * largest).sum(-2)
    # argmax of booleans gives the first entry that ties with the largest, whatever the rounding of the
    # others.
    leader = (magnitude >= largest * (1 - 1e-4)).to(torch.uint8).argmax(-2, keepdim=True)
    flip = torch.gather(v, -2, leader).squeeze(-2) < 0
    flip = torch.where(2 * positive > n, positive < n, flip)
    flip = torch.where(2 * negative > n, negative == n, flip)
    return torch.where(flip[..., None, :], -v, v)


def eigengap(values: Tensor) -> Tensor:
    """The adaptive number of segments: n for the largest gap values[n] - values[n - 1], n = 1 excluded.

    The gap after the constant vector is passed over, since it says only that the graph is connected.

    Args:
        values: (..., k) ascending, k at least 3.

    Returns:
        (...) int64 in [2, k - 1].

    Raises:
        ValueError: for fewer than three values.
    """
    if values.shape[-1] < 3:
        raise ValueError(f"{values.shape[-1]} eigenvalues: expected at least 3 to choose among gaps")
    gaps = values.diff(dim=-1)[..., 1:]
    return gaps.argmax(-1) + 2


def subspace_angle(a: Tensor, b: Tensor) -> Tensor:
    """Sine of the largest principal angle between the spans of the columns of a (..., N, k) and b (..., N,
    k).

    Computed from ||(I - Q_a Q_a^T) Q_b||, which keeps its precision for small angles where a cosine would
    not.
    """
    qa = torch.linalg.qr(a.double())[0]
    qb = torch.linalg.qr(b.double())[0]
    rest = qb - qa @ (qa.mT @ qb)
    return torch.linalg.matrix_norm(rest, ord=2).clamp(max=1.0)


def _normalisation(row_sums: Tensor) -> tuple[Tensor, Tensor]:
    """D^-1/2 (B, N, 1), degree 1 for isolated nodes, and the unit vector D^1/2 1 (B, N, 1), 0 for them."""
    if not bool(torch.isfinite(row_sums).all()):
        raise ValueError("the affinity has entries that are not finite: check the features")
    if bool((row_sums < -1e-6 * row_sums.abs().max()).any()):
        raise ValueError("the affinity has negative row sums: expected nonnegative entries (threshold at zero)")
    isolated = row_sums < ISOLATED
    degrees = torch.where(isolated, torch.ones_like(row_sums), row_sums)
    root = torch.where(isolated, torch.zeros_like(row_sums), degrees.sqrt())
    norm = root.norm(dim=-1, keepdim=True)
    # Without any edge there is no constant eigenvector of mu 0: `first` is 0 then and is never used as a
    # pair.
    first = root / torch.where(norm > 0, norm, torch.ones_like(norm))
    return degrees.rsqrt()[..., None], first[..., None]


def _check_symmetric(s: Any) -> None:
    """For S itself, or q^T S q for some q: so a few products tell without a pass over S."""
    if float(abs(s - s.swapaxes(-1, -2)).max()) > 1e-3 * float(abs(s).max()):
        raise ValueError("the affinity is not symmetric: use (W + W^T) / 2")


def _dense(batch: Tensor, inverse_root: Tensor, k: int) -> tuple[Tensor, Tensor, Tensor]:
    """Largest k eigenpairs of S by decomposition: theta (B, k) descending, u (B, N, k), residual (B, k)."""
    n = batch.shape[-1]
    scale = inverse_root.double()
    s = batch.double() * scale * scale.mT
    _check_symmetric(s)
    s = (s + s.mT) / 2
    if s.device.type == "cpu" and 4 * k < n:
        # Only the wanted vectors are transformed back, a sixth of the work of all of them.
        found = [scipy.linalg.eigh(one.numpy(), subset_by_index=(n - k, n - 1)) for one in s]
        theta = torch.from_numpy(np.stack([values for values, _ in found])).flip(-1)
        u = torch.from_numpy(np.stack([vectors for _, vectors in found])).flip(-1)
    else:
        values, vectors = torch.linalg.eigh(s)
        theta, u = values.flip(-1)[:, :k], vectors.flip(-1)[..., :k]
    residual = (s @ u - u * theta[:, None]).norm(dim=-2)
    return theta.to(batch.dtype), u.to(batch.dtype), residual.to(batch.dtype)


def _each_krylov(
    batch: Tensor, inverse_root: Tensor, first: Tensor, k: int, seed: int, tol: float, max_products: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Krylov for each image on its own on a CPU, where its matrix stays in the cache; together on a GPU."""
    count = batch.shape[0]
    group = 1 if batch.device.type == "cpu" else count
    found = []
    for start in range(0, count, group):
        part = slice(start, start + group)
        matrix, scale = batch[part], inverse_root[part].mT

        def product(x: Tensor, matrix: Tensor = matrix, scale: Tensor = scale) -> Tensor:
            # Rows times a symmetric matrix: up to four times faster than the matrix times as many columns.
            x = x * scale
            out = torch.mm(x[0], matrix[0])[None] if matrix.shape[0] == 1 else torch.bmm(x, matrix)
            return out.mul_(scale)

        found.append(_krylov(product, first[part].mT, k, seed, tol, max_products))
    theta, u, residual, converged = (torch.cat(pieces) for pieces in zip(*found))
    return theta, u, residual, converged


def _sparse(w: sp.csr_matrix, k: int, method: Method, seed: int, tol: float, max_products: int) -> SpectralResult:
    """Shift-invert: Krylov on (I - S + shift)^-1, whose largest pairs are the smallest of the Laplacian."""
    n = w.shape[0]
    asymmetry = abs(w - w.T)
    if asymmetry.nnz and asymmetry.max() > 1e-6 * abs(w).max():
        raise ValueError("the affinity is not symmetric: use (W + W^T) / 2")
    row_sums = torch.from_numpy(np.asarray(w.sum(axis=1), dtype=np.float64).reshape(1, n))
    inverse_root, first = _normalisation(row_sums)
    if method == "dense" or n <= DENSE_BELOW or 4 * k >= n or not bool(first.any()):
        theta, u, residual = _dense(torch.from_numpy(w.toarray())[None], inverse_root, k)
        way = "dense"
    else:
        scale = sp.diags(inverse_root[0, :, 0].numpy())
        s = (scale @ w @ scale).tocsc()
        # The shift keeps the factorised matrix regular, and is small beside the eigenvalues that tell
        # segments apart.
        shift = 1e-4
        factor = spla.splu((sp.identity(n, format="csc") * (1 + shift) - s).tocsc(), permc_spec="MMD_AT_PLUS_A")

        def solve(x: Tensor) -> Tensor:
            return torch.from_numpy(shift * factor.solve(np.ascontiguousarray(x[0].numpy().T)).T)[None]

        nu, u, _, _ = _krylov(solve, first.mT, k, seed, tol, max_products)
        theta = 1 + shift - shift / nu
        residual = (torch.from_numpy(s @ u[0].numpy())[None] - u * theta[:, None]).norm(dim=-2)
        way = "krylov"
    result = _finish(theta, u, residual, inverse_root, first, way)
    return SpectralResult(result.values[0], result.vectors[0], result.residual[0], result.method)


def _krylov(
    product: Product, first: Tensor, k: int, seed: int, tol: float, max_products: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Largest eigenpairs of a symmetric operator with known eigenpair (1, first), by block Lanczos.

    Vectors are rows here, which is how the basis grows without copies and how the products are fastest.

    Args:
        product: the operator, applied to rows (B, b, N).
        first: (B, 1, N) unit vector.

    Returns:
        theta (B, k) descending with that of `first` in front, u (B, N, k), residual (B, k), converged (B,).
    """
    count, _, n = first.shape
    wanted = k - 1
    one = torch.ones((count, 1), dtype=first.dtype, device=first.device)
    if wanted == 0:
        return one, first.mT, (product(first) - first).norm(dim=-1), one[:, 0] > 0
    width = min(wanted + 2, (n - 1) // 3)
    limit = min(max(12 * width, 60), (n - 1) // width * width - width)
    generator = torch.Generator().manual_seed(seed)
    start = torch.randn((1, width, n), generator=generator).to(first)
    # The known vector, then the vectors of the space, of which the last `width` are the newest block.
    basis = first.new_empty((count, 1 + limit + width, n))
    basis[:, :1] = first
    # The small matrices live in numpy: its calls cost a few times less, and a GPU is no help at this size.
    h = np.zeros((count, limit + width, limit + width))
    block, _ = _orthonormal(start.expand(count, width, n), basis[:, :1])
    size, products, check = 0, 0, 3
    worst, looked = np.inf, 1
    while True:
        basis[:, 1 + size : 1 + size + width] = block
        newest = slice(size, size + width)
        size += width
        spanned = basis[:, : 1 + size]
        image = product(block)
        products += 1
        inner = image @ spanned.mT  # (B, width, 1 + size)
        h[:, newest, :size] = inner[..., 1:].cpu().numpy()
        h[:, : size - width, newest] = h[:, newest, : size - width].swapaxes(1, 2)
        block, coupling = _orthonormal(torch.baddbmm(image, inner, spanned, alpha=-1), spanned)
        full = size + width > limit
        if products == 1:
            _check_symmetric(h[:, newest, newest])
        if products < check and not full and products < max_products:
            continue
        small = h[:, :size, :size]
        values, rotation = np.linalg.eigh((small + small.swapaxes(1, 2)) / 2)
        values, rotation = values[:, ::-1], rotation[:, :, ::-1]
        # The operator leaves the space only through the newest block, so its coupling gives all residuals.
        residual = np.linalg.norm(coupling.swapaxes(1, 2) @ rotation[:, newest], axis=1)
        excess = _excess(values, residual, wanted, tol, first.dtype)
        done = excess <= 1
        if done.all() or products >= max_products:
            break
        if full:
            keep = min(wanted + width, size - width)
            basis[:, 1 : 1 + keep] = _to(rotation[..., :keep].swapaxes(1, 2), first) @ spanned[:, 1:]
            h[:] = 0
            h[:, range(keep), range(keep)] = values[:, :keep]
            size = keep
        # Residuals fall by about the same factor at each step: looks again a step before it should be done.
        before, worst = worst, float(excess.max())
        rate = max((before / worst) ** (1 / looked), 2.0) if before < np.inf and worst > 0 else 60.0
        looked = min(max(1, int(np.log(worst) / np.log(rate))), 3)
        check = products + looked
    u = _to(rotation[..., :wanted].swapaxes(1, 2), first) @ spanned[:, 1:]
    theta = torch.cat([one, _to(values[:, :wanted], first)], dim=-1)
    floor = torch.finfo(first.dtype).eps
    residual = np.concatenate([np.full((count, 1), floor), residual[:, :wanted].clip(min=floor)], axis=1)
    return theta, torch.cat([first, u], dim=-2).mT, _to(residual, first), torch.from_numpy(done)


def _to(x: np.ndarray, like: Tensor) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(x)).to(like)


def _excess(values: np.ndarray, residual: np.ndarray, wanted: int, tol: float, dtype: torch.dtype) -> np.ndarray:
    """How many times larger than tol residual / gap is, the bound of Davis and Kahan on the sine of the
    angle.

    The gap of a vector is to the nearest eigenvalue that is not of its own eigenspace; below what the
    precision can resolve, a residual at rounding level is all that can be asked for.

    Args:
        values: (B, m) Ritz values, descending.
        residual: (B, m) norms of their residuals.

    Returns:
        (B,) of the worst wanted vector; at most 1 where all have converged.
    """
    distance = np.abs(values[:, :wanted, None] - values[:, None, : wanted + 8])
    distance[distance <= 10 * DEGENERATE[dtype]] = 1.0
    allowed = np.maximum(tol * distance.min(-1), 8 * torch.finfo(dtype).eps)
    return (residual[:, :wanted] / allowed).max(-1)


def _orthonormal(x: Tensor, against: Tensor) -> tuple[Tensor, np.ndarray]:
    """Orthonormal rows q orthogonal to the rows `against`, and lower l with x = l q up to `against`.

    Directions of x that vanish are replaced by others with nothing in l, so that an exhausted space does not
    stop the iteration.

    Args:
        x: (B, b, N).
        against: (B, m, N) orthonormal rows.
    """
    x = torch.baddbmm(x, x @ against.mT, against, alpha=-1)
    gram = (x @ x.mT).double().cpu().numpy()
    try:
        lower = np.linalg.cholesky(gram)
        diagonal = lower.diagonal(axis1=1, axis2=2)
        least, most = diagonal.min(-1), diagonal.max(-1)
        if bool(((least > 0.03 * most) & (least > 1e-12)).all()):
            return _to(np.linalg.inv(lower), x) @ x, lower
    except np.linalg.LinAlgError:
        pass  # Not of full rank: the way below is for that.
    # Householder reflections give orthonormal vectors whatever the rank, though not ones orthogonal to
    # `against`.
    q, upper = torch.linalg.qr(x.mT)
    for _ in range(2):
        q = q - against.mT @ (against @ q)
        q, again = torch.linalg.qr(q)
        upper = again @ upper
    return q.mT.contiguous(), upper.mT.double().cpu().numpy()


def _finish(
    theta: Tensor, u: Tensor, residual: Tensor, inverse_root: Tensor, first: Tensor, method: str
) -> SpectralResult:
    """Canonical bases of degenerate spaces, the exact constant vector, signs, and back to v = D^-1/2 u."""
    theta, order = torch.sort(theta, dim=-1, descending=True, stable=True)
    u = u.gather(-1, order[:, None].expand_as(u))
    residual = residual.gather(-1, order)
    same = DEGENERATE[theta.dtype]
    connected = (theta[:, 0] > 1 - 10 * same) & first.flatten(1).any(-1)
    together = theta[:, :-1] - theta[:, 1:] <= same
    for i in torch.nonzero(together.any(-1)).flatten().tolist():
        start = 0
        for stop, joined in enumerate([*together[i].tolist(), False], start=1):
            if joined:
                continue
            if stop - start > 1:
                leading = first[i] if start == 0 and bool(connected[i]) else None
                u[i, :, start:stop] = _canonical(u[i, :, start:stop], leading)
            start = stop
    u[..., :1] = torch.where(connected[:, None, None], first, u[..., :1])
    theta[:, 0] = torch.where(connected, torch.ones_like(theta[:, 0]), theta[:, 0])
    v = inverse_root * u.contiguous()
    signed = fix_signs(v)
    # Isolated nodes, where it is zero, must not turn the constant vector negative.
    signed[..., :1] = torch.where(connected[:, None, None], v[..., :1], signed[..., :1])
    return SpectralResult((1 - theta).clamp(min=0), signed, residual, method)


def _canonical(space: Tensor, leading: Tensor | None) -> Tensor:
    """An orthonormal basis (N, g) of the span of `space` (N, g) that depends on the span alone.

    Args:
        space: orthonormal columns.
        leading: (N, 1) a unit vector of the span that is to come first, or None.
    """
    rows = space.double()
    taken: list[Tensor] = []
    for j in range(space.shape[-1]):
        if j == 0 and leading is not None:
            direction = rows.T @ leading[:, 0].double()
        else:
            share = rows.square().sum(-1)
            # The first node that ties with the largest share, up to rounding.
            pivot = int((share >= share.max() * (1 - 1e-3)).to(torch.uint8).argmax())
            direction = rows[pivot].clone()
        direction = direction / direction.norm().clamp(min=1e-300)
        taken.append(space.double() @ direction)
        rows = rows - torch.outer(rows @ direction, direction)
    return torch.stack(taken, dim=-1).to(space.dtype)
