"""Reading photographs: any common file becomes uint8 (H, W, 3), turned the way its EXIF tag says.

How other than 8-bit RGB is converted:

- transparency is laid on white; palette, grey, 1-bit, YCbCr and CMYK become RGB;
- grey images of more than 8 bits go by their largest value m: up to 255 the values are 8-bit and stay; up to
  4095 they are 12-bit (microscopes, X-ray) and are scaled by 255/4095; up to 65535 they are 16-bit and
  divided by 257; larger ones are scaled by 255/m. Floating-point images with values in [0, 1] are scaled by
  255, others as above;
- colour images of 16 bits a channel keep the high byte of each.

JPEG goes through libjpeg-turbo (simplejpeg), which can decode at 1/2, 1/4 and 1/8 of the size for a fraction
of the cost; the rest, and what libjpeg-turbo refuses, through Pillow.
"""

from __future__ import annotations

import contextlib
import os
import struct
import threading
import zlib
from io import BytesIO
from pathlib import Path

import numpy as np
import simplejpeg
from PIL import Image, ImageOps, features

from maskwright.data.headers import Header, open_pillow, parse_header
from maskwright.errors import MaskwrightError

IMAGE_SUFFIXES = frozenset(
    {
        ".jpg",
        ".jpeg",
        ".jpe",
        ".jfif",
        ".png",
        ".tif",
        ".tiff",
        ".webp",
        ".bmp",
        ".gif",
        ".ppm",
        ".pgm",
        ".jp2",
        ".mpo",
        *((".avif",) if features.check("avif") else ()),
    }
)
"""Suffixes, lower case, of the files that count as images."""

MAX_PIXELS = 1 << 30
"""Images of more pixels are refused before they are decoded: 3 GiB as uint8; 20000 x 20000 fits."""

STRIP_PIXELS = 1 << 24
"""Larger images are converted in strips of this many pixels."""

_SIGNATURES = (b"\xff\xd8\xff", b"\x89PNG", b"II*\0", b"MM\0*", b"GIF8", b"RIFF")

_one_large = threading.Lock()

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


class TooLargeError(MaskwrightError):
    """The image has more pixels than the limit: a decompression bomb, or a file for tiles."""


def read_image(path: str | os.PathLike[str], *, max_pixels: int | None = None) -> np.ndarray:
    """Reads an image.

    Args:
        path: the file.
        max_pixels: refuse larger images before decoding; `MAX_PIXELS` if None.

    Returns:
        uint8 (H, W, 3), writable, RGB, EXIF orientation applied.

    Raises:
        MaskwrightError: missing, empty, truncated, damaged, too large, or no image at all; names the file.
    """
    data, header = _load(path, max_pixels)
    image, _ = _decode(path, data, header, 1)
    return orient(image, header.orientation)


def read_header(path: str | os.PathLike[str]) -> Header:
    """Size, orientation and format of an image file without decoding it.

    Raises:
        MaskwrightError: missing, empty, or no image.
    """
    try:
        with open(path, "rb") as file:
            return _checked(path, parse_header(file))
    except DECODER_ERRORS as error:
        raise image_error(path, error) from error


def image_size(path: str | os.PathLike[str]) -> tuple[int, int]:
    """(H, W) of an image as `read_image` returns it, from the header alone. Raises as `read_header`."""
    return read_header(path).size


