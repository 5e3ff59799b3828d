"""Photometric augmentation of uint8 or float images, each draw from an explicit generator.

Images are (..., 3, H, W), uint8 in [0, 255] or float in [0, 1]. The operations are those of torchvision,
factor for factor; a whole recipe runs in float32 and rounds once, where torchvision truncates after every
step. Recipes carry the names of the papers that use them, in `PRESETS`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from maskwright.errors import unknown

GREY = (0.2989, 0.587, 0.114)


def to_unit(image: Tensor) -> Tensor:
    """Float32 in [0, 1] of a uint8 image; floats are returned as they are."""
    return image if image.is_floating_point() else image.float().mul_(1 / 255)


def from_unit(image: Tensor, dtype: torch.dtype) -> Tensor:
    """The reverse: rounded to uint8 where that is asked for."""
    return image.to(dtype) if dtype.is_floating_point else (image * 255).round_().clamp_(0, 255).to(dtype)


def greyscale(image: Tensor) -> Tensor:
    """The luma of a float image, repeated over its three channels."""
    return _luma(image).expand_as(image)


def _luma(image: Tensor) -> Tensor:
    red, green, blue = image.unbind(-3)
    return (GREY[0] * red + GREY[1] * green + GREY[2] * blue).unsqueeze(-3)


def _blend(image: Tensor, other: Tensor | float, factor: float) -> Tensor:
    return (image * factor + other * (1 - factor)).clamp_(0, 1)


def adjust_brightness(image: Tensor, factor: float) -> Tensor:
    """Float image times factor, clamped; 0 is black, 1 the image."""
    return (image * factor).clamp_(0, 1)


def adjust_contrast(image: Tensor, factor: float) -> Tensor:
    """Blends a float image with its mean luma; 0 is plain grey, 1 the image."""
    return _blend(image, _luma(image).mean((-3, -2, -1), keepdim=True), factor)


def adjust_saturation(image: Tensor, factor: float) -> Tensor:
    """Blends a float image with its luma; 0 is greyscale, 1 the image."""
    return _blend(image, _luma(image), factor)


def adjust_hue(image: Tensor, shift: float) -> Tensor:
    """Turns the hue of a float image by `shift` circles, in [-0.5, 0.5].

    HSV without the detour: with value v, chroma d and hue h in sixths, channel n is v - d * clamp(min(k, 4 -
    k), 0, 1) where k = (n + h) mod 6 and n = 5, 3, 1 for red, green, blue.
    """
    red, green, blue = image.unbind(-3)
    value, low = image.amax(-3), image.amin(-3)
    chroma = value - low
    scale = torch.where(chroma > 0, 1 / chroma.clamp(min=1e-12), torch.zeros_like(chroma))
    hue = torch.where(
        value == red,
        (green - blue) * scale,
        torch.where(value == green, 2 + (blue - red) * scale, 4 + (red - green) * scale),
    )
    hue = hue + 6 * shift
    channels = []
    for n in (5, 3, 1):
        k = torch.remainder(hue + n, 6)
        channels.append(value - chroma * torch.minimum(k, 4 - k).clamp_(0, 1))
    return torch.stack(channels, -3)


def solarise(image: Tensor, threshold: float = 0.5) -> Tensor:
    """Inverts the pixels of a float image at or above the threshold."""
    return torch.where(image >= threshold, 1 - image, image)


def posterise(image: Tensor, bits: int) -> Tensor:
    """Keeps the upper `bits` of 8 of a float image's grey levels."""
    step = 2 ** (8 - bits)
    return (image * 255).round_().div_(step).floor_().mul_(step / 255)


def gaussian_kernel(sigma: float, size: int | None = None) -> Tensor:
    """Normalised 1-D Gaussian, float32 (size,); by default as wide as four sigma each way."""
    if size is None:
        size = 2 * max(1, math.ceil(4 * sigma)) + 1
    if size < 1 or size % 2 == 0:
        raise ValueError(f"a blur needs an odd kernel, got {size}")
    x = torch.arange(size, dtype=torch.float32) - (size - 1) / 2
    weights = torch.exp(-0.5 * (x / max(sigma, 1e-6)) ** 2)
    return weights / weights.sum()


