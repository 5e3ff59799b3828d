"""Reading photographs: any common file becomes uint8 (H, W, 3), turned the way its EXIF tag says.

How other than 8-bit RGB is converted:

- transparency is laid on white, unless it is 0 everywhere: then the picture is what its colours say. Palette, grey,
  1-bit, YCbCr and CMYK become RGB;
- of a TIFF with more bands than colours the first three are the colours (the first, if there are two). A band counts
  as transparency only where the file says so (ExtraSamples 1 or 2);
- of files with several pages or frames the first is read (`write_pages` takes them apart);
- values of more than 8 bits, grey and colour alike, go by a range (low, high): low becomes 0, high 255, what lies
  beyond is clipped, NaN becomes low. The range is one for a whole data set (`data.pictures.scale`). Without one it is
  that of the type: 0 to 65535 for 16 bits, 0 to 1 for floats, or what the file states (10, 12 or 14 bits, a largest
  value). It is never stretched to what a single file happens to hold. JPEG 2000 in colour keeps its 8 highest bits.

JPEG goes through libjpeg-turbo (simplejpeg), which can decode at 1/2, 1/4 and 1/8 of the size for a fraction of the
cost; the rest through Pillow, and TIFFs that Pillow does not know through tifffile. What libjpeg-turbo warns of (an
early end, a code that does not exist, data left over) is damage, as is a wrong checksum of any chunk of a PNG.
"""

from __future__ import annotations

import contextlib
import os
import re
import threading
from dataclasses import dataclass
from io import BytesIO

import numpy as np
import simplejpeg
from PIL import Image, ImageFile, ImageOps, features

from maskwright.data.pictures.deep import AlphaKind, Deep, Range, Span, flatten, read_deep, sure_span, type_span
from maskwright.data.pictures.headers import Header, check_png, most_pixels, open_pillow, open_regular, parse_header
from maskwright.data.pictures.image_errors import DECODER_ERRORS, image_error
from maskwright.data.pictures.turning import edge_offset, inverse, orient, orient_view, resize_window
from maskwright.data.pictures.turning import resize as resize
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

WHOLE_FILE = 1 << 26
"""Files of more bytes are not held in memory while they are decoded."""

_DAMAGE = re.compile(
    r"premature end|bad (Huffman|arithmetic) code|instead of RST|(\d+) extraneous bytes before marker", re.I
)
"""What libjpeg-turbo says of data that are not as they were written; other warnings are of what is only unusual."""


_one_large = threading.Lock()


class TooLargeError(MaskwrightError):
    """The image has more pixels than the limit: a decompression bomb, or a file for tiles."""


def read_image(
    path: str | os.PathLike[str], *, max_pixels: int | None = None, range: Range = None, sure: bool = False
) -> np.ndarray:
    """Reads an image.

    Args:
        path: the file.
        max_pixels: refuse larger images before decoding; `MAX_PIXELS` if None.
        range: (low, high), the stored values that become 0 and 255, or a function that gives them; used for files of
            more than 8 bits only. None: by the type or what the file states.
        sure: whether a file of more than 8 bits is an error where no range is given and its values use little of what
            its type holds.

    Returns:
        uint8 (H, W, 3), writable, RGB, EXIF orientation applied.

    Raises:
        MaskwrightError: missing, empty, truncated, damaged, too large, or no image at all; names the file.
    """
    data, header = _load(path, max_pixels)
    image, _, _ = _decode(path, data, header, range=range, sure=sure)
    return orient(image, header.orientation)


def read_header(path: str | os.PathLike[str]) -> Header:
    """Size, orientation and format of an image file without decoding it.

    Raises:
        MaskwrightError: missing, empty, or no image.
    """
    try:
        with open_regular(path) as file:
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
    range: Range = None,
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
        max_pixels, range: as `read_image`.

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
    image, factor, _ = _decode(path, data, header, factor, range=range)
    # A partial pixel at the stored right or bottom edge would lie at the start of a mirrored image; undo by
    # offset.
    offset_y, offset_x = edge_offset(header, image.shape[:2], factor)
    image = orient_view(image, header.orientation)
    box = (top / factor + offset_y, left / factor + offset_x)
    return resize_window(image, (*box, height / factor, width / factor), size)


@dataclass(frozen=True)
class Glance:
    """A whole image at the least cost.

    Attributes:
        header: what its header says.
        small: uint8 (h, w, 3), EXIF orientation applied.
        alpha: its transparency: "none", "opaque" everywhere, "used" (laid on white), "empty" (0 everywhere, ignored).
    """

    header: Header
    small: np.ndarray
    alpha: AlphaKind


