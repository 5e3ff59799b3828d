"""Views of an image with recorded geometry: which pixel of a crop is which point of the photograph.

A view is a 3x3 matrix from the source's continuous pixel coordinates to its own: (x, y) with x to the right
and y down, pixel (row i, column j) covering [j, j+1] x [i, i+1], its centre at (j + 0.5, i + 0.5). That is
the convention of `align_corners=False`, that of images, masks and logits here. Crops, flips, resizes and rotations
multiply matrices; features, labels and boxes move between two views of one source through `a.matrix_to(b)`.

The idea of storing one matrix a view is Soft Teacher's (Xu et al., ICCV 2021); PASS, PiCIE, IIC, SlotCon,
Leopart and CAC each need some part of it.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from maskwright.data.pictures.deep import Range
from maskwright.data.pictures.images import image_size, read_image, read_resized
from maskwright.data.training import rendering

Size = tuple[int, int]

# Coordinate that `shared_grid` gives to points which do not exist: grid_sample with zero padding reads 0
# there.
NOWHERE = -2.0


@dataclass(frozen=True, eq=False)
class View:
    """A window on a source image.

    Attributes:
        matrix: float64 (3, 3), affine, from source coordinates to view coordinates, in pixels.
        size: (h, w) of the view, pixels.
        source_size: (H, W) of the source, pixels.
    """

    matrix: Tensor
    size: Size
    source_size: Size
    _inverse: list[Tensor] = field(default_factory=list, repr=False)

    @staticmethod
    def identity(size: Sequence[int]) -> View:
        """The view that is the source itself, (H, W)."""
        h, w = int(size[0]), int(size[1])
        if h < 1 or w < 1:
            raise ValueError(f"a view needs at least one pixel, got {h} x {w}")
        return View(torch.eye(3, dtype=torch.float64), (h, w), (h, w))

    def _then(self, rows: list[list[float]], size: Sequence[int]) -> View:
        h, w = int(size[0]), int(size[1])
        if h < 1 or w < 1:
            raise ValueError(f"a view needs at least one pixel, got {h} x {w}")
        step = torch.tensor([*rows, [0.0, 0.0, 1.0]], dtype=torch.float64)
        return View(step @ self.matrix, (h, w), self.source_size)

    def crop(self, top: float, left: float, height: int, width: int) -> View:
        """The window whose upper left corner is at (top, left).

        It may exceed this view: beyond lies what the source has there, and beyond the source nothing (not
        valid).
        """
        return self._then([[1, 0, -float(left)], [0, 1, -float(top)]], (height, width))

    def window(self, top: float, left: float, height: float, width: float, size: Size) -> View:
        """The window of this height and width, whole pixels or not, resized to `size`."""
        sy, sx = size[0] / height, size[1] / width
        return self._then([[sx, 0, -left * sx], [0, sy, -top * sy]], size)

    def resize(self, height: int, width: int) -> View:
        """The same window with another number of pixels."""
        return self._then([[width / self.size[1], 0, 0], [0, height / self.size[0], 0]], (height, width))

    def hflip(self) -> View:
        """Mirrored left to right."""
        return self._then([[-1, 0, self.size[1]], [0, 1, 0]], self.size)

    def vflip(self) -> View:
        """Mirrored top to bottom."""
        return self._then([[1, 0, 0], [0, -1, self.size[0]]], self.size)

    def rotate(self, degrees: float, expand: bool = False) -> View:
        """Rotated counter-clockwise, as seen, about the centre.

        Args:
            degrees: the angle; multiples of 90 are exact.
            expand: whether the view grows to hold all of the rotated one; otherwise it keeps its size.
        """
        quarter = degrees / 90
        if quarter == round(quarter):
            cos, sin = [(1.0, 0.0), (0.0, 1.0), (-1.0, 0.0), (0.0, -1.0)][round(quarter) % 4]
        else:
            cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
        h, w = self.size
        size = self.size
        if expand:
            size = (
                math.ceil(abs(sin) * w + abs(cos) * h - rendering.SNAP),
                math.ceil(abs(cos) * w + abs(sin) * h - rendering.SNAP),
            )
        cx, cy, nx, ny = w / 2, h / 2, size[1] / 2, size[0] / 2
        rows = [[cos, sin, nx - cos * cx - sin * cy], [-sin, cos, ny + sin * cx - cos * cy]]
        return self._then(rows, size)

    @property
    def inverse(self) -> Tensor:
        """Float64 (3, 3) from view coordinates to source coordinates; exact for whole-pixel crops and
        flips."""
        if not self._inverse:
            self._inverse.append(rendering.inverse(self.matrix))
        return self._inverse[0]

    def matrix_to(self, other: View) -> Tensor:
        """Float64 (3, 3) from this view's coordinates to those of another view of the same source."""
        _same_source(self, other)
        return other.matrix @ self.inverse

    @property
    def flipped(self) -> tuple[bool, bool]:
        """Whether an axis-aligned view is mirrored (left to right, top to bottom)."""
        return bool(self.matrix[0, 0] < 0), bool(self.matrix[1, 1] < 0)

    def corners(self) -> Tensor:
        """The view's four corners in source coordinates, (4, 2) as (x, y), in order around the view."""
        h, w = self.size
        square = torch.tensor([[0, 0], [w, 0], [w, h], [0, h]], dtype=torch.float64)
        return transform_points(self.inverse, square)

    def valid(self) -> Tensor:
        """Bool (h, w): which pixels have their centre inside the source."""
        return rendering.inside(self.matrix, self.size, self.source_size)

    def render(
        self,
        image: Tensor | np.ndarray,
        *,
        mode: str = "bilinear",
        antialias: bool = True,
        fill: float | Sequence[float] | None = 0.0,
    ) -> Tensor | np.ndarray:
        """The pixels of this view.

        Whole-pixel crops and flips are slices, bit for bit. A window with whole-pixel edges is cut out and
        resized, so its outermost pixels do not look beyond it (torchvision's `resized_crop`).

        Args:
            image: the source: a tensor (C, H, W) or (B, C, H, W) of any dtype, or an array (H, W, 3) or (H,
                W).
            mode: "bilinear", "bicubic", "area" or "nearest".
            antialias: whether shrinking averages over the footprint of a pixel.
            fill: value outside the source, one or one a channel; None repeats the border.

        Returns:
            The same kind and dtype as `image`, (.., h, w).

        Raises:
            ValueError: when the image is not of the view's source size.
        """
        if isinstance(image, np.ndarray):
            planes = torch.from_numpy(np.require(image, requirements=["C", "W"]))
            planes = planes.permute(2, 0, 1) if image.ndim == 3 else planes[None]
            out = self._render(planes[None], mode, antialias, fill)[0]
            array = (out.permute(1, 2, 0) if image.ndim == 3 else out[0]).numpy()
            return np.ascontiguousarray(array)
        if image.dim() == 3:
            return self._render(image[None], mode, antialias, fill)[0]
        return self._render(image, mode, antialias, fill)

    def read(self, path: str | os.PathLike[str], *, range: Range = None) -> np.ndarray:
        """The pixels of this view straight from an image file, uint8 (h, w, 3).

        Where the view is a whole-pixel window inside the image, mirrored or not, no more is decoded and
        resized than it needs (`images.read_resized`); otherwise the whole image is decoded and rendered.

        Args:
            path: the file.
            range: of images of more than 8 bits, as for `images.read_image`.

        Raises:
            MaskwrightError: an unreadable file.
            ValueError: when the image is not of the view's source size.
        """
        axes = rendering.separable(self.matrix, self.size, self.source_size)
        if axes is not None and not axes[2]:
            rows, columns, _ = axes
            if all(a.whole and a.start >= 0 and a.end <= a.source for a in (rows, columns)):
                found = image_size(path)
                if found != self.source_size:
                    raise ValueError(f"an image of {found} pixels for a view of a source of {self.source_size}")
                top, left = int(rows.start), int(columns.start)
                window = (top, left, int(rows.end) - top, int(columns.end) - left)
                pixels = read_resized(path, self.size, window, range=range)
                mirrored = pixels[:: -1 if rows.flipped else 1, :: -1 if columns.flipped else 1]
                return np.ascontiguousarray(mirrored)
        rendered = self.render(read_image(path, range=range))
        assert isinstance(rendered, np.ndarray)
        return rendered

    def _render(self, x: Tensor, mode: str, antialias: bool, fill: float | Sequence[float] | None) -> Tensor:
        if tuple(x.shape[-2:]) != self.source_size:
            raise ValueError(f"an image of {tuple(x.shape[-2:])} pixels for a view of a source of {self.source_size}")
        return rendering.render(x, self.matrix, self.size, mode=mode, antialias=antialias, fill=fill)


