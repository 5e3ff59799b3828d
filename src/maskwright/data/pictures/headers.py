"""What the first bytes of an image file say: its size, its kind of values, how it is to be turned; nothing is decoded.

JPEG, PNG and TIFF are walked here because Pillow decodes a whole PNG before it tells the orientation, opens no TIFF
that it cannot decode, and because a header that is read in ten microseconds makes sizes free and bombs harmless.
"""

from __future__ import annotations

import os
import stat
import struct
import threading
import zlib
from dataclasses import dataclass, replace
from io import BytesIO
from pathlib import Path
from typing import BinaryIO

from PIL import Image

from maskwright.data.pictures.tiff import TiffPage, bytes_of, read_page
from maskwright.errors import MaskwrightError

_ORIENTATION = 0x0112
_PNG = b"\x89PNG\r\n\x1a\n"
_pillow_limit = threading.Lock()


@dataclass(frozen=True)
class Header:
    """The header of an image file.

    Attributes:
        kind: "jpeg", "png", or Pillow's name of another format in lower case.
        stored: (H, W) as stored, before the orientation is applied.
        orientation: EXIF orientation, 1 to 8 (1: as stored).
        channels: bands of a JPEG, PNG, TIFF or PNM, 0 for other kinds.
        bits: bits of a channel.
        sample: "uint", "int", "float" or "complex".
        palette: whether the values are places in a palette.
        alpha: whether the header says that there is a band of transparency.
        pages: pages or frames.
        stated: (lowest, highest) value that the header says, where it says more than the type; else None.
        tiff: the tags of a TIFF.
    """

    kind: str
    stored: tuple[int, int]
    orientation: int = 1
    channels: int = 0
    bits: int = 8
    sample: str = "uint"
    palette: bool = False
    alpha: bool = False
    pages: int = 1
    stated: tuple[float, float] | None = None
    tiff: TiffPage | None = None

    @property
    def size(self) -> tuple[int, int]:
        """(H, W) as seen, after the orientation is applied."""
        h, w = self.stored
        return (w, h) if self.orientation >= 5 else (h, w)

    @property
    def deep(self) -> bool:
        """Whether the values need a range to become 8 bits: more than 8 bits, signed, or floats."""
        if self.kind == "tiff" and self.tiff is not None and self.tiff.photometric not in (0, 1, 2):
            return False  # CMYK, YCbCr and the like come as 8 bits
        return self.bits > 8 or self.sample != "uint"

    @property
    def extra_bands(self) -> int:
        """Bands beyond colours and transparency, which are not used."""
        if self.tiff is None:
            return 0
        return max(0, self.tiff.bands - self.tiff.colours - (self.tiff.alpha is not None))

    @property
    def type_range(self) -> tuple[float, float]:
        """(black, white) by the type alone: all that the bits hold, 0 to 1 for floats."""
        if self.sample == "float":
            return 0.0, 1.0
        if self.sample == "int":
            return -float(2 ** (self.bits - 1)), float(2 ** (self.bits - 1) - 1)
        return 0.0, float(2**self.bits - 1)


def open_regular(path: str | os.PathLike[str]) -> BinaryIO:
    """Opens a file to read; pipes, sockets and devices, which may block or do something, are refused unopened.

    Raises:
        MaskwrightError: it is no regular file.
        OSError: it cannot be opened.
    """
    check_regular(path, os.stat(path))
    return open(path, "rb")


def check_regular(path: str | os.PathLike[str], state: os.stat_result) -> None:
    """Raises `MaskwrightError` where the state of a file says that it is a pipe, a socket or a device."""
    if not stat.S_ISREG(state.st_mode) and not stat.S_ISDIR(state.st_mode):
        kinds = {stat.S_IFIFO: "a pipe", stat.S_IFSOCK: "a socket", stat.S_IFCHR: "a device", stat.S_IFBLK: "a device"}
        what = kinds.get(stat.S_IFMT(state.st_mode), "no file")
        raise MaskwrightError(f"{path} is {what}", "a regular file", "take it out of the folder")


