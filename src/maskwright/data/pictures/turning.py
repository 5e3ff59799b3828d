"""Turning images as their EXIF tag says, and cutting and resizing windows of them."""

from __future__ import annotations

import numpy as np
from PIL import Image

from maskwright.data.pictures.headers import Header


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


def inverse(orientation: int) -> int:
    """The orientation that undoes another: quarter turns swap, the rest are their own inverse."""
    return {6: 8, 8: 6}.get(orientation, orientation)


def edge_offset(header: Header, decoded: tuple[int, int], factor: int) -> tuple[float, float]:
    """How far the first seen row and column lie inside the decoded array, in decoded pixels.

    At 1/factor the last stored row or column may cover less than a whole pixel of the image. Mirroring brings
    it to the front.
    """
    spare = (decoded[0] - header.stored[0] / factor, decoded[1] - header.stored[1] / factor)
    o = header.orientation
    flips_rows, flips_columns = o in (3, 4, 7, 8), o in (2, 3, 6, 7)
    rows, columns = (spare[1], spare[0]) if o >= 5 else spare
    return (rows if flips_rows else 0.0), (columns if flips_columns else 0.0)
