"""Photographs in the colours of others: by Fourier transform against sums of waves, by histograms against sorting."""

from __future__ import annotations

import cmath
import math

import numpy as np
import pytest
import torch
from skimage.exposure import match_histograms as of_skimage

from maskwright.ops.style import fda_bytes, fourier_adaptation, match_histograms, swap_amplitude


def picture(seed: int, *shape: int) -> torch.Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * 255


def spectrum(x: torch.Tensor) -> dict[tuple[int, int], complex]:
    """F(x) of (H, W) by its definition, with frequencies from -H/2 and -W/2 on."""
    h, w = x.shape
    found = {}
    for u in range(-(h // 2), (h + 1) // 2):
        for v in range(-(w // 2), (w + 1) // 2):
            waves = (
                float(x[i, j]) * cmath.exp(-2j * math.pi * (u * i / h + v * j / w)) for i in range(h) for j in range(w)
            )
            found[u, v] = sum(waves)
    return found


@pytest.mark.parametrize(("h", "w", "half"), [(5, 6, 1), (4, 7, 0), (6, 4, 2)])
def test_amplitudes_below_are_the_targets_and_phases_the_sources(h, w, half):
    s, t = picture(0, h, w), picture(1, h, w)
    of_s, of_t = spectrum(s), spectrum(t)
    expected = torch.zeros(h, w, dtype=torch.float64)
    for (u, v), value in of_s.items():
        amplitude = abs(of_t[u, v]) if max(abs(u), abs(v)) <= half else abs(value)
        for i in range(h):
            for j in range(w):
                wave = cmath.exp(1j * cmath.phase(value) + 2j * math.pi * (u * i / h + v * j / w))
                expected[i, j] += amplitude * wave.real / (h * w)
    torch.testing.assert_close(swap_amplitude(s, t, half), expected, atol=1e-8, rtol=1e-8)


def test_beta():
    s, t = picture(0, 3, 20, 30), picture(1, 3, 20, 30)
    assert torch.equal(fourier_adaptation(s, t, 0.0), s), "beta 0 is the identity"
    torch.testing.assert_close(fourier_adaptation(s, s, 0.2), s)
    torch.testing.assert_close(fourier_adaptation(s, t, 0.01), s + (t - s).mean((1, 2), keepdim=True))
    assert torch.equal(fourier_adaptation(s, t, 0.1), swap_amplitude(s, t, 2))
    with pytest.raises(ValueError, match="one shape"):
        swap_amplitude(s, t[:, 1:], 1)


def test_histograms_are_matched_share_by_share():
    g = np.random.default_rng(0)
    s, t = g.integers(40, 60, (3, 9, 8), np.uint8), g.integers(100, 200, (3, 7, 11), np.uint8)
    t[1] = 7
    found = match_histograms(torch.from_numpy(s), torch.from_numpy(t)).numpy()
    for c in range(3):
        there = sorted(set(t[c].ravel().tolist()))
        shares = [(t[c] < v).mean() + (t[c] == v).mean() / 2 for v in there]
        for value in np.unique(s[c]):
            share = (s[c] < value).mean() + (s[c] == value).mean() / 2
            assert set(found[c][s[c] == value]) == {round(float(np.interp(share, shares, there)))}
    assert set(found[1].ravel()) == {7}


def test_histograms_beside_skimages_where_no_value_is_frequent():
    g = np.random.default_rng(1)
    s, t = (g.integers(0, high, (200, 200, 3), np.uint8) for high in (120, 255))
    found = match_histograms(*(torch.from_numpy(x).permute(2, 0, 1) for x in (s, t))).permute(1, 2, 0).numpy()
    assert np.abs(found.astype(float) - of_skimage(s, t, channel_axis=2)).max() <= 2.5
    same = torch.from_numpy(s).permute(2, 0, 1)
    assert torch.equal(match_histograms(same, same), same)


def test_what_is_overexposed_does_not_become_the_brightest_value():
    """Nine tenths of a source at 255: they become the middle of the target's upper nine tenths."""
    s = torch.full((1, 10, 10), 255, dtype=torch.uint8)
    s[0, 0] = 254
    t = torch.arange(100, dtype=torch.uint8).reshape(1, 10, 10)
    found = match_histograms(s, t)
    assert found[0, 1:].unique().tolist() == [54] and found[0, 0].unique().tolist() == [4]


def test_other_pictures_are_refused():
    x = torch.zeros(3, 2, 2, dtype=torch.uint8)
    for a, b in ((x.float(), x), (x, x[:1])):
        with pytest.raises(ValueError, match="expected uint8"):
            match_histograms(a, b)


def test_bytes_are_the_rounded_values_in_range():
    g = torch.Generator().manual_seed(0)
    s, t = (torch.randint(0, 256, (3, 15, 11), generator=g, dtype=torch.uint8) for _ in range(2))
    found = fda_bytes(s, t, 0.2)
    exact = fourier_adaptation(s.double(), t.double(), 0.2).clamp(0, 255)
    assert found.dtype == torch.uint8 and (found.double() - exact).abs().max() <= 0.5 + 1e-9
    assert torch.equal(fda_bytes(s, t, 0), s) and torch.equal(fda_bytes(s, s, 0.2), s)
    for beta, other in ((0.6, t), (-0.1, t), (0.1, t.float())):
        with pytest.raises(ValueError, match="expected"):
            fda_bytes(s, other, beta)
