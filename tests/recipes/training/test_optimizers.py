"""Parameter groups of segmentation networks."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from maskwright.engine.config import configure
from maskwright.recipes.training.optimizers import make_optimizer, parameter_groups
from maskwright.recipes.training.options import NetworkConfig, OptimizerOptions
from maskwright.recipes.training.rates import resolved


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)) for _ in range(3))
        self.head = nn.Conv2d(3, 2, 1)

    def encoder_layers(self):
        return [list(layer.parameters()) for layer in self.layers]

    def head_parameters(self):
        return list(self.head.parameters())


def test_rates_fall_towards_the_input_and_vectors_do_not_decay():
    net = Net()
    groups = parameter_groups(net, lr=1.0, encoder_lr=0.1, layer_decay=0.5, weight_decay=1e-2)
    rate, decay = {}, {}
    for g in groups:
        for p in g["params"]:
            assert p not in rate
            rate[p], decay[p] = g["lr"], g["weight_decay"]
    assert set(rate) == set(net.parameters())
    assert rate[net.head.weight] == 1.0
    assert [rate[layer[0].weight] for layer in net.layers] == pytest.approx([0.025, 0.05, 0.1])
    for p in net.parameters():
        assert decay[p] == (1e-2 if p.ndim > 1 else 0)


def test_frozen_parameters_are_left_out():
    net = Net()
    net.layers[0].requires_grad_(False)
    held = {p for g in parameter_groups(net, 1, 1, 1, 0) for p in g["params"]}
    assert held == {p for p in net.parameters() if p.requires_grad}


@pytest.mark.parametrize(("name", "cls"), [("sgd", torch.optim.SGD), ("adamw", torch.optim.AdamW)])
def test_names(name, cls):
    options = OptimizerOptions(name=name, lr=0.1, encoder_lr=1.0, layer_decay=1.0, weight_decay=0.0)
    assert isinstance(make_optimizer(options, Net()), cls)


def test_rates_follow_the_optimiser_and_the_kind_of_encoder(semi_context):
    def decided(**options):
        o = resolved(configure(NetworkConfig, options), semi_context).optimizer
        return o.lr, o.encoder_lr, o.weight_decay

    assert decided() == (1e-3, 1.0, 0.01)  # random weights
    semi_context.backbone.provenance = semi_context.backbone.provenance.replace(source="file: backbone.safetensors")
    assert decided() == (1e-3, 0.3, 0.01)
    assert decided(optimizer="sgd") == (0.01, 1.0, 1e-4)
    assert decided(lr=0.5, encoder_lr=0.0, weight_decay=0.0) == (0.5, 0.0, 0.0)
    semi_context.backbone.is_vit = True
    assert decided() == (2e-4, 1 / 40, 0.01)
    assert decided(network="ddrnet23_slim") == (1e-3, 1.0, 0.01)  # its own encoder, untrained
    assert decided(network="ddrnet23_slim", network_weights="ddrnet.pth") == (1e-3, 0.3, 0.01)
