"""DeepLab v1 and v2: published size, strides, the summed ASPP against its definition."""

from __future__ import annotations

import pytest
import timm
import torch
import torch.nn.functional as F

from maskwright.errors import MaskwrightError
from maskwright.models.backbones.build import build_backbone
from maskwright.models.backbones.dense import Backbone
from maskwright.models.networks.build import build_network
from maskwright.models.networks.deeplab import VGGS, LargeFOV, SummedASPP, VGGEncoder


def test_largefov_has_the_published_parameters():
    network = build_network("deeplabv1", None, 21)
    assert sum(p.numel() for p in network.parameters()) / 1e6 == pytest.approx(20.5, rel=0.005)
    fc6 = network.decoder.fc6
    assert fc6.kernel_size == (3, 3) and fc6.dilation == (12, 12) and fc6.out_channels == 1024


@pytest.fixture(scope="module")
def vgg() -> Backbone:
    return build_backbone("vgg11", "random")


@pytest.mark.parametrize("name", [*VGGS, *(f"{name}_bn" for name in VGGS)])
def test_vgg_has_the_tensors_of_timm(name):
    with torch.device("meta"):
        wanted = {k: v.shape for k, v in timm.create_model(name).features.state_dict(prefix="features.").items()}
        assert {k: v.shape for k, v in VGGEncoder(name).state_dict().items()} == wanted


def test_vgg_keeps_an_eighth(vgg):
    backbone, encoder = vgg, VGGEncoder("vgg11").eval()
    encoder.load_from(backbone)
    x = torch.randn(1, 3, 40, 64)
    with torch.inference_mode():
        maps = encoder(x)
        assert [m.shape[-2:] for m in maps] == [(20, 32), (10, 16), (5, 8), (5, 8), (5, 8)]
        # Up to the first pooling nothing differs from the classification network.
        first = backbone.model.eval().features[: encoder.ends[0]](x)
        torch.testing.assert_close(maps[0], F.max_pool2d(first, 3, 2, 1))
    dilations = [m.dilation[0] for m in encoder.features if isinstance(m, torch.nn.Conv2d)]
    assert set(dilations[-2:]) == {2} and set(dilations[:-2]) == {1}
    with pytest.raises(MaskwrightError, match="same network"):
        encoder.load_from(build_backbone("resnet18", "random"))


def test_vgg_reads_a_classification_checkpoint(vgg, tmp_path):
    backbone = vgg
    state = backbone.model.features.state_dict(prefix="features.") | {"classifier.0.weight": torch.ones(2)}
    assert torch.equal(build_network("deeplabv1", vgg, 3).encoder.features[0].weight, state["features.0.weight"])
    torch.save(state, tmp_path / "vgg.pth")
    network = build_network("deeplabv1", backbone, 3, weights=str(tmp_path / "vgg.pth"))
    assert torch.equal(network.encoder.features[0].weight, backbone.model.features[0].weight)
    assert network.provenance.source == "file: vgg.pth"


def test_dropout_only_in_training():
    decoder = LargeFOV(4, 8)
    x = [torch.randn(1, 4, 6, 6)]
    assert not torch.equal(decoder(x), decoder(x))
    decoder.eval()
    assert torch.equal(decoder(x), decoder(x))


def test_aspp_is_the_sum_of_its_dilated_convolutions():
    torch.manual_seed(0)
    aspp = SummedASPP(5, 3, (1, 2, 4)).double()
    x = torch.randn(2, 5, 7, 9).double()
    slow = torch.zeros(2, 3, 7, 9).double()
    for rate, branch in zip((1, 2, 4), aspp.branches, strict=True):
        for i in range(7):
            for j in range(9):
                for di in (-1, 0, 1):
                    for dj in (-1, 0, 1):
                        a, b = i + rate * di, j + rate * dj
                        if 0 <= a < 7 and 0 <= b < 9:
                            slow[:, :, i, j] += x[:, :, a, b] @ branch.weight[:, :, di + 1, dj + 1].T
        slow += branch.bias.detach()[:, None, None]
    torch.testing.assert_close(aspp(x), slow)
    with pytest.raises(ValueError, match="rates"):
        SummedASPP(5, 3, ())


def test_v2_classifies_the_last_map_at_an_eighth():
    network = build_network("deeplabv2", build_backbone("resnet18", "random"), 4).eval()
    assert network.classifier.rates == [6, 12, 18, 24] and network.width == 512
    x = torch.randn(1, 3, 64, 64)
    with torch.inference_mode():
        features = network.features(x)
        assert torch.equal(network.decode(features), features[-1]) and network(x).shape[-2:] == (8, 8)
    assert not [m for m in network.classifier.modules() if isinstance(m, torch.nn.BatchNorm2d)]
