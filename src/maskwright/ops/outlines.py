"""Outlines of the regions of a label map: cracks between pixels are followed, and simplified once for both sides.

Vertices are the corners of pixels, so that the outlines of a map fill to the same map. Where three or more regions
meet, and at the corners of the map, a vertex is fixed; the arcs between fixed vertices are shared by two regions and
simplified once, so that neighbours leave no gap and do not overlap. Lines are simplified as Douglas and Peucker do
(Cartographica 1973): no vertex that is left out lies further than the tolerance from what replaces it.

Legend: (H, W) size of the map, n vertices of a ring; points are (x, y).
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numba import njit
from scipy import ndimage, sparse

from maskwright.ops.polygons import fill, ring_area

MOST_CHANGED = 0.1
"""A region of which more than this share of its pixels would change is simplified less or not at all: thin ones
stay."""
_LEVELS = (1.0, 0.75, 0.5, 0.0)


@dataclass(frozen=True)
class Region:
    """Pixels of one label that touch, by a side or a corner; where two labels cross at a corner, the higher holds.

    Attributes:
        label: theirs.
        outer: float64 (n, 2), the outline, clockwise on the screen.
        holes: float64 (n, 2) each, the other way round.
        pixels: how many there are.
    """

    label: int
    outer: np.ndarray
    holes: tuple[np.ndarray, ...]
    pixels: int


def outline(ids: np.ndarray, tolerance: float = 0.0) -> list[Region]:
    """The regions of a label map with their outlines.

    Args:
        ids: whole numbers from 0 (H, W).
        tolerance: pixels by which a line may leave the cracks; 0: the outlines are exact.

    Returns:
        The regions in the order of their first pixels, row by row.

    Raises:
        ValueError: a map of another shape or type, negative ids, or a negative tolerance.
    """
    ids = np.asarray(ids)
    if ids.ndim != 2 or ids.dtype.kind not in "iub" or not ids.size or int(ids.min()) < 0:
        raise ValueError(f"ids of shape {ids.shape} and type {ids.dtype}, expected whole numbers from 0 (H, W)")
    if not tolerance >= 0:
        raise ValueError(f"tolerance {tolerance}, expected at least 0")
    padded = np.full((ids.shape[0] + 2, ids.shape[1] + 2), -1, np.int64)
    padded[1:-1, 1:-1] = ids
    points, fixed, ends, origins = _follow(padded)
    rings = [_Ring(points[a:b], fixed[a:b]) for a, b in zip(np.append(0, ends[:-1]), ends)]
    component = _components(ids)
    members: list[list[int]] = [[] for _ in range(int(component.max()) + 1)]
    for k, (row, column) in enumerate(origins):
        members[component[row, column]].append(k)
    lines = [ring.points for ring in rings]
    if tolerance > 0:
        lines = _simplified(rings, members, component, tolerance)
    found = []
    for member, pixels in zip(members, np.bincount(component.ravel())):
        if not member:
            continue
        outer = next(k for k in member if ring_area(rings[k].points) > 0)
        holes = tuple(lines[k].astype(np.float64) for k in member if k != outer)
        row, column = origins[outer]
        found.append(Region(int(ids[row, column]), lines[outer].astype(np.float64), holes, int(pixels)))
    return found


def without_specks(ids: np.ndarray, smallest: int) -> np.ndarray:
    """A label map whose regions of fewer than `smallest` pixels have the label of the nearest pixel of a larger one.

    Args:
        ids: whole numbers from 0 (H, W).
        smallest: pixels. Where every region is smaller the map stays as it is.
    """
    component = _components(ids)
    small = np.bincount(component.ravel())[component] < smallest
    if not small.any() or small.all():
        return ids
    rows, columns = ndimage.distance_transform_edt(small, return_distances=False, return_indices=True)
    return ids[rows, columns]


def _components(ids: np.ndarray) -> np.ndarray:
    """A number for each region, (H, W), in the order of their first pixels."""
    found = np.zeros(ids.shape, np.int64)
    count = 0
    for label, box in enumerate(ndimage.find_objects(ids.astype(np.int64) + 1)):
        if box is not None:
            members, more = ndimage.label(ids[box] == label)
            part = found[box]
            part[members > 0] = members[members > 0] + count
            count += more
    nw, ne, sw, se = ids[:-1, :-1], ids[:-1, 1:], ids[1:, :-1], ids[1:, 1:]
    falling = (nw == se) & (nw != ne) & (nw != sw) & ~((ne == sw) & (ne > nw))
    rising = (ne == sw) & (ne != nw) & (ne != se) & ~((nw == se) & (nw > ne))
    rows = np.concatenate([found[:-1, :-1][falling], found[:-1, 1:][rising]])
    columns = np.concatenate([found[1:, 1:][falling], found[1:, :-1][rising]])
    links = sparse.coo_matrix((np.ones(len(rows), bool), (rows, columns)), (count + 1, count + 1))
    found = sparse.csgraph.connected_components(links, directed=False)[1][found]
    _, first, place = np.unique(found.ravel(), return_index=True, return_inverse=True)
    rank = np.empty(len(first), np.int64)
    rank[np.argsort(first)] = np.arange(len(first))
    return rank[place].reshape(ids.shape)


class _Ring:
    """A closed line with its arcs between fixed vertices, each with the key that both its sides know it by."""

    def __init__(self, points: np.ndarray, fixed: np.ndarray) -> None:
        self.points = points
        stops = np.flatnonzero(fixed)
        self.arcs: list[tuple[tuple[int, ...], bool, np.ndarray]] = []
        if len(stops):
            turned = np.roll(points, -int(stops[0]), axis=0)
            cuts = [*(stops - stops[0]).tolist(), len(points)]
            closed = np.concatenate([turned, turned[:1]])
            self.arcs = [self._arc(closed[a : b + 1]) for a, b in pairwise(cuts)]
        else:
            start = int(np.lexsort((points[:, 0], points[:, 1]))[0])
            turned = np.roll(points, -start, axis=0)
            self.arcs = [self._arc(np.concatenate([turned, turned[:1]]))]

    @staticmethod
    def _arc(line: np.ndarray) -> tuple[tuple[int, ...], bool, np.ndarray]:
        there = (*line[0].tolist(), *line[1].tolist(), *line[-1].tolist(), *line[-2].tolist())
        back = (*line[-1].tolist(), *line[-2].tolist(), *line[0].tolist(), *line[1].tolist())
        return (there, False, line) if there <= back else (back, True, line[::-1])


def _simplified(
    rings: list[_Ring], members: list[list[int]], component: np.ndarray, tolerance: float
) -> list[np.ndarray]:
    """The rings with their arcs simplified; arcs of regions that would change too much are left finer."""
    level: dict[tuple[int, ...], int] = {}
    done: dict[tuple[tuple[int, ...], int], np.ndarray] = {}

    def line_of(ring: _Ring) -> np.ndarray:
        parts = []
        for key, turned, line in ring.arcs:
            at = level.get(key, 0)
            if (key, at) not in done:
                done[key, at] = line[_kept(line, tolerance * _LEVELS[at])]
            parts.append((done[key, at][::-1] if turned else done[key, at])[:-1])
        return np.concatenate(parts)

    found = [line_of(ring) for ring in rings]
    boxes = ndimage.find_objects(component + 1)
    pending = list(range(len(members)))
    while pending:
        worse = [m for m in pending if _is_worse([found[k] for k in members[m]], component, boxes[m], m)]
        finer = {key for m in worse for k in members[m] for key, _, _ in rings[k].arcs}
        finer = {key for key in finer if level.get(key, 0) + 1 < len(_LEVELS)}
        for key in finer:
            level[key] = level.get(key, 0) + 1
        changed = [k for k, ring in enumerate(rings) if any(key in finer for key, _, _ in ring.arcs)] if finer else []
        for k in changed:
            found[k] = line_of(rings[k])
        again = set(changed)
        pending = [m for m, ks in enumerate(members) if not again.isdisjoint(ks)]
    return found


def _is_worse(lines: list[np.ndarray], component: np.ndarray, box: tuple[slice, slice], member: int) -> bool:
    """Whether the simplified rings of a region fill to pixels that are too different from its own."""
    pixels = component[box] == member
    mask, top, left = fill(lines, component.shape)
    height, width = mask.shape
    inside = (component[top : top + height, left : left + width] == member) & mask
    both = int(inside.sum())
    own = int(pixels.sum())
    return int(mask.sum()) + own - 2 * both > MOST_CHANGED * own


def _kept(line: np.ndarray, tolerance: float) -> np.ndarray:
    """Which points of a line stay, bool (n,); of a closed one also that furthest from its ends."""
    if tolerance == 0 or len(line) < 3:
        return np.ones(len(line), np.bool_)
    stay = np.zeros(len(line), np.bool_)
    stay[0] = stay[-1] = True
    if (line[0] == line[-1]).all():
        far = int(((line - line[0]) ** 2).sum(1).argmax())
        stay[far] = True
        _douglas_peucker(line, stay, 0, far, tolerance)
        _douglas_peucker(line, stay, far, len(line) - 1, tolerance)
    else:
        _douglas_peucker(line, stay, 0, len(line) - 1, tolerance)
    return stay


@njit(cache=True, nogil=True)
def _douglas_peucker(line: np.ndarray, stay: np.ndarray, first: int, last: int, tolerance: float) -> None:
    stack = np.empty((len(line) + 1, 2), np.int64)
    stack[0, 0], stack[0, 1] = first, last
    waiting = 1
    while waiting:
        waiting -= 1
        a, b = stack[waiting, 0], stack[waiting, 1]
        dx, dy = float(line[b, 0] - line[a, 0]), float(line[b, 1] - line[a, 1])
        square = dx * dx + dy * dy
        worst, at = tolerance * tolerance, -1
        for k in range(a + 1, b):
            x, y = float(line[k, 0] - line[a, 0]), float(line[k, 1] - line[a, 1])
            t = 0.0 if square == 0 else min(1.0, max(0.0, (x * dx + y * dy) / square))
            away = (x - t * dx) ** 2 + (y - t * dy) ** 2
            if away > worst:
                worst, at = away, k
        if at >= 0:
            stay[at] = True
            stack[waiting, 0], stack[waiting, 1] = a, at
            stack[waiting + 1, 0], stack[waiting + 1, 1] = at, b
            waiting += 2


@njit(cache=True, nogil=True)
def _follow(padded: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """All rings of a map that one row and column of another label surround.

    Returns:
        corners and fixed vertices of all rings (n, 2) as (x, y), whether each is fixed (n,), where each ring ends (R,),
        and a pixel (row, column) inside each (R, 2). The region lies to the right of the way.
    """
    height, width = padded.shape[0] - 2, padded.shape[1] - 2
    cracks = 0
    tops = 0
    for i in range(height + 1):
        for j in range(width + 1):
            here = padded[i + 1, j + 1]
            if i < height and j < width and padded[i, j + 1] != here:
                tops += 1
            if j < width and padded[i, j + 1] != here:
                cracks += 2
            if i < height and padded[i + 1, j] != here:
                cracks += 2
    points = np.empty((cracks, 2), np.int64)
    fixed = np.empty(cracks, np.bool_)
    ends = np.empty(tops, np.int64)
    origins = np.empty((tops, 2), np.int64)
    seen = np.zeros((height, width), np.bool_)
    n = 0
    rings = 0
    for i in range(height):
        for j in range(width):
            label = padded[i + 1, j + 1]
            if seen[i, j] or padded[i, j + 1] == label:
                continue
            y, x, heading = i, j, 0  # 0 right, 1 down, 2 left, 3 up
            while True:
                if heading == 0:
                    seen[y, x] = True
                    x += 1
                elif heading == 1:
                    y += 1
                elif heading == 2:
                    x -= 1
                else:
                    y -= 1
                nw, ne = padded[y, x], padded[y, x + 1]
                sw, se = padded[y + 1, x], padded[y + 1, x + 1]
                if heading == 0:
                    left, right = ne, se
                elif heading == 1:
                    left, right = se, sw
                elif heading == 2:
                    left, right = sw, nw
                else:
                    left, right = nw, ne
                # Pixels that touch at a corner are one region, unless those beside them do and have a higher label.
                crossed = left == label and right != label and right > label and nw == se and ne == sw
                if left == label and not crossed:
                    turned = (heading + 3) % 4
                else:
                    turned = heading if right == label else (heading + 1) % 4
                meet = (nw != ne) + (ne != se) + (se != sw) + (sw != nw) > 2
                corner = (y == 0 or y == height) and (x == 0 or x == width)
                if turned != heading or meet or corner:
                    points[n, 0], points[n, 1] = x, y
                    fixed[n] = meet or corner
                    n += 1
                heading = turned
                if y == i and x == j and heading == 0:
                    break
            ends[rings] = n
            origins[rings, 0], origins[rings, 1] = i, j
            rings += 1
    return points[:n], fixed[:n], ends[:rings], origins[:rings]
