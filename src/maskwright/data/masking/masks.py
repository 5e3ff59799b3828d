"""Reading and writing masks: the id of each pixel, exactly.

A mask is an index image: 8-bit grey, palette or 1-bit PNG (255 = ignore), or 16-bit grey (65535 = ignore); or an array
that numpy saved.
Here the value in the file is the id; what else it may mean in a data set is said by `label_rules.LabelRule`.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from maskwright.data.masking.classes import IGNORE8, IGNORE16, ClassTable, default_palette
from maskwright.data.pictures.headers import check_png, open_pillow, parse_header
from maskwright.data.pictures.images import DECODER_ERRORS, MAX_PIXELS, check_area, image_error
from maskwright.data.trust.files import atomic_write
from maskwright.errors import MaskwrightError

MASK_SUFFIXES = (".png", ".tif", ".tiff", ".bmp", ".gif", ".webp", ".npy", ".jpg", ".jpeg")
"""Suffixes of the files that count as masks, the first that exists wins. JPEG is found so that it can be
refused."""

COLOURS_FILE = "colors.txt"
"""Beside classes.txt: the colours that masks draw the classes in."""

# Pillow stretches grey of 2 and 4 bits to 0..255; the ids are what they were divided by these.
_STRETCH = {"L;2": 85, "L;4": 17, "L;2I": 85, "L;4I": 17}


class MaskError(MaskwrightError):
    """A mask whose file cannot give class ids; `kind` is what the doctor calls it."""

    kind = "unreadable-mask"


class ColourMaskError(MaskError):
    """The mask is a colour image."""

    kind = "colour-mask"


class LossyMaskError(MaskError):
    """The mask was compressed with losses, as JPEG does."""

    kind = "lossy-mask"


class FloatMaskError(MaskError):
    """The mask holds floating-point numbers."""

    kind = "float-mask"


class PagesMaskError(MaskError):
    """The mask's file holds several pictures."""

    kind = "mask-pages"


def codes_of(colours: np.ndarray) -> np.ndarray:
    """The codes of colours, uint8 (..., 3): R * 65536 + G * 256 + B, uint32 (...)."""
    bands = colours.astype(np.uint32)
    return (bands[..., 0] << 16) | (bands[..., 1] << 8) | bands[..., 2]


def colour_of(code: int) -> tuple[int, int, int]:
    """The colour (R, G, B) that a code stands for."""
    return code >> 16, (code >> 8) & 255, code & 255


@dataclass(frozen=True, eq=False)
class StoredMask:
    """A mask as its file holds it, before anything is said of what the values mean.

    Attributes:
        kind: "grey" (8 bits or fewer), "palette", "wide" (more than 8 bits) or "colour".
        values: uint8 (H, W), uint16 (H, W) where wide, uint8 (H, W, 3) where colour; turned as an EXIF tag says.
        palette: uint8 (256, 3), the colours of the values where the kind is "palette"; those beyond its end are black.
    """

    kind: str
    values: np.ndarray
    palette: np.ndarray | None = None

    @property
    def equal(self) -> bool:
        """Whether the three channels of a colour mask hold the same."""
        if self.kind != "colour":
            return False
        red = self.values[..., 0]
        return bool((red == self.values[..., 1]).all() and (red == self.values[..., 2]).all())

    def codes(self) -> np.ndarray:
        """The colour that each pixel is drawn in, uint32 (H, W), as `codes_of`."""
        if self.kind == "colour":
            return codes_of(self.values)
        if self.palette is not None:
            return codes_of(self.palette)[self.values]
        grey = self.values if self.kind == "grey" else self.values >> 8
        return grey.astype(np.uint32) * np.uint32(0x010101)