def gaussian_blur(image: Tensor, sigma: float, size: int | None = None) -> Tensor:
    """Separable Gaussian blur of a float image with mirrored borders.

    Args:
        image: (..., C, H, W).
        sigma: standard deviation, pixels.
        size: kernel width, odd; by default 8 sigma + 1.
    """
    weights = gaussian_kernel(sigma, size).tolist()
    planes = image.reshape(1, -1, *image.shape[-2:])
    # Shifted sums: many times as fast here as a convolution with one channel in and out.
    for dim in (-2, -1):
        length = planes.shape[dim]
        # A kernel wider than a small picture is cut, as there is nothing more to mirror.
        reach = min(len(weights) // 2, length - 1)
        part = weights[len(weights) // 2 - reach : len(weights) // 2 + reach + 1]
        pad = (0, 0, reach, reach) if dim == -2 else (reach, reach, 0, 0)
        padded, total = F.pad(planes, pad, mode="reflect"), sum(part)
        planes = padded.narrow(dim, 0, length) * (part[0] / total)
        for k, weight in enumerate(part[1:], 1):
            planes = planes.add_(padded.narrow(dim, k, length), alpha=weight / total)
    return planes.reshape(image.shape)


def erase(image: Tensor, mask: Tensor, fill: str | float = "noise", generator: Generator | None = None) -> Tensor:
    """Overwrites the pixels under a mask (ST++ CutOut fills with noise, plain CutOut with a constant).

    Args:
        image: (..., C, H, W), uint8 or float.
        mask: bool (..., H, W), True where to overwrite.
        fill: "noise" (uniform over the range, each pixel and channel on its own), "mean" (of the image, a
            channel), or a constant in the image's units.
        generator: the source of the noise.

    Returns:
        A new image.
    """
    if fill == "noise":
        noise = torch.rand(image.shape, generator=generator, device=generator.device if generator else None)
        value = noise.to(image.device)
        value = value.to(image.dtype) if image.is_floating_point() else (value * 256).to(image.dtype)
    elif fill == "mean":
        value = image.float().mean((-2, -1), keepdim=True).to(image.dtype)
    else:
        value = torch.tensor(fill, dtype=image.dtype, device=image.device)
    return torch.where(mask.unsqueeze(-3).to(image.device), value, image)


@dataclass(frozen=True, kw_only=True)
class Photometric:
    """A recipe: colour jitter in random order, greyscale, blur, solarise, posterise, each with its chance.

    Attributes:
        brightness: factor from U(1 - b, 1 + b), not below 0.
        contrast: likewise.
        saturation: likewise.
        hue: shift from U(-h, h), in circles.
        jitter_p: chance of the jitter.
        grey_p: chance of greyscale.
        blur_p: chance of blur.
        blur_sigma: range of its sigma, pixels, drawn uniformly.
        blur_kernel: its width, odd; None for as wide as sigma asks.
        solarise_p: chance of inverting what is brighter than `solarise_at`.
        solarise_at: that threshold, in [0, 1].
        posterise_p: chance of keeping only `posterise_bits` of 8 bits.
        posterise_bits: those bits.
    """

    brightness: float = 0.0
    contrast: float = 0.0
    saturation: float = 0.0
    hue: float = 0.0
    jitter_p: float = 1.0
    grey_p: float = 0.0
    blur_p: float = 0.0
    blur_sigma: tuple[float, float] = (0.1, 2.0)
    blur_kernel: int | None = None
    solarise_p: float = 0.0
    solarise_at: float = 0.5
    posterise_p: float = 0.0
    posterise_bits: int = 4

    def __call__(self, image: Tensor, generator: Generator | None = None) -> Tensor:
        """A new image of the same shape and dtype; the images of a batch are drawn each on its own.

        Args:
            image: (3, H, W) or (B, 3, H, W), uint8, or float in [0, 1].
            generator: CPU generator; torch's default one when None.
        """
        if image.dim() == 4:
            return torch.stack([self(x, generator) for x in image]) if len(image) else image.clone()
        out = self._jitter(to_unit(image), generator)
        if _chance(self.grey_p, generator):
            out = greyscale(out)
        if _chance(self.blur_p, generator):
            out = gaussian_blur(out, _uniform(*self.blur_sigma, generator), self.blur_kernel)
        if _chance(self.solarise_p, generator):
            out = solarise(out, self.solarise_at)
        if _chance(self.posterise_p, generator):
            out = posterise(out, self.posterise_bits)
        return image.clone() if out is image else from_unit(out, image.dtype)

    def _jitter(self, image: Tensor, generator: Generator | None) -> Tensor:
        strengths = (self.brightness, self.contrast, self.saturation, self.hue)
        if not any(strengths) or not _chance(self.jitter_p, generator):
            return image
        steps = (adjust_brightness, adjust_contrast, adjust_saturation, adjust_hue)
        for k in torch.randperm(4, generator=generator).tolist():
            strength = strengths[k]
            if not strength:
                continue
            if k == 3:
                image = adjust_hue(image, _uniform(-strength, strength, generator))
            else:
                image = steps[k](image, _uniform(max(0.0, 1 - strength), 1 + strength, generator))
        return image


def _uniform(low: float, high: float, generator: Generator | None) -> float:
    return low + (high - low) * float(torch.rand((), generator=generator))


def _chance(p: float, generator: Generator | None) -> bool:
    return p > 0 and float(torch.rand((), generator=generator)) < p


def _jitter(b: float, c: float, s: float, h: float, p: float = 0.8) -> dict[str, Any]:
    return {"brightness": b, "contrast": c, "saturation": s, "hue": h, "jitter_p": p}


# Flips and crops are geometry and live in `crops`.
PRESETS: dict[str, Photometric] = {
    "none": Photometric(),
    # SimCLR strength 1; PASS and Leopart use the same.
    "simclr": Photometric(**_jitter(0.8, 0.8, 0.8, 0.2), grey_p=0.2, blur_p=0.5),
    "maskcontrast": Photometric(**_jitter(0.4, 0.4, 0.4, 0.1), grey_p=0.2),
    # BYOL and SlotCon: view 1 always blurred, view 2 seldom and then solarised.
    "slotcon_1": Photometric(**_jitter(0.4, 0.4, 0.2, 0.1), grey_p=0.2, blur_p=1.0),
    "slotcon_2": Photometric(**_jitter(0.4, 0.4, 0.2, 0.1), grey_p=0.2, blur_p=0.1, solarise_p=0.2),
    "byol_1": Photometric(**_jitter(0.4, 0.4, 0.2, 0.1), grey_p=0.2, blur_p=1.0),
    "byol_2": Photometric(**_jitter(0.4, 0.4, 0.2, 0.1), grey_p=0.2, blur_p=0.1, solarise_p=0.2),
    "unimatch": Photometric(**_jitter(0.5, 0.5, 0.5, 0.25), grey_p=0.2, blur_p=0.5),
    "st_plus_plus": Photometric(**_jitter(0.5, 0.5, 0.5, 0.25), grey_p=0.2, blur_p=0.5),
    "cac": Photometric(**_jitter(0.4, 0.4, 0.4, 0.1), grey_p=0.2, blur_p=0.5, blur_kernel=5),
    # PiCIE as intended: its code never applies the greyscale, and draws each jitter on its own.
    "picie": Photometric(**_jitter(0.3, 0.3, 0.3, 0.1), grey_p=0.2, blur_p=0.5),
    "iic_coco": Photometric(**_jitter(0.4, 0.4, 0.4, 0.125, p=1.0)),
    "iic_potsdam": Photometric(**_jitter(0.1, 0.1, 0.1, 0.1, p=1.0)),
    "hsg": Photometric(**_jitter(0.4, 0.4, 0.4, 0.1), grey_p=0.2),
    "seam": Photometric(**_jitter(0.3, 0.3, 0.3, 0.1, p=1.0)),
    "dacs": Photometric(**_jitter(0.2, 0.2, 0.2, 0.2), blur_p=0.5, blur_sigma=(0.15, 1.15)),
    "uda_sod": Photometric(**_jitter(0.1, 0.1, 0.1, 0.1, p=1.0)),
}


def photometric(name: str) -> Photometric:
    """The recipe of that name.

    Raises:
        MaskwrightError: for a name that is not in `PRESETS`, with the nearest one.
    """
    if name not in PRESETS:
        raise unknown("augmentation", name, PRESETS)
    return PRESETS[name]
