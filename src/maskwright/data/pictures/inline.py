"""Pictures and colours as pieces of HTML that need nothing beside them: pages and notebooks."""

from __future__ import annotations

import base64
from collections.abc import Iterable
from io import BytesIO

import numpy as np
from PIL import Image


def jpeg(image: np.ndarray, quality: int = 85, *, tinted: bool = False) -> bytes:
    """Encodes uint8 (H, W, 3) as a JPEG; above a quality of 90, and where it is tinted, colours keep their resolution:
    else those next to lines would bleed, and those of lines vanish. Its code tables are its own where they fit: Pillow
    holds such a file in memory and raises `OSError` above about a byte a pixel, as under a mask that is all grains."""
    picture, fine = Image.fromarray(image), tinted or quality >= 90
    for optimize in (True, False):
        out = BytesIO()
        try:
            picture.save(out, "JPEG", quality=quality, subsampling=0 if fine else 2, optimize=optimize)
        except OSError:
            if not optimize:
                raise
        else:
            break
    return out.getvalue()


def data_uri(data: bytes, kind: str) -> str:
    """Bytes of an image as an address that holds them."""
    return f"data:image/{kind};base64,{base64.b64encode(data).decode('ascii')}"


def swatch(color: Iterable[int]) -> str:
    """A small square of a colour (red, green, blue in [0, 255]) as HTML; pages give it its size."""
    r, g, b = (int(v) for v in color)
    return f'<span class="swatch" style="background:rgb({r},{g},{b})"></span>'


def small_swatch(color: Iterable[int]) -> str:
    """As `swatch`, with its size, for where there is no style sheet."""
    r, g, b = (int(v) for v in color)
    size = "display:inline-block;width:.9em;height:.9em;margin-right:.4em;border:1px solid #888"
    return f'<span style="{size};background:rgb({r},{g},{b})"></span>'