def glance(path: str | os.PathLike[str], at_least: int = 32, *, range: Range = None) -> Glance:
    """Reads a whole image at the least cost; damage anywhere in the file still shows.

    A JPEG is decoded at the smallest scale (down to 1/8) whose sides are not below `at_least`: every coefficient is
    still read, but hardly anything is computed. Other formats are decoded as they are; of large ones only a smaller
    version is made RGB.

    Raises:
        MaskwrightError: as `read_image`.
    """
    data, header = _load(path, None)
    factor = 1
    if header.kind == "jpeg":
        factor = max(f for f in (1, 2, 4, 8) if f == 1 or min(header.stored) >= f * at_least)
    large = header.stored[0] * header.stored[1] > 4 * STRIP_PIXELS
    shrink = max(1, min(min(header.stored) // at_least, 16)) if large else 1
    if header.deep and callable(range):
        range = range()  # it may look through the folder, so not while others wait for this picture
    # Several threads look through folders at once; only one of them may hold a huge picture.
    with _one_large if large else contextlib.nullcontext():
        image, _, alpha = _decode(path, data, header, factor, range=range, shrink=shrink)
    return Glance(header, orient_view(image, header.orientation), alpha)


def read_small(path: str | os.PathLike[str], at_least: int = 32, *, range: Range = None) -> np.ndarray:
    """The picture of a `glance`, uint8 (h, w, 3). Raises as `read_image`."""
    return glance(path, at_least, range=range).small


def verify_image(path: str | os.PathLike[str]) -> None:
    """Reads a whole file to see that it decodes. Raises `MaskwrightError` as `read_image`."""
    # Any range would do, since the pixels are not looked at.
    glance(path, at_least=1, range=(0.0, 1.0))


def stored_values(path: str | os.PathLike[str]) -> np.ndarray:
    """The values of an image of more than 8 bits as they are stored, not turned: (H, W, 1) grey or (H, W, 3) colours.

    Raises:
        MaskwrightError: as `read_image`.
    """
    data, header = _load(path, None)
    try:
        with _one_large if header.stored[0] * header.stored[1] > 4 * STRIP_PIXELS else contextlib.nullcontext():
            return read_deep(path, data, header).colours
    except DECODER_ERRORS as error:
        raise image_error(path, error) from error


def picture_of(image: Image.Image, *, range: Range = None, sure: bool = False) -> np.ndarray:
    """An opened Pillow image as `read_image` gives its file: turned as its EXIF tag says, uint8 (H, W, 3), writable.

    A file that was opened and not touched yet is read again from its beginning, so that all its bits count. What was
    loaded or changed is taken as it is: 16-bit colours have then lost their low byte to Pillow.

    Args:
        image: of any mode.
        range, sure: as for `read_image`.

    Raises:
        MaskwrightError: the file behind it is damaged.
    """
    name = os.fsdecode(image.filename) if isinstance(image, ImageFile.ImageFile) else ""
    name = name or "the picture"
    try:
        if isinstance(image, ImageFile.ImageFile) and image.tile and image.tell() == 0:
            data = _bytes_behind(image)
            header = None if data is None else _checked(name, parse_header(BytesIO(data)))
            if data is not None and header is not None and _untouched(image, header):
                if header.kind == "png":
                    check_png(data)
                pixels, _, _ = _decode(name, data, header, range=range, sure=sure)
                return orient(pixels, header.orientation)
        image.load()
        turned = ImageOps.exif_transpose(image)
    except DECODER_ERRORS as error:
        raise image_error(name, error) from error
    return to_rgb(turned, range=range, sure=sure)


def _untouched(image: ImageFile.ImageFile, header: Header) -> bool:
    """Whether an opened image would still load as its file says (`draft` asks for another size or mode)."""
    drafted = header.kind == "jpeg" and image.mode != {1: "L", 3: "RGB", 4: "CMYK"}.get(header.channels)
    return not drafted and image.size in (header.stored[::-1], header.size[::-1])


def _bytes_behind(image: ImageFile.ImageFile) -> bytes | None:
    """The file of an image that Pillow has opened and not read yet, or None if it cannot be had."""
    file = image.fp
    if file is None or file.closed or not file.seekable():
        return None
    place = file.tell()
    file.seek(0)
    data = file.read()
    file.seek(place)
    return data


def to_rgb(image: Image.Image, *, range: Range = None, sure: bool = False) -> np.ndarray:
    """Converts a decoded Pillow image of any mode as this module's page says; it is not turned.

    Args:
        image: the image.
        range, sure: as for `read_image`.

    Returns:
        uint8 (H, W, 3), writable.
    """
    if image.mode.startswith("I") or image.mode == "F":
        values = np.asarray(image)[..., None]
        if image.mode == "I" and values.size and values.min() >= 0 and values.max() <= 65535:
            values = values.astype(np.uint16)  # Pillow's usual way to hold 16 bits
        sample = {"f": "float", "u": "uint"}.get(values.dtype.kind, "int")
        header = Header("pillow", values.shape[:2], bits=8 * values.dtype.itemsize, sample=sample)
        key = image.info.get("transparency")
        alpha = values[..., 0] != key if isinstance(key, int) else None
        return flatten(Deep(values, alpha), _span("the picture", header, values, range, sure))[0]
    return _flat(image, 1)[0]


def _flat(image: Image.Image, shrink: int) -> tuple[np.ndarray, AlphaKind]:
    """uint8 (H, W, 3) of a loaded 8-bit image, averaged over squares of `shrink` pixels, and its transparency."""
    width, height = image.size
    rows = max(1, STRIP_PIXELS // width // shrink) * shrink
    see_through = image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info
    least = most = 255
    if see_through:
        spans = [_opacity(_strip(image, top, rows)).getextrema() for top in _tops(height, rows)]
        least, most = min(int(s[0]) for s in spans), max(int(s[1]) for s in spans)  # type: ignore[arg-type]
    alpha: AlphaKind = "none" if not see_through else "empty" if most == 0 else "opaque" if least == 255 else "used"
    if height <= rows and shrink == 1:
        return np.array(_on_white(image, alpha)), alpha
    # Pillow hands pixels over as two more copies of the whole; in strips, 20000 x 20000 stays under 3 GiB.
    rgb = np.empty((-(-height // shrink), -(-width // shrink), 3), np.uint8)
    for top in _tops(height, rows):
        part = _on_white(_strip(image, top, rows), alpha)
        if shrink > 1:
            part = part.reduce(shrink)
        rgb[top // shrink : top // shrink + part.height] = np.asarray(part)
    return rgb, alpha


def _tops(height: int, rows: int) -> list[int]:
    return [rows * k for k in np.arange(-(-height // rows)).tolist()]


def _strip(image: Image.Image, top: int, rows: int) -> Image.Image:
    if rows >= image.height:
        return image
    return image.crop((0, top, image.width, min(image.height, top + rows)))


def _opacity(image: Image.Image) -> Image.Image:
    return image.getchannel("A") if image.mode in ("RGBA", "LA", "PA") else image.convert("RGBA").getchannel("A")


def _on_white(image: Image.Image, alpha: AlphaKind) -> Image.Image:
    if alpha == "empty":
        # `convert` lays nothing on anything, but would take a transparent colour for more than it is.
        return image.convert("RGBA").convert("RGB")
    if alpha == "none":
        return image if image.mode == "RGB" else image.convert("RGB")
    layered = image.convert("RGBA")
    ground = Image.new("RGB", image.size, (255, 255, 255))
    ground.paste(layered, mask=layered.getchannel("A"))
    return ground


def _span(path: str | os.PathLike[str], header: Header, values: np.ndarray, range: Range, sure: bool) -> Span:
    """The range of a deep file's values: what is given, else by its type, where that need be certain or an error."""
    span = range() if callable(range) else range
    if span is not None:
        return span
    return sure_span(path, header, values) if sure else type_span(header, values)


def _checked(path: str | os.PathLike[str], header: Header) -> Header:
    if min(header.stored) < 1:
        raise MaskwrightError(
            f"{path} says it is {header.stored[0]}x{header.stored[1]} pixels",
            "at least one",
            "export it again",
        )
    return header


def _load(path: str | os.PathLike[str], max_pixels: int | None) -> tuple[bytes | None, Header]:
    """The checked header, and the bytes of a file; those of a large one that is no JPEG are left on the disk."""
    limit = MAX_PIXELS if max_pixels is None else max_pixels
    data: bytes | None = None
    try:
        with open_regular(path) as file:
            size = os.fstat(file.fileno()).st_size
            start = file.read(8)
            file.seek(0)
            jpeg, png = start[:3] == b"\xff\xd8\xff", start == b"\x89PNG\r\n\x1a\n"
            if size <= WHOLE_FILE or jpeg:
                data = file.read()
            header = _checked(path, parse_header(file if data is None else BytesIO(data)))
            check_area(path, header, size, limit)
            if png:
                file.seek(0)
                check_png(file.read() if data is None else data)
    except DECODER_ERRORS as error:
        raise image_error(path, error) from error
    return data, header


def check_area(path: str | os.PathLike[str], header: Header, size: int, limit: int) -> None:
    """Refuses what has too many pixels, or more than a file of so many bytes can hold."""
    h, w = header.size
    if h * w > limit:
        raise TooLargeError(
            f"{path} says it is {h}x{w}, {h * w / 1e6:.0f} million pixels",
            f"at most {limit / 1e6:.0f} million",
            "cut it into tiles",
        )
    # Small pictures cost nothing, and their decoders have more to say about what is missing.
    most = most_pixels(header, size) if h * w > STRIP_PIXELS else None
    if most is not None and h * w > most:
        raise TooLargeError(
            f"{path} says it is {h}x{w}, which {size} bytes cannot hold: it is cut off or a decompression bomb",
            f"at most {most} pixels",
            "delete it or export it again",
        )


def _decode(
    path: str | os.PathLike[str],
    data: bytes | None,
    header: Header,
    factor: int = 1,
    *,
    range: Range = None,
    sure: bool = False,
    shrink: int = 1,
) -> tuple[np.ndarray, int, AlphaKind]:
    """Decodes to uint8 (H, W, 3) as stored.

    JPEG is decoded at 1/factor of the size if that can be done, other kinds may be averaged over squares of `shrink`
    pixels. Gives the factor used, and what the transparency is.
    """
    if data is not None and header.kind == "jpeg" and header.channels in (1, 3):
        h, w = header.stored
        small = (-(-h // factor), -(-w // factor))
        try:
            if factor > 1:
                image = simplejpeg.decode_jpeg(data, "RGB", min_height=small[0], min_width=small[1], min_factor=factor)
                if image.shape[:2] == small:
                    return image, factor, "none"
            return simplejpeg.decode_jpeg(data, "RGB"), 1, "none"
        except (ValueError, RuntimeError) as error:
            if _is_damage(str(error), data):
                raise image_error(path, error) from error
            # It also refuses what is only unusual; Pillow decides whether the file is damaged.
    try:
        if header.deep:
            deep = read_deep(path, data, header)
            image, alpha = flatten(deep, _span(path, header, deep.colours, range, sure))
        else:
            image, alpha = _shallow(path, data, header, shrink)
    except DECODER_ERRORS as error:
        raise image_error(path, error) from error
    except MemoryError as error:
        h, w = header.size
        raise MaskwrightError(f"not enough memory to decode {path} ({h}x{w})", "", "cut it into tiles") from error
    if image.shape[:2] != header.stored and shrink == 1:
        h, w = header.stored
        raise MaskwrightError(
            f"{path} says it is {h}x{w}, but holds {image.shape[0]}x{image.shape[1]} pixels",
            "a whole image",
            "delete it or export it again",
        )
    return image, 1, alpha


def _shallow(
    path: str | os.PathLike[str], data: bytes | None, header: Header, shrink: int
) -> tuple[np.ndarray, AlphaKind]:
    """Pixels of 8 bits or fewer, as stored."""
    # Not by its name: Pillow would map it into memory, with the sides of a turned TIFF swapped.
    file = open_regular(path) if data is None else BytesIO(data)
    with file:
        try:
            opened = open_pillow(file)
        except Image.UnidentifiedImageError:
            if header.tiff is None:
                raise
            return flatten(read_deep(path, data, header), (0.0, 255.0))
        opened.load()
        if header.tiff is None:
            return _flat(opened, shrink)
        # Newer Pillow has turned a TIFF already while loading and removed the tag; then this does nothing.
        turned = ImageOps.exif_transpose(opened)
        if header.tiff.alpha is None and turned.mode in ("RGBA", "LA"):
            # Pillow takes any fourth band for transparency.
            bands = turned.split()
            turned = bands[0] if turned.mode == "LA" else Image.merge("RGB", bands[:3])
        image, alpha = _flat(turned, shrink)
        return orient_view(image, inverse(header.orientation)), alpha


def _is_damage(warning: str, data: bytes) -> bool:
    """Whether what libjpeg-turbo says means that pixels are wrong or missing."""
    found = _DAMAGE.search(warning)
    if found is None or found[2] is None:
        return found is not None
    # Some cameras pad the data with equal bytes; other bytes were meant to be pixels.
    end = data.rfind(b"\xff\xd9")
    left_over = data[max(0, end - int(found[2])) : end]
    return len(set(left_over)) > 1
