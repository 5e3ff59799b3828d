"""Boundary and affinity networks: levels, shapes, what is trained, what stays."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from maskwright.models.backbones.build import build_backbone
from maskwright.models.networks.irn import AffinityNet, BoundaryNet, LevelHead


@pytest.fixture(scope="module")
def backbone():
    torch.manual_seed(0)
    return build_backbone("mobilenetv2_050", "random")


def test_boundaries_lie_on_every_fourth_pixel(backbone):
    network = BoundaryNet(backbone, 16)
    assert network(torch.randn(2, 3, 64, 96)).shape == (2, 16, 24)
    assert network.stride == 4 and network.multiple_of == 16


def test_backbone_of_the_boundaries_is_frozen_and_its_statistics_stay(backbone):
    network = BoundaryNet(backbone, 16).train()
    before = {k: v.clone() for k, v in network.backbone.state_dict().items()}
    network(torch.randn(2, 3, 64, 64)).sum().backward()
    assert all(torch.equal(v, before[k]) for k, v in network.backbone.state_dict().items())
    assert all(p.grad is None for p in network.backbone.parameters())
    groups = network.groups(0.1, 0.1, 1e-4)
    assert {g["lr"] for g in groups} == {0.1}
    trained = {id(p) for g in groups for p in g["params"]}
    assert trained == {id(p) for p in network.parameters() if p.requires_grad}
    assert all(p.grad is not None for g in groups for p in g["params"])


def conv_norm(x, conv, norm, stride: int = 1):
    """Convolution without dilation, then batch norm by its running statistics."""
    y = F.conv2d(x, conv.weight, None, stride, conv.kernel_size[0] // 2)
    return F.batch_norm(y, norm.running_mean, norm.running_var, norm.weight, norm.bias, False, 0.0, norm.eps)


def authors_levels(resnet, x):
    """IRN's five levels of a ResNet-18: after the max-pool, and four stages, the last with stride 1, none dilated."""
    x = F.max_pool2d(conv_norm(x, resnet.conv1, resnet.bn1, 2).relu(), 3, 2, 1)
    levels = [x]
    for k, stage in enumerate((resnet.layer1, resnet.layer2, resnet.layer3, resnet.layer4)):
        for n, block in enumerate(stage):
            stride = 2 if n == 0 and k in (1, 2) else 1
            y = conv_norm(x, block.conv1, block.bn1, stride).relu()
            y = conv_norm(y, block.conv2, block.bn2)
            if block.downsample is not None:
                x = conv_norm(x, block.downsample[0], block.downsample[1], stride)
            x = (x + y).relu()
        levels.append(x)
    return levels


def test_levels_and_boundaries_of_a_resnet_are_the_authors():
    torch.manual_seed(0)
    resnet = build_backbone("resnet18", "random").eval()
    network = BoundaryNet(resnet, 16).eval()
    x = torch.randn(2, 3, 96, 64)
    with torch.no_grad():
        levels = authors_levels(resnet.model, x)
        assert [tuple(m.shape[-2:]) for m in levels] == [(24, 16), (24, 16), (12, 8), (6, 4), (6, 4)]
        for got, expected in zip(network.levels(x), levels, strict=True):
            torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)
        total = torch.zeros(2, 24, 16)
        weight = network.edge.last.weight.flatten()
        for k, m in enumerate(levels):
            conv, norm = network.edge.reduce[k]
            y = F.group_norm(F.conv2d(m, conv.weight), 4, norm.weight, norm.bias)
            y = F.interpolate(y, (24, 16), mode="bilinear", align_corners=False).relu()
            total += torch.einsum("bchw,c->bhw", y, weight[32 * k : 32 * k + 32])
        torch.testing.assert_close(network(x), total + network.edge.last.bias, rtol=1e-4, atol=1e-4)


def test_only_the_stages_that_were_dilated_lose_their_dilation():
    network = BoundaryNet(build_backbone("mobilenetv2_050", "random"), 8)
    dilations = {m.dilation for m in network.backbone.model.modules() if isinstance(m, torch.nn.Conv2d)}
    assert dilations == {(1, 1)} and network.backbone.strides[-1] == 8
    assert network(torch.randn(1, 3, 64, 96)).shape == (1, 16, 24)


def test_boundaries_of_the_mirror_image_are_mirrored(backbone):
    network = BoundaryNet(backbone, 16).eval()
    x = torch.randn(3, 64, 96)
    edge = network.boundaries(x)
    assert edge.shape == (16, 24) and edge.min() >= 0 and edge.max() <= 1
    torch.testing.assert_close(network.boundaries(x.flip(-1)), edge.flip(-1), rtol=1e-4, atol=1e-5)


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
    norms = [m for m in network.modules() if isinstance(m, torch.nn.modules.batchnorm._BatchNorm)]
    assert norms and not any(p.requires_grad for m in norms for p in m.parameters())


def test_head_joins_levels_on_one_grid():
    head = LevelHead([4, 6], 8, 4)
    maps = [torch.randn(1, 4, 16, 16), torch.randn(1, 6, 4, 4)]
    found = head(maps, (8, 8))
    assert found.shape == (1, 1, 8, 8)
    pooled = [maps[0].reshape(1, 4, 8, 2, 8, 2).mean((3, 5)), maps[1]]
    assert not torch.equal(head([pooled[0], 0 * maps[1]], (8, 8)), found), "both levels count"


def test_on_a_transformer():
    network = BoundaryNet(build_backbone("vit_tiny_patch16_224", "random"), None)
    assert network(torch.randn(1, 3, 64, 96)).shape == (1, 16, 24)
    assert AffinityNet(build_backbone("vit_tiny_patch16_224", "random"), None)(torch.randn(1, 3, 64, 96)).shape == (
        1,
        448,
        4,
        6,
    )
