"""Masks keep their ids through every encoding."""

from __future__ import annotations

import errno
import os

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image

from maskwright.data.masking.classes import ClassTable, default_palette
from maskwright.data.masking.masks import read_mask, read_mask_rg, write_mask, write_mask_rg
from maskwright.data.trust.files import atomic_write, write_json
from maskwright.errors import MaskwrightError

EDGES = (0, 1, 127, 128, 254, 255, 256, 919, 65535)
SHAPES = hnp.array_shapes(min_dims=2, max_dims=2, max_side=9)


@pytest.mark.parametrize("value", EDGES)
def test_round_trip_of_edge_ids(tmp_path, value: int) -> None:
    ids = np.full((3, 5), value, np.uint16)
    ids[0, 0] = 0
    path = tmp_path / "m.png"
    write_mask(path, ids)
    back = read_mask(path)
    assert back.dtype == (np.uint8 if value <= 255 else np.uint16)
    assert np.array_equal(back, ids)
    write_mask_rg(path, ids)
    assert np.array_equal(read_mask_rg(path), ids)


@settings(max_examples=25, deadline=None)
@given(ids=hnp.arrays(np.uint8, SHAPES))
def test_round_trip_8_bit(tmp_path_factory, ids: np.ndarray) -> None:
    path = tmp_path_factory.mktemp("m") / "m.png"
    write_mask(path, ids, ClassTable.numbered(21))
    with Image.open(path) as image:
        assert image.mode == "P"
    back = read_mask(path)
    assert back.dtype == np.uint8 and np.array_equal(back, ids)


@settings(max_examples=25, deadline=None)
@given(ids=hnp.arrays(np.uint16, SHAPES, elements=st.one_of(st.sampled_from(EDGES), st.integers(0, 65535))))
def test_round_trip_16_bit(tmp_path_factory, ids: np.ndarray) -> None:
    path = tmp_path_factory.mktemp("m") / "m.png"
    write_mask(path, ids, ClassTable.numbered(919))
    back = read_mask(path)
    assert back.dtype == np.uint16 and np.array_equal(back, ids)
    write_mask_rg(path, ids)
    assert np.array_equal(read_mask_rg(path), ids)


def test_table_decides_depth_and_colours(tmp_path) -> None:
    ids = np.array([[0, 1], [2, 255]])
    path = tmp_path / "m.png"
    table = ClassTable(("a", "b", "c"), np.array([[1, 2, 3], [4, 5, 6], [7, 8, 9]], np.uint8))
    write_mask(path, ids, table)
    with Image.open(path) as image:
        assert np.array(image.convert("RGB")).tolist() == [
            [[1, 2, 3], [4, 5, 6]],
            [[7, 8, 9], [255, 255, 255]],
        ]
    write_mask(path, ids, ClassTable.numbered(255))
    assert read_mask(path).dtype == np.uint8
    for classes in (256, 257):  # 255 is a class then
        write_mask(path, ids, ClassTable.numbered(classes))
        assert read_mask(path).dtype == np.uint16


@pytest.mark.parametrize("bits", [1, 2, 4])
def test_palette_of_few_bits(tmp_path, bits: int) -> None:
    ids = (np.arange(24).reshape(4, 6) % 2**bits).astype(np.uint8)
    image = Image.fromarray(ids)
    image.putpalette(default_palette(16).tobytes())
    image.save(tmp_path / "m.png", bits=bits)
    assert np.array_equal(read_mask(tmp_path / "m.png"), ids)


@pytest.mark.parametrize("bits", [1, 2, 4, 8, 16])
def test_grey_png_of_any_depth(tmp_path, bits: int) -> None:
    # Written by hand: Pillow cannot write 2 and 4 bits, and stretches them to 0..255 when it reads them.
    import struct
    import zlib

    width, height = 16, 3
    ids = (np.arange(width * height).reshape(height, width) * 37) % 2**bits
    rows = b""
    for row in ids:
        digits = "".join(format(v, f"0{bits}b") for v in row)
        rows += b"\0" + int(digits, 2).to_bytes(len(digits) // 8, "big")

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, bits, 0, 0, 0, 0)
    png = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    (tmp_path / "m.png").write_bytes(png)
    assert np.array_equal(read_mask(tmp_path / "m.png"), ids)


