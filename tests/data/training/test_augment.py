"""Photometric augmentation against torchvision's functional operations."""

from __future__ import annotations

import dataclasses

import pytest
import torch
import torchvision.transforms.functional as TF
from hypothesis import given, settings
from hypothesis import strategies as st

from maskwright.data.training import augment
from maskwright.errors import MaskwrightError

CASES = settings(max_examples=25, deadline=None)


def picture(seed: int = 0, size: tuple[int, int] = (17, 23)) -> torch.Tensor:
    image = torch.rand(3, *size, generator=torch.Generator().manual_seed(seed))
    image[:, :3] = image[:1, :3]  # grey pixels have no hue
    image[:, 3] = 0
    image[:, 4] = 1
    return image


@CASES
@given(st.floats(0, 3), st.floats(-0.5, 0.5), st.integers(0, 99))
def test_operations_equal_torchvision(factor, shift, seed):
    image = picture(seed)
    assert torch.allclose(augment.adjust_brightness(image, factor), TF.adjust_brightness(image, factor), atol=1e-5)
    assert torch.allclose(augment.adjust_contrast(image, factor), TF.adjust_contrast(image, factor), atol=1e-5)
    assert torch.allclose(augment.adjust_saturation(image, factor), TF.adjust_saturation(image, factor), atol=1e-5)
    assert torch.allclose(augment.adjust_hue(image, shift), TF.adjust_hue(image, shift), atol=2e-5)
    assert torch.allclose(augment.greyscale(image), TF.rgb_to_grayscale(image, 3), atol=1e-6)
    assert torch.allclose(augment.solarise(image, 0.4), TF.solarize(image, 0.4))


@pytest.mark.parametrize("size", [3, 5, 11])
@pytest.mark.parametrize("sigma", [0.1, 0.8, 2.0])
def test_blur_equals_torchvision(size, sigma):
    image = picture()
    wanted = TF.gaussian_blur(image, [size, size], [sigma, sigma])
    assert torch.allclose(augment.gaussian_blur(image, sigma, size), wanted, atol=1e-5)
    with pytest.raises(ValueError, match="odd"):
        augment.gaussian_blur(image, 1.0, 4)


def test_blur_keeps_constants_and_small_pictures():
    assert torch.allclose(augment.gaussian_blur(torch.full((3, 9, 9), 0.3), 1.5), torch.tensor(0.3))
    assert augment.gaussian_blur(torch.rand(3, 1, 1), 2.0).shape == (3, 1, 1)
    assert augment.gaussian_blur(torch.rand(3, 2, 500), 2.0).shape == (3, 2, 500)


def test_posterise_keeps_the_upper_bits():
    image = torch.arange(256, dtype=torch.uint8).reshape(1, 16, 16).expand(3, -1, -1)
    out = augment.from_unit(augment.posterise(augment.to_unit(image), 3), torch.uint8)
    assert torch.equal(out, TF.posterize(image, 3))


@pytest.mark.parametrize("name", sorted(augment.PRESETS))
def test_presets_repeat_with_the_generator_and_keep_the_kind(name):
    recipe = augment.photometric(name)
    for image in (picture(), (picture() * 255).to(torch.uint8), torch.stack([picture(1), picture(2)])):
        before = image.clone()
        first = recipe(image, torch.Generator().manual_seed(5))
        again = recipe(image, torch.Generator().manual_seed(5))
        assert torch.equal(first, again) and torch.equal(image, before)
        assert first.dtype == image.dtype and first.shape == image.shape
        assert first.data_ptr() != image.data_ptr() or not image.numel()
        assert float(first.min()) >= 0 and float(first.max()) <= (255 if image.dtype == torch.uint8 else 1)


def test_uint8_and_float_agree():
    image = (picture(size=(40, 40)) * 255).to(torch.uint8)
    for seed in range(20):
        recipe = augment.photometric("simclr")
        a = recipe(image, torch.Generator().manual_seed(seed)).float() / 255
        b = recipe(image.float() / 255, torch.Generator().manual_seed(seed))
        assert float((a - b).abs().max()) <= 0.5 / 255 + 1e-4


