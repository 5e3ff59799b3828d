"""What formats can tell of damage, bombs, and files that are no files."""

from __future__ import annotations

import io
import os
import socket
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from maskwright.data.folders.folder import Dataset, Item
from maskwright.data.masking.masks import read_mask
from maskwright.data.pictures.headers import most_pixels, parse_header
from maskwright.data.pictures.images import image_size, read_header, read_image, read_resized, read_small, verify_image
from maskwright.errors import MaskwrightError


def scene(h: int = 60, w: int = 80) -> Image.Image:
    small = np.random.default_rng(0).integers(0, 256, (7, 9, 3), dtype=np.uint8)
    return Image.fromarray(small).resize((w, h), Image.Resampling.BICUBIC)


def encoded(kind: str, **options: object) -> bytes:
    out = io.BytesIO()
    scene().save(out, kind, **options)
    return out.getvalue()


def test_no_flipped_bit_of_a_png_is_silent(tmp_path) -> None:
    data = encoded("PNG")
    rng = np.random.default_rng(0)
    for _ in range(300):
        damaged = bytearray(data)
        damaged[int(rng.integers(len(data)))] ^= 1 << int(rng.integers(8))
        (tmp_path / "a.png").write_bytes(damaged)
        for read in (read_image, verify_image):
            with pytest.raises(MaskwrightError, match=r"a\.png"):
                read(tmp_path / "a.png")


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"quality": 95, "subsampling": 0}])
def test_what_a_jpeg_decoder_warns_of_is_damage(tmp_path, options: dict) -> None:
    """All reads agree with libjpeg-turbo's own warnings; the scaled decodes see the same."""
    import simplejpeg

    data = encoded("JPEG", **options)
    start = data.index(b"\xff\xda") + 14
    rng = np.random.default_rng(1)
    seen = 0
    for _ in range(80):
        damaged = bytearray(data)
        damaged[int(rng.integers(start, len(data) - 2))] ^= 1 << int(rng.integers(8))
        try:
            simplejpeg.decode_jpeg(bytes(damaged), "RGB")
            continue
        except ValueError as error:
            if not any(word in str(error) for word in ("premature", "Huffman", "RST")):
                continue
        seen += 1
        (tmp_path / "a.jpg").write_bytes(damaged)
        for read in (read_image, verify_image, lambda p: read_resized(p, (8, 8))):
            with pytest.raises(MaskwrightError, match="damaged or truncated"):
                read(tmp_path / "a.jpg")
    assert seen
    (tmp_path / "a.jpg").write_bytes(data[:-2])
    with pytest.raises(MaskwrightError, match=r"[Pp]remature end"):
        read_image(tmp_path / "a.jpg")


def test_harmless_oddities_of_a_jpeg_pass(tmp_path) -> None:
    data = encoded("JPEG")
    for odd in (data + b"after the end", data[:-2] + b"\0" * 40 + data[-2:], data[:-2] + b"\xff" * 40 + data[-2:]):
        (tmp_path / "a.jpg").write_bytes(odd)
        assert read_image(tmp_path / "a.jpg").shape == (60, 80, 3)
        verify_image(tmp_path / "a.jpg")


def test_only_regular_files_are_opened(tmp_path) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "device.png").symlink_to("/dev/zero")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "socket.png"))
        data = Dataset(tmp_path, [Item("pipe", tmp_path / "pipe.png")])
        reads = [read_image, verify_image, read_small, image_size, read_header, lambda p: data.content_hash(0)]
        for name, what in (("pipe", "a pipe"), ("device", "a device"), ("socket", "a socket")):
            for read in reads:
                with pytest.raises(MaskwrightError, match=what if read is not reads[-1] else "a pipe"):
                    read(tmp_path / f"{name}.png")


def gif(width: int, height: int) -> bytes:
    head = b"GIF89a" + struct.pack("<HHBBB", width, height, 0xF0, 0, 0) + bytes(6)
    return head + b"," + struct.pack("<HHHHB", 0, 0, width, height, 0) + b"\x02\x02\x4c\x01\x00;"


