"""Modularity, balance and graphs of neighbours: loops, closed forms, padding."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from maskwright.ops.graphs.modularity import collapse_loss, modularity_loss, neighbour_graph

CLIQUES = torch.block_diag(1 - torch.eye(3), 1 - torch.eye(3)).double()[None]


def shares(*groups: int) -> torch.Tensor:
    """(1, G, N) of hard groups."""
    return torch.nn.functional.one_hot(torch.tensor(groups), 2).T[None].double()


@pytest.mark.parametrize("groups, loss", [((0, 0, 0, 1, 1, 1), 0.625), ((0,) * 6, 0.75), ((0, 1, 0, 1, 0, 1), 23 / 24)])
def test_two_cliques(groups, loss):
    """The right partition is better than one group for all, and this than a mixed one."""
    assert float(modularity_loss(CLIQUES, shares(*groups))) == pytest.approx(loss, abs=1e-9)


def test_losses_by_loops():
    g = torch.Generator().manual_seed(0)
    a = (torch.rand(2, 5, 5, generator=g) < 0.5).double()
    c = torch.rand(2, 3, 5, generator=g).double().softmax(1)
    expected = []
    for b in range(2):
        d = a[b].sum(1).numpy()
        n, total = 2 * d.sum(), 0.0
        for i, j in np.ndindex(5, 5):
            together = float(c[b, :, i] @ c[b, :, j])
            total += together * (float(a[b, i, j]) - d[i] * d[j] / n)
        expected.append(1 - total / n)
    assert float(modularity_loss(a, c)) == pytest.approx(np.mean(expected), rel=1e-9)
    assert torch.autograd.gradcheck(lambda x: modularity_loss(a, x) + collapse_loss(x), c.requires_grad_())


def test_balance():
    assert float(collapse_loss(shares(0, 0, 0, 1, 1, 1))) == pytest.approx(1)
    assert float(collapse_loss(shares(0, 0, 0, 0, 0, 0))) == pytest.approx(2**0.5)
    half = torch.cat((shares(0, 0, 0, 1, 1, 1), torch.zeros(1, 2, 6)), 2)
    assert float(collapse_loss(half)) == pytest.approx(0.5), "padding counts among the slots, as in the authors' code"


def test_neighbours_in_each_part():
    """Two of each part, never itself where there are others enough; padding has no edges."""
    nodes = torch.randn(2, 9, 4, generator=torch.Generator().manual_seed(1))
    padding = torch.zeros(2, 9, dtype=torch.bool)
    padding[1, 7:] = True
    parts = torch.tensor([[0] * 5 + [1] * 4, [2] * 5 + [3] * 2 + [-1] * 2])
    found = neighbour_graph(nodes, padding, 2, parts)
    unit = nodes / nodes.norm(dim=2, keepdim=True)
    for b, i in np.ndindex(2, 9):
        if padding[b, i]:
            assert not found[b, i].any() and not found[b, :, i].any()
            continue
        wanted = set()
        for part in parts[b][~padding[b]].unique():
            members = [j for j in range(9) if parts[b, j] == part]
            ranked = sorted(members, key=lambda j: (j == i, -float(unit[b, i] @ unit[b, j])))
            wanted |= set(ranked[:2])
        assert set(found[b, i].nonzero()[:, 0].tolist()) == wanted
    assert found[0].diagonal().sum() == 0
    assert neighbour_graph(nodes, padding, 3)[0].sum(1).tolist() == [3] * 9
