"""Images of more than 8 bits: every bit is read, whatever the file's kind, and a range brings them to 8."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import tifffile
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from maskwright.data.pictures.deep import to_8bit
from maskwright.data.pictures.images import read_header, read_image, stored_values, verify_image
from maskwright.data.pictures.tiff import read_page
from maskwright.errors import MaskwrightError


def ramp(bands: int, top: int = 65535, h: int = 21, w: int = 33) -> np.ndarray:
    """Values over the whole range, every band another, uint16 (h, w, bands)."""
    return np.random.default_rng(bands).integers(0, top + 1, (h, w, bands)).astype(np.uint16)


def png16(values: np.ndarray, kind: int, extra: bytes = b"") -> bytes:
    """A PNG of 16 bits a channel; rows take the filters 0 to 2 in turn."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    h, w, bands = values.shape
    rows = values.astype(">u2").view(np.uint8).reshape(h, -1).astype(np.int64)
    raw = b""
    for y, row in enumerate(rows):
        before = (np.zeros_like(row), np.r_[np.zeros(2 * bands, int), row[: -2 * bands]], rows[y - 1] * (y > 0))[y % 3]
        raw += bytes([y % 3]) + ((row - before) & 255).astype(np.uint8).tobytes()
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", w, h, 16, kind, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + extra + chunk(b"IDAT", zlib.compress(raw)) + chunk(b"IEND", b"")


def bytes_of(values: np.ndarray, low: float, high: float) -> np.ndarray:
    """The rule, written out: low is 0, high 255, halves go up."""
    scaled = (values.astype(np.float64) - low) / (high - low) * 255
    return np.floor(np.clip(scaled, 0, 255) + 0.5).astype(int)


@pytest.mark.parametrize(("kind", "bands"), [(0, 1), (2, 3), (4, 2), (6, 4)])
def test_png_of_16_bits(tmp_path, kind: int, bands: int) -> None:
    values = ramp(bands)
    (tmp_path / "a.png").write_bytes(png16(values, kind))
    colours = 1 if bands < 3 else 3
    assert np.array_equal(stored_values(tmp_path / "a.png"), values[..., :colours])
    head = read_header(tmp_path / "a.png")
    assert (head.deep, head.bits, head.channels, head.alpha) == (True, 16, bands, bands in (2, 4))
    got = read_image(tmp_path / "a.png", range=(1000, 50000)).astype(float)
    expected = np.repeat(bytes_of(values[..., :1], 1000, 50000), 3, 2) if colours == 1 else None
    expected = bytes_of(values[..., :3], 1000, 50000) if expected is None else expected
    if bands in (2, 4):
        share = values[..., -1:] / 65535
        expected = expected * share + 255 * (1 - share)
    assert np.abs(got - expected).max() <= 0.5 + 1e-6


@pytest.mark.parametrize("planar", ["contig", "separate"])
@pytest.mark.parametrize("compression", [None, "zlib"])
@pytest.mark.parametrize("order", ["<", ">"])
def test_tiff_of_16_bits(tmp_path, planar: str, compression: str | None, order: str) -> None:
    values = ramp(3)
    stored = values if planar == "contig" else np.moveaxis(values, -1, 0)
    tifffile.imwrite(
        tmp_path / "a.tif", stored, photometric="rgb", planarconfig=planar, compression=compression, byteorder=order
    )
    assert np.array_equal(stored_values(tmp_path / "a.tif"), values)
    assert np.array_equal(read_image(tmp_path / "a.tif"), bytes_of(values, 0, 65535))
    verify_image(tmp_path / "a.tif")