def test_bombs_are_refused_by_their_bytes(tmp_path) -> None:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 30000, 30000, 8, 2, 0, 0, 0))
    png = b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(bytes(999))) + chunk(b"IEND", b"")
    jpeg = encoded("JPEG")
    place = jpeg.index(b"\xff\xc0")
    jpeg = jpeg[: place + 5] + struct.pack(">HH", 30000, 30000) + jpeg[place + 9 :]
    for name, data in (("a.gif", gif(32000, 32000)), ("a.png", png), ("a.jpg", jpeg)):
        (tmp_path / name).write_bytes(data)
        for read in (read_image, verify_image):
            with pytest.raises(MaskwrightError, match="cannot hold"):
                read(tmp_path / name)


@pytest.mark.parametrize("kind", ["PNG", "GIF", "JPEG", "TIFF"])
@pytest.mark.parametrize("mode", ["1", "L", "RGB"])
def test_the_bound_lets_the_best_compression_pass(kind: str, mode: str) -> None:
    image = Image.new(mode, (6000, 5000))
    options: dict[str, object] = {
        "PNG": {"compress_level": 9}, "JPEG": {"quality": 1, "optimize": True, "progressive": True},
        "TIFF": {"compression": "tiff_deflate"}, "GIF": {},
    }[kind]  # fmt: skip
    out = io.BytesIO()
    (image.convert("L") if kind == "JPEG" and mode == "1" else image).save(out, kind, **options)
    out.seek(0)
    most = most_pixels(parse_header(out), len(out.getvalue()))
    assert most is not None and most >= 6000 * 5000


def test_a_flat_gif_of_many_pixels_is_examined_in_little_memory(tmp_path) -> None:
    (tmp_path / "images").mkdir()
    Image.new("P", (9000, 9000)).save(tmp_path / "images" / "a.gif")
    code = (
        "import resource, sys; from maskwright.data.pictures.images import read_small\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        f"print(read_small({str(tmp_path / 'images' / 'a.gif')!r}).shape)\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split("\n")
    assert int(out[1]) < 350 * 1024, "81 million pixels: 81 MB as they are, 243 MB as RGB, strips beside"


def test_large_pictures_shrink_while_they_are_read(tmp_path, monkeypatch) -> None:
    scene(600, 800).save(tmp_path / "a.png")
    whole = read_image(tmp_path / "a.png")
    monkeypatch.setattr("maskwright.data.pictures.images.STRIP_PIXELS", 50_000)
    small = read_small(tmp_path / "a.png")
    assert small.shape == (38, 50, 3)
    expected = np.array(Image.fromarray(whole).reduce(16))
    assert np.abs(small.astype(int) - expected).max() <= 1


@pytest.mark.data
def test_real_png_and_jpeg_pass(data_root: Path) -> None:
    paths = [*sorted(data_root.rglob("*.jpg"))[:300], *sorted(data_root.rglob("*.png"))[:100]]
    for path in paths:
        verify_image(path)


def test_a_size_that_the_data_do_not_have_is_damage(tmp_path: Path) -> None:
    """Header and pixels of a TIFF may disagree; what was planned by the one would be cut from the other."""
    path = tmp_path / "a.tif"
    Image.fromarray(np.zeros((24, 28, 3), np.uint8)).save(path)
    data = bytearray(path.read_bytes())
    (start,) = struct.unpack_from("<I", data, 4)
    (count,) = struct.unpack_from("<H", data, start)
    for entry in range(start + 2, start + 2 + 12 * count, 12):
        if struct.unpack_from("<H", data, entry)[0] == 256:  # ImageWidth
            struct.pack_into("<I", data, entry + 8, 20)
    path.write_bytes(bytes(data))
    try:
        assert read_image(path).shape[:2] == image_size(path)
    except MaskwrightError as error:
        assert "a.tif" in str(error)


@pytest.mark.parametrize("kind", ["1", "L", "P"])
def test_a_mask_that_its_bytes_cannot_hold_is_refused_before_it_is_decoded(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "a.png"
    Image.new(kind, (28, 24)).save(path)
    data = bytearray(path.read_bytes())
    struct.pack_into(">I", data, 16, 1 << 25)
    struct.pack_into(">I", data, 29, zlib.crc32(bytes(data[12:29])))
    path.write_bytes(bytes(data))
    with pytest.raises(MaskwrightError, match="cannot hold"):
        read_mask(path)
