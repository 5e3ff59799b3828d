"""Sampling an image through an affine map: the engine under `views.View.render` and `views.resample`.

A map is a 3x3 float64 matrix from source to output, in continuous coordinates (x to the right, y down) where
pixel (row i, column j) covers [j, j+1] x [i, i+1]. Axis-aligned maps are separable and are done by slicing,
by torch's antialiased `interpolate` or by explicit filter taps; anything else by `grid_sample`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

# Coordinates closer than this to a whole number are taken for it: compositions of float64 matrices are off by
# 1e-12.
SNAP = 1e-6
MODES = ("nearest", "bilinear", "bicubic", "area")


@dataclass(frozen=True)
class Axis:
    """One axis of a separable map: output index j reads the source around start + (j + 0.5) * step.

    Attributes:
        start: source coordinate of the output's lower edge, after undoing the flip.
        step: source pixels per output pixel, positive.
        length: output pixels.
        source: source pixels.
        flipped: whether the output is reversed afterwards.
    """

    start: float
    step: float
    length: int
    source: int
    flipped: bool

    @property
    def end(self) -> float:
        """Source coordinate of the output's upper edge."""
        return _snap(self.start + self.length * self.step)

    @property
    def whole(self) -> bool:
        """Whether the window that is read has whole-pixel edges."""
        return self.start == round(self.start) and self.end == round(self.end)

    @property
    def is_slice(self) -> bool:
        """Whether output pixels are source pixels."""
        return self.step == 1.0 and self.start == round(self.start)

    @property
    def covers(self) -> bool:
        """Whether the window is the whole source."""
        return self.start == 0 and self.end == self.source

    def centres(self) -> Tensor:
        """Source coordinates of the output's pixel centres, unflipped, float64 (length,)."""
        return self.start + (torch.arange(self.length, dtype=torch.float64) + 0.5) * self.step

    def nearest(self) -> Tensor:
        """Source indices of the output's pixels, unflipped; may lie outside the source. int64 (length,)."""
        return torch.floor(self.centres() + SNAP).long()

    def inside(self) -> Tensor:
        """Which output pixels (flip applied) have their centre in the source, bool (length,)."""
        index = self.nearest()
        inside = (index >= 0) & (index < self.source)
        return inside.flip(0) if self.flipped else inside

    def taps(self, mode: str, antialias: bool) -> tuple[Tensor, Tensor]:
        """Source indices int64 (length, T), clamped, and weights float64 (length, T), each row summing to
        1."""
        scale = max(self.step, 1.0) if antialias else 1.0
        radius = {"bilinear": 1.0, "bicubic": 2.0}.get(mode, 0.0) * scale
        centres = self.centres()[:, None]
        if mode == "area":
            radius = self.step / 2
        count = math.ceil(2 * radius) + 1
        first = torch.floor(centres - radius + SNAP).long()
        index = first + torch.arange(count)
        if mode == "area":
            upper = torch.minimum(index + 1.0, centres + radius)
            weights = (upper - torch.maximum(index.double(), centres - radius)).clamp(min=0)
        else:
            weights = _kernel((index + 0.5 - centres) / scale, mode, antialias)
        if antialias or mode == "area":
            # As torch and PIL: only source pixels count. Without antialiasing torch repeats the border
            # instead.
            weights = torch.where((index >= 0) & (index < self.source), weights, 0.0)
        total = weights.sum(1, keepdim=True)
        # A row with no tap in the source repeats the border pixel.
        lost = total.abs() < 1e-9
        weights = torch.where(lost, 1.0 / count, weights / torch.where(lost, 1.0, total))
        return index.clamp(0, self.source - 1), weights


def _snap(value: float) -> float:
    nearest = round(value)
    return float(nearest) if abs(value - nearest) < SNAP else value


def _kernel(x: Tensor, mode: str, antialias: bool) -> Tensor:
    """Triangle, or the cubic with a = -0.5 (antialiased, as PIL) or -0.75 (as torch without antialiasing)."""
    x = x.abs()
    if mode == "bilinear":
        return (1 - x).clamp(min=0)
    a = -0.5 if antialias else -0.75
    near = ((a + 2) * x - (a + 3)) * x * x + 1
    far = ((a * x - 5 * a) * x + 8 * a) * x - 4 * a
    return torch.where(x <= 1, near, torch.where(x < 2, far, torch.zeros_like(x)))


