"""Augmentation: a 2048x1024 photograph to a strong view of 512, window first against whole-image order.

Once from decoded pixels and once from a JPEG file, where decoding outweighs the rest above half scale: the
decoder has no way to read a part of a file.
"""

from __future__ import annotations

import tempfile
from functools import partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageEnhance
from torchvision.transforms import v2

from benchmarks.common import Row, side_by_side
from maskwright.data.training import crops
from maskwright.data.training.augment import Photometric
from maskwright.data.training.views import View

SIZE, CROP = (1024, 2048), (512, 512)


def _picture() -> np.ndarray:
    """A smooth scene with texture, uint8 (1024, 2048, 3)."""
    rng = np.random.default_rng(0)
    coarse = Image.fromarray(rng.integers(0, 256, (16, 32, 3), dtype=np.uint8))
    smooth = np.asarray(coarse.resize(SIZE[::-1], Image.Resampling.BICUBIC)).astype(int)
    return (smooth + rng.integers(-3, 4, (*SIZE, 3))).clip(0, 255).astype(np.uint8)


def rows() -> list[Row]:
    """Random scale in [0.5, 2], crop of 512, flip, brightness and contrast: photograph to uint8 view."""
    torch.set_num_threads(1)
    recipe = Photometric(brightness=0.5, contrast=0.5)
    scales = np.random.default_rng(0).uniform(0.5, 2.0, 6).tolist()
    jitter, flip = v2.ColorJitter(0.5, 0.5), v2.RandomHorizontalFlip()
    random_crop = v2.RandomCrop(CROP, pad_if_needed=True)
    array = _picture()
    decoded = Image.fromarray(array)
    tensor = torch.from_numpy(array).permute(2, 0, 1)

    def ours(path: Path | None) -> None:
        for seed, scale in enumerate(scales):
            generator = torch.Generator().manual_seed(seed)
            view = crops.random_scale_crop(SIZE, CROP, scale=(scale, scale), generator=generator)
            pixels = view.render(array) if path is None else view.read(path)
            recipe(torch.as_tensor(pixels).permute(2, 0, 1), generator)

    def pillow(path: Path | None) -> None:
        for seed, scale in enumerate(scales):
            width, height = round(2048 * scale), round(1024 * scale)
            image = decoded if path is None else Image.open(path).convert("RGB")
            scaled = image.resize((width, height), Image.Resampling.BILINEAR)
            if seed % 2:
                scaled = scaled.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
            left, top = (width - 512) // 3, (height - 512) // 3
            part = scaled.crop((left, top, left + 512, top + 512))
            np.asarray(ImageEnhance.Contrast(ImageEnhance.Brightness(part).enhance(1.2)).enhance(0.8))

    def torchvision(path: Path | None) -> None:
        for scale in scales:
            image = tensor if path is None else v2.functional.pil_to_tensor(Image.open(path).convert("RGB"))
            size = [round(1024 * scale), round(2048 * scale)]
            jitter(flip(random_crop(v2.functional.resize(image, size, antialias=True))))

    made: list[Row] = []
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "scene.jpg"
        decoded.save(file, quality=85)
        for path, what in ((None, "pixels"), (file, "JPEG")):
            ways = [partial(way, path) for way in (ours, pillow, torchvision)]
            mine, pil, tv = (t / len(scales) for t in side_by_side(*ways))
            name = f"augmentation, 2048x1024 {what} to a 512 crop"
            made.append(Row(name, mine, "PIL, whole image first", pil, 5.0, agrees=_agreement()))
            made.append(Row(name, mine, "torchvision v2, whole image first", tv, 1.5))
    return made


def _agreement() -> str:
    """Largest difference between a window cut first and the same window of the whole image resized."""
    tensor = torch.from_numpy(_picture()).permute(2, 0, 1)
    whole = v2.functional.resize(tensor, [512, 1024], antialias=True)
    part = View.identity(SIZE).crop(200, 400, 512, 512).resize(256, 256).render(tensor)
    difference = (torch.as_tensor(part)[:, 1:-1, 1:-1].int() - whole[:, 101:355, 201:455].int()).abs().max()
    return f"within {int(difference)} grey level(s) of the whole image resized"


if __name__ == "__main__":
    for row in rows():
        ours_ms, other_ms = row.ours_s * 1e3, row.other_s * 1e3
        print(f"{row.path}, {row.other}: {ours_ms:.1f} ms against {other_ms:.1f} ms, {row.ratio:.1f}x")