@pytest.mark.parametrize("mode", ["I;16", "F"])
@pytest.mark.parametrize("orientation", [1, 6, 3])
def test_tiff_whose_compression_only_pillow_reads(tmp_path, mode: str, orientation: int) -> None:
    values = ramp(1)[..., 0]
    values = values.astype(np.float32) / 65535 if mode == "F" else values
    Image.fromarray(values).save(tmp_path / "a.tif", compression="tiff_lzw", tiffinfo={0x0112: orientation})
    assert read_header(tmp_path / "a.tif").tiff.compression == 5  # type: ignore[union-attr]
    assert np.array_equal(stored_values(tmp_path / "a.tif")[..., 0], values)


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64", "int16", "int32", "uint32", "int8"])
@pytest.mark.parametrize("bands", [1, 2, 3, 5])
def test_numbers_that_pillow_has_no_mode_for(tmp_path, dtype: str, bands: int) -> None:
    values = np.random.default_rng(0).normal(20, 30, (9, 12, bands)).astype(dtype)
    shaped = values[..., 0] if bands == 1 else values
    tifffile.imwrite(
        tmp_path / "a.tif",
        shaped,
        photometric="minisblack",
        planarconfig=None if bands == 1 else "contig",
        compression="zlib",
    )
    colours = 3 if bands >= 3 else 1
    got = read_image(tmp_path / "a.tif", range=(-30, 70))
    expected = np.clip((values[..., :colours].astype(np.float64) + 30) * 2.55, 0, 255)
    assert np.abs(got - expected).max() <= 0.5 + 1e-6
    assert read_header(tmp_path / "a.tif").extra_bands == bands - colours


@pytest.mark.parametrize("bits", [10, 12, 14])
def test_packed_bits_state_their_range(tmp_path, bits: int) -> None:
    """A TIFF written by hand: rows of 10, 12 or 14 bits without gaps."""
    values = ramp(1, 2**bits - 1, 7, 11)[..., 0]
    digits = ((values[..., None] >> np.arange(bits - 1, -1, -1)) & 1).astype(np.uint8)
    data = np.packbits(digits.reshape(7, -1), axis=1).tobytes()
    tags = [(256, 3, 11), (257, 3, 7), (258, 3, bits), (259, 3, 1), (262, 3, 1), (273, 4, 8), (277, 3, 1), (278, 3, 7)]
    tags.append((279, 4, len(data)))
    block = b"".join(struct.pack("<HHII", tag, kind, 1, value) for tag, kind, value in tags)
    start = 8 + len(data) + len(data) % 2
    whole = b"II*\0" + struct.pack("<I", start) + data + b"\0" * (len(data) % 2)
    (tmp_path / "a.tif").write_bytes(whole + struct.pack("<H", len(tags)) + block + b"\0" * 4)
    assert read_header(tmp_path / "a.tif").stated == (0, 2**bits - 1)
    assert np.array_equal(read_image(tmp_path / "a.tif")[..., 1], bytes_of(values, 0, 2**bits - 1))


def test_what_a_file_states_is_its_range(tmp_path) -> None:
    values = ramp(1, 4095)[..., 0]
    tifffile.imwrite(tmp_path / "a.tif", values, extratags=[(341, 3, 1, 4095, True)])
    assert np.array_equal(read_image(tmp_path / "a.tif")[..., 0], bytes_of(values, 0, 4095))
    tifffile.imwrite(tmp_path / "b.tif", values, extratags=[(341, 3, 1, 99, True)])  # the values do not keep to it
    assert np.array_equal(read_image(tmp_path / "b.tif")[..., 0], bytes_of(values, 0, 65535))
    significant = struct.pack(">I", 1) + b"sBIT\x0c" + struct.pack(">I", zlib.crc32(b"sBIT\x0c"))
    (tmp_path / "c.png").write_bytes(png16(values[..., None], 0, significant))
    assert np.array_equal(read_image(tmp_path / "c.png")[..., 0], bytes_of(values, 0, 4095))
    # As the format asks, the 12 bits may be moved to the upper end of the 16.
    (tmp_path / "d.png").write_bytes(png16(values[..., None] << 4, 0, significant))
    assert np.array_equal(read_image(tmp_path / "d.png")[..., 0], bytes_of(values << 4, 0, 65535))