def inverse(matrix: Tensor) -> Tensor:
    """Closed-form inverse of an affine 3x3 matrix: exact for whole-pixel crops and flips.

    Raises:
        ValueError: when the map has no area.
    """
    (a, b, tx), (c, d, ty), _ = matrix.tolist()
    det = a * d - b * c
    if det == 0 or not math.isfinite(det):
        raise ValueError("a view whose matrix maps the image to no area has no inverse")
    ia, ib, ic, id_ = d / det, -b / det, -c / det, a / det
    rows = [[ia, ib, -(ia * tx + ib * ty)], [ic, id_, -(ic * tx + id_ * ty)], [0.0, 0.0, 1.0]]
    return torch.tensor(rows, dtype=torch.float64)


def separable(matrix: Tensor, size: tuple[int, int], source: tuple[int, int]) -> tuple[Axis, Axis, bool] | None:
    """The vertical and horizontal axis of a map and whether the source is transposed first; None if not
    separable.

    Args:
        matrix: source to output, (3, 3).
        size: output (h, w).
        source: source (H, W).
    """
    (a, b, tx), (c, d, ty), _ = matrix.tolist()
    limit = SNAP / max(*source, 1)
    transposed = False
    if max(abs(b), abs(c)) >= limit:
        if max(abs(a), abs(d)) >= limit:
            return None
        transposed, a, d, source = True, b, c, (source[1], source[0])
    return _axis(d, ty, size[0], source[0]), _axis(a, tx, size[1], source[1]), transposed


def _axis(scale: float, shift: float, length: int, source: int) -> Axis:
    flipped = scale < 0
    if flipped:
        scale, shift = -scale, length - shift
    step = 1.0 / scale
    # A step that is a whole number up to rounding over the whole length is that number.
    if abs(step - round(step)) * max(length, 1) < SNAP and round(step) > 0:
        step = float(round(step))
    return Axis(_snap(-shift / scale), step, length, source, flipped)


def source_grid(matrix: Tensor, size: tuple[int, int]) -> Tensor:
    """Source coordinates (x, y) of the output's pixel centres, float64 (h, w, 2)."""
    m = inverse(matrix)
    y = torch.arange(size[0], dtype=torch.float64)[:, None] + 0.5
    x = torch.arange(size[1], dtype=torch.float64)[None] + 0.5
    return torch.stack((m[0, 0] * x + m[0, 1] * y + m[0, 2], m[1, 0] * x + m[1, 1] * y + m[1, 2]), -1)


def inside(matrix: Tensor, size: tuple[int, int], source: tuple[int, int]) -> Tensor:
    """Which output pixels have their centre in the source, bool (h, w)."""
    axes = separable(matrix, size, source)
    if axes is not None:
        return axes[0].inside()[:, None] & axes[1].inside()[None]
    grid = torch.floor(source_grid(matrix, size) + SNAP)
    return ((grid >= 0) & (grid < torch.tensor([source[1], source[0]]))).all(-1)


def render(
    x: Tensor,
    matrix: Tensor,
    size: tuple[int, int],
    *,
    mode: str = "bilinear",
    antialias: bool = True,
    fill: float | Sequence[float] | None = 0.0,
    window: bool = True,
) -> Tensor:
    """Samples `x` through `matrix`.

    Args:
        x: source (B, C, H, W), any dtype; whole-number dtypes are rounded and clamped, floats keep gradients.
        matrix: source to output, float64 (3, 3).
        size: output (h, w).
        mode: "nearest", "bilinear", "bicubic" or "area" (mean over the output pixel's footprint).
        antialias: whether shrinking widens the filter to the footprint of the output pixel.
        fill: value of output pixels whose centre is outside the source, one or one a channel; None keeps the
            repeated border.
        window: whether a window with whole-pixel edges is cut out first and then resized (as torchvision's
            `resized_crop`, and fast); False lets its outermost pixels look beyond the window.

    Returns:
        (B, C, h, w) of the same dtype.

    Raises:
        ValueError: unknown mode, or an empty source.
    """
    if mode not in MODES:
        raise ValueError(f"unknown resampling mode {mode!r}, expected one of {', '.join(MODES)}")
    if x.dim() != 4 or 0 in x.shape[-2:]:
        raise ValueError(f"expected (B, C, H, W) with at least one pixel, got {tuple(x.shape)}")
    source = (x.shape[-2], x.shape[-1])
    axes = separable(matrix, size, source)
    if axes is None:
        out = _render_grid(x, matrix, size, mode, antialias)
        valid = None if fill is None else inside(matrix, size, source)
    else:
        rows, columns, transposed = axes
        out = _render_axes(x.transpose(-1, -2) if transposed else x, rows, columns, mode, antialias, window)
        dims = [d for d, axis in ((-2, rows), (-1, columns)) if axis.flipped]
        out = out.flip(dims) if dims else out
        contained = all(a.start >= 0 and a.end <= a.source for a in (rows, columns))
        valid = None if fill is None or contained else rows.inside()[:, None] & columns.inside()[None]
    if valid is not None and not bool(valid.all()):
        value = torch.as_tensor(fill, device=x.device).to(out.dtype).reshape(-1, 1, 1)
        out = torch.where(valid.to(x.device), out, value)
    return out


