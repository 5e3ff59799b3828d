"""Perceptual hashes: finding the same picture again after resizing, recompression or small edits.

The hash is the signs of the 64 lowest frequencies (without the mean) of the 32x32 grey picture about their
median (C. Zauner, "Implementation and Benchmarking of Perceptual Image Hash Functions", 2010, section 3.2.1).
Two pictures may be near duplicates if few of the 64 bits differ and their 16x16 grey thumbnails agree, which
plain pictures (sky, water, cells) with accidentally equal signs do not. That is not enough where all pictures are
taken in one way: retinas and slides are a bright disc on black, the same in low frequencies whatever they show. So the
detail of each pair is compared as well, at 128x128: what a blur takes away, correlated in each of 64 squares, at the
shift of a few pixels that fits best. Nearly all squares must agree, so that the rim that all discs share is not enough.
On drawn retinas the fifth of the squares that agree least correlates at most 0.03 between different ones and at least
0.54 with copies at three tenths of the size; on photographs of MSRC v2 0.09, and 0.20 with JPEGs of quality 30.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from PIL import Image, ImageFilter

SIDE = 32
THUMB = 16
NEAR_BITS = 6
"""Bits of 64 that may differ between near duplicates."""
NEAR_GREY = 12.0
"""Mean grey levels by which thumbnails of near duplicates may differ, after removing the difference of their
means."""
DETAIL = 128
"""Pixels of a side at which detail is compared."""
SQUARE = 16
"""Pixels of the squares in which it is compared."""
SAME_DETAIL = 0.15
"""Correlation of near duplicates in all but `ODD` of the squares, at least."""
ODD = 0.2
"""Share of the squares that may differ: an edit, a caption, a thing that moved."""
SHIFT = 6
"""Pixels of `DETAIL` by which near duplicates may be shifted: a camera that moved a little."""
PLAIN = 1.5
"""Squares whose detail varies less than this, in grey levels, say nothing."""
TELLING = 8
"""With fewer squares that say something the hash and the thumbnail decide alone."""
FIRSTS = 64
"""Pictures of one hash at most that others of that hash are compared with."""
FLAT = 2.0
"""Pictures whose 32x32 grey version varies less than this (standard deviation) have no perceptual hash."""


def _dct_rows(count: int, side: int) -> np.ndarray:
    """The first `count` rows of the orthonormal DCT-II matrix, float64 (count, side)."""
    k, n = np.arange(count)[:, None], np.arange(side)[None]
    rows = np.sqrt(2 / side) * np.cos(np.pi * (n + 0.5) * k / side)
    rows[0] /= np.sqrt(2)
    return rows


# 64 lowest frequencies after the mean, along the diagonals; 11 rows and columns hold them all.
_ROWS = _dct_rows(11, SIDE)
_ZIGZAG = sorted(((i, j) for i in range(11) for j in range(11) if i + j), key=lambda p: (p[0] + p[1], p[0]))[:64]
_I, _J = np.array(_ZIGZAG).T
_BITS = np.uint64(1) << np.arange(64, dtype=np.uint64)


@dataclass(frozen=True)
class Print:
    """What a picture is recognised by.

    Attributes:
        hash: 64 bits, or None for a flat picture.
        thumb: uint8 (16, 16), grey.
    """

    hash: int | None
    thumb: np.ndarray


def perceptual_hash(image: np.ndarray) -> Print:
    """Hash and thumbnail of a picture.

    Args:
        image: uint8 (H, W) or (H, W, 3); a decode at 1/8 of the size gives nearly the same hash.
    """
    grey = Image.fromarray(np.ascontiguousarray(image))
    if grey.mode != "L":
        grey = grey.convert("L")
    square = np.asarray(grey.resize((SIDE, SIDE), Image.Resampling.BILINEAR), dtype=np.float64)
    thumb = square.reshape(THUMB, SIDE // THUMB, THUMB, SIDE // THUMB).mean(axis=(1, 3))
    thumb8 = (thumb + 0.5).astype(np.uint8)
    if square.std() < FLAT:
        return Print(None, thumb8)
    low = (_ROWS @ square @ _ROWS.T)[_I, _J]
    return Print(int(_BITS[low > np.median(low)].sum()), thumb8)


def hamming(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Differing bits of uint64 arrays, elementwise (broadcast)."""
    return np.bitwise_count(np.asarray(a, np.uint64) ^ np.asarray(b, np.uint64)).astype(np.int64)


