"""ResNet38d: widths, strides and parameters of the published network, and its maps."""

from __future__ import annotations

import pytest
import torch

from maskwright.methods.weak.seam.network import SeamNetwork
from maskwright.models.backbones.build import build_backbone
from maskwright.models.networks import resnet38
from maskwright.models.networks.cam import attention_levels, freeze_stages


@pytest.fixture(scope="module")
def backbone():
    torch.manual_seed(0)
    return build_backbone("resnet38d", "random")


def test_widths_strides_and_levels_are_the_papers(backbone):
    assert backbone.widths == (128, 256, 512, 1024, 4096) and backbone.strides == (2, 4, 8, 8, 8)
    assert attention_levels(backbone) == (2, 3), "conv4 and conv5"


def test_parameters_by_hand(backbone):
    def block(width, mid, out, projected):
        return 9 * width * mid + 9 * mid * out + 2 * (width + mid) + (width * out if projected else 0)

    def bottleneck(width, out):
        a, b = out // 4, out // 2
        return width * a + 9 * a * b + b * out + width * out + 2 * (width + a + b)

    expected = 27 * 64
    expected += block(64, 128, 128, True) + 2 * block(128, 128, 128, False)
    expected += block(128, 256, 256, True) + 2 * block(256, 256, 256, False)
    expected += block(256, 512, 512, True) + 5 * block(512, 512, 512, False)
    expected += block(512, 512, 1024, True) + 2 * block(1024, 512, 1024, False)
    expected += bottleneck(1024, 2048) + bottleneck(2048, 4096) + 2 * 4096
    assert sum(p.numel() for p in backbone.parameters()) == expected
    convolutions = [m for m in backbone.modules() if isinstance(m, torch.nn.Conv2d)]
    projections = [n for n, m in backbone.named_modules() if n.endswith("conv_branch1") and m is not None]
    assert len(convolutions) - len(projections) == 1 + 2 * 15 + 3 * 2 == 37, "38 layers with the classifier"


def test_maps_and_early_stop(backbone):
    x = torch.randn(1, 3, 40, 48)
    with torch.no_grad():
        every = backbone.dense_many(x, range(5))
        for k, (stride, width) in enumerate(zip(backbone.strides, backbone.widths)):
            assert every[k].shape == (1, width, 40 // stride, 48 // stride) and (every[k] >= 0).all()
            assert torch.equal(backbone.dense_many(x, [k])[0], every[k])
        torch.testing.assert_close(backbone.embed(x), every[4].mean((2, 3)))


def test_seam_on_it_freezes_the_stem_and_the_first_stage(backbone):
    network = SeamNetwork(backbone, 2, 8, frozen_stages=-1)
    trained = {n for n, p in network.backbone.model.named_parameters() if p.requires_grad}
    stem = {"conv1a", "b2", "b2_1", "b2_2"}
    # As in the authors' code: nothing of the stem and the first stage, of the rest convolutions alone.
    kernels = {n for n, p in network.backbone.model.named_parameters() if p.ndim == 4}
    assert trained == {n for n in kernels if n.split(".")[0] not in stem}
    assert network.pcm.f3.in_channels == 512 and network.pcm.f4.in_channels == 1024
    freeze_stages(backbone, 0)
    assert all(p.requires_grad for p in backbone.parameters())
    with torch.no_grad():
        out = network.eval()(torch.randn(1, 3, 32, 32), torch.ones(1, 2))
    assert out.refined.shape == (1, 3, 4, 4)


def test_refuses_what_it_is_not_made_for():
    with pytest.raises(ValueError, match="output stride 16"):
        resnet38.ResNet38d(output_stride=16)
    with pytest.raises(ValueError, match="weights"):
        resnet38.resnet38d(pretrained=True)
