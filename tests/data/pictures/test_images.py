"""Photographs of every kind become uint8 RGB, as their EXIF tag says; bad files become one clear line."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

from maskwright.data.pictures.images import (
    image_size,
    read_header,
    read_image,
    read_resized,
    read_small,
    verify_image,
)
from maskwright.data.pictures.turning import orient, resize
from maskwright.errors import MaskwrightError


def scene(h: int = 61, w: int = 83, seed: int = 0) -> np.ndarray:
    """A smooth picture without symmetry, uint8 (h, w, 3)."""
    rng = np.random.default_rng(seed)
    small = Image.fromarray(rng.integers(0, 256, (7, 9, 3), dtype=np.uint8))
    return np.array(small.resize((w, h), Image.Resampling.BICUBIC))


def exif_with(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", ["jpg", "png", "tif", "webp"])
def test_exif_orientation_as_pillow(tmp_path, suffix: str, orientation: int) -> None:
    path = tmp_path / f"a.{suffix}"
    options = {"webp": {"lossless": True}, "jpg": {"quality": 95}}.get(suffix, {})
    Image.fromarray(scene()).save(path, exif=exif_with(orientation), **options)
    with Image.open(path) as image:
        image.load()
        expected = np.array(ImageOps.exif_transpose(image).convert("RGB"))
    got = read_image(path)
    assert got.shape == expected.shape == (*image_size(path), 3)
    assert got.shape[:2] == ((61, 83) if orientation < 5 else (83, 61))
    assert np.abs(got.astype(int) - expected).max() <= (1 if suffix == "jpg" else 0)
    assert got.flags.c_contiguous and got.flags.writeable
    assert read_header(path).orientation == orientation


def test_orient_is_pillows_transposition() -> None:
    image = scene()
    ways = {
        1: None,
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_270,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_90,
    }
    for orientation, way in ways.items():
        expected = image if way is None else np.array(Image.fromarray(image).transpose(way))
        assert np.array_equal(orient(image, orientation), expected), orientation


@pytest.mark.parametrize("endian", [b"II", b"MM"])
def test_damaged_exif_is_ignored(tmp_path, endian: bytes) -> None:
    buffer = io.BytesIO()
    Image.fromarray(scene()).save(buffer, "JPEG")
    for junk in (b"", endian, endian + b"\x2a\0\xff\xff\xff\x7f" + b"\0" * 9, endian + b"\0" * 40):
        segment = b"Exif\0\0" + junk
        data = (
            buffer.getvalue()[:2] + b"\xff\xe1" + struct.pack(">H", len(segment) + 2) + segment + buffer.getvalue()[2:]
        )
        (tmp_path / "a.jpg").write_bytes(data)
        assert read_image(tmp_path / "a.jpg").shape == (61, 83, 3)
        assert image_size(tmp_path / "a.jpg") == (61, 83)


def test_jpeg_equals_pillow(tmp_path) -> None:
    for kind, options in (
        ("RGB", {}),
        ("L", {}),
        ("RGB", {"progressive": True}),
        ("RGB", {"subsampling": 0}),
    ):
        Image.fromarray(scene()).convert(kind).save(tmp_path / "a.jpg", quality=90, **options)
        with Image.open(tmp_path / "a.jpg") as image:
            expected = np.array(image.convert("RGB"))
        assert np.abs(read_image(tmp_path / "a.jpg").astype(int) - expected).max() <= 1


def test_cmyk(tmp_path) -> None:
    for suffix in ("jpg", "tif"):
        path = tmp_path / f"a.{suffix}"
        Image.fromarray(scene()).convert("CMYK").save(path)
        with Image.open(path) as image:
            expected = np.array(image.convert("RGB"))
        assert np.array_equal(read_image(path), expected)
        assert np.abs(read_image(path).astype(int) - scene()).mean() < 12


def test_transparency_lies_on_white(tmp_path) -> None:
    rgba = np.dstack([scene(), np.zeros((61, 83), np.uint8)])
    rgba[:, 40:, 3] = 255
    rgba[:, 60:, 3] = 128
    Image.fromarray(rgba).save(tmp_path / "a.png")
    got = read_image(tmp_path / "a.png").astype(int)
    assert (got[:, :40] == 255).all()
    assert np.array_equal(got[:, 40:60], scene()[:, 40:60])
    assert np.abs(got[:, 60:] - (scene()[:, 60:] * 128.0 + 255 * 127) / 255).max() <= 1
    grey = Image.fromarray(rgba).convert("LA")
    grey.save(tmp_path / "la.png")
    assert (read_image(tmp_path / "la.png")[:, :40] == 255).all()
    keyed = Image.fromarray(np.full((4, 4, 3), (10, 20, 30), np.uint8))
    keyed.save(tmp_path / "key.png", transparency=(10, 20, 30))
    assert (read_image(tmp_path / "key.png") == (10, 20, 30)).all()  # transparent everywhere: ignored
    keyed.putpixel((1, 1), (7, 8, 9))
    keyed.save(tmp_path / "key.png", transparency=(10, 20, 30))
    assert (read_image(tmp_path / "key.png")[0] == 255).all()
    assert read_image(tmp_path / "key.png")[1, 1].tolist() == [7, 8, 9]


def test_palette_grey_and_one_bit(tmp_path) -> None:
    palette = Image.fromarray(scene()).quantize(32)
    palette.save(tmp_path / "p.png")
    assert np.array_equal(read_image(tmp_path / "p.png"), np.array(palette.convert("RGB")))
    palette.save(tmp_path / "p.gif")
    assert read_image(tmp_path / "p.gif").shape == (61, 83, 3)
    clear = np.zeros((4, 4), np.uint8)
    image = Image.fromarray(clear)
    image.putpalette([5, 5, 5, 9, 9, 9])
    image.putpixel((2, 0), 1)
    image.save(tmp_path / "t.png", transparency=0)
    assert (read_image(tmp_path / "t.png")[1:] == 255).all()
    assert read_image(tmp_path / "t.png")[0, 2].tolist() == [9, 9, 9]
    Image.fromarray(scene()[..., 0]).save(tmp_path / "g.png")
    assert np.array_equal(read_image(tmp_path / "g.png"), np.repeat(scene()[..., :1], 3, axis=2))
    bits = scene()[..., 0] > 128
    Image.fromarray(bits).save(tmp_path / "b.png")
    assert np.array_equal(read_image(tmp_path / "b.png")[..., 1], bits * np.uint8(255))


def test_more_than_8_bits(tmp_path) -> None:
    ramp = np.linspace(0, 65535, 64).round().astype(np.uint16).reshape(8, 8)
    for suffix in ("png", "tif"):
        Image.fromarray(ramp).save(tmp_path / f"a.{suffix}")
        got = read_image(tmp_path / f"a.{suffix}")
        assert np.abs(got[..., 0] - ramp / 257).max() <= 0.5 + 1e-3
    twelve = (ramp // 16).astype(np.uint16)
    Image.fromarray(twelve).save(tmp_path / "b.tif")  # nothing in the file says that 4095 is white
    assert np.abs(read_image(tmp_path / "b.tif")[..., 2] - twelve / 257).max() <= 0.5 + 1e-3
    said = read_image(tmp_path / "b.tif", range=(0, 4095))
    assert np.abs(said[..., 2] - twelve * (255 / 4095)).max() <= 0.5 + 1e-3
    Image.fromarray((ramp // 257).astype(np.uint16)).save(tmp_path / "c.tif")
    assert np.array_equal(read_image(tmp_path / "c.tif", range=(0, 255))[..., 0], ramp // 257)
    Image.fromarray((ramp / 65535).astype(np.float32)).save(tmp_path / "d.tif")
    assert np.abs(read_image(tmp_path / "d.tif")[..., 0] - ramp / 257).max() <= 0.5 + 1e-3


def test_strips_change_nothing(tmp_path, monkeypatch) -> None:
    rgba = np.dstack([scene(), scene()[..., 0]])
    Image.fromarray(rgba).save(tmp_path / "a.png")
    whole = read_image(tmp_path / "a.png")
    monkeypatch.setattr("maskwright.data.pictures.images.STRIP_PIXELS", 500)
    assert np.array_equal(read_image(tmp_path / "a.png"), whole)


@pytest.mark.parametrize("size", [(1, 1), (1, 5000), (5000, 1)])
def test_odd_shapes(tmp_path, size: tuple[int, int]) -> None:
    for suffix in ("jpg", "png"):
        path = tmp_path / f"a.{suffix}"
        Image.fromarray(scene(*size)).save(path)
        assert read_image(path).shape == (*size, 3) == (*image_size(path), 3)
        assert read_resized(path, (4, 4)).shape == (4, 4, 3)
        verify_image(path)


def bomb(width: int, height: int) -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 9)) + chunk(b"IEND", b"")
    )


def test_bad_files_are_named(tmp_path) -> None:
    buffer = io.BytesIO()
    Image.fromarray(scene(200, 300)).save(buffer, "JPEG")
    jpeg = buffer.getvalue()
    buffer = io.BytesIO()
    Image.fromarray(scene(200, 300)).save(buffer, "PNG")
    png = buffer.getvalue()
    cases = {
        "empty.jpg": (b"", "0 bytes"),
        "text.jpg": (b"this is no picture\n" * 100, "is text"),
        "noise.jpg": (bytes(range(256)), "not an image"),
        "zeros.png": (bytes(2000), "not an image"),
        "cut.jpg": (jpeg[: len(jpeg) // 2], "damaged or truncated"),
        "head.jpg": (jpeg[:30], "damaged or truncated"),
        "cut.png": (png[: len(png) // 2], "damaged or truncated"),
        "head.png": (png[:20], "damaged or truncated"),
        "bomb.png": (bomb(60000, 60000), "3600 million pixels"),
    }
    for name, (content, said) in cases.items():
        path = tmp_path / name
        path.write_bytes(content)
        for read in (read_image, verify_image, read_small, lambda p: read_resized(p, (8, 8))):
            with pytest.raises(MaskwrightError, match=said) as caught:
                read(path)
            assert name in str(caught.value) and "\n" not in str(caught.value)
    for name in ("missing.jpg",):
        with pytest.raises(MaskwrightError, match="does not exist"):
            read_image(tmp_path / name)
        with pytest.raises(MaskwrightError, match="does not exist"):
            image_size(tmp_path / name)
    with pytest.raises(MaskwrightError):
        read_image(tmp_path)


def test_pixel_limit(tmp_path) -> None:
    Image.fromarray(scene()).save(tmp_path / "a.png")
    with pytest.raises(MaskwrightError, match="cut it into tiles"):
        read_image(tmp_path / "a.png", max_pixels=5000)
    before = Image.MAX_IMAGE_PIXELS
    (tmp_path / "big.png").write_bytes(bomb(20000, 20000))
    assert image_size(tmp_path / "big.png") == (20000, 20000)
    assert before == Image.MAX_IMAGE_PIXELS


@settings(max_examples=60, deadline=None)
@given(
    cut=st.integers(0, 4000),
    flip=st.integers(0, 4000),
    value=st.integers(0, 255),
    kind=st.sampled_from(["JPEG", "PNG"]),
)
def test_damage_never_escapes(tmp_path_factory, cut: int, flip: int, value: int, kind: str) -> None:
    buffer = io.BytesIO()
    Image.fromarray(scene(40, 50)).save(buffer, kind)
    data = bytearray(buffer.getvalue())
    data[flip % len(data)] = value
    path = tmp_path_factory.mktemp("d") / "a.img"
    path.write_bytes(bytes(data[: max(1, len(data) - cut % 300)]))
    try:
        assert read_image(path, max_pixels=10**7).shape == (*image_size(path), 3)
    except MaskwrightError:
        pass


def test_resize_is_pillows(tmp_path) -> None:
    image = scene(375, 500)
    for size in ((168, 224), (375, 500), (400, 700), (33, 41)):
        expected = np.array(Image.fromarray(image).resize(size[::-1], Image.Resampling.BILINEAR))
        assert np.abs(resize(image, size).astype(int) - expected).max() <= 1, size


def test_read_resized_without_scaled_decode_is_pillows(tmp_path) -> None:
    Image.fromarray(scene(375, 500)).save(tmp_path / "a.jpg", quality=92)
    with Image.open(tmp_path / "a.jpg") as image:
        expected = np.array(image.resize((224, 224), Image.Resampling.BILINEAR))
    assert np.abs(read_resized(tmp_path / "a.jpg", (224, 224)).astype(int) - expected).max() <= 1


@settings(max_examples=40, deadline=None)
@given(
    orientation=st.integers(1, 8),
    top=st.integers(0, 120),
    left=st.integers(0, 120),
    height=st.integers(60, 200),
    width=st.integers(60, 200),
    size=st.sampled_from([(16, 16), (31, 24), (64, 64), (250, 220)]),
    kind=st.sampled_from(["jpg", "png"]),
)
def test_windows_are_where_they_should_be(
    tmp_path_factory,
    orientation: int,
    top: int,
    left: int,
    height: int,
    width: int,
    size: tuple[int, int],
    kind: str,
) -> None:
    """On a linear ramp any antialiased resampling gives the ramp at the centres of the new pixels."""
    h, w = 333, 349
    yy, xx = np.mgrid[:h, :w]
    seen = np.stack([xx * (200 / w) + 20, yy * (200 / h) + 20, np.full((h, w), 128.0)], axis=-1)
    inverse = {6: 8, 8: 6}.get(orientation, orientation)
    stored = orient(seen.round().astype(np.uint8), inverse)
    path = tmp_path_factory.mktemp("w") / f"a.{kind}"
    options = {"quality": 97, "subsampling": 0} if kind == "jpg" else {}
    Image.fromarray(stored).save(path, exif=exif_with(orientation), **options)
    got = read_resized(path, size, (top, left, height, width)).astype(float)
    y = top + (np.arange(size[0]) + 0.5) * height / size[0] - 0.5
    x = left + (np.arange(size[1]) + 0.5) * width / size[1] - 0.5
    inner = np.s_[3:-3, 3:-3]  # the filter is cut off at the border of the window
    ramps = (x * 200 / w + 20)[None], (y * 200 / h + 20)[:, None]
    for channel, ramp in enumerate(ramps):
        error = (got[..., channel] - ramp)[inner]
        rounding = abs((np.round(ramp) - ramp).mean())  # of one sign where the ratio is nearly whole
        assert abs(error.mean()) <= rounding + (0.3 if size[0] > 16 else 0.5)  # half a pixel of the file
        assert np.abs(error).max() <= 5  # JPEG noise


def test_bad_windows(tmp_path) -> None:
    Image.fromarray(scene()).save(tmp_path / "a.png")
    for window in ((0, 0, 62, 10), (-1, 0, 5, 5), (0, 0, 0, 4)):
        with pytest.raises(ValueError, match="window"):
            read_resized(tmp_path / "a.png", (4, 4), window)
    with pytest.raises(ValueError, match="size"):
        read_resized(tmp_path / "a.png", (0, 4))


def test_read_small_is_small(tmp_path) -> None:
    Image.fromarray(scene(480, 640)).save(tmp_path / "a.jpg", exif=exif_with(6))
    assert read_small(tmp_path / "a.jpg").shape == (80, 60, 3)
    assert read_small(tmp_path / "a.jpg", at_least=100).shape == (160, 120, 3)


@pytest.mark.data
def test_real_photographs_equal_pillow(data_root) -> None:
    paths = [p for s in ("voc_part", "dubai_aerial") for p in sorted((data_root / s / "images").iterdir())[:12]]
    assert paths
    for path in paths:
        with Image.open(path) as image:
            expected = np.array(image.convert("RGB"))
        assert np.abs(read_image(path).astype(int) - expected).max() <= 1
        assert image_size(path) == expected.shape[:2]