def near_pairs(hashes: np.ndarray, bits: int = NEAR_BITS) -> np.ndarray:
    """All pairs of different hashes within a Hamming distance.

    The 64 bits are cut into `bits + 1` bands; hashes that differ in at most `bits` bits agree in at least one
    band (pigeonhole), so only hashes with a band in common are compared.

    Args:
        hashes: uint64 (N,), distinct.
        bits: largest distance, 0 to 15.

    Returns:
        int64 (M, 2), i < j in each row, sorted.
    """
    hashes = np.asarray(hashes, np.uint64)
    edges = np.linspace(0, 64, bits + 2).round().astype(int)
    found = [np.zeros((0, 2), np.int64)]
    for low, high in itertools.pairwise(edges):
        mask = np.uint64((1 << int(high - low)) - 1)
        band = (hashes >> np.uint64(low)) & mask
        order = np.argsort(band, kind="stable")
        ordered, values = hashes[order], band[order]
        active = np.arange(len(hashes))
        step = 0
        while active.size:
            step += 1
            active = active[active + step < len(hashes)]
            active = active[values[active] == values[active + step]]
            close = active[hamming(ordered[active], ordered[active + step]) <= bits]
            if close.size:
                found.append(np.sort(np.stack([order[close], order[close + step]], axis=1), axis=1))
    return np.unique(np.concatenate(found), axis=0)


@dataclass(frozen=True)
class Likeness:
    """Which pictures look the same.

    Attributes:
        cells: int64 (N,), pictures of one cell have the same hash and thumbnail (nearly); -1: flat, not
            compared.
        links: int64 (M, 2), pairs of different cells that are near duplicates.
    """

    cells: np.ndarray
    links: np.ndarray

    def groups(self) -> list[list[int]]:
        """Pictures that are connected by likeness, groups of two and more, ordered by their first picture."""
        parent = list(range(int(self.cells.max()) + 1)) if self.cells.size else []

        def root(a: int) -> int:
            while parent[a] != a:
                parent[a] = parent[parent[a]]
                a = parent[a]
            return a

        for a, b in self.links.tolist():
            parent[root(a)] = root(b)
        members: dict[int, list[int]] = {}
        for i, cell in enumerate(self.cells.tolist()):
            if cell >= 0:
                members.setdefault(root(cell), []).append(i)
        return sorted(group for group in members.values() if len(group) > 1)


def detail_of(image: np.ndarray) -> np.ndarray:
    """What of a picture a blur takes away, float32 (128, 128), grey levels.

    Args:
        image: uint8 (H, W) or (H, W, 3), best of 128 pixels or more a side.
    """
    grey = Image.fromarray(np.ascontiguousarray(image)).convert("L")
    how = Image.Resampling.BOX if min(grey.size) > DETAIL else Image.Resampling.BICUBIC
    grey = grey.resize((DETAIL, DETAIL), how)
    return np.asarray(grey, np.float32) - np.asarray(grey.filter(ImageFilter.GaussianBlur(2.5)), np.float32)


def same_detail(a: np.ndarray, b: np.ndarray) -> bool:
    """Whether two pictures agree in their detail, as `detail_of` gives it, or have too little of it to tell."""
    dy, dx = _best_shift(_evened(a), _evened(b))
    x, y = _squares(a), _squares(np.roll(b, (dy, dx), (0, 1)))
    deviation = x.std(1) * y.std(1)
    telling = (x.std(1) > PLAIN) & (y.std(1) > PLAIN)
    if telling.sum() < TELLING:
        return True
    correlation = (x * y).mean(1)[telling] / deviation[telling]
    return float(np.quantile(correlation, ODD)) >= SAME_DETAIL