def test_pnm_of_more_than_8_bits(tmp_path) -> None:
    for bands, kind in ((1, b"P5"), (3, b"P6")):
        values = ramp(bands, 1000)
        (tmp_path / "a.ppm").write_bytes(kind + b" 33\n21\n1000\n" + values.astype(">u2").tobytes())
        assert np.array_equal(stored_values(tmp_path / "a.ppm"), values)
        expected = bytes_of(values, 0, 1000)
        assert np.array_equal(read_image(tmp_path / "a.ppm"), np.broadcast_to(expected, (21, 33, 3)))


def test_white_is_zero(tmp_path) -> None:
    values = ramp(1)[..., 0]
    tifffile.imwrite(tmp_path / "a.tif", values, photometric="miniswhite")
    assert np.array_equal(read_image(tmp_path / "a.tif")[..., 0], bytes_of(65535 - values.astype(int), 0, 65535))


def test_no_number_is_black_and_infinity_white(tmp_path) -> None:
    values = np.array([[0.5, np.nan, np.inf, -np.inf, 1.02, -0.001]], np.float32)
    assert to_8bit(values, (0, 1)).tolist() == [[128, 0, 255, 0, 255, 0]]
    Image.fromarray(values).save(tmp_path / "a.tif")
    assert read_image(tmp_path / "a.tif")[0, :, 0].tolist() == [128, 0, 255, 0, 255, 0]


@given(
    low=st.floats(-1e5, 1e5), width=st.floats(1e-3, 1e5), values=st.lists(st.integers(0, 65535), min_size=1, max_size=9)
)
def test_conversion_keeps_order_and_ends(low: float, width: float, values: list[int]) -> None:
    array = np.sort(np.array(values, np.uint16))[None]
    got = to_8bit(array, (low, low + width)).astype(int)
    assert (np.diff(got) >= 0).all()
    assert (got[array >= low + width] == 255).all() and (got[array <= low] == 0).all()
    many = np.tile(array, (70000 // array.size + 1, 1))  # by a table
    assert np.array_equal(to_8bit(many, (low, low + width))[0], got[0])


def test_a_whole_tiff_is_never_called_damaged(tmp_path) -> None:
    values = ramp(5)
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, values, photometric="minisblack", planarconfig="contig")
    page = read_page(io.BytesIO(path.read_bytes()))
    data = bytearray(path.read_bytes())
    place = data.index(struct.pack("<HHIH", 259, 3, 1, 1))
    data[place + 8] = 5  # LZW, which tifffile alone does not read
    lzw = tmp_path / "lzw.tif"
    lzw.write_bytes(data)
    with pytest.raises(MaskwrightError, match="5 bands of 16-bit whole numbers with compression LZW") as caught:
        read_image(lzw)
    assert "not damaged" in str(caught.value) and "delete" not in str(caught.value)
    assert caught.value.repair == "save it again without compression or with deflate"
    tifffile.imwrite(lzw, values, photometric="minisblack", planarconfig="contig", compression="deflate")
    assert np.array_equal(stored_values(lzw), values[..., :3])
    assert page.bands == 5 and page.colours == 3
    tifffile.imwrite(path, values.astype(np.complex64)[..., 0])
    with pytest.raises(MaskwrightError, match="complex numbers") as caught:
        read_image(path)
    assert "floats of 32" in caught.value.repair
    tifffile.imwrite(path, values[..., 0].astype(np.float32) / 65535)
    assert read_image(path).shape == (21, 33, 3)


def test_a_cut_tiff_is(tmp_path) -> None:
    tifffile.imwrite(tmp_path / "a.tif", ramp(3), photometric="rgb")
    whole = (tmp_path / "a.tif").read_bytes()
    Path(tmp_path / "a.tif").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(MaskwrightError, match="damaged or truncated"):
        read_image(tmp_path / "a.tif")