@dataclass(frozen=True, eq=False)
class Overlap:
    """What two views share.

    Attributes:
        polygon: corners of the shared area in source coordinates, float64 (K, 2) as (x, y), convex.
        box_a: (x0, y0, x1, y1) of its bounds in the first view's pixels; exact for axis-aligned views.
        box_b: the same in the second view's pixels.
        area: source pixels shared.
        union: source pixels in either view, outside of the source not counted.
    """

    polygon: Tensor
    box_a: tuple[float, float, float, float]
    box_b: tuple[float, float, float, float]
    area: float
    union: float

    @property
    def iou(self) -> float:
        """Shared area over the area in either view."""
        return self.area / self.union


def _same_source(a: View, b: View) -> None:
    if a.source_size != b.source_size:
        raise ValueError(f"views of different sources, {a.source_size} and {b.source_size} pixels")


def transform_points(matrix: Tensor, points: Tensor) -> Tensor:
    """Applies a 3x3 matrix to points (..., 2) given as (x, y)."""
    points = points.to(matrix)
    return points @ matrix[:2, :2].T + matrix[:2, 2]


def overlap(a: View, b: View) -> Overlap | None:
    """The area of the source that two views share (padding outside the source does not count), or None.

    Raises:
        ValueError: views of different sources.
    """
    _same_source(a, b)
    height, width = a.source_size
    source = [(0.0, 0.0), (float(width), 0.0), (float(width), float(height)), (0.0, float(height))]
    in_a = _clip(_corner_list(a), source)
    in_b = _clip(_corner_list(b), source)
    shared = _clip(in_a, in_b)
    area = _area(shared)
    if len(shared) < 3 or area <= rendering.SNAP * rendering.SNAP:
        return None
    polygon = torch.tensor(shared, dtype=torch.float64)
    boxes = []
    for view in (a, b):
        points = transform_points(view.matrix, polygon)
        low, high = points.amin(0), points.amax(0)
        boxes.append((float(low[0]), float(low[1]), float(high[0]), float(high[1])))
    return Overlap(polygon, boxes[0], boxes[1], area, _area(in_a) + _area(in_b) - area)


