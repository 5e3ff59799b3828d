"""LARC against its definition written out, tensor by tensor."""

from __future__ import annotations

import copy

import pytest
import torch

from maskwright.recipes.pretraining.larc import LARC


def plain(w, g, buffer, lr, momentum, decay, trust, clip):
    """One step of one tensor."""
    if w.norm() > 0 and g.norm() > 0:
        rate = trust * w.norm() / (g.norm() + decay * w.norm())
        if clip:
            rate = min(rate / lr, torch.tensor(1.0))
        g = rate * (g + decay * w)
    else:
        g = g / max(1.0, float(g.norm()))
    buffer = g.clone() if buffer is None else momentum * buffer + g
    return w - lr * buffer, buffer


@pytest.mark.parametrize("clip", [False, True])
def test_steps_are_the_definition(clip):
    g = torch.Generator().manual_seed(0)
    ws = [torch.randn(4, 3, generator=g), torch.zeros(5), torch.randn(2, 2, 3, 3, generator=g) * 10]
    params = [w.clone().requires_grad_() for w in ws]
    frozen = torch.ones(3, requires_grad=True)
    optimizer = LARC([*params, frozen], 0.5, momentum=0.9, weight_decay=1e-2, trust=0.01, clip=clip)
    buffers = [None] * 3
    for _ in range(4):
        grads = [torch.randn(w.shape, generator=g) * 3 for w in ws]
        for p, grad in zip(params, grads):
            p.grad = grad.clone()
        optimizer.step()
        for k in range(3):
            ws[k], buffers[k] = plain(ws[k], grads[k], buffers[k], 0.5, 0.9, 1e-2, 0.01, clip)
        for p, w in zip(params, ws):
            torch.testing.assert_close(p.detach(), w)
    assert torch.equal(frozen.detach(), torch.ones(3)), "without a gradient there is no step, decay neither"
    assert optimizer.param_groups[0]["weight_decay"] == 1e-2


def test_step_length_does_not_depend_on_the_gradients_scale():
    moves = []
    for scale in (1e-6, 1e3):
        p = torch.ones(4, requires_grad=True)
        optimizer = LARC([p], 0.1)
        p.grad = torch.tensor([1.0, -2.0, 0.5, 3.0]) * scale
        optimizer.step()
        moves.append(p.detach() - 1)
    torch.testing.assert_close(*moves)
    assert float(moves[0].norm()) == pytest.approx(0.1 * 1e-3 * 2, rel=1e-3)


def test_state_is_restored():
    p, q = (torch.ones(3, requires_grad=True) for _ in range(2))
    a, b = LARC([p], 0.1), LARC([q], 0.1)
    for optimizer, w in ((a, p),):
        w.grad = torch.tensor([1.0, 2.0, 3.0])
        optimizer.step()
    b.load_state_dict(copy.deepcopy(a.state_dict()))
    with torch.no_grad():
        q.copy_(p)
    for optimizer, w in ((a, p), (b, q)):
        w.grad = torch.tensor([0.5, 0.0, -1.0])
        optimizer.step()
    assert torch.equal(p, q)


def test_trust_must_be_positive():
    with pytest.raises(ValueError, match="trust"):
        LARC([torch.ones(1, requires_grad=True)], 0.1, trust=0)