def _render_axes(x: Tensor, rows: Axis, columns: Axis, mode: str, antialias: bool, window: bool) -> Tensor:
    if rows.is_slice and columns.is_slice:
        return _cut(x, rows, columns)
    if mode == "nearest":
        ys = rows.nearest().clamp(0, rows.source - 1).to(x.device)
        xs = columns.nearest().clamp(0, columns.source - 1).to(x.device)
        return x.index_select(-2, ys).index_select(-1, xs)
    whole = rows.whole and columns.whole
    if mode in ("bilinear", "bicubic") and whole and (window or (rows.covers and columns.covers)):
        cut = _cut(x, rows, columns)
        size = (rows.length, columns.length)
        if x.dtype == torch.uint8:
            return F.interpolate(cut, size, mode=mode, antialias=antialias, align_corners=False)
        out = F.interpolate(_floating(cut), size, mode=mode, antialias=antialias, align_corners=False)
        return _restore(out, x.dtype)
    out = _apply_taps(_floating(x), rows, -2, mode, antialias)
    return _restore(_apply_taps(out, columns, -1, mode, antialias), x.dtype)


def _cut(x: Tensor, rows: Axis, columns: Axis) -> Tensor:
    """The source pixels of a whole-pixel window; beyond the source the border repeats."""
    for dim, axis in ((-2, rows), (-1, columns)):
        start, end = int(axis.start), int(axis.end)
        if start >= 0 and end <= axis.source:
            x = x.narrow(dim, start, end - start)
        else:
            x = x.index_select(dim, torch.arange(start, end, device=x.device).clamp_(0, axis.source - 1))
    return x


def _apply_taps(x: Tensor, axis: Axis, dim: int, mode: str, antialias: bool) -> Tensor:
    if axis.is_slice:
        return x.index_select(dim, axis.nearest().clamp(0, axis.source - 1).to(x.device))
    index, weights = axis.taps(mode, antialias)
    index, weights = index.to(x.device), weights.to(x)
    shape = (-1, 1) if dim == -2 else (-1,)
    out = x.index_select(dim, index[:, 0]) * weights[:, 0].reshape(shape)
    for t in range(1, index.shape[1]):
        out = torch.addcmul(out, x.index_select(dim, index[:, t]), weights[:, t].reshape(shape))
    return out


def _render_grid(x: Tensor, matrix: Tensor, size: tuple[int, int], mode: str, antialias: bool) -> Tensor:
    source = (x.shape[-2], x.shape[-1])
    if mode == "nearest":
        grid = torch.floor(source_grid(matrix, size) + SNAP).long()
        xs, ys = grid[..., 0].clamp(0, source[1] - 1), grid[..., 1].clamp(0, source[0] - 1)
        return x[..., ys.to(x.device), xs.to(x.device)]
    value = _floating(x)
    shrink = math.sqrt(abs(float(matrix[0, 0] * matrix[1, 1] - matrix[0, 1] * matrix[1, 0])))
    if (antialias or mode == "area") and shrink < 1:
        small = (max(1, math.ceil(source[0] * shrink)), max(1, math.ceil(source[1] * shrink)))
        value = F.interpolate(value, small, mode="bilinear", antialias=True, align_corners=False)
        back = torch.diag(torch.tensor([source[1] / small[1], source[0] / small[0], 1.0], dtype=torch.float64))
        matrix, source = matrix @ back, small
    grid = source_grid(matrix, size) * torch.tensor([2 / source[1], 2 / source[0]], dtype=torch.float64) - 1
    batched = grid.to(value)[None].expand(x.shape[0], -1, -1, -1)
    kind = "bicubic" if mode == "bicubic" else "bilinear"
    return _restore(F.grid_sample(value, batched, kind, "border", align_corners=False), x.dtype)


def _floating(x: Tensor) -> Tensor:
    return x if x.is_floating_point() else x.float()


def _restore(x: Tensor, dtype: torch.dtype) -> Tensor:
    if dtype.is_floating_point:
        return x.to(dtype)
    if dtype == torch.bool:
        return x >= 0.5
    limits = torch.iinfo(dtype)
    return x.round().clamp(limits.min, limits.max).to(dtype)
