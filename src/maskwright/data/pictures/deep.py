"""Pixels of more than 8 bits: reading all of their bits, and bringing them to 8 bits by a range.

What a stored value means is not in the file: 3000 may be bright (12 bits of a microscope) or dark (16 of a scanner).
So the range, (low, high), which become 0 and 255, comes from outside: of the data set (`data.pictures.scale`), or else
from the type alone. It is never a matter of what one file happens to hold.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import BinaryIO, Literal

import numpy as np

from maskwright.data.pictures import tiff
from maskwright.data.pictures.headers import Header, open_pillow, open_regular
from maskwright.errors import MaskwrightError

Span = tuple[float, float]
"""(low, high): the stored values that become black and white."""
AlphaKind = Literal["none", "opaque", "used", "empty"]
"""What a picture has of transparency; empty: 0 everywhere, left aside."""
Range = Span | Callable[[], Span | None] | None
"""A span, or what gives it when a file needs it; None: not known."""

FILLED = 0.25
"""A range of which values use less than this share is not the one that they were made for."""
_BAND = 1 << 22
"""Values that are worked on at once."""


@dataclass
class Deep:
    """Decoded pixels as they are stored.

    Attributes:
        colours: (H, W, 1) grey or (H, W, 3) RGB, of the stored type.
        alpha: (H, W) opacity, of the stored type or bool; None where there is none.
        opaque: the value of `alpha` that is opaque.
        premultiplied: whether colours were multiplied by the opacity.
    """

    colours: np.ndarray
    alpha: np.ndarray | None = None
    opaque: float = 1.0
    premultiplied: bool = False


def read_deep(path: str | os.PathLike[str], data: bytes | None, header: Header) -> Deep:
    """All bits of the first page of a PNG, TIFF, PNM or JPEG 2000, not turned.

    Args:
        path: the file.
        data: its bytes, if they were read already.
        header: its header.

    Raises:
        MaskwrightError: a kind of TIFF that is not read here.
        OSError, ValueError and others: the file is damaged.
    """
    if header.tiff is not None:
        return _of_tiff(path, header.tiff, data)
    source = Path(path) if data is None else BytesIO(data)
    if header.kind == "png":
        return _of_png(source, header)
    if header.kind == "ppm":
        return Deep(_of_pnm(Path(path).read_bytes() if data is None else data, header))
    with (
        _stream(source) as file,
        open_pillow(file) as image,
    ):  # JPEG 2000: Pillow moves values to the upper end of 16 bits
        image.load()
        return Deep(np.asarray(image)[..., None] >> np.uint16(16 - header.bits))


def _of_png(source: Path | BytesIO, header: Header) -> Deep:
    # Pillow keeps the high byte of 16-bit colours. Read once more as if the bytes were swapped, it gives the low one.
    opaque = 65535.0
    if header.channels == 1:
        values, key = _pass(source, None, None)
        colours, alpha = values[..., None], None if key is None else values != int(key)  # type: ignore[call-overload]
        return Deep(colours, alpha)
    if header.channels == 2:
        both = _join(*np.moveaxis(_pass(source, "RGBA", "RGBA")[0].reshape(*header.stored, 2, 2), -1, 0))
        return Deep(both[..., :1], both[..., 1], opaque)
    mode = "RGB" if header.channels == 3 else "RGBA"
    high, key = _pass(source, None, f"{mode};16B")
    values = _join(high, _pass(source, None, f"{mode};16L")[0])
    if header.channels == 4:
        return Deep(values[..., :3], values[..., 3], opaque)
    return Deep(values, None if key is None else (values != np.array(key, np.uint16)).any(-1))


def _pass(source: Path | BytesIO, mode: str | None, raw: str | None) -> tuple[np.ndarray, object]:
    """The pixels as Pillow unpacks them under another description of their bytes, and the transparent colour."""
    with _stream(source) as file, open_pillow(file) as image:
        if raw is not None:
            image.tile = [_described(tile, raw) for tile in image.tile]  # type: ignore[attr-defined]
        if mode is not None:
            image._mode = mode
        image.load()
        return np.asarray(image), image.info.get("transparency")


def _stream(source: Path | BytesIO) -> BinaryIO:
    """An open file of its own. What Pillow opens by name it maps into memory, a turned TIFF with its sides swapped."""
    return open_regular(source) if isinstance(source, Path) else BytesIO(source.getbuffer())


def _described(tile: tuple, raw: str) -> tuple:
    codec, extents, offset, arguments = tile
    return type(tile)(codec, extents, offset, (raw, *arguments[1:]) if isinstance(arguments, tuple) else raw)  # type: ignore[call-arg]


def _join(high: np.ndarray, low: np.ndarray) -> np.ndarray:
    values = high.astype(np.uint16)
    values <<= 8
    values |= low
    return values


def _of_pnm(data: bytes, header: Header) -> np.ndarray:
    words = data[:64].split(maxsplit=4)
    start = data.index(words[3], data.index(words[2], data.index(words[1], 2) + len(words[1])) + len(words[2]))
    start += len(words[3]) + 1
    height, width = header.stored
    count = height * width * header.channels
    if len(data) < start + 2 * count:
        raise OSError("its pixels are cut off")
    values = np.frombuffer(data, ">u2", count, start).astype(np.uint16)
    return values.reshape(height, width, header.channels)


def _of_tiff(path: str | os.PathLike[str], page: tiff.TiffPage, data: bytes | None) -> Deep:
    if tiff.plain(page):
        values = tiff.read_values(path, page, data)
    else:
        values = _through_pillow(path, page, Path(path) if data is None else BytesIO(data))
    alpha = None if page.alpha is None else values[..., page.alpha]
    colours = values[..., : page.colours]
    if page.photometric == 0 and page.sample == "uint":  # white is 0
        colours = colours.dtype.type(2 ** page.bits[0] - 1) - colours
    opaque = 1.0 if page.sample == "float" else float(2 ** page.bits[0] - 1)
    premultiplied = page.alpha is not None and page.extras[page.alpha - page.bands] == 1
    return Deep(colours, alpha, opaque, premultiplied)


def _through_pillow(path: str | os.PathLike[str], page: tiff.TiffPage, source: Path | BytesIO) -> np.ndarray:
    """(H, W, bands) of a TIFF whose compression only Pillow reads, where it has a mode for it."""
    try:
        with _stream(source) as file, open_pillow(file) as image:
            mode = image.mode
    except OSError as error:
        raise tiff.unsupported(path, page) from error
    if page.bands == 1 and mode in ("L", "1", "F", "I", "I;16", "I;16B", "I;16L"):
        values = _pass(source, None, None)[0][..., None]
        if page.sample == "uint" and page.bits == (32,):
            values = values.view(np.uint32)
        elif page.sample == "int" and page.bits == (16,):
            values = values.astype(np.int16)
    elif page.bits in ((16,) * 3, (16,) * 4) and page.sample == "uint" and not page.planar:
        form = "RGB" if page.bands == 3 else "RGBA"
        first, second = ("L", "B") if sys.byteorder == "little" else ("B", "L")  # libtiff gives the machine's order
        high = _pass(source, form, f"{form};16{first}")[0]
        values = _join(high, _pass(source, form, f"{form};16{second}")[0])
    elif page.bits == (8,) * page.bands and page.sample == "uint" and page.bands == len(mode) == 3:
        values = _pass(source, None, None)[0]
    else:
        raise tiff.unsupported(path, page)
    return _unturned(values, page.orientation)


def _unturned(values: np.ndarray, orientation: int) -> np.ndarray:
    """Undoes what Pillow's TIFF reader turned while loading."""
    if orientation in (2, 3, 6, 7):
        values = values[:, ::-1]
    if orientation in (3, 4, 7, 8):
        values = values[::-1]
    return values.swapaxes(0, 1) if orientation >= 5 else values


