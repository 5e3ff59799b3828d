"""Superpixels (SLIC) compiled by numba, and majority votes of label maps inside them.

Legend: (H, W) image size, K superpixels, S the grid step sqrt(H W / K).

Sources: Achanta et al., SLIC superpixels compared to state-of-the-art superpixel methods, TPAMI 2012; voting
of auxiliary labels: Zhang et al., Looking Beyond Single Images for Contrastive Semantic Segmentation
Learning, NeurIPS 2021.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit

MAX_SEGMENTS = 65535


def slic(
    image: Any,
    segments: int = 400,
    compactness: float = 10.0,
    iterations: int = 10,
    min_size: float = 0.25,
) -> np.ndarray:
    """Superpixels: k-means in (L, a, b, x, y) near a grid of seeds, then connected parts.

    All iterations but the last look at every third row, which moves the centres almost as all rows would.
    Deterministic: one thread, ties to the lower superpixel.

    Args:
        image: (H, W, 3) uint8 RGB, array or tensor.
        segments: superpixels asked for; the number made differs by some percent.
        compactness: weight of place against colour, in Lab units per grid step; 10 follows edges, 40 gives
            squares.
        iterations: rounds of k-means.
        min_size: share of the mean superpixel size below which a part joins the neighbour most like it in
            colour.

    Returns:
        (H, W) uint16, ids contiguous from 0 in order of their first pixel, each 4-connected.

    Raises:
        ValueError: for a wrong shape or type, or options out of range.
    """
    pixels = np.ascontiguousarray(image)
    if pixels.ndim != 3 or pixels.shape[2] != 3 or pixels.dtype != np.uint8 or pixels.size == 0:
        raise ValueError(f"image {pixels.dtype} of shape {pixels.shape}: expected uint8 (H, W, 3)")
    if not 1 <= segments <= MAX_SEGMENTS:
        raise ValueError(f"segments {segments}: expected 1 to {MAX_SEGMENTS} (16-bit ids)")
    if compactness <= 0 or iterations < 1 or not 0 <= min_size <= 1:
        raise ValueError("expected compactness > 0, iterations >= 1 and min_size in [0, 1]")
    h, w = pixels.shape[:2]
    lab = _to_lab(pixels, _GAMMA, _CUBE_ROOT)
    step = float(np.sqrt(h * w / min(segments, h * w)))
    rows, columns = max(1, round(h / step)), max(1, round(w / step))
    if rows * columns > MAX_SEGMENTS:
        raise ValueError(f"segments {segments} on this image: expected at most {MAX_SEGMENTS} grid cells")
    centers = _seeds(lab, rows, columns)
    labels = _iterate(lab, centers, float(compactness / step), step, iterations, rows, columns)
    floor = max(1, int(min_size * h * w / (rows * columns)))
    # Parts that stay connected number far fewer than 65536 unless almost every pixel is one: then the floor
    # rises.
    while True:
        out, count = _connect(labels, lab, floor)
        if count <= MAX_SEGMENTS + 1:
            return out.astype(np.uint16)
        floor *= 2


def lab_of(image: np.ndarray) -> np.ndarray:
    """CIE Lab under D65 of an image uint8 (H, W, 3): float32 (3, H, W), exact to 0.3 units."""
    return _to_lab(np.ascontiguousarray(image), _GAMMA, _CUBE_ROOT)


def superpixel_vote(
    ids: Any, superpixels: Any, weights: Any = None, ignore: int | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """All pixels of a superpixel take its heaviest label; ties go to the lowest id.

    Args:
        ids: (H, W) integer labels, at least 0.
        superpixels: (H, W) integer superpixels.
        weights: (H, W) nonnegative weight of each pixel's vote, such as the margin between its best two
            clusters.
        ignore: label that has no vote; a superpixel of nothing else keeps it.

    Returns:
        (H, W) labels of the type of `ids`, and (H, W) float32 share of the weight that voted for them.

    Raises:
        ValueError: if shapes differ or a label is negative.
    """
    ids, superpixels = np.asarray(ids), np.asarray(superpixels)
    if ids.shape != superpixels.shape:
        raise ValueError(f"labels {ids.shape} and superpixels {superpixels.shape}: expected the same shape")
    mass = np.ones(ids.shape) if weights is None else np.asarray(weights, dtype=np.float64)
    if mass.shape != ids.shape or bool((mass < 0).any()):
        raise ValueError(f"weights of shape {mass.shape}: expected nonnegative ones of shape {ids.shape}")
    if ids.size == 0:
        return ids.copy(), np.zeros(ids.shape, np.float32)
    if int(ids.min()) < 0 or int(superpixels.min()) < 0:
        raise ValueError("negative labels: expected at least 0; move the label to `ignore` above 0")
    labels, index = np.unique(ids, return_inverse=True)
    index = index.reshape(-1)
    counted = np.ones(ids.size, bool) if ignore is None else ids.reshape(-1) != ignore
    groups, group = np.unique(superpixels, return_inverse=True)
    cell = group.reshape(-1) * len(labels) + index
    shape = (len(groups), len(labels))
    table = np.bincount(cell, mass.reshape(-1) * counted, shape[0] * shape[1]).reshape(shape)
    total = table.sum(1)
    share = table.max(1) / np.where(total > 0, total, 1.0)
    # Where all pixels weigh nothing their number decides, and where none counts they keep the label to
    # ignore.
    numbers = np.bincount(cell, counted, shape[0] * shape[1]).reshape(shape)
    table = np.where(total[:, None] > 0, table, numbers)
    winner = labels[table.argmax(1)]
    if ignore is not None:
        winner = np.where(numbers.any(1), winner, ignore)
    group = group.reshape(-1)
    return winner[group].reshape(ids.shape).astype(ids.dtype), share[group].reshape(ids.shape).astype(np.float32)


def _linear_light() -> np.ndarray:
    s = np.arange(256) / 255.0
    return np.where(s > 0.04045, ((s + 0.055) / 1.055) ** 2.4, s / 12.92).astype(np.float32)


def _lab_curve() -> np.ndarray:
    t = np.arange(16385) / 16384.0
    return np.where(t > 0.008856, np.cbrt(t), 7.787 * t + 16.0 / 116.0).astype(np.float32)


_GAMMA = _linear_light()
_CUBE_ROOT = _lab_curve()


@njit(cache=True, nogil=True)
def _to_lab(image: np.ndarray, gamma: np.ndarray, root: np.ndarray) -> np.ndarray:
    """CIE Lab under D65 as (3, H, W) float32; the cube root from a table, exact to 0.3 units."""
    h, w, _ = image.shape
    lab = np.empty((3, h, w), np.float32)
    for y in range(h):
        for x in range(w):
            r, g, b = gamma[image[y, x, 0]], gamma[image[y, x, 1]], gamma[image[y, x, 2]]
            # Rows of the sRGB to XYZ matrix divided by the white point, times the length of the table.
            fx = root[int((0.433953 * r + 0.376219 * g + 0.189828 * b) * 16384.0 + 0.5)]
            fy = root[int((0.212671 * r + 0.715160 * g + 0.072169 * b) * 16384.0 + 0.5)]
            fz = root[int((0.017758 * r + 0.109477 * g + 0.872766 * b) * 16384.0 + 0.5)]
            lab[0, y, x] = np.float32(116.0) * fy - np.float32(16.0)
            lab[1, y, x] = np.float32(500.0) * (fx - fy)
            lab[2, y, x] = np.float32(200.0) * (fy - fz)
    return lab


@njit(cache=True, nogil=True)
def _seeds(lab: np.ndarray, rows: int, columns: int) -> np.ndarray:
    """Centres (K, 5) of (L, a, b, y, x) on a grid, each moved to the flattest of the 3x3 pixels there."""
    _, h, w = lab.shape
    centers = np.empty((rows * columns, 5), np.float32)
    for i in range(rows):
        for j in range(columns):
            cy, cx = int((i + 0.5) * h / rows), int((j + 0.5) * w / columns)
            best, by, bx = np.inf, cy, cx
            for y in range(max(cy - 1, 1), min(cy + 2, h - 1)):
                for x in range(max(cx - 1, 1), min(cx + 2, w - 1)):
                    slope = 0.0
                    for c in range(3):
                        slope += (lab[c, y, x + 1] - lab[c, y, x - 1]) ** 2
                        slope += (lab[c, y + 1, x] - lab[c, y - 1, x]) ** 2
                    if slope < best:
                        best, by, bx = slope, y, x
            k = i * columns + j
            for c in range(3):
                centers[k, c] = lab[c, by, bx]
            centers[k, 3], centers[k, 4] = by, bx
    return centers


@njit(cache=True, nogil=True, fastmath=True)
def _iterate(
    lab: np.ndarray, centers: np.ndarray, weight: float, step: float, iterations: int, rows: int, columns: int
) -> np.ndarray:
    """k-means in which each centre sees only one grid step around it; returns labels (H, W) int32."""
    _, h, w = lab.shape
    count = centers.shape[0]
    labels = np.empty((h, w), np.int32)
    distance = np.empty((h, w), np.float32)
    lightness, green, blue = lab[0], lab[1], lab[2]
    weight2 = np.float32(weight * weight)
    reach = step + 1.0
    sums = np.zeros((count, 6), np.float32)
    for y in range(h):
        for x in range(w):
            labels[y, x] = (y * rows // h) * columns + x * columns // w
    for turn in range(iterations):
        last = turn == iterations - 1
        stride = 1 if last else 3
        phase = 0 if last else turn % 3
        for y in range(phase, h, stride):
            distance[y, :] = np.float32(1e30)
        for k in range(count):
            l, a, b = centers[k, 0], centers[k, 1], centers[k, 2]
            cy, cx = centers[k, 3], centers[k, 4]
            top, bottom = max(0, int(cy - reach)), min(h, int(cy + reach) + 1)
            left, right = max(0, int(cx - reach)), min(w, int(cx + reach) + 1)
            top += (phase - top) % stride
            for y in range(top, bottom, stride):
                dy2 = weight2 * (np.float32(y) - cy) * (np.float32(y) - cy)
                best, label = distance[y, left:right], labels[y, left:right]
                p, q, r = lightness[y, left:right], green[y, left:right], blue[y, left:right]
                dx0 = np.float32(left) - cx
                for i in range(right - left):
                    dx = dx0 + np.float32(i)
                    dl, da, db = p[i] - l, q[i] - a, r[i] - b
                    d = dl * dl + da * da + db * db + weight2 * dx * dx + dy2
                    # Selections instead of a branch, so that the loop becomes vector instructions.
                    closer = d < best[i]
                    label[i] = np.int32(k) if closer else label[i]
                    best[i] = d if closer else best[i]
        if last:
            break
        sums[:] = 0
        for y in range(phase, h, stride):
            for x in range(w):
                row = sums[labels[y, x]]
                row[0] += lightness[y, x]
                row[1] += green[y, x]
                row[2] += blue[y, x]
                row[3] += y
                row[4] += x
                row[5] += 1
        for k in range(count):
            if sums[k, 5] > 0:
                for c in range(5):
                    centers[k, c] = sums[k, c] / sums[k, 5]
    return labels


@njit(cache=True, nogil=True)
def _root(parent: np.ndarray, i: int) -> int:
    while parent[i] != i:
        parent[i] = parent[parent[i]]
        i = parent[i]
    return i


@njit(cache=True, nogil=True)
def _connect(labels: np.ndarray, lab: np.ndarray, floor: int) -> tuple[np.ndarray, int]:
    """4-connected parts of equal label; parts below `floor` pixels join the neighbour most alike."""
    h, w = labels.shape
    part = np.empty((h, w), np.int32)
    parent = np.empty(h * w, np.int32)
    count = 0
    for y in range(h):
        for x in range(w):
            same_left = x > 0 and labels[y, x] == labels[y, x - 1]
            same_up = y > 0 and labels[y, x] == labels[y - 1, x]
            if same_left:
                mine = part[y, x - 1]
                if same_up and part[y - 1, x] != mine:
                    a, b = _root(parent, mine), _root(parent, part[y - 1, x])
                    parent[max(a, b)] = min(a, b)
            elif same_up:
                mine = part[y - 1, x]
            else:
                mine = count
                parent[count] = count
                count += 1
            part[y, x] = mine
    # Roots come before what they gather, so one pass numbers the parts in order of their first pixel.
    number = np.empty(count, np.int32)
    parts = 0
    for i in range(count):
        r = _root(parent, i)
        if r == i:
            number[i] = parts
            parts += 1
        else:
            number[i] = number[r]
    size = np.zeros(parts, np.int64)
    colour = np.zeros((parts, 3), np.float64)
    for y in range(h):
        for x in range(w):
            k = number[part[y, x]]
            part[y, x] = k
            size[k] += 1
            for c in range(3):
                colour[k, c] += lab[c, y, x]
    owner = np.arange(parts).astype(np.int32)
    while True:
        # Pairs of a small part and a neighbour: each small part remembers the neighbour nearest in mean
        # colour.
        nearest = np.full(parts, -1, np.int32)
        gap = np.full(parts, np.inf)
        for y in range(h):
            for x in range(w):
                for direction in range(2):
                    if (direction == 0 and x + 1 == w) or (direction == 1 and y + 1 == h):
                        continue
                    i = part[y, x]
                    j = part[y, x + 1] if direction == 0 else part[y + 1, x]
                    if i == j or (size[i] >= floor and size[j] >= floor):
                        continue
                    d = 0.0
                    for c in range(3):
                        d += (colour[i, c] / size[i] - colour[j, c] / size[j]) ** 2
                    if size[i] < floor and (d < gap[i] or (d == gap[i] and j < nearest[i])):
                        gap[i], nearest[i] = d, j
                    if size[j] < floor and (d < gap[j] or (d == gap[j] and i < nearest[j])):
                        gap[j], nearest[j] = d, i
        merged = False
        for i in range(parts):
            owner[i] = i
        for i in range(parts):
            if nearest[i] >= 0:
                a, b = _root(owner, i), _root(owner, nearest[i])
                if a != b:
                    owner[max(a, b)] = min(a, b)
                    merged = True
        if not merged:
            break
        for i in range(parts):
            r = _root(owner, i)
            if r != i:
                size[r] += size[i]
                size[i] = 0
                for c in range(3):
                    colour[r, c] += colour[i, c]
        for y in range(h):
            for x in range(w):
                part[y, x] = _root(owner, part[y, x])
    order = np.full(parts, -1, np.int32)
    final = 0
    for y in range(h):
        for x in range(w):
            k = part[y, x]
            if order[k] < 0:
                order[k] = final
                final += 1
            part[y, x] = order[k]
    return part, final
