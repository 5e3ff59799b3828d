"""Gaussian filtering in a space of few dimensions on the permutohedral lattice.

The sum over all pairs of points, sum_j exp(-|f_i - f_j|^2 / 2) v_j, in time linear in the number of points: values are
splatted to the corners of the simplex around each point, blurred along the D = d + 1 axes of the lattice, and sliced.

What makes it fast here:
    the blur runs in place along chains of neighbours, each row read and written once, a lone vertex not at all;
    the splat gathers by vertex, so that threads never write the same row;
    a vertex key is one integer, a step along an axis one addition.

Legend: N points, d dimensions, D = d + 1 corners of a simplex and axes of the lattice, M vertices, P channels (in
eights).

Source: Adams, Baek and Davis, Fast High-Dimensional Filtering Using the Permutohedral Lattice, Eurographics 2010.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
from numba import njit

from maskwright.ops.lanes import LANES, add8, axpy8, load8, same8, store8
from maskwright.ops.threads import Threads

_KEY_BITS = 62
_MARGIN = 4  # lattice cells around the outermost point: the corners of its simplex and their neighbours


@dataclass(frozen=True)
class Lattice:
    """A permutohedral lattice around N points; what depends on positions only, built once an image.

    Attributes:
        dim: d.
        size: M.
        corner: (N D,) int32, the vertices of each point's simplex.
        weight: (N D,) float32, its barycentric coordinates, in [0, 1] and summing to 1 a point.
        first: (M + 1,) int64, where each vertex begins in `source`.
        source: (N D,) int32, the points around each vertex, in rising order.
        pull: (N D,) float32, the barycentric coordinates in that order.
        chains: for each of the D axes (members int32, starts int64): vertices that follow one another on the axis,
            chains of one left out.
    """

    dim: int
    size: int
    corner: np.ndarray
    weight: np.ndarray
    first: np.ndarray
    source: np.ndarray
    pull: np.ndarray
    chains: list[tuple[np.ndarray, np.ndarray]]

    @property
    def points(self) -> int:
        """N."""
        return len(self.corner) // (self.dim + 1)

    @property
    def gain(self) -> float:
        """What a sliced value is multiplied by: the paper's constant, which leaves about half a Gaussian at d = 5."""
        return 1.0 / (1.0 + 2.0**-self.dim)

    def scaled(self, factor: np.ndarray, after: float = 1.0) -> Lattice:
        """The lattice whose filter takes `factor * v` and gives `after * factor * (K v)`, N factors."""
        factor = factor.astype(np.float32)
        weight = self.weight * np.repeat(factor, self.dim + 1) * np.float32(after)
        return replace(self, weight=weight, pull=self.pull * factor[self.source])

    def filter(self, values: np.ndarray, threads: Threads | None = None) -> np.ndarray:
        """Filters every column: in proportion to sum_j exp(-|f_i - f_j|^2 / 2) v_j, the point itself among the j.

        Exact to some percent but for a common factor; divide by the filtered ones for a mean.

        Args:
            values: float32 (N, P), any P.
            threads: where to run; None in this thread.

        Returns:
            float32 (N, P).

        Raises:
            ValueError: for values of another number of points.
        """
        if values.ndim != 2 or len(values) != self.points:
            raise ValueError(f"values of shape {values.shape}: expected ({self.points}, channels)")
        threads = threads or Threads(1)
        channels = values.shape[1]
        width = -(-channels // LANES) * LANES
        padded = np.zeros((self.points, width), np.float32)
        padded[:, :channels] = values
        vertices = np.empty(self.size * width, np.float32)
        spread([self], padded, 0, width, [vertices], threads)
        out = padded.reshape(-1)
        threads.run(
            [
                partial(_slice, self.corner, self.weight, self.dim + 1, vertices, out, width, low, high)
                for low, high in threads.split(self.points)
            ]
        )
        return padded[:, :channels] * np.float32(self.gain)


def spread(
    lattices: Sequence[Lattice],
    values: np.ndarray,
    column: int,
    width: int,
    into: Sequence[np.ndarray],
    threads: Threads,
) -> None:
    """Splats some channels of the same values onto each lattice and blurs them there.

    Args:
        lattices: lattices over the same N points.
        values: float32 (N, P), C-contiguous.
        column: first of the channels to take.
        width: how many, a multiple of 8.
        into: for each lattice float32 (M width,) or longer, written.
        threads: where to run.
    """
    flat, stride = values.reshape(-1), values.shape[1]
    threads.run(
        [
            partial(_splat, grid.first, grid.source, grid.pull, flat, stride, column, out, width, low, high)
            for grid, out in zip(lattices, into)
            for low, high in threads.split(grid.size)
        ]
    )
    for axis in range(max(grid.dim for grid in lattices) + 1):
        tasks = []
        for grid, out in zip(lattices, into):
            if axis > grid.dim:
                continue
            members, starts = grid.chains[axis]
            for low, high in threads.split(len(members)):
                tasks.append(partial(_blur, members, starts, out, width, *np.searchsorted(starts, (low, high))))
        threads.run(tasks)


def build_lattices(sets: Sequence[np.ndarray], threads: Threads | None = None) -> list[Lattice]:
    """Builds a lattice around each set of points, in units of the kernel's standard deviation.

    Args:
        sets: float32 (N, d) each, N at least 1, d from 1 to 16.
        threads: where to run; None in this thread.

    Returns:
        One lattice a set.

    Raises:
        ValueError: for another shape, for coordinates that are not finite, and for points so far apart that a vertex
            key does not fit 62 bits (at d = 5 about 12000 standard deviations).
    """
    threads = threads or Threads(1)
    plans = [_Plan(points) for points in sets]
    threads.run([partial(plan.place, low, high) for plan in plans for low, high in threads.split(plan.count)])
    threads.run([plan.number for plan in plans])
    links = [partial(plan.link, axis) for plan in plans for axis in range(plan.corners)]
    threads.run([*links, *(plan.invert for plan in plans)])
    return [plan.lattice() for plan in plans]


class _Plan:
    """A lattice in the making: the steps that can run beside one another, in the order of `build_lattices`."""

    def __init__(self, points: np.ndarray) -> None:
        if points.ndim != 2 or not len(points) or not 1 <= points.shape[1] <= 16:
            raise ValueError(f"points of shape {points.shape}: expected (N, d), N at least 1 and d from 1 to 16")
        self.points = np.ascontiguousarray(points, dtype=np.float32)
        self.count, dim = points.shape
        self.corners = dim + 1
        steps = np.arange(1.0, dim + 1)
        # a blur by (1/2, 1, 1/2) along every axis has variance 2/3 D^2 in the elevated space (page 6 of the paper)
        self.scale = np.sqrt(2.0 / 3.0) * self.corners / np.sqrt(steps * (steps + 1))
        self.base, self.shift = _key_layout(self.points, self.scale)
        self.keys = np.empty(self.count * self.corners, np.int64)
        self.weight = np.empty(self.count * self.corners, np.float32)
        self.chains: dict[int, tuple[np.ndarray, np.ndarray]] = {}

    def place(self, low: int, high: int) -> None:
        scale = self.scale.astype(np.float32)
        _simplices(self.points, scale, self.base, self.shift, self.keys, self.weight, low, high)

    def number(self) -> None:
        self.corner, self.table_keys, self.table_ids, self.vertex_keys = _number(self.keys, self.corners)

    def invert(self) -> None:
        self.first = np.empty(len(self.vertex_keys) + 1, np.int64)
        self.source = np.empty(len(self.corner), np.int32)
        self.pull = np.empty(len(self.corner), np.float32)
        _invert(self.corner, self.weight, self.corners, self.first, self.source, self.pull)

    def link(self, axis: int) -> None:
        self.chains[axis] = _link(self.vertex_keys, self.table_keys, self.table_ids, self.shift, axis)

    def lattice(self) -> Lattice:
        chains = [self.chains[axis] for axis in range(self.corners)]
        return Lattice(
            self.corners - 1,
            len(self.vertex_keys),
            self.corner,
            self.weight,
            self.first,
            self.source,
            self.pull,
            chains,
        )


def _key_layout(points: np.ndarray, scale: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Lowest cell of each of the d kept coordinates and its place in the key, above the 5 bits of the remainder."""
    low, high = points.min(axis=0).astype(np.float64), points.max(axis=0).astype(np.float64)
    if not (np.isfinite(low).all() and np.isfinite(high).all()):
        raise ValueError("points that are not finite: expected finite coordinates")
    dim = len(scale)
    base, shift, bits = np.empty(dim, np.int64), np.empty(dim, np.int64), 5
    for i in range(dim):
        # the elevated coordinate i is - i c_(i-1) + the sum of c_k over k >= i, with c = scale * point
        weights = np.concatenate([np.zeros(max(i - 1, 0)), [-float(i)] if i else [], np.ones(dim - i)]) * scale
        ends = np.stack([weights * low, weights * high])
        cells = ends.min(axis=0).sum() / (dim + 1), ends.max(axis=0).sum() / (dim + 1)
        base[i] = np.floor(cells[0]) - _MARGIN
        shift[i] = bits
        bits += int(np.ceil(cells[1]) + _MARGIN + 1 - base[i]).bit_length()
    if bits > _KEY_BITS:
        spread = ", ".join(f"{h - l:.4g}" for l, h in zip(low, high))
        raise ValueError(f"points spread over {spread} standard deviations: expected less, so take larger sigmas")
    return base, shift


@njit(cache=True, nogil=True)
def _simplices(points, scale, base, shift, keys, weight, low, high):
    """Packed keys and barycentric coordinates of the corners of each point's simplex."""
    dim = points.shape[1]
    corners = dim + 1
    shrink = np.float32(1.0) / np.float32(corners)
    elevated = np.empty(corners, np.float32)
    cell = np.empty(corners, np.int64)
    rank = np.empty(corners, np.int64)
    share = np.empty(corners + 1, np.float32)
    for n in range(low, high):
        total = np.float32(0.0)
        for i in range(dim, 0, -1):
            c = points[n, i - 1] * scale[i - 1]
            elevated[i] = total - np.float32(i) * c
            total += c
        elevated[0] = total
        off = 0
        for i in range(corners):
            cell[i] = np.int64(np.rint(elevated[i] * shrink))
            off += cell[i]
            elevated[i] -= np.float32(cell[i] * corners)
            rank[i] = 0
        for i in range(dim):
            for j in range(i + 1, corners):
                behind = np.int64(elevated[i] < elevated[j])
                rank[i] += behind
                rank[j] += 1 - behind
        # rounding may leave the plane where coordinates sum to zero; the coordinates rounded furthest go back
        for i in range(corners):
            rank[i] += off
            if rank[i] < 0:
                rank[i] += corners
                cell[i] += 1
                elevated[i] -= np.float32(corners)
            elif rank[i] >= corners:
                rank[i] -= corners
                cell[i] -= 1
                elevated[i] += np.float32(corners)
        for i in range(corners + 1):
            share[i] = 0.0
        for i in range(corners):
            v = elevated[i] * shrink
            share[dim - rank[i]] += v
            share[corners - rank[i]] -= v
        share[0] += np.float32(1.0) + share[corners]
        start = np.int64(0)
        for i in range(dim):
            start += (cell[i] - base[i]) << shift[i]
        for r in range(corners):
            # corner r is r steps up in every coordinate, and one cell down in those of the r highest ranks
            key = start + r
            for i in range(dim):
                if rank[i] > dim - r:
                    key -= np.int64(1) << shift[i]
            keys[n * corners + r] = key
            weight[n * corners + r] = share[r]


@njit(cache=True, nogil=True, inline="always")
def _slot(key, bits):
    """Where a key's search begins: the high bits of its product with the golden ratio."""
    return np.int64((np.uint64(key) * np.uint64(0x9E3779B97F4A7C15)) >> np.uint64(64 - bits))


@njit(cache=True, nogil=True)
def _find(table_keys, table_ids, bits, key):
    """The vertex of a key, or -1."""
    wrap = len(table_keys) - 1
    h = _slot(key, bits)
    while table_keys[h] != -1:
        if table_keys[h] == key:
            return table_ids[h]
        h = (h + 1) & wrap
    return np.int32(-1)


@njit(cache=True, nogil=True)
def _bits(capacity):
    bits = 0
    while (1 << bits) < capacity:
        bits += 1
    return bits


@njit(cache=True, nogil=True)
def _number(keys, corners):
    """Numbers the distinct keys in order of appearance, with an open-addressing table that stays at most half full."""
    bits = max(10, _bits(len(keys) // corners))
    table_keys = np.full(1 << bits, np.int64(-1))
    table_ids = np.empty(1 << bits, np.int32)
    ids = np.empty(len(keys), np.int32)
    vertex_keys = np.empty(1 << (bits - 1), np.int64)
    size = 0
    for e in range(len(keys)):
        key = keys[e]
        if e >= corners and keys[e - corners] == key:  # neighbouring pixels often share their simplex
            ids[e] = ids[e - corners]
            continue
        h = _slot(key, bits)
        wrap = len(table_keys) - 1
        while table_keys[h] != -1 and table_keys[h] != key:
            h = (h + 1) & wrap
        if table_keys[h] == key:
            ids[e] = table_ids[h]
            continue
        if size == len(vertex_keys):
            bits += 1
            grown = np.empty(1 << (bits - 1), np.int64)
            grown[:size] = vertex_keys
            vertex_keys = grown
            table_keys = np.full(1 << bits, np.int64(-1))
            table_ids = np.empty(1 << bits, np.int32)
            wrap = len(table_keys) - 1
            for v in range(size):
                h = _slot(vertex_keys[v], bits)
                while table_keys[h] != -1:
                    h = (h + 1) & wrap
                table_keys[h] = vertex_keys[v]
                table_ids[h] = v
            h = _slot(key, bits)
            while table_keys[h] != -1:
                h = (h + 1) & wrap
        table_keys[h] = key
        table_ids[h] = size
        vertex_keys[size] = key
        ids[e] = size
        size += 1
    return ids, table_keys, table_ids, vertex_keys[:size].copy()


@njit(cache=True, nogil=True)
def _invert(corner, weight, corners, first, source, pull):
    """From the vertices of each point to the points of each vertex, by counting."""
    size = len(first) - 1
    first[:] = 0
    for e in range(len(corner)):
        first[corner[e] + 1] += 1
    for v in range(size):
        first[v + 1] += first[v]
    for e in range(len(corner)):
        place = first[corner[e]]
        first[corner[e]] = place + 1
        source[place] = e // corners
        pull[place] = weight[e]
    for v in range(size, 0, -1):
        first[v] = first[v - 1]
    first[0] = 0


@njit(cache=True, nogil=True)
def _link(vertex_keys, table_keys, table_ids, shift, axis):
    """Chains of at least two neighbours along one axis: members one after another, and where each chain starts."""
    size, dim = len(vertex_keys), len(shift)
    bits = _bits(len(table_keys))
    carry = np.int64(0)
    for i in range(dim):
        carry += np.int64(1) << shift[i]
    # a step adds 1 to every coordinate and takes D off the axis' own; the last coordinate is not in the key
    step = np.int64(1) - (np.int64(1) << shift[axis] if axis < dim else np.int64(0))
    after = np.empty(size, np.int32)
    led = np.zeros(size, np.uint8)
    linked = 0
    for v in range(size):
        key = vertex_keys[v] + step
        if (vertex_keys[v] & 31) == dim:
            key += carry - (dim + 1)
        found = _find(table_keys, table_ids, bits, key)
        after[v] = found
        if found >= 0:
            led[found] = 1
            linked += 1
    heads = 0
    for v in range(size):
        if led[v] == 0 and after[v] >= 0:
            heads += 1
    members = np.empty(linked + heads, np.int32)
    starts = np.empty(heads + 1, np.int64)
    place = 0
    chain = 0
    for v in range(size):
        if led[v] == 0 and after[v] >= 0:
            starts[chain] = place
            chain += 1
            u = np.int32(v)
            while u >= 0:
                members[place] = u
                place += 1
                u = after[u]
    starts[chain] = place
    return members, starts


@njit(cache=True, nogil=True)
def _splat(first, source, pull, values, stride, column, out, width, low, high):
    """Three or one accumulators at a time: a sum in one register would wait for itself at each of its terms."""
    for v in range(low, high):
        b = 0
        while b + 24 <= width:
            total0 = total1 = total2 = same8(np.float32(0.0))
            for e in range(first[v], first[v + 1]):
                place, share = source[e] * stride + column + b, pull[e]
                total0 = axpy8(total0, share, load8(values, place))
                total1 = axpy8(total1, share, load8(values, place + 8))
                total2 = axpy8(total2, share, load8(values, place + 16))
            store8(out, v * width + b, total0)
            store8(out, v * width + b + 8, total1)
            store8(out, v * width + b + 16, total2)
            b += 24
        while b < width:
            total0 = same8(np.float32(0.0))
            for e in range(first[v], first[v + 1]):
                total0 = axpy8(total0, pull[e], load8(values, source[e] * stride + column + b))
            store8(out, v * width + b, total0)
            b += 8


@njit(cache=True, nogil=True)
def _blur(members, starts, values, width, low, high):
    """(1/2, 1, 1/2) along each chain, in place, zero beyond its ends."""
    half = np.float32(0.5)
    for chain in range(low, high):
        begin, end = starts[chain], starts[chain + 1]
        b = 0
        while b + 24 <= width:
            before0 = before1 = before2 = same8(np.float32(0.0))
            place = members[begin] * width + b
            here0, here1, here2 = load8(values, place), load8(values, place + 8), load8(values, place + 16)
            for m in range(begin + 1, end):
                behind = members[m] * width + b
                after0, after1, after2 = load8(values, behind), load8(values, behind + 8), load8(values, behind + 16)
                store8(values, place, axpy8(here0, half, add8(before0, after0)))
                store8(values, place + 8, axpy8(here1, half, add8(before1, after1)))
                store8(values, place + 16, axpy8(here2, half, add8(before2, after2)))
                before0, before1, before2 = here0, here1, here2
                here0, here1, here2 = after0, after1, after2
                place = behind
            store8(values, place, axpy8(here0, half, before0))
            store8(values, place + 8, axpy8(here1, half, before1))
            store8(values, place + 16, axpy8(here2, half, before2))
            b += 24
        while b < width:
            before0 = same8(np.float32(0.0))
            place = members[begin] * width + b
            here0 = load8(values, place)
            for m in range(begin + 1, end):
                behind = members[m] * width + b
                after0 = load8(values, behind)
                store8(values, place, axpy8(here0, half, add8(before0, after0)))
                before0 = here0
                here0 = after0
                place = behind
            store8(values, place, axpy8(here0, half, before0))
            b += 8


@njit(cache=True, nogil=True)
def _slice(corner, weight, corners, vertices, out, width, low, high):
    for n in range(low, high):
        for b in range(0, width, 8):
            total = same8(np.float32(0.0))
            for e in range(n * corners, (n + 1) * corners):
                total = axpy8(total, weight[e], load8(vertices, corner[e] * width + b))
            store8(out, n * width + b, total)