# ---------------------------------------------------------------------- to 8 bits


def to_8bit(values: np.ndarray, span: Span) -> np.ndarray:
    """Stored values to bytes: low becomes 0, high 255, what lies beyond is clipped, what is no number becomes 0.

    Args:
        values: of any real type.
        span: (low, high), low < high.

    Returns:
        uint8 of the same shape.
    """
    low, high = span
    if values.dtype in (np.uint16, np.int16) and values.size > 1 << 16:
        every = np.arange(1 << 16, dtype=np.uint16).view(values.dtype)
        return to_8bit(every, span)[values.view(np.uint16)]
    out = np.empty(values.shape, np.uint8)
    rows = max(1, _BAND // max(1, values[:1].size))
    for top in range(0, len(values), rows):
        part = values[top : top + rows].astype(np.float64)
        part -= low
        part *= 255 / (high - low)
        part += 0.5
        np.nan_to_num(part, copy=False, nan=0.0, posinf=255.0, neginf=0.0)
        out[top : top + rows] = part.clip(0, 255)
    return out


def flatten(deep: Deep, span: Span) -> tuple[np.ndarray, AlphaKind]:
    """Pixels as uint8 (H, W, 3), transparency on white, and what the transparency is (`images.Glance.alpha`)."""
    rgb = to_8bit(deep.colours, span)
    if rgb.shape[2] == 1:
        rgb = np.repeat(rgb, 3, axis=2)
    if deep.alpha is None:
        return rgb, "none"
    if not (deep.alpha > 0).any():
        return rgb, "empty"
    if (deep.alpha >= deep.opaque).all():
        return rgb, "opaque"
    for top in range(0, len(rgb), rows := max(1, _BAND // rgb.shape[1])):
        part = np.s_[top : top + rows]
        share = np.nan_to_num(deep.alpha[part].astype(np.float64) / deep.opaque).clip(0, 1)[..., None]
        colours = rgb[part].astype(np.float64)
        if deep.premultiplied:
            stored = deep.colours[part] / np.maximum(share, 1e-6)
            colours = to_8bit(stored, span).astype(np.float64)
        rgb[part] = colours * share + 255 * (1 - share) + 0.5
    return rgb, "used"


def type_span(header: Header, values: np.ndarray) -> Span:
    """The range by what the header states, where the values keep to it, else by the type."""
    if header.stated is not None and values.size and float(np.nanmax(values)) <= header.stated[1]:
        return header.stated
    return header.type_range


def quantiles(values: np.ndarray, shares: tuple[float, ...]) -> list[float]:
    """Values below which these shares of the finite values lie; zeros where there is none."""
    flat = values.reshape(-1)
    flat = flat[:: max(1, flat.size // _BAND)]
    if flat.dtype.kind == "f":
        flat = flat[np.isfinite(flat)]
    if not flat.size:
        return [0.0] * len(shares)
    return [float(v) for v in np.quantile(flat.astype(np.float64), shares, method="nearest")]


def sure_span(path: str | os.PathLike[str], header: Header, values: np.ndarray) -> Span:
    """As `type_span`, where the values of this one file use enough of it.

    Raises:
        MaskwrightError: they do not, so nothing says which value is white.
    """
    low, high = type_span(header, values)
    least, most = quantiles(values, (0.001, 0.999))
    margin = 0.05 * (high - low)
    if low - margin <= least and most <= high + margin and most - least >= FILLED * (high - low):
        return low, high
    raise unsure(path, header, (least, most))


def unsure(path: str | os.PathLike[str], header: Header, span: Span) -> MaskwrightError:
    """The error for a file of which nothing says which values are black and white."""
    shown = f"{span[0]:.6g},{max(span[1], span[0] + 1):.6g}" if span[1] <= span[0] else f"{span[0]:.6g},{span[1]:.6g}"
    return MaskwrightError(
        f"{path} holds {kind_of(header)} from {span[0]:.6g} to {span[1]:.6g}; nothing says which are black and white",
        "the range that they were taken in",
        f"--range {shown} (range=({shown}) in Python), or put it with the others of its series into a folder",
    )


def kind_of(header: Header) -> str:
    """The kind of number in words: "16-bit whole numbers"."""
    what = {"uint": "whole numbers", "int": "signed whole numbers"}.get(header.sample, f"{header.sample} numbers")
    return f"{header.bits}-bit {what}"
