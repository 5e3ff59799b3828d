"""Perceptual hashes: finding the same picture again after resizing, recompression or small edits.

The hash is the signs of the 64 lowest frequencies (without the mean) of the 32x32 grey picture about their
median (C. Zauner, "Implementation and Benchmarking of Perceptual Image Hash Functions", 2010, section 3.2.1).
Two pictures are near duplicates if few of the 64 bits differ and their 16x16 grey thumbnails agree, which
plain pictures (sky, water, cells) with accidentally equal signs do not.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np
from PIL import Image

SIDE = 32
THUMB = 16
NEAR_BITS = 6
"""Bits of 64 that may differ between near duplicates."""
NEAR_GREY = 12.0
"""Mean grey levels by which thumbnails of near duplicates may differ, after removing the difference of their
means."""
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


def find_alike(prints: list[Print | None], bits: int = NEAR_BITS, grey: float = NEAR_GREY) -> Likeness:
    """Finds near duplicates among pictures.

    Args:
        prints: one a picture, None for pictures that could not be read.
        bits: see `NEAR_BITS`.
        grey: see `NEAR_GREY`.
    """
    found = [(i, p) for i, p in enumerate(prints) if p is not None and p.hash is not None]
    usable = [i for i, _ in found]
    cells = np.full(len(prints), -1, np.int64)
    if not usable:
        return Likeness(cells, np.zeros((0, 2), np.int64))
    hashes = np.array([p.hash for _, p in found], np.uint64)
    thumbs = np.stack([p.thumb.ravel() for _, p in found])
    # Pictures of one hash form a cell; those whose thumbnail differs from the first's get a cell of their
    # own.
    distinct, first, inverse = np.unique(hashes, return_index=True, return_inverse=True)
    apart = _thumb_distance(thumbs, thumbs[first[inverse]]) > grey
    inverse = inverse.astype(np.int64)
    inverse[apart] = len(distinct) + np.arange(int(apart.sum()))
    cells[usable] = inverse
    pairs = near_pairs(distinct, bits)
    if len(pairs):
        close = [
            _thumb_distance(thumbs[first[block[:, 0]]], thumbs[first[block[:, 1]]]) <= grey
            for block in np.array_split(pairs, max(1, len(pairs) // 65536))
        ]
        pairs = pairs[np.concatenate(close)]
    return Likeness(cells, pairs)


def _thumb_distance(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Mean absolute difference of thumbnails (M, 256) after removing their means, (M,)."""
    difference = a.astype(np.float32) - b.astype(np.float32)
    return np.abs(difference - difference.mean(axis=1, keepdims=True)).mean(axis=1)