def read_stored(path: str | os.PathLike[str]) -> StoredMask:
    """Reads what a mask file holds.

    Raises:
        MaskError: missing, damaged (a wrong checksum of a PNG counts), compressed with losses, of floating-point
            numbers, of several pages, transparent, or of values that are no ids.
    """
    if os.fspath(path).lower().endswith(".npy"):
        return _read_array(path)
    image, stretch = _open(path)
    mode = image.mode
    if mode in ("P", "L"):
        values = np.array(image)
        if mode == "P":
            return StoredMask("palette", values, _palette(image))
        return StoredMask("grey", values // np.uint8(stretch) if stretch != 1 else values)
    if mode == "1":
        return StoredMask("grey", np.array(image).astype(np.uint8))
    if mode.startswith("I"):
        values = np.array(image)
        if values.size and (values.min() < 0 or values.max() > IGNORE16):
            raise MaskError(
                f"mask {path} has values from {values.min()} to {values.max()}",
                "class ids from 0 to 65535",
                "write it as an 8- or 16-bit index PNG",
            )
        return StoredMask("wide", values.astype(np.uint16))
    if mode == "F":
        values = np.array(image)
        raise FloatMaskError(
            f"mask {path} holds floating-point numbers ({values.min():g} to {values.max():g}), which are no class ids",
            "whole numbers",
            "round them and write it as an 8- or 16-bit index PNG",
        )
    if mode in ("LA", "PA", "RGBA"):
        bands = np.array(image)
        if not (bands[..., -1] == 255).all():
            raise MaskError(
                f"mask {path} is transparent in places, so what is drawn there is not certain",
                "an opaque picture",
                "write it again as an index PNG without alpha",
            )
        if mode == "PA":
            return StoredMask("palette", np.ascontiguousarray(bands[..., 0]), _palette(image))
        if mode == "LA":
            return StoredMask("grey", np.ascontiguousarray(bands[..., 0]))
        return StoredMask("colour", np.ascontiguousarray(bands[..., :3]))
    return StoredMask("colour", np.array(image if mode == "RGB" else image.convert("RGB")))


def _read_array(path: str | os.PathLike[str]) -> StoredMask:
    """A mask as numpy saves an array: whole numbers or bool (H, W); of one byte as 8 bits, of more as 16."""
    try:
        values = np.load(path, mmap_mode="r", allow_pickle=False)
        if values.ndim == 3 and 1 in (values.shape[0], values.shape[2]):
            values = values[0] if values.shape[0] == 1 else values[..., 0]
        if values.ndim != 2 or not 0 < values.size <= MAX_PIXELS or values.dtype.kind not in "biuf":
            raise MaskError(
                f"mask {path} is an array of shape {values.shape} and type {values.dtype}",
                "class ids (H, W)",
                "save one id a pixel, as uint8 or uint16",
            )
        if values.dtype.kind == "f":
            raise FloatMaskError(
                f"mask {path} holds floating-point numbers, which are no class ids",
                "whole numbers",
                "round them and save it as uint8 or uint16",
            )
        low, high = int(values.min()), int(values.max())
        if low < 0 or high > IGNORE16:
            raise MaskError(
                f"mask {path} has values from {low} to {high}",
                "class ids from 0 to 65535",
                "save it as uint8 or uint16",
            )
        wide = values.dtype.itemsize > 1
        return StoredMask("wide" if wide else "grey", np.array(values).astype(np.uint16 if wide else np.uint8))
    except (OSError, ValueError, EOFError, SyntaxError, TypeError, MemoryError) as error:
        reason = getattr(error, "strerror", None) or str(error)[:100] or type(error).__name__
        raise MaskError(f"mask {path} cannot be read as an array ({reason})", "a .npy file of numpy") from error


def read_mask(path: str | os.PathLike[str]) -> np.ndarray:
    """Reads the stored values of an index mask as ids.

    Args:
        path: PNG (or TIFF, BMP, GIF) of mode palette, grey of 1, 2, 4, 8 or 16 bits.

    Returns:
        uint8 (H, W), or uint16 (H, W) for files of more than 8 bits.

    Raises:
        MaskwrightError: as `read_stored`, or a colour image, which has no ids of its own.
    """
    stored = read_stored(path)
    if stored.kind == "colour":
        raise colour_mask_error(path, stored)
    return stored.values


def colour_mask_error(path: str | os.PathLike[str], stored: StoredMask) -> ColourMaskError:
    """The error for a mask that is a colour image."""
    if stored.equal:
        return ColourMaskError(
            f"mask {path} is grey saved as a colour image",
            "an index PNG: one id a pixel, with or without a palette",
            "add --labels grey: its three equal channels hold the id",
        )
    return ColourMaskError(
        f"mask {path} is a colour image, so its class ids are not known",
        "an index PNG: one id a pixel, with or without a palette",
        f"write {COLOURS_FILE} beside classes.txt, a line 'R G B' for each class in the order of the ids, and add "
        "--labels colours",
    )


def write_mask(
    path: str | os.PathLike[str],
    ids: np.ndarray,
    table: ClassTable | None = None,
    *,
    none: tuple[int, int, int] = (255, 255, 255),
) -> None:
    """Writes an index PNG, beside its place and then renamed into it.

    8-bit with a palette up to 255 classes (the palette entry of 255, which stands for ignore, is `none`), else 16-bit
    grey, whose ignore id is 65535: all masks of one table get one depth, whatever ids a picture happens to hold.

    Args:
        path: the file, `.png`.
        ids: integers or bool (H, W), from 0 to 65535; one above 255 makes 16 bits of any table.
        table: classes, for the palette and the depth; without it the ids decide and the default palette is
            used.
        none: the colour of 255.

    Raises:
        MaskwrightError: the disk is full or the place cannot be written.
        ValueError: ids of another shape, type or range.
    """
    ids = np.asarray(ids)
    if ids.ndim != 2 or ids.dtype.kind not in "iub" or 0 in ids.shape:
        raise ValueError(f"ids have shape {ids.shape} and type {ids.dtype}, expected integers (H, W)")
    low, high = int(ids.min()), int(ids.max())
    if low < 0 or high > IGNORE16:
        raise ValueError(f"ids from {low} to {high}, expected 0 to {IGNORE16}")
    classes = len(table) if table is not None else 0
    if high <= IGNORE8 and classes <= IGNORE8:
        palette = default_palette(256)
        if table is not None:
            palette[:classes] = table.colors
        palette[IGNORE8] = none
        image = Image.fromarray(ids.astype(np.uint8))
        image.putpalette(palette.tobytes())  # turns a grey image into a palette image, values untouched
    else:
        image = Image.fromarray(ids.astype(np.uint16))
    _save(path, image)


def read_mask_rg(path: str | os.PathLike[str]) -> np.ndarray:
    """Reads a mask of ImageNet-S: id = R + 256 G; 1000 is its ignore id and stays as it is.

    Returns:
        uint16 (H, W).

    Raises:
        MaskwrightError: missing, damaged, or not an RGB image.
    """
    image, _ = _open(path)
    if image.mode not in ("RGB", "RGBA"):
        raise MaskwrightError(
            f"mask {path} has mode {image.mode}",
            "an RGB PNG with id = R + 256 G (ImageNet-S)",
            "use read_mask for it",
        )
    bands = np.asarray(image)
    if bands[..., 2].any():
        raise MaskwrightError(
            f"mask {path} has values in its blue channel",
            "id = R + 256 G and no blue (ImageNet-S)",
            "use the masks of the official release",
        )
    return bands[..., 0] + bands[..., 1].astype(np.uint16) * np.uint16(256)


def write_mask_rg(path: str | os.PathLike[str], ids: np.ndarray) -> None:
    """Writes a mask as ImageNet-S does: R = id % 256, G = id // 256, B = 0. Raises as `write_mask`."""
    ids = np.asarray(ids)
    if ids.ndim != 2 or ids.dtype.kind not in "iub" or ids.min() < 0 or ids.max() > IGNORE16:
        raise ValueError(
            f"ids of shape {ids.shape} and type {ids.dtype}, expected integers (H, W) from 0 to {IGNORE16}"
        )
    wide = ids.astype(np.uint16)
    _save(
        path,
        Image.fromarray(np.stack([wide & 255, wide >> 8, np.zeros_like(wide)], axis=-1).astype(np.uint8)),
    )


def write_grey16(path: str | os.PathLike[str], values: np.ndarray) -> None:
    """Writes uint16 (H, W) as a grey PNG of 16 bits, whatever the values. Raises as `write_mask`."""
    if values.ndim != 2 or values.dtype != np.uint16 or 0 in values.shape:
        raise ValueError(f"values of shape {values.shape} and type {values.dtype}, expected uint16 (H, W)")
    _save(path, Image.fromarray(values))


def _save(path: str | os.PathLike[str], image: Image.Image) -> None:
    # Level 1 is three times as fast as the default and costs little on masks, which are mostly runs.
    with atomic_write(path, durable=False) as beside, open(beside, "wb") as file:
        image.save(file, format="PNG", compress_level=1)


def _palette(image: Image.Image) -> np.ndarray:
    colors = np.zeros((256, 3), np.uint8)
    listed = np.array(image.getpalette("RGB") or [], np.uint8).reshape(-1, 3)[:256]
    colors[: len(listed)] = listed
    return colors


def _open(path: str | os.PathLike[str]) -> tuple[Image.Image, int]:
    """The loaded image and the factor by which Pillow stretched its values."""
    try:
        data = Path(path).read_bytes()
        image = open_pillow(BytesIO(data))
        _refuse(path, data, image)
        check_area(path, parse_header(BytesIO(data)), len(data), MAX_PIXELS)
        if image.format == "PNG":
            check_png(data)
        tiles = getattr(image, "tile", None)
        layout = tiles[0].args if tiles else None
        raw = layout if isinstance(layout, str) else layout[0] if isinstance(layout, tuple) and layout else ""
        image.load()
        turned = ImageOps.exif_transpose(image)
    except DECODER_ERRORS as error:
        raise _unreadable(path, error) from error
    return turned, _STRETCH.get(raw if isinstance(raw, str) else "", 1)


def _unreadable(path: str | os.PathLike[str], error: BaseException) -> MaskError:
    told = image_error(path, error)
    repair = told.repair.replace("delete it or export it again", "delete it or write it again")
    return MaskError(told.found, told.expected.replace("an image", "a mask"), repair)


def _refuse(path: str | os.PathLike[str], data: bytes, image: Image.Image) -> None:
    """Raises where a file's kind says already that its values are no exact ids."""
    lossy = {"JPEG": "a JPEG", "MPO": "a JPEG"}.get(image.format or "")
    if image.format == "TIFF" and "jpeg" in str(image.info.get("compression")):
        lossy = "a TIFF compressed as JPEG"
    if image.format == "WEBP" and data[12:16] == b"VP8 ":
        lossy = "a lossy WebP"
    if lossy:
        raise LossyMaskError(f"mask {path} is {lossy}, which blurs class ids", "an index PNG", "export the mask as PNG")
    if image.width * image.height > MAX_PIXELS:
        raise MaskError(
            f"mask {path} says it is {image.height}x{image.width}",
            f"at most {MAX_PIXELS / 1e6:.0f} million pixels",
            "cut image and mask into tiles",
        )
    pages = getattr(image, "n_frames", 1)  # only formats that can hold several have it
    if pages > 1:
        raise PagesMaskError(f"mask {path} holds {pages} pictures", "one", "export the right one as PNG")
    if image.format == "PNG" and data[24] == 16 and data[25] != 0:
        raise ColourMaskError(
            f"mask {path} has several channels of 16 bits, of which the low byte would be lost",
            "one channel",
            "export one channel as an index PNG",
        )