def _corner_list(view: View) -> list[tuple[float, float]]:
    points = [(float(x), float(y)) for x, y in view.corners().tolist()]
    return points if _signed_area(points) > 0 else points[::-1]


def _signed_area(points: list[tuple[float, float]]) -> float:
    following = points[1:] + points[:1]
    return 0.5 * sum(x0 * y1 - x1 * y0 for (x0, y0), (x1, y1) in zip(points, following))


def _area(points: list[tuple[float, float]]) -> float:
    return abs(_signed_area(points)) if len(points) > 2 else 0.0


def _clip(subject: list[tuple[float, float]], window: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """Sutherland and Hodgman: the part of a convex polygon inside another, both with positive signed area."""
    if len(window) < 3:
        return []
    for (x0, y0), (x1, y1) in zip(window, window[1:] + window[:1]):
        if not subject:
            return []
        side = [(x1 - x0) * (y - y0) - (y1 - y0) * (x - x0) for x, y in subject]
        kept: list[tuple[float, float]] = []
        for k, (point, s) in enumerate(zip(subject, side)):
            before, s_before = subject[k - 1], side[k - 1]
            if (s > 0) != (s_before > 0) and s != 0 and s_before != 0:
                t = s_before / (s_before - s)
                kept.append((before[0] + t * (point[0] - before[0]), before[1] + t * (point[1] - before[1])))
            if s >= 0:
                kept.append(point)
        subject = kept
    return subject


def sample_points(view: View, points: Tensor) -> Tensor:
    """Where points of the source lie in a view, for `grid_sample(..., align_corners=False)`.

    Args:
        view: the view.
        points: source coordinates (..., 2) as (x, y), pixels.

    Returns:
        float64 (..., 2), -1 and 1 being the view's edges; beyond them outside the view.
    """
    h, w = view.size
    inside = transform_points(view.matrix, points)
    return inside * torch.tensor([2 / w, 2 / h], dtype=inside.dtype) - 1


def shared_grid(a: View, b: View, grid: int = 7, *, corners: bool = True) -> tuple[Tensor, Tensor]:
    """A grid of points in the overlap of two views, in each view's normalised coordinates (PASS, TPAMI 2022).

    The same row and column is the same point of the source in both, mirrored views included.

    Args:
        a: first view.
        b: second view of the same source.
        grid: points a side, G.
        corners: whether the outermost points lie on the overlap's edges, as in PASS; otherwise at the centres
            of G x G cells.

    Returns:
        Two float32 (G, G, 2) for `grid_sample(align_corners=False, padding_mode="zeros")`. Points that are
        not in both views are -2, where zero padding reads 0.
    """
    shared = overlap(a, b)
    if shared is None:
        nowhere = torch.full((grid, grid, 2), NOWHERE)
        return nowhere, nowhere.clone()
    low, high = shared.polygon.amin(0), shared.polygon.amax(0)
    if corners and grid > 1:
        t = torch.linspace(0, 1, grid, dtype=torch.float64)
    else:
        t = (torch.arange(grid, dtype=torch.float64) + 0.5) / grid
    x, y = low[0] + t * (high[0] - low[0]), low[1] + t * (high[1] - low[1])
    points = torch.stack((x[None].expand(grid, -1), y[:, None].expand(-1, grid)), -1)
    in_a, in_b = sample_points(a, points), sample_points(b, points)
    # Rotated views: the bounds of the shared polygon hold points that are in neither.
    outside = (torch.maximum(in_a.abs(), in_b.abs()) > 1 + 1e-9).any(-1, keepdim=True)
    return in_a.masked_fill(outside, NOWHERE).float(), in_b.masked_fill(outside, NOWHERE).float()


def _scaling(size: Size, to: Size) -> Tensor:
    return torch.diag(torch.tensor([to[1] / size[1], to[0] / size[0], 1.0], dtype=torch.float64))


def resample(
    x: Tensor,
    a: View | Sequence[View],
    b: View | Sequence[View],
    size: Size | None = None,
    mode: str = "bilinear",
    *,
    antialias: bool = False,
) -> tuple[Tensor, Tensor]:
    """Features, probabilities or labels that cover view `a`, as view `b` would see them.

    Args:
        x: (C, h, w) or (B, C, h, w) of any resolution, covering all of view `a`.
        a: the view that x is of, or one for each of B.
        b: the view to show it in, or one for each of B.
        size: (h, w) of the result; by default view b at the same pixels per view pixel as x has on a.
        mode: "bilinear", "bicubic", "nearest" or "area".
        antialias: whether shrinking averages over the footprint of a pixel.

    Returns:
        The result (..., C, h, w), 0 where x does not reach, differentiable in x; and valid bool (h, w), or
        (B, h, w) for sequences of views: where the point lies in view a and in the source. A view onto itself
        is exactly the identity.

    Raises:
        ValueError: views of different sources, or as many views as there are not maps.
    """
    if isinstance(a, View) and isinstance(b, View):
        batched = x if x.dim() == 4 else x[None]
        out, valid = _resample_one(batched, a, b, size, mode, antialias)
        return (out if x.dim() == 4 else out[0]), valid
    views_a = [a] * len(x) if isinstance(a, View) else list(a)
    views_b = [b] * len(x) if isinstance(b, View) else list(b)
    if x.dim() != 4 or len(views_a) != len(x) or len(views_b) != len(x):
        raise ValueError(f"{len(views_a)} and {len(views_b)} views for features of shape {tuple(x.shape)}")
    pairs = [
        _resample_one(x[i : i + 1], va, vb, size, mode, antialias) for i, (va, vb) in enumerate(zip(views_a, views_b))
    ]
    return torch.cat([out for out, _ in pairs]), torch.stack([valid for _, valid in pairs])


def _resample_one(x: Tensor, a: View, b: View, size: Size | None, mode: str, antialias: bool) -> tuple[Tensor, Tensor]:
    _same_source(a, b)
    shape = (x.shape[-2], x.shape[-1])
    if size is None:
        size = (
            max(1, round(b.size[0] * shape[0] / a.size[0])),
            max(1, round(b.size[1] * shape[1] / a.size[1])),
        )
    same = a.size == b.size and torch.equal(a.matrix, b.matrix)
    between = torch.eye(3, dtype=torch.float64) if same else a.matrix_to(b)
    matrix = _scaling(b.size, size) @ between @ _scaling(shape, a.size)
    valid = rendering.inside(matrix, size, shape)
    valid &= rendering.inside(_scaling(b.size, size) @ b.matrix, size, b.source_size)
    out = rendering.render(x, matrix, size, mode=mode, antialias=antialias, fill=0, window=False)
    return torch.where(valid.to(x.device), out, torch.zeros((), dtype=out.dtype, device=x.device)), valid.to(x.device)
