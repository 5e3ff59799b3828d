"""TIFF files: what their tags say, and the pixels of those that Pillow does not read.

The tags are walked here because Pillow opens no TIFF that it cannot decode, and tells neither how many pages there are
without visiting each nor what the bands beyond the colours are for. Pixels come from tifffile (BSD) where Pillow has
no mode for them: several bands of more than 8 bits, bands stored one after the other, floats of other widths.
"""

from __future__ import annotations

import math
import os
import struct
import zlib
from dataclasses import dataclass
from io import BytesIO
from typing import BinaryIO

import numpy as np

from maskwright.errors import MaskwrightError

_SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8, 17: 8, 18: 8}
_CODES = {1: "B", 3: "H", 4: "I", 6: "b", 8: "h", 9: "i", 11: "f", 12: "d", 13: "I", 16: "Q", 17: "q", 18: "Q"}
_LONGEST = 4096
"""Values of a tag that are read at most; offsets of strips, which may be millions, are not needed."""
_MOST_PAGES = 100_000

COMPRESSIONS = {
    1: "none", 2: "CCITT", 3: "CCITT", 4: "CCITT", 5: "LZW", 6: "JPEG", 7: "JPEG", 8: "deflate", 32773: "packbits",
    32946: "deflate", 34712: "JPEG 2000", 34887: "LERC", 34925: "LZMA", 50000: "Zstandard", 50001: "WebP",
}  # fmt: skip
_PLAIN = {1, 8, 32773, 32946}
"""Compressions that tifffile reads without further packages."""


@dataclass(frozen=True)
class TiffPage:
    """The tags of a page of a TIFF.

    Attributes:
        size: (H, W) as stored.
        bits: bits of each band.
        sample: "uint", "int", "float" or "complex".
        photometric: 0 white is zero, 1 black is zero, 2 RGB, 3 palette, 5 CMYK, 6 YCbCr, 8 Lab.
        compression: code of the compression; 1 none.
        planar: whether the bands are stored one after the other.
        extras: what each band beyond the colours is: 1 and 2 transparency, others not.
        orientation: 1 to 8.
        stated: (lowest, highest) value that the tags say, or None.
        nodata: the value that stands for no data (GDAL), or None.
        pages: pages of the file that are no smaller version and no mask of another.
    """

    size: tuple[int, int]
    bits: tuple[int, ...]
    sample: str
    photometric: int
    compression: int
    planar: bool
    extras: tuple[int, ...]
    orientation: int
    stated: tuple[float, float] | None
    nodata: float | None
    pages: int

    @property
    def bands(self) -> int:
        """Bands of a pixel."""
        return len(self.bits)

    @property
    def alpha(self) -> int | None:
        """Place of the band that is said to be transparency, or None."""
        first = self.bands - len(self.extras)
        return next((first + i for i, kind in enumerate(self.extras) if kind in (1, 2)), None)

    @property
    def colours(self) -> int:
        """Bands that are read as colours, the first ones: 3, or 1 for grey; CMYK has 4."""
        rest = self.bands - (self.alpha is not None)
        return 4 if self.photometric == 5 else 1 if self.photometric == 3 or rest < 3 else 3


def read_page(file: BinaryIO) -> TiffPage:
    """The tags of the first page, and how many pages there are.

    Args:
        file: an open TIFF or BigTIFF.

    Raises:
        ValueError, struct.error: the tags are damaged or the file is no TIFF.
    """
    file.seek(0)
    start = file.read(16)
    order = {b"II": "<", b"MM": ">"}.get(start[:2])
    if order is None or len(start) < 8:
        raise ValueError("no TIFF")
    (version,) = struct.unpack_from(f"{order}H", start, 2)
    if version not in (42, 43):
        raise ValueError("no TIFF")
    big = version == 43
    place = struct.unpack_from(f"{order}Q", start, 8)[0] if big else struct.unpack_from(f"{order}I", start, 4)[0]
    tags, following = _directory(file, order, big, place, _WANTED)
    pages, seen = 1, {place}
    while following and following not in seen and len(seen) < _MOST_PAGES:
        seen.add(following)
        try:
            others, following = _directory(file, order, big, following, {254})
        except (ValueError, struct.error, OSError):
            break  # the first page may be whole all the same
        pages += not int(_first(others, 254, 0)) & 5  # bit 0: a smaller version, bit 2: a mask of transparency
    return _page(tags, pages)


_WANTED = {254, 256, 257, 258, 259, 262, 270, 274, 277, 280, 281, 284, 338, 339, 340, 341, 42113}