def most_pixels(header: Header, size: int) -> int | None:
    """The most pixels that a file of so many bytes can hold in its format, or None where there is no such bound.

    A file that says more is cut off or a decompression bomb. The bounds are those of the best possible compression:

    - PNG and deflate: 1032 bytes a byte (258 bytes of a match in 2 bits), that many pixels of 8 bits;
    - GIF and LZW: codes of 12 bits stand for at most 4096 - 6 equal pixels, 2727 pixels a byte;
    - packbits: 128 bytes in 2; none: 1 byte a byte;
    - JPEG with Huffman codes: a block of 8 x 8 takes at least one bit, 512 pixels a byte; four times that is let pass,
      because rare samplings stretch a block.
    """
    bits = max(1, header.bits * max(1, header.channels))
    if header.kind == "png":
        return 8 * 1032 * size // bits
    if header.kind == "gif":
        return 2731 * size
    if header.kind == "jpeg":
        return 4 * 512 * size
    if header.tiff is not None:
        ratio = {1: 1, 5: 2731, 8: 1032, 32946: 1032, 32773: 64}.get(header.tiff.compression)
        area = header.stored[0] * header.stored[1]
        return None if ratio is None else area * ratio * size // max(1, bytes_of(header.tiff))
    return None


def parse_header(file: BinaryIO) -> Header:
    """Reads the header of an open image file.

    Raises:
        OSError, SyntaxError, ValueError, struct.error: and whatever else Pillow raises where there is no
        image.
    """
    start = file.read(8)
    if start[:3] == b"\xff\xd8\xff":
        header = _jpeg(file)
        if header is not None:
            return header
    elif start == _PNG:
        return _png(file)
    elif start[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"):
        page = read_page(file)
        bits = max(page.bits)
        return Header(
            "tiff", page.size, page.orientation, page.bands, bits, page.sample, page.photometric == 3,
            page.alpha is not None, page.pages, page.stated, page,
        )  # fmt: skip
    elif start[:2] in (b"P5", b"P6"):
        found = _pnm(file)
        if found is not None:
            return found
    file.seek(0)
    image = open_pillow(file)
    stored = (image.height, image.width)
    kind = (image.format or "").lower()
    header = Header(kind, stored, _pillow_orientation(image), palette=image.mode in ("P", "PA"))
    if kind == "gif":
        return replace(header, pages=_gif_frames(file))
    if kind == "webp":
        return replace(header, pages=_webp_frames(file), alpha=image.mode == "RGBA")
    if kind == "jpeg2000":
        bits = _jpeg2000_bits(file)
        deep = bits > 8 and image.mode.startswith("I")  # of colours Pillow gives the 8 highest bits
        return replace(header, bits=bits if deep else 8, alpha=image.mode in ("RGBA", "LA"))
    return replace(header, alpha=image.mode in ("RGBA", "LA", "PA"))


def open_pillow(source: BinaryIO | BytesIO | str | Path) -> Image.Image:
    """`Image.open` without Pillow's own pixel limit; the caller checks the size itself.

    Pillow's limit is a global of its module that refuses images above 179 million pixels; it is lifted only
    while the header is read.
    """
    with _pillow_limit:
        before = Image.MAX_IMAGE_PIXELS
        Image.MAX_IMAGE_PIXELS = None
        try:
            return Image.open(source)
        finally:
            Image.MAX_IMAGE_PIXELS = before


def _valid(value: object) -> int:
    return value if isinstance(value, int) and 1 <= value <= 8 else 1


def _pillow_orientation(image: Image.Image) -> int:
    exif = image.info.get("exif")
    return exif_orientation(exif.removeprefix(b"Exif\0\0")) if isinstance(exif, bytes) else 1


def exif_orientation(tiff: bytes) -> int:
    """Orientation in an EXIF block (which is a small TIFF file), 1 where it is absent or damaged."""
    order = {b"II": "<", b"MM": ">"}.get(tiff[:2])
    if order is None or len(tiff) < 14:
        return 1
    (first,) = struct.unpack_from(f"{order}I", tiff, 4)
    if first + 2 > len(tiff):
        return 1
    (count,) = struct.unpack_from(f"{order}H", tiff, first)
    for entry in range(first + 2, min(first + 2 + 12 * count, len(tiff) - 11), 12):
        tag, kind = struct.unpack_from(f"{order}HH", tiff, entry)
        if tag == _ORIENTATION:
            (value,) = struct.unpack_from(f"{order}{'I' if kind == 4 else 'H'}", tiff, entry + 8)
            return _valid(value)
    return 1


def _jpeg(file: BinaryIO) -> Header | None:
    """Walks the markers to the frame header; None if the markers are not in order (Pillow may still cope)."""
    orientation, pictures = 1, b""
    place = 0
    file.seek(2)
    while True:
        byte = file.read(1)
        if byte != b"\xff":
            return None
        while byte == b"\xff":
            byte = file.read(1)
        if not byte:
            return None
        marker = byte[0]
        if marker == 0x01 or 0xD0 <= marker <= 0xD8:
            continue
        if marker in (0xD9, 0xDA):
            return None
        length = file.read(2)
        if len(length) < 2:
            return None
        size = struct.unpack(">H", length)[0] - 2
        if size < 0:
            return None
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            frame = file.read(6)
            if len(frame) < 6:
                return None
            _, height, width, channels = struct.unpack(">BHHB", frame)
            pages = 1 + _further_pictures(file, pictures, place, frame[1:5]) if pictures else 1
            return Header("jpeg", (height, width), orientation, channels, pages=pages)
        if marker == 0xE1:
            segment = file.read(size)
            if segment[:6] == b"Exif\0\0":
                orientation = exif_orientation(segment[6:])
        elif marker == 0xE2 and size > 4:
            name = file.read(4)
            if name == b"MPF\0":
                place = file.tell()
                pictures = file.read(size - 4)
            else:
                file.seek(size - 4, 1)
        else:
            file.seek(size, 1)


def _further_pictures(file: BinaryIO, index: bytes, place: int, size: bytes) -> int:
    """Pictures beside the first in a file of several JPEGs (CIPA DC-007) that are as large as it.

    Phones keep previews, depth and light maps so, which are smaller and no pages.
    """
    order = {b"II": "<", b"MM": ">"}.get(index[:2])
    try:
        (first,) = struct.unpack_from(f"{order}I", index, 4)
        (count,) = struct.unpack_from(f"{order}H", index, first)
        entries = [struct.unpack_from(f"{order}HHII", index, first + 2 + 12 * k) for k in range(count)]
        length, offset = next((e[2], e[3]) for e in entries if e[0] == 0xB002)
        starts = [struct.unpack_from(f"{order}I", index, offset + 16 * k + 8)[0] for k in range(1, length // 16)]
    except (struct.error, StopIteration):
        return 0
    found = 0
    for start in starts[:1000]:
        file.seek(place + start)
        found += _frame_size(file) == size
    return found


def _frame_size(file: BinaryIO) -> bytes | None:
    """The four bytes of height and width in the frame header of the JPEG that begins here."""
    if file.read(2) != b"\xff\xd8":
        return None
    while True:
        head = file.read(4)
        if len(head) < 4 or head[0] != 0xFF or head[1] in (0xD9, 0xDA):
            return None
        if 0xC0 <= head[1] <= 0xCF and head[1] not in (0xC4, 0xC8, 0xCC):
            return file.read(5)[1:]
        file.seek(max(0, struct.unpack(">H", head[2:])[0] - 2), 1)


def _gif_frames(file: BinaryIO) -> int:
    """Frames of a GIF, by its blocks; at least 1."""
    file.seek(0)
    data = file.read()
    if len(data) < 13:
        return 1
    place, frames = 13 + (3 << (data[10] & 7) + 1 if data[10] & 0x80 else 0), 0
    while place < len(data) and data[place] in (0x21, 0x2C):
        if data[place] == 0x2C:
            frames += 1
            flags = data[place + 9] if place + 9 < len(data) else 0
            place += 11 + (3 << (flags & 7) + 1 if flags & 0x80 else 0)
        else:
            place += 2
        while place < len(data) and data[place]:
            place += 1 + data[place]
        place += 1
    return max(1, frames)


def _webp_frames(file: BinaryIO) -> int:
    """Frames of a WebP, by its chunks; at least 1."""
    file.seek(12)
    frames = 0
    while len(head := file.read(8)) == 8:
        frames += head[:4] == b"ANMF"
        length = struct.unpack("<I", head[4:])[0]
        file.seek(length + (length & 1), 1)
    return max(1, frames)


def _jpeg2000_bits(file: BinaryIO) -> int:
    """Bits of a channel of a JPEG 2000, 8 where they are not found."""
    file.seek(0)
    start = file.read(1 << 16)
    place = start.find(b"\xff\x4f\xff\x51")  # start of the codestream, then of its size segment
    return (start[place + 42] & 0x7F) + 1 if 0 <= place < len(start) - 42 else 8


def _pnm(file: BinaryIO) -> Header | None:
    """A binary PGM or PPM; None where its header has comments or is damaged (Pillow decides)."""
    file.seek(0)
    words = file.read(64).split(maxsplit=4)
    if len(words) < 4 or not all(w.isdigit() for w in words[1:4]):
        return None
    width, height, top = (int(w) for w in words[1:4])
    if not 0 < top < 65536:
        return None
    channels = 1 if words[0] == b"P5" else 3
    stated = (0.0, float(top)) if top > 255 else None
    return Header("ppm", (height, width), channels=channels, bits=16 if top > 255 else 8, stated=stated)


_PNG_CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}


def _png(file: BinaryIO) -> Header:
    size, orientation = None, 1
    bits, colour, frames, significant = 8, 2, 1, b""
    file.seek(8)
    while True:
        head = file.read(8)
        if len(head) < 8:
            break
        length, kind = struct.unpack(">I4s", head)
        if kind == b"IHDR":
            width, height, bits, colour = struct.unpack(">IIBB", file.read(10))
            size = (height, width)
            file.seek(length - 10 + 4, 1)
        elif kind == b"sBIT" and 1 <= length <= 4:
            significant = file.read(length)
            file.seek(4, 1)
        elif kind == b"acTL" and length == 8:
            frames = struct.unpack(">I4x", file.read(8))[0]
            file.seek(4, 1)
        elif kind == b"eXIf" and length < 1 << 20:
            orientation = exif_orientation(file.read(length).removeprefix(b"Exif\0\0"))
            file.seek(4, 1)
        elif kind == b"IEND":
            break
        else:
            file.seek(length + 4, 1)
    if size is None:
        raise SyntaxError("PNG without a header chunk")
    used = max(significant, default=0)
    return Header(
        "png", size, orientation, _PNG_CHANNELS.get(colour, 1), bits, palette=colour == 3, alpha=colour in (4, 6),
        pages=max(1, frames), stated=(0.0, float(2**used - 1)) if bits == 16 and 8 < used < 16 else None,
    )  # fmt: skip


def check_png(data: bytes) -> None:
    """Compares the checksum of every chunk of a PNG with its contents; decoders let wrong ones pass.

    Args:
        data: the whole file.

    Raises:
        SyntaxError: not a PNG, a chunk whose checksum is wrong, or an end before the last chunk (IEND).
    """
    if data[:8] != _PNG:
        raise SyntaxError("not a PNG")
    view, place = memoryview(data), 8
    while place + 12 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, place)
        end = place + 8 + length
        if end + 4 > len(data):
            break
        if zlib.crc32(view[place + 4 : end]) != struct.unpack_from(">I", data, end)[0]:
            raise SyntaxError(f"wrong checksum of chunk {kind.decode('ascii', 'replace')}")
        if kind == b"IEND":
            return
        place = end + 4
    raise SyntaxError("it ends before its last chunk")