def read_resized(
    path: str | os.PathLike[str],
    size: tuple[int, int],
    window: tuple[int, int, int, int] | None = None,
    *,
    max_pixels: int | None = None,
) -> np.ndarray:
    """Reads an image, or a window of it, resized with antialiasing, decoding no more than that needs.

    A JPEG that is to shrink by 2, 4 or 8 or more is decoded at the nearest such scale that is not smaller
    than the result (libjpeg-turbo leaves out the frequencies that would vanish), then resized bilinearly with
    antialiasing. Window and result cover the same area to a fraction of a pixel at any scale.

    Args:
        path: the file.
        size: (h, w) of the result.
        window: (top, left, height, width) in pixels of the whole image as `read_image` returns it; None for
            all of it.
        max_pixels: as `read_image`.

    Returns:
        uint8 (h, w, 3).

    Raises:
        MaskwrightError: as `read_image`.
        ValueError: the size is not positive, or the window is empty or leaves the image.
    """
    data, header = _load(path, max_pixels)
    full_h, full_w = header.size
    top, left, height, width = window or (0, 0, full_h, full_w)
    if min(size) < 1:
        raise ValueError(f"size {size} is not positive")
    if min(top, left) < 0 or min(height, width) < 1 or top + height > full_h or left + width > full_w:
        raise ValueError(f"window {window} leaves the image of {full_h}x{full_w}")
    factor = 1
    if header.kind == "jpeg":
        shrink = min(height / size[0], width / size[1])
        factor = max(f for f in (1, 2, 4, 8) if f <= max(1.0, shrink))
    image, factor = _decode(path, data, header, factor)
    # A partial pixel at the stored right or bottom edge would lie at the start of a mirrored image; undo by
    # offset.
    offset_y, offset_x = _edge_offset(header, image.shape[:2], factor)
    image = orient_view(image, header.orientation)
    box = (top / factor + offset_y, left / factor + offset_x)
    return resize_window(image, (*box, height / factor, width / factor), size)


def resize_window(image: np.ndarray, window: tuple[float, float, float, float], size: tuple[int, int]) -> np.ndarray:
    """Resizes a window of an image bilinearly with antialiasing.

    Windows on whole pixels go through torch's uint8 kernel, others through Pillow's, which takes fractions.

    Args:
        image: uint8 (H, W, 3).
        window: (top, left, height, width) in pixels, fractions allowed.
        size: (h, w) of the result.

    Returns:
        uint8 (h, w, 3), its own memory.
    """
    top, left, height, width = window
    if all(float(v).is_integer() for v in window):
        part = image[int(top) : int(top + height), int(left) : int(left + width)]
        return np.array(part, order="C") if part.shape[:2] == tuple(size) else resize(part, size)
    # Cut the whole pixels around the window first: Pillow then copies that part only.
    y0, x0 = int(top), int(left)
    part = image[y0 : int(np.ceil(top + height)) + 1, x0 : int(np.ceil(left + width)) + 1]
    right, bottom = min(left - x0 + width, part.shape[1]), min(top - y0 + height, part.shape[0])
    source = Image.fromarray(np.ascontiguousarray(part))
    box = (left - x0, top - y0, right, bottom)
    return np.array(source.resize((size[1], size[0]), Image.Resampling.BILINEAR, box=box))