def test_jitter_order_and_strength_follow_the_draw():
    """Replays the draws with torchvision's functions in the drawn order."""
    recipe = augment.Photometric(brightness=0.4, contrast=0.4, saturation=0.4, hue=0.1)
    image = picture()
    for seed in range(12):
        g = torch.Generator().manual_seed(seed)
        torch.rand((), generator=g)  # the chance of the jitter
        wanted = image
        for k in torch.randperm(4, generator=g).tolist():
            u = float(torch.rand((), generator=g))
            if k == 3:
                wanted = TF.adjust_hue(wanted, -0.1 + 0.2 * u)
            else:
                change = (TF.adjust_brightness, TF.adjust_contrast, TF.adjust_saturation)[k]
                wanted = change(wanted, 0.6 + 0.8 * u)
        assert torch.allclose(recipe(image, torch.Generator().manual_seed(seed)), wanted, atol=1e-4)


def test_chances():
    image = picture(size=(8, 8))
    g = torch.Generator().manual_seed(0)
    recipe = augment.Photometric(grey_p=0.2)
    grey = sum(bool((recipe(image, g).std(0) < 1e-6).all()) for _ in range(1000))
    assert abs(grey / 1000 - 0.2) < 0.04
    assert torch.equal(augment.photometric("none")(image, g), image)
    assert dataclasses.replace(augment.PRESETS["simclr"], blur_p=0.0).blur_p == 0


def test_erase():
    image = (picture(size=(40, 40)) * 255).to(torch.uint8)
    mask = torch.zeros(40, 40, dtype=torch.bool)
    mask[5:30, 5:30] = True
    noisy = augment.erase(image, mask, "noise", torch.Generator().manual_seed(0))
    assert torch.equal(noisy[:, ~mask], image[:, ~mask])
    assert abs(noisy[:, mask].float().mean() - 127.5) < 6 and noisy[:, mask].float().std() > 65
    assert (augment.erase(image, mask, 7)[:, mask] == 7).all()
    assert len(augment.erase(image, mask, "mean")[0][mask].unique()) == 1


@pytest.mark.parametrize(
    ("name", "jitter", "others"),
    [
        # UniMatch, Yang et al., CVPR 2023; its blur's sigma is that of ST++
        ("unimatch", (0.5, 0.5, 0.5, 0.25), {"grey_p": 0.2, "blur_p": 0.5, "blur_sigma": (0.1, 2.0)}),
        # ST++, Yang et al., CVPR 2022
        ("st_plus_plus", (0.5, 0.5, 0.5, 0.25), {"grey_p": 0.2, "blur_p": 0.5, "blur_sigma": (0.1, 2.0)}),
        # CAC, Lai et al., CVPR 2021
        ("cac", (0.4, 0.4, 0.4, 0.1), {"grey_p": 0.2, "blur_p": 0.5, "blur_kernel": 5}),
        # DACS, Tranheden et al., WACV 2021
        ("dacs", (0.2, 0.2, 0.2, 0.2), {"grey_p": 0.0, "blur_p": 0.5, "blur_sigma": (0.15, 1.15)}),
    ],
)
def test_recipes_are_the_papers(name, jitter, others):
    recipe = augment.PRESETS[name]
    assert (recipe.brightness, recipe.contrast, recipe.saturation, recipe.hue) == jitter
    found = {"blur_kernel": recipe.blur_kernel, **{k: getattr(recipe, k) for k in others}}
    assert found == {"blur_kernel": None, **others}
    assert recipe.jitter_p == 0.8 and recipe.solarise_p == recipe.posterise_p == 0


def test_unknown_recipe_offers_the_nearest():
    with pytest.raises(MaskwrightError, match="simclr"):
        augment.photometric("simclrr")
