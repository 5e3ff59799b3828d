"""What is wrong with a file that is no readable image, in one line."""

from __future__ import annotations

import os
import struct
import zlib
from pathlib import Path

from PIL import Image

from maskwright.data.pictures.headers import open_regular
from maskwright.errors import MaskwrightError

_SIGNATURES = (b"\xff\xd8\xff", b"\x89PNG", b"II*\0", b"MM\0*", b"GIF8", b"RIFF")

DECODER_ERRORS = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    LookupError,
    TypeError,
    ArithmeticError,
    AttributeError,
    NotImplementedError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
)
"""What Pillow's decoders raise on damaged files."""


def image_error(path: str | os.PathLike[str], error: BaseException) -> MaskwrightError:
    """The one-line error for a file that is not a readable image."""
    path = Path(path)
    repair = "delete it or export it again"
    if isinstance(error, MaskwrightError):
        return error
    if isinstance(error, FileNotFoundError):
        return MaskwrightError(f"{path} does not exist", "an image", "check the name")
    if isinstance(error, PermissionError | IsADirectoryError):
        return MaskwrightError(f"cannot read {path}: {error.strerror}", "an image", "check the name and its rights")
    try:
        with open_regular(path) as file:
            start = file.read(512)
    except OSError as problem:
        return MaskwrightError(f"cannot read {path}: {problem.strerror}", "an image", "check the disk")
    if not start:
        return MaskwrightError(f"{path} has 0 bytes", "an image", repair)
    unknown = isinstance(error, Image.UnidentifiedImageError) and not start.startswith(_SIGNATURES)
    if unknown or not start.strip(b"\0"):
        what = "is text, not an image" if _is_text(start) else "is not an image of a known format"
        return MaskwrightError(f"{path} {what}", "a JPEG, PNG, TIFF or WebP image", repair)
    reason = str(error).strip().rstrip(".") or type(error).__name__
    if isinstance(error, Image.UnidentifiedImageError):
        reason = "its header is not whole"
    return MaskwrightError(f"{path} is damaged or truncated ({reason[:100]})", "a whole image", repair)


def _is_text(start: bytes) -> bool:
    try:
        text = start.decode("utf-8", errors="strict" if len(start) < 512 else "ignore")
    except UnicodeDecodeError:
        return False
    return all(c.isprintable() or c.isspace() for c in text)
