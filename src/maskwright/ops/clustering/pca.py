"""Principal components of rows, exact, in chunks and over processes.

Legend: N rows, D width, d components kept.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class PCA:
    """A projection to principal components: y = ((x - mean) components^T) * scale.

    Attributes:
        mean: (D,) mean of the rows.
        components: (d, D), orthonormal rows by falling variance; the largest entry of each is positive.
        scale: (d,) ones, or 1 / standard deviation where whitened; 0 for a whitened component without variance.
        variance: (d,) variance of each component (over N, not N - 1).
        share: (d,) part of the whole variance in each; zeros where rows do not vary.
    """

    mean: Tensor
    components: Tensor
    scale: Tensor
    variance: Tensor
    share: Tensor

    def apply(self, x: Tensor) -> Tensor:
        """Rows (..., D) to (..., d)."""
        mean, components, scale = (t.to(x) for t in (self.mean, self.components, self.scale))
        return ((x - mean) @ components.T) * scale

    def inverse(self, y: Tensor) -> Tensor:
        """(..., d) back to rows (..., D): the nearest to those `apply` took, in the span of the components."""
        mean, components, scale = (t.to(y) for t in (self.mean, self.components, self.scale))
        return (y * torch.where(scale > 0, 1 / scale, 0)) @ components + mean


@torch.no_grad()
def fit_pca(
    x: Tensor,
    dim: int,
    whiten: bool = False,
    *,
    chunk: int = 8192,
    all_reduce: Callable[[Tensor], Tensor] | None = None,
) -> PCA:
    """Principal components by the eigenvectors of the covariance, which is formed in float64 (float32 on MPS).

    Costs N D^2 products in float64; fit on a sample where that is long. Rows may be fewer than components and may lie
    in a subspace: components beyond their rank are some orthonormal completion and carry no variance.

    Args:
        x: (N, D) rows, any floating type, on any device.
        dim: components to keep, 1 to D.
        whiten: scale each component to variance 1.
        chunk: rows at a time.
        all_reduce: sums a tensor over processes that each hold a share of the rows; all get the same result.

    Returns:
        Tensors in the rows' precision, float32 at least.

    Raises:
        ValueError: for no rows, `dim` out of range, and values that are not finite.
    """
    if x.ndim != 2 or not x.is_floating_point():
        raise ValueError(f"rows are {tuple(x.shape)} {x.dtype}, expected floating (N, D)")
    width = x.shape[1]
    if not 1 <= dim <= width:
        raise ValueError(f"dim is {dim}, expected 1 to {width}, the width of the rows")
    if chunk < 1:
        raise ValueError(f"chunk is {chunk}, expected at least 1")
    wide = torch.float32 if x.device.type == "mps" else torch.float64
    kept = torch.float64 if x.dtype == torch.float64 else torch.float32

    def over_all(values: Tensor) -> Tensor:
        out = None if all_reduce is None else all_reduce(values)
        return values if out is None else out

    first = torch.zeros(width + 1, dtype=wide, device=x.device)
    first[width] = len(x)
    for part in x.detach().split(chunk):
        first[:width] += part.to(wide).sum(0)
    first = over_all(first)
    count = first[width].item()
    if count < 1:
        raise ValueError("there are no rows")
    if not torch.isfinite(first).all():
        raise ValueError("rows hold NaN, infinite or overflowing values")
    mean = first[:width] / count
    covariance = torch.zeros(width, width, dtype=wide, device=x.device)
    for part in x.detach().split(chunk):
        centered = part.to(wide) - mean
        covariance.addmm_(centered.T, centered)
    covariance = over_all(covariance) / count
    values, vectors = torch.linalg.eigh((covariance + covariance.T) / 2)
    values, components = values.flip(0).clamp(min=0), vectors.flip(1).T  # by falling variance
    # Below this an eigenvalue is rounding of the largest.
    floor = values[0] * width * torch.finfo(wide).eps
    values = torch.where(values > floor, values, 0)
    whole = values.sum()
    values, components = values[:dim], components[:dim]
    # The eigenvectors' sign is arbitrary; ties in size go to the first entry, with room for rounding.
    size = components.abs()
    leading = (size >= size.amax(1, keepdim=True) * (1 - 1e-9)).to(torch.uint8).argmax(1, keepdim=True)
    components = components * torch.where(components.gather(1, leading) < 0, -1, 1)
    scale = torch.where(values > 0, values.rsqrt(), 0) if whiten else torch.ones_like(values)
    share = values / whole if whole > 0 else torch.zeros_like(values)
    mean, components, scale, values, share = (t.to(kept).contiguous() for t in (mean, components, scale, values, share))
    return PCA(mean, components, scale, values, share)
