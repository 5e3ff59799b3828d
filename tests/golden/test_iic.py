"""IIC (Ji et al., ICCV 2019): mutual information over displacements, Sobel gradients, warps."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from tests.golden.cases import Case, read_cases
from tests.golden.formulas import as64, draw, generator, softmax

from maskwright.data.training.views import View, resample
from maskwright.models.parts.sobel import sobel
from maskwright.ops.losses.mutual_information import collapsed_loss, joint, uncollapsed_loss


def table(p1: np.ndarray, p2: np.ndarray, mask: np.ndarray, ty: int, tx: int) -> np.ndarray:
    """The paper's joint table of one displacement, pixel by pixel."""
    n, k, h, w = p1.shape
    j = np.zeros((k, k))
    for i in range(n):
        for y in range(h):
            for x in range(w):
                if 0 <= y + ty < h and 0 <= x + tx < w:
                    weight = mask[i, y + ty, x + tx] * mask[i, y, x]
                    j += weight * np.outer(p1[i, :, y + ty, x + tx], p2[i, :, y, x])
    return j


def information(j: np.ndarray, lamb: float) -> float:
    p = (j + j.T) / 2 / j.sum()
    rows, columns = p.sum(1), p.sum(0)
    k = len(p)
    return sum(
        p[a, b] * (math.log(p[a, b]) - lamb * math.log(rows[a]) - lamb * math.log(columns[b]))
        for a in range(k) for b in range(k) if p[a, b] > 0
    )  # fmt: skip


def by_loops(p1, p2, mask, d: int, lamb: float, collapsed: bool) -> float:
    tables = [table(p1, p2, mask, y, x) for y in range(-d, d + 1) for x in range(-d, d + 1)]
    tables = [j for j in tables if j.sum() > 0]
    if collapsed:
        return -information(sum(tables), lamb)
    return -sum(information(j, lamb) for j in tables) / len(tables)


@pytest.mark.parametrize("d, lamb", [(0, 1.0), (1, 1.5), (2, 1.0), (6, 1.0)])
def test_both_losses(d, lamb):
    """Greatest displacements from none to beyond the map; a sixth of the pixels is masked."""
    logits1, logits2 = draw(2, 3, 4, 5, seed=1), draw(2, 3, 4, 5, seed=2)
    mask = torch.rand(2, 4, 5, generator=generator(3)) < 5 / 6
    p1, p2, m = softmax(as64(logits1)), softmax(as64(logits2)), mask.double().numpy()
    t = joint(torch.from_numpy(p1), torch.from_numpy(p2), mask, d)
    assert t.shape == (3, 3, 2 * d + 1, 2 * d + 1)
    for ty, tx in {(0, 0), (d, -d), (-d, 0), (0, d)}:
        np.testing.assert_allclose(t[:, :, ty + d, tx + d].numpy(), table(p1, p2, m, ty, tx), atol=1e-12)
    for loss, collapsed in ((uncollapsed_loss, False), (collapsed_loss, True)):
        value = float(loss(logits1.softmax(1), logits2.softmax(1), mask, d, lamb))
        assert value == pytest.approx(by_loops(p1, p2, m, d, lamb, collapsed), rel=1e-5)


@pytest.mark.parametrize("loss", [uncollapsed_loss, collapsed_loss])
def test_gradients_are_those_of_differences(loss):
    p = torch.rand(2, 3, 3, 4, generator=generator(5), dtype=torch.float64).requires_grad_()
    q = torch.rand(2, 3, 3, 4, generator=generator(6), dtype=torch.float64).requires_grad_()
    mask = torch.rand(2, 3, 4, generator=generator(7)) < 0.8
    assert torch.autograd.gradcheck(lambda a, b: loss(a.softmax(1), b.softmax(1), mask, 1, 1.5), (p, q))


# --------------------------------------------------------------------- the authors' own code


def warped(case: Case, p2: torch.Tensor) -> torch.Tensor:
    """The second map in the frame of the first, as the authors' code does it."""
    aligned = case.settings["align_corners"]
    grid = F.affine_grid(case.input["affine2_to_1"], list(p2.shape), align_corners=aligned)
    p2 = F.grid_sample(p2, grid, mode="bilinear", padding_mode="zeros", align_corners=aligned)
    if shift := case.settings["sparse_shift_xy"]:
        tx, ty = shift
        padded = F.pad(p2, (0, tx, 0, ty))
        p2 = padded[..., ty:, tx:]
    return p2


@pytest.mark.data
def test_losses_of_the_authors(golden_root):
    """Where the authors' code gives 0/0, ours leaves the displacement out."""
    compared = 0
    for case in read_cases(golden_root, "iic").values():
        s = case.settings
        if not str(s.get("function", "")).startswith("IID_segmentation_loss"):
            continue
        loss = uncollapsed_loss if s["function"].endswith("uncollapsed") else collapsed_loss
        mask, d = case.input["mask"], s["half_T_side_dense"]
        names = ("logits1", "logits2") if "logits1" in case.input else ("p1", "p2")
        leaves = [case.input[n].clone().requires_grad_() for n in names]
        p = [x.softmax(1) for x in leaves] if names[0] == "logits1" else leaves
        for x in p:
            x.requires_grad_() if x.is_leaf else x.retain_grad()
        value = loss(p[0], warped(case, p[1]), mask, d, s["lamb"])
        value.backward()
        if s["nan"]:
            assert math.isfinite(value.item()) and all(x.grad.isfinite().all() for x in leaves)
            continue
        assert value.item() == pytest.approx(case.output["loss"].item(), abs=1e-9), case.name
        for n, x in zip(names, leaves):
            torch.testing.assert_close(
                x.grad, case.grad[n], rtol=1e-5, atol=1e-8, msg=lambda m, c=case: f"{c.name}: {m}"
            )
        for n, x in zip(("p1", "p2"), p):
            torch.testing.assert_close(
                x.grad, case.grad[n], rtol=1e-5, atol=1e-8, msg=lambda m, c=case: f"{c.name}: {m}"
            )
        compared += 1
    assert compared >= 18


@pytest.mark.data
def test_sobel_and_warps_of_the_authors(golden_root):
    cases = read_cases(golden_root, "iic")
    x, y = cases["sobel_rgb"].input["x"], cases["sobel_rgb"].output["y"]
    torch.testing.assert_close(sobel(x[:, 3:4].float()), y[:, 3:].float(), rtol=1e-5, atol=1e-6)
    case = cases["warp_affine_alignF"]
    x, theta = case.input["x"], case.input["affine2_to_1"].double()
    h, w = x.shape[-2:]
    unit = torch.tensor([[2 / w, 0, -1], [0, 2 / h, -1], [0, 0, 1]], dtype=torch.float64)
    first = View.identity((h, w))
    seconds = [
        View(unit.inverse() @ torch.cat((t, torch.tensor([[0.0, 0, 1]], dtype=torch.float64))) @ unit, (h, w), (h, w))
        for t in theta
    ]
    ours, _ = resample(x, seconds, first)
    grid = F.affine_grid(theta, list(x.shape), align_corners=False)
    inside = F.grid_sample(torch.ones_like(x), grid, align_corners=False) > 1 - 1e-9  # no zeros of the padding
    assert int(inside.sum()) > 20
    torch.testing.assert_close(ours[inside], case.output["y"][inside], rtol=1e-5, atol=1e-6)
