"""Checksums of PNG chunks."""

from __future__ import annotations

from io import BytesIO

import numpy as np
import pytest
from PIL import Image

from maskwright.data.pictures.headers import check_png


def png(seed: int = 0) -> bytes:
    out = BytesIO()
    image = Image.fromarray(
        np.kron(np.random.default_rng(seed).integers(0, 5, (6, 8)), np.ones((9, 7))).astype("uint8")
    )
    image.putpalette(bytes(range(15)))
    image.save(out, "PNG")
    return out.getvalue()


def test_every_flipped_bit_of_a_png_shows() -> None:
    data = png()
    check_png(data)
    check_png(data + b"what follows the last chunk is none of its business")
    for place in range(len(data)):
        for bit in range(8):
            flipped = bytearray(data)
            flipped[place] ^= 1 << bit
            with pytest.raises(SyntaxError):
                check_png(bytes(flipped))


def test_every_cut_of_a_png_shows() -> None:
    data = png(1)
    for end in range(len(data)):
        with pytest.raises(SyntaxError):
            check_png(data[:end])
