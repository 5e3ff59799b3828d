"""Perturbed feature maps against slow versions and closed forms."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from maskwright.ops.feature_perturb import (
    context_mask,
    feature_drop,
    feature_noise,
    guided_cutout,
    object_boxes,
    object_mask,
    vat_direction,
)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def features(seed: int = 0, shape: tuple[int, ...] = (2, 5, 6, 7)) -> torch.Tensor:
    return torch.randn(shape, generator=generator(seed))


@given(st.integers(0, 100), st.floats(0, 1))
def test_noise_is_bounded_and_shared_over_the_batch(seed, bound):
    z = features(seed).abs() + 0.1
    before = z.clone()
    x = feature_noise(z, bound, generator(seed))
    assert torch.equal(z, before)
    assert ((x - z).abs() <= bound * z.abs() + 1e-5).all()
    n = x / z - 1
    assert torch.allclose(n[0], n[1], atol=1e-5)


@given(st.integers(0, 100))
def test_drop_against_a_loop(seed):
    z = features(seed)
    x = feature_drop(z, generator=generator(seed))
    u = 0.7 + 0.2 * float(torch.rand((), generator=generator(seed)))
    for b in range(2):
        a = [[float(z[b, :, i, j].abs().mean()) for j in range(7)] for i in range(6)]
        top = max(map(max, a))
        for i in range(6):
            for j in range(7):
                if abs(a[i][j] - u * top) > 1e-6:
                    wanted = z[b, :, i, j] if a[i][j] < u * top else torch.zeros(5)
                    assert torch.equal(x[b, :, i, j], wanted)
    assert (x.abs().sum(1) == 0).flatten(1).any(1).all(), "the strongest position of each item is gone"


def test_drop_leaves_a_constant_map_and_judges_each_item_alone():
    z = features()
    z[0] = 3.0
    x = feature_drop(z, generator=generator())
    assert torch.equal(x[0], z[0]) and not torch.equal(x[1], z[1])
    assert torch.equal(feature_drop(torch.zeros(1, 2, 3, 3)), torch.zeros(1, 2, 3, 3))
    with pytest.raises(ValueError, match="bounds"):
        feature_drop(z, 0.9, 0.7)


@given(st.integers(0, 100))
def test_masks_sum_to_z(seed):
    z = features(seed)
    foreground = torch.rand(2, 24, 28, generator=generator(seed)) > 0.5
    assert torch.equal(context_mask(z, foreground) + object_mask(z, foreground), z)
    nothing = torch.zeros(2, 24, 28, dtype=torch.bool)
    assert torch.equal(object_mask(z, nothing), z) and not context_mask(z, nothing).any()


def test_masks_keep_what_their_names_say():
    z = torch.ones(1, 2, 2, 2)
    foreground = torch.zeros(1, 8, 8, dtype=torch.bool)
    foreground[0, :4, :4] = True
    assert context_mask(z, foreground)[0, 0].tolist() == [[1, 0], [0, 0]]
    assert object_mask(z, foreground)[0, 0].tolist() == [[0, 1], [1, 1]]


def test_object_boxes():
    foreground = torch.zeros(2, 40, 40, dtype=torch.bool)
    foreground[0, 2:12, 3:13] = True  # contour 36
    foreground[0, 20:40, 20:40] = True  # contour 76, at the picture's border
    foreground[0, 30, 5] = True
    assert object_boxes(foreground, 50) == [[(20, 20, 40, 40)], []]
    assert object_boxes(foreground, 35) == [[(2, 3, 12, 13), (20, 20, 40, 40)], []]
    assert object_boxes(foreground, 0)[0] == [(2, 3, 12, 13), (20, 20, 40, 40), (30, 5, 31, 6)]
    assert object_boxes(foreground, 36)[0] == [(20, 20, 40, 40)], "more than, not at least"
    with pytest.raises(ValueError, match="foreground"):
        object_boxes(foreground[0])


@given(st.integers(0, 200), st.floats(0, 1))
def test_cutout_erases_a_box_within_each_object(seed, share):
    z = torch.ones(2, 3, 40, 40)
    boxes = [[(2, 3, 12, 13), (20, 18, 40, 40)], []]
    x = guided_cutout(z, boxes, (40, 40), share, generator(seed))
    assert torch.equal(x[1], z[1])
    gone = (x[0, 0] == 0).numpy()
    assert (x[0] == 0).all(0).numpy().sum() == gone.sum()
    outside = gone.copy()
    for top, left, bottom, right in boxes[0]:
        part = gone[top:bottom, left:right]
        height, width = int(share * (bottom - top)), int(share * (right - left))
        assert part.sum() == height * width
        if part.any():
            rows, cols = np.flatnonzero(part.any(1)), np.flatnonzero(part.any(0))
            assert np.ptp(rows) == height - 1 and np.ptp(cols) == width - 1
        outside[top:bottom, left:right] = False
    assert not outside.any()


def test_cutout_needs_boxes_for_each_item():
    with pytest.raises(ValueError, match="boxes"):
        guided_cutout(torch.ones(2, 1, 4, 4), [[]], (4, 4))


def test_vat_has_its_norm_and_leaves_no_gradient():
    head = nn.Conv2d(5, 3, 1)
    z = features().requires_grad_(True)
    r = vat_direction(z, head, eps=2.0, generator=generator())
    assert torch.allclose(r.flatten(1).norm(dim=1), torch.full((2,), 2.0), atol=1e-4)
    assert not r.requires_grad and z.grad is None
    assert all(p.grad is None for p in head.parameters())


def test_vat_points_where_the_head_reacts():
    """A head that reads one channel alone: nothing else can matter, and it beats random changes of the same norm."""
    head = nn.Conv2d(5, 3, 1)
    with torch.no_grad():
        head.weight[:, 1:] = 0
    z = features()
    r = vat_direction(z, head, eps=2.0, generator=generator())
    assert r[:, 1:].abs().max() == 0 and r[:, 0].abs().min() > 0
    q = head(z).softmax(1)

    @torch.no_grad()
    def change(d: torch.Tensor) -> float:
        return float((q * (q.log() - head(z + d).log_softmax(1))).sum())

    random = features(3)
    random = 2.0 * random / random.flatten(1).norm(dim=1)[:, None, None, None]
    assert change(r) > 3 * change(random)


def test_vat_finds_the_principal_direction():
    """The KL of softmax is J^T (diag p - p p^T) J at 0; at one position its leading eigenvector is known."""
    head = nn.Conv2d(4, 3, 1, bias=False)
    z = features(shape=(1, 4, 1, 1))
    r = vat_direction(z, head, eps=1.0, step=1e-3, iterations=200, generator=generator()).flatten()
    w = head.weight.detach()[:, :, 0, 0]
    p = (w @ z.flatten()).softmax(0)
    curvature = w.T @ (p.diag() - p[:, None] * p) @ w
    leading = torch.linalg.eigh(curvature).eigenvectors[:, -1]
    assert abs(float(r @ leading)) == pytest.approx(1, abs=0.02)


def test_vat_of_a_deaf_head_is_zero():
    r = vat_direction(features(), lambda z: torch.zeros(2, 3, 6, 7) + 0 * z.sum())
    assert not r.any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_type_is_kept(dtype):
    z = features().to(dtype)
    foreground = torch.rand(2, 6, 7) > 0.5
    for x in (feature_noise(z), feature_drop(z), context_mask(z, foreground), guided_cutout(z, [[], []], (6, 7))):
        assert x.dtype == dtype and x.shape == z.shape
