"""Pictures inside a page."""

from __future__ import annotations

from io import BytesIO

import numpy as np
import pytest
from PIL import Image

from maskwright.data.pictures.inline import jpeg


@pytest.mark.parametrize("quality", [85, 95, 100])
def test_a_picture_of_grains_is_encoded_too(quality):
    """More than a byte a pixel, which Pillow cannot optimise."""
    grains = np.random.default_rng(0).integers(0, 256, (240, 320, 3), dtype=np.uint8)
    with pytest.raises(OSError):
        Image.fromarray(grains).save(BytesIO(), "JPEG", quality=quality, subsampling=0, optimize=True)
    data = jpeg(grains, quality, tinted=True)
    assert len(data) > grains.size / 3
    read = np.asarray(Image.open(BytesIO(data)))
    assert read.shape == grains.shape and np.abs(read.astype(int) - grains).mean() < 32


def test_other_pictures_keep_their_own_tables():
    """A smooth picture is as small as Pillow makes it."""
    smooth = np.broadcast_to(np.linspace(0, 255, 320).astype(np.uint8)[None, :, None], (240, 320, 3)).copy()
    out = BytesIO()
    Image.fromarray(smooth).save(out, "JPEG", quality=85, subsampling=2, optimize=True)
    assert jpeg(smooth) == out.getvalue()
