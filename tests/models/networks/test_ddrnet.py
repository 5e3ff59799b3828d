"""DDRNet: published sizes, DAPPM against its formula, official checkpoints by name."""

from __future__ import annotations

import re

import pytest
import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode

from maskwright.errors import MaskwrightError
from maskwright.models.networks.build import build_network
from maskwright.models.networks.ddrnet import DAPPM, VARIANTS, DDRNetDecoder, DDRNetEncoder, enlarge


@pytest.mark.parametrize(
    ("name", "millions", "giga"),
    [("ddrnet23_slim", 5.7, 36.3), ("ddrnet23", 20.1, 143.1), ("ddrnet39", 32.3, 281.2)],
)
def test_published_parameters_and_multiply_adds(name, millions, giga):
    network = build_network(name, None, 19)
    kept = sum(p.numel() for part in (network.encoder, network.decoder, network.classifier) for p in part.parameters())
    assert kept / 1e6 == pytest.approx(millions, rel=0.01)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        network.to("meta").eval()(torch.empty(1, 3, 1024, 2048, device="meta"))
    assert counter.get_total_flops() / 2e9 == pytest.approx(giga, rel=0.01)


@pytest.mark.parametrize("name", VARIANTS)
def test_shapes_of_both_branches(name):
    encoder = DDRNetEncoder(name).eval()
    p = VARIANTS[name].planes
    with torch.inference_mode():
        maps = encoder(torch.randn(1, 3, 72, 128))
    assert [tuple(m.shape[1:]) for m in maps] == [(2 * p, 9, 16), (4 * p, 9, 16), (16 * p, 2, 2)]
    assert list(encoder.widths) == [m.shape[1] for m in maps]
    with pytest.raises(ValueError, match="multiples of 8"):
        encoder(torch.randn(1, 3, 68, 128))


def test_dappm_of_zeros_is_zero_and_adds_nothing():
    pool = DAPPM(16, 8, 12).eval()
    assert torch.equal(pool(torch.zeros(2, 16, 5, 7)), torch.zeros(2, 12, 5, 7))
    decoder = DDRNetDecoder("ddrnet23_slim").eval()
    high = torch.randn(1, 128, 16, 16)
    assert torch.equal(decoder([high, high, torch.zeros(1, 512, 2, 2)]), decoder.head(high))


