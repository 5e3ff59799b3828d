"""The same picture by its path, as a Pillow image, as an array, in a folder of one or of several: the same pixels."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import tifffile
from fakes import ColorSegmenter
from PIL import Image

from maskwright.data.folders.folder import Dataset, Item, open_folder
from maskwright.data.masking.masks import read_mask
from maskwright.data.pictures.images import orient, read_image, read_resized
from maskwright.errors import MaskwrightError
from maskwright.predict.model import Model, as_picture, read_ahead

KINDS = [
    *(("jpg", mode) for mode in ("RGB", "L")),
    *((suffix, mode) for suffix in ("png", "tif") for mode in ("RGB", "L", "P", "I;16", "RGBA", "1")),
    ("tif", "F"), ("tif", "RGB;16"),
]  # fmt: skip


def scene(h: int = 24, w: int = 33) -> np.ndarray:
    small = np.random.default_rng(1).integers(0, 256, (5, 6, 3), dtype=np.uint8)
    return np.array(Image.fromarray(small).resize((w, h), Image.Resampling.BICUBIC))


def write(path: Path, mode: str, orientation: int) -> np.ndarray | None:
    """Writes the scene stored so that it is seen upright; gives what must be read where that is exact."""
    seen = scene()
    stored = orient(seen, {6: 8, 8: 6}.get(orientation, orientation))
    if mode == "RGB;16":
        deep = stored.astype(np.uint16) * 257
        tifffile.imwrite(path, deep, photometric="rgb", extratags=[(274, 3, 1, orientation, True)])
        return seen
    if mode == "I;16":
        image = Image.fromarray(stored[..., 0].astype(np.uint16) * 257)
    elif mode == "F":
        image = Image.fromarray((stored[..., 0] / 255).astype(np.float32))
    elif mode == "RGBA":
        image = Image.fromarray(np.dstack([stored, np.full(stored.shape[:2], 255, np.uint8)]))
    else:
        image = Image.fromarray(stored).convert("L" if mode == "1" else mode)
        image = image.point(lambda v: 255 * (v > 127), "1") if mode == "1" else image
    exif = Image.Exif()
    exif[0x0112] = orientation
    image.save(path, exif=exif, **({"quality": 95} if path.suffix == ".jpg" else {}))
    grey = mode in ("I;16", "F")
    return (
        np.repeat(seen[..., :1], 3, 2) if grey else seen if mode in ("RGB", "RGBA") and path.suffix != ".jpg" else None
    )


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize(("suffix", "mode"), KINDS)
def test_ways_in(tmp_path, suffix: str, mode: str, orientation: int) -> None:
    (tmp_path / "images").mkdir()
    path = tmp_path / "images" / f"a.{suffix}"
    expected = write(path, mode, orientation)
    pixels = read_image(path)
    assert pixels.shape == (24, 33, 3)
    if expected is not None:
        assert np.array_equal(pixels, expected)
    # Not by its path: Pillow 13 maps a turned TIFF into memory with height and width swapped.
    loaded = Image.open(io.BytesIO(path.read_bytes()))
    loaded.load()
    ways = {
        "path": as_picture(path),
        "opened": as_picture(Image.open(path)),
        "array": as_picture(pixels),
        "one file": Dataset(path.parent, [Item("a", path)]).image(0),
        "folder": open_folder(tmp_path).image(0),
        "ahead": next(read_ahead(open_folder(tmp_path)))[1],
        "resized": read_resized(path, (24, 33)),
    }
    with open(path, "rb") as file:
        ways["file object"] = as_picture(Image.open(file))
    for way, got in ways.items():
        assert np.array_equal(got, pixels), way
    # What Pillow has decoded itself may differ by its own rounding of JPEG colours, and has lost the low bytes.
    for way, image in (("loaded", loaded), ("copied", loaded.copy())):
        got = as_picture(image)
        assert got.shape == pixels.shape and np.abs(got.astype(int) - pixels).max() <= 1, way


def test_opening_changes_nothing_of_the_image(tmp_path) -> None:
    write(tmp_path / "a.jpg", "RGB", 6)
    image = Image.open(tmp_path / "a.jpg")
    as_picture(image)
    assert np.asarray(image).shape == (33, 24, 3)  # it can still be loaded, as it is stored
    small = Image.open(tmp_path / "a.jpg")
    small.draft("RGB", (4, 3))
    assert as_picture(small).shape[:2] == (small.width, small.height)
    turned = Image.open(tmp_path / "a.jpg").rotate(90, expand=True)  # taken as it is, but for the tag it still has
    assert as_picture(turned).shape == (33, 24, 3)


def test_damage_shows_by_both_ways(tmp_path) -> None:
    write(tmp_path / "a.png", "RGB", 1)
    data = bytearray((tmp_path / "a.png").read_bytes())
    data[len(data) // 2] ^= 4
    (tmp_path / "a.png").write_bytes(data)
    for way in (tmp_path / "a.png", Image.open(tmp_path / "a.png")):
        with pytest.raises(MaskwrightError, match=r"a\.png is damaged.*checksum"):
            as_picture(way)


def deep_series(folder: Path, top: int) -> Path:
    (folder / "images").mkdir(parents=True)
    stretched = scene()[..., 0].astype(float)
    stretched = (stretched - stretched.min()) / (stretched.max() - stretched.min())
    for k in range(3):
        Image.fromarray((stretched * top * (1 - k / 10)).astype(np.uint16)).save(folder / "images" / f"{k}.png")
    return folder


def test_a_model_keeps_the_range_of_its_training(tmp_path) -> None:
    trained = Model(ColorSegmenter(), extra={"reading": {"labels": "auto", "void": None, "range": [0.0, 4095.0]}})
    plain = Model(ColorSegmenter(), extra={})
    data = deep_series(tmp_path / "new", 1000)  # which a survey would read as 10 bits
    for model, top in ((trained, 4095), (plain, 1023)):
        done = model.predict_folder(data, tmp_path / f"out{top}")
        assert any(f"0 is black and {top} white" in n for n in done.notices), done.notices
        stored = np.array(Image.open(data / "images" / "0.png"), float)
        pixels = np.repeat(np.floor(np.clip(stored / top, 0, 1) * 255 + 0.5).astype(np.uint8)[..., None], 3, 2)
        assert np.array_equal(read_mask(tmp_path / f"out{top}" / "0.png"), model.predict(pixels).mask)
    path = data / "images" / "0.png"
    assert np.array_equal(trained.predict(path).mask, read_mask(tmp_path / "out4095" / "0.png"))
    assert np.array_equal(trained.predict(Image.open(path)).mask, read_mask(tmp_path / "out4095" / "0.png"))
    said = plain.predict_folder(data, tmp_path / "said", range="0,2000")
    assert any("0 is black and 2000 white" in n for n in said.notices)


def test_one_deep_file_is_asked_about_where_nothing_says_its_range(tmp_path) -> None:
    model = Model(ColorSegmenter(), extra={})
    path = deep_series(tmp_path, 1000) / "images" / "0.png"
    for way in (path, Image.open(path)):
        with pytest.raises(MaskwrightError, match="16-bit whole numbers from 0 to 1000; nothing says") as caught:
            model.predict(way)
        assert "range=(0,1000)" in caught.value.repair
    assert model.predict(path, range=(0, 1000)).mask.shape == (24, 33)  # the repair
    assert model.predict(path, range="0,1000").mask.shape == (24, 33)
    full = deep_series(tmp_path / "full", 50000) / "images" / "0.png"
    assert np.array_equal(as_picture(full), read_image(full))
