"""FDA against the plain definition; what it leaves alone."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from maskwright.data.training.fourier import fda


def pictures(size: tuple[int, int]) -> tuple[torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(0)
    return tuple(torch.randint(60, 190, (3, *size), generator=g, dtype=torch.uint8) for _ in range(2))


def test_nothing_changes_at_beta_0_or_in_ones_own_style():
    a, b = pictures((16, 21))
    assert torch.equal(fda(a, b, 0), a)
    assert torch.equal(fda(a, a, 0.2), a)


def test_the_smallest_window_takes_the_mean_colour():
    a, b = pictures((16, 20))
    found = fda(a, b, 0.001).double()
    assert torch.allclose(found.mean((1, 2)), b.double().mean((1, 2)), atol=0.5001), "but for whole levels"
    shift = b.double().mean((1, 2), keepdim=True) - a.double().mean((1, 2), keepdim=True)
    assert torch.allclose(found, a + shift, atol=0.5001)


@pytest.mark.parametrize("size", [(12, 16), (15, 11)])
def test_against_the_centred_spectrum(size):
    """Shifted so that frequency 0 is in the middle, a square of side 2b + 1 around it is the other's."""
    a, b = pictures(size)
    beta, (h, w) = 0.2, size
    n = int(np.floor(min(h, w) * beta))
    x, y = (np.fft.fftshift(np.fft.fft2(p.numpy().astype(float)), axes=(-2, -1)) for p in (a, b))
    amplitude = np.abs(x)
    rows, columns = slice(h // 2 - n, h // 2 + n + 1), slice(w // 2 - n, w // 2 + n + 1)
    amplitude[:, rows, columns] = np.abs(y)[:, rows, columns]
    mixed = np.fft.ifft2(np.fft.ifftshift(amplitude * np.exp(1j * np.angle(x)), axes=(-2, -1))).real
    assert np.array_equal(fda(a, b, beta).numpy(), mixed.round().clip(0, 255).astype(np.uint8))


@pytest.mark.parametrize("beta", [-0.1, 0.6])
def test_refuses(beta):
    a, b = pictures((8, 8))
    with pytest.raises(ValueError, match="beta"):
        fda(a, b, beta)
    with pytest.raises(ValueError, match="expected uint8"):
        fda(a, b[:, :4], 0.1)