def _directory(
    file: BinaryIO, order: str, big: bool, place: int, wanted: set[int]
) -> tuple[dict[int, tuple[float, ...] | bytes], int]:
    """Values of the wanted tags of the directory at `place`, and where the next one lies (0: nowhere)."""
    file.seek(place)
    (count,) = struct.unpack(f"{order}{'Q' if big else 'H'}", file.read(8 if big else 2))
    if count > 65535:
        raise ValueError(f"{count} tags")
    entry = 20 if big else 12
    block = file.read(count * entry + (8 if big else 4))
    if len(block) < count * entry:
        raise ValueError("its tags are cut off")
    tags: dict[int, tuple[float, ...] | bytes] = {}
    for at in range(0, count * entry, entry):
        tag, kind = struct.unpack_from(f"{order}HH", block, at)
        if tag not in wanted or kind not in _SIZES:
            continue
        (length,) = struct.unpack_from(f"{order}{'Q' if big else 'I'}", block, at + 4)
        values = block[at + (12 if big else 8) : at + entry]
        taken = min(length, _LONGEST)
        if length * _SIZES[kind] > len(values):
            (offset,) = struct.unpack(f"{order}{'Q' if big else 'I'}", values)
            file.seek(offset)
            values = file.read(taken * _SIZES[kind])
            if len(values) < taken * _SIZES[kind]:
                raise ValueError(f"its tag {tag} is cut off")
        if kind in _CODES:
            tags[tag] = struct.unpack_from(f"{order}{taken}{_CODES[kind]}", values)
        elif kind in (2, 7):
            tags[tag] = bytes(values[:taken])
    rest = block[count * entry :]
    full = len(rest) >= (8 if big else 4)
    return tags, struct.unpack_from(f"{order}{'Q' if big else 'I'}", rest)[0] if full else 0


def _first(tags: dict[int, tuple[float, ...] | bytes], tag: int, default: float) -> float:
    values = tags.get(tag)
    return values[0] if isinstance(values, tuple) and values else default


def _page(tags: dict[int, tuple[float, ...] | bytes], pages: int) -> TiffPage:
    bands = int(_first(tags, 277, 1))
    stored = tags.get(258, (1,))
    bits = tuple(int(b) for b in stored) if isinstance(stored, tuple) else ()
    bits = bits * bands if len(bits) == 1 else bits
    size = (int(_first(tags, 257, 0)), int(_first(tags, 256, 0)))
    if not 1 <= bands <= _LONGEST or len(bits) < bands or min(size) < 0 or not all(0 < b <= 128 for b in bits):
        raise ValueError("its tags make no sense")
    photometric = int(_first(tags, 262, 1))
    kinds = {1: "uint", 2: "int", 3: "float", 4: "uint", 5: "complex", 6: "complex"}
    usual = {2: 3, 5: 4, 6: 3, 8: 3}.get(photometric, 1)
    said = tags.get(338, ())
    extras = tuple(int(e) for e in said) if isinstance(said, tuple) else ()
    extras = (extras + (0,) * bands)[: max(0, bands - usual)]
    orientation = int(_first(tags, 274, 1))
    description = tags.get(270, b"")
    if isinstance(description, bytes) and description.startswith(b"ImageJ="):
        # ImageJ writes one directory for all the pages of a file beyond 4 GB.
        number = next((line[7:] for line in description.split(b"\n") if line.startswith(b"images=")), b"")
        pages = max(pages, int(number)) if number.isdigit() and len(number) < 8 else pages
    sample = kinds.get(int(_first(tags, 339, 1)), "uint")
    return TiffPage(
        size=size, bits=bits[:bands], sample=sample, photometric=photometric,
        compression=int(_first(tags, 259, 1)), planar=int(_first(tags, 284, 1)) == 2 and bands > 1, extras=extras,
        orientation=orientation if 1 <= orientation <= 8 else 1,
        stated=_stated(tags, max(bits[:bands]), sample) if photometric else None, nodata=_nodata(tags.get(42113)),
        pages=pages,
    )  # fmt: skip


def _stated(tags: dict[int, tuple[float, ...] | bytes], bits: int, sample: str) -> tuple[float, float] | None:
    """The range that the tags say: SMaxSampleValue, MaxSampleValue, or fewer bits than bytes."""
    for low_tag, high_tag in ((340, 341), (280, 281)):
        high = tags.get(high_tag)
        if isinstance(high, tuple) and high:
            low = tags.get(low_tag)
            lowest = min(low) if isinstance(low, tuple) and low else 0.0
            top = float(max(high))
            if math.isfinite(top) and lowest < top and not (sample == "uint" and top >= 2**bits - 1):
                return float(lowest), top
    if sample == "uint" and 8 < bits < 16:
        return 0.0, float(2**bits - 1)
    return None


