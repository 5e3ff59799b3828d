"""SwAV, SimSiam and MoCo v2 against loops; prototypes, queues, momentum encoder and what must get no gradient."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from maskwright.models.backbones.build import build_backbone
from maskwright.ops.clustering.sinkhorn import sinkhorn
from maskwright.recipes.pretraining import instance
from maskwright.recipes.pretraining.instance import MoCo, SimSiam, SwAV
from maskwright.recipes.pretraining.larc import LARC

B, D, K = 6, 8, 5


def unit(*shape, seed=0):
    return F.normalize(torch.randn(*shape, generator=torch.Generator().manual_seed(seed)), dim=-1)


def crops(v, seed=0):
    g = torch.Generator().manual_seed(seed)
    return [torch.randn(B, D, generator=g, requires_grad=True) for _ in range(v)]


def swav(**options):
    torch.manual_seed(0)
    return SwAV(D, K, **options)


def test_swav_is_the_formula():
    loss, z = swav(), crops(4)
    loss.before_step(0)
    c = loss.prototypes.weight.detach()
    torch.testing.assert_close(c.norm(dim=1), torch.ones(K))
    n = [F.normalize(x.detach(), dim=1) for x in z]
    q = [sinkhorn(n[i] @ c.T, 0.05, 3) for i in range(2)]
    expected = 0.0
    for i in range(2):
        for v in range(4):
            if v != i:
                expected += float(-(q[i] * (n[v] @ c.T / 0.1).log_softmax(1)).sum(1).mean()) / 3 / 2
    assert float(loss(z, [], 0).detach()) == pytest.approx(expected, rel=1e-5)


def test_prototypes_do_not_move_while_frozen_and_do_after():
    loss, z = swav(frozen=2), crops(2)
    loss.before_step(0)
    start = loss.prototypes.weight.detach().clone()
    optimizer = LARC(loss.parameters(), 0.5, weight_decay=0.1)
    for step in range(3):
        loss.before_step(step)
        optimizer.zero_grad(set_to_none=True)
        loss(z, [], step).backward()
        assert (loss.prototypes.weight.grad is None) == (step < 2)
        optimizer.step()
        assert torch.allclose(loss.prototypes.weight, start, atol=1e-6) == (step < 2)
    assert z[0].grad is not None


def test_shallow_branches_do_not_move_prototypes_nor_the_deep_branch():
    loss, z, shallow = swav(), crops(2), crops(2, seed=1)
    loss(z, [], 0)
    loss.supervise(shallow).backward()
    assert loss.prototypes.weight.grad is None
    assert z[0].grad is None and z[1].grad is None
    assert all(s.grad is not None and s.grad.abs().sum() > 0 for s in shallow)


def test_supervision_is_of_the_other_view():
    loss, z, shallow = swav(), crops(2), crops(2, seed=1)
    loss(z, [], 0)
    c = loss.prototypes.weight.detach()
    q = [sinkhorn(F.normalize(x.detach(), dim=1) @ c.T, 0.05, 3) for x in z]
    s = [F.normalize(x.detach(), dim=1) @ c.T / 0.1 for x in shallow]
    expected = -0.5 * sum((q[i] * s[1 - i].log_softmax(1)).sum(1).mean() for i in range(2))
    torch.testing.assert_close(loss.supervise(shallow).detach(), expected)


def test_queue_is_used_once_full_and_fills_from_its_step():
    loss = swav(queue=2 * B, queue_from=1)
    scores = unit(B, D) @ loss.prototypes.weight.T.detach()
    for step in range(3):
        z = crops(2, seed=step)
        before = [len(q) for q in loss.queues]
        loss.before_step(step)
        loss(z, [], step)
        loss.after_step(step, nn.Identity())
        assert [len(q) for q in loss.queues] == [min(2 * B, b + (B if step >= 1 else 0)) for b in before]
    assert len(loss.queues[0]) == 2 * B
    stored = torch.cat([F.normalize(crops(2, seed=s)[0], dim=1) for s in (1, 2)]).detach()
    torch.testing.assert_close(loss.queues[0].get(), stored)
    rows = torch.cat([stored @ loss.prototypes.weight.T.detach(), scores])
    torch.testing.assert_close(loss.assign(0, scores), sinkhorn(rows, 0.05, 3)[-B:])


def test_state_restores_prototypes_and_queue():
    a, b = swav(queue=B), SwAV(D, K, queue=B)
    a(crops(2), [], 0)
    a.after_step(0, nn.Identity())
    b.load_state_dict(copy.deepcopy(a.state_dict()))
    z = crops(2, seed=3)
    assert torch.equal(a(z, [], 1), b(z, [], 1))


def test_simsiam_is_the_formula_and_stops_gradients():
    torch.manual_seed(0)
    loss, z = SimSiam(D), crops(2)
    p = [loss.predictor(x) for x in z]
    expected = -0.5 * sum(F.cosine_similarity(p[i], z[1 - i], dim=1).mean() for i in range(2))
    torch.testing.assert_close(loss(z, [], 0).detach(), expected.detach())
    shallow = crops(2, seed=1)
    loss.supervise(shallow).backward()
    assert z[0].grad is None and shallow[0].grad is not None
    same = [x.detach() for x in z[::-1]]
    assert float(loss.supervise(same)) == pytest.approx(-1, abs=1e-5)


def test_moco_is_the_formula():
    torch.manual_seed(0)
    network = nn.Linear(4, D)
    loss = MoCo(network, lambda net, x: net(x), D, queue=10, momentum=0.9)
    images = [torch.randn(B, 4) for _ in range(2)]
    z = [network(x) for x in images]
    negatives = loss.queue.get().clone()
    torch.testing.assert_close(negatives.norm(dim=1), torch.ones(10))
    value = loss(z, images, 0)
    expected = 0.0
    with torch.no_grad():
        n = [F.normalize(x, dim=1) for x in z]
        for i in range(2):
            for b in range(B):
                own, others = n[1 - i][b] @ n[i][b], negatives @ n[1 - i][b]
                logits = torch.cat([own[None], others]) / 0.2
                expected += float(-logits.log_softmax(0)[0]) / B / 2
    assert float(value.detach()) == pytest.approx(expected, rel=1e-5)
    value.backward()
    assert all(p.grad is None for p in loss.teacher.parameters()) and network.weight.grad is not None


def test_moco_follows_and_stores_keys():
    torch.manual_seed(0)
    network = nn.Linear(4, D)
    loss = MoCo(network, lambda net, x: net(x), D, queue=2 * B, momentum=0.5)
    images = [torch.randn(B, 4) for _ in range(2)]
    loss([network(x) for x in images], images, 0)
    loss.after_step(0, network)  # the first update copies
    start = network.weight.detach().clone()
    with torch.no_grad():
        network.weight.add_(1)
    keys = torch.cat([F.normalize(F.linear(x, start, network.bias), dim=1) for x in images]).detach()
    torch.testing.assert_close(loss.queue.get(), keys)
    loss([network(x) for x in images], images, 1)
    loss.after_step(1, network)
    torch.testing.assert_close(loss.teacher.module.weight, start + 0.5)


def test_synchronised_networks_keep_their_activations(monkeypatch):
    """In timm's MobileNet the rectifier is part of the norm."""
    monkeypatch.setattr(instance, "world_size", lambda: 2)
    monkeypatch.setattr(instance.dist, "get_backend", lambda: "nccl")
    torch.manual_seed(0)
    plain, x = build_backbone("mobilenetv2_100", "random").eval(), torch.randn(1, 3, 64, 64)
    shared = instance.synchronised(copy.deepcopy(plain)).eval()
    assert any(isinstance(m, torch.nn.SyncBatchNorm) for m in shared.modules())
    with torch.no_grad():
        torch.testing.assert_close(shared(x), plain(x))