def _evened(detail: np.ndarray) -> np.ndarray:
    """Detail divided by its local strength: else a strong edge alone would say where two pictures fit."""
    side = DETAIL // 8
    power = Image.fromarray(detail * detail).resize((side, side), Image.Resampling.BOX)
    local = np.sqrt(np.asarray(power.resize((DETAIL, DETAIL), Image.Resampling.BILINEAR)).clip(0))
    return detail / (local + 2)


def _best_shift(a: np.ndarray, b: np.ndarray) -> tuple[int, int]:
    """(rows, columns), each up to `SHIFT`, by which `b` is rolled to fit `a` best."""
    both = np.fft.irfft2(np.fft.rfft2(a) * np.fft.rfft2(b).conj(), s=a.shape)
    near = np.roll(both, (SHIFT, SHIFT), (0, 1))[: 2 * SHIFT + 1, : 2 * SHIFT + 1]
    row, column = np.unravel_index(int(near.argmax()), near.shape)
    return int(row) - SHIFT, int(column) - SHIFT


def _squares(detail: np.ndarray) -> np.ndarray:
    """Detail by squares, each with mean 0, (squares, pixels)."""
    n = DETAIL // SQUARE
    squares = detail.reshape(n, SQUARE, n, SQUARE).swapaxes(1, 2).reshape(n * n, SQUARE * SQUARE)
    return squares - squares.mean(1, keepdims=True)


def find_alike(
    prints: list[Print | None],
    bits: int = NEAR_BITS,
    grey: float = NEAR_GREY,
    detail: Callable[[int], np.ndarray | None] | None = None,
) -> Likeness:
    """Finds near duplicates among pictures.

    Args:
        prints: one a picture, None for pictures that could not be read.
        bits: see `NEAR_BITS`.
        grey: see `NEAR_GREY`.
        detail: gives the detail of a picture by its place, asked for those that may be near duplicates only; None
            where it cannot be had. Without, hash and thumbnail decide alone.
    """
    found = [(i, p) for i, p in enumerate(prints) if p is not None and p.hash is not None]
    usable = [i for i, _ in found]
    cells = np.full(len(prints), -1, np.int64)
    if not usable:
        return Likeness(cells, np.zeros((0, 2), np.int64))
    hashes = np.array([p.hash for _, p in found], np.uint64)
    thumbs = np.stack([p.thumb.ravel() for _, p in found])
    look = lru_cache(2048)(detail) if detail is not None else None

    def agree(a: int, b: int) -> bool:
        one, two = (None, None) if look is None else (look(usable[a]), look(usable[b]))
        return one is None or two is None or same_detail(one, two)

    # Pictures of one hash that agree with the first of a cell form that cell.
    distinct, inverse = np.unique(hashes, return_inverse=True)
    firsts: list[list[int]] = [[] for _ in distinct]  # of each hash the first picture of its cells
    cell_of: dict[int, int] = {}  # first picture: its cell
    for k, at in enumerate(inverse.tolist()):
        like = firsts[at]
        alike = [f for f in like[:FIRSTS] if _thumb_distance(thumbs[f : f + 1], thumbs[k : k + 1])[0] <= grey]
        first = next((f for f in alike if agree(f, k)), None)
        if first is None:
            like.append(k)
            cell_of[k] = len(cell_of)
        cells[usable[k]] = cell_of[k if first is None else first]
    near = [
        np.array(list(itertools.product(firsts[a][:FIRSTS], firsts[b][:FIRSTS])))
        for a, b in near_pairs(distinct, bits).tolist()
    ]
    links = []
    for block in np.array_split(np.concatenate(near), max(1, len(near) // 65536)) if near else ():
        close = _thumb_distance(thumbs[block[:, 0]], thumbs[block[:, 1]]) <= grey
        links += [(cell_of[a], cell_of[b]) for a, b in block[close].tolist() if agree(a, b)]
    return Likeness(cells, np.array(sorted(links), np.int64).reshape(-1, 2))


def _thumb_distance(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Mean absolute difference of thumbnails (M, 256) after removing their means, (M,)."""
    difference = a.astype(np.float32) - b.astype(np.float32)
    return np.abs(difference - difference.mean(axis=1, keepdims=True)).mean(axis=1)