def _nodata(text: object) -> float | None:
    try:
        return float(text.split(b"\0")[0]) if isinstance(text, bytes) else None
    except ValueError:
        return None


def bytes_of(page: TiffPage) -> int:
    """Bytes of the first page's pixels without compression."""
    return page.size[0] * -(-page.size[1] * sum(page.bits) // 8)


def read_values(path: str | os.PathLike[str], page: TiffPage, data: bytes | None = None) -> np.ndarray:
    """The stored values of the first page, not turned.

    Args:
        path: the file.
        page: its tags.
        data: its bytes, if they were read already.

    Returns:
        (H, W, bands) of the stored type.

    Raises:
        MaskwrightError: a compression or a kind of number that cannot be read here; the file is not damaged.
        ValueError, OSError and other errors of a decoder: it is.
    """
    bits = page.bits[0]
    if page.sample == "complex" or len(set(page.bits)) > 1:
        raise unsupported(path, page)
    if page.sample == "uint" and bits < 16 and bits != 8:
        return _packed(path, page, data)
    from tifffile import TiffFile  # 0.2 s, which folders of photographs need not wait for

    with TiffFile(path if data is None else BytesIO(data)) as file:
        first = file.pages.first
        try:
            values = first.asarray()
        except (ValueError, NotImplementedError) as error:
            if "imagecodecs" in str(error):
                raise unsupported(path, page) from error
            raise
        axes = first.axes
    if axes.startswith("S"):
        values = np.moveaxis(values, 0, -1)
    values = values.reshape(*page.size, page.bands)
    if values.dtype.byteorder == ">":
        values = values.astype(values.dtype.newbyteorder("="))
    return values


def _packed(path: str | os.PathLike[str], page: TiffPage, data: bytes | None) -> np.ndarray:
    """Values of 9 to 15 bits, of which rows are packed without gaps: uint16 (H, W, bands)."""
    from tifffile import TiffFile

    bits, (height, width) = page.bits[0], page.size
    with TiffFile(path if data is None else BytesIO(data)) as file:
        first = file.pages.first
        if page.compression not in (1, 8, 32946) or first.is_tiled or page.planar or bits < 8 or first.predictor != 1:
            raise unsupported(path, page)
        parts = []
        for offset, count in zip(first.dataoffsets, first.databytecounts):
            file.filehandle.seek(offset)
            part = file.filehandle.read(count)
            parts.append(part if page.compression == 1 else zlib.decompress(part))
    joined = b"".join(parts)
    row = -(-width * page.bands * bits // 8)
    if len(joined) < row * height:
        raise ValueError("its pixels are cut off")
    weights = (1 << np.arange(bits - 1, -1, -1)).astype(np.uint16)
    values = np.empty((height, width * page.bands), np.uint16)
    rows = max(1, (1 << 22) // row)
    for top in range(0, height, rows):
        end = min(height, top + rows)
        block = np.frombuffer(joined, np.uint8, (end - top) * row, top * row).reshape(end - top, row)
        digits = np.unpackbits(block, axis=1)[:, : width * page.bands * bits]
        values[top:end] = digits.reshape(end - top, -1, bits) @ weights
    return values.reshape(height, width, page.bands)


def plain(page: TiffPage) -> bool:
    """Whether tifffile reads the page's compression without further packages."""
    return page.compression in _PLAIN


def unsupported(path: str | os.PathLike[str], page: TiffPage) -> MaskwrightError:
    """The error for a whole TIFF of a kind that is not read here."""
    bits = page.bits[0] if len(set(page.bits)) == 1 else "several"
    what = {"uint": "whole numbers", "int": "signed whole numbers"}.get(page.sample, f"{page.sample} numbers")
    name = COMPRESSIONS.get(page.compression, f"number {page.compression}")
    bands = f"{page.bands} bands of " if page.bands > 1 else ""
    if plain(page):
        repair = "save it again as whole numbers of 8 or 16 bits, or as floats of 32"
    else:
        repair = "save it again without compression or with deflate"
    return MaskwrightError(
        f"{path} is a TIFF of {bands}{bits}-bit {what} with compression {name}, which is not read here",
        "one of another kind; the file is not damaged",
        repair,
    )
