"""Small valid files to start from: pictures, masks and annotations in every form that is read."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from benchmarks.fuzz.mutations import join_png, png_chunks

H, W = 24, 28
"""Size of most pictures: small, and its two sides differ."""
CLASSES = ("ground", "disc", "square")


def scene(seed: int, size: tuple[int, int] = (H, W)) -> tuple[np.ndarray, np.ndarray]:
    """A picture uint8 (H, W, 3) of a disc or a square on a plain ground, and its ids uint8 (H, W)."""
    rng = np.random.default_rng([7, seed])
    h, w = size
    yy, xx = np.mgrid[:h, :w]
    kind = 1 + seed % 2
    cy, cx, r = h / 2 + rng.integers(-2, 3), w / 2 + rng.integers(-2, 3), h / 4
    inside = (yy - cy) ** 2 + (xx - cx) ** 2 < r * r if kind == 1 else np.maximum(abs(yy - cy), abs(xx - cx)) < r
    image = np.full((h, w, 3), (90, 140, 90), float) + rng.normal(0, 8, (h, w, 3))
    image[inside] = np.array([(220, 60, 40), (40, 70, 220)][kind - 1]) + rng.normal(0, 12, (int(inside.sum()), 3))
    return image.clip(0, 255).astype(np.uint8), np.where(inside, kind, 0).astype(np.uint8)


def encoded(image: Image.Image, format: str, **options: Any) -> bytes:
    """The bytes of a file."""
    out = io.BytesIO()
    image.save(out, format=format, **options)
    return out.getvalue()


def pictures() -> dict[str, bytes]:
    """{file name: bytes} of photographs, one of each form."""
    rgb, _ = scene(1)
    grey = rgb.mean(2).astype(np.uint8)
    a, g = Image.fromarray(rgb), Image.fromarray(grey)
    wide = Image.fromarray((grey.astype(np.uint16) << 8) | 37)
    alpha = Image.fromarray(np.dstack([rgb, np.where(grey > 120, 255, 128).astype(np.uint8)]))
    exif = Image.Exif()
    exif[0x0112] = 6
    frames = [Image.fromarray(scene(k)[0]) for k in (1, 2, 3)]
    few = [f.quantize(16) for f in frames]
    real = Image.fromarray((grey / 255).astype(np.float32))
    return {
        "rgb.png": encoded(a, "PNG"),
        "grey.png": encoded(g, "PNG"),
        "grey16.png": encoded(wide, "PNG"),
        "rgb16.png": _png16(rgb),
        "palette.png": encoded(a.quantize(16), "PNG", transparency=3),
        "alpha.png": encoded(alpha, "PNG", exif=exif.tobytes()),
        "grey_alpha.png": encoded(alpha.convert("LA"), "PNG", pnginfo=None),
        "one_bit.png": encoded(g.convert("1"), "PNG"),
        "rgb.jpg": encoded(a, "JPEG", quality=90, exif=exif.tobytes()),
        "grey.jpg": encoded(g, "JPEG"),
        "progressive.jpg": encoded(a, "JPEG", progressive=True),
        "cmyk.jpg": encoded(a.convert("CMYK"), "JPEG"),
        "raw.tif": encoded(a, "TIFF"),
        "lzw.tif": encoded(a, "TIFF", compression="tiff_lzw"),
        "deflate.tif": encoded(a, "TIFF", compression="tiff_adobe_deflate"),
        "jpeg.tif": encoded(a, "TIFF", compression="jpeg"),
        "grey16.tif": encoded(wide, "TIFF"),
        "float.tif": encoded(real, "TIFF"),
        "alpha.tif": encoded(alpha, "TIFF"),
        "pages.tif": encoded(frames[0], "TIFF", save_all=True, append_images=frames[1:]),
        "still.gif": encoded(a.quantize(32), "GIF"),
        "animated.gif": encoded(few[0], "GIF", save_all=True, append_images=few[1:]),
        "lossy.webp": encoded(a, "WEBP", quality=80),
        "lossless.webp": encoded(alpha, "WEBP", lossless=True),
        "rgb.bmp": encoded(a, "BMP"),
        "palette.bmp": encoded(a.quantize(16), "BMP"),
        "rgb.ppm": encoded(a, "PPM"),
        "grey16.pgm": encoded(wide, "PPM"),
        "rgb.jp2": encoded(a, "JPEG2000"),
    }  # fmt: skip


def _png16(rgb: np.ndarray) -> bytes:
    """A PNG of 16 bits a channel, which Pillow does not write."""
    import zlib

    wide = ((rgb.astype(np.uint16) << 8) | 5).astype(">u2")
    rows = b"".join(b"\0" + row.tobytes() for row in wide)
    head = np.array([rgb.shape[1], rgb.shape[0]], ">u4").tobytes() + bytes([16, 2, 0, 0, 0])
    return join_png([(b"IHDR", head), (b"IDAT", zlib.compress(rows)), (b"IEND", b"")])


def masks() -> dict[str, bytes]:
    """{file name: bytes} of masks of the first scene, one of each form."""
    _, ids = scene(1)
    grey = Image.fromarray(ids)
    palette = Image.fromarray(ids)
    palette.putpalette([0, 0, 0, 200, 0, 0, 0, 0, 200] + [9] * (253 * 3))
    void = np.where((ids > 0) & (np.indices(ids.shape).sum(0) % 7 == 0), 255, ids).astype(np.uint8)
    return {
        "grey.png": encoded(grey, "PNG"),
        "void.png": encoded(Image.fromarray(void), "PNG"),
        "palette.png": encoded(palette, "PNG"),
        "two_bits.png": encoded(palette, "PNG", bits=2),
        "one_bit.png": encoded(Image.fromarray(ids > 0), "PNG"),
        "wide.png": encoded(Image.fromarray(ids.astype(np.uint16)), "PNG"),
        "text.png": _with_text(encoded(grey, "PNG")),
        "raw.tif": encoded(grey, "TIFF"),
        "wide.tif": encoded(Image.fromarray(ids.astype(np.uint16)), "TIFF", compression="tiff_lzw"),
        "grey.bmp": encoded(grey, "BMP"),
        "palette.gif": encoded(palette, "GIF"),
    }


def _with_text(data: bytes) -> bytes:
    chunks = png_chunks(data)
    return join_png([chunks[0], (b"tEXt", b"Software\0an editor"), (b"gAMA", b"\0\1\x86\xa0"), *chunks[1:]])


def truth_files(seed: int) -> tuple[bytes, bytes]:
    """Photograph and mask of a scene as PNG."""
    rgb, ids = scene(seed)
    return encoded(Image.fromarray(rgb), "PNG"), encoded(Image.fromarray(ids), "PNG")


def write_folder(root: Path, count: int = 4, masked: int | None = None) -> Path:
    """A dataset folder with everything that one may hold.

    Args:
        root: where.
        count: photographs.
        masked: how many have a mask; all if None.
    """
    for sub in ("images", "masks", "splits"):
        (root / sub).mkdir(parents=True, exist_ok=True)
    names = [f"scene_{k}" for k in range(count)]
    for k, name in enumerate(names):
        photo, mask = truth_files(k)
        (root / "images" / f"{name}.png").write_bytes(photo)
        if masked is None or k < masked:
            (root / "masks" / f"{name}.png").write_bytes(mask)
    for path, text in tables(names).items():
        (root / path).write_text(text)
    return root


def tables(names: list[str]) -> dict[str, str]:
    """{path: text} of the tables of a folder of scenes."""
    return {
        "classes.txt": "\n".join(CLASSES) + "\n",
        "tags.csv": "name,tags\n" + "".join(f"{n},{CLASSES[1 + k % 2]}\n" for k, n in enumerate(names)),
        "captions.csv": "name,caption\n" + "".join(f'{n},"a thing, number {k}"\n' for k, n in enumerate(names)),
        "splits/train.txt": "".join(f"{n}\n" for n in names[: len(names) // 2]),
        "splits/test.txt": "\n".join(names[len(names) // 2 :]),
    }


COLOURS = "0 0 0 ground\n200 0 0 disc\n0 0 200 square\n"
"""Colours of the classes, as `colors.txt` holds them."""


def colour_mask(seed: int) -> bytes:
    """The mask of a scene drawn in the colours above."""
    _, ids = scene(seed)
    table = np.array([(0, 0, 0), (200, 0, 0), (0, 0, 200)], np.uint8)
    return encoded(Image.fromarray(table[ids]), "PNG")


def voc_annotation(name: str) -> str:
    """An annotation of VOC with two objects."""
    box = "<bndbox><xmin>2</xmin><ymin>3</ymin><xmax>20</xmax><ymax>21</ymax></bndbox>"
    things = "".join(f"<object><name>{n}</name><difficult>0</difficult>{box}</object>" for n in ("cat", "dog"))
    size = f"<size><width>{W}</width><height>{H}</height><depth>3</depth></size>"
    head = '<?xml version="1.0" encoding="UTF-8"?>\n'
    return f"{head}<annotation><filename>{name}.jpg</filename>{size}{things}</annotation>\n"


def sbd_mask(seed: int, compressed: bool) -> bytes:
    """A mask of SBD: a structure GTcls with Boundaries, Segmentation and CategoriesPresent."""
    from scipy.io import savemat
    from scipy.sparse import csc_matrix

    _, ids = scene(seed)
    boundaries = np.empty((20, 1), object)
    for k in range(20):
        boundaries[k, 0] = csc_matrix(ids == k)
    out = io.BytesIO()
    content = {"Boundaries": boundaries, "Segmentation": ids, "CategoriesPresent": np.array([[1], [2]], np.uint8)}
    savemat(out, {"GTcls": content}, do_compression=compressed)
    return out.getvalue()
