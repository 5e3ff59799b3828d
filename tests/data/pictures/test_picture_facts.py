"""Pages, bands and transparency that are not used are said by every verb, and pages can be taken apart."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image

from maskwright.data.examining.doctor import examine
from maskwright.data.examining.understanding import understand
from maskwright.data.folders.folder import open_folder
from maskwright.data.pictures.images import read_header, read_image
from maskwright.data.pictures.picture_facts import write_pages
from maskwright.errors import MaskwrightError


def scene(seed: int = 0, h: int = 30, w: int = 40, bands: int = 3) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (h, w, bands), dtype=np.uint8)


@pytest.fixture
def images(tmp_path: Path) -> Path:
    (tmp_path / "images").mkdir()
    return tmp_path / "images"


def told(images: Path, kind: str) -> str:
    """What the doctor says of one kind; each verb's sentence must be the same."""
    found = [f for f in examine(images.parent).findings if f.kind == kind]
    assert len(found) == 1, [f.kind for f in examine(images.parent).findings]
    assert found[0].message in understand(open_folder(images.parent), masks=False).notices
    return found[0].message


def save_frames(path: Path, count: int, **options: object) -> list[np.ndarray]:
    arrays = [scene(k) for k in range(count)]
    frames = [Image.fromarray(a) for a in arrays]
    frames[0].save(path, save_all=True, append_images=frames[1:], **options)
    return arrays


@pytest.mark.parametrize(
    ("name", "options", "exact"),
    [
        ("a.tif", {}, True), ("a.png", {}, True), ("a.webp", {"lossless": True}, True), ("a.gif", {}, False),
        ("a.mpo", {"format": "MPO"}, False),
    ],
)  # fmt: skip
def test_pages_are_said_and_can_be_taken_apart(images, name: str, options: dict, exact: bool) -> None:
    path = images / name
    arrays = save_frames(path, 3, **options)
    if name == "a.mpo":
        path = path.rename(images / "a.jpg")
    assert read_header(path).pages == 3
    assert "1 image has several pages or frames, of which only the first is read: a (3)" in told(images, "pages")
    written = write_pages(path, images.parent / "out")
    assert len(written) == 3 and [read_header(p).pages for p in written] == [1, 1, 1]
    for file, array in zip(written, arrays):
        off = np.abs(read_image(file).astype(int) - array).mean()
        assert off == 0 if exact else off < 65
    with pytest.raises(MaskwrightError, match="exists already"):
        write_pages(path, images.parent / "out")


def test_deep_pages_stay_deep(images) -> None:
    values = np.random.default_rng(0).integers(0, 65536, (4, 20, 30)).astype(np.uint16)
    tifffile.imwrite(images / "a.tif", values, photometric="minisblack")
    assert [p.suffix for p in write_pages(images / "a.tif", images.parent / "out")] == [".png"] * 4
    for k in range(4):
        assert np.array_equal(np.asarray(Image.open(images.parent / "out" / f"a_{k + 1}.png")), values[k])
    floats = values.astype(np.float32) / 65535
    tifffile.imwrite(images / "b.tif", floats, photometric="minisblack")
    third = write_pages(images / "b.tif", images.parent / "out")[2]
    assert np.array_equal(tifffile.imread(third), floats[2])


def test_smaller_versions_are_no_pages(images) -> None:
    with tifffile.TiffWriter(images / "a.tif") as file:
        file.write(scene(), photometric="rgb")
        file.write(scene(1, 15, 20), photometric="rgb", subfiletype=1)
    preview = [Image.fromarray(scene()), Image.fromarray(scene(1, 8, 8))]
    preview[0].save(images / "b.jpg", format="MPO", save_all=True, append_images=preview[1:])
    assert read_header(images / "a.tif").pages == read_header(images / "b.jpg").pages == 1
    assert write_pages(images / "a.tif", images.parent / "out") == []
    assert understand(open_folder(images.parent), masks=False).notices == ()


def test_a_fourth_band_is_no_transparency(images) -> None:
    four = scene(0, bands=4)
    tifffile.imwrite(images / "0.tif", four, photometric="rgb", extrasamples=[0])
    data = (images / "0.tif").read_bytes()
    place = data.index(b"\x52\x01\x03\x00")  # the tag ExtraSamples becomes one that nobody knows
    (images / "1.tif").write_bytes(data[:place] + b"\x51\x01" + data[place + 2 :])
    for k in range(2):
        assert read_header(images / f"{k}.tif").extra_bands == 1
        assert np.array_equal(read_image(images / f"{k}.tif"), four[..., :3]), k
    said = told(images, "extra-bands")
    assert "2 images have more bands than colours" in said and "no transparency" in said


@pytest.mark.parametrize("kind", [1, 2])
def test_transparency_of_a_tiff_is(images, kind: int) -> None:
    four = scene(0, bands=4)
    if kind == 1:  # colours are multiplied by it already
        four[..., :3] = np.round(four[..., :3] * (four[..., 3:] / 255))
    tifffile.imwrite(images / "a.tif", four, photometric="rgb", extrasamples=[kind])
    share = four[..., 3:] / 255
    expected = four[..., :3] * (share if kind == 2 else 1) + 255 * (1 - share)
    assert np.abs(read_image(images / "a.tif") - expected).max() <= (1 if kind == 2 else 2)
    assert "1 image has transparent parts, which are white (a)" in told(images, "transparency")


@pytest.mark.parametrize("suffix", ["png", "tif", "webp"])
def test_transparent_everywhere_is_ignored(images, suffix: str) -> None:
    four = scene(0, bands=4)
    four[..., 3] = 0
    options = {"lossless": True, "exact": True} if suffix == "webp" else {}
    Image.fromarray(four).save(images / f"a.{suffix}", **options)
    assert np.array_equal(read_image(images / f"a.{suffix}"), four[..., :3])
    assert "1 image is transparent everywhere (a): the transparency is ignored" in told(images, "empty-alpha")
    grey = np.stack([four[..., 0], four[..., 3]], -1)
    Image.fromarray(grey).save(images / f"a.{suffix}", **options)
    assert np.array_equal(read_image(images / f"a.{suffix}")[..., 1], four[..., 0])


def test_ordinary_photographs_say_nothing(tiny_folder) -> None:
    Image.fromarray(scene()).save(tiny_folder / "images" / "picture_00.png")
    assert understand(open_folder(tiny_folder), masks=False).notices == ()
