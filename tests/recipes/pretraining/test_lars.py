"""LARS against its definition written out."""

from __future__ import annotations

import copy

import pytest
import torch

from maskwright.recipes.pretraining.lars import LARS


def test_steps_are_the_definition_and_vectors_are_left_alone():
    g = torch.Generator().manual_seed(0)
    ws = [torch.randn(4, 3, generator=g), torch.randn(5, generator=g), torch.zeros(2, 2)]
    params = [w.clone().requires_grad_() for w in ws]
    optimizer = LARS(params, 0.5, momentum=0.9, weight_decay=1e-2, trust=0.01)
    momenta = [torch.zeros_like(w) for w in ws]
    for _ in range(4):
        for k, p in enumerate(params):
            p.grad = torch.randn(p.shape, generator=g)
            u = p.grad.clone()
            if u.ndim > 1:
                u += 1e-2 * ws[k]
                if ws[k].norm() > 0:
                    u *= 0.01 * ws[k].norm() / u.norm()
            momenta[k] = 0.9 * momenta[k] + u
            ws[k] = ws[k] - 0.5 * momenta[k]
        optimizer.step()
        for p, w in zip(params, ws):
            torch.testing.assert_close(p.detach(), w)


def test_goes_on_from_its_state():
    p = torch.ones(3, 2, requires_grad=True)
    optimizer = LARS([p], 0.1)
    p.grad = torch.ones_like(p)
    optimizer.step()
    again = p.detach().clone().requires_grad_()
    second = LARS([again], 0.1)
    second.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    again.grad = p.grad.clone()
    optimizer.step()
    second.step()
    assert torch.equal(p, again)
    with pytest.raises(ValueError, match="trust"):
        LARS([p], 0.1, trust=0.0)
