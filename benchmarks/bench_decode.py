"""Decoding and resizing photographs and masks, beside Pillow and torchvision."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import simplejpeg
import torch
from PIL import Image

from benchmarks.common import Row, side_by_side
from maskwright.data.masking.masks import read_mask, write_mask
from maskwright.data.pictures.images import read_resized


def _photograph(path: Path, height: int, width: int) -> Path:
    """A JPEG of about one bit a pixel, as cameras in cars and phones write them: shapes, edges and a little grain."""
    rng = np.random.default_rng(0)
    image = np.zeros((height, width, 3), np.float32)
    for cells in (4, 16, 64):
        small = Image.fromarray(rng.integers(0, 256, (cells, cells * 2, 3), dtype=np.uint8))
        image += np.asarray(small.resize((width, height), Image.Resampling.BICUBIC), np.float32) * (2.4 / cells**0.5)
    image = image / image.max() * 240 + rng.normal(0, 3, (height, width, 1))
    Image.fromarray(image.clip(0, 255).astype(np.uint8)).save(path, quality=85)
    return path


def _pillow(path: Path, size: tuple[int, int], window: tuple[int, int, int, int] | None = None) -> np.ndarray:
    """The usual order: decode the whole image, resize it, cut the window out."""
    with Image.open(path) as file:
        image = file.convert("RGB")
    if window is None:
        return np.asarray(image.resize(size[::-1], Image.Resampling.BILINEAR))
    top, left, height, width = window
    fy, fx = size[0] / height, size[1] / width
    whole = image.resize((round(image.width * fx), round(image.height * fy)), Image.Resampling.BILINEAR)
    y, x = round(top * fy), round(left * fx)
    return np.asarray(whole.crop((x, y, x + size[1], y + size[0])))


def _difference(a: np.ndarray, b: np.ndarray) -> str:
    gap = np.abs(a.astype(int) - b)
    return f"at most {gap.max()} grey levels apart, {gap.mean():.2f} on average"


def _row(
    path: Path,
    label: str,
    asked: float,
    size: tuple[int, int],
    window: tuple[int, int, int, int] | None = None,
) -> Row:
    data = path.read_bytes()
    height, width, *_ = simplejpeg.decode_jpeg_header(data)
    shrink = min(window[2] / size[0], window[3] / size[1]) if window else min(height / size[0], width / size[1])
    factor = max(f for f in (1, 2, 4, 8) if f <= max(1, shrink))
    ours_s, other_s, limit_s = side_by_side(
        lambda: read_resized(path, size, window),
        lambda: _pillow(path, size, window),
        # The limit: libjpeg-turbo's own time for that scale, which reads every coefficient of the file.
        lambda: simplejpeg.decode_jpeg(
            data, "RGB", min_height=-(-height // factor), min_width=-(-width // factor), min_factor=factor
        ),
        repeats=21,
        warmup=3,
    )
    agrees = _difference(read_resized(path, size, window), _pillow(path, size, window))
    return Row(label, ours_s, "PIL", other_s, asked, limit_s, agrees)


def rows() -> list[Row]:
    """Decode and resize, a scaled decode, an augmentation crop, and palette masks. One thread on both sides."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with tempfile.TemporaryDirectory() as folder:
            small = _photograph(Path(folder, "small.jpg"), 375, 500)
            large = _photograph(Path(folder, "large.jpg"), 1024, 2048)
            return [
                _row(small, "decode, resize 500x375 to 224", 2.0, (224, 224)),
                _row(large, "decode, resize 2048x1024 to 1024x512", 5.0, (512, 1024)),
                _row(large, "augmentation, 2048x1024 to a 512 crop at 1/2", 5.0, (512, 512), (0, 512, 1024, 1024)),
                _augmentation_row(large),
                _mask_row(Path(folder, "mask.png")),
            ]
    finally:
        torch.set_num_threads(threads)


def _augmentation_row(path: Path) -> Row:
    """One crop at each of five scales, at odd places: the mean of what a training loop asks for."""
    windows = []
    for k, scale in enumerate((0.5, 0.7, 1.0, 1.4, 2.0)):
        side = round(512 / scale)
        windows.append(((1024 - side) * k // 5, 301 + 17 * k, side, side))

    def ours() -> None:
        for window in windows:
            read_resized(path, (512, 512), window)

    def pillow() -> None:
        for window in windows:
            _pillow(path, (512, 512), window)

    data = path.read_bytes()

    def decode() -> None:
        simplejpeg.decode_jpeg(data, "RGB", min_height=512, min_width=1024, min_factor=2)
        for _ in windows[1:]:
            simplejpeg.decode_jpeg(data, "RGB")

    times = [t / len(windows) for t in side_by_side(ours, pillow, decode, repeats=7)]
    label = "augmentation, 2048x1024, scale 0.5 to 2, 512 crop"
    return Row(label, times[0], "PIL, whole image", times[1], 5.0, times[2], "same area, see the tests")


def _mask_row(path: Path) -> Row:
    from torchvision.io import ImageReadMode, decode_image

    grid = np.random.default_rng(1).integers(0, 21, (12, 16), dtype=np.uint8)
    ids = np.kron(grid, np.ones((32, 32), np.uint8))[:375, :500]
    write_mask(path, ids)

    def expanded() -> torch.Tensor:
        return decode_image(str(path), ImageReadMode.RGB)

    ours_s, other_s = side_by_side(lambda: read_mask(path), expanded, repeats=25, warmup=3)
    agrees = f"ids exact: {bool((read_mask(path) == ids).all())}; torchvision RGB expands the palette"
    return Row("palette mask 500x375", ours_s, "torchvision", other_s, 1.0, agrees=agrees)