def test_other_containers(tmp_path) -> None:
    ids = np.arange(20, dtype=np.uint8).reshape(4, 5)
    for name in ("m.tif", "m.bmp", "m.gif"):
        Image.fromarray(ids).save(tmp_path / name)
        assert np.array_equal(read_mask(tmp_path / name), ids), name
    Image.fromarray(ids.astype(np.int32) * 1000).save(tmp_path / "wide.tif")
    assert np.array_equal(read_mask(tmp_path / "wide.tif"), ids.astype(np.uint16) * 1000)
    opaque = np.stack([ids, np.full_like(ids, 255)], axis=-1)
    Image.fromarray(opaque, mode="LA").save(tmp_path / "la.png")
    assert np.array_equal(read_mask(tmp_path / "la.png"), ids)


def test_colour_masks_are_refused_with_the_repair(tmp_path) -> None:
    path = tmp_path / "m.png"
    Image.new("RGB", (4, 3), (128, 0, 0)).save(path)
    with pytest.raises(MaskwrightError, match=r"colour image.*index PNG.*colors\.txt.*--labels colours"):
        read_mask(path)
    Image.new("RGB", (4, 3), (7, 7, 7)).save(path)
    with pytest.raises(MaskwrightError, match=r"grey saved as a colour image.*--labels grey"):
        read_mask(path)


@pytest.mark.parametrize(
    ("content", "said"),
    [(b"", "0 bytes"), (b"hello there", "is text"), (b"\x89PNG\r\n\x1a\n\0\0", "damaged")],
)
def test_unreadable_masks(tmp_path, content: bytes, said: str) -> None:
    (tmp_path / "m.png").write_bytes(content)
    with pytest.raises(MaskwrightError, match=said):
        read_mask(tmp_path / "m.png")


def test_jpeg_and_float_masks(tmp_path) -> None:
    Image.new("L", (8, 8), 3).save(tmp_path / "m.jpg")
    with pytest.raises(MaskwrightError, match="JPEG"):
        read_mask(tmp_path / "m.jpg")
    Image.fromarray(np.ones((2, 2), np.float32)).save(tmp_path / "m.tif")
    with pytest.raises(MaskwrightError):
        read_mask(tmp_path / "m.tif")
    with pytest.raises(MaskwrightError, match="does not exist"):
        read_mask(tmp_path / "none.png")


def test_rg_refuses_other_images(tmp_path) -> None:
    Image.new("RGB", (2, 2), (1, 2, 3)).save(tmp_path / "m.png")
    with pytest.raises(MaskwrightError, match="blue"):
        read_mask_rg(tmp_path / "m.png")
    Image.new("L", (2, 2)).save(tmp_path / "m.png")
    with pytest.raises(MaskwrightError, match="mode L"):
        read_mask_rg(tmp_path / "m.png")


@pytest.mark.parametrize("bad", [np.zeros((2, 2, 3), int), np.array([[-1]]), np.array([[65536]]), np.zeros((2, 2))])
def test_write_refuses(tmp_path, bad: np.ndarray) -> None:
    with pytest.raises(ValueError):
        write_mask(tmp_path / "m.png", bad)
    assert not list(tmp_path.iterdir())


def test_full_disk_leaves_the_old_file(tmp_path, monkeypatch) -> None:
    path = tmp_path / "run.json"
    write_json(path, {"a": 1})
    before = path.read_bytes()

    def full(handle: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(MaskwrightError, match=r"no space left to write .*run\.json"):
        write_json(path, {"a": 2})
    assert path.read_bytes() == before and [p.name for p in tmp_path.iterdir()] == ["run.json"]


def test_interrupt_leaves_the_old_file(tmp_path) -> None:
    path = tmp_path / "a" / "b.txt"
    with atomic_write(path) as beside:
        beside.write_text("old")
    with pytest.raises(KeyboardInterrupt), atomic_write(path) as beside:
        beside.write_text("half")
        raise KeyboardInterrupt
    assert path.read_text() == "old" and len(list(path.parent.iterdir())) == 1


def test_write_errors_keep_their_meaning(tmp_path) -> None:
    with pytest.raises(FileNotFoundError), atomic_write(tmp_path / "out.txt"):
        (tmp_path / "input that is missing").read_text()
    (tmp_path / "file").write_text("")
    with pytest.raises(MaskwrightError, match="cannot write"):
        write_json(tmp_path / "file" / "x.json", {})