def test_dappm_follows_its_formula():
    torch.manual_seed(0)
    pool = DAPPM(6, 4, 5).double().eval()
    for tensor in pool.state_dict().values():
        if tensor.is_floating_point():
            tensor.copy_(torch.rand_like(tensor) + 0.2)
    x = torch.randn(2, 6, 9, 11).double()

    def pre(module, x, padding=0):  # norm, ReLU, convolution, by hand
        norm, conv = module
        scale = norm.weight / (norm.running_var + norm.eps).sqrt()
        y = (x - norm.running_mean[:, None, None]) * scale[:, None, None] + norm.bias[:, None, None]
        return F.conv2d(y.clamp(min=0), conv.weight, padding=padding)

    def part(name):
        layers = list(getattr(pool, name))
        return layers[-3], layers[-1]

    y = [pre(part("scale0"), x)]
    for i, (kernel, stride) in enumerate(((5, 2), (9, 4), (17, 8), (None, None)), 1):
        if kernel is None:
            pooled = x.mean((2, 3), keepdim=True)
        else:
            padded = F.pad(x, [kernel // 2] * 4)  # the zeros count
            pooled = padded.unfold(2, kernel, stride).unfold(3, kernel, stride).mean((-2, -1))
        risen = F.interpolate(pre(part(f"scale{i}"), pooled), x.shape[-2:], mode="bilinear")
        y.append(pre(part(f"process{i}"), risen + y[-1], 1))
    slow = pre(part("compression"), torch.cat(y, 1)) + pre(part("shortcut"), x)
    torch.testing.assert_close(pool(x), slow)


def test_coarse_maps_are_enlarged_in_place():
    # A ramp stays a ramp: content does not move when the fine map is no multiple of the coarse one.
    ramp = torch.arange(6.0).view(1, 1, 6, 1).expand(1, 1, 6, 6)
    for h in (48, 45, 41):
        y = enlarge(ramp, 8, (h, 48))
        centres = (torch.arange(h) + 0.5) / 8 - 0.5
        torch.testing.assert_close(y[0, 0, 4:40, 0], centres.clamp(0, 5)[4:40])
    same = F.interpolate(ramp, (48, 48), mode="bilinear", align_corners=False)
    assert torch.equal(enlarge(ramp, 8, (48, 48)), same)


OFFICIAL = (
    ("decoder.spp.", "spp."),
    ("decoder.head.", "final_layer."),
    ("classifier.linear.", "final_layer.conv2."),
    ("aux.aux.head.", "seghead_extra."),
    ("encoder.", ""),
)


def official_name(name: str) -> str:
    for ours, theirs in OFFICIAL:
        if name.startswith(ours):
            return theirs + name[len(ours) :]
    raise AssertionError(name)


def scrambled(name: str, classes: int = 19):
    torch.manual_seed(3)
    network = build_network(name, None, classes)
    for tensor in network.state_dict().values():
        if tensor.is_floating_point():
            tensor.copy_(torch.rand_like(tensor) * 0.1 + 0.05)
    return network.eval()


@pytest.mark.parametrize(("name", "prefix"), [("ddrnet23_slim", "model."), ("ddrnet39", "")])
def test_official_checkpoint(name, prefix, tmp_path):
    original = scrambled(name)
    state = {prefix + official_name(k): v for k, v in original.state_dict().items()}
    if prefix:
        state["loss.criterion.weight"] = torch.ones(19)
    names = {k.removeprefix(prefix) for k in state}
    # Names as the authors' file has them.
    third = "3_1" if name == "ddrnet39" else "3"
    for known in (
        "conv1.0.bias", "layer1.0.bn2.running_var", f"layer{third}_.1.conv2.weight", f"compression{third}.0.weight",
        f"down{third}.1.weight", "down4.3.weight", "layer5_.0.downsample.0.weight", "layer5.0.conv3.weight",
        "spp.scale0.0.weight", "spp.scale1.1.weight", "spp.scale4.3.weight", "spp.process4.2.weight",
        "spp.compression.2.weight", "spp.shortcut.0.bias", "final_layer.bn1.weight", "final_layer.conv2.bias",
        "seghead_extra.conv1.weight",
    ):  # fmt: skip
        assert known in names
    torch.save({"state_dict": state} if prefix else state, tmp_path / "w.pth")
    loaded = build_network(name, None, 19, weights=str(tmp_path / "w.pth")).eval()
    assert all(torch.equal(v, original.state_dict()[k]) for k, v in loaded.state_dict().items())
    assert loaded.provenance.source == "file: w.pth" and loaded.provenance.sha256
    # Other classes: all but the last layers is taken.
    other = build_network(name, None, 4, weights=str(tmp_path / "w.pth")).eval()
    assert torch.equal(other.decoder.head.conv1.weight, original.decoder.head.conv1.weight)
    assert other.classifier.linear.weight.shape[0] == 4


def test_checkpoint_of_imagenet_fills_the_encoder_alone(tmp_path):
    original = scrambled("ddrnet23_slim")
    state = {official_name(k): v for k, v in original.state_dict().items() if k.startswith("encoder.")}
    state |= {"down5.0.weight": torch.ones(1), "last_layer.0.weight": torch.ones(1), "linear.weight": torch.ones(2)}
    torch.save(state, tmp_path / "imagenet.pth")
    loaded = build_network("ddrnet23_slim", None, 3, weights=str(tmp_path / "imagenet.pth"))
    theirs = original.encoder.state_dict()
    assert all(torch.equal(v, theirs[k]) for k, v in loaded.encoder.state_dict().items())


def test_checkpoint_of_another_network_is_refused(tmp_path):
    state = {official_name(k): v for k, v in scrambled("ddrnet23_slim").state_dict().items()}
    torch.save(state, tmp_path / "w.pth")
    with pytest.raises(MaskwrightError, match="does not fit"):
        build_network("ddrnet23", None, 19, weights=str(tmp_path / "w.pth"))
    torch.save({k: v for k, v in state.items() if not re.match(r"layer4\.", k)}, tmp_path / "part.pth")
    with pytest.raises(MaskwrightError, match="are missing"):
        build_network("ddrnet23_slim", None, 19, weights=str(tmp_path / "part.pth"))
