"""PiCIE's decoder."""

from __future__ import annotations

import torch

from maskwright.models.backbones.build import build_backbone
from maskwright.models.networks.build import build_network
from maskwright.models.networks.lateral_fpn import LateralFPN


def parameters(*modules: torch.nn.Module) -> int:
    return sum(p.numel() for m in modules for p in m.parameters())


def test_as_many_parameters_as_the_authors_networks_have():
    network = build_network("lateral_fpn", build_backbone("resnet18", "random"), 27)
    assert parameters(network.encoder, network.decoder) == 11_299_904
    assert parameters(network.decoder) == 123_392
    assert parameters(LateralFPN([256, 512, 1024, 2048], 256)) == 984_064
    assert network.eval()(torch.zeros(1, 3, 64, 96)).shape == (1, 27, 16, 24)


def test_a_coarse_map_reaches_all_fine_cells_and_sums_are_linear():
    decoder = LateralFPN([2, 3], 4)
    fine, coarse = torch.randn(1, 2, 8, 8), torch.randn(1, 3, 4, 4)
    zero = decoder([0 * fine, 0 * coarse])
    both = decoder([torch.zeros(1, 9, 16, 16), fine, coarse]) - zero  # maps before those that it reads do not count
    torch.testing.assert_close(
        both, decoder([fine, 0 * coarse]) + decoder([0 * fine, coarse]) - 2 * zero, rtol=1e-5, atol=1e-6
    )