def resize(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Resizes bilinearly with antialiasing (within 1 grey level of Pillow's bilinear filter, faster).

    Args:
        image: uint8 (H, W, 3).
        size: (h, w).

    Returns:
        uint8 (h, w, 3).
    """
    # Torch takes two seconds to import, which sizes and the doctor do not need.
    import torch
    from torch.nn.functional import interpolate

    # A permuted view of (1, H, W, 3) is channels_last, for which torch has a vectorised uint8 kernel whose result is
    # channels_last too; adding the batch axis after the permutation loses that, and 0.15 ms to copies.
    x = torch.from_numpy(np.ascontiguousarray(image))[None].permute(0, 3, 1, 2)
    y = interpolate(x, size=tuple(size), mode="bilinear", align_corners=False, antialias=True)
    return np.ascontiguousarray(y.permute(0, 2, 3, 1)[0].numpy())


def orient_view(image: np.ndarray, orientation: int) -> np.ndarray:
    """Turns an image as EXIF orientation 1 to 8 says, without copying.

    Args:
        image: (H, W) or (H, W, 3) as stored.
        orientation: 1 to 8 (CIPA DC-008, tag 0x0112).

    Returns:
        The view as seen, (H, W, ...) or (W, H, ...) from orientation 5 on.
    """
    if orientation >= 5:
        image = image.swapaxes(0, 1)
    if orientation in (3, 4, 7, 8):
        image = image[::-1]
    if orientation in (2, 3, 6, 7):
        image = image[:, ::-1]
    return image


def orient(image: np.ndarray, orientation: int) -> np.ndarray:
    """As `orient_view`, contiguous in memory and writable."""
    turned = np.ascontiguousarray(orient_view(image, orientation))
    return turned if turned.flags.writeable else turned.copy()


def read_small(path: str | os.PathLike[str], at_least: int = 32) -> np.ndarray:
    """Reads a whole image at the least cost; damage anywhere in the file still shows.

    A JPEG is decoded at the smallest scale (down to 1/8) whose sides are not below `at_least`: every
    coefficient is still read, but hardly anything is computed. Other formats are decoded as they are.

    Returns:
        uint8 (h, w, 3), EXIF orientation applied.

    Raises:
        MaskwrightError: as `read_image`.
    """
    data, header = _load(path, None)
    factor = 1
    if header.kind == "jpeg":
        factor = max(f for f in (1, 2, 4, 8) if f == 1 or min(header.stored) >= f * at_least)
    large = header.stored[0] * header.stored[1] > 4 * STRIP_PIXELS
    # Several threads look through folders at once; only one of them may hold a huge picture.
    with _one_large if large else contextlib.nullcontext():
        image, _ = _decode(path, data, header, factor)
    return orient_view(image, header.orientation)


def verify_image(path: str | os.PathLike[str]) -> None:
    """Reads a whole file to see that it decodes. Raises `MaskwrightError` as `read_image`."""
    read_small(path, at_least=1)


def image_error(path: str | os.PathLike[str], error: BaseException) -> MaskwrightError:
    """The one-line error for a file that is not a readable image."""
    path = Path(path)
    repair = "delete it or export it again"
    if isinstance(error, FileNotFoundError):
        return MaskwrightError(f"{path} does not exist", "an image", "check the name")
    if isinstance(error, PermissionError | IsADirectoryError):
        return MaskwrightError(f"cannot read {path}: {error.strerror}", "an image", "check the name and its rights")
    try:
        with open(path, "rb") as file:
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


def to_rgb(image: Image.Image) -> np.ndarray:
    """Converts a decoded Pillow image of any mode as this module's page says.

    Returns:
        uint8 (H, W, 3), writable.
    """
    if image.mode.startswith("I") or image.mode == "F":
        return np.repeat(_grey_to_8bit(np.asarray(image))[..., None], 3, axis=2)
    width, height = image.size
    rows = max(1, STRIP_PIXELS // width)
    if height <= rows:
        return _layers_to_rgb(image)
    # Pillow hands pixels over as two more copies of the whole; in strips, 20000 x 20000 stays under 3 GiB.
    rgb = np.empty((height, width, 3), np.uint8)
    for top in range(0, height, rows):
        bottom = min(height, top + rows)
        rgb[top:bottom] = _layers_to_rgb(image.crop((0, top, width, bottom)))
    return rgb


def _layers_to_rgb(image: Image.Image) -> np.ndarray:
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        layered = image.convert("RGBA")
        ground = Image.new("RGB", image.size, (255, 255, 255))
        ground.paste(layered, mask=layered.getchannel("A"))
        return np.array(ground)
    return np.array(image if image.mode == "RGB" else image.convert("RGB"))


def _grey_to_8bit(values: np.ndarray) -> np.ndarray:
    values = np.nan_to_num(values) if values.dtype.kind == "f" else values
    low, top = (float(values.min()), float(values.max())) if values.size else (0.0, 0.0)
    if values.dtype.kind == "f" and low >= 0 and top <= 1:
        scale = 255.0
    elif top <= 255:
        scale = 1.0
    elif top <= 4095:
        scale = 255 / 4095
    elif top <= 65535:
        scale = 1 / 257
    else:
        scale = 255 / top
    return (values.astype(np.float32) * np.float32(scale) + np.float32(0.5)).clip(0, 255).astype(np.uint8)


def _is_text(start: bytes) -> bool:
    try:
        text = start.decode("utf-8", errors="strict" if len(start) < 512 else "ignore")
    except UnicodeDecodeError:
        return False
    return all(c.isprintable() or c.isspace() for c in text)


def _checked(path: str | os.PathLike[str], header: Header) -> Header:
    if min(header.stored) < 1:
        raise MaskwrightError(
            f"{path} says it is {header.stored[0]}x{header.stored[1]} pixels",
            "at least one",
            "export it again",
        )
    return header


def _load(path: str | os.PathLike[str], max_pixels: int | None) -> tuple[bytes | None, Header]:
    """The checked header, and the bytes of a JPEG; other kinds are left for Pillow to read from the file."""
    limit = MAX_PIXELS if max_pixels is None else max_pixels
    data: bytes | None = None
    try:
        with open(path, "rb") as file:
            if file.read(3) == b"\xff\xd8\xff":
                file.seek(0)
                data = file.read()
            file.seek(0)
            header = _checked(path, parse_header(file if data is None else BytesIO(data)))
    except DECODER_ERRORS as error:
        raise image_error(path, error) from error
    h, w = header.size
    if h * w > limit:
        raise TooLargeError(
            f"{path} says it is {h}x{w}, {h * w / 1e6:.0f} million pixels",
            f"at most {limit / 1e6:.0f} million",
            "cut it into tiles",
        )
    return data, header


def _decode(path: str | os.PathLike[str], data: bytes | None, header: Header, factor: int) -> tuple[np.ndarray, int]:
    """Decodes to uint8 (H, W, 3) as stored, at 1/factor of the size if that can be done; gives the factor
    used."""
    if data is not None and header.kind == "jpeg" and header.channels in (1, 3):
        h, w = header.stored
        small = (-(-h // factor), -(-w // factor))
        try:
            if factor > 1:
                image = simplejpeg.decode_jpeg(data, "RGB", min_height=small[0], min_width=small[1], min_factor=factor)
                if image.shape[:2] == small:
                    return image, factor
            return simplejpeg.decode_jpeg(data, "RGB"), 1
        except (ValueError, RuntimeError):
            # It also refuses what is only unusual; Pillow decides whether the file is damaged.
            pass
    try:
        with open_pillow(BytesIO(data) if data is not None else Path(path)) as opened:
            opened.load()
            # Newer Pillow has turned a TIFF already while loading and removed the tag; then this does
            # nothing.
            image = to_rgb(ImageOps.exif_transpose(opened) if header.kind == "tiff" else opened)
    except DECODER_ERRORS as error:
        raise image_error(path, error) from error
    except MemoryError as error:
        h, w = header.size
        raise MaskwrightError(f"not enough memory to decode {path} ({h}x{w})", "", "cut it into tiles") from error
    return (orient_view(image, _inverse(header.orientation)) if header.kind == "tiff" else image), 1


def _inverse(orientation: int) -> int:
    """The orientation that undoes another: quarter turns swap, the rest are their own inverse."""
    return {6: 8, 8: 6}.get(orientation, orientation)


def _edge_offset(header: Header, decoded: tuple[int, int], factor: int) -> tuple[float, float]:
    """How far the first seen row and column lie inside the decoded array, in decoded pixels.

    At 1/factor the last stored row or column may cover less than a whole pixel of the image. Mirroring brings
    it to the front.
    """
    spare = (decoded[0] - header.stored[0] / factor, decoded[1] - header.stored[1] / factor)
    o = header.orientation
    flips_rows, flips_columns = o in (3, 4, 7, 8), o in (2, 3, 6, 7)
    rows, columns = (spare[1], spare[0]) if o >= 5 else spare
    return (rows if flips_rows else 0.0), (columns if flips_columns else 0.0)
