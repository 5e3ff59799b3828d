"""What the first bytes of an image file say: its size and how it is to be turned, without decoding it.

JPEG and PNG are walked here because Pillow decodes a whole PNG before it tells the orientation, and because a
header that is read in ten microseconds makes sizes free and bombs harmless.
"""

from __future__ import annotations

import struct
import threading
import zlib
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import BinaryIO

from PIL import Image

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
        channels: colour components of a JPEG, 0 for other kinds.
    """

    kind: str
    stored: tuple[int, int]
    orientation: int = 1
    channels: int = 0

    @property
    def size(self) -> tuple[int, int]:
        """(H, W) as seen, after the orientation is applied."""
        h, w = self.stored
        return (w, h) if self.orientation >= 5 else (h, w)


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
    file.seek(0)
    image = open_pillow(file)
    stored = (image.height, image.width)
    kind = (image.format or "").lower()
    if kind == "tiff":
        # Pillow's TIFF reader turns the picture itself and swaps the size it reports; go back to what is
        # stored.
        tags = image.tag_v2  # type: ignore[attr-defined]
        turn = _valid(tags.get(_ORIENTATION, 1))
        return Header(kind, (int(tags[257]), int(tags[256])), turn)
    return Header(kind, stored, _pillow_orientation(image))


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
    orientation = 1
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
            return Header("jpeg", (height, width), orientation, channels)
        if marker == 0xE1:
            segment = file.read(size)
            if segment[:6] == b"Exif\0\0":
                orientation = exif_orientation(segment[6:])
        else:
            file.seek(size, 1)


def _png(file: BinaryIO) -> Header:
    size, orientation = None, 1
    file.seek(8)
    while True:
        head = file.read(8)
        if len(head) < 8:
            break
        length, kind = struct.unpack(">I4s", head)
        if kind == b"IHDR":
            width, height = struct.unpack(">II", file.read(8))
            size = (height, width)
            file.seek(length - 8 + 4, 1)
        elif kind == b"eXIf" and length < 1 << 20:
            orientation = exif_orientation(file.read(length).removeprefix(b"Exif\0\0"))
            file.seek(4, 1)
        elif kind == b"IEND":
            break
        else:
            file.seek(length + 4, 1)
    if size is None:
        raise SyntaxError("PNG without a header chunk")
    return Header("png", size, orientation)


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
