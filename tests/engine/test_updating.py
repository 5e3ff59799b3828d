"""A step of optimisers: the mean of gradients over processes, and their greatest norm."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from maskwright.engine import updating
from maskwright.engine.updating import take_step


class Plain:
    """Stands for fabric."""

    def backward(self, loss):
        loss.backward()


def test_gradients_are_the_mean_over_processes(monkeypatch):
    """Of what the optimiser holds, each parameter once, before it moves."""
    net = nn.Linear(3, 2)
    before, seen = [p.detach().clone() for p in net.parameters()], []

    def average(parameters):
        for p, q in zip(parameters, before, strict=True):
            assert torch.equal(p, q) and p.grad is not None
            p.grad.zero_()
            seen.append(p)

    monkeypatch.setattr(updating, "average_gradients", average)
    take_step([torch.optim.Adam(net.parameters())], Plain(), net(torch.ones(4, 3)).sum())
    assert {id(p) for p in seen} == {id(p) for p in net.parameters()}
    assert all(torch.equal(p, q) for p, q in zip(net.parameters(), before)), "by those means"


def test_a_step_takes_a_gradient_of_bounded_norm():
    """SGD of rate 1: the step is the gradient, as it is or cut to the norm asked for."""
    for clip, length in ((None, 5.0), (1.0, 1.0), (9.0, 5.0)):
        w = nn.Parameter(torch.zeros(2))
        take_step([torch.optim.SGD([w], lr=1.0)], Plain(), (w * torch.tensor([3.0, 4.0])).sum(), clip)
        assert float(w.detach().norm()) == pytest.approx(length, rel=1e-4)
        assert torch.allclose(w.detach() / w.detach().norm(), -torch.tensor([0.6, 0.8]), atol=1e-5)
