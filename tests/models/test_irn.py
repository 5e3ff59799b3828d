"""Boundary, displacement and affinity networks: shapes, what is trained, what stays."""

from __future__ import annotations

import pytest
import torch

from maskwright.models.backbones import build_backbone
from maskwright.models.heads import build_part
from maskwright.models.irn import AffinityNet, BoundaryNet, LevelHead, MeanShift


@pytest.fixture(scope="module")
def backbone():
    torch.manual_seed(0)
    return build_backbone("mobilenetv2_050", "random")


@pytest.mark.parametrize("displacement", [False, True])
def test_relations_lie_on_every_fourth_pixel(backbone, displacement):
    network = BoundaryNet(backbone, 16, displacement)
    out = network(torch.randn(2, 3, 64, 96))
    assert out.edge.shape == (2, 16, 24)
    assert (out.displacement is not None) == displacement
    if out.displacement is not None:
        assert out.displacement.shape == (2, 2, 16, 24)
    assert network.stride == 4 and network.multiple_of == 16


def test_backbone_of_the_boundaries_is_frozen_and_its_statistics_stay(backbone):
    network = BoundaryNet(backbone, 16, True).train()
    before = {k: v.clone() for k, v in network.backbone.state_dict().items()}
    out = network(torch.randn(2, 3, 64, 64))
    (out.edge.sum() + out.displacement.sum()).backward()
    assert all(torch.equal(v, before[k]) for k, v in network.backbone.state_dict().items())
    assert all(p.grad is None for p in network.backbone.parameters())
    groups = network.groups(0.1, 0.1, 1e-4)
    assert sorted({round(g["lr"], 6) for g in groups}) == [0.1, 1.0], "displacements learn ten times as fast"
    trained = {id(p) for g in groups for p in g["params"]}
    assert trained == {id(p) for p in network.parameters() if p.requires_grad}
    assert all(p.grad is not None for g in groups for p in g["params"])


def test_branches_are_independent(backbone):
    torch.manual_seed(1)
    network = BoundaryNet(backbone, 16, True)
    network(torch.randn(1, 3, 64, 64)).displacement.square().sum().backward()
    assert all(p.grad is None for p in network.edge.parameters())


def test_boundaries_of_the_mirror_image_are_mirrored(backbone):
    network = BoundaryNet(backbone, 16).eval()
    x = torch.randn(3, 64, 96)
    edge = network.boundaries(x)
    assert edge.shape == (16, 24) and edge.min() >= 0 and edge.max() <= 1
    torch.testing.assert_close(network.boundaries(x.flip(-1)), edge.flip(-1), rtol=1e-4, atol=1e-5)


def test_mean_shift_centres_in_evaluation_only():
    shift, x = MeanShift(momentum=1.0), torch.randn(4, 2, 5, 6) + 3
    assert torch.equal(shift.train()(x), x)
    assert float(shift.eval()(x).mean((0, 2, 3)).abs().max()) < 1e-5


def test_features_at_the_finest_level(backbone):
    network = AffinityNet(backbone, 16, frozen_stages=1).train()
    network.freeze_norm()
    f = network(torch.randn(2, 3, 64, 96))
    assert f.shape == (2, 448, 8, 12) and network.stride == 8
    f.square().sum().backward()
    groups = network.groups(0.1, 0.1, 1e-4)
    assert {id(p) for g in groups for p in g["params"]} == {id(p) for p in network.parameters() if p.requires_grad}
    assert all(p.grad is not None for g in groups for p in g["params"]), "no parameter without gradient"
    assert len({round(g["lr"], 6) for g in groups}) == 2


def test_head_can_be_rebuilt():
    head = LevelHead([4, 6], 8, 4, joint=16, out=2, bias=False)
    twin = build_part(head.spec(), {"LevelHead": LevelHead})
    twin.load_state_dict(head.state_dict())
    maps = [torch.randn(1, 4, 16, 16), torch.randn(1, 6, 4, 4)]
    assert torch.equal(twin(maps, (8, 8)), head(maps, (8, 8))) and head(maps, (8, 8)).shape == (1, 2, 8, 8)


def test_on_a_transformer():
    network = BoundaryNet(build_backbone("vit_tiny_patch16_224", "random"), None, True)
    assert network(torch.randn(1, 3, 64, 96)).edge.shape == (1, 16, 24)
    assert AffinityNet(build_backbone("vit_tiny_patch16_224", "random"), None)(torch.randn(1, 3, 64, 96)).shape == (
        1,
        448,
        4,
        6,
    )
